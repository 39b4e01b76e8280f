//! Heartbeat: each of the host's beats is answered with the next number and how the guest is.

use std::time::Instant;

use enhanced_session::class::heartbeat::{ToGuest, ToHost};

use super::{Completions, Health, Incoming, Outgoing, Service, ServiceError};

/// The service of one channel.
#[derive(Debug)]
pub(super) struct Heartbeat {
    health: Health,
    /// The number of the answer that is due. Of beats that could not be answered in time only the last one counts.
    due: Option<u64>,
    completions: Completions,
}

impl Heartbeat {
    pub(super) fn new(health: Health) -> Self {
        Self { health, due: None, completions: Completions::default() }
    }
}

impl Service for Heartbeat {
    fn handle(&mut self, _: Instant, incoming: Incoming<'_>) -> Result<(), ServiceError> {
        match incoming {
            Incoming::Message(bytes) => match ToGuest::decode(bytes)? {
                ToGuest::Beat { sequence } => self.due = Some(sequence.wrapping_add(1)),
                ToGuest::Unknown(_) => {}
            },
            Incoming::Request(txid, _) => self.completions.push_unsupported(txid)?,
        }
        Ok(())
    }

    fn poll_output(&mut self) -> Option<Outgoing> {
        let Some(sequence) = self.due.take() else { return self.completions.pop() };
        Some(Outgoing::Message(ToHost::Beat { sequence, state: self.health.state() }.encode()))
    }
}

#[cfg(test)]
mod tests {
    use enhanced_session::class::heartbeat::State;

    use super::*;

    fn beat(heartbeat: &mut Heartbeat, sequence: u64) {
        let message = ToGuest::Beat { sequence }.encode();
        heartbeat.handle(Instant::now(), Incoming::Message(&message)).unwrap();
    }

    fn answer(heartbeat: &mut Heartbeat) -> Option<ToHost> {
        match heartbeat.poll_output()? {
            Outgoing::Message(bytes) => Some(ToHost::decode(&bytes).unwrap()),
            Outgoing::Completion(..) => panic!("a beat is no request"),
        }
    }

    #[test]
    fn a_beat_is_answered_with_the_next_number_and_the_state() {
        let health = Health::default();
        let mut heartbeat = Heartbeat::new(health.clone());
        assert_eq!(answer(&mut heartbeat), None);
        beat(&mut heartbeat, 40);
        assert_eq!(answer(&mut heartbeat), Some(ToHost::Beat { sequence: 41, state: State::Healthy }));
        let _failure = health.failure();
        beat(&mut heartbeat, u64::MAX);
        assert_eq!(answer(&mut heartbeat), Some(ToHost::Beat { sequence: 0, state: State::Critical }));
        assert_eq!(answer(&mut heartbeat), None);
    }

    #[test]
    fn only_the_last_of_several_beats_is_answered() {
        let mut heartbeat = Heartbeat::new(Health::default());
        beat(&mut heartbeat, 2);
        beat(&mut heartbeat, 4);
        assert_eq!(answer(&mut heartbeat), Some(ToHost::Beat { sequence: 5, state: State::Healthy }));
        assert_eq!(answer(&mut heartbeat), None);
    }

    #[test]
    fn what_is_unknown_is_skipped_or_answered_so_and_what_is_cut_is_refused() {
        let mut heartbeat = Heartbeat::new(Health::default());
        let now = Instant::now();
        heartbeat.handle(now, Incoming::Message(&[0x7f, 0, 0, 0, 9])).unwrap();
        assert_eq!(heartbeat.poll_output(), None);
        heartbeat.handle(now, Incoming::Request(7, &[0x05, 0x01, 0, 0])).unwrap();
        assert_eq!(heartbeat.poll_output(), Some(Outgoing::Completion(7, vec![0; 4])));
        assert!(heartbeat.handle(now, Incoming::Message(&[1, 0, 0, 0, 9])).is_err());
    }
}
