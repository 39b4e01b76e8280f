//! Making an entry of a VM.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{CHECKSUMS, DEFINITION, LibraryError, SIZES, VARIABLES, checksums, entry};
use crate::again::Again;
use crate::definition::{Definition, DiskFormat, DiskSource, replace_file, sync_folder};
use crate::disks::require_space;
use crate::host::{Host, HostError};
use crate::jobs::{FileStamp, Job, JobHandle, JobId, JobKind, Leftover, NewJob, Unfinished};
use crate::lifecycle::{Hold, Monitor};
use crate::vm::Vm;

/// Largest file of UEFI's variables.
pub(super) const MAX_VARIABLES: u64 = 64 << 20;

/// A file of the entry to be, and where its contents come from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Copy {
    from: PathBuf,
    name: String,
    /// None: copied as it is.
    format: Option<DiskFormat>,
}

/// A folder that has another name until it is complete; dropping it before removes it.
#[derive(Debug)]
struct NewEntry {
    target: PathBuf,
    folder: FileStamp,
    complete: bool,
}

impl Host {
    /// Makes `folder`, which must not be there yet, an entry of a library: a copy of a VM, which is off and stays so
    /// meanwhile. Its disks stand on nothing there; checkpoints and the keys of a TPM are not copied.
    ///
    /// # Errors
    ///
    /// When there is no such VM, it is on or has a disk on a server, the folder is there or cannot be made, there is no room,
    /// or there can be no job.
    pub async fn export(&self, vm: &str, folder: PathBuf) -> Result<Job, LibraryError> {
        self.export_as(None, vm, folder).await
    }

    /// The same as the job that it is already, if there is one.
    pub(crate) async fn export_as(&self, job: Option<JobId>, vm: &str, folder: PathBuf) -> Result<Job, LibraryError> {
        let vm = self.find(vm).ok_or_else(|| HostError::Unknown(vm.into()))?;
        let definition = Definition::clone(&vm.wanted_definition());
        let unfit = |reason: String| LibraryError::Unfit { vm: vm.name().into(), reason };
        if let Some(disk) = definition.disks.iter().find(|disk| matches!(disk.source, DiskSource::Remote(_))) {
            return Err(unfit(format!("its disk {} is on a server; move it to a file first", disk.id)));
        }
        let holds = hold_all(&vm, &definition).await.map_err(unfit)?;
        let copies = copies(&definition, &self.devices_of(vm.uuid()));
        let new_entry = NewEntry::claim(&folder).map_err(|error| LibraryError::Io { path: folder.clone(), error })?;
        let mut needed = 0;
        for copy in &copies {
            needed += match copy.format {
                Some(format) => self.disks().room_for_copy(&copy.from, format).await?,
                None => fs::metadata(&copy.from).map_or(0, |data| data.len()),
            };
        }
        require_space(&folder, needed)?;
        let target = format!("{} to {}", vm.name(), folder.display());
        let again = Again::Export { vm: vm.uuid(), folder: folder.clone() }.in_json();
        let new = NewJob { kind: JobKind::LibraryExport, target, vm: Some(vm.name().into()), again };
        let host = self.clone();
        let job = self.jobs().spawn_as(job, new, |job| async move {
            let _holds = holds;
            for copy in &copies {
                host.copy_into(&new_entry, copy, &job).await?;
            }
            new_entry.finish(&definition, &copies, &job).await?;
            Ok(Some(json!({ "entry": folder })))
        });
        Ok(job.await?)
    }

    async fn copy_into(&self, new_entry: &NewEntry, copy: &Copy, job: &JobHandle) -> Result<(), Unfinished> {
        job.step(&format!("copying {}", copy.name));
        let target = new_entry.path().join(&copy.name);
        match copy.format {
            Some(format) => self.disks().copy_image(&copy.from, format, &target, job, &new_entry.leftovers()).await,
            None => {
                job.leave(&new_entry.leftovers()).await?;
                checksums::copy(&copy.from, &target, job).await
            }
        }
    }
}

/// Keeps a VM from being started, and its disks from being moved.
async fn hold_all(vm: &Vm, definition: &Definition) -> Result<Vec<Hold>, String> {
    if !matches!(vm.monitor().await, Monitor::Off) {
        return Err("it is on; shut it down first".into());
    }
    let mut holds = Vec::new();
    for disk in &definition.disks {
        let (hold, monitor) = vm.hold_disk(&disk.id).await?;
        if !matches!(monitor, Monitor::Off) {
            return Err("it is on; shut it down first".into());
        }
        holds.push(hold);
    }
    Ok(holds)
}

impl NewEntry {
    fn claim(target: &Path) -> io::Result<Self> {
        let taken = || io::Error::new(io::ErrorKind::AlreadyExists, "it is there already, and nothing is overwritten");
        if fs::symlink_metadata(target).is_ok() {
            return Err(taken());
        }
        let name = target.file_name().ok_or_else(|| io::Error::other("an entry needs a name"))?;
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{:08x}.part", uuid::Uuid::new_v4().as_fields().0));
        let folder = target.with_file_name(hidden);
        // Not the library above it: a share that is not mounted is not to be filled.
        fs::create_dir(&folder)?;
        Ok(Self { target: target.into(), folder: FileStamp::of(&folder)?, complete: false })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn leftovers(&self) -> Vec<Leftover> {
        vec![Leftover::Folder { folder: self.folder.clone(), target: self.target.clone() }]
    }

    /// Writes what describes the copies, and gives the folder its name.
    async fn finish(mut self, definition: &Definition, copies: &[Copy], job: &JobHandle) -> Result<(), Unfinished> {
        job.step("computing checksums");
        job.leave(&self.leftovers()).await?;
        let name = |path: &Path| copies.iter().find(|copy| copy.from == path).map(|copy| copy.name.clone());
        let text = entry::write(definition, name).map_err(Unfinished::Failed)?;
        replace_file(&self.path().join(DEFINITION), &text)?;
        let mut names: Vec<String> = copies.iter().map(|copy| copy.name.clone()).collect();
        replace_file(&self.path().join(SIZES), &entry::write_sizes(self.path(), &names)?)?;
        names.extend([DEFINITION.to_owned(), SIZES.to_owned()]);
        let sums = checksums::compute(self.path(), &names, job).await?;
        job.seal()?;
        replace_file(&self.path().join(CHECKSUMS), &checksums::write(&sums))?;
        if fs::symlink_metadata(&self.target).is_ok() {
            return Err(Unfinished::Failed(format!("{} is there by now", self.target.display())));
        }
        fs::rename(self.path(), &self.target)?;
        self.complete = true;
        Ok(self.target.parent().map_or(Ok(()), sync_folder)?)
    }
}

impl Drop for NewEntry {
    fn drop(&mut self) {
        if !self.complete
            && let Err(error) = fs::remove_dir_all(self.path())
        {
            tracing::warn!(folder = %self.path().display(), %error, "what was made of an entry cannot be removed");
        }
    }
}

/// The files that a VM is made of, with names that none of them has twice.
fn copies(definition: &Definition, devices: &Path) -> Vec<Copy> {
    let mut copies: Vec<Copy> = Vec::new();
    for (index, disk) in definition.disks.iter().enumerate() {
        let Some(path) = disk.source.path().filter(|path| copies.iter().all(|copy| copy.from != **path)) else {
            continue;
        };
        let extension = if disk.cdrom { "iso" } else { disk.format.word() };
        let format = (!disk.cdrom).then_some(disk.format);
        copies.push(Copy { from: path.into(), name: format!("disk{index}.{extension}"), format });
    }
    for (name, path) in ["kernel", "initrd"].into_iter().zip(entry::boot_files(definition)) {
        copies.push(Copy { from: path.into(), name: name.into(), format: None });
    }
    for name in VARIABLES {
        let from = devices.join(name);
        if from.exists() {
            copies.push(Copy { from, name: name.into(), format: None });
        }
    }
    copies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_gets_its_name_only_when_it_is_complete_and_takes_nobody_elses() {
        let folder = std::env::temp_dir().join(format!("fanlight-export-{}", std::process::id()));
        fs::create_dir(&folder).expect("temporary folder");
        let target = folder.join("web");
        let new_entry = NewEntry::claim(&target).expect("free");
        fs::write(new_entry.path().join("disk0.raw"), "x").expect("written");
        drop(new_entry);
        assert_eq!(fs::read_dir(&folder).expect("there").count(), 0, "nothing is left");
        fs::create_dir(&target).expect("made");
        assert_eq!(NewEntry::claim(&target).expect_err("taken").kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(NewEntry::claim(&folder.join("a/b")).expect_err("no library").kind(), io::ErrorKind::NotFound);
        fs::remove_dir_all(&folder).expect("removed");
    }
}
