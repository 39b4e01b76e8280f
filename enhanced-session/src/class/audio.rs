//! What the two classes of sound have in common.

use std::time::Duration;

use super::bounded::List;
use super::define::{codes, ranged, record};

/// Most channels of a format.
pub const MAX_CHANNELS: usize = 8;
/// Most formats that are offered.
pub const MAX_FORMATS: usize = 32;
/// Longest period, in bytes: eight channels of `f32` at 192 kHz for 8 ms.
pub const MAX_PERIOD: usize = 48 * 1024;

record! {
    /// How sound is written: interleaved, without compression.
    #[derive(Copy, Hash)]
    pub struct AudioFormat {
        /// A sample of one channel.
        pub sample: SampleFormat,
        /// Channels: front left and right, front centre, low frequencies, back left and right, side left and right;
        /// one channel is the centre, four are the front and the back pair.
        pub channels: Channels,
        /// Frames (a sample of each channel) per second.
        pub rate: Rate,
    }
}

codes! {
    /// How a sample is written, little-endian.
    pub enum SampleFormat: u8 {
        /// Signed, 16 bits.
        S16 = 1,
        /// IEEE 754, 32 bits; −1 to 1.
        F32 = 2,
    }
}

ranged! {
    /// Number of channels.
    pub struct Channels(u8) = 1..=8;
}

ranged! {
    /// Frames per second.
    pub struct Rate(u32) = 8_000..=192_000;
}

record! {
    /// How loud a stream is.
    pub struct Volume {
        /// Whether nothing is to be heard.
        pub muted: bool,
        /// Factor for the samples of each channel, in 1/65535, in the order of the format; the last one also holds for
        /// the channels that are not there. None at all: 65535 for each.
        pub channels: List<u16, MAX_CHANNELS>,
    }
}

impl AudioFormat {
    /// Bytes of a frame.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        let sample = match self.sample {
            SampleFormat::S16 => 2,
            SampleFormat::F32 => 4,
        };
        sample * usize::from(self.channels.value())
    }

    /// How long `bytes` sound; none when they end inside a frame.
    #[must_use]
    pub fn duration(&self, bytes: usize) -> Option<Duration> {
        let frames = bytes.checked_div(self.frame_bytes())?;
        let nanos = u64::try_from(frames).ok()?.checked_mul(1_000_000_000)? / u64::from(self.rate.value());
        (frames * self.frame_bytes() == bytes).then(|| Duration::from_nanos(nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_knows_how_long_bytes_sound() {
        let format =
            AudioFormat { sample: SampleFormat::S16, channels: Channels::clamped(2), rate: Rate::clamped(48_000) };
        assert_eq!(format.duration(1920), Some(Duration::from_millis(10)));
        assert_eq!(format.duration(1921), None);
        assert_eq!(format.duration(0), Some(Duration::ZERO));
        assert_eq!(format.duration(usize::MAX), None);
    }
}
