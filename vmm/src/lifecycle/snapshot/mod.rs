//! Snapshots: the state of a VM, kept in its disks' own files under a name. One of a VM that is on has its memory, too; one
//! of a VM that is off has the disks only.
//!
//! * this file: what a snapshot is, and which VMs can have any,
//! * `jobs`: how QEMU is told to save, load and delete one,
//! * `images`: the same on the images of a VM that is off,
//! * `overlays`: how disks whose files keep none come to keep some.

mod images;
mod jobs;
mod overlays;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::state::as_unix_seconds;
use crate::definition::{Definition, DiskFormat};
use crate::disks::is_block_device;

pub(super) use images::Images;
pub(super) use jobs::Jobs;
pub(super) use overlays::{OverlayError, Overlays};

/// Longest name of a snapshot, in bytes; QEMU takes twice as many.
const MAX_TAG: usize = 128;

/// The name of a snapshot, which no other of the same VM has: 1 to 128 bytes without control characters, no space at its
/// ends, and not digits only: QEMU takes those for the number of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct SnapshotTag(String);

/// This cannot be the name of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a snapshot's name has 1 to {MAX_TAG} bytes, no control characters, no space at its beginning or end, and is not a number"
)]
pub struct InvalidTag;

/// A state of a VM that it can go back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Its name.
    pub tag: SnapshotTag,
    /// When it was saved.
    #[serde(serialize_with = "as_unix_seconds")]
    pub taken: SystemTime,
    /// How much its memory takes in one of the disks' files, in bytes; 0: it has none.
    pub size: u64,
    /// The VM's disks that have no part in it. Where there are any, it was cut off while it was saved or deleted, or is
    /// older than a disk.
    pub missing: Vec<PathBuf>,
}

/// A disk that belongs to a VM's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SnapshotDisk {
    /// Its name in the definition.
    pub(super) id: String,
    pub(super) path: PathBuf,
    /// Whether its file can keep snapshots. One that cannot has no part in any, and gets an overlay before the next.
    pub(super) keeps: bool,
}

/// What one image says of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    name: String,
    memory: u64,
    taken: SystemTime,
}

impl SnapshotTag {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SnapshotTag {
    type Err = InvalidTag;

    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        let fits = (1..=MAX_TAG).contains(&text.len()) && !text.chars().any(char::is_control) && text.trim() == text;
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        if fits && !is_number { Ok(Self(text.into())) } else { Err(InvalidTag) }
    }
}

impl TryFrom<String> for SnapshotTag {
    type Error = InvalidTag;

    fn try_from(text: String) -> Result<Self, InvalidTag> {
        text.parse()
    }
}

impl Snapshot {
    /// Whether all disks of the VM have it.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }
}

impl fmt::Display for SnapshotTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The disks that belong to a VM's state, or why it can have no snapshots, with every disk that is in the way.
pub(super) fn disks(definition: &Definition) -> Result<Vec<SnapshotDisk>, String> {
    disks_unless(definition, is_block_device)
}

fn disks_unless(definition: &Definition, is_block_device: impl Fn(&Path) -> bool) -> Result<Vec<SnapshotDisk>, String> {
    let (mut disks, mut obstacles) = (Vec::new(), Vec::new());
    for (index, disk) in definition.disks.iter().enumerate().filter(|(_, disk)| !disk.readonly) {
        match disk.source.path() {
            Some(path) if !is_block_device(path) => {
                let keeps = disk.format == DiskFormat::Qcow2;
                disks.push(SnapshotDisk { id: disk.id.clone(), path: path.into(), keeps });
            }
            _ => obstacles.push(format!("disk {} ({})", index + 1, disk.source)),
        }
    }
    match (obstacles.as_slice(), disks.is_empty()) {
        ([], false) => Ok(disks),
        ([], true) => Err("it has no disk that its guest writes to, which would keep its snapshots".into()),
        ([one], _) => Err(format!(
            "{one} is writable and no file of this host, so it keeps no snapshots; move it to one (`fanlight disk move`)"
        )),
        (several, _) => Err(format!(
            "{} are writable and no files of this host, so they keep no snapshots; move them to files (`fanlight disk move`)",
            several.join(", ")
        )),
    }
}

/// Why a VM can have no snapshots, if it cannot.
pub(crate) fn obstacle(definition: &Definition) -> Option<String> {
    disks(definition).err()
}

/// What the images of `disks` say together, oldest first. Names that others gave and we would not are theirs.
fn assemble<'a>(parts: impl IntoIterator<Item = (&'a SnapshotDisk, Vec<Part>)>) -> Vec<Snapshot> {
    let (mut found, mut disks) = (BTreeMap::<SnapshotTag, Vec<(usize, Part)>>::new(), Vec::new());
    for (index, (disk, parts)) in parts.into_iter().enumerate() {
        disks.push(disk);
        for part in parts {
            if let Ok(tag) = part.name.parse() {
                found.entry(tag).or_default().push((index, part));
            }
        }
    }
    let whole = |(tag, parts): (SnapshotTag, Vec<(usize, Part)>)| {
        let has = |index: &usize| parts.iter().any(|(other, _)| other == index);
        let missing = (0..disks.len()).filter(|index| !has(index)).filter_map(|index| disks.get(index));
        let missing = missing.map(|disk| disk.path.clone()).collect();
        let taken = parts.iter().map(|(_, part)| part.taken).max().unwrap_or(SystemTime::UNIX_EPOCH);
        let size = parts.iter().map(|(_, part)| part.memory).max().unwrap_or(0);
        Snapshot { tag, taken, size, missing }
    };
    let mut found: Vec<Snapshot> = found.into_iter().map(whole).collect();
    found.sort_by_key(|snapshot| snapshot.taken);
    found
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::definition::{Disk, DiskBus, DiskSource};

    #[test]
    fn names_are_for_people_and_have_an_end() {
        for good in ["a", "before the update", "12a", "é/\"", &"x".repeat(MAX_TAG)] {
            assert_eq!(good.parse::<SnapshotTag>().expect("a name").as_str(), good);
        }
        for bad in ["", " a", "a ", "a\nb", "\u{7f}", "12", &"x".repeat(MAX_TAG + 1)] {
            assert_eq!(bad.parse::<SnapshotTag>(), Err(InvalidTag), "{bad:?}");
        }
    }

    #[test]
    fn all_that_the_guest_can_write_must_be_a_file() {
        let disk = |path: &str, format, readonly| {
            let source = DiskSource::of_words(path).expect("a place");
            Disk { readonly, ..Disk::new(source, format, DiskBus::Virtio) }
        };
        let of = |disks: &[Disk]| {
            let mut definition = Definition { disks: disks.to_vec(), ..Definition::new("demo", Uuid::nil()) };
            definition.settle();
            disks_unless(&definition, |path| path.starts_with("/dev"))
        };
        let (qcow2, vhdx) = (disk("/a", DiskFormat::Qcow2, false), disk("/b", DiskFormat::Vhdx, false));
        let disks = of(&[disk("/dev/c", DiskFormat::Raw, true), qcow2.clone(), vhdx.clone()]).expect("all of them can");
        let names: Vec<_> = disks.iter().map(|disk| (disk.id.as_str(), disk.keeps)).collect();
        assert_eq!(names, [("disk1", true), ("disk2", false)]);
        let (device, server) = (disk("/dev/c", DiskFormat::Raw, false), disk("nbd://host/a", DiskFormat::Raw, false));
        let reason = of(&[qcow2.clone(), device.clone()]).expect_err("the second is a device");
        assert!(reason.starts_with("disk 2 (/dev/c) is writable and no file of this host"), "{reason}");
        assert!(reason.ends_with("move it to one (`fanlight disk move`)"), "{reason}");
        let reason = of(&[server, vhdx, device]).expect_err("two are no files");
        assert!(reason.starts_with("disk 1 (nbd://host/a), disk 3 (/dev/c) are writable"), "{reason}");
        for none in [vec![], vec![disk("/a", DiskFormat::Qcow2, true)]] {
            assert!(of(&none).expect_err("no disk").starts_with("it has no disk that its guest writes to"));
        }
    }

    #[test]
    fn what_several_images_say_is_one_list() {
        let disk = |path: &str| SnapshotDisk { id: String::new(), path: path.into(), keeps: true };
        let part = |name: &str, memory, seconds| {
            let taken = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            Part { name: name.into(), memory, taken }
        };
        let (a, b) = (disk("/a"), disk("/b"));
        let first =
            vec![part("new", 7, 20), part("old", 0, 10), part("half", 3, 1), part("\n", 3, 1), part("12", 3, 1)];
        let second = vec![part("old", 9, 11), part("new", 0, 20)];
        let found = assemble([(&a, first), (&b, second)]);
        let told: Vec<_> = found.iter().map(|found| (found.tag.as_str(), found.size, found.missing.len())).collect();
        assert_eq!(told, [("half", 3, 1), ("old", 9, 0), ("new", 7, 0)]);
        assert_eq!(found[0].missing, [PathBuf::from("/b")]);
        assert!(!found[0].is_whole() && found[1].is_whole());
    }
}
