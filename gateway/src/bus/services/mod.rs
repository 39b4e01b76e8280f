//! The host's side of each class that a VM's bus serves by itself, without a client.
//!
//! A service is a value: it is told what happens on its channel and what time it is, and says what to send. One file per
//! class; the bus's task owns all of them.

mod guest_info;
mod heartbeat;
mod input;
mod memory;
mod shutdown;
#[cfg(test)]
mod testing;
mod time_sync;

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use enhanced_session::class::Class;
use enhanced_session::endpoint::ChannelId;
use enhanced_session::message::{Message, Txid};
use enhanced_session::wire::Malformed;
use vmm::Vm;

use super::input_port::InputPort;

pub use guest_info::{GuestDetails, InterfaceDetails, UserDetails};
pub use heartbeat::Health;
pub use memory::MemoryReport;
pub use time_sync::ClockState;

use guest_info::GuestInfo;
use heartbeat::Heartbeat;
use input::Input;
use memory::Memory;
use shutdown::Shutdown;
use time_sync::TimeSync;

pub(super) use shutdown::ShutdownAnswer;

/// One moment, on the clock that only goes forward and on the one that people read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: Instant,
    pub(super) wall: SystemTime,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self { now: Instant::now(), wall: SystemTime::now() }
    }
}

/// There is no room on the channel; the service is driven again when there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// A channel, as its service sees it.
pub(super) trait Channel {
    /// Sends a message that wants no answer.
    fn send(&mut self, payload: Vec<u8>) -> Result<(), Full>;
    /// Sends a message that wants one.
    fn request(&mut self, payload: Vec<u8>) -> Result<Txid, Full>;
}

/// The host's side of a class.
pub(super) trait Service {
    /// The guest has opened the channel: nothing that was said on an earlier one holds.
    fn opened(&mut self, at: Moment);
    /// The channel is closed.
    fn closed(&mut self);
    /// A message came.
    ///
    /// # Errors
    ///
    /// When it cannot be read: the channel is closed then.
    fn handle(&mut self, at: Moment, message: Message) -> Result<(), Malformed>;
    /// Sends what there is to send.
    fn drive(&mut self, at: Moment, channel: &mut dyn Channel) -> Result<(), Full>;
    /// When to drive it, if nothing happens before.
    fn timeout(&self) -> Option<Instant>;
}

/// All of them, and which of their channels are open.
#[derive(Debug)]
pub(super) struct Services {
    pub(super) heartbeat: Heartbeat,
    pub(super) time_sync: TimeSync,
    pub(super) shutdown: Shutdown,
    pub(super) guest_info: GuestInfo,
    pub(super) memory: Memory,
    pub(super) input: Input,
    open: BTreeMap<ChannelId, Class>,
}

impl Services {
    /// What is offered to every VM, most urgent first.
    pub(super) const CLASSES: [Class; 6] =
        [Class::Input, Class::Heartbeat, Class::TimeSync, Class::Shutdown, Class::GuestInfo, Class::Memory];

    pub(super) fn new(vm: &Vm, port: InputPort) -> Self {
        Self {
            heartbeat: Heartbeat::default(),
            time_sync: TimeSync::default(),
            shutdown: Shutdown::default(),
            guest_info: GuestInfo::new(vm.name(), vm.uuid()),
            memory: Memory::new(vm),
            input: Input::new(port),
            open: BTreeMap::new(),
        }
    }

    /// A channel was opened.
    pub(super) fn opened(&mut self, at: Moment, id: ChannelId, class: Class) {
        if let Some(service) = self.service(class) {
            service.opened(at);
            self.open.insert(id, class);
        }
    }

    /// A channel was closed.
    pub(super) fn closed(&mut self, id: ChannelId) {
        if let Some(class) = self.open.remove(&id)
            && let Some(service) = self.service(class)
        {
            service.closed();
        }
    }

    /// All channels were.
    pub(super) fn all_closed(&mut self) {
        let open: Vec<ChannelId> = self.open.keys().copied().collect();
        open.into_iter().for_each(|id| self.closed(id));
    }

    /// A message came on a channel.
    pub(super) fn handle(&mut self, at: Moment, id: ChannelId, message: Message) -> Result<(), Malformed> {
        let class = self.open.get(&id).copied();
        class.and_then(|class| self.service(class)).map_or(Ok(()), |service| service.handle(at, message))
    }

    /// The channels that are open, most urgent first.
    pub(super) fn open(&self) -> Vec<ChannelId> {
        let mut open: Vec<_> = self.open.iter().map(|(id, class)| (class.priority(), *id)).collect();
        open.sort_unstable();
        open.into_iter().map(|(_, id)| id).collect()
    }

    /// Sends what there is to send on a channel, as long as there is room.
    pub(super) fn drive(&mut self, at: Moment, id: ChannelId, channel: &mut dyn Channel) {
        let class = self.open.get(&id).copied();
        if let Some(service) = class.and_then(|class| self.service(class)) {
            // What found no room is sent when the channel can be written to.
            let _ = service.drive(at, channel);
        }
    }

    /// When to drive them, if nothing happens before.
    pub(super) fn timeout(&self) -> Option<Instant> {
        let all: [&dyn Service; 6] =
            [&self.heartbeat, &self.time_sync, &self.shutdown, &self.guest_info, &self.memory, &self.input];
        all.iter().filter_map(|service| service.timeout()).min()
    }

    /// The processors go on, with a clock that stood still.
    pub(super) fn resumed(&mut self, at: Moment) {
        self.heartbeat.resumed(at);
        self.time_sync.resumed(at);
    }

    fn service(&mut self, class: Class) -> Option<&mut dyn Service> {
        Some(match class {
            Class::Heartbeat => &mut self.heartbeat,
            Class::TimeSync => &mut self.time_sync,
            Class::Shutdown => &mut self.shutdown,
            Class::GuestInfo => &mut self.guest_info,
            Class::Memory => &mut self.memory,
            Class::Input => &mut self.input,
            _ => return None,
        })
    }
}
