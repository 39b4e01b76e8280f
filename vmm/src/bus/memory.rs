//! The memory that a VM and the host's end of its bus both see.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};

use crate::definition::BUS_MEMORY_MIB;
use crate::engine::{BUS_MEMORY_FD, BUS_MEMORY_PCI_SLOT};

const MIB: u64 = 1024 * 1024;
/// Whatever QEMU does with its descriptor, what is mapped here never ends before its end.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Memory that a VM's guest finds in a PCI device, as a file to map. Cheap to clone.
///
/// It cannot be made shorter, so that a mapping of all of it stays valid. The guest, and QEMU, may write any of it at
/// any time.
///
/// A word that host and guest both change, even with locked instructions, loses changes: translating for one virtual
/// processor QEMU (10.0.2) leaves the locks out. Of 3 million additions by a guest, while the host added too, 1.7 million
/// got lost, and none with two processors. So each word has one writer (`docs/bus.md` 7.1).
#[derive(Debug, Clone)]
pub struct BusMemory {
    file: Arc<OwnedFd>,
    size: u64,
}

impl BusMemory {
    /// New memory, all zero.
    pub(crate) fn create(mib: u32) -> io::Result<Self> {
        let size = u64::from(mib) * MIB;
        let file = memfd_create("fanlight-bus", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, size)?;
        fcntl_add_seals(&file, SEALS)?;
        Ok(Self { file: Arc::new(file), size })
    }

    /// The memory that a QEMU was started with, if it was with any. `pid` must be known to be a QEMU of ours.
    ///
    /// What is believed of that process is nothing but what the kernel says of the file: sealed, and of a possible size.
    pub(crate) fn of_process(pid: u32) -> io::Result<Option<Self>> {
        let path = format!("/proc/{pid}/fd/{BUS_MEMORY_FD}");
        let file = match rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Files that are no memory cannot be sealed.
        if !fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SEALS)) {
            return Ok(None);
        }
        let size = u64::try_from(fstat(&file)?.st_size).unwrap_or(0);
        let mib = u32::try_from(size / MIB).unwrap_or(0);
        let possible = size.is_power_of_two() && BUS_MEMORY_MIB.contains(&mib);
        Ok(possible.then(|| Self { file: Arc::new(file), size }))
    }

    /// How much it is, in bytes: a power of two.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where the guest finds it, unless its system numbers buses by itself: bus << 8 | device << 3 | function.
    #[must_use]
    pub fn pci_slot(&self) -> u16 {
        BUS_MEMORY_PCI_SLOT
    }
}

impl AsFd for BusMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_size_asked_for_and_keeps_it() {
        let memory = BusMemory::create(2).expect("memory");
        assert_eq!(memory.size(), 2 * MIB);
        assert_eq!(fstat(&memory).expect("a file").st_size, 2 * 1024 * 1024);
        for size in [0, MIB, 3 * MIB] {
            assert!(ftruncate(&memory, size).is_err(), "{size} bytes");
        }
        assert!(fcntl_add_seals(&memory, SealFlags::WRITE).is_err());
    }
}
