//! The kernel's clock.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use clock_steering::unix::UnixClock;
use clock_steering::{Clock as _, LeapIndicator, TimeOffset};
use enhanced_session::class::time_sync::Leap;

use super::Clock;

/// Files that are there as long as another program keeps the clock.
const KEEPERS: [&str; 6] = [
    "/run/systemd/timesync/synchronized",
    "/run/chrony/chronyd.pid",
    "/run/chronyd.pid",
    "/run/ntpd.pid",
    "/run/openntpd.pid",
    "/run/ntpd-rs/observe",
];
const NANOS_PER_SECOND: i128 = 1_000_000_000;

const CLOCK: UnixClock = UnixClock::CLOCK_REALTIME;

/// The clock of this system.
pub(super) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn step(&mut self, nanos: i128) -> io::Result<()> {
        let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let seconds = i64::try_from(nanos.div_euclid(NANOS_PER_SECOND)).map_err(out_of_range)?;
        let nanos = u32::try_from(nanos.rem_euclid(NANOS_PER_SECOND)).map_err(out_of_range)?;
        CLOCK.step_clock(TimeOffset { seconds, nanos })?;
        Ok(())
    }

    fn frequency(&self) -> io::Result<f64> {
        Ok(CLOCK.get_frequency()?)
    }

    fn set_frequency(&mut self, ppm: f64) -> io::Result<()> {
        // Left over from another program, the kernel's own loop would work against ours.
        CLOCK.disable_kernel_ntp_algorithm()?;
        CLOCK.set_frequency(ppm)?;
        Ok(())
    }

    fn set_quality(&mut self, error: Duration, leap: Leap) {
        let leap = match leap {
            Leap::None => LeapIndicator::NoWarning,
            Leap::Insert => LeapIndicator::Leap61,
            Leap::Delete => LeapIndicator::Leap59,
            Leap::Unknown => LeapIndicator::Unknown,
        };
        // For information: nothing depends on it.
        let _ = CLOCK.error_estimate_update(error, error);
        let _ = CLOCK.set_leap_seconds(leap);
    }

    fn is_kept_elsewhere(&self) -> bool {
        KEEPERS.iter().any(|file| Path::new(file).exists())
    }
}
