//! The port as one end sees it: finding the other end, keeping it, and telling apart what it says.

use std::time::{Duration, Instant};

use crate::class::Priority;
use crate::control::{ControlError, ControlMessage, ErrorCode};
use crate::stream::{Deframer, Emitted, Frame, MAX_CONTROL_QUEUED, Role, Scheduler, Sync, Verdict};

use super::event::Disconnect;
use super::recent::Recent;
use super::under_way::UnderWay;

/// Where nonces and epochs come from.
pub type Random = Box<dyn FnMut() -> u64 + Send + std::marker::Sync>;

/// Silence after which an end asks. Longer than from one heartbeat to the next: where there are any, nobody asks.
const PING_AFTER: Duration = Duration::from_millis(2500);
/// Silence after which the other end is taken for dead, if it was asked [`ASK`] times meanwhile: to an end that was
/// itself stopped for long everything seems silent.
const DEAD_AFTER: Duration = Duration::from_secs(10);
const ASK: u32 = 3;
/// How often a guest that looks says so.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Messages without sense, within [`STRIKE_TIME`], that make an end start over.
const STRIKES: usize = 3;
const STRIKE_TIME: Duration = Duration::from_secs(60);
/// Bytes of control messages that may wait although the caller was told not to read on: then the end starts over.
const MAX_CONTROL_OVERRUN: usize = 4 * MAX_CONTROL_QUEUED;

/// What came.
#[derive(Debug)]
pub(super) enum Heard {
    /// The two ends have found each other; nothing from before counts.
    InStep,
    /// They have lost each other; the link looks.
    Lost(Disconnect),
    /// A control message and its txid.
    Control(u64, ControlMessage),
    /// A packet.
    Data { channel: u32, body: Vec<u8> },
    /// Credit.
    Window { channel: u32, credit: u32 },
    /// Look at the pending map.
    Kick,
    /// The other end asks or says whether it is alive; time to look at rings that may have been forgotten.
    Alive,
}

pub(super) struct Link {
    role: Role,
    random: Random,
    is_open: bool,
    deframer: Deframer,
    sync: Sync,
    pub(super) scheduler: Scheduler,
    under_way: UnderWay,
    silence: Silence,
    next_sync: Option<Instant>,
    strikes: Recent<STRIKES>,
    next_txid: u64,
}

/// Since when nothing has been heard, by a clock that may stand still.
#[derive(Debug)]
struct Silence {
    heard: Instant,
    asked: Instant,
    /// How often it was asked since something was heard.
    unanswered: u32,
    stopped: Option<Instant>,
}

impl Link {
    pub(super) fn new(role: Role, mut random: Random, now: Instant) -> Self {
        let sync = Sync::new(role, random(), random());
        Self {
            role,
            random,
            is_open: false,
            deframer: Deframer::new(),
            sync,
            scheduler: Scheduler::new(),
            under_way: UnderWay::new(),
            silence: Silence { heard: now, asked: now, unanswered: 0, stopped: None },
            next_sync: None,
            strikes: Recent::new(STRIKE_TIME),
            next_txid: 0,
        }
    }

    pub(super) const fn epoch(&self) -> u64 {
        self.sync.epoch()
    }

    /// Which start of the other end it is in step with.
    pub(super) const fn peer_epoch(&self) -> Option<u64> {
        self.sync.peer_epoch()
    }

    const fn is_in_step(&self) -> bool {
        self.peer_epoch().is_some()
    }

    /// A number that nobody can guess. Not 0.
    pub(super) fn random(&mut self) -> u64 {
        (self.random)().max(1)
    }

    pub(super) fn open(&mut self, now: Instant) {
        self.is_open = true;
        self.deframer.clear();
        self.look(now);
    }

    pub(super) fn close(&mut self) {
        self.is_open = false;
        self.deframer.clear();
        let random = self.random();
        self.sync.look(random);
        self.scheduler.start_over(None);
        self.under_way = UnderWay::new();
        self.next_sync = None;
    }

    /// Begins another epoch of this end.
    pub(super) fn restart(&mut self, now: Instant) {
        let (epoch, random) = (self.random(), self.random());
        self.sync.restart(epoch, random);
        if self.is_open {
            self.look(now);
        }
    }

    /// Starts over: looks for the other end.
    pub(super) fn look(&mut self, now: Instant) {
        let random = self.random();
        let sync = self.sync.look(random);
        self.begin_to_look(now);
        self.scheduler.start_over(Some(sync));
    }

    fn begin_to_look(&mut self, now: Instant) {
        self.deframer.look();
        self.under_way = UnderWay::new();
        self.strikes.clear();
        self.next_sync = (self.role == Role::Guest).then_some(now + SYNC_EVERY);
    }

    /// What comes next in `input`, of which it takes bytes. None: all is taken.
    pub(super) fn hear(&mut self, now: Instant, input: &mut &[u8]) -> Option<Heard> {
        while self.is_open {
            let heard = match self.deframer.next_frame(input) {
                Ok(None) => return None,
                Ok(Some(frame)) => self.handle_frame(now, frame),
                Err(_) => {
                    self.look(now);
                    Some(Heard::Lost(Disconnect::OutOfStep))
                }
            };
            if self.scheduler.control_queued() > MAX_CONTROL_OVERRUN {
                self.look(now);
                return Some(Heard::Lost(Disconnect::NotReading));
            }
            if heard.is_some() {
                return heard;
            }
        }
        *input = &[];
        None
    }

    fn handle_frame(&mut self, now: Instant, frame: Frame) -> Option<Heard> {
        if self.is_in_step() {
            self.silence.hear(now);
        }
        match frame {
            Frame::Sync(body) => {
                let fresh = self.random();
                let verdict = self.sync.handle(body, fresh);
                self.handle_verdict(now, verdict)
            }
            Frame::Control(bytes) => self.handle_control(now, &bytes),
            Frame::Data { channel, body } => Some(Heard::Data { channel, body }),
            Frame::Window { channel, credit } => Some(Heard::Window { channel, credit }),
            Frame::Kick => Some(Heard::Kick),
        }
    }

    fn handle_verdict(&mut self, now: Instant, verdict: Verdict) -> Option<Heard> {
        match verdict {
            Verdict::Same { answer } => {
                if let Some(answer) = answer {
                    self.scheduler.push_sync(answer);
                }
                None
            }
            Verdict::InStep { answer } => {
                if let Some(answer) = answer {
                    self.scheduler.push_sync(answer);
                }
                self.deframer.enter_step();
                self.next_sync = None;
                self.silence.hear(now);
                Some(Heard::InStep)
            }
            Verdict::Lost { answer, restarted } => {
                self.begin_to_look(now);
                self.scheduler.start_over(Some(answer));
                let why = if restarted { Disconnect::PeerRestarted } else { Disconnect::PeerStartsOver };
                Some(Heard::Lost(why))
            }
        }
    }

    fn handle_control(&mut self, now: Instant, bytes: &[u8]) -> Option<Heard> {
        match ControlMessage::decode(bytes) {
            Ok((txid, ControlMessage::Ping { cookie })) => {
                self.answer(txid, &ControlMessage::Pong { cookie });
                Some(Heard::Alive)
            }
            Ok((_, ControlMessage::Pong { cookie })) if self.under_way.has_arrived(cookie) => {
                self.scheduler.hold_bulk(false);
                None
            }
            Ok((_, ControlMessage::Pong { .. })) => Some(Heard::Alive),
            Ok((txid, message)) => Some(Heard::Control(txid, message)),
            Err(error @ ControlError::Unsupported { txid, .. }) => {
                self.say_error(txid, ErrorCode::Unsupported, error.to_string());
                None
            }
            Err(error @ ControlError::Malformed { txid, .. }) => {
                self.complain(now, txid, ErrorCode::Malformed, error.to_string()).map(Heard::Lost)
            }
        }
    }

    /// Sends a message that wants an answer, or none.
    pub(super) fn send(&mut self, message: &ControlMessage) {
        self.next_txid += 1;
        self.answer(self.next_txid, message);
    }

    /// Sends a message with the txid of what it answers.
    pub(super) fn answer(&mut self, txid: u64, message: &ControlMessage) {
        self.scheduler.push_control(message.encode(txid));
    }

    fn say_error(&mut self, ref_txid: u64, code: ErrorCode, text: String) {
        self.answer(0, &ControlMessage::Error { code, ref_txid, text });
    }

    /// The message with this txid cannot be acted on. Several such within a minute, and the link is lost.
    pub(super) fn complain(&mut self, now: Instant, txid: u64, code: ErrorCode, text: String) -> Option<Disconnect> {
        self.say_error(txid, code, text);
        if self.strikes.add(now) {
            self.look(now);
            return Some(Disconnect::Misbehaving);
        }
        None
    }

    /// Stops the clock by which the other end is taken for dead, or lets it go on.
    pub(super) fn stop_clock(&mut self, now: Instant, stop: bool) {
        match (self.silence.stopped, stop) {
            (None, true) => self.silence.stopped = Some(now),
            (Some(since), false) => {
                let pause = now.saturating_duration_since(since);
                self.silence.heard = (self.silence.heard + pause).min(now);
                self.silence.asked = (self.silence.asked + pause).min(now);
                self.silence.stopped = None;
            }
            _ => {}
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        if !self.is_open {
            return None;
        }
        let watched = self.is_in_step() && self.silence.stopped.is_none();
        let silence = watched.then(|| self.silence.next());
        [silence, self.next_sync].into_iter().flatten().min()
    }

    /// Asks, repeats or gives up, as time has come.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<Heard> {
        if self.poll_timeout().is_none_or(|timeout| timeout > now) {
            return None;
        }
        if self.is_in_step() {
            return self.handle_silence(now);
        }
        self.next_sync = Some(now + SYNC_EVERY);
        if let Some(sync) = self.sync.repeated() {
            self.scheduler.push_sync(sync);
        }
        None
    }

    fn handle_silence(&mut self, now: Instant) -> Option<Heard> {
        if self.silence.unanswered >= ASK {
            self.look(now);
            return Some(Heard::Lost(Disconnect::Silent));
        }
        self.silence.asked = now;
        self.silence.unanswered += 1;
        let cookie = self.random();
        self.send(&ControlMessage::Ping { cookie });
        Some(Heard::Alive)
    }

    /// Whether the other end may be read from: its messages' answers have room.
    pub(super) fn wants_bytes(&self) -> bool {
        self.scheduler.control_queued() <= MAX_CONTROL_QUEUED
    }

    pub(super) fn next_frame(&mut self, out: &mut Vec<u8>) -> Option<Emitted> {
        let start = out.len();
        let emitted = self.is_open.then(|| self.scheduler.next_frame(out)).flatten()?;
        if let Emitted::Packet { priority: Priority::Bulk, .. } = emitted
            && self.role == Role::Host
            && self.under_way.add(out.len() - start)
        {
            let cookie = self.random();
            self.under_way.ask(cookie);
            self.send(&ControlMessage::Ping { cookie });
            self.scheduler.hold_bulk(true);
        }
        Some(emitted)
    }
}

impl Silence {
    fn hear(&mut self, now: Instant) {
        (self.heard, self.unanswered) = (now, 0);
    }

    /// When something is to be done about it.
    fn next(&self) -> Instant {
        let ask = self.heard.max(self.asked) + PING_AFTER;
        if self.unanswered < ASK { ask } else { ask.max(self.heard + DEAD_AFTER) }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("role", &self.role).field("sync", &self.sync).finish_non_exhaustive()
    }
}
