//! Memory that another process maps too: the only `unsafe` of this crate.
//!
//! What lies there can change at any time, so no reference to bytes is ever formed: a [`Mapping`] is reached through
//! atomics, which is how Rust says "others write here". That those others are in another process, or in a guest,
//! makes no difference to the processor. Long copies are a loop of instructions, since the compiler makes single moves of
//! atomics; to Rust it is one more program that reads and writes there.
//!
//! An x86-64 guest and its host agree on order and size of memory accesses, and see each other's caches. Where either is
//! something else that is not so (an arm64 guest may map the device uncached where the host has it cached), and
//! mapping is refused: the stream needs no memory.

#![expect(unsafe_code, reason = "maps memory that other processes share, and hands out atomics in it")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::layout::{MAX_REGION, PAGE};
use super::memory::{SharedMemory, WORD, check_aligned, check_range, split, store_words};

/// A file's memory, shared with whoever else maps it.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<u8>,
    size: usize,
}

// SAFETY: the memory stays mapped as long as the value lives, and belongs to no thread.
unsafe impl Send for Mapping {}
// SAFETY: as above, and it is reached through atomics only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Creates memory of `size` bytes, zero, and maps it. The file is for whoever shall map it too: QEMU, another process.
    ///
    /// Its size is sealed: nobody who has the file can cut it and so have us killed by `SIGBUS`.
    ///
    /// # Errors
    ///
    /// When `size` is not a multiple of the page's, or the system refuses.
    pub fn create(name: &str, size: usize) -> io::Result<(Self, OwnedFd)> {
        check_size(size)?;
        let memfd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&memfd, size as u64)?;
        fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Self::new(&memfd, size)?, memfd))
    }

    /// Maps the first `size` bytes of a memfd, a file, or a PCI device's memory (`resource2` in sysfs).
    ///
    /// The file must stay that long as long as it is mapped; a device's memory and a sealed memfd do. Otherwise an access
    /// ends the process with `SIGBUS`.
    ///
    /// # Errors
    ///
    /// When `size` is not a multiple of the page's, the file is shorter, the machine is no x86-64, or the system refuses.
    pub fn new(file: impl AsFd, size: usize) -> io::Result<Self> {
        if !cfg!(target_arch = "x86_64") {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "memory is shared with guests on x86-64 only"));
        }
        check_size(size)?;
        let there = fstat(&file)?.st_size;
        if usize::try_from(there).unwrap_or(0) < size {
            return Err(invalid(format!("the file has {there} bytes, {size} are to be mapped")));
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that is there.
        let address =
            unsafe { mmap(ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0)? };
        let address = NonNull::new(address.cast()).ok_or_else(|| invalid("mapped at address 0".to_owned()))?;
        Ok(Self { address, size })
    }

    /// The word of type `T` at `at`.
    #[inline]
    fn word<T: Atomic>(&self, at: usize) -> &T {
        check_aligned(at, size_of::<T>());
        &self.cells::<T>(at, 1)[0]
    }

    /// `count` cells of type `T` from `at` on, which must be aligned for `T`.
    #[inline]
    fn cells<T: Atomic>(&self, at: usize, count: usize) -> &[T] {
        check_range(self.size, at, count * size_of::<T>());
        debug_assert!(at.is_multiple_of(align_of::<T>()));
        // SAFETY: the range is inside the mapping, which lives as long as `self`, begins at a page's start, and is
        // readable and writable. `T` is an atomic, so others may write there while the reference lives, and any bytes
        // are a value of it. A range in another size of atomic may be in use at the same time (both ends of a ring in
        // one process): the machine allows that, and what is read then is decided upon a copy.
        unsafe { slice::from_raw_parts(self.address.add(at).cast().as_ptr(), count) }
    }

    /// Where the `count` bytes at `at` begin.
    #[inline]
    fn bytes(&self, at: usize, count: usize) -> *mut u8 {
        check_range(self.size, at, count);
        // SAFETY: the offset is inside the mapping.
        unsafe { self.address.add(at).as_ptr() }
    }

    /// Fills `bytes` from `at` on.
    #[inline]
    fn copy_out(&self, at: usize, bytes: &mut [MaybeUninit<u8>]) {
        let (blocks, rest) = bytes.split_at_mut(whole_blocks(bytes.len()));
        // SAFETY: both ranges are as long as `blocks`, which is ours alone.
        unsafe { copy_blocks(self.bytes(at, blocks.len()), blocks.as_mut_ptr().cast(), blocks.len()) };
        let at = at + blocks.len();
        let (head, (first, words), tail) = split(at, rest.len());
        let (before, rest) = rest.split_at_mut(head);
        let (within, after) = rest.split_at_mut(words * WORD);
        load_bytes(self.cells(at, head), before);
        for (word, bytes) in self.cells::<AtomicU64>(first * WORD, words).iter().zip(within.chunks_exact_mut(WORD)) {
            bytes.write_copy_of_slice(&word.load(Relaxed).to_le_bytes());
        }
        load_bytes(self.cells((first + words) * WORD, tail), after);
    }

    /// Copies `bytes` to `at`.
    #[inline]
    fn copy_in(&self, at: usize, bytes: &[u8]) {
        let (blocks, rest) = bytes.split_at(whole_blocks(bytes.len()));
        // SAFETY: both ranges are as long as `blocks`; the one that is written to is no Rust value's.
        unsafe { copy_blocks(blocks.as_ptr(), self.bytes(at, blocks.len()), blocks.len()) };
        let at = at + blocks.len();
        let (head, (first, words), tail) = split(at, rest.len());
        let (before, rest) = rest.split_at(head);
        let (within, after) = rest.split_at(words * WORD);
        store_bytes(self.cells(at, head), before);
        store_words(self.cells(first * WORD, words), within);
        store_bytes(self.cells((first + words) * WORD, tail), after);
    }
}

impl SharedMemory for Mapping {
    fn size(&self) -> usize {
        self.size
    }

    #[inline]
    fn load_u32(&self, at: usize, ordering: Ordering) -> u32 {
        self.word::<AtomicU32>(at).load(ordering)
    }

    #[inline]
    fn store_u32(&self, at: usize, value: u32, ordering: Ordering) {
        self.word::<AtomicU32>(at).store(value, ordering);
    }

    #[inline]
    fn load_u64(&self, at: usize, ordering: Ordering) -> u64 {
        self.word::<AtomicU64>(at).load(ordering)
    }

    #[inline]
    fn store_u64(&self, at: usize, value: u64, ordering: Ordering) {
        self.word::<AtomicU64>(at).store(value, ordering);
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        check_range(self.size, at, bytes.len());
        // SAFETY: bytes that have values may be seen as bytes that may have none, as long as only values are written
        // there, which is all that `copy_out` does.
        let bytes = unsafe { slice::from_raw_parts_mut(bytes.as_mut_ptr().cast::<MaybeUninit<u8>>(), bytes.len()) };
        self.copy_out(at, bytes);
    }

    fn append(&self, at: usize, count: usize, bytes: &mut Vec<u8>) {
        check_range(self.size, at, count);
        bytes.reserve(count);
        self.copy_out(at, &mut bytes.spare_capacity_mut()[..count]);
        // SAFETY: `count` more bytes fit, and `copy_out` has given all of them values.
        unsafe { bytes.set_len(bytes.len() + count) };
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        check_range(self.size, at, bytes.len());
        self.copy_in(at, bytes);
    }

    /// The compiler may make an instruction with a lock prefix of its own fence, which orders everything on a processor.
    /// It does not in a guest with one emulated processor: QEMU makes a load and a store of it, since nobody but the
    /// devices could see a difference, and lets the host's processor put the one before the other. `mfence` is kept.
    #[inline]
    fn fence(&self) {
        fence(Ordering::SeqCst);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has the instruction.
        unsafe {
            std::arch::x86_64::_mm_mfence();
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the one that was mapped, and nobody can reach it any more.
        let unmapped = unsafe { munmap(self.address.as_ptr().cast(), self.size) };
        debug_assert!(unmapped.is_ok(), "a mapping can be unmapped once");
    }
}

/// Types that others may write to while we hold a reference, and that any bytes are a value of.
trait Atomic {}

impl Atomic for AtomicU8 {}
impl Atomic for AtomicU32 {}
impl Atomic for AtomicU64 {}

/// Bytes that are copied at a time.
const BLOCK: usize = 64;

/// How many of `count` bytes are whole blocks.
const fn whole_blocks(count: usize) -> usize {
    count / BLOCK * BLOCK
}

/// Copies whole blocks between shared and private memory: at the speed of `memcpy` for every length and alignment, which
/// single moves of 8 bytes do not reach, and `rep movsb` not everywhere (a tenth of it where the target lies a few bytes
/// behind a multiple of a page from the source).
///
/// # Safety
///
/// `count` bytes at `from` can be read and at `to` written, and the two do not overlap. Others may write the shared one
/// meanwhile: each byte is then as it was or as it became.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn copy_blocks(from: *const u8, to: *mut u8, count: usize) {
    if count == 0 {
        return;
    }
    // SAFETY: this reads and writes what the caller allows and nothing else; it does what a loop of relaxed atomics does.
    unsafe {
        std::arch::asm!(
            "2:",
            "movups {a}, [{from} + {at}]",
            "movups {b}, [{from} + {at} + 16]",
            "movups {c}, [{from} + {at} + 32]",
            "movups {d}, [{from} + {at} + 48]",
            "movups [{to} + {at}], {a}",
            "movups [{to} + {at} + 16], {b}",
            "movups [{to} + {at} + 32], {c}",
            "movups [{to} + {at} + 48], {d}",
            "add {at}, 64",
            "cmp {at}, {count}",
            "jb 2b",
            from = in(reg) from,
            to = in(reg) to,
            count = in(reg) count,
            at = inout(reg) 0usize => _,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack),
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_blocks(_: *const u8, _: *mut u8, count: usize) {
    assert_eq!(count, 0, "nothing is mapped here");
}

#[inline]
fn load_bytes(cells: &[AtomicU8], bytes: &mut [MaybeUninit<u8>]) {
    for (cell, byte) in cells.iter().zip(bytes) {
        byte.write(cell.load(Relaxed));
    }
}

#[inline]
fn store_bytes(cells: &[AtomicU8], bytes: &[u8]) {
    for (cell, byte) in cells.iter().zip(bytes) {
        cell.store(*byte, Relaxed);
    }
}

fn check_size(size: usize) -> io::Result<()> {
    if size == 0 || !size.is_multiple_of(PAGE) || size > MAX_REGION {
        return Err(invalid(format!("shared memory cannot have {size} bytes")));
    }
    Ok(())
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::atomic::Ordering::{Acquire, Release};

    use proptest::prelude::*;

    use super::*;

    fn memory() -> Mapping {
        Mapping::create("test", PAGE).expect("mapped").0
    }

    #[test]
    fn what_one_writes_the_other_reads() {
        let (one, memfd) = Mapping::create("test", 4 * PAGE).expect("mapped");
        let other = Mapping::new(&memfd, 4 * PAGE).expect("mapped twice");
        one.write(PAGE - 3, b"hello");
        one.store_u32(8, 7, Release);
        one.store_u64(16, 8, Release);
        let mut bytes = [0; 5];
        other.read(PAGE - 3, &mut bytes);
        assert_eq!(&bytes, b"hello");
        assert_eq!((other.load_u32(8, Acquire), other.load_u64(16, Acquire)), (7, 8));
    }

    #[test]
    fn a_part_of_a_file_can_be_mapped_and_more_than_it_cannot() {
        let (_, memfd) = Mapping::create("test", 2 * PAGE).expect("mapped");
        assert_eq!(Mapping::new(&memfd, PAGE).expect("mapped").size(), PAGE);
        assert!(Mapping::new(&memfd, 3 * PAGE).is_err());
        assert!(Mapping::new(&memfd, 0).is_err());
        assert!(Mapping::new(&memfd, PAGE + 8).is_err());
        assert!(Mapping::new(File::open("/proc/self/exe").expect("there"), PAGE).is_err(), "not writable");
    }

    #[test]
    fn the_size_of_created_memory_is_sealed() {
        let (_, memfd) = Mapping::create("test", 2 * PAGE).expect("mapped");
        assert!(ftruncate(&memfd, 0).is_err());
        assert!(ftruncate(&memfd, 1 << 20).is_err());
        assert!(fcntl_add_seals(&memfd, SealFlags::WRITE).is_err());
    }

    #[test]
    #[should_panic(expected = "2 bytes at 0xfff are outside of shared memory of 0x1000 bytes")]
    fn nothing_is_copied_behind_the_end() {
        memory().read(PAGE - 1, &mut [0; 2]);
    }

    #[test]
    #[should_panic(expected = "are outside of shared memory")]
    fn no_word_is_behind_the_end() {
        memory().store_u64(usize::MAX - 7, 1, Release);
    }

    #[test]
    #[should_panic(expected = "a word of 8 bytes cannot lie at 0x4")]
    fn words_are_aligned() {
        memory().load_u64(4, Acquire);
    }

    proptest! {
        #[test]
        fn copies_touch_what_they_should_and_nothing_else(
            at in 0usize..PAGE - 300,
            bytes in proptest::collection::vec(1u8.., 0..300),
        ) {
            super::super::memory::tests::copies(&memory(), at, &bytes);
        }
    }
}
