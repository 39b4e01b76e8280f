//! What QEMU does not tell of Hyper-V's formats: whether an image is fixed, grows, or stands on another.
//!
//! QEMU reads a differencing VHD as if it stood on nothing, and so as zeros: such images have to be found out before
//! anything is read from them.
//!
//! VHD: the footer of "Virtual Hard Disk Image Format Specification" (2006), the disk type is a big-endian number at
//! byte 60. VHDX: MS-VHDX 2.2.3 (region table), 2.6 (metadata region) and 2.6.2.1 (file parameters), little-endian.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use super::create::Layout;
use crate::definition::DiskFormat;

const FOOTER: usize = 512;
/// Where a VHDX has its first region table, and how long the part with entries is.
const REGION_TABLE: u64 = 192 * 1024;
const TABLE: usize = 64 * 1024;
/// Where a VHDX has its headers (2.2.2), and how much of one tells whether there is a log.
const HEADERS: [u64; 2] = [64 * 1024, 128 * 1024];
const HEADER: usize = 64;
const METADATA_REGION: [u8; 16] = guid(0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e);
const FILE_PARAMETERS: [u8; 16] = guid(0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b);
const LEAVE_BLOCKS_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;

/// What kind of image it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Whole(Layout),
    /// It holds only what differs from another.
    Differencing,
}

/// Reads what kind a VHD or VHDX is; none for the other formats, and for what is not one.
pub(super) fn kind_of(path: &Path, format: DiskFormat) -> io::Result<Option<Kind>> {
    match format {
        DiskFormat::Vhd => {
            let mut file = File::open(path)?;
            let length = file.seek(SeekFrom::End(0))?;
            let foot = read_at(&mut file, length.saturating_sub(FOOTER as u64), FOOTER)?;
            Ok(kind_of_vhd(&foot))
        }
        DiskFormat::Vhdx => {
            let mut file = File::open(path)?;
            let table = read_at(&mut file, REGION_TABLE, TABLE)?;
            let Some(metadata) = metadata_region(&table) else { return Ok(None) };
            let table = read_at(&mut file, metadata, TABLE)?;
            let Some(parameters) = file_parameters(&table) else { return Ok(None) };
            let parameters = read_at(&mut file, metadata.saturating_add(parameters), 8)?;
            Ok(number(&parameters, 4).map(kind_of_vhdx))
        }
        DiskFormat::Raw | DiskFormat::Qcow2 | DiskFormat::Vmdk => Ok(None),
    }
}

/// Whether a VHDX has changes in its log that its tables may not have yet: its last user died.
pub(super) fn has_log(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    for at in HEADERS {
        let header = read_at(&mut file, at, HEADER)?;
        let log = header.get(48..).filter(|_| header.starts_with(b"head"));
        if log.is_some_and(|guid| guid.iter().any(|byte| *byte != 0)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads the kind out of a VHD's footer.
pub(crate) fn kind_of_vhd(footer: &[u8]) -> Option<Kind> {
    footer.starts_with(b"conectix").then_some(())?;
    match footer.get(60..64)? {
        [0, 0, 0, 2] => Some(Kind::Whole(Layout::Fixed)),
        [0, 0, 0, 3] => Some(Kind::Whole(Layout::Dynamic)),
        [0, 0, 0, 4] => Some(Kind::Differencing),
        _ => None,
    }
}

fn kind_of_vhdx(flags: u32) -> Kind {
    if flags & HAS_PARENT != 0 {
        Kind::Differencing
    } else if flags & LEAVE_BLOCKS_ALLOCATED != 0 {
        Kind::Whole(Layout::Fixed)
    } else {
        Kind::Whole(Layout::Dynamic)
    }
}

/// Where the metadata region begins, by a region table: entries of 32 bytes after a head of 16.
pub(crate) fn metadata_region(table: &[u8]) -> Option<u64> {
    table.starts_with(b"regi").then_some(())?;
    let count = usize::try_from(number(table, 8)?).ok()?;
    let entries = table.get(16..)?.chunks_exact(32).take(count);
    let mut found = entries.filter(|entry| entry.starts_with(&METADATA_REGION));
    Some(u64::from_le_bytes(found.next()?.get(16..24)?.try_into().ok()?))
}

/// Where the file parameters are in the metadata region, by its table: entries of 32 bytes after a head of 32.
pub(crate) fn file_parameters(table: &[u8]) -> Option<u64> {
    table.starts_with(b"metadata").then_some(())?;
    let count = usize::from(u16::from_le_bytes(table.get(10..12)?.try_into().ok()?));
    let entries = table.get(32..)?.chunks_exact(32).take(count);
    let mut found = entries.filter(|entry| entry.starts_with(&FILE_PARAMETERS));
    number(found.next()?, 16).map(u64::from)
}

/// Less than `length` bytes where the file ends before.
pub(super) fn read_at(file: &mut File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(at))?;
    file.take(length as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// A GUID as it lies in the file: its first three parts are little-endian.
const fn guid(value: u128) -> [u8; 16] {
    let b = value.to_be_bytes();
    [b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn qemus_own_images_are_told_apart() {
        for (format, driver) in [(DiskFormat::Vhd, "vpc"), (DiskFormat::Vhdx, "vhdx")] {
            for (layout, word) in [(Layout::Fixed, "fixed"), (Layout::Dynamic, "dynamic")] {
                let name = format!("fanlight-hyperv-{}-{driver}-{word}", std::process::id());
                let path = std::env::temp_dir().join(name);
                let made = Command::new("qemu-img")
                    .args(["create", "-q", "-f", driver, "-o", &format!("subformat={word}")])
                    .arg(&path)
                    .arg("8M")
                    .status();
                assert!(made.expect("qemu-img runs").success());
                let kind = kind_of(&path, format).expect("readable");
                std::fs::remove_file(&path).expect("removed");
                assert_eq!(kind, Some(Kind::Whole(layout)), "{driver} {word}");
            }
        }
    }

    #[test]
    fn a_vhdx_that_was_not_closed_is_found_out() {
        let path = std::env::temp_dir().join(format!("fanlight-hyperv-{}-log.vhdx", std::process::id()));
        let made = Command::new("qemu-img").args(["create", "-q", "-f", "vhdx"]).arg(&path).arg("8M").status();
        assert!(made.expect("qemu-img runs").success());
        let closed = has_log(&path).expect("readable");
        let file = File::options().write(true).open(&path).expect("an image");
        std::os::unix::fs::FileExt::write_all_at(&file, &[1], HEADERS[1] + 63).expect("written");
        let open = has_log(&path).expect("readable");
        std::fs::remove_file(&path).expect("removed");
        assert!(!closed && open);
    }

    #[test]
    fn images_that_stand_on_others_are_found_out() {
        let mut footer = [0; FOOTER];
        footer[..8].copy_from_slice(b"conectix");
        footer[63] = 4;
        assert_eq!(kind_of_vhd(&footer), Some(Kind::Differencing));
        footer[63] = 5;
        assert_eq!(kind_of_vhd(&footer), None);
        assert_eq!(kind_of_vhdx(HAS_PARENT | LEAVE_BLOCKS_ALLOCATED), Kind::Differencing);
    }

    #[test]
    fn what_is_cut_off_or_lies_is_no_image() {
        assert_eq!(kind_of_vhd(b"conectix"), None);
        assert_eq!(metadata_region(b"regi\0\0\0\0\xff\xff\xff\xff\0\0\0\0"), None);
        assert_eq!(metadata_region(b"regi"), None);
        assert_eq!(file_parameters(b"metadata\0\0\xff\xff"), None);
        assert_eq!(file_parameters(&[0; TABLE]), None);
    }
}
