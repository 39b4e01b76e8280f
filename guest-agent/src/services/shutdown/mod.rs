//! Shutdown: the host asks, the guest's init is told, and the host hears whether that worked.
//!
//! ```text
//!            Down                     it ended well, or is at it long enough
//!  Idle ─────────────▶ Starting ───────────────────────────────────────────▶ Going
//!   ▲  ▲                  │ it failed                                            │
//!   │  └──────────────────┘ (Refused)                     still here long after  │
//!   └────────────────────────────────────────────────────────────────────────────┘
//! ```

use std::io;
use std::time::{Duration, Instant};

use enhanced_session::class::Text;
use enhanced_session::class::shutdown::{Action, Actions, Refusal, Request, Response, ToHost};
use tracing::{info, warn};

use super::{Completions, Health, Incoming, Outgoing, Service, ServiceError};

mod system;

/// The host hears by then whether the guest goes.
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);
/// A guest that is still here then does not go.
const GOING_PATIENCE: Duration = Duration::from_secs(600);

/// What the guest's system can be told.
trait System {
    fn actions(&self) -> Actions;
    /// Shows a text to whoever uses the guest.
    fn tell_users(&mut self, text: &str);
    /// Tells the init to go.
    fn start(&mut self, action: Action, mode: Mode, text: &str) -> io::Result<()>;
    /// How what was started last ended; none as long as it has not.
    fn poll_ended(&mut self) -> Option<Outcome>;
    /// Where the system goes, if it is on its way by itself.
    fn action_under_way(&mut self) -> Option<Action>;
}

/// How much is done about programs that do not want to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// They may hold the system up.
    Ask,
    /// They may not.
    Force,
    /// They are ended at once.
    Now,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Done,
    /// A program holds the system up; which, for people.
    Held(String),
    /// Why, for people.
    Failed(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Starting { txid: u64, action: Action, answer_by: Instant, patience: Option<Duration> },
    Going { action: Action, until: Instant, force_at: Option<Instant> },
}

/// The service of one channel.
pub(super) struct Shutdown {
    system: Box<dyn System>,
    health: Health,
    state: State,
    capabilities: Option<Actions>,
    going_down: Option<Action>,
    completions: Completions,
}

impl Shutdown {
    /// Takes this system down.
    pub(super) fn of_system(health: Health) -> Self {
        Self::new(Box::new(system::Init::find()), health)
    }

    fn new(system: Box<dyn System>, health: Health) -> Self {
        let capabilities = Some(system.actions());
        let completions = Completions::default();
        Self { system, health, state: State::Idle, capabilities, going_down: None, completions }
    }

    fn down(&mut self, now: Instant, txid: u64, request: Down) -> Result<(), ServiceError> {
        let Down { action, force, timeout, text } = request;
        info!(?action, force, ?timeout, text, "the host asks the system to go down");
        if self.state != State::Idle {
            return self.refuse(txid, Refusal::AlreadyGoing, "");
        }
        if !self.system.actions().has(action) {
            return self.refuse(txid, Refusal::Unsupported, "");
        }
        if !text.is_empty() {
            self.system.tell_users(&text);
        }
        let mode = if force { Mode::Force } else { Mode::Ask };
        if let Err(error) = self.system.start(action, mode, &text) {
            return self.refuse(txid, Refusal::Failed, &error.to_string());
        }
        let patience = (force && !timeout.is_zero()).then_some(timeout);
        self.state = State::Starting { txid, action, answer_by: now + ANSWER_PATIENCE, patience };
        Ok(())
    }

    fn refuse(&mut self, txid: u64, why: Refusal, reason: &str) -> Result<(), ServiceError> {
        info!(?why, reason, "the system does not go down");
        self.completions.push(txid, Response::Refused { why, reason: Text::cut(reason) }.encode())
    }

    /// It begins to go: the host's answer, what it has to know, and what is left to do.
    fn accept(&mut self, now: Instant) {
        let State::Starting { txid, action, patience, .. } = self.state else { return };
        // One request is open: there is room for its answer.
        let _ = self.completions.push(txid, Response::Accepted.encode());
        self.announce(action);
        self.state = match action {
            // It comes back here, and goes on.
            Action::Hibernate => State::Idle,
            Action::PowerOff | Action::Reboot => State::Going {
                action,
                until: now + GOING_PATIENCE,
                force_at: patience.and_then(|patience| now.checked_add(patience)),
            },
        };
    }

    fn announce(&mut self, action: Action) {
        self.going_down = Some(action);
        if action != Action::Hibernate {
            self.health.set_going_down(true);
        }
    }
}

#[derive(Debug)]
struct Down {
    action: Action,
    force: bool,
    timeout: Duration,
    /// Without characters that a terminal obeys.
    text: String,
}

impl Service for Shutdown {
    fn handle(&mut self, now: Instant, incoming: Incoming<'_>) -> Result<(), ServiceError> {
        let Incoming::Request(txid, bytes) = incoming else { return Ok(()) };
        match Request::decode(bytes)? {
            Request::Down { action, force, timeout, message } => {
                let text = message.chars().map(|character| if character.is_control() { ' ' } else { character });
                self.down(now, txid, Down { action, force, timeout, text: text.collect() })
            }
            Request::Unknown(_) => self.completions.push_unsupported(txid),
        }
    }

    fn poll_output(&mut self) -> Option<Outgoing> {
        if let Some(actions) = self.capabilities.take() {
            return Some(Outgoing::Message(ToHost::Capabilities { actions }.encode()));
        }
        self.completions.pop().or_else(|| {
            let action = self.going_down.take()?;
            Some(Outgoing::Message(ToHost::GoingDown { action }.encode()))
        })
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Idle => None,
            State::Starting { answer_by, .. } => Some(answer_by),
            State::Going { until, force_at, .. } => Some(force_at.map_or(until, |force_at| force_at.min(until))),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            State::Starting { answer_by, .. } if now >= answer_by => self.accept(now),
            State::Going { action, until, force_at: Some(force_at) } if now >= force_at => {
                self.state = State::Going { action, until, force_at: None };
                if let Err(error) = self.system.start(action, Mode::Now, "") {
                    warn!(%error, "cannot force the system down");
                }
            }
            State::Going { until, .. } if now >= until => {
                warn!("the system was told to go down and did not");
                self.state = State::Idle;
                self.health.set_going_down(false);
            }
            State::Idle | State::Starting { .. } | State::Going { .. } => {}
        }
    }

    fn handle_child(&mut self, now: Instant) {
        let Some(outcome) = self.system.poll_ended() else { return };
        let State::Starting { txid, .. } = self.state else { return };
        let (why, reason) = match outcome {
            Outcome::Done => return self.accept(now),
            Outcome::Held(reason) => (Refusal::Held, reason),
            Outcome::Failed(reason) => (Refusal::Failed, reason),
        };
        self.state = State::Idle;
        // One request is open: there is room for its answer.
        let _ = self.refuse(txid, why, &reason);
    }

    /// Whoever ends the agent may end the whole system.
    fn handle_ending(&mut self, now: Instant) {
        match self.state {
            State::Starting { .. } => self.accept(now),
            State::Going { .. } => {}
            State::Idle => {
                if let Some(action) = self.system.action_under_way() {
                    self.announce(action);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use enhanced_session::class::heartbeat;

    use super::*;

    #[derive(Default)]
    struct Fake {
        started: Vec<(Action, Mode)>,
        told: Vec<String>,
        outcome: Option<Outcome>,
        under_way: Option<Action>,
        cannot_start: bool,
    }

    #[derive(Clone, Default)]
    struct FakeSystem(Rc<RefCell<Fake>>);

    impl System for FakeSystem {
        fn actions(&self) -> Actions {
            Actions { power_off: true, reboot: true, hibernate: false }
        }
        fn tell_users(&mut self, text: &str) {
            self.0.borrow_mut().told.push(text.to_owned());
        }
        fn start(&mut self, action: Action, mode: Mode, _: &str) -> io::Result<()> {
            if self.0.borrow().cannot_start {
                return Err(io::ErrorKind::NotFound.into());
            }
            self.0.borrow_mut().started.push((action, mode));
            Ok(())
        }
        fn poll_ended(&mut self) -> Option<Outcome> {
            self.0.borrow_mut().outcome.take()
        }
        fn action_under_way(&mut self) -> Option<Action> {
            self.0.borrow().under_way
        }
    }

    struct World {
        system: FakeSystem,
        health: Health,
        shutdown: Shutdown,
        now: Instant,
    }

    #[derive(Debug, PartialEq)]
    enum Sent {
        Message(ToHost),
        Answer(u64, Response),
    }

    impl World {
        fn new() -> Self {
            let (system, health) = (FakeSystem::default(), Health::default());
            let mut shutdown = Shutdown::new(Box::new(system.clone()), health.clone());
            assert!(shutdown.poll_output().is_some(), "capabilities come first");
            Self { system, health, shutdown, now: Instant::now() }
        }

        fn ask(&mut self, txid: u64, action: Action, force: bool, timeout: Duration) {
            let message = Text::new("to the\x1b[2J users").unwrap();
            let request = Request::Down { action, force, timeout, message }.encode();
            self.shutdown.handle(self.now, Incoming::Request(txid, &request)).unwrap();
        }

        fn child_ends(&mut self, outcome: Outcome) {
            self.system.0.borrow_mut().outcome = Some(outcome);
            self.shutdown.handle_child(self.now);
        }

        fn wait_until_timeout(&mut self) {
            self.now = self.shutdown.poll_timeout().unwrap();
            self.shutdown.handle_timeout(self.now);
        }

        fn sent(&mut self) -> Vec<Sent> {
            let sent = std::iter::from_fn(|| self.shutdown.poll_output()).map(|outgoing| match outgoing {
                Outgoing::Message(bytes) => Sent::Message(ToHost::decode(&bytes).unwrap()),
                Outgoing::Completion(txid, bytes) => Sent::Answer(txid, Response::decode(&bytes).unwrap()),
            });
            sent.collect()
        }
    }

    const GOING_OFF: Sent = Sent::Message(ToHost::GoingDown { action: Action::PowerOff });

    fn refused(txid: u64, why: Refusal, reason: &str) -> Sent {
        Sent::Answer(txid, Response::Refused { why, reason: Text::cut(reason) })
    }

    #[test]
    fn a_request_is_accepted_once_the_init_has_taken_it() {
        let mut world = World::new();
        world.ask(5, Action::PowerOff, false, Duration::ZERO);
        assert_eq!(world.sent(), []);
        world.child_ends(Outcome::Done);
        assert_eq!(world.sent(), [Sent::Answer(5, Response::Accepted), GOING_OFF]);
        assert_eq!(world.system.0.borrow().started, [(Action::PowerOff, Mode::Ask)]);
        assert_eq!(world.system.0.borrow().told, ["to the [2J users"]);
        assert_eq!(world.health.state(), heartbeat::State::Stopped);
        world.ask(6, Action::Reboot, true, Duration::ZERO);
        assert_eq!(world.sent(), [refused(6, Refusal::AlreadyGoing, "")]);
    }

    #[test]
    fn a_command_that_lasts_is_taken_for_a_good_one() {
        let mut world = World::new();
        world.ask(5, Action::PowerOff, false, Duration::ZERO);
        world.wait_until_timeout();
        assert_eq!(world.sent(), [Sent::Answer(5, Response::Accepted), GOING_OFF]);
    }

    #[test]
    fn what_cannot_be_or_fails_or_is_held_up_is_refused_with_a_reason() {
        let mut world = World::new();
        world.ask(1, Action::Hibernate, false, Duration::ZERO);
        assert_eq!(world.sent(), [refused(1, Refusal::Unsupported, "")]);
        world.ask(2, Action::PowerOff, false, Duration::ZERO);
        world.child_ends(Outcome::Held("apt is updating".into()));
        assert_eq!(world.sent(), [refused(2, Refusal::Held, "apt is updating")]);
        world.ask(3, Action::PowerOff, false, Duration::ZERO);
        world.child_ends(Outcome::Failed("no bus".into()));
        assert_eq!(world.sent(), [refused(3, Refusal::Failed, "no bus")]);
        world.system.0.borrow_mut().cannot_start = true;
        world.ask(4, Action::PowerOff, false, Duration::ZERO);
        assert_eq!(world.sent(), [refused(4, Refusal::Failed, "entity not found")]);
        assert_eq!(world.health.state(), heartbeat::State::Healthy);
    }

    #[test]
    fn force_comes_after_its_timeout_and_a_guest_that_stays_is_asked_anew() {
        let mut world = World::new();
        world.ask(5, Action::Reboot, true, Duration::from_secs(30));
        world.child_ends(Outcome::Done);
        world.wait_until_timeout();
        assert_eq!(world.system.0.borrow().started, [(Action::Reboot, Mode::Force), (Action::Reboot, Mode::Now)]);
        world.sent();
        world.wait_until_timeout();
        assert_eq!(world.health.state(), heartbeat::State::Healthy);
        world.ask(6, Action::Reboot, false, Duration::ZERO);
        world.child_ends(Outcome::Done);
        assert_eq!(world.sent().first(), Some(&Sent::Answer(6, Response::Accepted)));
    }

    #[test]
    fn an_agent_that_is_ended_with_its_system_says_so_first() {
        let mut world = World::new();
        world.shutdown.handle_ending(world.now);
        assert_eq!(world.sent(), [], "only the agent ends");
        world.system.0.borrow_mut().under_way = Some(Action::PowerOff);
        world.shutdown.handle_ending(world.now);
        assert_eq!(world.sent(), [GOING_OFF]);
        assert_eq!(world.health.state(), heartbeat::State::Stopped);

        let mut world = World::new();
        world.ask(5, Action::PowerOff, false, Duration::ZERO);
        world.shutdown.handle_ending(world.now);
        assert_eq!(world.sent(), [Sent::Answer(5, Response::Accepted), GOING_OFF]);
    }

    #[test]
    fn an_unknown_request_is_answered_so() {
        let mut world = World::new();
        world.shutdown.handle(world.now, Incoming::Request(9, &[0x77, 1, 0, 0])).unwrap();
        assert_eq!(world.sent(), [Sent::Answer(9, Response::Unsupported)]);
    }
}
