//! Sound for the guest: the client's microphone. (`docs/bus.md`, section 9.4)
//!
//! The host says in which formats it can record; an empty list means that there is no microphone. Recording begins
//! when a program in the guest wants it, and the client is asked only then.
//!
//! ```text
//! host                                               guest
//! Formats { [s16 1×48000] }                     ──▶
//!                                               ◀──  Start { stream: 1, s16 1×48000, period: 10 ms }
//! Started { stream: 1 }                         ──▶
//! Period { stream: 1, sequence: 0, 10 ms, … }   ──▶
//!                                               ◀──  Level { stream: 1, sequence: 0, buffered: 20 ms }
//!                                               ◀──  Stop { stream: 1 }
//! Stopped { stream: 1, why: Asked }             ──▶
//! ```

use std::time::Duration;

pub use super::audio::{AudioFormat, Channels, MAX_CHANNELS, MAX_FORMATS, MAX_PERIOD, Rate, SampleFormat, Volume};
use super::bounded::{Data, List};
use super::define::{codes, messages};

messages! {
    /// What the host sends.
    pub enum ToGuest {
        /// What the host records: first, and when that changes.
        Formats = 0x01 {
            /// The best first. None: there is no microphone.
            formats: List<AudioFormat, MAX_FORMATS>,
        },
        /// A stream that was asked for begins.
        Started = 0x02 {
            /// Which.
            stream: u32,
        },
        /// Some sound.
        Period = 0x03 {
            /// Whose.
            stream: u32,
            /// One more with each, from 0. A gap: sound was lost.
            sequence: u64,
            /// How long it sounds, by the client's clock.
            duration: Duration,
            /// Whole frames; none: silence of that duration.
            sound: Data<MAX_PERIOD>,
        },
        /// A stream has ended or does not begin. Nothing of it follows.
        Stopped = 0x04 {
            /// Which.
            stream: u32,
            /// Why.
            why: StopReason,
        },
    }
}

messages! {
    /// What the guest sends.
    pub enum ToHost {
        /// Please record. The stream before ends, at once.
        Start = 0x81 {
            /// Its number: another than that of the stream before.
            stream: u32,
            /// One of those that the host records.
            format: AudioFormat,
            /// How long a period is to be; the host takes the nearest that it can.
            period: Duration,
        },
        /// No more.
        Stop = 0x82 {
            /// Which.
            stream: u32,
        },
        /// The guest's mixer was changed. The host or its client scales the samples by it.
        Volume = 0x83 {
            /// How loud.
            volume: Volume,
        },
        /// How far the guest is, at least every 100 ms while a stream runs.
        Level = 0x84 {
            /// Which.
            stream: u32,
            /// The last period that was taken.
            sequence: u64,
            /// How much sound waits to be read by a program.
            buffered: Duration,
        },
    }
}

codes! {
    /// Why nothing is recorded.
    pub enum StopReason: u8 {
        /// The guest asked for it.
        Asked = 0,
        /// The microphone, or the client, is gone.
        Gone = 1,
        /// The client's user or the host's rules do not allow it.
        NotAllowed = 2,
        /// It cannot be recorded in this format.
        Format = 3,
        /// The client's system answered with an error.
        Failed = 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_reads_as_it_is_specified() {
        let format =
            AudioFormat { sample: SampleFormat::F32, channels: Channels::clamped(1), rate: Rate::clamped(16_000) };
        let start = ToHost::Start { stream: 1, format, period: Duration::from_nanos(3) };
        let bytes = [0x81, 0, 0, 0, 1, 0, 0, 0, 2, 1, 0x80, 0x3e, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(start.encode(), bytes);
        assert_eq!(ToHost::decode(&bytes), Ok(start));
        let stopped = ToGuest::Stopped { stream: 1, why: StopReason::NotAllowed };
        assert_eq!(ToGuest::decode(&[0x04, 0, 0, 0, 1, 0, 0, 0, 2]), Ok(stopped));
        assert_eq!(ToGuest::decode(&[0x01, 0, 0, 0, 0, 0]), Ok(ToGuest::Formats { formats: List::default() }));
    }
}
