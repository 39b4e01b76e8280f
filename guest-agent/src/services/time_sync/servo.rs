//! From samples of the clock's error to how fast the clock shall run.
//!
//! A message can be late but never early, so the smallest of the last errors is the one nearest the truth. The clock
//! is run faster or slower until that error is gone (the *slew*), and what comes back from sample to sample is the
//! error of its frequency, which is corrected for good. The loop is closed: where it starts from does not matter.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Samples among which the best one is chosen.
const WINDOW: usize = 8;
/// Errors below this are noise.
const DEAD_BAND_NANOS: f64 = 20_000.0;
/// How much faster or slower the kernel can let the clock run, in millionths.
const MAX_PPM: f64 = 500.0;
/// What a slew leaves of that for the correction of the frequency.
const MAX_SLEW_PPM: f64 = 400.0;
/// Part of the frequency's error that one sample corrects.
const FREQUENCY_GAIN: f64 = 0.2;
/// An error is slewed away in the time between two samples, which is taken to be no less and no more than this.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(60);
const NANOS_PER_SECOND: f64 = 1e9;

/// What the clock shall do until the next sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Steering {
    /// How much faster than without steering, in millionths.
    pub(super) ppm: f64,
    /// Whether the clock is on its way to the host's.
    pub(super) slewing: bool,
}

/// The state of the loop.
#[derive(Debug)]
pub(super) struct Servo {
    /// The frequency that keeps the clock where it is, as far as known, in millionths.
    frequency: f64,
    slew: Option<Slew>,
    /// What slews have moved the clock by, in nanoseconds.
    slewed: f64,
    /// Errors without what slews have moved.
    window: VecDeque<f64>,
    last_sample: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Slew {
    ppm: f64,
    since: Instant,
    until: Instant,
}

impl Servo {
    /// A loop that begins with the clock's present frequency, in millionths.
    pub(super) fn new(frequency: f64) -> Self {
        let frequency = if frequency.is_finite() { frequency.clamp(-MAX_PPM, MAX_PPM) } else { 0.0 };
        Self { frequency, slew: None, slewed: 0.0, window: VecDeque::with_capacity(WINDOW), last_sample: None }
    }

    /// The clock was set: what was known of its error is no more, what is known of its frequency stays.
    pub(super) fn handle_step(&mut self) -> Steering {
        *self = Self::new(self.frequency);
        self.steering()
    }

    /// The clock is ahead of the host's by `error` nanoseconds, or seems so.
    pub(super) fn handle_sample(&mut self, now: Instant, error: f64) -> Steering {
        self.account(now);
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(error - self.slewed);
        let since_last = self.last_sample.replace(now).map(|last| now.saturating_duration_since(last));
        let interval = since_last.unwrap_or(MIN_INTERVAL).clamp(MIN_INTERVAL, MAX_INTERVAL);

        let error = self.window.iter().copied().fold(f64::INFINITY, f64::min) + self.slewed;
        let needed_ppm = -error / interval.as_secs_f64() / NANOS_PER_SECOND * 1e6;
        // Samples that came together, or an error that takes longer than one interval, say nothing of the frequency.
        let is_telling = since_last >= Some(MIN_INTERVAL) && needed_ppm.abs() <= MAX_SLEW_PPM;
        if self.window.len() == WINDOW && is_telling {
            self.frequency = (self.frequency + FREQUENCY_GAIN * needed_ppm).clamp(-MAX_PPM, MAX_PPM);
        }
        self.slew = (error.abs() > DEAD_BAND_NANOS).then(|| {
            let ppm = needed_ppm.clamp(-MAX_SLEW_PPM, MAX_SLEW_PPM);
            let seconds = (-error / (ppm * 1e-6) / NANOS_PER_SECOND).clamp(0.0, MAX_INTERVAL.as_secs_f64());
            Slew { ppm, since: now, until: now + Duration::from_secs_f64(seconds) }
        });
        self.steering()
    }

    /// When the slew is over.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.slew.map(|slew| slew.until)
    }

    /// Ends the slew when it is over.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Steering {
        if self.slew.is_some_and(|slew| now >= slew.until) {
            self.account(now);
            self.slew = None;
        }
        self.steering()
    }

    /// The frequency that keeps the clock where it is, in millionths.
    pub(super) const fn frequency(&self) -> f64 {
        self.frequency
    }

    fn steering(&self) -> Steering {
        let slew = self.slew.map_or(0.0, |slew| slew.ppm);
        Steering { ppm: (self.frequency + slew).clamp(-MAX_PPM, MAX_PPM), slewing: self.slew.is_some() }
    }

    /// Notes what the slew has done so far. That it may have run a little longer than it should is counted, too.
    fn account(&mut self, now: Instant) {
        if let Some(slew) = &mut self.slew {
            let total = (self.frequency + slew.ppm).clamp(-MAX_PPM, MAX_PPM);
            let elapsed = now.saturating_duration_since(slew.since).as_secs_f64();
            self.slewed += (total - self.frequency) * 1e-6 * elapsed * NANOS_PER_SECOND;
            slew.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(5);

    /// A clock that runs wrong by `drift` millionths, steered by a servo; lateness of messages in nanoseconds.
    struct World {
        servo: Servo,
        now: Instant,
        error: f64,
        drift: f64,
        steering: Steering,
    }

    impl World {
        fn new(error: f64, drift: f64) -> Self {
            let servo = Servo::new(0.0);
            let steering = servo.steering();
            Self { servo, now: Instant::now(), error, drift, steering }
        }

        fn run(&mut self, until: Instant) {
            while self.now < until {
                let next = self.servo.poll_timeout().map_or(until, |timeout| timeout.min(until)).max(self.now);
                let elapsed = (next - self.now).as_secs_f64();
                self.error += (self.drift + self.steering.ppm) * 1e-6 * elapsed * NANOS_PER_SECOND;
                self.now = next;
                self.steering = self.servo.handle_timeout(next);
            }
        }

        fn sample(&mut self, late: f64) {
            self.run(self.now + INTERVAL);
            self.steering = self.servo.handle_sample(self.now, self.error + late);
        }
    }

    #[test]
    fn a_right_clock_is_left_alone() {
        let mut world = World::new(0.0, 0.0);
        world.sample(1000.0);
        assert_eq!(world.steering, Steering { ppm: 0.0, slewing: false });
        assert_eq!(world.servo.poll_timeout(), None);
    }

    #[test]
    fn an_error_is_slewed_away_and_the_slew_ends() {
        let mut world = World::new(1e6, 0.0);
        world.sample(0.0);
        assert!(world.steering.slewing && world.steering.ppm < 0.0);
        world.run(world.now + INTERVAL);
        assert!(world.error.abs() < 1000.0, "{}", world.error);
        assert_eq!(world.steering, Steering { ppm: 0.0, slewing: false });
    }

    #[test]
    fn a_late_message_does_not_move_the_clock() {
        let mut world = World::new(0.0, 0.0);
        world.sample(0.0);
        world.sample(50e6);
        assert!(!world.steering.slewing);
    }

    #[test]
    fn a_step_forgets_errors_and_keeps_the_frequency() {
        let mut world = World::new(0.0, 80.0);
        (0..40).for_each(|_| world.sample(0.0));
        let frequency = world.servo.frequency();
        assert!((frequency + 80.0).abs() < 5.0, "{frequency}");
        world.servo.handle_sample(world.now, 1e9);
        assert_eq!(world.servo.handle_step(), Steering { ppm: frequency, slewing: false });
    }

    proptest! {
        #[test]
        fn every_clock_comes_near_the_hosts_and_stays(
            error in -0.5e9..0.5e9,
            drift in -150.0..150.0,
            lateness in proptest::collection::vec(0.0..2e6, 100),
        ) {
            let mut world = World::new(error, drift);
            for round in 0..600 {
                world.sample(lateness[round % lateness.len()]);
                prop_assert!(world.steering.ppm.abs() <= MAX_PPM);
                if round > 450 {
                    prop_assert!(world.error.abs() < 3e6, "{} after {round} samples", world.error);
                }
            }
        }
    }
}
