//! Access to memory that another process writes at the same time.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, Ordering};

/// Memory that both ends see. Offsets and sizes are in bytes.
///
/// Copies are atomic word by word and not as a whole: while the peer writes, a copy may be partly old and partly new, but
/// it is made once, and what is decided about the copy holds.
///
/// # Panics
///
/// All accesses panic outside of the memory, and words where they are not aligned. Whoever takes an offset from the peer
/// has checked it before, so this is our own mistake.
pub trait SharedMemory: Send + Sync {
    /// How much there is.
    fn size(&self) -> usize;

    /// The word at `at`, a multiple of 4.
    fn load_u32(&self, at: usize, ordering: Ordering) -> u32;

    /// Sets the word at `at`, a multiple of 4.
    fn store_u32(&self, at: usize, value: u32, ordering: Ordering);

    /// The word at `at`, a multiple of 8.
    fn load_u64(&self, at: usize, ordering: Ordering) -> u64;

    /// Sets the word at `at`, a multiple of 8.
    fn store_u64(&self, at: usize, value: u64, ordering: Ordering);

    /// Copies what lies from `at` on into `bytes`. Relaxed.
    fn read(&self, at: usize, bytes: &mut [u8]);

    /// Copies the `count` bytes from `at` on to the end of `bytes`. Relaxed.
    fn append(&self, at: usize, count: usize, bytes: &mut Vec<u8>) {
        check_range(self.size(), at, count);
        let start = bytes.len();
        bytes.resize(start + count, 0);
        self.read(at, &mut bytes[start..]);
    }

    /// Copies `bytes` to `at`. Relaxed.
    fn write(&self, at: usize, bytes: &[u8]);

    /// A sequentially consistent fence between the accesses before and after it.
    fn fence(&self);
}

impl<M: SharedMemory> SharedMemory for Arc<M> {
    fn size(&self) -> usize {
        M::size(self)
    }

    fn load_u32(&self, at: usize, ordering: Ordering) -> u32 {
        M::load_u32(self, at, ordering)
    }

    fn store_u32(&self, at: usize, value: u32, ordering: Ordering) {
        M::store_u32(self, at, value, ordering);
    }

    fn load_u64(&self, at: usize, ordering: Ordering) -> u64 {
        M::load_u64(self, at, ordering)
    }

    fn store_u64(&self, at: usize, value: u64, ordering: Ordering) {
        M::store_u64(self, at, value, ordering);
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        M::read(self, at, bytes);
    }

    fn append(&self, at: usize, count: usize, bytes: &mut Vec<u8>) {
        M::append(self, at, count, bytes);
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        M::write(self, at, bytes);
    }

    fn fence(&self) {
        M::fence(self);
    }
}

/// Bytes of a word; copies go word by word.
pub(super) const WORD: usize = size_of::<u64>();

/// Makes sure that `count` bytes at `at` lie within memory of `size` bytes.
#[inline]
pub(super) fn check_range(size: usize, at: usize, count: usize) {
    let fits = at <= size && count <= size - at;
    assert!(fits, "{count} bytes at {at:#x} are outside of shared memory of {size:#x} bytes");
}

/// Makes sure that `at` is a multiple of `align`.
#[inline]
pub(super) fn check_aligned(at: usize, align: usize) {
    assert!(at.is_multiple_of(align), "a word of {align} bytes cannot lie at {at:#x}");
}

/// Where a copy of `count` bytes at `at` touches words: the bytes before the first whole word, the whole words as
/// (first, how many), and the bytes after them.
#[inline]
pub(super) fn split(at: usize, count: usize) -> (usize, (usize, usize), usize) {
    let head = (at.next_multiple_of(WORD) - at).min(count);
    let words = (count - head) / WORD;
    (head, ((at + head) / WORD, words), count - head - words * WORD)
}

/// Copies words out.
#[inline]
pub(super) fn load_words(words: &[AtomicU64], bytes: &mut [u8]) {
    for (word, bytes) in words.iter().zip(bytes.chunks_exact_mut(WORD)) {
        bytes.copy_from_slice(&word.load(Relaxed).to_le_bytes());
    }
}

/// Copies words in.
#[inline]
pub(super) fn store_words(words: &[AtomicU64], bytes: &[u8]) {
    for (word, bytes) in words.iter().zip(bytes.chunks_exact(WORD)) {
        let mut value = [0; WORD];
        value.copy_from_slice(bytes);
        word.store(u64::from_le_bytes(value), Relaxed);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What every kind of memory must do: `bytes` written at `at` are there, and all around is as it was.
    pub(in crate::region) fn copies(memory: &impl SharedMemory, at: usize, bytes: &[u8]) {
        let mut expected = vec![0; memory.size()];
        memory.write(0, &expected);
        memory.write(at, bytes);
        expected[at..at + bytes.len()].copy_from_slice(bytes);
        let mut all = vec![0xAA; memory.size()];
        memory.read(0, &mut all);
        assert_eq!(all, expected);
        let mut part = vec![0xAA; bytes.len()];
        memory.read(at, &mut part);
        assert_eq!(part, bytes);
        memory.append(at, bytes.len(), &mut part);
        assert_eq!(part, bytes.repeat(2));
    }

    #[test]
    fn a_copy_is_edges_and_words() {
        assert_eq!(split(0, 16), (0, (0, 2), 0));
        assert_eq!(split(3, 2), (2, (0, 0), 0));
        assert_eq!(split(3, 22), (5, (1, 2), 1));
    }
}
