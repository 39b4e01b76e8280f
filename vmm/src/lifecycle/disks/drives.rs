//! What QEMU has for disks, and how that differs from the definition.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::definition::{Controllers, Definition, Disk, DiskBus, DiskSource, ScsiModel};
use crate::engine::{parse_device_name, parse_node_name};

use super::DiskFailure;

/// The devices that QEMU has for disks, by the names of the disks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Drives(BTreeMap<String, Drive>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Drive {
    /// The node that has its bytes; none in an empty drive.
    node: Option<String>,
    /// What QEMU opened for it.
    file: Option<String>,
    /// Whether a drive is ready for another disc.
    is_open: bool,
    failed: Option<Failed>,
}

/// Why a device's requests wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failed {
    NoRoom,
    Otherwise,
}

/// Something to be changed in QEMU, so that it has what the definition says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Correction {
    /// Attach the disk of that name.
    Plug(String),
    /// Detach it.
    Unplug(String),
    /// Put another disc, or none, into the drive.
    ChangeMedium(String),
}

impl Drives {
    /// Reads what `query-block` returns.
    pub(crate) fn of_qmp(list: &Value) -> Self {
        let entries = list.as_array().into_iter().flatten().filter_map(|entry| Entry::deserialize(entry).ok());
        let drives = entries.filter_map(|entry| {
            let id = parse_device_name(entry.qdev.as_deref().filter(|qdev| !qdev.is_empty())?).to_owned();
            let (node, file) = entry.inserted.map(|inserted| (inserted.node, inserted.file)).unzip();
            let failed = match entry.io_status.as_deref() {
                Some("nospace") => Some(Failed::NoRoom),
                Some("failed") => Some(Failed::Otherwise),
                _ => None,
            };
            let is_open = entry.tray_open == Some(true);
            Some((id, Drive { node: node.flatten(), file: file.flatten(), is_open, failed }))
        });
        Self(drives.collect())
    }

    /// The node that has the bytes of a disk.
    pub(crate) fn node(&self, disk: &str) -> Option<&str> {
        self.0.get(disk)?.node.as_deref()
    }

    /// The file that QEMU opened for a disk.
    pub(crate) fn file(&self, disk: &str) -> Option<&str> {
        self.0.get(disk)?.file.as_deref()
    }

    /// Whether a drive is ready for another disc.
    pub(crate) fn is_open(&self, disk: &str) -> bool {
        self.0.get(disk).is_some_and(|drive| drive.is_open)
    }

    /// Whether QEMU has a device for a disk.
    pub(crate) fn has(&self, disk: &str) -> bool {
        self.0.contains_key(disk)
    }

    /// The first disk whose requests wait because they failed.
    pub(crate) fn failure(&self) -> Option<DiskFailure> {
        let (disk, failed) = self.0.iter().find_map(|(id, drive)| Some((id, drive.failed?)))?;
        let no_room = failed == Failed::NoRoom;
        let reason = if no_room { "there is no room left" } else { "a request failed" };
        Some(DiskFailure { disk: disk.clone(), reason: reason.into(), no_room })
    }

    /// The disks that are here or in `definition`, and not in both.
    pub(crate) fn differences(&self, definition: &Definition) -> Vec<String> {
        let missing = definition.disks.iter().map(|disk| &disk.id).filter(|id| !self.has(id));
        let left = self.0.keys().filter(|id| !definition.disks.iter().any(|disk| disk.id == **id));
        missing.chain(left).cloned().collect()
    }

    /// The number for the next node of a disk.
    pub(crate) fn next_generation(&self, disk: &str) -> u32 {
        let node = self.node(disk).and_then(parse_node_name);
        node.map_or(0, |(_, generation)| generation.saturating_add(1))
    }

    /// What must be changed so that QEMU has what `definition` says, as far as that can be done while the VM is on.
    /// Disks that `moves` are left alone: what they are is not settled.
    pub(crate) fn corrections(&self, definition: &Definition, moves: impl Fn(&str) -> bool) -> Vec<Correction> {
        let wanted = |id: &str| definition.disks.iter().find(|disk| disk.id == id);
        let here = self.0.keys().filter(|id| !moves(id) && wanted(id).is_none());
        let mut corrections: Vec<_> = here.map(|id| Correction::Unplug(id.clone())).collect();
        for disk in definition.disks.iter().filter(|disk| !moves(&disk.id)) {
            match self.0.get(&disk.id) {
                None if can_be_plugged(disk, &definition.controllers) => {
                    corrections.push(Correction::Plug(disk.id.clone()));
                }
                Some(drive) if disk.cdrom && !drive.holds(&disk.source) => {
                    corrections.push(Correction::ChangeMedium(disk.id.clone()));
                }
                _ => {}
            }
        }
        corrections
    }
}

impl Drive {
    fn holds(&self, source: &DiskSource) -> bool {
        match source {
            DiskSource::Empty => self.node.is_none(),
            DiskSource::Path(path) => self.file.as_deref() == path.to_str(),
            // QEMU has its own way to write these.
            DiskSource::Remote(_) => self.node.is_some(),
        }
    }
}

/// Whether a disk is attached and detached while the VM is on.
pub(crate) fn can_be_plugged(disk: &Disk, controllers: &Controllers) -> bool {
    let model = controllers.scsi.get(usize::from(disk.controller));
    disk.bus == DiskBus::Scsi && model == Some(&ScsiModel::Virtio)
}

#[derive(Deserialize)]
struct Entry {
    qdev: Option<String>,
    inserted: Option<Inserted>,
    tray_open: Option<bool>,
    #[serde(rename = "io-status")]
    io_status: Option<String>,
}

#[derive(Deserialize)]
struct Inserted {
    #[serde(rename = "node-name")]
    node: Option<String>,
    file: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::definition::DiskFormat;

    #[test]
    fn what_qemu_has_is_read() {
        let drives = Drives::of_qmp(&json!([
            { "qdev": "disk1", "inserted": { "node-name": "disk1.3", "file": "/a" }, "io-status": "nospace" },
            { "qdev": "/machine/peripheral/disk2/virtio-backend", "inserted": { "node-name": "disk2.0", "file": "/b" } },
            { "qdev": "cd", "tray_open": true },
            { "device": "floppy0" },
            7,
        ]));
        assert_eq!(
            (drives.node("disk1"), drives.node("disk2"), drives.node("cd")),
            (Some("disk1.3"), Some("disk2.0"), None)
        );
        assert_eq!((drives.file("disk2"), drives.file("cd")), (Some("/b"), None));
        assert_eq!((drives.next_generation("disk1"), drives.next_generation("cd")), (4, 0));
        assert!(drives.is_open("cd") && !drives.is_open("disk1"));
        let failure = drives.failure().expect("one failed");
        assert_eq!((failure.to_string().as_str(), failure.no_room), ("disk disk1: there is no room left", true));
        assert_eq!(Drives::of_qmp(&json!({})), Drives::default());
    }

    fn disk(number: u8, bus: DiskBus, cdrom: bool) -> Disk {
        let path = PathBuf::from(format!("/{number}"));
        let disk = if cdrom { Disk::cdrom(path, bus) } else { Disk::new(path, DiskFormat::Raw, bus) };
        Disk { id: format!("d{number}"), ..disk }
    }

    fn definition() -> impl Strategy<Value = Definition> {
        let bus = prop_oneof![Just(DiskBus::Scsi), Just(DiskBus::Ide)];
        proptest::collection::btree_map(0_u8..8, (bus, any::<bool>()), 0..8).prop_map(|disks| {
            let disks = disks.into_iter().map(|(number, (bus, cdrom))| disk(number, bus, cdrom)).collect();
            let mut definition = Definition { disks, ..Definition::new("demo", Uuid::nil()) };
            definition.settle();
            definition
        })
    }

    /// What QEMU has when it was started with `definition`.
    fn started(definition: &Definition) -> Drives {
        let drive = |disk: &Disk| Drive {
            node: Some(format!("{}.0", disk.id)),
            file: Some(disk.source.to_string()),
            is_open: false,
            failed: None,
        };
        Drives(definition.disks.iter().map(|disk| (disk.id.clone(), drive(disk))).collect())
    }

    proptest! {
        #[test]
        fn after_the_corrections_there_is_nothing_to_correct(before in definition(), after in definition()) {
            let mut drives = started(&before);
            for correction in drives.corrections(&after, |_| false) {
                let new = started(&after).0;
                match correction {
                    Correction::Plug(id) => {
                        prop_assert!(!drives.0.contains_key(&id), "it is there already");
                        drives.0.insert(id.clone(), new[&id].clone());
                    }
                    Correction::Unplug(id) => {
                        prop_assert!(drives.0.remove(&id).is_some() && !new.contains_key(&id));
                    }
                    Correction::ChangeMedium(id) => {
                        prop_assert!(after.disk(&id).is_some_and(|disk| disk.cdrom));
                        drives.0.insert(id.clone(), new[&id].clone());
                    }
                }
            }
            prop_assert_eq!(drives.corrections(&after, |_| false), vec![]);
            let cannot_be_plugged = |id: &String| after.disk(id).is_some_and(|disk| disk.bus == DiskBus::Ide);
            prop_assert!(drives.differences(&after).iter().all(cannot_be_plugged), "only these wait for a start");
            prop_assert_eq!(started(&after).corrections(&after, |_| false), vec![]);
        }

        #[test]
        fn what_moves_is_left_alone(before in definition(), after in definition(), moves in 0_u8..8) {
            let moves = format!("d{moves}");
            let corrections = started(&before).corrections(&after, |id| id == moves);
            let concerns = |correction: &Correction| match correction {
                Correction::Plug(id) | Correction::Unplug(id) | Correction::ChangeMedium(id) => *id == moves,
            };
            prop_assert!(!corrections.iter().any(concerns), "{:?}", corrections);
        }
    }

    #[test]
    fn another_disc_is_noticed_and_so_is_none() {
        let mut definition =
            Definition { disks: vec![disk(1, DiskBus::Ide, true)], ..Definition::new("demo", Uuid::nil()) };
        definition.settle();
        let drives = started(&definition);
        let change = [Correction::ChangeMedium("d1".into())];
        definition.disks[0].source = PathBuf::from("/other").into();
        assert_eq!(drives.corrections(&definition, |_| false), change);
        definition.disks[0].source = DiskSource::Empty;
        assert_eq!(drives.corrections(&definition, |_| false), change);
    }
}
