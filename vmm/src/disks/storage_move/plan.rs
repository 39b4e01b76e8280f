//! What is checked before a move begins, and the making of its target.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::Access;

use super::MoveDisk;
use super::compare::SOURCE;
use super::daemon::Daemon;
use crate::definition::{Disk, DiskFormat, DiskSource, Remote};
use crate::disks::convert::{check_chain, require_space};
use crate::disks::create::{Layout, layout_options};
use crate::disks::output::claim;
use crate::disks::{DiskError, Disks, is_block_device, same_file};
use crate::engine::RuntimeFolder;
use crate::files::sync_folder;
use crate::jobs::FileStamp;
use crate::lifecycle::{Hold, Monitor};
use crate::vm::Vm;

/// A move that can begin.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) source: Disk,
    pub(super) target: Disk,
    /// Bytes that the guest sees.
    pub(super) size: u64,
    pub(super) hold: Hold,
    pub(super) monitor: Monitor,
    /// It shows the source.
    pub(super) daemon: Daemon,
}

impl Disks {
    pub(super) async fn plan_move(&self, vm: &Vm, disk: &str, request: &MoveDisk) -> Result<Plan, DiskError> {
        let definition = vm.definition();
        let source = definition.disk(disk).cloned();
        let source = source.ok_or_else(|| DiskError::invalid(format!("VM {} has no disk {disk}", definition.name)))?;
        let target = self.target_of(&source, request)?;
        let held = vm.hold_disk(&source.id).await;
        let in_use = |by| DiskError::InUse { path: source.source.to_string().into(), by };
        let (hold, monitor) = held.map_err(in_use)?;
        if matches!(monitor, Monitor::Silent) {
            return Err(DiskError::Refused("its QEMU does not answer; power the VM off first".into()));
        }
        self.check_source(&source, &monitor, request).await?;
        let (daemon, size) = self.daemon(vm, &source).await?;
        self.check_room(&source, &target, size).await?;
        Ok(Plan { source, target, size, hold, monitor, daemon })
    }

    /// A storage daemon that shows the source, and the size of that.
    async fn daemon(&self, vm: &Vm, source: &Disk) -> Result<(Daemon, u64), DiskError> {
        let refused = |error: String| DiskError::Refused(error);
        let daemon = self.start_daemon(vm, &source.id).await?;
        daemon.show(source, SOURCE).await.map_err(|error| refused(error.to_string()))?;
        let shown = daemon.connect(SOURCE, None).await.map_err(|error| refused(error.to_string()))?;
        let size = shown.size();
        Ok((daemon, size))
    }

    pub(super) async fn start_daemon(&self, vm: &Vm, disk: &str) -> Result<Daemon, DiskError> {
        let folder = self.host.runtime_of(vm.uuid());
        let folder = RuntimeFolder::create(&folder).map_err(|error| DiskError::unwritable(&folder, error))?;
        let started = Daemon::start(self.host.qemu(), folder, disk).await;
        started.map_err(|error| DiskError::NoProgram { program: "qemu-storage-daemon".into(), error })
    }

    /// The disk as it will be.
    fn target_of(&self, source: &Disk, request: &MoveDisk) -> Result<Disk, DiskError> {
        let place = DiskSource::of_words(&request.target).map_err(|error| DiskError::invalid(error.to_string()))?;
        let format = match &place {
            DiskSource::Empty => return Err(DiskError::invalid("a disk needs a place")),
            DiskSource::Remote(Remote::Http { .. }) => {
                return Err(DiskError::invalid("a web server is never written to; take nbd://"));
            }
            DiskSource::Remote(Remote::Nbd { .. }) => request.format.unwrap_or(DiskFormat::Raw),
            DiskSource::Path(path) if is_block_device(path) => request.format.unwrap_or(DiskFormat::Raw),
            DiskSource::Path(path) => {
                super::super::absolute(path)?;
                let unclear = || DiskError::UnclearFormat { path: path.clone(), what: "its name does not tell".into() };
                request.format.or_else(|| DiskFormat::of_name(path)).ok_or_else(unclear)?
            }
        };
        if format == DiskFormat::Vmdk {
            return Err(DiskError::invalid("vmdk images are only read; take qcow2"));
        }
        let target = Disk { source: place, format, ..source.clone() };
        self.check_target(source, &target)?;
        Ok(target)
    }

    fn check_target(&self, source: &Disk, target: &Disk) -> Result<(), DiskError> {
        let same = source.source == target.source
            || matches!((source.source.path(), target.source.path()), (Some(a), Some(b)) if same_file(a, b));
        if same {
            return Err(DiskError::invalid(format!("the disk is at {} already", target.source)));
        }
        let named = self.host.list().into_iter().find(|vm| {
            let definitions = vm.definitions();
            let mut others = definitions.iter().flat_map(|definition| &definition.disks);
            others.any(|disk| {
                disk.source == target.source
                    || matches!((disk.source.path(), target.source.path()), (Some(a), Some(b)) if same_file(a, b))
            })
        });
        if let Some(vm) = named {
            let by = format!("it is a disk of VM {}", vm.name());
            return Err(DiskError::InUse { path: target.source.to_string().into(), by });
        }
        match &target.source {
            DiskSource::Path(path) if is_block_device(path) => self.unused(path),
            DiskSource::Path(path) if fs::symlink_metadata(path).is_ok() => Err(DiskError::Exists(path.clone())),
            DiskSource::Path(path) => return require_folder(path),
            _ => Ok(()),
        }?;
        if target.format != DiskFormat::Raw {
            let reason = format!("{} holds the disk's bytes as they are; leave the format out", target.source);
            return Err(DiskError::invalid(reason));
        }
        Ok(())
    }

    async fn check_source(&self, source: &Disk, monitor: &Monitor, request: &MoveDisk) -> Result<(), DiskError> {
        if source.readonly || source.source == DiskSource::Empty {
            return Err(DiskError::invalid(format!(
                "{} is only read; copy it with `disk convert`, and give the VM the copy",
                source.id
            )));
        }
        let Some(path) = source.source.path() else {
            return if request.delete_source { Err(not_deleted(source)) } else { Ok(()) };
        };
        let info = self.info(path, Some(source.format)).await?;
        check_chain(&info)?;
        if !info.snapshots.is_empty() && !request.leave_snapshots {
            let (count, plural) = (info.snapshots.len(), if info.snapshots.len() == 1 { "" } else { "s" });
            return Err(DiskError::invalid(format!(
                "{} holds {count} checkpoint{plural} of the VM, which cannot come along; delete them first, or leave them \
                 behind, where they are of no use to it (`--leave-snapshots`)",
                path.display()
            )));
        }
        if request.delete_source && is_block_device(path) {
            return Err(not_deleted(source));
        }
        if matches!(monitor, Monitor::Off) { self.unused(path) } else { Ok(()) }
    }

    async fn check_room(&self, source: &Disk, target: &Disk, size: u64) -> Result<(), DiskError> {
        let Some(path) = target.source.path() else { return Ok(()) };
        if is_block_device(path) {
            let room = device_size(path)?;
            return if room < size {
                Err(DiskError::NoSpace { folder: path.into(), needed: size, free: room })
            } else {
                Ok(())
            };
        }
        let needed = match source.source.path() {
            // The zeros of a disk without a map of its own are written out there: neither format can be told of them.
            Some(_)
                if source.format == DiskFormat::Raw && matches!(target.format, DiskFormat::Vhd | DiskFormat::Vhdx) =>
            {
                size
            }
            Some(path) => self.bytes_in(&self.info(path, Some(source.format)).await?).await?,
            None => size,
        };
        require_space(path, needed)
    }

    /// Makes the target's file, of which there is the name, an image.
    pub(super) async fn make_target(&self, target: &Disk, size: u64) -> Result<(), DiskError> {
        let Some(path) = file_of(target) else { return Ok(()) };
        let format = target.format;
        if format == DiskFormat::Raw {
            let stretched = OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(size));
            return stretched.map_err(|error| DiskError::unwritable(path, error));
        }
        let mut arguments: Vec<OsString> = ["create", "-q", "-f", format.driver()].map(Into::into).into();
        for option in layout_options(format, Layout::Dynamic) {
            arguments.extend(["-o".into(), option.into()]);
        }
        arguments.extend(["--".into(), path.into(), size.to_string().into()]);
        self.program.ask(arguments).await.map(drop)
    }
}

/// Keeps the name of the target with an empty file, if it is one. The name lasts, as the definition will tell it.
pub(super) fn claim_target(target: &Disk) -> Result<Option<FileStamp>, DiskError> {
    let Some(path) = file_of(target) else { return Ok(None) };
    let claimed = claim(path)?;
    if let Err(error) = path.parent().map_or(Ok(()), sync_folder) {
        // The first error is the one to tell.
        let _ = claimed.remove();
        return Err(DiskError::unwritable(path, error));
    }
    Ok(Some(claimed))
}

/// The target's folder must be there and writable, which is worth knowing before what is wrong with the source.
fn require_folder(target: &Path) -> Result<(), DiskError> {
    let folder = target.parent().unwrap_or(target);
    let writable = rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK);
    writable.map_err(|error| DiskError::unwritable(folder, error.into()))?;
    if folder.is_dir() { Ok(()) } else { Err(DiskError::unwritable(folder, io::ErrorKind::NotADirectory.into())) }
}

fn file_of(target: &Disk) -> Option<&Path> {
    target.source.path().filter(|path| !is_block_device(path))
}

fn not_deleted(source: &Disk) -> DiskError {
    DiskError::invalid(format!("only a file is deleted, and {} is none", source.source))
}

fn device_size(path: &Path) -> Result<u64, DiskError> {
    use std::io::{Seek as _, SeekFrom};
    let end = fs::File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0)));
    end.map_err(|error| DiskError::unreadable(path, error))
}
