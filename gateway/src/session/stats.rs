//! What a session has sent, how soon after the guest drew it, and what it has passed on of touch.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Buckets of the latency histogram: four to an octave, from 1 µs to over an hour.
const BUCKETS: usize = 128;

/// The counters of one session. Cheap to clone; all clones count together.
#[derive(Debug, Clone, Default)]
pub struct SessionStats {
    inner: Arc<Mutex<Inner>>,
}

/// A reading of the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsReading {
    /// Pictures sent.
    pub frames: u64,
    /// Bytes of pictures and pointers, before TLS.
    pub graphics_bytes: u64,
    /// Touch frames that the guest was given.
    pub touch_frames: u64,
    /// Pen events that the guest was given.
    pub pen_events: u64,
    /// From the guest's report of a change to the last byte of its picture in the socket, in microseconds.
    pub damage_to_socket_us: LatencyReading,
}

/// Percentiles, to the nearest fifth above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyReading {
    /// Measurements.
    pub count: u64,
    /// Half were faster.
    pub p50: u64,
    /// 99 of 100 were faster.
    pub p99: u64,
    /// The slowest.
    pub max: u64,
}

#[derive(Debug)]
struct Inner {
    frames: u64,
    graphics_bytes: u64,
    touch_frames: u64,
    pen_events: u64,
    max: Duration,
    buckets: [u64; BUCKETS],
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            frames: 0,
            graphics_bytes: 0,
            touch_frames: 0,
            pen_events: 0,
            max: Duration::ZERO,
            buckets: [0; BUCKETS],
        }
    }
}

impl SessionStats {
    /// Counts a picture of `bytes`, written `latency` after its change was reported (when that is known).
    pub fn sent(&self, bytes: usize, latency: Option<Duration>) {
        let mut inner = self.lock();
        inner.frames += 1;
        inner.graphics_bytes += bytes as u64;
        if let Some(latency) = latency {
            inner.buckets[bucket(latency)] += 1;
            inner.max = inner.max.max(latency);
        }
    }

    /// Counts a touch frame that the guest was given.
    pub fn touched(&self) {
        self.lock().touch_frames += 1;
    }

    /// Counts a pen event that the guest was given.
    pub fn drawn(&self) {
        self.lock().pen_events += 1;
    }

    /// Reads all counters.
    #[must_use]
    pub fn read(&self) -> StatsReading {
        let inner = self.lock();
        let count: u64 = inner.buckets.iter().sum();
        let max = micros(inner.max);
        let percentile = |percent: u64| {
            let wanted = (count * percent).div_ceil(100);
            let mut seen = 0;
            let at = inner.buckets.iter().position(|bucket| {
                seen += bucket;
                seen >= wanted
            });
            at.map_or(0, |at| upper_edge(at).min(max))
        };
        let latency = LatencyReading { count, p50: percentile(50), p99: percentile(99), max };
        StatsReading {
            frames: inner.frames,
            graphics_bytes: inner.graphics_bytes,
            touch_frames: inner.touch_frames,
            pen_events: inner.pen_events,
            damage_to_socket_us: latency,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Octave of the microseconds times four, plus the two bits below the highest.
fn bucket(latency: Duration) -> usize {
    let micros = micros(latency).max(4);
    let octave = micros.ilog2();
    let quarter = (micros >> (octave - 2)) & 3;
    (octave as usize * 4 + quarter as usize).min(BUCKETS - 1)
}

/// The microseconds that a bucket ends at.
fn upper_edge(bucket: usize) -> u64 {
    let (octave, quarter) = (bucket / 4, bucket as u64 % 4);
    ((5 + quarter) << octave) / 4
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_quarter_of_the_truth() {
        let stats = SessionStats::default();
        for millis in 1..=100 {
            stats.sent(10, Some(Duration::from_millis(millis)));
        }
        let reading = stats.read();
        assert_eq!((reading.frames, reading.graphics_bytes), (100, 1000));
        let latency = reading.damage_to_socket_us;
        assert_eq!((latency.count, latency.max), (100, 100_000));
        assert!((50_000..=62_500).contains(&latency.p50), "{latency:?}");
        assert!((99_000..=100_000).contains(&latency.p99), "{latency:?}");
    }

    #[test]
    fn nothing_measured_reads_as_zero_and_extremes_have_a_bucket() {
        assert_eq!(
            SessionStats::default().read().damage_to_socket_us,
            LatencyReading { count: 0, p50: 0, p99: 0, max: 0 }
        );
        for latency in [Duration::ZERO, Duration::from_secs(1 << 40)] {
            SessionStats::default().sent(0, Some(latency));
        }
    }
}
