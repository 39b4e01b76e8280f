//! RLGR: run-length and Golomb-Rice coding that adapts as it goes.
//!
//! MS-RDPRFX 3.1.8.1.7.3 (pseudocode of both modes).

use ironrdp_pdu::codecs::rfx::EntropyAlgorithm;

/// Parameters are kept in eighths.
const SCALE: u32 = 3;

/// Largest parameter.
const MAX: u32 = 80;

/// How the run parameter follows what was seen: a whole run, the end of a run, a zero, anything else.
const UP_RUN: u32 = 4;
const DOWN_RUN: u32 = 6;
const UP_ZERO: u32 = 3;
const DOWN_VALUE: u32 = 3;

/// Appends the coded values.
pub(super) fn encode(mode: EntropyAlgorithm, values: &[i16], out: &mut Vec<u8>) {
    let mut coder = Coder { bits: BitWriter::new(out), run: 1 << SCALE, rice: 1 << SCALE };
    let mut rest = values;
    while !rest.is_empty() {
        rest = match mode {
            _ if coder.run >> SCALE > 0 => coder.run_and_value(rest),
            EntropyAlgorithm::Rlgr1 => coder.value(rest),
            EntropyAlgorithm::Rlgr3 => coder.pair(rest),
        };
    }
    coder.bits.finish();
}

struct Coder<'a> {
    bits: BitWriter<'a>,
    /// Adapts to the length of runs of zeros.
    run: u32,
    /// Adapts to the size of values.
    rice: u32,
}

impl Coder<'_> {
    /// Zeros, and the value after them, unless they are the last.
    fn run_and_value<'v>(&mut self, values: &'v [i16]) -> &'v [i16] {
        let zeros = count_zeros(values);
        let (_, rest) = values.split_at(zeros);
        let mut zeros = u32::try_from(zeros).unwrap_or(u32::MAX);
        let mut k = self.run >> SCALE;
        while zeros >= 1 << k {
            self.bits.push(0, 1);
            zeros -= 1 << k;
            self.run = (self.run + UP_RUN).min(MAX);
            k = self.run >> SCALE;
        }
        self.bits.push(1, 1);
        self.bits.push(zeros, k);
        let rest = match rest {
            [] => rest,
            [value, rest @ ..] => {
                self.bits.push(u32::from(*value < 0), 1);
                self.rice(u32::from(value.unsigned_abs()) - 1);
                rest
            }
        };
        self.run = self.run.saturating_sub(DOWN_RUN);
        rest
    }

    fn value<'v>(&mut self, values: &'v [i16]) -> &'v [i16] {
        let [value, rest @ ..] = values else { return values };
        let folded = fold(*value);
        self.rice(folded);
        self.run = if folded == 0 { (self.run + UP_ZERO).min(MAX) } else { self.run.saturating_sub(DOWN_VALUE) };
        rest
    }

    /// Two values as their sum and the first.
    fn pair<'v>(&mut self, values: &'v [i16]) -> &'v [i16] {
        let (first, second, rest) = match values {
            [first, second, rest @ ..] => (fold(*first), fold(*second), rest),
            [first] => (fold(*first), 0, &[][..]),
            [] => return values,
        };
        let sum = first + second;
        self.rice(sum);
        self.bits.push(first, u32::BITS - sum.leading_zeros());
        if first != 0 && second != 0 {
            self.run = self.run.saturating_sub(2 * DOWN_VALUE);
        } else if sum == 0 {
            self.run = (self.run + 2 * UP_ZERO).min(MAX);
        }
        rest
    }

    /// A number in Golomb-Rice form.
    fn rice(&mut self, value: u32) {
        let k = self.rice >> SCALE;
        let high = value >> k;
        let mut ones = high;
        while ones > 0 {
            let some = ones.min(16);
            self.bits.push((1 << some) - 1, some);
            ones -= some;
        }
        self.bits.push(0, 1);
        self.bits.push(value & ((1 << k) - 1), k);
        match high {
            0 => self.rice = self.rice.saturating_sub(2),
            1 => {}
            _ => self.rice = (self.rice + high).min(MAX),
        }
    }
}

/// Twice the size, less one for negative values.
fn fold(value: i16) -> u32 {
    u32::from(value.unsigned_abs()) * 2 - u32::from(value < 0)
}

/// Length of the run of zeros at the beginning.
fn count_zeros(values: &[i16]) -> usize {
    const BLOCK: usize = 16;
    let blocks = values.chunks_exact(BLOCK).take_while(|block| block.iter().fold(0, |all, value| all | value) == 0);
    let whole = blocks.count() * BLOCK;
    whole + values[whole..].iter().take_while(|value| **value == 0).count()
}

/// Writes bits, the first one in the highest place.
struct BitWriter<'a> {
    out: &'a mut Vec<u8>,
    /// Bits not yet written, in the lowest places; fewer than 32 between calls.
    pending: u64,
    count: u32,
}

impl<'a> BitWriter<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, pending: 0, count: 0 }
    }

    /// Writes up to 32 bits.
    fn push(&mut self, bits: u32, length: u32) {
        self.pending = self.pending << length | u64::from(bits);
        self.count += length;
        if self.count >= 32 {
            self.count -= 32;
            let [.., a, b, c, d] = (self.pending >> self.count).to_be_bytes();
            self.out.extend_from_slice(&[a, b, c, d]);
        }
    }

    /// Writes what is left, filled with zeros to a whole byte.
    fn finish(self) {
        let filling = self.count.wrapping_neg() % 8;
        let bytes = (self.pending << filling).to_be_bytes();
        let first = bytes.len() - usize::try_from((self.count + filling) / 8).unwrap_or(0);
        self.out.extend_from_slice(&bytes[first..]);
    }
}

#[cfg(test)]
mod tests {
    use ironrdp_graphics::rlgr;
    use proptest::prelude::*;

    use super::*;

    fn check(mode: EntropyAlgorithm, values: &[i16]) {
        let mut coded = vec![0xaa];
        encode(mode, values, &mut coded);
        let mut expected = vec![0; 1 << 18];
        let length = rlgr::encode(mode, values, &mut expected).unwrap();
        assert_eq!(coded[1..], expected[..length]);
        let mut decoded = vec![0; values.len()];
        rlgr::decode(mode, &coded[1..], &mut decoded).unwrap();
        assert_eq!(decoded, values);
    }

    fn values() -> impl Strategy<Value = Vec<i16>> {
        let value = prop_oneof![6 => Just(0_i16), 3 => -3..4_i16, 1 => -600..600_i16];
        let runs = proptest::collection::vec((value, 1_usize..40), 1..80);
        runs.prop_map(|runs| runs.into_iter().flat_map(|(value, length)| vec![value; length]).collect())
    }

    proptest! {
        #[test]
        fn both_modes_agree_with_another_encoder_and_decode(values in values()) {
            check(EntropyAlgorithm::Rlgr1, &values);
            check(EntropyAlgorithm::Rlgr3, &values);
        }
    }

    #[test]
    fn nothing_but_zeros_is_a_few_bits() {
        let mut coded = Vec::new();
        encode(EntropyAlgorithm::Rlgr3, &[0; 4096], &mut coded);
        assert!(coded.len() < 8);
        check(EntropyAlgorithm::Rlgr3, &[0; 4096]);
    }
}
