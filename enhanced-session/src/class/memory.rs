//! How much memory the guest needs. (`docs/bus.md`, section 9.12)
//!
//! The guest reports at the pace that the host sets, one second unless it is told another. The host takes reports as
//! hints: what the guest gets is decided by its limits and by the other guests.
//!
//! ```text
//! host                                           guest
//! Configure { interval: 1 s, wanted: stalls } ──▶
//!                                             ◀── Report { sequence: 1, total, available, committed, … }
//!                                             ◀── Report { sequence: 2, … }                          a second later
//! ```

use std::time::Duration;

use super::define::{flags, messages, ranged, record};

/// How often a guest reports that was not told otherwise, in milliseconds.
pub const DEFAULT_INTERVAL: IntervalMillis = IntervalMillis(1000);

messages! {
    /// What the host sends.
    pub enum ToGuest {
        /// How the guest is to report from now on.
        Configure = 0x01 {
            /// From one report to the next.
            interval: IntervalMillis,
            /// What reports are to have, as far as the guest's system knows it.
            wanted: Wanted,
        },
    }
}

messages! {
    /// What the guest sends.
    pub enum ToHost {
        /// How its memory is. Not answered.
        Report = 0x81 {
            /// One more with each.
            sequence: u64,
            /// What its system manages, in bytes: without what a balloon has taken.
            total: u64,
            /// What programs could get without swapping, in bytes.
            available: u64,
            /// What was promised to programs and the system itself, in bytes; can be more than `total`.
            committed: u64,
            /// When [`Wanted::swap`] and the system has it.
            swap: Option<Swap>,
            /// When [`Wanted::stalls`] and the system knows it (Linux' pressure stall information).
            stalls: Option<Stalls>,
        },
    }
}

flags! {
    /// Parts of a report that are sent only when asked for.
    pub struct Wanted: u32 {
        /// [`Swap`].
        pub swap = 1,
        /// [`Stalls`].
        pub stalls = 2,
    }
}

record! {
    /// Memory on disk.
    #[derive(Copy)]
    pub struct Swap {
        /// Swap or page files, in bytes.
        pub total: u64,
        /// What of them is in use, in bytes.
        pub used: u64,
        /// What was read from them since the report before, in bytes per second.
        pub read_rate: u64,
        /// What was written to them since the report before, in bytes per second.
        pub write_rate: u64,
    }
}

record! {
    /// How much of the last ten seconds was lost to waiting for memory.
    #[derive(Copy)]
    pub struct Stalls {
        /// While at least one task waited.
        pub some: PercentHundredths,
        /// While all tasks waited.
        pub full: PercentHundredths,
    }
}

ranged! {
    /// Hundredths of a percent.
    pub struct PercentHundredths(u16) = 0..=10_000;
}

ranged! {
    /// Time between reports, in milliseconds.
    pub struct IntervalMillis(u32) = 100..=60_000;
}

impl IntervalMillis {
    /// The same as a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0 as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_a_system_without_stalls_reads_as_specified() {
        let report = ToHost::Report {
            sequence: 1,
            total: 0x4000_0000,
            available: 0x1000,
            committed: 7,
            swap: None,
            stalls: None,
        };
        let bytes = [
            [0x81, 0, 0, 0].as_slice(),
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0x40, 0, 0, 0, 0],
            &[0, 0x10, 0, 0, 0, 0, 0, 0],
            &[7, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0],
        ]
        .concat();
        assert_eq!(report.encode(), bytes);
        assert_eq!(ToHost::decode(&bytes), Ok(report));
    }

    #[test]
    fn no_guest_is_asked_to_report_all_the_time() {
        let configure = |interval: u32| {
            let mut bytes = vec![0x01, 0, 0, 0];
            bytes.extend(interval.to_le_bytes());
            bytes.extend([3, 0, 0, 0]);
            ToGuest::decode(&bytes)
        };
        let wanted = Wanted { swap: true, stalls: true };
        assert_eq!(configure(1000), Ok(ToGuest::Configure { interval: DEFAULT_INTERVAL, wanted }));
        assert!(configure(99).is_err() && configure(60_001).is_err());
        assert_eq!(IntervalMillis::clamped(0).duration(), Duration::from_millis(100));
    }
}
