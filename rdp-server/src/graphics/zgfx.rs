//! ZGFX (RDP 8.0 bulk compression), written for speed.
//!
//! MS-RDPEGFX 2.2.5.1 `RDP_SEGMENTED_DATA` and 3.1.9.1 (the RDP8 bit stream).
//! <https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpegfx/1b962dc9-c4f1-404c-a5b8-036bb51656ec>
//!
//! Both ends remember the last 2 500 000 bytes, compressed or not. Two tables of hashes give two places where the
//! next bytes may have stood before, and the first that matches is taken, unless the next byte has a longer match.

mod bits;

use bits::BitWriter;

/// Bytes both ends remember.
const HISTORY: usize = 2_500_000;

/// Bytes kept beyond the history before it is moved to the front of its buffer: the move is paid once for them.
const SLACK: usize = 1 << 20;

/// Most uncompressed bytes of a segment.
const MAX_SEGMENT: usize = 65_535;

/// Places remembered by the hash of what stands there, as a power of two: by 8 bytes, and by the first 5 of them.
const LONG_BITS: u32 = 16;
const SHORT_BITS: u32 = 15;

/// The shortest match that is looked for.
const SHORT: usize = 5;

/// A match at least this long is taken without a look at the next place, where a longer one might begin.
const LONG_ENOUGH: usize = 32;

/// Bytes read at once; the last ones of a segment are not looked for.
const WORD: usize = 8;

const DESCRIPTOR_SINGLE: u8 = 0xe0;
const DESCRIPTOR_MULTIPART: u8 = 0xe1;

/// `PACKET_COMPR_TYPE_RDP8`, and with `PACKET_COMPRESSED`.
const SEGMENT_RAW: u8 = 0x04;
const SEGMENT_COMPRESSED: u8 = 0x24;

/// One direction of a channel.
pub(super) struct Compressor {
    history: Vec<u8>,
    /// Place of the history's first byte in the whole stream, modulo 2³².
    base: u32,
    /// Where in `history` matches may begin: what lies before, the client may have forgotten.
    floor: usize,
    /// Place in the stream where bytes with this hash stood last.
    long: Vec<u32>,
    short: Vec<u32>,
}

impl Compressor {
    pub(super) fn new() -> Self {
        Self { history: Vec::new(), base: 0, floor: 0, long: vec![0; 1 << LONG_BITS], short: vec![0; 1 << SHORT_BITS] }
    }

    /// Never again refers to anything compressed so far: right whether or not the client starts over.
    pub(super) fn forget(&mut self) {
        self.floor = self.history.len();
    }

    /// Wraps `message`, compressed where that makes it smaller.
    pub(super) fn compress(&mut self, message: &[u8]) -> Vec<u8> {
        let count = message.len().div_ceil(MAX_SEGMENT);
        let mut out = Vec::with_capacity(64 + message.len() / 4);
        match (u16::try_from(count), u32::try_from(message.len())) {
            (Ok(0 | 1), _) => {
                out.push(DESCRIPTOR_SINGLE);
                self.write_segment(message, &mut out);
            }
            (Ok(count), Ok(length)) => {
                out.push(DESCRIPTOR_MULTIPART);
                out.extend_from_slice(&count.to_le_bytes());
                out.extend_from_slice(&length.to_le_bytes());
                for segment in message.chunks(MAX_SEGMENT) {
                    let size_at = out.len();
                    out.extend_from_slice(&[0; 4]);
                    self.write_segment(segment, &mut out);
                    let size = u32::try_from(out.len() - size_at - 4).unwrap_or(u32::MAX);
                    out[size_at..size_at + 4].copy_from_slice(&size.to_le_bytes());
                }
            }
            _ => panic!("a frame of 4 GiB: surfaces are far smaller"),
        }
        out
    }

    /// 2.2.5.3 `RDP8_BULK_ENCODED_DATA`.
    fn write_segment(&mut self, segment: &[u8], out: &mut Vec<u8>) {
        let start = self.remember(segment);
        let flags_at = out.len();
        out.push(SEGMENT_COMPRESSED);
        self.compress_from(start, out);
        if out.len() - flags_at > segment.len() {
            out.truncate(flags_at);
            out.push(SEGMENT_RAW);
            out.extend_from_slice(segment);
        }
    }

    /// Appends to the history; returns where in it.
    fn remember(&mut self, segment: &[u8]) -> usize {
        let needed = self.history.len() + segment.len();
        if needed > HISTORY + SLACK {
            let drop = self.history.len() - HISTORY;
            self.history.copy_within(drop.., 0);
            self.history.truncate(HISTORY);
            self.floor = self.floor.saturating_sub(drop);
            self.base = self.base.wrapping_add(place(drop));
        } else if needed > self.history.capacity() {
            let capacity = (self.history.capacity() * 2).clamp(needed, HISTORY + SLACK);
            self.history.reserve_exact(capacity - self.history.len());
        }
        let start = self.history.len();
        self.history.extend_from_slice(segment);
        start
    }

    fn compress_from(&mut self, start: usize, out: &mut Vec<u8>) {
        let mut bits = BitWriter::new(out);
        let mut literals = start;
        let mut at = start;
        while at + WORD <= self.history.len() {
            let Some(mut found) = self.find(at) else {
                // The longer nothing was found, the fewer places are tried.
                at += 1 + (at - literals) / 64;
                continue;
            };
            while found.length < LONG_ENOUGH && at + 1 + WORD <= self.history.len() {
                let Some(next) = self.find(at + 1).filter(|next| next.length > found.length + 1) else { break };
                found = next;
                at += 1;
            }
            let before = common_suffix(&self.history[self.floor..found.at], &self.history[literals..at]);
            bits.literals(&self.history[literals..at - before]);
            bits.copy(at - found.at, found.length + before);
            at += found.length;
            literals = at;
            // What stands inside the match is found again by its end.
            if at - 2 + WORD <= self.history.len() {
                self.find(at - 2);
            }
        }
        bits.literals(&self.history[literals..]);
        bits.finish();
    }

    /// Where the bytes at `at` stood before; remembers that they stand here.
    fn find(&mut self, at: usize) -> Option<Match> {
        let word = word_at(&self.history, at);
        let here = self.base.wrapping_add(place(at));
        let long = std::mem::replace(&mut self.long[hash(word, WORD, LONG_BITS)], here);
        let short = std::mem::replace(&mut self.short[hash(word, SHORT, SHORT_BITS)], here);
        [long, short].into_iter().find_map(|entry| {
            let candidate = to_index(entry.wrapping_sub(self.base));
            if candidate < self.floor || candidate >= at || at - candidate > HISTORY {
                return None;
            }
            let length = match_length(&self.history, candidate, at, word);
            (length >= SHORT).then_some(Match { at: candidate, length })
        })
    }
}

/// Bytes of the history that stand at another place as well.
struct Match {
    at: usize,
    length: usize,
}

/// How many bytes at `at`, which begin with `word`, are equal to those at `candidate`.
fn match_length(history: &[u8], candidate: usize, at: usize, word: u64) -> usize {
    let differing = word_at(history, candidate) ^ word;
    if differing != 0 {
        return to_index(differing.trailing_zeros()) / 8;
    }
    WORD + common_prefix(&history[candidate + WORD..], &history[at + WORD..])
}

/// Length of the common beginning; `b` is the shorter.
fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let mut length = 0;
    for (word_a, word_b) in a.chunks_exact(WORD).zip(b.chunks_exact(WORD)) {
        let differing = word_at(word_a, 0) ^ word_at(word_b, 0);
        if differing != 0 {
            return length + to_index(differing.trailing_zeros()) / 8;
        }
        length += WORD;
    }
    length + a[length..].iter().zip(&b[length..]).take_while(|(a, b)| a == b).count()
}

/// Length of the common end.
fn common_suffix(a: &[u8], b: &[u8]) -> usize {
    a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count()
}

/// A multiplicative hash of the first bytes, of so many bits.
fn hash(word: u64, bytes: usize, bits: u32) -> usize {
    let bytes = word << (8 * (WORD - bytes));
    to_index(bytes.wrapping_mul(0x9e37_79b1_85eb_ca87) >> (u64::BITS - bits))
}

fn word_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

/// An index of the history as a place, modulo 2³²: the history is far shorter, so nothing is lost.
const fn place(index: usize) -> u32 {
    index as u32
}

fn to_index(value: impl TryInto<usize>) -> usize {
    value.try_into().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use ironrdp_graphics::zgfx::Decompressor;
    use proptest::prelude::*;

    use super::*;

    /// Both ends of a channel.
    struct Pair {
        compressor: Compressor,
        decompressor: Decompressor,
    }

    impl Pair {
        fn new() -> Self {
            Self { compressor: Compressor::new(), decompressor: Decompressor::new() }
        }

        /// Sends a message across and returns how many bytes that took.
        fn send(&mut self, message: &[u8]) -> usize {
            let wire = self.compressor.compress(message);
            let mut received = Vec::new();
            self.decompressor.decompress(&wire, &mut received).unwrap();
            assert!(received == message, "a message of {} bytes arrived different", message.len());
            wire.len()
        }
    }

    /// Bytes with the statistics of commands and runs: repeats at many distances, and some noise.
    fn text(length: usize, mut seed: u64) -> Vec<u8> {
        let mut out: Vec<u8> = Vec::with_capacity(length);
        let mut next = move |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            to_index(seed >> 33) % below
        };
        while out.len() < length {
            if out.len() > 10 && next(3) > 0 {
                let distance = 1 + next(out.len().min(3_000_000));
                let from = out.len() - distance;
                (from..from + 3 + next(60)).for_each(|at| out.push(out[at]));
            } else {
                (0..next(12)).for_each(|_| out.push(next(256).to_le_bytes()[0]));
            }
        }
        out.truncate(length);
        out
    }

    #[test]
    fn a_message_repeated_is_a_few_bytes() {
        let mut pair = Pair::new();
        let message = text(1_000, 1);
        pair.send(&message);
        assert!(pair.send(&message) < 20);
    }

    #[test]
    fn noise_grows_by_its_header_only() {
        let mut seed = 7_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed.to_be_bytes()[0]
        })
        .take(200_000)
        .collect();
        assert!(Pair::new().send(&noise) <= noise.len() + 7 + 4 * 5);
    }

    #[test]
    fn messages_at_the_edges_of_a_segment_arrive() {
        let mut pair = Pair::new();
        for length in [0, 1, 7, 8, 9, MAX_SEGMENT - 1, MAX_SEGMENT, MAX_SEGMENT + 1, 3 * MAX_SEGMENT] {
            pair.send(&text(length, 3));
        }
    }

    #[test]
    fn the_history_wraps_and_still_serves() {
        let mut pair = Pair::new();
        let page = text(900_000, 5);
        pair.send(&page);
        for seed in 0..12 {
            pair.send(&text(400_000, 100 + seed));
            pair.send(&page[..1_000]);
        }
        // Just inside and just outside of what is remembered.
        for gap in [HISTORY - 1_000, HISTORY + 1_000] {
            pair.send(&page[..5_000]);
            pair.send(&text(gap - 5_000, 77));
            pair.send(&page[..5_000]);
        }
    }

    #[test]
    fn a_client_that_starts_over_follows_after_forgetting() {
        let mut pair = Pair::new();
        let message = text(5_000, 9);
        pair.send(&message);
        pair.compressor.forget();
        pair.decompressor = Decompressor::new();
        pair.send(&message);
        pair.send(&message);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_message_arrives_as_it_was_sent(
            messages in proptest::collection::vec((0_usize..200_000, any::<u64>()), 1..12),
            noise in proptest::collection::vec(any::<u8>(), 0..5_000),
        ) {
            let mut pair = Pair::new();
            for (length, seed) in messages {
                pair.send(&text(length, seed % 5));
                pair.send(&noise);
            }
        }
    }
}
