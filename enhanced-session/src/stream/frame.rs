//! Frames: what the port's stream of bytes is cut into (`docs/bus.md`, section 2).

use crate::class::Priority;
use crate::packet::{PACKET_HEADER, PacketHeader};
use crate::wire::{Malformed, Reader, Writer};

use super::sync::SyncBody;

/// Bytes of a frame before its body.
pub const FRAME_HEADER: usize = 12;
/// Longest body of a frame.
pub const MAX_FRAME_BODY: usize = 65_536;
/// Bytes of a whole SYNC frame.
pub const SYNC_FRAME: usize = FRAME_HEADER + SYNC_BODY;

const SYNC_BODY: usize = 32;
const SYNC_MAGIC: [u8; 8] = *b"VSBSYNC1";
/// How every SYNC frame begins.
pub(super) const SYNC_PREFIX: [u8; FRAME_HEADER + SYNC_MAGIC.len()] = *b"\x20\0\0\0\0\0\0\0\x04\0\0\0VSBSYNC1";

const CONTROL: u8 = 0;
const DATA: u8 = 1;
const WINDOW: u8 = 2;
const SYNC: u8 = 4;
const KICK: u8 = 5;

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A control message, which may be malformed.
    Control(Vec<u8>),
    /// A packet of a channel, which may be malformed.
    Data {
        /// The channel.
        channel: u32,
        /// The packet: header and payload.
        body: Vec<u8>,
    },
    /// The other end may send more on a channel.
    Window {
        /// The channel.
        channel: u32,
        /// How many bytes more.
        credit: u32,
    },
    /// Who is there?
    Sync(SyncBody),
    /// Look at the pending map.
    Kick,
}

impl Frame {
    /// Writes the frame to the end of `out`. Bodies are at most [`MAX_FRAME_BODY`] bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Control(body) => encode(out, CONTROL, 0, 0, &[body]),
            Self::Data { channel, body } => encode(out, DATA, *channel, 0, &[body]),
            Self::Window { channel, credit } => encode(out, WINDOW, *channel, 0, &[&credit.to_le_bytes()]),
            Self::Sync(body) => encode(out, SYNC, 0, 0, &[&encode_sync(body)]),
            Self::Kick => encode(out, KICK, 0, 0, &[]),
        }
    }

    /// Writes a DATA frame to the end of `out`.
    pub(super) fn encode_data(
        out: &mut Vec<u8>,
        channel: u32,
        priority: Priority,
        header: &PacketHeader,
        payload: &[u8],
    ) {
        let priority = match priority {
            Priority::Input => 1,
            Priority::Audio => 2,
            Priority::Video => 3,
            Priority::Bulk => 4,
        };
        encode(out, DATA, channel, priority, &[&header.encode(), payload]);
    }
}

/// What the first bytes of a frame say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Bytes of the body.
    pub(super) length: usize,
    channel: u32,
    kind: u8,
}

impl FrameHeader {
    /// Reads a header. An error means that the stream is out of step.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let length = reader.u32("length of a frame")?;
        let channel = reader.u32("channel of a frame")?;
        let kind = reader.u8("kind of a frame")?;
        let priority = reader.u8("priority of a frame")?;
        reader.zeros(2, "padding of a frame")?;
        let wrong = Malformed::Value { what: "length of a frame", value: length.into() };
        let length = usize::try_from(length).map_err(|_| wrong)?;
        let fits = match kind {
            CONTROL | DATA => length <= MAX_FRAME_BODY,
            WINDOW => length == 4,
            SYNC => length == SYNC_BODY,
            KICK => length == 0,
            kind => return Err(Malformed::Value { what: "kind of a frame", value: kind.into() }),
        };
        if !fits {
            return Err(wrong);
        }
        if channel != 0 && !matches!(kind, DATA | WINDOW) {
            return Err(Malformed::Value { what: "channel of a frame that is of none", value: channel.into() });
        }
        if priority != 0 && kind != DATA {
            return Err(Malformed::Value { what: "priority of a frame that has none", value: priority.into() });
        }
        Ok(Self { length, channel, kind })
    }

    /// The frame with this header and a body of the right length.
    pub(super) fn with_body(self, body: &[u8]) -> Result<Frame, Malformed> {
        let channel = self.channel;
        Ok(match self.kind {
            CONTROL => Frame::Control(body.to_vec()),
            DATA => Frame::Data { channel, body: body.to_vec() },
            WINDOW => Frame::Window { channel, credit: Reader::new(body).u32("credit")? },
            SYNC => Frame::Sync(decode_sync(body)?),
            _ => Frame::Kick,
        })
    }
}

/// Reads the body of a SYNC frame.
pub(super) fn decode_sync(body: &[u8]) -> Result<SyncBody, Malformed> {
    let mut reader = Reader::new(body);
    let magic = reader.array("magic of a sync")?;
    if magic != SYNC_MAGIC {
        return Err(Malformed::Value { what: "magic of a sync", value: u64::from_le_bytes(magic) });
    }
    let body = SyncBody { epoch: reader.u64("epoch")?, random: reader.u64("random")?, echo: reader.u64("echo")? };
    if body.epoch == 0 || body.random == 0 {
        return Err(Malformed::Value { what: "epoch or random of a sync", value: 0 });
    }
    Ok(body)
}

fn encode_sync(body: &SyncBody) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.bytes(&SYNC_MAGIC).u64(body.epoch).u64(body.random).u64(body.echo);
    writer.into_bytes()
}

fn encode(out: &mut Vec<u8>, kind: u8, channel: u32, priority: u8, body: &[&[u8]]) {
    let length: usize = body.iter().map(|part| part.len()).sum();
    debug_assert!(length <= MAX_FRAME_BODY, "a frame of {length} bytes");
    // In range: packets are cut, and control messages have limits.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&channel.to_le_bytes());
    out.extend_from_slice(&[kind, priority, 0, 0]);
    body.iter().for_each(|part| out.extend_from_slice(part));
}

/// A packet's bytes as credit counts them.
pub(super) const fn packet_bytes(payload: usize) -> usize {
    PACKET_HEADER + payload
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(frame: &Frame) -> Vec<u8> {
        let mut out = Vec::new();
        frame.encode(&mut out);
        out
    }

    #[test]
    fn frames_have_the_bytes_of_the_specification() {
        assert_eq!(bytes(&Frame::Control(vec![7])), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(
            bytes(&Frame::Data { channel: 0x0102, body: vec![8, 9] }),
            [2, 0, 0, 0, 2, 1, 0, 0, 1, 0, 0, 0, 8, 9]
        );
        assert_eq!(
            bytes(&Frame::Window { channel: 3, credit: 0x0405 }),
            [4, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 5, 4, 0, 0]
        );
        assert_eq!(bytes(&Frame::Kick), [0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0]);
        let sync = bytes(&Frame::Sync(SyncBody { epoch: 1, random: 2, echo: 3 }));
        assert_eq!(sync.len(), SYNC_FRAME);
        assert!(sync.starts_with(&SYNC_PREFIX));
        assert_eq!(sync[20..], [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn frames_read_as_they_were_written() {
        for frame in [
            Frame::Control(vec![1, 2, 3]),
            Frame::Data { channel: 5, body: vec![] },
            Frame::Window { channel: 6, credit: u32::MAX },
            Frame::Sync(SyncBody { epoch: 1, random: u64::MAX, echo: 0 }),
            Frame::Kick,
        ] {
            let bytes = bytes(&frame);
            let (header, body) = bytes.split_at(FRAME_HEADER);
            let header = FrameHeader::decode(header).expect("a header");
            assert_eq!(header.length, body.len());
            assert_eq!(header.with_body(body), Ok(frame));
        }
    }

    #[test]
    fn what_cannot_begin_a_frame_is_refused() {
        let header = |length: u32, channel: u8, kind, priority, zero| {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.extend([channel, 0, 0, 0, kind, priority, zero, 0]);
            FrameHeader::decode(&bytes).is_ok()
        };
        assert!(header(65_536, 0, CONTROL, 0, 0) && header(65_536, 9, DATA, 4, 0));
        assert!(!header(65_537, 0, CONTROL, 0, 0) && !header(65_537, 9, DATA, 0, 0));
        assert!(!header(0, 0, 3, 0, 0) && !header(0, 0, 6, 0, 0), "unknown kinds");
        assert!(!header(3, 1, WINDOW, 0, 0) && !header(31, 0, SYNC, 0, 0) && !header(1, 0, KICK, 0, 0));
        assert!(!header(1, 1, CONTROL, 0, 0) && !header(0, 1, KICK, 0, 0) && !header(32, 1, SYNC, 0, 0));
        assert!(!header(1, 0, CONTROL, 1, 0), "a priority");
        assert!(!header(1, 0, CONTROL, 0, 1), "padding");
    }

    #[test]
    fn a_sync_has_an_epoch_and_a_random() {
        for (epoch, random) in [(0, 1), (1, 0)] {
            assert!(decode_sync(&encode_sync(&SyncBody { epoch, random, echo: 0 })).is_err());
        }
    }
}
