//! A read-only look into memory of another process: the only `unsafe` of this crate.
//!
//! QEMU shares each picture as a memfd that it writes while we read. A [`Mapping`] hands out copies only, never
//! a reference into the memory, since what lies there can change under any reference.
//!
//! QEMU does not seal the memfd against shrinking (its `qemu_memfd_alloc` is given no seals), so a QEMU that a guest
//! has taken over could cut it and have us killed by `SIGBUS` in the middle of a copy. `fault` turns that
//! into zeroes.

#![expect(unsafe_code, reason = "maps memory that another process shares, and survives its disappearance")]

mod fault;

use std::io;
use std::os::fd::AsFd;
use std::ptr;

use rustix::fs::{FileType, fstat, fstatfs};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Largest picture that is mapped, in bytes: 16384 × 16384 pixels of 4.
const MAX_LENGTH: usize = 1 << 30;
/// Every memfd lies on this file system unless it has huge pages (statfs(2)).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Memory of another process, readable.
#[derive(Debug)]
pub(super) struct Mapping {
    address: *const u8,
    length: usize,
    /// Ends before the memory is unmapped.
    guard: Option<fault::Guard>,
}

// SAFETY: the address is used for reading only, of memory that stays mapped as long as the value lives.
unsafe impl Send for Mapping {}
// SAFETY: as above; any number of threads may read.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `length` bytes of a memfd.
    pub(super) fn new(memfd: impl AsFd, length: usize) -> io::Result<Self> {
        check(&memfd, length)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that is there.
        let address = unsafe { mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, memfd, 0)? };
        let mut mapping = Self { address: address.cast(), length, guard: None };
        // On failure the value's end unmaps again.
        mapping.guard = Some(fault::Guard::new(address.addr(), length)?);
        Ok(mapping)
    }

    /// Copies from `offset` on what fills `into`.
    ///
    /// # Panics
    ///
    /// When the mapping ends before.
    pub(super) fn read(&self, offset: usize, into: &mut [u8]) {
        let end = offset.checked_add(into.len());
        assert!(end.is_some_and(|end| end <= self.length), "a copy must stay inside its mapping");
        // SAFETY: the range is inside the mapping, which lives as long as `self`; `into` is ours alone and cannot
        // overlap it. That QEMU writes meanwhile only makes the bytes old or new; that it cuts the file is what
        // the guard is for.
        unsafe { ptr::copy_nonoverlapping(self.address.add(offset), into.as_mut_ptr(), into.len()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: the range is the one that was mapped, and nobody can read it any more.
        let unmapped = unsafe { munmap(self.address.cast_mut().cast(), self.length) };
        debug_assert!(unmapped.is_ok(), "a mapping can be unmapped once");
    }
}

/// Refuses what is not plain shared memory of at least `length` bytes: a file of another kind could make each
/// access wait for somebody.
fn check(memfd: &impl AsFd, length: usize) -> io::Result<()> {
    let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    if length == 0 || length > MAX_LENGTH {
        return refuse("a picture of impossible size");
    }
    let stat = fstat(memfd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || fstatfs(memfd)?.f_type != TMPFS_MAGIC {
        return refuse("not a memfd with pages of the usual size");
    }
    if usize::try_from(stat.st_size).unwrap_or(0) < length {
        return refuse("a memfd that is smaller than its picture");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::os::fd::OwnedFd;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    fn memfd(bytes: &[u8]) -> OwnedFd {
        let mut file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).expect("memfd"));
        file.write_all(bytes).expect("written");
        file.into()
    }

    #[test]
    fn what_another_writes_is_read() {
        let memfd = memfd(b"0123456789");
        let mapping = Mapping::new(&memfd, 10).expect("mapped");
        let mut bytes = [0; 4];
        mapping.read(3, &mut bytes);
        assert_eq!(&bytes, b"3456");
        mapping.read(6, &mut bytes);
        assert_eq!(&bytes, b"6789");
    }

    #[test]
    #[should_panic(expected = "inside its mapping")]
    fn nothing_is_read_behind_the_end() {
        Mapping::new(memfd(b"0123456789"), 10).expect("mapped").read(7, &mut [0; 4]);
    }

    #[test]
    fn a_file_that_is_cut_reads_as_zeroes() {
        let pages = vec![7; 64 * 1024];
        let memfd = memfd(&pages);
        let mapping = Mapping::new(&memfd, pages.len()).expect("mapped");
        ftruncate(&memfd, 4096).expect("cut");
        let mut copy = vec![1; pages.len()];
        mapping.read(0, &mut copy);
        assert!(copy[..4096].iter().all(|byte| *byte == 7));
        assert!(copy[4096..].iter().all(|byte| *byte == 0));
        mapping.read(0, &mut copy);
    }

    #[test]
    fn what_is_no_memfd_or_too_small_is_refused() {
        assert!(Mapping::new(memfd(b"short"), 6).is_err());
        assert!(Mapping::new(memfd(b""), 0).is_err());
        assert!(Mapping::new(memfd(b"x"), MAX_LENGTH + 1).is_err());
        assert!(Mapping::new(File::open("/dev/zero").expect("there"), 10).is_err());
        assert!(Mapping::new(File::open("/proc/self/exe").expect("there"), 10).is_err());
    }
}
