//! A library of VMs that are ready to be started: a folder, on a disk or a share, with a folder for each.
//!
//! ```text
//! NAME/vm.toml       the definition; its files are named as they lie beside it
//! NAME/disk0.qcow2 … the disks, and a kernel where the VM has one
//! NAME/variables.fd  what UEFI was told to keep, where the VM has that
//! NAME/SIZES         how long each of them is: a copy that is not complete is noticed at once
//! NAME/SHA256SUMS    as sha256sum(1) writes and checks it
//! ```
//!
//! A VM that is made from an entry stands on its disks: what it writes is in images of its own, so that it is there at once,
//! and the entry stays as it is. Or it takes the disks themselves. Either way they can be moved home while it runs.
//!
//! * `entry`: an entry's definition ⇄ a VM's, and whether its files are those that it was made of,
//! * `checksums`: the list, written and checked,
//! * `export`: making an entry,
//! * this file: VMs from entries.

mod checksums;
mod entry;
mod export;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::again::Again;
use crate::definition::{Definition, Disk, DiskFormat, DiskSource, make_folder, replace_file};
use crate::disks::{BackingFile, DiskError, Layout, MoveDisk, NewImage, Preallocation};
use crate::host::{Host, HostError};
use crate::jobs::{Job, JobId, JobKind, JobsError, NewJob};
use crate::vm::Vm;
use entry::Entry;

/// The file with an entry's definition.
pub(crate) const DEFINITION: &str = "vm.toml";
/// The file with the lengths of the rest.
const SIZES: &str = "SIZES";
/// The file with the checksums of the rest.
const CHECKSUMS: &str = "SHA256SUMS";
/// Files of UEFI's variables, in an entry and in the folder of a VM's devices.
const VARIABLES: [&str; 2] = ["variables.fd", "variables-secure.fd"];
/// Largest definition or list of an entry, in bytes.
const MAX_TEXT: u64 = 256 * 1024;

/// A VM to make from an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FromEntry {
    /// The entry's folder; absolute.
    pub entry: PathBuf,
    /// What the VM shall be called; none: as the entry's.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether it writes to the entry's own disks.
    #[serde(default)]
    pub direct: bool,
}

/// A VM cannot be made from the library, or put into it.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// A file or folder cannot be used.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is no entry, or says what no entry may say.
    #[error("{}: {reason}", entry.display())]
    NoEntry {
        /// Which.
        entry: PathBuf,
        /// Why.
        reason: String,
    },
    /// Something else excludes it now.
    #[error("{}: {reason}", path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A disk cannot be made, copied or moved.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The VM cannot be made, or there is none.
    #[error(transparent)]
    Host(#[from] HostError),
    /// There can be no job.
    #[error(transparent)]
    Jobs(#[from] JobsError),
    /// The VM has what no entry can have.
    #[error("VM {vm} cannot be exported: {reason}")]
    Unfit {
        /// Which.
        vm: String,
        /// Why not.
        reason: String,
    },
}

impl Host {
    /// Makes a VM from an entry of a library.
    ///
    /// # Errors
    ///
    /// When it is no entry or not complete, a file of it is used otherwise, or the VM or its images cannot be made; nothing
    /// is left then.
    pub async fn create_from(&self, request: FromEntry) -> Result<Vm, LibraryError> {
        let entry = Entry::read(&request.entry)?;
        let mut definition = entry.vm(request.name.as_deref())?;
        if let Some(vm) = self.find(&definition.name) {
            return Err(HostError::Taken { what: "name", value: vm.name().into() }.into());
        }
        entry.check_files(&definition)?;
        let mut made = MadeFiles::default();
        for disk in definition.disks.iter().filter(|disk| !disk.readonly) {
            self.check_use(disk, request.direct).await?;
        }
        if !request.direct {
            self.stand_on(&mut definition, &mut made).await?;
        }
        copy_variables(&request.entry, &self.devices_of(definition.uuid), &mut made)?;
        // What was made stands on what was read.
        if Entry::read(&request.entry)? != entry {
            let reason = "it was changed meanwhile; begin again".into();
            return Err(LibraryError::InUse { path: request.entry, reason });
        }
        let vm = self.create(definition).await?;
        made.keep();
        tracing::info!(vm = vm.name(), entry = %request.entry.display(), direct = request.direct, "made from a library");
        Ok(vm)
    }

    /// Compares the files of an entry with its list of checksums.
    ///
    /// # Errors
    ///
    /// When it is no entry or has no list, or there can be no job.
    pub async fn verify_entry(&self, folder: PathBuf) -> Result<Job, LibraryError> {
        self.verify_entry_as(None, folder).await
    }

    /// The same as the job that it is already, if there is one.
    pub(crate) async fn verify_entry_as(&self, job: Option<JobId>, folder: PathBuf) -> Result<Job, LibraryError> {
        let entry = Entry::read(&folder)?;
        let sums = checksums::read(&folder)?;
        let needed = entry.files(&entry.vm(None)?);
        let again = Again::Verify { folder: folder.clone() }.in_json();
        let new = NewJob { kind: JobKind::LibraryVerify, target: folder.display().to_string(), vm: None, again };
        let job = self.jobs().spawn_as(job, new, |job| async move {
            job.step("comparing");
            checksums::verify(&folder, &sums, &needed, &job).await.map(|()| None)
        });
        Ok(job.await?)
    }

    /// Begins to move all disks of a VM home: into images of its own that stand on nothing. Those that are home or only read
    /// stay where they are.
    ///
    /// # Errors
    ///
    /// When one cannot be moved; the moves that have begun go on.
    pub async fn move_home(&self, vm: &Vm) -> Result<Vec<Job>, LibraryError> {
        let images = self.images();
        make_folder(images).map_err(|error| LibraryError::Io { path: images.into(), error })?;
        let mut jobs = Vec::new();
        for disk in vm.definition().disks.iter().filter(|disk| !disk.readonly) {
            let Some(path) = disk.source.path() else { continue };
            let own = path.starts_with(images);
            if own && self.disks().info(path, Some(disk.format)).await?.backing.is_empty() {
                continue;
            }
            let target = free_path(images, &format!("{}-{}", vm.name(), disk.id), disk.format);
            let request = MoveDisk {
                target: target.display().to_string(),
                format: Some(disk.format),
                rate: None,
                verify: false,
                // Nobody needs what stood between.
                delete_source: own,
                leave_snapshots: false,
            };
            jobs.push(self.disks().move_disk(vm, &disk.id, request).await?);
        }
        Ok(jobs)
    }

    /// Fails when a disk of an entry is written to by somebody, or would be under somebody who stands on it.
    async fn check_use(&self, disk: &Disk, direct: bool) -> Result<(), LibraryError> {
        let Some(path) = disk.source.path() else { return Ok(()) };
        if direct {
            if let Some(by) = self.disks().need_of(path).await? {
                return Err(DiskError::Needed { path: path.into(), by }.into());
            }
            let writable = rustix::fs::access(path, rustix::fs::Access::WRITE_OK);
            return writable.map_err(|error| {
                let reason = format!("it cannot be written to ({error}); a VM with images of its own only reads it");
                LibraryError::InUse { path: path.into(), reason }
            });
        }
        match self.disks().writer_of(path) {
            Some(vm) => {
                Err(LibraryError::InUse { path: path.into(), reason: format!("VM {vm} writes to it directly") })
            }
            None => Ok(()),
        }
    }

    /// Puts images of its own between a VM and the disks that it could write to.
    async fn stand_on(&self, definition: &mut Definition, made: &mut MadeFiles) -> Result<(), LibraryError> {
        let images = self.images();
        make_folder(images).map_err(|error| LibraryError::Io { path: images.into(), error })?;
        let name = definition.name.clone();
        for disk in definition.disks.iter_mut().filter(|disk| !disk.readonly && disk.source != DiskSource::Empty) {
            let path = free_path(images, &format!("{name}-{}", disk.id), DiskFormat::Qcow2);
            let image = NewImage {
                path: path.clone(),
                size: None,
                format: Some(DiskFormat::Qcow2),
                layout: Layout::Dynamic,
                backing: Some(BackingFile { source: disk.source.clone(), format: Some(disk.format) }),
                preallocation: Preallocation::Off,
            };
            self.disks().create(image).await?;
            made.0.push(path.clone());
            (disk.source, disk.format) = (DiskSource::Path(path), DiskFormat::Qcow2);
        }
        Ok(())
    }
}

/// A name in `folder` that nothing has; an image that is made there takes it or fails.
fn free_path(folder: &Path, stem: &str, format: DiskFormat) -> PathBuf {
    let names = (1_u32..).map(|number| match number {
        1 => format!("{stem}.{}", format.word()),
        number => format!("{stem}-{number}.{}", format.word()),
    });
    let mut paths = names.map(|name| folder.join(name));
    paths.find(|path| fs::symlink_metadata(path).is_err()).unwrap_or_else(|| folder.join(stem))
}

fn copy_variables(entry: &Path, devices: &Path, made: &mut MadeFiles) -> Result<(), LibraryError> {
    for name in VARIABLES {
        let (from, to) = (entry.join(name), devices.join(name));
        if !from.exists() {
            continue;
        }
        let copied = entry::read_limited(&from, export::MAX_VARIABLES).and_then(|variables| {
            make_folder(devices)?;
            replace_file(&to, &variables)
        });
        copied.map_err(|error| LibraryError::Io { path: from, error })?;
        made.0.push(to);
    }
    Ok(())
}

/// Files of a VM that is not there yet: dropping them without [`keep`](Self::keep) removes them.
#[derive(Debug, Default)]
struct MadeFiles(Vec<PathBuf>);

impl MadeFiles {
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for MadeFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            // They were made a moment ago, and nothing is in them.
            let _ = fs::remove_file(path);
        }
    }
}
