//! Cuts the port's bytes into frames, and finds a place to begin when it does not know where frames begin.

use crate::wire::Malformed;

use super::frame::{FRAME_HEADER, Frame, FrameHeader, MAX_FRAME_BODY, SYNC_FRAME, SYNC_PREFIX, decode_sync};

/// Bytes taken at once while looking.
const HUNT_BYTES: usize = 4096;
/// Consumed bytes that are worth moving the rest of the buffer for.
const COMPACT_BYTES: usize = 16 * 1024;
/// Most bytes that a [`Deframer`] holds.
pub const MAX_BUFFERED: usize = FRAME_HEADER + MAX_FRAME_BODY + HUNT_BYTES + COMPACT_BYTES;

/// Bytes in, frames out.
///
/// It begins *looking*: whatever is no SYNC frame to the byte is skipped. From [`enter_step`](Self::enter_step) on
/// every byte belongs to a frame.
#[derive(Debug)]
pub struct Deframer {
    buffer: Vec<u8>,
    /// Bytes at the front of the buffer that are done with.
    consumed: usize,
    looking: bool,
    /// Bytes at the front of the pending ones that belong to the SYNC frame that was found last.
    sync_left: usize,
}

impl Deframer {
    /// One that is looking.
    #[must_use]
    pub const fn new() -> Self {
        Self { buffer: Vec::new(), consumed: 0, looking: true, sync_left: 0 }
    }

    /// The SYNC frame that was returned last is a true one: frames begin right after it.
    ///
    /// As long as this is not said, the next SYNC is looked for within it: half a SYNC frame, whose sender died, and
    /// the first bytes of the next one look like one.
    pub fn enter_step(&mut self) {
        self.looking = false;
        let rest_of_sync = std::mem::take(&mut self.sync_left);
        self.consume(rest_of_sync);
    }

    /// Nobody knows where frames begin: also what was taken for the beginning of one is looked through.
    pub const fn look(&mut self) {
        self.looking = true;
    }

    /// Forgets the bytes that it holds, and looks.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// Bytes that were taken and do not belong to a frame that was returned.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        self.buffer.get(self.consumed..).unwrap_or_default()
    }

    /// Takes bytes from the front of `input` until a frame is whole. None: `input` is used up.
    ///
    /// # Errors
    ///
    /// When what is there begins no frame. It looks from the next byte on.
    pub fn next_frame(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, Malformed> {
        if self.looking {
            return Ok(self.hunt(input));
        }
        let frame = self.next_in_step(input);
        if frame.is_err() {
            self.looking = true;
            self.consume(1);
        }
        frame
    }

    fn next_in_step(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, Malformed> {
        self.fill(FRAME_HEADER, input);
        let Some(header) = self.pending().get(..FRAME_HEADER) else {
            return Ok(None);
        };
        let header = FrameHeader::decode(header)?;
        self.fill(FRAME_HEADER + header.length, input);
        let Some(body) = self.pending().get(FRAME_HEADER..FRAME_HEADER + header.length) else {
            return Ok(None);
        };
        let frame = header.with_body(body)?;
        self.consume(FRAME_HEADER + header.length);
        Ok(Some(frame))
    }

    /// Skips to the next SYNC frame. Each round takes bytes or skips some.
    fn hunt(&mut self, input: &mut &[u8]) -> Option<Frame> {
        self.sync_left = 0;
        loop {
            if self.pending().len() < SYNC_FRAME {
                self.fill(HUNT_BYTES, input);
            }
            self.consume(before_sync(self.pending()));
            if let Some(frame) = self.pending().get(..SYNC_FRAME) {
                let body = frame.get(FRAME_HEADER..).and_then(|body| decode_sync(body).ok());
                self.consume(1);
                if let Some(body) = body {
                    self.sync_left = SYNC_FRAME - 1;
                    return Some(Frame::Sync(body));
                }
            } else if input.is_empty() {
                return None;
            }
        }
    }

    /// Takes bytes until `wanted` of them are pending, or there are no more.
    fn fill(&mut self, wanted: usize, input: &mut &[u8]) {
        let missing = wanted.saturating_sub(self.pending().len()).min(input.len());
        if missing == 0 {
            return;
        }
        if self.consumed == self.buffer.len() || self.consumed >= COMPACT_BYTES {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        if let Some((taken, rest)) = input.split_at_checked(missing) {
            self.buffer.extend_from_slice(taken);
            *input = rest;
        }
    }

    fn consume(&mut self, count: usize) {
        self.consumed = self.consumed.saturating_add(count).min(self.buffer.len());
    }
}

impl Default for Deframer {
    fn default() -> Self {
        Self::new()
    }
}

/// How many bytes go before what is, or may become, a SYNC frame.
fn before_sync(bytes: &[u8]) -> usize {
    let may_begin = |place: &usize| {
        let rest = bytes.get(*place..).unwrap_or_default();
        let length = rest.len().min(SYNC_PREFIX.len());
        rest.get(..length) == SYNC_PREFIX.get(..length)
    };
    (0..bytes.len()).find(may_begin).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::sync::SyncBody;
    use super::*;

    const SYNC: Frame = Frame::Sync(SyncBody { epoch: 1, random: 2, echo: 3 });
    const NEXT: Frame = Frame::Sync(SyncBody { epoch: 4, random: 5, echo: 0 });

    fn bytes(frames: &[Frame]) -> Vec<u8> {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        bytes
    }

    /// All frames in `bytes`, given in pieces, up to an error.
    fn frames(deframer: &mut Deframer, bytes: &[u8], piece: usize) -> (Vec<Frame>, Option<Malformed>) {
        let mut frames = Vec::new();
        for mut piece in bytes.chunks(piece) {
            loop {
                match deframer.next_frame(&mut piece) {
                    Ok(Some(frame)) => {
                        if frame == SYNC || frame == NEXT {
                            deframer.enter_step();
                            frames.push(frame);
                        } else if !deframer.looking {
                            frames.push(frame);
                        }
                    }
                    Ok(None) => break,
                    Err(malformed) => return (frames, Some(malformed)),
                }
            }
            assert!(piece.is_empty());
            assert!(deframer.buffer.len() <= MAX_BUFFERED);
        }
        (frames, None)
    }

    #[test]
    fn a_sync_is_found_in_any_rubbish() {
        let half = |length| bytes(&[NEXT])[..length].to_vec();
        for rubbish in [vec![], vec![0x20; 100], [half(12), half(4)].concat(), half(20), half(43)] {
            let mut stream = rubbish.clone();
            stream.extend(bytes(&[SYNC, Frame::Kick]));
            for piece in [1, 7, 1000] {
                let (frames, error) = frames(&mut Deframer::new(), &stream, piece);
                assert_eq!((frames, error), (vec![SYNC, Frame::Kick], None), "after {rubbish:?}");
            }
        }
    }

    #[test]
    fn a_sync_without_a_random_is_rubbish_while_looking() {
        let none = Frame::Sync(SyncBody { epoch: 1, random: 0, echo: 0 });
        let (frames, error) = frames(&mut Deframer::new(), &bytes(&[none, SYNC]), 10);
        assert_eq!((frames, error), (vec![SYNC], None));
    }

    #[test]
    fn the_body_of_a_frame_that_never_ends_is_looked_through() {
        let mut deframer = Deframer::new();
        let mut stream = bytes(&[SYNC, Frame::Data { channel: 1, body: vec![7; 5000] }]);
        stream.truncate(3000);
        assert_eq!(frames(&mut deframer, &stream, 999).0, [SYNC]);
        assert_eq!(frames(&mut deframer, &bytes(&[NEXT, Frame::Kick]), 50).0, [], "taken for the body");
        deframer.look();
        assert_eq!(frames(&mut deframer, &[0], 1).0, [NEXT, Frame::Kick]);
    }

    #[test]
    fn after_rubbish_in_step_it_looks_from_the_next_byte_on() {
        let mut deframer = Deframer::new();
        let mut stream = bytes(&[SYNC, Frame::Kick]);
        stream.push(0xff);
        stream.extend(bytes(&[SYNC]));
        let mut input = &stream[..];
        assert_eq!(deframer.next_frame(&mut input), Ok(Some(SYNC)));
        deframer.enter_step();
        assert_eq!(deframer.next_frame(&mut input), Ok(Some(Frame::Kick)));
        assert!(deframer.next_frame(&mut input).is_err());
        assert_eq!(deframer.next_frame(&mut input), Ok(Some(SYNC)));
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let body = || proptest::collection::vec(any::<u8>(), 0..300);
        prop_oneof![
            body().prop_map(Frame::Control),
            (any::<u32>(), body()).prop_map(|(channel, body)| Frame::Data { channel, body }),
            (any::<u32>(), any::<u32>()).prop_map(|(channel, credit)| Frame::Window { channel, credit }),
            Just(Frame::Kick),
            Just(SYNC),
        ]
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_whatever_the_pieces(
            rest in proptest::collection::vec(frame(), 0..20),
            piece in 1usize..600,
        ) {
            let mut all = vec![SYNC];
            all.extend(rest);
            let (frames, error) = frames(&mut Deframer::new(), &bytes(&all), piece);
            prop_assert_eq!((frames, error), (all, None));
        }
    }
}
