//! Where the shared memory is: BAR 2 of an ivshmem device, mapped through sysfs without a driver of its own.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use enhanced_session::control::PciSlot;
use enhanced_session::region::Mapping;

/// Where Linux lists its PCI devices.
pub const PCI_DEVICES: &str = "/sys/bus/pci/devices";
/// ivshmem's vendor and device.
const IVSHMEM: (&str, &str) = ("0x1af4", "0x1110");

/// The ivshmem devices whose memory has `size` bytes, the one in the slot that the host hinted at first.
#[must_use]
pub fn candidates(devices: &Path, slot: Option<PciSlot>, size: u64) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(devices) else { return Vec::new() };
    let is_candidate = |device: &PathBuf| {
        let has = |file, value| fs::read_to_string(device.join(file)).is_ok_and(|text| text.trim_end() == value);
        has("vendor", IVSHMEM.0)
            && has("device", IVSHMEM.1)
            && fs::metadata(device.join("resource2")).is_ok_and(|bar| bar.len() == size)
    };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_candidate).collect();
    let hinted = slot.map(address);
    found.sort_by_key(|device| {
        let is_hinted = hinted.as_deref().is_some_and(|hinted| device.to_string_lossy().ends_with(hinted));
        (!is_hinted, device.clone())
    });
    found
}

/// Switches the device's memory on and maps it.
///
/// # Errors
///
/// When the memory cannot be mapped: the device is gone, or the kernel is locked down.
pub fn map(device: &Path, size: u64) -> io::Result<Mapping> {
    let enable = device.join("enable");
    // The kernel counts; once is enough. Firmware has done it already, mostly, and the kernel lets few do it; what the
    // memory says shows whether it is there.
    if fs::read_to_string(&enable)?.trim_end() == "0" {
        let _ = fs::write(&enable, "1");
    }
    let bar = OpenOptions::new().read(true).write(true).open(device.join("resource2"))?;
    Mapping::new(bar, usize::try_from(size).unwrap_or(usize::MAX))
}

/// The end of a device's name: bus, device, function.
fn address(slot: PciSlot) -> String {
    format!(":{:02x}:{:02x}.{}", slot.bus, slot.device, slot.function)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use enhanced_session::region::SharedMemory as _;

    use super::*;

    const SIZE: u64 = 1 << 20;

    fn device(root: &Path, name: &str, ids: (&str, &str), size: u64) -> PathBuf {
        let device = root.join(name);
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("vendor"), format!("{}\n", ids.0)).unwrap();
        fs::write(device.join("device"), format!("{}\n", ids.1)).unwrap();
        fs::write(device.join("enable"), "0\n").unwrap();
        File::create(device.join("resource2")).unwrap().set_len(size).unwrap();
        device
    }

    fn slot(bus: u8, device: u8) -> Option<PciSlot> {
        Some(PciSlot { bus, device, function: 0 })
    }

    #[test]
    fn the_hinted_device_comes_first_and_strangers_not_at_all() {
        let root = std::env::temp_dir().join(format!("fanlight-agent-{}-pci", std::process::id()));
        let first = device(&root, "0000:00:04.0", IVSHMEM, SIZE);
        let second = device(&root, "0000:00:05.0", IVSHMEM, SIZE);
        device(&root, "0000:00:06.0", IVSHMEM, 2 * SIZE);
        device(&root, "0000:00:07.0", ("0x1af4", "0x1041"), SIZE);
        assert_eq!(candidates(&root, None, SIZE), [first.clone(), second.clone()]);
        assert_eq!(candidates(&root, slot(0, 5), SIZE), [second.clone(), first.clone()]);
        assert_eq!(candidates(&root, slot(0x1f, 5), SIZE), [first, second.clone()], "a hint may be wrong");

        let memory = map(&second, SIZE).unwrap();
        memory.store_u32(8, 7, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(fs::read(second.join("resource2")).unwrap()[8..12], 7_u32.to_le_bytes());
        assert_eq!(fs::read_to_string(second.join("enable")).unwrap(), "1");
        fs::remove_dir_all(&root).unwrap();
        assert!(map(&second, SIZE).is_err());
        assert_eq!(candidates(&root, None, SIZE), Vec::<PathBuf>::new());
    }
}
