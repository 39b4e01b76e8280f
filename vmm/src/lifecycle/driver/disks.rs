//! Disks that come, go and change: in the definition first, in QEMU then.

use std::io;
use std::path::Path;

use crate::definition::{Definition, Disk, DiskFormat, DiskSource, InvalidDefinition};
use crate::disks::{certain_format, lasting_name, note_overlays, require_disks_writable, require_free, users_of};
use crate::engine::QmpError;
use crate::lifecycle::disks::{Correction, Plug, can_be_plugged};
use crate::lifecycle::machine::Machine;
use crate::lifecycle::snapshot::Overlays;
use crate::lifecycle::state::Cause;

use super::{Driver, Trouble};

impl Driver {
    /// Where a guest that is on cannot be given it, it has it from the next start on.
    pub(super) async fn attach_disk(&mut self, disk: &Disk) -> Result<(), Trouble> {
        self.require_readable()?;
        let mut disk = disk.clone();
        self.name(&mut disk)?;
        let id = disk.id.clone();
        lasting_name(&mut disk.source);
        require_there(&disk.source)?;
        require_believable(&disk)?;
        let writable = require_disks_writable(&self.host, std::slice::from_ref(&disk)).await;
        writable.map_err(|error| Trouble::refused_for(&error))?;
        let source = disk.source.clone();
        let attach = |definition: &mut Definition| {
            definition.disks.push(disk.clone());
            definition.settle();
        };
        self.change_disks(&source, attach, async |plug, definition| match definition.disk(&id) {
            Some(disk) if can_be_plugged(disk, &definition.controllers) => {
                plug.attach(disk, &definition.controllers).await
            }
            _ => Ok(()),
        })
        .await
    }

    /// The same the other way round.
    pub(super) async fn detach_disk(&mut self, id: &str) -> Result<(), Trouble> {
        self.require_readable()?;
        let disk = self.known_disk(id)?;
        note_overlays(&self.host).await;
        let detach = |definition: &mut Definition| definition.disks.retain(|other| other.id != disk.id);
        self.change_disks(&disk.source, detach, async |plug, definition| {
            if can_be_plugged(&disk, &definition.controllers) && plug.drives().await?.has(&disk.id) {
                plug.detach(&disk.id).await
            } else {
                Ok(())
            }
        })
        .await
    }

    /// The guest sees the new size at once, if what its disk sits on can tell it.
    pub(super) async fn resize_disk(&mut self, id: &str, size: u64) -> Result<(), Trouble> {
        let disk = self.known_disk(id)?;
        let plug = self.plug()?.ok_or_else(|| Trouble::Refused("it is off".into()))?;
        plug.resize(&disk.id, size).await.map_err(|error| self.trouble(error, &disk.source))
    }

    pub(super) async fn change_disc(&mut self, id: &str, source: &DiskSource, force: bool) -> Result<(), Trouble> {
        self.require_readable()?;
        let disk = self.known_disk(id)?;
        if !disk.cdrom {
            let reason = format!("disk {} is no drive for discs", disk.id);
            return Err(Trouble::of(Cause::Invalid, Trouble::Refused(reason)));
        }
        require_there(source)?;
        let changed = Disk { source: source.clone(), ..disk };
        let insert = |definition: &mut Definition| {
            for disk in definition.disks.iter_mut().filter(|disk| disk.id == changed.id && disk.cdrom) {
                disk.source.clone_from(&changed.source);
            }
        };
        self.change_disks(source, insert, async |plug, _| {
            if plug.drives().await?.has(&changed.id) { plug.change_medium(&changed, force).await } else { Ok(()) }
        })
        .await
    }

    /// Makes QEMU have what the definition says: an earlier gateway may have ended between the two.
    pub(super) async fn correct_disks(&mut self) {
        let Ok(Some(plug)) = self.plug() else { return };
        let definition = self.definition.current();
        let drives = match plug.drives().await {
            Ok(drives) => drives,
            Err(error) => return tracing::warn!(%error, "the disks cannot be looked at"),
        };
        for correction in drives.corrections(&definition, |_| false) {
            tracing::info!(?correction, "a change that was not completed");
            if let Err(error) = correct(&plug, &correction, &definition).await {
                tracing::debug!(?correction, %error, "it waits for the next start");
            }
        }
        self.note_differences(&plug).await;
    }

    /// Has QEMU write to the overlays that the definition names: an earlier gateway may have ended before it was told.
    pub(super) async fn finish_overlays(&self) {
        // A QEMU that does not answer is looked at again.
        let Ok(overlays) = self.overlays() else { return };
        // Nothing is waited for that takes long: everybody waits for this.
        let overlays = Overlays { deadline: self.host.config.deadlines.command, ..overlays };
        if let Err(error) = overlays.finish().await {
            tracing::warn!(%error, "QEMU does not write to the overlays of its disks; the next checkpoint tries again");
        }
    }

    /// Changes the definition and does in QEMU, if there is one, what it takes. What QEMU cannot do is not left in the file.
    async fn change_disks(
        &mut self,
        source: &DiskSource,
        change: impl Fn(&mut Definition),
        in_qemu: impl AsyncFnOnce(&Plug, &Definition) -> Result<(), QmpError>,
    ) -> Result<(), Trouble> {
        let plug = self.plug()?;
        let before = self.definition.both();
        self.definition.change(change).map_err(not_changed)?;
        let Some(plug) = plug else { return Ok(()) };
        let done = in_qemu(&plug, &self.definition.current()).await;
        if done.is_err()
            && let Err(error) = self.definition.put_back(before)
        {
            tracing::warn!(%error, "the definition keeps a change that was not made");
        }
        self.note_differences(&plug).await;
        done.map_err(|error| self.trouble(error, source))
    }

    /// Makes it known which disks wait for the next start.
    async fn note_differences(&self, plug: &Plug) {
        let definition = self.definition.current();
        match plug.drives().await {
            Ok(drives) => {
                let next_start = drives.differences(&definition);
                self.status.send_if_modified(|status| {
                    let differs = status.next_start != next_start;
                    status.next_start = next_start;
                    differs
                });
            }
            Err(error) => tracing::debug!(%error, "the disks cannot be looked at"),
        }
    }

    /// Chooses a name for a disk that has none, and a place; that of a disk that QEMU still has is not free.
    fn name(&self, disk: &mut Disk) -> Result<(), Trouble> {
        let waits = &self.status.borrow().next_start;
        let definitions = [self.definition.current(), self.definition.wanted()];
        let others = || definitions.iter().flat_map(|definition| &definition.disks);
        if disk.id.is_empty() {
            let is_free = |name: &String| others().all(|other| other.id != *name) && !waits.contains(name);
            let first = definitions.iter().map(|definition| definition.disks.len()).min().unwrap_or(0);
            disk.id = (first..).map(|number| format!("disk{number}")).find(is_free).unwrap_or_default();
        } else if waits.contains(&disk.id) {
            let reason = format!("the guest has a disk {} until its next start; take another name", disk.id);
            return Err(Trouble::of(Cause::InUse, Trouble::Refused(reason)));
        }
        if disk.unit.is_none() {
            // One that is free now, and at the next start.
            let mut both = Definition { disks: others().cloned().collect(), ..Definition::clone(&definitions[0]) };
            both.disks.push(disk.clone());
            both.settle();
            disk.unit = both.disks.pop().and_then(|disk| disk.unit);
        }
        Ok(())
    }

    /// The disk of that name or image.
    fn known_disk(&self, id: &str) -> Result<Disk, Trouble> {
        let unknown = || Trouble::of(Cause::Missing, Trouble::Refused(format!("it has no disk `{id}`")));
        self.definition.current().disk(id).cloned().ok_or_else(unknown)
    }

    /// What changes the disks of its QEMU; none when there is no QEMU.
    pub(super) fn plug(&self) -> Result<Option<Plug>, Trouble> {
        let Some(machine) = &self.machine else { return Ok(None) };
        let qmp = machine.qmp().ok_or_else(|| Trouble::Refused("its QEMU does not answer".into()))?;
        Ok(Some(Plug::new(qmp)))
    }
}

async fn correct(plug: &Plug, correction: &Correction, definition: &Definition) -> Result<(), QmpError> {
    let disk = |id: &String| definition.disks.iter().find(|disk| disk.id == *id);
    match correction {
        Correction::Unplug(id) => plug.detach(id).await,
        Correction::Plug(id) => match disk(id) {
            Some(disk) => plug.attach(disk, &definition.controllers).await,
            None => Ok(()),
        },
        Correction::ChangeMedium(id) => match disk(id) {
            Some(disk) => plug.change_medium(disk, true).await,
            None => Ok(()),
        },
    }
}

impl Driver {
    /// What QEMU refuses leaves the VM as it was; silence does not.
    fn trouble(&self, error: QmpError, source: &DiskSource) -> Trouble {
        match error {
            QmpError::Refused { reason, .. } => match self.who_locks(&reason, source.path()) {
                Some(by) => Trouble::of(Cause::InUse, Trouble::Refused(by)),
                None => Trouble::Refused(reason),
            },
            error => Trouble::Failed(error.to_string()),
        }
    }

    /// Who has an image, when that is why QEMU does not open it: QEMU knows only of a lock.
    pub(super) fn who_locks<'a>(&self, said: &str, paths: impl IntoIterator<Item = &'a Path>) -> Option<String> {
        if !said.contains("Failed to get") || !said.contains("lock") {
            return None;
        }
        let own = self.machine.as_ref().map(Machine::pid);
        paths.into_iter().find_map(|path| {
            let users = users_of(path).unwrap_or_default();
            let mut user = users.into_iter().find(|user| user.locks && Some(user.pid) != own)?;
            user.vm =
                self.host.vms().iter().find(|vm| vm.status().pid == Some(user.pid)).map(|vm| vm.name().to_owned());
            Some(format!("{} is in use: {}", path.display(), user.in_words()))
        })
    }
}

/// Fails when a file is not there, or something of the host has the device.
fn require_there(source: &DiskSource) -> Result<(), Trouble> {
    let Some(path) = source.path() else { return Ok(()) };
    let missing = |error: io::Error| {
        let cause = if error.kind() == io::ErrorKind::NotFound { Cause::Missing } else { Cause::Failure };
        Trouble::of(cause, Trouble::Refused(format!("{}: {error}", path.display())))
    };
    std::fs::metadata(path).map_err(missing)?;
    require_free(path).map_err(|by| Trouble::of(Cause::InUse, Trouble::Refused(by)))
}

/// Fails when an image is to be taken as raw whose name and bytes say otherwise: what a guest writes would destroy it.
fn require_believable(disk: &Disk) -> Result<(), Trouble> {
    let named = disk.source.path().filter(|_| disk.format == DiskFormat::Raw && !disk.readonly);
    let Some(format) = named.and_then(certain_format).filter(|format| *format != DiskFormat::Raw) else {
        return Ok(());
    };
    let reason = format!(
        "{} is {} by its name and its bytes: what a guest wrote to it as a raw disk would destroy it",
        disk.source,
        format.word()
    );
    Err(Trouble::of(Cause::Invalid, Trouble::Refused(reason)))
}

/// A definition was not changed: it says what cannot be, or its file cannot be written.
fn not_changed(error: io::Error) -> Trouble {
    let is_invalid = error.get_ref().is_some_and(|inner| inner.is::<InvalidDefinition>());
    let cause = if is_invalid { Cause::Invalid } else { Cause::Failure };
    Trouble::of(cause, Trouble::Refused(error.to_string()))
}
