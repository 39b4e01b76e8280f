//! Places for disks that only root can make. Who is not root is told what is skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A block device of the host that is a file. It goes with this value.
pub(crate) struct LoopDevice(pub(crate) PathBuf);

impl LoopDevice {
    /// None for those who may not make one.
    pub(crate) fn over(image: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(image).output().ok()?;
        let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() {
            eprintln!("skipped: what needs a loop device, which cannot be made here");
            return None;
        }
        Some(Self(name.into()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// A file system of the host. It goes with this value.
pub(crate) struct Mount(pub(crate) PathBuf);

impl Mount {
    /// That of a device. None for those who may not mount it.
    pub(crate) fn of(device: &Path, place: PathBuf) -> Option<Self> {
        Self::with(&[device.as_os_str()], place)
    }

    /// One in memory with so many bytes.
    pub(crate) fn in_memory(size: u64, place: PathBuf) -> Option<Self> {
        let options = format!("size={size},mode=0700");
        Self::with(&["-t", "tmpfs", "-o", &options, "fanlight-test"].map(AsRef::as_ref), place)
    }

    fn with(arguments: &[&std::ffi::OsStr], place: PathBuf) -> Option<Self> {
        fs::create_dir_all(&place).expect("a folder");
        let mounted = Command::new("mount").args(arguments).arg(&place).output().ok()?;
        if !mounted.status.success() {
            eprintln!("skipped: what needs a file system of its own, which cannot be mounted here");
            return None;
        }
        Some(Self(place))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // At once or as soon as nobody uses it any more.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
