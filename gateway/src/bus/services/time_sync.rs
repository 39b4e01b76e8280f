//! The guest's clock: set once, then steered by a sample every five seconds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use enhanced_session::class::time_sync::{Action, Done, FileTime, INTERVAL, Leap, ToGuest, ToHost};
use enhanced_session::message::Message;
use enhanced_session::wire::Malformed;
use serde::{Deserialize, Serialize};

use super::{Channel, Full, Moment, Service};

/// Round trips of which the shortest counts: the others waited for something.
const ROUND_TRIPS: usize = 8;
/// How much too early a sample may be: it goes with what wakes both ends anyway, which a heartbeat does.
const SLACK: Duration = Duration::from_secs(1);
/// From this difference on a guest's clock is set. Only the host asks for that: it knows how long its message was under
/// way, and a message that was late looks to the guest like a clock that is wrong.
const SET_FROM: Duration = Duration::from_secs(1);
/// What the wire calls a clock without a reference (stratum 16). Whether the host's has one is not asked: the guest
/// follows it in either case.
const NO_REFERENCE: u8 = 16;

/// What is known of a guest's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// The guest's clock less the host's when it was last compared, in nanoseconds.
    pub offset_ns: i64,
    /// Whether the guest follows; not when another service of the guest does that, or its system forbids it.
    pub follows: bool,
}

/// The host's side of the class.
#[derive(Debug, Default)]
pub(in crate::bus) struct TimeSync {
    sequence: u64,
    next: Option<Instant>,
    step: bool,
    /// The last message and when it was sent, until it is answered.
    sent: Option<(u64, Instant)>,
    round_trips: VecDeque<Duration>,
    clock: Option<ClockState>,
}

impl TimeSync {
    /// How the guest's clock was at the last answer.
    pub(in crate::bus) const fn clock(&self) -> Option<ClockState> {
        self.clock
    }

    /// The guest's clock stood still, or is an older one.
    pub(in crate::bus) fn resumed(&mut self, at: Moment) {
        if self.next.is_some() {
            (self.step, self.next, self.sent) = (true, Some(at.now), None);
        }
    }

    fn delay(&self) -> Duration {
        self.round_trips.iter().min().map_or(Duration::ZERO, |shortest| *shortest / 2)
    }
}

impl Service for TimeSync {
    fn opened(&mut self, at: Moment) {
        *self = Self { next: Some(at.now), step: true, ..Self::default() };
    }

    fn closed(&mut self) {
        *self = Self::default();
    }

    fn handle(&mut self, at: Moment, message: Message) -> Result<(), Malformed> {
        let Message::Data(bytes) = message else { return Ok(()) };
        let ToHost::Result { sequence, offset, done, held } = ToHost::decode(&bytes)? else { return Ok(()) };
        let Some((_, sent)) = self.sent.take_if(|(expected, _)| *expected == sequence) else { return Ok(()) };
        let away = at.now.saturating_duration_since(sent);
        // A guest that held a message for longer than it was away is not believed.
        let round_trip = away.checked_sub(held);
        if let Some(round_trip) = round_trip {
            if self.round_trips.len() == ROUND_TRIPS {
                self.round_trips.pop_front();
            }
            self.round_trips.push_back(round_trip);
        }
        let follows = matches!(done, Done::Nothing | Done::Stepped | Done::Slewed);
        self.clock = Some(ClockState { offset_ns: offset, follows });
        if follows && must_be_set(done, Duration::from_nanos(offset.unsigned_abs()), round_trip.unwrap_or(away)) {
            (self.step, self.next) = (true, Some(at.now));
        }
        Ok(())
    }

    fn drive(&mut self, at: Moment, channel: &mut dyn Channel) -> Result<(), Full> {
        if self.next.is_none_or(|next| next > at.now + SLACK) {
            return Ok(());
        }
        let sequence = self.sequence.wrapping_add(1);
        let message = ToGuest::Time {
            sequence,
            time: FileTime::from(at.wall),
            delay: self.delay(),
            action: if self.step { Action::Step } else { Action::Sample },
            leap: Leap::Unknown,
            stratum: NO_REFERENCE,
        };
        channel.send(message.encode())?;
        (self.sequence, self.step) = (sequence, false);
        self.next = Some(at.now + INTERVAL);
        self.sent = Some((sequence, at.now));
        Ok(())
    }

    fn timeout(&self) -> Option<Instant> {
        self.next
    }
}

/// Whether a clock is wrong after an answer that came `round_trip` after its question.
fn must_be_set(done: Done, offset: Duration, round_trip: Duration) -> bool {
    match done {
        // It was set to a time that was up to so old.
        Done::Stepped => round_trip >= SET_FROM,
        // What is not more than the message's own way may be nothing else.
        _ => offset >= SET_FROM && offset > round_trip,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Clock, Sent};
    use super::*;

    fn sent(channel: &mut Sent) -> (u64, Action, Duration) {
        match ToGuest::decode(&channel.only()) {
            Ok(ToGuest::Time { sequence, action, delay, .. }) => (sequence, action, delay),
            other => panic!("a time: {other:?}"),
        }
    }

    fn result(sequence: u64, done: Done, held: Duration) -> Message {
        answer(sequence, -5, done, held)
    }

    fn answer(sequence: u64, offset: i64, done: Done, held: Duration) -> Message {
        Message::Data(ToHost::Result { sequence, offset, done, held }.encode())
    }

    /// What is asked after an answer, and how soon.
    fn after(offset: Duration, done: Done, away: Duration) -> (Option<Duration>, bool) {
        let (mut clock, mut channel, mut time) = (Clock::new(), Sent::new(), TimeSync::default());
        time.opened(clock.at());
        time.drive(clock.at(), &mut channel).expect("room");
        let (sequence, ..) = sent(&mut channel);
        let offset = i64::try_from(offset.as_nanos()).expect("a few seconds");
        let came = clock.pass(away);
        time.handle(came, answer(sequence, -offset, done, Duration::ZERO)).expect("read");
        (time.timeout().map(|next| next.saturating_duration_since(came.now)), time.step)
    }

    #[test]
    fn the_clock_is_set_once_and_steered_from_then_on() {
        let (mut clock, mut channel, mut time) = (Clock::new(), Sent::new(), TimeSync::default());
        time.opened(clock.at());
        time.drive(clock.at(), &mut channel).expect("room");
        assert_eq!(sent(&mut channel), (1, Action::Step, Duration::ZERO));
        time.drive(clock.pass(Duration::from_secs(1)), &mut channel).expect("room");
        channel.none();
        time.drive(clock.pass(INTERVAL - SLACK * 2 - Duration::from_nanos(1)), &mut channel).expect("room");
        channel.none();
        assert_eq!(time.timeout(), Some(clock.at().now + SLACK + Duration::from_nanos(1)));
        time.drive(clock.pass(Duration::from_nanos(1)), &mut channel).expect("room");
        assert_eq!(sent(&mut channel).1, Action::Sample);
        time.resumed(clock.at());
        time.drive(clock.at(), &mut channel).expect("room");
        assert_eq!(sent(&mut channel).1, Action::Step);
    }

    #[test]
    fn half_of_the_shortest_round_trip_is_told() {
        let (mut clock, mut channel, mut time) = (Clock::new(), Sent::new(), TimeSync::default());
        time.opened(clock.at());
        for (away, held) in [(10, 2), (90, 10), (7, 20)] {
            time.drive(clock.pass(INTERVAL), &mut channel).expect("room");
            let (sequence, ..) = sent(&mut channel);
            let held = Duration::from_millis(held);
            time.handle(clock.pass(Duration::from_millis(away)), result(sequence, Done::Slewed, held)).expect("read");
        }
        time.drive(clock.pass(INTERVAL), &mut channel).expect("room");
        assert_eq!(sent(&mut channel).2, Duration::from_millis(4));
        assert_eq!(time.clock(), Some(ClockState { offset_ns: -5, follows: true }));
    }

    #[test]
    fn a_clock_that_is_wrong_by_more_than_a_message_is_late_is_set_at_once() {
        let (short, long) = (Duration::from_millis(3), Duration::from_secs(8));
        let at_once = (Some(Duration::ZERO), true);
        assert_eq!(after(SET_FROM, Done::Nothing, short), at_once);
        assert_eq!(after(long * 2, Done::Slewed, long), at_once);
        assert!(!after(SET_FROM - short, Done::Slewed, short).1);
        assert!(!after(long, Done::Nothing, long).1, "only late");
        assert!(!after(long, Done::Elsewhere, short).1, "another keeps it");
        assert!(!after(long, Done::Failed, short).1, "it would fail again");
    }

    #[test]
    fn a_clock_that_was_set_late_is_set_again() {
        assert_eq!(after(Duration::from_secs(90), Done::Stepped, SET_FROM), (Some(Duration::ZERO), true));
        assert!(!after(Duration::from_secs(90), Done::Stepped, SET_FROM / 2).1);
    }

    #[test]
    fn an_answer_to_what_was_not_asked_is_ignored() {
        let (clock, mut channel, mut time) = (Clock::new(), Sent::new(), TimeSync::default());
        time.opened(clock.at());
        time.drive(clock.at(), &mut channel).expect("room");
        time.handle(clock.at(), result(7, Done::Failed, Duration::ZERO)).expect("read");
        assert_eq!(time.clock(), None);
        time.handle(clock.at(), result(1, Done::Failed, Duration::ZERO)).expect("read");
        assert_eq!(time.clock(), Some(ClockState { offset_ns: -5, follows: false }));
    }
}
