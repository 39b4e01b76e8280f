//! Which format an image has: by what its owner says, by its name, and what its first and last bytes look like.
//!
//! A guest writes what it likes to a raw disk, the head of another format too, with a file of the host as its backing
//! file. So what the bytes look like is never believed when something is read or written through it; it only warns.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use super::error::DiskError;
use super::overlay::QCOW2;
use crate::definition::DiskFormat;

/// How much of the beginning tells the format.
const HEAD: u64 = 64;
/// A VHD's footer; a fixed one has nothing else.
const FOOTER: u64 = 512;
const VHD_COOKIE: &[u8] = b"conectix";

/// What the bytes of an image look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// One of the formats.
    Format(DiskFormat),
    /// A format that is not read here.
    Foreign(&'static str),
}

impl DiskFormat {
    /// The word for it in definitions and on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
        }
    }

    /// The format that a file's name tells.
    #[must_use]
    pub fn of_name(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match extension.as_str() {
            "raw" | "img" | "iso" => Self::Raw,
            "qcow2" => Self::Qcow2,
            "vhd" | "vpc" => Self::Vhd,
            "vhdx" => Self::Vhdx,
            "vmdk" => Self::Vmdk,
            _ => return None,
        })
    }

    /// QEMU's word for it.
    pub(crate) fn driver(self) -> &'static str {
        // The names differ only for the format of Virtual PC.
        if self == Self::Vhd { "vpc" } else { self.word() }
    }

    pub(crate) fn of_driver(driver: &str) -> Option<Self> {
        [Self::Raw, Self::Qcow2, Self::Vhd, Self::Vhdx, Self::Vmdk].into_iter().find(|format| format.driver() == driver)
    }
}

impl Look {
    /// What `file`, which is `length` bytes long, looks like.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut head = Vec::new();
        file.by_ref().take(HEAD).read_to_end(&mut head)?;
        let length = file.seek(SeekFrom::End(0))?;
        let mut foot = Vec::new();
        if length >= FOOTER {
            file.seek(SeekFrom::Start(length - FOOTER))?;
            file.take(FOOTER).read_to_end(&mut foot)?;
        }
        Ok(Self::of(&head, &foot))
    }

    fn of(head: &[u8], foot: &[u8]) -> Self {
        let vmdk = [&b"KDMV"[..], b"COWD", b"# Disk DescriptorFile"];
        let foreign = [
            (&b"QED\0"[..], "QED"),
            (b"LUKS\xba\xbe", "LUKS"),
            (b"<<< ", "VDI"),
            (b"WithoutFreeSpace", "Parallels"),
            (b"WithouFreSpacExt", "Parallels"),
        ];
        if head.starts_with(QCOW2) {
            Self::Format(DiskFormat::Qcow2)
        } else if head.starts_with(b"vhdxfile") {
            Self::Format(DiskFormat::Vhdx)
        } else if vmdk.iter().any(|magic| head.starts_with(magic)) {
            Self::Format(DiskFormat::Vmdk)
        } else if head.starts_with(VHD_COOKIE) || foot.starts_with(VHD_COOKIE) {
            Self::Format(DiskFormat::Vhd)
        } else if let Some((_, name)) = foreign.iter().find(|(magic, _)| head.starts_with(magic)) {
            Self::Foreign(name)
        } else {
            Self::Format(DiskFormat::Raw)
        }
    }
}

/// The format of the image at `path` when its name and its bytes say the same.
pub(crate) fn certain_format(path: &Path) -> Option<DiskFormat> {
    let named = DiskFormat::of_name(path)?;
    (Look::at(path).ok()? == Look::Format(named)).then_some(named)
}

/// The format to read the image at `path` in: the one that was `said`, else the one that its name tells.
///
/// # Errors
///
/// When neither is there, or the bytes look like another format than the name tells: one of the two is wrong, and only
/// the owner knows which.
pub(crate) fn to_read(path: &Path, said: Option<DiskFormat>) -> Result<DiskFormat, DiskError> {
    if let Some(said) = said {
        return Ok(said);
    }
    let look = Look::at(path).map_err(|error| DiskError::unreadable(path, error))?;
    let unclear = |what: String| Err(DiskError::UnclearFormat { path: path.into(), what });
    match (DiskFormat::of_name(path), look) {
        (Some(named), Look::Format(look)) if named == look => Ok(named),
        (Some(named), Look::Format(look)) => {
            unclear(format!("its name says {} and its bytes look like {}", named.word(), look.word()))
        }
        (_, Look::Foreign(name)) => unclear(format!("its bytes look like {name}, which is not read here")),
        (None, Look::Format(look)) => unclear(format!("its name does not tell; its bytes look like {}", look.word())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bytes_tell_formats() {
        for (name, format) in [("a.IMG", "raw"), ("a.iso", "raw"), ("a.b.vhd", "vhd"), ("a.vhdx", "vhdx")] {
            assert_eq!(DiskFormat::of_name(Path::new(name)).map(DiskFormat::word), Some(format));
        }
        assert_eq!(DiskFormat::of_name(Path::new("vhd")), None);
        assert_eq!(DiskFormat::of_driver("vpc"), Some(DiskFormat::Vhd));
        let mut foot = [0; 512];
        foot[..8].copy_from_slice(VHD_COOKIE);
        assert_eq!(Look::of(b"anything", &foot), Look::Format(DiskFormat::Vhd));
        assert_eq!(Look::of(b"QFI\xfb\0\0\0\x03", &[]), Look::Format(DiskFormat::Qcow2));
        assert_eq!(Look::of(b"<<< Oracle VM VirtualBox Disk Image >>>", &[]), Look::Foreign("VDI"));
        assert_eq!(Look::of(b"", &[]), Look::Format(DiskFormat::Raw));
    }

    #[test]
    fn a_raw_disk_whose_guest_wrote_the_head_of_another_format_is_not_believed() {
        let path = std::env::temp_dir().join(format!("fanlight-format-{}.img", std::process::id()));
        std::fs::write(&path, b"QFI\xfb, says the guest").expect("written");
        let error = to_read(&path, None).unwrap_err().to_string();
        assert!(error.ends_with("its name says raw and its bytes look like qcow2"), "{error}");
        assert_eq!(to_read(&path, Some(DiskFormat::Raw)).expect("said"), DiskFormat::Raw);
        std::fs::write(&path, "no head").expect("written");
        assert_eq!(to_read(&path, None).expect("clear"), DiskFormat::Raw);
        std::fs::remove_file(&path).expect("removed");
        assert!(matches!(to_read(&path, None), Err(DiskError::Unreadable { .. })));
    }
}
