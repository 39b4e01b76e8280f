//! Snapshots: the state of a VM, memory and disks, kept in its disks' own files under a name.
//!
//! * this file: what a snapshot is, and which VMs can have any,
//! * `jobs`: how QEMU is told to save, load and delete one.

mod jobs;

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use serde::Serialize;

use super::state::as_unix_seconds;
use crate::definition::{Definition, DiskFormat};
use crate::engine::node_name;

pub(super) use jobs::Jobs;

/// Longest name of a snapshot, in bytes; QEMU takes twice as many.
const MAX_TAG: usize = 128;

/// The name of a snapshot, which no other of the same VM has: 1 to 128 bytes without control characters, and no space at
/// its ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct SnapshotTag(String);

/// This cannot be the name of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a snapshot's name has 1 to {MAX_TAG} bytes, no control characters, and no space at its beginning or end")]
pub struct InvalidTag;

/// A state of a VM that it can go back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Its name.
    pub tag: SnapshotTag,
    /// When it was saved.
    #[serde(serialize_with = "as_unix_seconds")]
    pub taken: SystemTime,
    /// How much its memory takes in the first disk's file, in bytes.
    pub size: u64,
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
        if fits { Ok(Self(text.into())) } else { Err(InvalidTag) }
    }
}

impl fmt::Display for SnapshotTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// QEMU's names of the disks that belong to a VM's state, or why it can have no snapshots. The first keeps the memory, too.
pub(super) fn disks(definition: &Definition) -> Result<Vec<String>, String> {
    let writable = definition.disks.iter().enumerate().filter(|(_, disk)| !disk.readonly);
    let mut nodes = Vec::new();
    for (index, disk) in writable {
        if disk.format != DiskFormat::Qcow2 {
            let (number, source) = (index + 1, &disk.source);
            return Err(format!(
                "disk {number} ({source}) is writable and not of format \"qcow2\", so it keeps no snapshots"
            ));
        }
        nodes.push(node_name(&disk.id, 0));
    }
    if nodes.is_empty() {
        return Err("it has no writable disk of format \"qcow2\", which would keep its snapshots".into());
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use uuid::Uuid;

    use super::*;
    use crate::definition::{Disk, DiskBus};

    #[test]
    fn names_are_for_people_and_have_an_end() {
        for good in ["a", "before the update", "12", "é/\"", &"x".repeat(MAX_TAG)] {
            assert_eq!(good.parse::<SnapshotTag>().expect("a name").as_str(), good);
        }
        for bad in ["", " a", "a ", "a\nb", "\u{7f}", &"x".repeat(MAX_TAG + 1)] {
            assert_eq!(bad.parse::<SnapshotTag>(), Err(InvalidTag), "{bad:?}");
        }
    }

    #[test]
    fn all_that_the_guest_can_write_must_be_able_to_keep_snapshots() {
        let disk = |format, readonly| {
            let path = PathBuf::from(format!("/{format:?}.{readonly}"));
            Disk { readonly, ..Disk::new(path, format, DiskBus::Virtio) }
        };
        let of = |disks: &[Disk]| {
            let mut definition = Definition { disks: disks.to_vec(), ..Definition::new("demo", Uuid::nil()) };
            definition.settle();
            super::disks(&definition)
        };
        let (qcow2, raw) = (disk(DiskFormat::Qcow2, false), disk(DiskFormat::Raw, false));
        assert_eq!(
            of(&[disk(DiskFormat::Raw, true), qcow2.clone(), qcow2.clone()]),
            Ok(vec!["disk1.0".into(), "disk2.0".into()])
        );
        let reason = of(&[qcow2, raw]).expect_err("the second is raw");
        assert_eq!(reason, "disk 2 (/Raw.false) is writable and not of format \"qcow2\", so it keeps no snapshots");
        for none in [vec![], vec![disk(DiskFormat::Qcow2, true)]] {
            assert!(of(&none).expect_err("no disk").starts_with("it has no writable disk"));
        }
    }
}
