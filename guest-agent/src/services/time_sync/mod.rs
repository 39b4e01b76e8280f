//! Time synchronisation: the guest's clock follows the host's.
//!
//! It is set when the host says so, and steered by what the host says otherwise. Where another program of the guest
//! keeps the clock, it is only set.

use std::time::{Duration, Instant, SystemTime};

use enhanced_session::class::time_sync::{Action, Done, FileTime, Leap, ToGuest, ToHost};
use tracing::{debug, info, warn};

use super::{Completions, Incoming, Outgoing, Service, ServiceError};

mod servo;
mod system;

use servo::{Servo, Steering};
use system::SystemClock;

/// An error from here on is only told. Steering would take too long, and more often it is the message that is late, which
/// the host can tell apart, and asks for the clock to be set when it is not.
const MAX_STEERED_NANOS: i128 = 1_000_000_000;
/// A smaller error is no reason to let the clock jump, even when the host asks for it.
const MIN_STEP_NANOS: i128 = 1_000_000;

/// The guest's clock.
trait Clock {
    fn now(&self) -> SystemTime;
    /// Moves the clock by so many nanoseconds at once.
    fn step(&mut self, nanos: i128) -> std::io::Result<()>;
    /// How much faster than by itself it runs, in millionths.
    fn frequency(&self) -> std::io::Result<f64>;
    fn set_frequency(&mut self, ppm: f64) -> std::io::Result<()>;
    /// Tells the kernel how good the clock is, for those who ask it.
    fn set_quality(&mut self, error: Duration, leap: Leap);
    /// Whether another program steers it.
    fn is_kept_elsewhere(&self) -> bool;
}

/// The service of one channel.
pub(super) struct TimeSync {
    clock: Box<dyn Clock>,
    /// There as soon as the clock was steered for the first time.
    servo: Option<Servo>,
    result: Option<(ToHost, Instant)>,
    has_warned: bool,
    completions: Completions,
}

/// What a message of the host says, less what is only for the answer.
#[derive(Debug, Clone, Copy)]
struct Sample {
    action: Action,
    /// The clock's error: positive when it is ahead.
    error: i128,
    delay: Duration,
    leap: Leap,
}

impl TimeSync {
    /// Keeps this system's clock.
    pub(super) fn of_system() -> Self {
        Self::new(Box::new(SystemClock))
    }

    fn new(clock: Box<dyn Clock>) -> Self {
        Self { clock, servo: None, result: None, has_warned: false, completions: Completions::default() }
    }

    fn follow(&mut self, now: Instant, sample: Sample) -> Done {
        let done = if sample.action == Action::Step && sample.error.abs() >= MIN_STEP_NANOS {
            self.step(sample.error)
        } else if self.clock.is_kept_elsewhere() {
            return Done::Elsewhere;
        } else if sample.error.abs() >= MAX_STEERED_NANOS {
            return Done::Nothing;
        } else {
            self.steer(now, sample)
        };
        match done {
            Ok(done) => done,
            Err(error) => {
                if !std::mem::replace(&mut self.has_warned, true) {
                    warn!(%error, "the clock cannot be set");
                }
                Done::Failed
            }
        }
    }

    fn step(&mut self, error: i128) -> std::io::Result<Done> {
        self.clock.step(-error)?;
        info!(milliseconds = -error / 1_000_000, "set the clock");
        if let Some(servo) = &mut self.servo {
            let steering = servo.handle_step();
            self.clock.set_frequency(steering.ppm)?;
        }
        Ok(Done::Stepped)
    }

    fn steer(&mut self, now: Instant, sample: Sample) -> std::io::Result<Done> {
        let servo = match &mut self.servo {
            Some(servo) => servo,
            none => none.insert(Servo::new(self.clock.frequency()?)),
        };
        #[expect(clippy::cast_precision_loss, reason = "less than a second: far fewer bits than an f64 has")]
        let Steering { ppm, slewing } = servo.handle_sample(now, sample.error as f64);
        self.clock.set_frequency(ppm)?;
        let error = u64::try_from(sample.error.unsigned_abs()).map_or(Duration::MAX, Duration::from_nanos);
        self.clock.set_quality(error.saturating_add(sample.delay), sample.leap);
        debug!(nanoseconds = %sample.error, ppm, "sample");
        Ok(if slewing { Done::Slewed } else { Done::Nothing })
    }
}

impl Service for TimeSync {
    fn handle(&mut self, now: Instant, incoming: Incoming<'_>) -> Result<(), ServiceError> {
        let bytes = match incoming {
            Incoming::Message(bytes) => bytes,
            Incoming::Request(txid, _) => return self.completions.push_unsupported(txid),
        };
        let ToGuest::Time { sequence, time, delay, action, leap, stratum: _ } = ToGuest::decode(bytes)? else {
            return Ok(());
        };
        // Between the arrival and here other work may have been done.
        let error = error_of(self.clock.now(), time, delay.saturating_add(now.elapsed()));
        let done = self.follow(now, Sample { action, error, delay, leap });
        let offset = i64::try_from(error).unwrap_or(if error < 0 { i64::MIN } else { i64::MAX });
        self.result = Some((ToHost::Result { sequence, offset, done, held: Duration::ZERO }, now));
        Ok(())
    }

    fn poll_output(&mut self) -> Option<Outgoing> {
        let Some((ToHost::Result { sequence, offset, done, .. }, arrival)) = self.result.take() else {
            return self.completions.pop();
        };
        Some(Outgoing::Message(ToHost::Result { sequence, offset, done, held: arrival.elapsed() }.encode()))
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.servo.as_ref().and_then(Servo::poll_timeout)
    }

    fn handle_timeout(&mut self, now: Instant) {
        if let Some(servo) = &mut self.servo
            && servo.poll_timeout().is_some_and(|timeout| now >= timeout)
        {
            let steering = servo.handle_timeout(now);
            // It worked when the slew began; the next sample tells if not.
            let _ = self.clock.set_frequency(steering.ppm);
        }
    }
}

impl Drop for TimeSync {
    /// Nobody watches the clock any more: it must not go on being slewed.
    fn drop(&mut self) {
        if let Some(servo) = &self.servo {
            let _ = self.clock.set_frequency(servo.frequency());
        }
    }
}

/// How far `guest` is ahead of the host, in nanoseconds.
fn error_of(guest: SystemTime, time: FileTime, delay: Duration) -> i128 {
    let steps = |time: FileTime| i128::from(time.0) * 100;
    let nanos = |duration: Duration| i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX);
    // A FileTime is coarser than the clock: the rest is told apart.
    let coarse = FileTime::from(guest);
    let rest = coarse.system_time().and_then(|coarse| guest.duration_since(coarse).ok()).unwrap_or_default();
    steps(coarse) + nanos(rest) - steps(time) - nanos(delay)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[derive(Debug, Default)]
    struct Fake {
        ahead_nanos: i128,
        steps: Vec<i128>,
        frequency: f64,
        elsewhere: bool,
        refuses: bool,
    }

    /// It stands still, `ahead_nanos` after [`host_time`].
    #[derive(Clone, Default)]
    struct FakeClock(Rc<RefCell<Fake>>);

    impl FakeClock {
        fn check(&self) -> std::io::Result<()> {
            if self.0.borrow().refuses { Err(std::io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
        }
    }

    impl Clock for FakeClock {
        fn now(&self) -> SystemTime {
            let ahead = self.0.borrow().ahead_nanos;
            let distance = Duration::from_nanos(u64::try_from(ahead.unsigned_abs()).unwrap());
            if ahead < 0 { host_time() - distance } else { host_time() + distance }
        }
        fn step(&mut self, nanos: i128) -> std::io::Result<()> {
            self.check()?;
            self.0.borrow_mut().steps.push(nanos);
            Ok(())
        }
        fn frequency(&self) -> std::io::Result<f64> {
            Ok(self.0.borrow().frequency)
        }
        fn set_frequency(&mut self, ppm: f64) -> std::io::Result<()> {
            self.check()?;
            self.0.borrow_mut().frequency = ppm;
            Ok(())
        }
        fn set_quality(&mut self, _: Duration, _: Leap) {}
        fn is_kept_elsewhere(&self) -> bool {
            self.0.borrow().elsewhere
        }
    }

    fn host_time() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    fn tell(sync: &mut TimeSync, action: Action) -> (i64, Done) {
        let time = ToGuest::Time {
            sequence: 7,
            time: FileTime::from(host_time()),
            delay: Duration::from_nanos(500),
            action,
            leap: Leap::None,
            stratum: 3,
        };
        sync.handle(Instant::now(), Incoming::Message(&time.encode())).unwrap();
        let Some(Outgoing::Message(bytes)) = sync.poll_output() else { panic!("no answer") };
        match ToHost::decode(&bytes).unwrap() {
            ToHost::Result { sequence: 7, offset, done, .. } => (offset, done),
            other => panic!("{other:?} is no answer"),
        }
    }

    fn with(fake: Fake) -> (FakeClock, TimeSync) {
        let clock = FakeClock(Rc::new(RefCell::new(fake)));
        (clock.clone(), TimeSync::new(Box::new(clock)))
    }

    #[test]
    fn a_step_sets_the_clock_and_tells_how_wrong_it_was() {
        let (clock, mut sync) = with(Fake { ahead_nanos: -93_000_000_000, ..Fake::default() });
        let (offset, done) = tell(&mut sync, Action::Step);
        assert_eq!(done, Done::Stepped);
        // The test itself takes time.
        assert!((-94_000_000_000..=-93_000_000_500).contains(&offset), "{offset}");
        assert_eq!(clock.0.borrow().steps, [-i128::from(offset)]);
    }

    #[test]
    fn a_sample_steers_and_a_large_error_is_told() {
        let (clock, mut sync) = with(Fake { ahead_nanos: 200_000_000, ..Fake::default() });
        assert_eq!(tell(&mut sync, Action::Sample).1, Done::Slewed);
        let frequency = clock.0.borrow().frequency;
        assert!(frequency < 0.0);
        clock.0.borrow_mut().ahead_nanos = 5_000_000_000;
        let (offset, done) = tell(&mut sync, Action::Sample);
        assert!(done == Done::Nothing && offset > 4_900_000_000, "{done:?}, {offset}");
        assert_eq!(clock.0.borrow().steps.len(), 0);
        assert!((clock.0.borrow().frequency - frequency).abs() < 1e-9);
    }

    #[test]
    fn a_clock_that_others_keep_is_set_on_request_only() {
        let (clock, mut sync) = with(Fake { ahead_nanos: 5_000_000_000, elsewhere: true, ..Fake::default() });
        assert_eq!(tell(&mut sync, Action::Sample).1, Done::Elsewhere);
        assert_eq!(clock.0.borrow().steps.len(), 0);
        assert_eq!(tell(&mut sync, Action::Step).1, Done::Stepped);
    }

    #[test]
    fn what_the_system_refuses_is_told() {
        let (_, mut sync) = with(Fake { ahead_nanos: 5_000_000_000, refuses: true, ..Fake::default() });
        assert_eq!(tell(&mut sync, Action::Step).1, Done::Failed);
        let (_, mut sync) = with(Fake { ahead_nanos: 200_000_000, refuses: true, ..Fake::default() });
        assert_eq!(tell(&mut sync, Action::Sample).1, Done::Failed);
    }

    #[test]
    fn a_slew_ends_with_the_channel() {
        let (clock, mut sync) = with(Fake { ahead_nanos: 200_000_000, frequency: 12.0, ..Fake::default() });
        tell(&mut sync, Action::Sample);
        assert!(clock.0.borrow().frequency < 0.0);
        drop(sync);
        assert!((clock.0.borrow().frequency - 12.0).abs() < 1e-9);
    }

    #[test]
    fn errors_are_told_to_the_nanosecond_and_never_overflow() {
        let time = FileTime::from(host_time());
        assert_eq!(error_of(host_time() + Duration::from_nanos(1), time, Duration::ZERO), 1);
        assert_eq!(error_of(host_time(), time, Duration::from_nanos(3)), -3);
        let far = error_of(host_time(), FileTime(u64::MAX), Duration::MAX);
        assert!(far < i128::from(i64::MIN));
        assert!(error_of(host_time(), FileTime(0), Duration::ZERO) > i128::from(i64::MAX));
    }
}
