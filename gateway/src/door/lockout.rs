//! How long a network waits after wrong passwords: pure, the clock is the caller's.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The wait after the first failure too many; each further one doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// After this long without a failure, everything is forgotten.
const MEMORY: Duration = Duration::from_secs(30 * 60);
/// How many are remembered; beyond that, the one that failed longest ago is forgotten.
const MAX_REMEMBERED: usize = 4096;

/// When waiting starts and where it ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Failures that cost nothing: people mistype.
    free: u32,
    /// The longest wait.
    longest: Duration,
}

impl Patience {
    /// For the network that a connection comes from.
    pub(super) const NETWORK: Self = Self { free: 5, longest: Duration::from_secs(15 * 60) };
    /// For the user it wants to be: only an attack from many networks gets there. The user pays for it too, so the
    /// wait is short.
    pub(super) const USER: Self = Self { free: 100, longest: Duration::from_secs(60) };
}

/// Wrong passwords, counted by `K`.
#[derive(Debug)]
pub(super) struct Lockout<K> {
    patience: Patience,
    failures: HashMap<K, Failures>,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

impl<K: Eq + Hash + Clone> Lockout<K> {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, failures: HashMap::new() }
    }

    /// How long `key` still has to wait; none when it may try.
    pub(super) fn remaining(&self, now: Instant, key: &K) -> Option<Duration> {
        let failures = self.failures.get(key)?;
        let until = failures.last + self.patience.wait(failures.count)?;
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// A wrong password; returns the wait it costs.
    pub(super) fn failed(&mut self, now: Instant, key: K) -> Option<Duration> {
        self.forget_old(now);
        if self.failures.len() >= MAX_REMEMBERED && !self.failures.contains_key(&key) {
            self.forget_oldest();
        }
        let failures = self.failures.entry(key).or_insert(Failures { count: 0, last: now });
        failures.count = failures.count.saturating_add(1);
        failures.last = now;
        self.patience.wait(failures.count)
    }

    /// The right password: what was before does not count.
    pub(super) fn succeeded(&mut self, key: &K) {
        self.failures.remove(key);
    }

    fn forget_old(&mut self, now: Instant) {
        self.failures.retain(|_, failures| now.saturating_duration_since(failures.last) < MEMORY);
    }

    fn forget_oldest(&mut self) {
        let oldest = self.failures.iter().min_by_key(|(_, failures)| failures.last).map(|(key, _)| key.clone());
        if let Some(oldest) = oldest {
            self.failures.remove(&oldest);
        }
    }
}

impl Patience {
    fn wait(self, failures: u32) -> Option<Duration> {
        let doublings = failures.checked_sub(self.free + 1)?;
        let wait = 2u32.checked_pow(doublings).and_then(|times| FIRST_WAIT.checked_mul(times));
        Some(wait.map_or(self.longest, |wait| wait.min(self.longest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Lockout<u64> {
        fn fail_often(&mut self, now: Instant, key: u64) {
            for _ in 0..8 {
                self.failed(now, key);
            }
        }
    }

    #[test]
    fn the_wait_starts_late_and_doubles() {
        let (mut lockout, start) = (Lockout::new(Patience::NETWORK), Instant::now());
        let waits: Vec<_> = (0..9).map(|_| lockout.failed(start, 1).map_or(0, |wait| wait.as_secs())).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 1, 2, 4, 8]);
        assert_eq!(lockout.remaining(start + Duration::from_secs(3), &1), Some(Duration::from_secs(5)));
        assert_eq!(lockout.remaining(start + Duration::from_secs(8), &1), None);
        assert_eq!(lockout.remaining(start, &2), None, "another network is not concerned");
    }

    #[test]
    fn the_wait_has_an_end() {
        let (mut lockout, start) = (Lockout::new(Patience::NETWORK), Instant::now());
        let last = (0..100).map(|_| lockout.failed(start, 1)).last().flatten();
        assert_eq!(last, Some(Patience::NETWORK.longest));
    }

    #[test]
    fn the_right_password_and_time_both_forgive() {
        let (mut lockout, start) = (Lockout::new(Patience::NETWORK), Instant::now());
        lockout.fail_often(start, 1);
        lockout.succeeded(&1);
        assert_eq!(lockout.failed(start, 1), None);
        lockout.fail_often(start, 2);
        assert_eq!(lockout.failed(start + MEMORY, 2), None);
    }

    #[test]
    fn memory_is_bounded() {
        let (mut lockout, start) = (Lockout::new(Patience::NETWORK), Instant::now());
        for key in 0..10_000u64 {
            lockout.failed(start + Duration::from_millis(key), key);
        }
        assert_eq!(lockout.failures.len(), MAX_REMEMBERED);
        assert!(lockout.failures.contains_key(&9_999) && !lockout.failures.contains_key(&0));
    }
}
