//! How fast it goes, and how long it will take.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::job::Progress;

/// The rate is that of the last samples: this many, this far apart.
const SAMPLES: usize = 16;
const SPACING: Duration = Duration::from_millis(500);
/// A rate over a shorter time is a guess.
const LEAST: Duration = Duration::from_secs(1);

/// Measures one step of a job.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter {
    samples: VecDeque<(Instant, u64)>,
}

impl Meter {
    /// Takes in that `done` of `total` bytes are done at `now`.
    pub(super) fn measure(&mut self, now: Instant, done: u64, total: u64) -> Progress {
        let done = done.min(total);
        if self.samples.back().is_some_and(|(at, before)| done < *before || now < *at) {
            // It began again.
            self.samples.clear();
        }
        if self.samples.back().is_none_or(|(at, _)| now.duration_since(*at) >= SPACING) {
            if self.samples.len() == SAMPLES {
                self.samples.pop_front();
            }
            self.samples.push_back((now, done));
        }
        let rate = self.rate(now, done);
        let left = rate.filter(|rate| *rate > 0).map(|rate| (total - done).div_ceil(rate));
        Progress { done, total, percent: percent(done, total), rate, left }
    }

    fn rate(&self, now: Instant, done: u64) -> Option<u64> {
        let (at, before) = *self.samples.front()?;
        let time = now.duration_since(at);
        let rate = u128::from(done - before) * 1000 / time.as_millis().max(1);
        (time >= LEAST).then(|| u64::try_from(rate).unwrap_or(u64::MAX))
    }
}

/// With one decimal; only what is complete is 100.
fn percent(done: u64, total: u64) -> f32 {
    let tenths = if total == 0 { 0 } else { u128::from(done) * 1000 / u128::from(total) };
    f32::from(u16::try_from(tenths).unwrap_or(1000)) / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let (mut meter, start) = (Meter::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(meter.measure(start, 0, 10_000), Progress { total: 10_000, ..Progress::default() });
        let progress = meter.measure(at(1), 100, 10_000);
        assert_eq!((progress.percent, progress.rate, progress.left), (1.0, Some(100), Some(99)));
        for second in 2..40 {
            meter.measure(at(second), 100, 10_000);
        }
        assert_eq!(meter.measure(at(40), 100, 10_000).rate, Some(0), "the first second is forgotten");
    }

    #[test]
    fn nothing_overflows_and_only_all_is_hundred() {
        let (mut meter, now) = (Meter::default(), Instant::now());
        assert_eq!(meter.measure(now, 9, 5).percent, 100.0);
        assert_eq!(meter.measure(now, u64::MAX - 1, u64::MAX).percent, 99.9);
        assert_eq!(meter.measure(now + LEAST, u64::MAX, u64::MAX).left, Some(0));
        assert_eq!(meter.measure(now, 0, 0), Progress::default());
    }
}
