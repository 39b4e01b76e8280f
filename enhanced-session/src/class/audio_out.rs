//! Sound from the guest. (`docs/bus.md`, section 9.3)
//!
//! The guest's sound card is the agent's; what programs play goes to the host in periods. The host says which formats
//! it likes, and how much sound waits with it and its client to be heard: by that the guest adapts its clock, so that
//! the buffer neither runs empty nor grows.
//!
//! ```text
//! host                                               guest
//! Formats { [s16 2×48000, s16 2×44100] }        ──▶
//!                                               ◀──  Start { stream: 1, s16 2×48000 }
//!                                               ◀──  Period { stream: 1, sequence: 0, 10 ms, 1920 bytes }
//!                                               ◀──  Probe { stream: 1, id: 5 }
//! Level { stream: 1, sequence: 0, buffered: 60 ms } ──▶
//! Latency { id: 5, latency: 85 ms }             ──▶
//!                                               ◀──  Stop { stream: 1, drain }
//! ```

use std::time::Duration;

pub use super::audio::{AudioFormat, Channels, MAX_CHANNELS, MAX_FORMATS, MAX_PERIOD, Rate, SampleFormat, Volume};
use super::bounded::{Data, List};
use super::define::messages;

/// How often the host tells its level while a stream runs, at least.
pub const LEVEL_INTERVAL: Duration = Duration::from_millis(100);

messages! {
    /// What the host sends.
    pub enum ToGuest {
        /// What the host plays: first, and when that changes. A stream that runs in another format goes on.
        Formats = 0x01 {
            /// The best first. Never none.
            formats: List<AudioFormat, MAX_FORMATS>,
        },
        /// How far a stream is.
        Level = 0x02 {
            /// Which.
            stream: u32,
            /// The last period that was taken.
            sequence: u64,
            /// How much sound is on its way between the host's arrival and the ear, as far as it is known.
            buffered: Duration,
            /// How much sound of this stream was thrown away since its start: there was too much of it.
            dropped: Duration,
            /// How often since its start there was too little.
            underruns: u32,
        },
        /// The answer to [`ToHost::Probe`].
        Latency = 0x03 {
            /// The probe's.
            id: u32,
            /// From the arrival of the probe to the moment when what followed it was heard.
            latency: Duration,
        },
        /// The client's user changed how loud it is: the guest shows it in its mixer. Not answered.
        Volume = 0x04 {
            /// How loud.
            volume: Volume,
        },
    }
}

messages! {
    /// What the guest sends.
    pub enum ToHost {
        /// A stream begins. The one before ends, at once.
        Start = 0x81 {
            /// Its number: another than that of the stream before.
            stream: u32,
            /// One of those that the host plays.
            format: AudioFormat,
        },
        /// Some sound.
        Period = 0x82 {
            /// Whose. Periods of a stream that has ended are ignored.
            stream: u32,
            /// One more with each, from 0.
            sequence: u64,
            /// How long it sounds, by the guest's clock.
            duration: Duration,
            /// Whole frames; none: silence of that duration.
            sound: Data<MAX_PERIOD>,
        },
        /// A stream ends.
        Stop = 0x83 {
            /// Which.
            stream: u32,
            /// Whether what was sent is to be heard.
            drain: bool,
        },
        /// The guest's mixer was changed. Samples are not scaled by it: the host or its client does.
        Volume = 0x84 {
            /// How loud.
            volume: Volume,
        },
        /// How long does it take until what follows is heard?
        Probe = 0x85 {
            /// Which stream.
            stream: u32,
            /// For the answer.
            id: u32,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_reads_as_it_is_specified() {
        let format =
            AudioFormat { sample: SampleFormat::S16, channels: Channels::clamped(2), rate: Rate::clamped(48_000) };
        let start = ToHost::Start { stream: 1, format };
        assert_eq!(start.encode(), [0x81, 0, 0, 0, 1, 0, 0, 0, 1, 2, 0x80, 0xbb, 0, 0]);
        let period = [
            [0x82, 0, 0, 0, 1, 0, 0, 0].as_slice(),
            &[2, 0, 0, 0, 0, 0, 0, 0],
            &[0x80, 0x96, 0x98, 0, 0, 0, 0, 0],
            &[4, 0, 0, 0, 1, 2, 3, 4],
        ]
        .concat();
        assert_eq!(
            ToHost::decode(&period),
            Ok(ToHost::Period {
                stream: 1,
                sequence: 2,
                duration: Duration::from_millis(10),
                sound: Data::new(vec![1, 2, 3, 4]).expect("it fits"),
            })
        );
    }

    #[test]
    fn formats_that_no_card_has_are_refused() {
        let start = |channels: u8, rate: u32| {
            let mut bytes = vec![0x81, 0, 0, 0, 1, 0, 0, 0, 2, channels];
            bytes.extend(rate.to_le_bytes());
            ToHost::decode(&bytes)
        };
        assert!(start(8, 192_000).is_ok());
        assert!(start(9, 48_000).is_err() && start(0, 48_000).is_err());
        assert!(start(2, 0).is_err() && start(2, 192_001).is_err());
    }

    #[test]
    fn a_period_is_bounded() {
        let mut bytes = vec![0x82, 0, 0, 0];
        bytes.extend([0; 20]);
        bytes.extend(u32::MAX.to_le_bytes());
        assert!(ToHost::decode(&bytes).is_err());
    }
}
