//! What no disk may say.

use super::check::{Problem, path_problem, problem};
use super::disk::{MAX_CONTROLLERS, MAX_DISK_ID, MAX_DISKS, MAX_VIRTIO_DISKS};
use super::parse::About;
use super::{Definition, Disk, DiskBus, DiskFormat, DiskSource, NbdServer, Remote};

/// Longest serial number: what ATA and SCSI disks have room for.
const MAX_SERIAL: usize = 20;

impl Definition {
    pub(super) fn disks_problem(&self) -> Option<Problem> {
        let controllers = [("ide", self.controllers.ide.len()), ("scsi", self.controllers.scsi.len())];
        if let Some((bus, _)) = controllers.iter().find(|(_, count)| !(1..=MAX_CONTROLLERS).contains(count)) {
            return problem(
                About::Controllers,
                format!("there are 1 to {MAX_CONTROLLERS} controllers of bus \"{bus}\""),
            );
        }
        if self.disks.len() > MAX_DISKS {
            return problem(About::Disk(MAX_DISKS), format!("more than {MAX_DISKS} disks"));
        }
        let mut virtio = 0;
        for (index, disk) in self.disks.iter().enumerate() {
            virtio += usize::from(disk.bus == DiskBus::Virtio);
            if virtio > MAX_VIRTIO_DISKS {
                let reason = format!("more than {MAX_VIRTIO_DISKS} disks on bus \"virtio\"; take \"scsi\"");
                return problem(About::Disk(index), reason);
            }
            let found = disk.problem(index).or_else(|| self.place_problem(index)).or_else(|| self.twice_problem(index));
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// The place of a disk is none, or another's.
    fn place_problem(&self, index: usize) -> Option<Problem> {
        let disk = self.disks.get(index)?;
        let (bus, id) = (disk.bus.word(), &disk.id);
        let Some(places) = self.controllers.places(disk.bus, disk.controller) else {
            let reason = format!("disk {id}: there is no controller {} of bus \"{bus}\"", disk.controller);
            return problem(About::Disk(index), reason);
        };
        match disk.unit {
            Some(_) if disk.bus == DiskBus::Virtio => {
                problem(About::Disk(index), format!("disk {id}: a virtio disk has no `unit`"))
            }
            Some(unit) if unit >= places => {
                let reason = format!("disk {id}: `unit` of that controller is 0 to {}, not {unit}", places - 1);
                problem(About::Disk(index), reason)
            }
            // Only when there is no room a place was not found.
            None if disk.bus != DiskBus::Virtio => {
                let reason = format!("more than {places} disks on controller {} of bus \"{bus}\"", disk.controller);
                problem(About::Disk(index), reason)
            }
            _ => None,
        }
    }

    /// The disk is another's name, place or image.
    fn twice_problem(&self, index: usize) -> Option<Problem> {
        let disk = self.disks.get(index)?;
        let id = &disk.id;
        let others = || self.disks.iter().take(index).enumerate();
        if others().any(|(_, other)| other.id == disk.id) {
            return problem(About::DiskId(index), format!("disk {} has the same `id` as another, {id}", index + 1));
        }
        let same_image = |other: &Disk| other.source != DiskSource::Empty && other.source == disk.source;
        if let Some((_, other)) = others().find(|(_, other)| same_image(other)) {
            let reason = format!("disk {id} is the same file as disk {}", other.id);
            return problem(About::DiskSource(index), reason);
        }
        let place = |disk: &Disk| (disk.bus, disk.controller, disk.unit);
        let same_place = |other: &Disk| disk.unit.is_some() && place(other) == place(disk);
        if let Some((_, other)) = others().find(|(_, other)| same_place(other)) {
            return problem(About::Disk(index), format!("disk {id} has the same place as disk {}", other.id));
        }
        None
    }
}

impl Disk {
    fn problem(&self, index: usize) -> Option<Problem> {
        self.id_problem(index)
            .or_else(|| self.source_problem(index))
            .or_else(|| self.kind_problem(index))
            .or_else(|| self.serial_problem(index))
    }

    fn id_problem(&self, index: usize) -> Option<Problem> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let is_id = self.id.starts_with(|c: char| c.is_ascii_lowercase()) && self.id.chars().all(fits);
        if is_id && self.id.len() <= MAX_DISK_ID {
            return None;
        }
        let reason = format!("`id` is a letter and up to {} letters, digits and '-'", MAX_DISK_ID - 1);
        problem(About::DiskId(index), format!("disk {}: {reason}", index + 1))
    }

    fn source_problem(&self, index: usize) -> Option<Problem> {
        let (about, id) = (About::DiskSource(index), &self.id);
        match &self.source {
            DiskSource::Path(path) => path_problem(about, "path", path),
            DiskSource::Empty if self.cdrom => None,
            DiskSource::Empty => problem(about, format!("disk {id} needs a `path` or a `url`")),
            DiskSource::Remote(Remote::Http { .. }) if !self.readonly => {
                let reason = "what a web server gives out is only read: say `readonly = true`, or make a qcow2 image";
                problem(about, format!("disk {id}: {reason} that stands on it"))
            }
            DiskSource::Remote(Remote::Http { .. }) => None,
            DiskSource::Remote(Remote::Nbd { server, tls, .. }) => {
                let socket =
                    if let NbdServer::Unix(path) = server { path_problem(about, "socket", path) } else { None };
                socket.or_else(|| path_problem(about, "tls-certificates", &tls.as_ref()?.certificates))
            }
        }
    }

    fn kind_problem(&self, index: usize) -> Option<Problem> {
        let reason = if self.cdrom && self.bus == DiskBus::Virtio {
            "a CD needs bus \"ide\" or \"scsi\""
        } else if self.cdrom && self.format != DiskFormat::Raw {
            "a CD is format \"raw\""
        } else if self.cdrom && !self.readonly {
            "a CD is read-only"
        } else if self.readonly && !self.cdrom && self.bus == DiskBus::Ide {
            "an IDE disk cannot be read-only; take bus \"scsi\" or \"virtio\""
        } else if self.format == DiskFormat::Vmdk && !self.readonly {
            "vmdk images are only read: say `readonly = true`, or convert it"
        } else {
            return None;
        };
        problem(About::Disk(index), format!("disk {}: {reason}", self.id))
    }

    fn serial_problem(&self, index: usize) -> Option<Problem> {
        let serial = self.serial.as_deref()?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if (1..=MAX_SERIAL).contains(&serial.len()) && serial.chars().all(fits) {
            return None;
        }
        let reason = format!("`serial` is 1 to {MAX_SERIAL} letters, digits, '-', '_' and '.'");
        problem(About::Disk(index), format!("disk {}: {reason}", self.id))
    }
}

impl DiskBus {
    /// The word for it in definitions.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ide => "ide",
            Self::Scsi => "scsi",
            Self::Virtio => "virtio",
        }
    }
}
