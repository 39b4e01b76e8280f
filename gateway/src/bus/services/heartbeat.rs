//! Is the guest alive? A beat every two seconds, and what came of the last ones.

use std::time::{Duration, Instant};

use enhanced_session::class::heartbeat::{INTERVAL, State, ToGuest, ToHost};
use enhanced_session::message::Message;
use enhanced_session::wire::Malformed;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{Channel, Full, Moment, Service};

/// Beats without an answer after which a guest counts as lost.
const LOST_AFTER: u32 = 3;

/// How a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It answers, and all is well.
    Healthy,
    /// It answers, and says that something it needs does not work.
    Critical,
    /// It goes down.
    Stopped,
    /// It does not answer.
    Lost,
}

/// The host's side of the class.
#[derive(Debug, Default)]
pub(in crate::bus) struct Heartbeat {
    sequence: u64,
    /// When the next beat is due; none while the channel is closed.
    next: Option<Instant>,
    /// When the last beat was sent.
    sent: Option<Instant>,
    /// Since when there was no answer: the oldest beat of those without.
    unanswered_since: Option<Instant>,
    answer: Option<Answer>,
    pings: Vec<oneshot::Sender<Duration>>,
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    state: State,
    round_trip: Duration,
}

impl Heartbeat {
    /// How the guest is; none as long as it was not asked.
    pub(in crate::bus) fn health(&self, now: Instant) -> Option<Health> {
        self.next?;
        let silence = self.unanswered_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if silence > INTERVAL * LOST_AFTER {
            return Some(Health::Lost);
        }
        self.answer.map(|answer| match answer.state {
            State::Healthy => Health::Healthy,
            State::Critical => Health::Critical,
            State::Stopped => Health::Stopped,
        })
    }

    /// From the last beat that was answered to its answer.
    pub(in crate::bus) fn round_trip(&self) -> Option<Duration> {
        self.answer.map(|answer| answer.round_trip)
    }

    /// Sends a beat at once, and says how long its answer took. The sender is dropped when the channel closes.
    pub(in crate::bus) fn ping(&mut self, at: Moment, reply: oneshot::Sender<Duration>) {
        if self.next.is_some() {
            self.next = Some(at.now);
            self.pings.push(reply);
        }
    }

    /// The processors stood still: no answer was possible meanwhile.
    pub(in crate::bus) fn resumed(&mut self, at: Moment) {
        self.unanswered_since = None;
        self.next = self.next.map(|_| at.now);
    }
}

impl Service for Heartbeat {
    fn opened(&mut self, at: Moment) {
        *self = Self { next: Some(at.now), ..Self::default() };
    }

    fn closed(&mut self) {
        *self = Self::default();
    }

    fn handle(&mut self, at: Moment, message: Message) -> Result<(), Malformed> {
        let Message::Data(bytes) = message else { return Ok(()) };
        let ToHost::Beat { sequence, state } = ToHost::decode(&bytes)? else { return Ok(()) };
        if let Some(sent) = self.sent.filter(|_| sequence == self.sequence.wrapping_add(1)) {
            let round_trip = at.now.saturating_duration_since(sent);
            self.answer = Some(Answer { state, round_trip });
            (self.sent, self.unanswered_since) = (None, None);
            for ping in self.pings.drain(..) {
                // Whoever asked may have lost interest.
                let _ = ping.send(round_trip);
            }
        }
        Ok(())
    }

    fn drive(&mut self, at: Moment, channel: &mut dyn Channel) -> Result<(), Full> {
        if self.next.is_none_or(|next| next > at.now) {
            return Ok(());
        }
        let sequence = self.sequence.wrapping_add(2);
        channel.send(ToGuest::Beat { sequence }.encode())?;
        self.sequence = sequence;
        self.next = Some(at.now + INTERVAL);
        self.sent = Some(at.now);
        self.unanswered_since.get_or_insert(at.now);
        Ok(())
    }

    fn timeout(&self) -> Option<Instant> {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Clock, Sent};
    use super::*;

    fn answer(heartbeat: &mut Heartbeat, at: Moment, beat: &[u8], state: State) {
        let Ok(ToGuest::Beat { sequence }) = ToGuest::decode(beat) else { panic!("a beat: {beat:?}") };
        let answer = ToHost::Beat { sequence: sequence + 1, state }.encode();
        heartbeat.handle(at, Message::Data(answer)).expect("read");
    }

    #[test]
    fn a_guest_is_as_it_says_and_lost_when_it_says_nothing() {
        let (mut clock, mut channel, mut heartbeat) = (Clock::new(), Sent::new(), Heartbeat::default());
        assert_eq!(heartbeat.health(clock.at().now), None);
        heartbeat.opened(clock.at());
        heartbeat.drive(clock.at(), &mut channel).expect("room");
        let beat = channel.only();
        answer(&mut heartbeat, clock.pass(Duration::from_millis(3)), &beat, State::Critical);
        assert_eq!(heartbeat.health(clock.at().now), Some(Health::Critical));
        assert_eq!(heartbeat.round_trip(), Some(Duration::from_millis(3)));
        for _ in 0..=LOST_AFTER {
            heartbeat.drive(clock.pass(INTERVAL), &mut channel).expect("room");
        }
        assert_eq!(heartbeat.health(clock.pass(INTERVAL).now), Some(Health::Lost));
        let beat = channel.messages.pop().expect("sent");
        answer(&mut heartbeat, clock.at(), &beat, State::Healthy);
        assert_eq!(heartbeat.health(clock.at().now), Some(Health::Healthy));
    }

    #[test]
    fn an_answer_to_an_older_beat_counts_for_nothing() {
        let (mut clock, mut channel, mut heartbeat) = (Clock::new(), Sent::new(), Heartbeat::default());
        heartbeat.opened(clock.at());
        heartbeat.drive(clock.at(), &mut channel).expect("room");
        heartbeat.drive(clock.pass(INTERVAL), &mut channel).expect("room");
        let late = channel.messages.remove(0);
        answer(&mut heartbeat, clock.at(), &late, State::Healthy);
        assert_eq!(heartbeat.health(clock.at().now), None);
    }

    #[test]
    fn a_ping_is_sent_at_once_and_answered_with_its_time() {
        let (mut clock, mut channel, mut heartbeat) = (Clock::new(), Sent::new(), Heartbeat::default());
        heartbeat.opened(clock.at());
        heartbeat.drive(clock.at(), &mut channel).expect("room");
        channel.messages.clear();
        let (reply, mut answered) = oneshot::channel();
        heartbeat.ping(clock.pass(Duration::from_millis(10)), reply);
        heartbeat.drive(clock.at(), &mut channel).expect("room");
        let beat = channel.only();
        answer(&mut heartbeat, clock.pass(Duration::from_millis(1)), &beat, State::Healthy);
        assert_eq!(answered.try_recv(), Ok(Duration::from_millis(1)));
    }

    #[test]
    fn a_beat_without_room_is_sent_later() {
        let (clock, mut channel, mut heartbeat) = (Clock::new(), Sent::new(), Heartbeat::default());
        heartbeat.opened(clock.at());
        channel.room = 0;
        assert_eq!(heartbeat.drive(clock.at(), &mut channel), Err(Full));
        channel.room = 1;
        heartbeat.drive(clock.at(), &mut channel).expect("room");
        assert_eq!(ToGuest::decode(&channel.only()), Ok(ToGuest::Beat { sequence: 2 }));
    }

    #[test]
    fn a_pause_is_no_silence() {
        let (mut clock, mut channel, mut heartbeat) = (Clock::new(), Sent::new(), Heartbeat::default());
        heartbeat.opened(clock.at());
        heartbeat.drive(clock.at(), &mut channel).expect("room");
        heartbeat.resumed(clock.pass(Duration::from_secs(3600)));
        assert_ne!(heartbeat.health(clock.at().now), Some(Health::Lost));
    }
}
