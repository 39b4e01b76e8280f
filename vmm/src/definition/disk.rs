//! The disks of a VM and what they sit on: the values, and the names and places that nobody chose.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Definition, DiskSource};
use crate::disks::lasting_name;

/// Most disks of a VM.
pub(crate) const MAX_DISKS: usize = 64;
/// Most of them on virtio: each takes a slot of the PCI bus.
pub(crate) const MAX_VIRTIO_DISKS: usize = 16;
/// Most controllers of a kind: as many as Hyper-V has.
pub(crate) const MAX_CONTROLLERS: usize = 4;
/// Longest name of a disk, in bytes: QEMU's names of what belongs to it are made of it.
pub(crate) const MAX_DISK_ID: usize = 16;

/// A disk of a VM, or a drive with or without a disc in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Disk {
    /// What commands and QEMU call it; no other disk of the VM is called the same. Empty until
    /// [`Definition::settle`] has chosen one.
    pub id: String,
    /// Where its bytes are.
    pub source: DiskSource,
    /// How they are laid out.
    pub format: DiskFormat,
    /// What the guest finds it on.
    pub bus: DiskBus,
    /// Which controller of that bus, from 0.
    pub controller: u8,
    /// Its place on the controller. None until [`Definition::settle`] has chosen one; a virtio disk has none.
    pub unit: Option<u8>,
    /// The serial number that the guest reads.
    pub serial: Option<String>,
    /// What the host keeps of it in memory.
    pub cache: DiskCache,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// Whether it is a CD or DVD.
    pub cdrom: bool,
}

/// How an image of a disk is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's own.
    Qcow2,
    /// Virtual PC's and old Hyper-V's.
    #[serde(alias = "vpc")]
    Vhd,
    /// Hyper-V's.
    Vhdx,
    /// VMware's; only read.
    Vmdk,
}

/// What a guest finds a disk on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskBus {
    /// An IDE or SATA controller, which every system knows.
    Ide,
    /// A SCSI controller.
    Scsi,
    /// virtio-blk.
    Virtio,
}

/// What the host keeps of a disk in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskCache {
    /// What was read and written lately. What the guest has flushed is on the disk.
    #[default]
    Writeback,
    /// Nothing: every access is the disk's.
    None,
}

/// The controllers that disks sit on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controllers {
    /// Those of bus "ide". The first is there in any case, as the machine has it.
    pub ide: Vec<IdeModel>,
    /// Those of bus "scsi".
    pub scsi: Vec<ScsiModel>,
}

/// A controller of bus "ide".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdeModel {
    /// SATA, with six ports.
    Ahci,
    /// Parallel ATA, with two channels of two disks: what systems from before 2005 know.
    Piix,
}

/// A controller of bus "scsi".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScsiModel {
    /// virtio-scsi. Disks are attached to it while the VM runs.
    Virtio,
    /// LSI 53C895A, which systems without virtio know.
    Lsi,
}

impl Disk {
    /// A disk on the first controller of `bus` that the guest may write to, with a name and a place to be chosen.
    #[must_use]
    pub fn new(source: impl Into<DiskSource>, format: DiskFormat, bus: DiskBus) -> Self {
        Self {
            id: String::new(),
            source: source.into(),
            format,
            bus,
            controller: 0,
            unit: None,
            serial: None,
            cache: DiskCache::default(),
            readonly: false,
            cdrom: false,
        }
    }

    /// A drive with a disc in it, or [`DiskSource::Empty`].
    #[must_use]
    pub fn cdrom(source: impl Into<DiskSource>, bus: DiskBus) -> Self {
        Self { readonly: true, cdrom: true, ..Self::new(source, DiskFormat::Raw, bus) }
    }
}

impl Controllers {
    /// How many disks that controller takes; none if there is no such controller.
    pub(crate) fn places(&self, bus: DiskBus, controller: u8) -> Option<u8> {
        let index = usize::from(controller);
        match bus {
            DiskBus::Ide => self.ide.get(index).map(|model| model.places()),
            DiskBus::Scsi => self.scsi.get(index).map(|model| model.places()),
            DiskBus::Virtio => (controller == 0).then_some(u8::MAX),
        }
    }
}

impl Default for Controllers {
    fn default() -> Self {
        Self { ide: vec![IdeModel::Ahci], scsi: vec![ScsiModel::Virtio] }
    }
}

impl IdeModel {
    fn places(self) -> u8 {
        match self {
            Self::Ahci => 6,
            Self::Piix => 4,
        }
    }
}

impl ScsiModel {
    fn places(self) -> u8 {
        match self {
            Self::Virtio => 64,
            // The eighth is the controller itself.
            Self::Lsi => 7,
        }
    }
}

impl Definition {
    /// Chooses a name for each disk that has none, and a place for each that needs one: the first that is free.
    ///
    /// What cannot be placed is left as it is, and refused by [`validate`](Self::validate).
    pub fn settle(&mut self) {
        for index in 0..self.disks.len() {
            let (id, unit) = (self.free_id(index), self.free_unit(index));
            let Some(disk) = self.disks.get_mut(index) else { continue };
            if disk.id.is_empty() {
                disk.id = id;
            }
            disk.unit = disk.unit.or(unit);
        }
    }

    /// Calls devices of the host by names that last; whether any had another.
    pub(crate) fn name_devices_lastingly(&mut self) -> bool {
        let before: Vec<_> = self.disks.iter().map(|disk| disk.source.clone()).collect();
        self.disks.iter_mut().for_each(|disk| lasting_name(&mut disk.source));
        self.disks.iter().zip(before).any(|(disk, before)| disk.source != before)
    }

    /// The disk that is called `id`, or whose image is at that path.
    #[must_use]
    pub fn disk(&self, id_or_path: &str) -> Option<&Disk> {
        let by_id = self.disks.iter().find(|disk| disk.id == id_or_path);
        by_id.or_else(|| self.disks.iter().find(|disk| disk.source.to_string() == id_or_path))
    }

    fn free_id(&self, index: usize) -> String {
        let taken: BTreeSet<&str> = self.disks.iter().map(|disk| disk.id.as_str()).collect();
        let names = (index..).chain(0..index).map(|number| format!("disk{number}"));
        names.into_iter().find(|name| !taken.contains(name.as_str())).unwrap_or_default()
    }

    fn free_unit(&self, index: usize) -> Option<u8> {
        let disk = self.disks.get(index)?;
        let places = self.controllers.places(disk.bus, disk.controller).filter(|_| disk.bus != DiskBus::Virtio)?;
        let beside = self.disks.iter().filter(|other| (other.bus, other.controller) == (disk.bus, disk.controller));
        let taken: BTreeSet<u8> = beside.filter_map(|other| other.unit).collect();
        (0..places).find(|unit| !taken.contains(unit))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn definition(disks: Vec<Disk>) -> Definition {
        let mut definition = Definition { disks, ..Definition::new("demo", Uuid::nil()) };
        definition.settle();
        definition
    }

    fn disk(bus: DiskBus) -> Disk {
        Disk::new(DiskSource::Empty, DiskFormat::Raw, bus)
    }

    #[test]
    fn names_and_places_that_nobody_chose_are_the_first_that_are_free() {
        let chosen = Disk { id: "disk3".into(), unit: Some(0), ..disk(DiskBus::Scsi) };
        let other = Disk { controller: 1, ..disk(DiskBus::Scsi) };
        let disks =
            vec![disk(DiskBus::Scsi), chosen, disk(DiskBus::Virtio), disk(DiskBus::Ide), disk(DiskBus::Scsi), other];
        let settled = definition(disks);
        let names: Vec<_> = settled.disks.iter().map(|disk| (disk.id.as_str(), disk.unit)).collect();
        let expected = [
            ("disk0", Some(1)),
            ("disk3", Some(0)),
            ("disk2", None),
            ("disk4", Some(0)),
            ("disk5", Some(2)),
            // There is no second controller.
            ("disk6", None),
        ];
        assert_eq!(names, expected);
        assert_eq!(definition(settled.disks.clone()), settled, "what is settled stays so");
    }

    #[test]
    fn a_disk_is_found_by_its_name_or_its_image() {
        let definition = definition(vec![Disk::new(std::path::PathBuf::from("/a"), DiskFormat::Raw, DiskBus::Scsi)]);
        assert!(definition.disk("disk0").is_some() && definition.disk("/a").is_some());
        assert!(definition.disk("disk1").is_none());
    }
}
