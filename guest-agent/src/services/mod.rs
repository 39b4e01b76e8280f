//! What the agent does for the host: one module for each class of channels.
//!
//! A service is opened with its channel and dropped with it; what it holds in the guest's system (input devices, a
//! steered clock) it then gives back. Its rules are plain values that are tested with made-up systems; what touches
//! the system is a thin layer beside them.

use std::cell::Cell;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Instant;

use enhanced_session::class::Class;
use enhanced_session::class::heartbeat::State;
use enhanced_session::wire::Malformed;
use thiserror::Error;

mod guest_info;
mod heartbeat;
mod input;
mod memory;
mod shutdown;
mod time_sync;

/// What came on a service's channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A message that wants no answer.
    Message(&'a [u8]),
    /// One that wants an answer with the same number.
    Request(u64, &'a [u8]),
}

/// What a service wants sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// A message that wants no answer.
    Message(Vec<u8>),
    /// The answer to the request of this number.
    Completion(u64, Vec<u8>),
}

/// Why a channel has to be closed.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The host sent what cannot be.
    #[error("the host sent a malformed message: {0}")]
    Malformed(#[from] Malformed),
    /// The host asked for more than it may have open.
    #[error("the host has more than {0} requests open")]
    TooManyRequests(usize),
}

/// One open channel's service.
pub trait Service {
    /// Takes what came; `now` is when.
    ///
    /// # Errors
    ///
    /// When the host broke the class's rules: the channel is closed.
    fn handle(&mut self, now: Instant, incoming: Incoming<'_>) -> Result<(), ServiceError>;

    /// The next thing to send. Asked only while the channel has room, so that what is old by then can be left out.
    fn poll_output(&mut self) -> Option<Outgoing>;

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Does what has become due. Called at other times, too: what may be done a little early saves a wake of its own.
    fn handle_timeout(&mut self, _now: Instant) {}

    /// What to watch for being readable (edge-triggered).
    fn watched(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What is watched is readable: take everything.
    fn handle_readable(&mut self, _now: Instant) {}

    /// A child process ended, maybe this service's.
    fn handle_child(&mut self, _now: Instant) {}

    /// The agent is asked to end: say what the host has to know first.
    fn handle_ending(&mut self, _now: Instant) {}
}

/// Most answers that wait to be sent: the bus allows no more open requests.
const MAX_COMPLETIONS: usize = 256;

/// Answers that wait to be sent, in order.
#[derive(Debug, Default)]
struct Completions(VecDeque<Outgoing>);

impl Completions {
    fn push(&mut self, txid: u64, bytes: Vec<u8>) -> Result<(), ServiceError> {
        if self.0.len() == MAX_COMPLETIONS {
            return Err(ServiceError::TooManyRequests(MAX_COMPLETIONS));
        }
        self.0.push_back(Outgoing::Completion(txid, bytes));
        Ok(())
    }

    /// A request that the class, or this version of it, does not have: kind 0, the same in every class.
    fn push_unsupported(&mut self, txid: u64) -> Result<(), ServiceError> {
        self.push(txid, vec![0; 4])
    }

    fn pop(&mut self) -> Option<Outgoing> {
        self.0.pop_front()
    }
}

/// How the guest is, as far as the services know: heartbeat tells the host.
#[derive(Debug, Clone, Default)]
pub struct Health(Rc<HealthCells>);

#[derive(Debug, Default)]
struct HealthCells {
    failures: Cell<u32>,
    going_down: Cell<bool>,
}

impl Health {
    /// What a beat says.
    #[must_use]
    pub fn state(&self) -> State {
        match (self.0.going_down.get(), self.0.failures.get()) {
            (true, _) => State::Stopped,
            (false, 0) => State::Healthy,
            (false, _) => State::Critical,
        }
    }

    /// Whether the system is on its way down.
    pub fn set_going_down(&self, going_down: bool) {
        self.0.going_down.set(going_down);
    }

    /// A service cannot do its work. It can again when what is returned is dropped.
    #[must_use]
    pub fn failure(&self) -> Failure {
        self.0.failures.set(self.0.failures.get().saturating_add(1));
        Failure(Self(Rc::clone(&self.0)))
    }
}

/// A service cannot do its work, as long as this lives.
#[derive(Debug)]
pub struct Failure(Health);

impl Drop for Failure {
    fn drop(&mut self) {
        let failures = &self.0.0.failures;
        failures.set(failures.get().saturating_sub(1));
    }
}

/// Whether the agent has a service for this class.
#[must_use]
pub const fn is_provided(class: Class) -> bool {
    matches!(
        class,
        Class::Heartbeat | Class::TimeSync | Class::Shutdown | Class::GuestInfo | Class::Memory | Class::Input
    )
}

/// The service for a channel that has been opened; none when the agent has none for its class.
#[must_use]
pub fn open(class: Class, now: Instant, health: &Health) -> Option<Box<dyn Service>> {
    Some(match class {
        Class::Heartbeat => Box::new(heartbeat::Heartbeat::new(health.clone())),
        Class::TimeSync => Box::new(time_sync::TimeSync::of_system()),
        Class::Shutdown => Box::new(shutdown::Shutdown::of_system(health.clone())),
        Class::GuestInfo => Box::new(guest_info::GuestInfo::of_system(now)),
        Class::Memory => Box::new(memory::Memory::of_system(now)),
        Class::Input => Box::new(input::Input::of_system(now, health)),
        Class::Video | Class::AudioOut | Class::AudioIn | Class::Clipboard | Class::Folder | Class::Usb => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_as_bad_as_the_worst() {
        let health = Health::default();
        assert_eq!(health.state(), State::Healthy);
        let (one, other) = (health.failure(), health.failure());
        drop(one);
        assert_eq!(health.state(), State::Critical);
        drop(other);
        assert_eq!(health.state(), State::Healthy);
        health.set_going_down(true);
        assert_eq!(health.state(), State::Stopped);
    }

    #[test]
    fn every_class_that_is_provided_can_be_opened() {
        for class in Class::ALL {
            let service = open(class, Instant::now(), &Health::default());
            assert_eq!(service.is_some(), is_provided(class), "{class}");
        }
    }
}
