//! Moments as they are written on the bus.

use std::time::{Duration, SystemTime};

#[cfg(test)]
use proptest::prelude::*;

use super::field::Field;
use crate::wire::{Malformed, Reader, Writer};

/// A moment: 100 ns steps since the beginning of 1601, UTC, without leap seconds (Windows' `FILETIME`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileTime(pub u64);

/// From the beginning of 1601 to that of 1970.
const UNIX_EPOCH: Duration = Duration::from_secs(11_644_473_600);

impl From<SystemTime> for FileTime {
    /// The step that `time` is in; moments before 1601 are the first.
    fn from(time: SystemTime) -> Self {
        let since_1601 = match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => UNIX_EPOCH.saturating_add(after),
            Err(before) => UNIX_EPOCH.saturating_sub(before.duration()),
        };
        Self(u64::try_from(since_1601.as_nanos() / 100).unwrap_or(u64::MAX))
    }
}

impl FileTime {
    /// The moment for the system's clock; none when that cannot tell it.
    #[must_use]
    pub fn system_time(self) -> Option<SystemTime> {
        let since_1601 = Duration::from_micros(self.0 / 10) + Duration::from_nanos(self.0 % 10 * 100);
        match since_1601.checked_sub(UNIX_EPOCH) {
            Some(after) => SystemTime::UNIX_EPOCH.checked_add(after),
            None => SystemTime::UNIX_EPOCH.checked_sub(UNIX_EPOCH.saturating_sub(since_1601)),
        }
    }
}

/// u64.
impl Field for FileTime {
    const MAX_BYTES: usize = 8;

    fn write(&self, writer: &mut Writer) {
        writer.u64(self.0);
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        reader.u64(what).map(Self)
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        any::<u64>().prop_map(Self).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_the_same_on_both_clocks() {
        assert_eq!(FileTime::from(SystemTime::UNIX_EPOCH), FileTime(116_444_736_000_000_000));
        let moment = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_700);
        assert_eq!(FileTime::from(moment).system_time(), Some(moment));
        let before = SystemTime::UNIX_EPOCH - Duration::new(1, 100);
        assert_eq!(FileTime::from(before).system_time(), Some(before));
    }

    #[test]
    fn the_ends_are_no_trouble() {
        let _ = FileTime(u64::MAX).system_time();
        assert_eq!(FileTime::from(FileTime(0).system_time().expect("1601 can be told")), FileTime(0));
        assert_eq!(FileTime::from(SystemTime::UNIX_EPOCH - Duration::from_secs(1 << 40)), FileTime(0));
    }
}
