//! The guest's clock. (`docs/bus.md`, section 9.9)
//!
//! The host tells the time: once to be taken over at once (when the channel opens, and after a pause or a restored
//! checkpoint), then every five seconds as a sample by which the guest steers its clock. The guest answers each with
//! what it saw and did; from the answer the host knows how long a message is under way, says so in the next, and knows a
//! clock that is wrong from a message that was late.
//!
//! ```text
//! host                                                   guest
//! Time { sequence: 1, action: Step, delay: 0 }      ──▶  sets its clock
//!                                                   ◀──  Result { sequence: 1, offset: −93 s, done: Stepped, held: 40 µs }
//! Time { sequence: 2, action: Sample, delay: 80 µs } ──▶ slews, or tells its time service
//!                                                   ◀──  Result { sequence: 2, offset: 12 µs, done: Nothing, held: 30 µs }
//! ```

use std::time::Duration;

use super::define::{codes, messages};
pub use super::file_time::FileTime;

/// How often the host sends a sample.
pub const INTERVAL: Duration = Duration::from_secs(5);

messages! {
    /// What the host sends.
    pub enum ToGuest {
        /// It is this time.
        Time = 0x01 {
            /// One more with each.
            sequence: u64,
            /// The host's clock when the message was made.
            time: FileTime,
            /// How long the message is likely to be under way, to be added to `time`: half of the shortest of the last
            /// round trips, zero as long as there was none.
            delay: Duration,
            /// What the guest is to do.
            action: Action,
            /// What the host's own clock knows of the next leap second.
            leap: Leap,
            /// Steps between the host's clock and a reference clock (NTP's stratum): 1 to 15, 16 if it has none.
            stratum: u8,
        },
    }
}

messages! {
    /// What the guest sends.
    pub enum ToHost {
        /// The answer to [`ToGuest::Time`].
        Result = 0x81 {
            /// The host's.
            sequence: u64,
            /// The guest's clock less the host's (`time` plus `delay`) before anything was done, in nanoseconds; the
            /// nearest that can be told when it is more than 292 years.
            offset: i64,
            /// What the guest did.
            done: Done,
            /// From the arrival of the message in the agent to its answer: no part of the round trip.
            held: Duration,
        },
    }
}

codes! {
    /// What a guest is to do with the host's time.
    pub enum Action: u8 {
        /// Take it over at once.
        Step = 1,
        /// Steer the clock towards it. Nothing jumps; what is too far away is only told.
        Sample = 2,
    }
}

codes! {
    /// The next leap second.
    pub enum Leap: u8 {
        /// The last minute of the day has 60 s.
        None = 0,
        /// It has 61.
        Insert = 1,
        /// It has 59.
        Delete = 2,
        /// The host's clock is not synchronised.
        Unknown = 3,
    }
}

codes! {
    /// What a guest did with the host's time.
    pub enum Done: u8 {
        /// Nothing.
        Nothing = 0,
        /// Set its clock.
        Stepped = 1,
        /// Runs its clock faster or slower for a while.
        Slewed = 2,
        /// Nothing: it steers its clock by another source.
        Elsewhere = 3,
        /// It wanted to, and the system did not let it.
        Failed = 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_and_its_result_read_as_they_are_specified() {
        let time = ToGuest::Time {
            sequence: 2,
            time: FileTime(0x01da_0000_0000_0000),
            delay: Duration::from_nanos(500),
            action: Action::Sample,
            leap: Leap::Unknown,
            stratum: 16,
        };
        let bytes = [
            [0x01, 0, 0, 0].as_slice(),
            &[2, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0, 0, 0xda, 0x01],
            &[0xf4, 0x01, 0, 0, 0, 0, 0, 0],
            &[2, 3, 16],
        ]
        .concat();
        assert_eq!(time.encode(), bytes);
        assert_eq!(ToGuest::decode(&bytes), Ok(time));
        let result =
            [[0x81, 0, 0, 0].as_slice(), &[2, 0, 0, 0, 0, 0, 0, 0], &[0xff; 8], &[2], &[1, 0, 0, 0, 0, 0, 0, 0]]
                .concat();
        assert_eq!(
            ToHost::decode(&result),
            Ok(ToHost::Result { sequence: 2, offset: -1, done: Done::Slewed, held: Duration::from_nanos(1) })
        );
    }
}
