//! Snapshots of a VM that is off: `qemu-img` makes, applies and deletes them in one image after the other.
//!
//! What is cut off between two images is in some of them only; an image by itself has a snapshot or has it not.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{Part, Snapshot, SnapshotDisk, SnapshotTag, assemble};
use crate::definition::DiskFormat;
use crate::disks::{DiskError, QemuImg, describe};

/// Carries out snapshots of images that no QEMU has open.
#[derive(Debug, Clone)]
pub(in crate::lifecycle) struct Images {
    pub(in crate::lifecycle) program: QemuImg,
    pub(in crate::lifecycle) disks: Vec<SnapshotDisk>,
    /// How long each step may take.
    pub(in crate::lifecycle) deadline: Duration,
}

impl Images {
    /// The snapshots of the VM, oldest first.
    pub(in crate::lifecycle) async fn list(&self) -> Result<Vec<Snapshot>, DiskError> {
        let mut found = Vec::new();
        for disk in &self.disks {
            if !disk.keeps {
                found.push((disk, Vec::new()));
                continue;
            }
            let described = describe(&self.program, &disk.path, DiskFormat::Qcow2).await?;
            let parts = described.snapshots.into_iter().filter_map(|snapshot| {
                let taken = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(snapshot.taken))?;
                Some(Part { name: snapshot.name, memory: snapshot.memory, taken })
            });
            found.push((disk, parts.collect()));
        }
        Ok(assemble(found))
    }

    /// Keeps what is on the disks.
    pub(in crate::lifecycle) async fn save(&self, tag: &SnapshotTag) -> Result<(), DiskError> {
        for (index, disk) in self.disks.iter().enumerate() {
            if let Err(error) = self.run("-c", tag, disk).await {
                for done in self.disks.iter().take(index) {
                    // The reason of the first failure is the one to tell; what stays is found and deleted later.
                    let _ = self.run("-d", tag, done).await;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Makes the disks what they were, whatever they are now. To be done again when it is cut off.
    pub(in crate::lifecycle) async fn restore(&self, tag: &SnapshotTag) -> Result<(), DiskError> {
        for disk in &self.disks {
            self.run("-a", tag, disk).await?;
        }
        Ok(())
    }

    /// Forgets a state, on all disks that have it.
    pub(in crate::lifecycle) async fn delete(&self, tag: &SnapshotTag) -> Result<(), DiskError> {
        let found = self.list().await?.into_iter().find(|snapshot| snapshot.tag == *tag);
        let missing = found.map(|found| found.missing).unwrap_or_default();
        for disk in self.disks.iter().filter(|disk| !missing.contains(&disk.path)) {
            self.run("-d", tag, disk).await?;
        }
        Ok(())
    }

    async fn run(&self, what: &str, tag: &SnapshotTag, disk: &SnapshotDisk) -> Result<(), DiskError> {
        let mut arguments: Vec<OsString> =
            ["snapshot", "-q", what, tag.as_str(), "--image-opts", "--"].map(Into::into).into();
        arguments.push(image_options(&disk.path));
        self.program.ask_within(self.deadline, arguments).await.map(drop)
    }
}

/// An image as QEMU's option: without, `qemu-img snapshot` would guess the format.
fn image_options(path: &Path) -> OsString {
    // Of the paths that a definition may have, all are text.
    let path = path.display().to_string().replace(',', ",,");
    format!("driver=qcow2,file.driver=file,file.filename={path}").into()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    /// Images in a folder of their own.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("fanlight-images-{name}-{}", std::process::id()));
            std::fs::create_dir(&folder).expect("temporary folder");
            Self(folder)
        }

        fn images(&self, names: &[&str]) -> Images {
            let disks = names.iter().map(|name| {
                let path = self.0.join(name);
                let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&path).arg("1M").status();
                assert!(made.expect("qemu-img runs").success());
                SnapshotDisk { id: String::new(), path, keeps: true }
            });
            let program = QemuImg::beside(Path::new("qemu"));
            Images { program, disks: disks.collect(), deadline: Duration::from_secs(60) }
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn tag(name: &str) -> SnapshotTag {
        name.parse().expect("a name")
    }

    fn write(path: &Path, byte: &str) {
        let command = format!("write -P {byte} 0 4096");
        let written = Command::new("qemu-io").args(["-f", "qcow2", "-c", &command]).arg(path).output();
        assert!(written.expect("qemu-io runs").status.success());
    }

    fn holds(path: &Path, byte: &str) -> bool {
        let command = format!("read -P {byte} 0 4096");
        let read = Command::new("qemu-io").args(["-f", "qcow2", "-c", &command]).arg(path).output().expect("runs");
        read.status.success() && !String::from_utf8_lossy(&read.stdout).contains("failed")
    }

    #[tokio::test]
    async fn disks_go_back_to_what_they_were() {
        let folder = Folder::new("back");
        let images = folder.images(&["a,b=c.qcow2", "second.qcow2"]);
        let [first, second] = &images.disks[..] else { panic!("two disks") };
        for disk in [first, second] {
            write(&disk.path, "1");
        }
        images.save(&tag("-old")).await.expect("saved");
        for disk in [first, second] {
            write(&disk.path, "2");
        }
        let found = images.list().await.expect("listed");
        assert_eq!((found.len(), found[0].tag.as_str(), found[0].size), (1, "-old", 0));
        assert!(found[0].is_whole());
        images.restore(&tag("-old")).await.expect("restored");
        assert!(holds(&first.path, "1") && holds(&second.path, "1"));
        images.delete(&tag("-old")).await.expect("deleted");
        assert_eq!(images.list().await.expect("listed"), []);
        assert!(holds(&first.path, "1"), "what was restored stays");
    }

    #[tokio::test]
    async fn what_some_disks_have_is_deleted_there() {
        let folder = Folder::new("partial");
        let images = folder.images(&["a.qcow2", "b.qcow2"]);
        let only_first = Images { disks: images.disks[..1].to_vec(), ..images.clone() };
        only_first.save(&tag("half")).await.expect("saved");
        assert_eq!(images.list().await.expect("listed")[0].missing, [images.disks[1].path.clone()]);
        images.delete(&tag("half")).await.expect("deleted");
        assert_eq!(images.list().await.expect("listed"), []);
        images.delete(&tag("half")).await.expect_err("there is none");
    }

    #[tokio::test]
    async fn a_disk_that_keeps_nothing_has_no_part_in_what_there_is() {
        let folder = Folder::new("plain");
        let mut images = folder.images(&["a.qcow2"]);
        images.save(&tag("older")).await.expect("saved");
        let plain = folder.0.join("b.raw");
        std::fs::write(&plain, [0; 512]).expect("an image");
        images.disks.push(SnapshotDisk { id: String::new(), path: plain.clone(), keeps: false });
        assert_eq!(images.list().await.expect("listed")[0].missing, [plain]);
        images.delete(&tag("older")).await.expect("deleted");
        assert_eq!(images.list().await.expect("listed"), []);
    }

    #[tokio::test]
    async fn a_save_that_fails_leaves_nothing() {
        let folder = Folder::new("fails");
        let mut images = folder.images(&["a.qcow2"]);
        let first = images.clone();
        images.disks.push(SnapshotDisk { id: String::new(), path: folder.0.join("missing.qcow2"), keeps: true });
        images.save(&tag("a")).await.expect_err("no such image");
        assert_eq!(first.list().await.expect("listed"), []);
    }
}
