//! Going down on request: the guest's own way, told to its users and programs.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use enhanced_session::class::Text;
use enhanced_session::class::shutdown::{Action, Actions, Refusal, Request, Response, ToHost};
use enhanced_session::message::{Message, Txid};
use enhanced_session::wire::Malformed;
use tokio::sync::oneshot;

use super::{Channel, Full, Moment, Service};

/// Requests that may wait for an answer. People press a button once or twice.
const MAX_ASKED: usize = 8;

/// What a guest says to going down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::bus) enum ShutdownAnswer {
    /// It goes.
    Accepted,
    /// It does not, for this reason.
    Refused(String),
}

/// The host's side of the class.
#[derive(Debug, Default)]
pub(in crate::bus) struct Shutdown {
    guest: Guest,
    asked: VecDeque<(Action, oneshot::Sender<ShutdownAnswer>)>,
    answers: HashMap<Txid, oneshot::Sender<ShutdownAnswer>>,
    going: Option<Action>,
}

/// What is known of the guest's abilities.
#[derive(Debug, Default)]
enum Guest {
    #[default]
    Away,
    /// The channel is open, and it says first of all what it can do.
    Silent,
    Can(Actions),
}

impl Shutdown {
    /// Whether the guest can be asked for `action`.
    pub(in crate::bus) fn can(&self, action: Action) -> bool {
        matches!(self.guest, Guest::Can(actions) if actions.has(action))
    }

    /// Whether the guest has said that it goes down.
    pub(in crate::bus) const fn going(&self) -> Option<Action> {
        self.going
    }

    /// Asks the guest, as soon as it has said what it can do. The sender is dropped when it cannot do this, when the channel
    /// closes before the answer, or when too many ask.
    pub(in crate::bus) fn ask(&mut self, action: Action, reply: oneshot::Sender<ShutdownAnswer>) {
        if (self.can(action) || matches!(self.guest, Guest::Silent))
            && self.asked.len() + self.answers.len() < MAX_ASKED
        {
            self.asked.push_back((action, reply));
        }
    }
}

impl Service for Shutdown {
    fn opened(&mut self, _: Moment) {
        *self = Self { guest: Guest::Silent, ..Self::default() };
    }

    fn closed(&mut self) {
        *self = Self { going: self.going, ..Self::default() };
    }

    fn handle(&mut self, _: Moment, message: Message) -> Result<(), Malformed> {
        match message {
            Message::Data(bytes) => match ToHost::decode(&bytes)? {
                ToHost::Capabilities { actions } => {
                    self.guest = Guest::Can(actions);
                    self.asked.retain(|(action, _)| actions.has(*action));
                }
                ToHost::GoingDown { action } => self.going = Some(action),
                ToHost::Unknown(_) => {}
            },
            Message::Completion(txid, bytes) => {
                let answer = match Response::decode(&bytes)? {
                    Response::Accepted => ShutdownAnswer::Accepted,
                    Response::Refused { why, reason } => ShutdownAnswer::Refused(refusal(why, &reason)),
                    Response::Unsupported | Response::Unknown(_) => {
                        ShutdownAnswer::Refused("its agent does not know how".into())
                    }
                };
                if let Some(reply) = self.answers.remove(&txid) {
                    // Whoever asked may have lost interest.
                    let _ = reply.send(answer);
                }
            }
            Message::Request(..) | Message::Fin | Message::Reset => {}
        }
        Ok(())
    }

    fn drive(&mut self, _: Moment, channel: &mut dyn Channel) -> Result<(), Full> {
        if matches!(self.guest, Guest::Silent) {
            return Ok(());
        }
        while let Some((action, _)) = self.asked.front() {
            let request =
                Request::Down { action: *action, force: false, timeout: Duration::ZERO, message: Text::default() };
            let txid = channel.request(request.encode())?;
            if let Some((_, reply)) = self.asked.pop_front() {
                self.answers.insert(txid, reply);
            }
        }
        Ok(())
    }

    fn timeout(&self) -> Option<Instant> {
        None
    }
}

fn refusal(why: Refusal, reason: &str) -> String {
    let why = match why {
        Refusal::Unsupported => "it cannot do that",
        Refusal::NotAllowed => "its rules forbid it",
        Refusal::Held => "a program or an update holds it up",
        Refusal::AlreadyGoing => "it is going down already",
        Refusal::Failed => "its system refused",
    };
    // The guest's words end up in a terminal.
    let reason: String = reason.chars().filter(|letter| !letter.is_control()).collect();
    if reason.trim().is_empty() { why.into() } else { format!("{why}: {}", reason.trim()) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Clock, Sent};
    use super::*;

    fn open(clock: &Clock) -> Shutdown {
        let mut shutdown = Shutdown::default();
        shutdown.opened(clock.at());
        let actions = Actions { power_off: true, reboot: true, hibernate: false };
        shutdown.handle(clock.at(), Message::Data(ToHost::Capabilities { actions }.encode())).expect("read");
        shutdown
    }

    #[test]
    fn who_asks_hears_what_the_guest_says() {
        let (clock, mut channel) = (Clock::new(), Sent::new());
        let mut shutdown = open(&clock);
        let (reply, mut answer) = oneshot::channel();
        shutdown.ask(Action::PowerOff, reply);
        shutdown.drive(clock.at(), &mut channel).expect("room");
        assert!(matches!(Request::decode(&channel.only()), Ok(Request::Down { action: Action::PowerOff, .. })));
        let refused = Response::Refused { why: Refusal::Held, reason: Text::new("apt\x1b runs").expect("fits") };
        shutdown.handle(clock.at(), Message::Completion(Txid(1), refused.encode())).expect("read");
        let expected = ShutdownAnswer::Refused("a program or an update holds it up: apt runs".into());
        assert_eq!(answer.try_recv(), Ok(expected));
    }

    #[test]
    fn who_asks_before_the_guest_has_said_what_it_can_do_waits_for_that() {
        let (clock, mut channel) = (Clock::new(), Sent::new());
        let mut shutdown = Shutdown::default();
        shutdown.opened(clock.at());
        let [(reboot, mut reboots), (hibernate, mut hibernates)] = [(); 2].map(|()| oneshot::channel());
        shutdown.ask(Action::Reboot, reboot);
        shutdown.ask(Action::Hibernate, hibernate);
        shutdown.drive(clock.at(), &mut channel).expect("room");
        channel.none();
        let actions = Actions { power_off: true, reboot: true, hibernate: false };
        shutdown.handle(clock.at(), Message::Data(ToHost::Capabilities { actions }.encode())).expect("read");
        assert_eq!(hibernates.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        shutdown.drive(clock.at(), &mut channel).expect("room");
        assert!(matches!(Request::decode(&channel.only()), Ok(Request::Down { action: Action::Reboot, .. })));
        shutdown.handle(clock.at(), Message::Completion(Txid(1), Response::Accepted.encode())).expect("read");
        assert_eq!(reboots.try_recv(), Ok(ShutdownAnswer::Accepted));
    }

    #[test]
    fn nobody_waits_for_a_guest_that_cannot_or_is_gone() {
        let (clock, mut channel) = (Clock::new(), Sent::new());
        let mut shutdown = open(&clock);
        let (reply, mut answer) = oneshot::channel();
        shutdown.ask(Action::Hibernate, reply);
        assert!(answer.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        let (reply, mut answer) = oneshot::channel();
        shutdown.ask(Action::Reboot, reply);
        shutdown.drive(clock.at(), &mut channel).expect("room");
        shutdown.closed();
        assert!(answer.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn an_end_that_was_announced_stays_announced_after_the_channel() {
        let clock = Clock::new();
        let mut shutdown = open(&clock);
        let going = ToHost::GoingDown { action: Action::Reboot };
        shutdown.handle(clock.at(), Message::Data(going.encode())).expect("read");
        shutdown.closed();
        assert_eq!(shutdown.going(), Some(Action::Reboot));
        shutdown.opened(clock.at());
        assert_eq!(shutdown.going(), None);
    }
}
