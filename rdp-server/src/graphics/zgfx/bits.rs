//! The tokens of an RDP8 bit stream.
//!
//! MS-RDPEGFX 3.1.9.1: literals, copies of the history, and unencoded bytes.

/// Literals in a row from which their plain bytes are smaller than their tokens.
const UNENCODED: usize = 64;

/// Most plain bytes in a row.
const MAX_UNENCODED: usize = 0x7fff;

/// Writes tokens, the first bit in the highest place.
pub(super) struct BitWriter<'a> {
    out: &'a mut Vec<u8>,
    /// Bits not yet written, in the lowest places; never 32 or more between calls.
    pending: u64,
    count: u32,
}

impl<'a> BitWriter<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, pending: 0, count: 0 }
    }

    /// Bytes that are sent as they are.
    pub(super) fn literals(&mut self, bytes: &[u8]) {
        if bytes.len() >= UNENCODED {
            bytes.chunks(MAX_UNENCODED).for_each(|run| self.unencoded(run));
            return;
        }
        for byte in bytes {
            let token = LITERALS[usize::from(*byte)];
            self.push(u64::from(token.bits), u32::from(token.length));
        }
    }

    /// A copy of `length` bytes (3 or more) that stand `distance` bytes back.
    pub(super) fn copy(&mut self, distance: usize, length: usize) {
        let distance = u64::try_from(distance).unwrap_or(u64::MAX);
        let class = DISTANCES.iter().rev().find(|class| class.base <= distance).unwrap_or(&DISTANCES[0]);
        self.push(class.prefix << class.bits | (distance - class.base), class.prefix_length + class.bits);

        let length = u32::try_from(length).unwrap_or(u32::MAX);
        if length == 3 {
            self.push(0, 1);
        } else {
            // As many ones as the number has bits beyond two, a zero, and the number without its highest bit.
            let low_bits = length.ilog2();
            let ones = low_bits - 1;
            self.push((1 << ones) - 1, ones);
            self.push(u64::from(length - (1 << low_bits)), low_bits + 1);
        }
    }

    /// Fills the last byte, and says how much of it is filling.
    pub(super) fn finish(mut self) {
        let filling = self.align();
        self.flush();
        self.out.push(filling);
    }

    /// A distance of zero, a length, and whole bytes.
    fn unencoded(&mut self, bytes: &[u8]) {
        let class = &DISTANCES[0];
        self.push(class.prefix << class.bits, class.prefix_length + class.bits);
        self.push(u64::try_from(bytes.len()).unwrap_or(u64::MAX), 15);
        self.align();
        self.flush();
        self.out.extend_from_slice(bytes);
    }

    fn push(&mut self, bits: u64, length: u32) {
        self.pending = self.pending << length | bits;
        self.count += length;
        if self.count >= 32 {
            self.count -= 32;
            let [.., a, b, c, d] = (self.pending >> self.count).to_be_bytes();
            self.out.extend_from_slice(&[a, b, c, d]);
        }
    }

    /// Fills up to a whole byte with zeros; returns how many.
    fn align(&mut self) -> u8 {
        let filling = self.count.wrapping_neg() % 8;
        self.pending <<= filling;
        self.count += filling;
        filling.to_le_bytes()[0]
    }

    /// Writes all bits, of which there are whole bytes.
    fn flush(&mut self) {
        while self.count > 0 {
            self.count -= 8;
            let [byte, ..] = (self.pending >> self.count).to_le_bytes();
            self.out.push(byte);
        }
    }
}

#[derive(Clone, Copy)]
struct Literal {
    bits: u16,
    length: u8,
}

/// Copies from so far back: a prefix, and bits that are added to `base`.
struct Distance {
    base: u64,
    bits: u32,
    prefix: u64,
    prefix_length: u32,
}

const fn distance(base: u64, bits: u32, prefix: u64, prefix_length: u32) -> Distance {
    Distance { base, bits, prefix, prefix_length }
}

const DISTANCES: [Distance; 11] = [
    distance(0, 5, 0b10001, 5),
    distance(32, 7, 0b10010, 5),
    distance(160, 9, 0b10011, 5),
    distance(672, 10, 0b10100, 5),
    distance(1_696, 12, 0b10101, 5),
    distance(5_792, 14, 0b10_1100, 6),
    distance(22_176, 15, 0b10_1101, 6),
    distance(54_944, 18, 0b101_1100, 7),
    distance(317_088, 20, 0b101_1101, 7),
    distance(1_365_664, 20, 0b1011_1100, 8),
    distance(2_414_240, 21, 0b1011_1101, 8),
];

/// Every byte's token: a zero and the byte, or a short one of its own.
static LITERALS: [Literal; 256] = {
    let mut table = [Literal { bits: 0, length: 9 }; 256];
    let mut byte = 0;
    while byte < 256 {
        let bits = byte as u16;
        table[byte] = Literal { bits, length: 9 };
        byte += 1;
    }
    let mut at = 0;
    while at < SHORT_LITERALS.len() {
        let (byte, bits, length) = SHORT_LITERALS[at];
        table[byte] = Literal { bits, length };
        at += 1;
    }
    table
};

/// Frequent bytes: value, token, length of the token.
const SHORT_LITERALS: [(usize, u16, u8); 25] = [
    (0x00, 0b1_1000, 5),
    (0x01, 0b1_1001, 5),
    (0x02, 0b11_0100, 6),
    (0x03, 0b11_0101, 6),
    (0xff, 0b11_0110, 6),
    (0x04, 0b110_1110, 7),
    (0x05, 0b110_1111, 7),
    (0x06, 0b111_0000, 7),
    (0x07, 0b111_0001, 7),
    (0x08, 0b111_0010, 7),
    (0x09, 0b111_0011, 7),
    (0x0a, 0b111_0100, 7),
    (0x0b, 0b111_0101, 7),
    (0x3a, 0b111_0110, 7),
    (0x3b, 0b111_0111, 7),
    (0x3c, 0b111_1000, 7),
    (0x3d, 0b111_1001, 7),
    (0x3e, 0b111_1010, 7),
    (0x3f, 0b111_1011, 7),
    (0x40, 0b111_1100, 7),
    (0x80, 0b111_1101, 7),
    (0x0c, 0b1111_1100, 8),
    (0x38, 0b1111_1101, 8),
    (0x39, 0b1111_1110, 8),
    (0x66, 0b1111_1111, 8),
];
