//! How often something happened lately, and how long a channel rests that breaks rules again and again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Tells when something has happened `LIMIT` times within a while.
#[derive(Debug)]
pub(super) struct Recent<const LIMIT: usize> {
    within: Duration,
    times: VecDeque<Instant>,
}

impl<const LIMIT: usize> Recent<LIMIT> {
    pub(super) const fn new(within: Duration) -> Self {
        Self { within, times: VecDeque::new() }
    }

    /// It happened once more. Returns whether that is too often, and then begins to count anew.
    pub(super) fn add(&mut self, now: Instant) -> bool {
        self.times.retain(|time| now.saturating_duration_since(*time) < self.within);
        self.times.push_back(now);
        let too_often = self.times.len() >= LIMIT;
        if too_often {
            self.clear();
        }
        too_often
    }

    pub(super) fn clear(&mut self) {
        self.times.clear();
    }
}

/// Faults of a channel, within [`FAULT_TIME`], after which it rests.
const FAULTS: usize = 3;
const FAULT_TIME: Duration = Duration::from_secs(60);
/// The first rest; each further one is twice as long.
const FIRST_REST: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST_REST: Duration = Duration::from_secs(5 * 60);
/// Without a fault for so long, the next rest is the first again.
const FORGET_AFTER: Duration = Duration::from_secs(10 * 60);

/// The faults of one channel, over all its openings.
#[derive(Debug)]
pub(super) struct FaultHistory {
    recent: Recent<FAULTS>,
    last: Option<Instant>,
    next_rest: Duration,
    count: u64,
}

impl FaultHistory {
    pub(super) const fn new() -> Self {
        Self { recent: Recent::new(FAULT_TIME), last: None, next_rest: FIRST_REST, count: 0 }
    }

    /// The channel faulted. Returns how long it has to rest, if so.
    pub(super) fn add(&mut self, now: Instant) -> Option<Duration> {
        let forgotten = |last| now.saturating_duration_since(last) >= FORGET_AFTER;
        if self.last.is_some_and(forgotten) {
            self.next_rest = FIRST_REST;
        }
        self.last = Some(now);
        self.count += 1;
        if !self.recent.add(now) {
            return None;
        }
        let rest = self.next_rest;
        self.next_rest = (2 * rest).min(LONGEST_REST);
        Some(rest)
    }

    /// How many there were in all.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// When the last one was.
    pub(super) const fn last(&self) -> Option<Instant> {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_within_a_minute_are_too_often() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut recent = Recent::<3>::new(Duration::from_secs(60));
        assert_eq!([0, 59, 60, 61].map(|time| recent.add(at(time))), [false, false, false, true]);
        assert!(!recent.add(at(62)), "counted anew");
    }

    #[test]
    fn each_rest_is_twice_as_long_up_to_five_minutes_and_forgotten_after_ten() {
        let mut now = Instant::now();
        let mut history = FaultHistory::new();
        let mut rests = Vec::new();
        for _ in 0..10 {
            assert_eq!((history.add(now), history.add(now)), (None, None));
            let rest = history.add(now).expect("the third");
            rests.push(rest.as_secs());
            now += rest;
        }
        assert_eq!(rests, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        now += FORGET_AFTER;
        assert_eq!((history.add(now), history.add(now)), (None, None));
        assert_eq!(history.add(now), Some(FIRST_REST));
        assert_eq!(history.count(), 33);
    }
}
