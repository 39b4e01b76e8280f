//! How fast a guest is told of keys and moves.
//!
//! A guest's keyboard holds a few dozen events (64 half events of virtio, 16 bytes of PS/2), and QEMU drops silently
//! what finds no room. A person never gets there; pasted text and a program that types do, as soon as the guest
//! is busy. So a burst goes out at once, and what follows at the rate QEMU's own VNC server keeps.

use std::time::Duration;

use tokio::time::Instant;

/// Events that go out at once after a rest.
const BURST: u32 = 8;
/// The time between events that come faster.
const INTERVAL: Duration = Duration::from_millis(10);

/// When the next event may go out.
#[derive(Debug)]
pub(super) struct Pace {
    /// The moment at which nothing would be owed; in the past after a rest.
    paid: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { paid: now }
    }

    /// How many events may go out now.
    pub(super) fn allowed(&self, now: Instant) -> u32 {
        let owed = self.paid.saturating_duration_since(now);
        let owed = owed.as_nanos().div_ceil(INTERVAL.as_nanos());
        BURST.saturating_sub(u32::try_from(owed).unwrap_or(u32::MAX))
    }

    /// From when on one may go out.
    pub(super) fn next(&self) -> Instant {
        // One event less owed than a burst is.
        self.paid.checked_sub(INTERVAL * (BURST - 1)).unwrap_or(self.paid)
    }

    /// Events went out.
    pub(super) fn spend(&mut self, events: u32, now: Instant) {
        self.paid = self.paid.max(now) + INTERVAL * events;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_out_at_once_and_the_rest_one_by_one() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.allowed(start), BURST);
        pace.spend(BURST, start);
        assert_eq!(pace.allowed(start), 0);
        assert_eq!(pace.next(), start + INTERVAL);
        assert_eq!(pace.allowed(start + INTERVAL), 1);
        pace.spend(1, start + INTERVAL);
        assert_eq!(pace.allowed(start + INTERVAL), 0);
        assert_eq!(pace.allowed(start + INTERVAL * 100), BURST, "rest is not saved up");
    }

    #[test]
    fn a_person_is_never_held_up() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for key in 0..1000 {
            // Twenty keys a second, each of two events.
            let now = start + Duration::from_millis(50) * key;
            assert!(pace.allowed(now) >= 2);
            pace.spend(2, now);
        }
    }
}
