//! Shared memory within one process.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::memory::{SharedMemory, WORD, check_aligned, check_range, load_words, split, store_words};

/// Memory for two ends in one process, zero at first: tests and oracles stand on it.
#[derive(Debug)]
pub struct HeapMemory {
    words: Box<[AtomicU64]>,
}

impl HeapMemory {
    /// At least `size` bytes, in whole words of 8.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self { words: (0..size.div_ceil(WORD)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Copies the bytes of one word, from its `offset`th on.
    fn load_part(&self, index: usize, offset: usize, bytes: &mut [u8]) {
        let word = self.words[index].load(Relaxed).to_le_bytes();
        bytes.copy_from_slice(&word[offset..offset + bytes.len()]);
    }

    /// Replaces bytes of one word, from its `offset`th on, and leaves the others as they are.
    fn store_part(&self, index: usize, offset: usize, bytes: &[u8], ordering: Ordering) {
        let replace = |word: u64| {
            let mut word = word.to_le_bytes();
            word[offset..offset + bytes.len()].copy_from_slice(bytes);
            Some(u64::from_le_bytes(word))
        };
        let replaced = self.words[index].fetch_update(ordering, Relaxed, replace);
        debug_assert!(replaced.is_ok(), "a word can always be replaced");
    }
}

impl SharedMemory for HeapMemory {
    fn size(&self) -> usize {
        self.words.len() * WORD
    }

    fn load_u32(&self, at: usize, ordering: Ordering) -> u32 {
        check_aligned(at, size_of::<u32>());
        check_range(self.size(), at, size_of::<u32>());
        let word = self.words[at / WORD].load(ordering);
        let half = if at.is_multiple_of(WORD) { word } else { word >> 32 };
        (half & u64::from(u32::MAX)) as u32
    }

    fn store_u32(&self, at: usize, value: u32, ordering: Ordering) {
        check_aligned(at, size_of::<u32>());
        check_range(self.size(), at, size_of::<u32>());
        self.store_part(at / WORD, at % WORD, &value.to_le_bytes(), ordering);
    }

    fn load_u64(&self, at: usize, ordering: Ordering) -> u64 {
        check_aligned(at, WORD);
        check_range(self.size(), at, WORD);
        self.words[at / WORD].load(ordering)
    }

    fn store_u64(&self, at: usize, value: u64, ordering: Ordering) {
        check_aligned(at, WORD);
        check_range(self.size(), at, WORD);
        self.words[at / WORD].store(value, ordering);
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        check_range(self.size(), at, bytes.len());
        let (head, (first, words), tail) = split(at, bytes.len());
        let (bytes_before, rest) = bytes.split_at_mut(head);
        let (bytes_within, bytes_after) = rest.split_at_mut(words * WORD);
        if head > 0 {
            self.load_part(at / WORD, at % WORD, bytes_before);
        }
        load_words(&self.words[first..first + words], bytes_within);
        if tail > 0 {
            self.load_part(first + words, 0, bytes_after);
        }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        check_range(self.size(), at, bytes.len());
        let (head, (first, words), tail) = split(at, bytes.len());
        let (bytes_before, rest) = bytes.split_at(head);
        let (bytes_within, bytes_after) = rest.split_at(words * WORD);
        if head > 0 {
            self.store_part(at / WORD, at % WORD, bytes_before, Relaxed);
        }
        store_words(&self.words[first..first + words], bytes_within);
        if tail > 0 {
            self.store_part(first + words, 0, bytes_after, Relaxed);
        }
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_word_is_two_halves_the_lower_first() {
        let memory = HeapMemory::new(16);
        memory.store_u64(8, 0x1111_1111_2222_2222, Ordering::Release);
        assert_eq!(memory.load_u32(8, Ordering::Acquire), 0x2222_2222);
        memory.store_u32(12, 3, Ordering::Release);
        assert_eq!(memory.load_u64(8, Ordering::Acquire), 0x0000_0003_2222_2222);
    }

    #[test]
    #[should_panic(expected = "8 bytes at 0x10 are outside of shared memory of 0x10 bytes")]
    fn nothing_lies_behind_the_end() {
        HeapMemory::new(16).load_u64(16, Relaxed);
    }

    #[test]
    #[should_panic(expected = "a word of 4 bytes cannot lie at 0x2")]
    fn words_are_aligned() {
        HeapMemory::new(16).load_u32(2, Relaxed);
    }

    proptest! {
        #[test]
        fn copies_touch_what_they_should_and_nothing_else(at in 0usize..40, bytes in proptest::collection::vec(1u8.., 0..40)) {
            let memory = HeapMemory::new(80);
            super::super::memory::tests::copies(&memory, at, &bytes);
        }
    }
}
