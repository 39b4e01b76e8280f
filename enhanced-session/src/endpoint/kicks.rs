//! How many kicks are listened to (`docs/bus.md`, section 8): a peer that kicks without end is looked at regularly
//! instead.

use std::time::{Duration, Instant};

/// Kicks per second that are listened to.
const MAX_KICKS: u32 = 20_000;
const SECOND: Duration = Duration::from_secs(1);
/// How often the map is looked at while kicks are ignored.
const LOOK_EVERY: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct KickMeter {
    /// Where the second that is counted began, and how many came in it.
    since: Instant,
    count: u32,
    flood: Option<Flood>,
}

#[derive(Debug)]
struct Flood {
    ends: Instant,
    next_look: Instant,
}

impl KickMeter {
    pub(super) const fn new(now: Instant) -> Self {
        Self { since: now, count: 0, flood: None }
    }

    /// A kick came. Returns whether to look at the map for it.
    pub(super) fn kick(&mut self, now: Instant) -> bool {
        if self.flood.is_some() {
            return false;
        }
        if now.saturating_duration_since(self.since) >= SECOND {
            (self.since, self.count) = (now, 0);
        }
        self.count += 1;
        if self.count > MAX_KICKS {
            self.flood = Some(Flood { ends: now + SECOND, next_look: now });
        }
        self.flood.is_none()
    }

    /// When to look all the same.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.flood.as_ref().map(|flood| flood.next_look)
    }

    /// Returns whether to look at the map.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        let Some(flood) = self.flood.as_mut().filter(|flood| flood.next_look <= now) else {
            return false;
        };
        flood.next_look = now + LOOK_EVERY;
        if flood.ends <= now {
            *self = Self::new(now);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_ignored_for_a_second_and_the_map_looked_at_each_millisecond() {
        let start = Instant::now();
        let mut meter = KickMeter::new(start);
        assert!((0..MAX_KICKS).all(|_| meter.kick(start)));
        assert!(!meter.kick(start) && !meter.kick(start + SECOND / 2));
        let (mut now, mut looks) = (start, 0);
        while let Some(next) = meter.poll_timeout() {
            now = now.max(next);
            looks += u32::from(meter.handle_timeout(now));
        }
        assert_eq!((now - start, looks), (SECOND, 1001));
        assert!(meter.kick(now));
    }

    #[test]
    fn many_kicks_over_a_longer_time_are_no_flood() {
        let start = Instant::now();
        let mut meter = KickMeter::new(start);
        assert!((0..3 * MAX_KICKS).all(|number| meter.kick(start + number * SECOND / MAX_KICKS)));
    }
}
