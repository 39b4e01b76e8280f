//! Inputs that are nearly right.

/// Values that decoders get wrong: ends of ranges, and what lies beside them.
const EDGES: [u8; 9] = [0x00, 0x01, 0x03, 0x7f, 0x80, 0x81, 0xfe, 0xff, 0x20];
/// Longest input: what a parser does with more, it does with less.
const MAX_LENGTH: usize = 4096;

/// Makes inputs out of seeds; the same ones each time.
#[derive(Debug, Clone)]
pub struct Mutator {
    state: u64,
}

impl Mutator {
    /// A mutator whose inputs depend on `number` alone.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self { state: number }
    }

    /// One of `seeds` with one to four changes, or bytes out of nothing when there are none.
    pub fn next_input(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = self.choose(seeds).cloned().unwrap_or_default();
        for _ in 0..=self.below(4) {
            self.change(&mut input, seeds);
        }
        input.truncate(MAX_LENGTH);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        match self.below(8) {
            0 => input.truncate(at),
            1 => input.insert(at, self.byte()),
            2 => {
                // A part of another input: a message where another was expected.
                let other = self.choose(seeds).cloned().unwrap_or_default();
                let from = self.below(other.len() + 1);
                let to = from + self.below(other.len() + 1 - from);
                input.splice(at..at, other[from..to].iter().copied());
            }
            3 => {
                let to = at + self.below(input.len() + 1 - at);
                input.drain(at..to);
            }
            4 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
            5 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = self.byte();
                }
            }
            6 => {
                // Lengths are often two or four bytes wide.
                let edge = EDGES[self.below(EDGES.len())];
                let width = [2, 4][self.below(2)];
                input.iter_mut().skip(at).take(width).for_each(|byte| *byte = edge);
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = EDGES[self.below(EDGES.len())];
                }
            }
        }
    }

    fn choose<'a>(&mut self, seeds: &'a [Vec<u8>]) -> Option<&'a Vec<u8>> {
        let at = self.below(seeds.len().max(1));
        seeds.get(at)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// A number below `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        let limit = limit as u64;
        usize::try_from(self.next() % limit).unwrap_or(0)
    }

    /// SplitMix64: small, and good enough to hit everything.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_gives_the_same_inputs_and_most_are_new() {
        let seeds = vec![b"one".to_vec(), b"another".to_vec()];
        let inputs = |number| {
            let mut mutator = Mutator::new(number);
            (0..200).map(|_| mutator.next_input(&seeds)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        assert!(inputs(1).iter().filter(|input| !seeds.contains(input)).count() > 150);
    }

    #[test]
    fn without_seeds_there_are_inputs_too() {
        let mut mutator = Mutator::new(1);
        assert!((0..100).any(|_| !mutator.next_input(&[]).is_empty()));
    }
}
