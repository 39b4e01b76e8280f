//! Disk images that no VM has to run for: made, described, converted, resized, shown as trees, removed.
//!
//! Everything that goes through an image is done by `qemu-img`, of the QEMU that runs the guests; what may be done is
//! decided here.
//!
//! * `format`, `hyperv`: which format an image has, and who is believed about that,
//! * `qemu_img`: the program, bounded in time and length,
//! * `info`, `users`: what an image is, and who has it open,
//! * `chain`: which image stands on which; pure,
//! * `census`, `named`, `needs`, `overlay_book`: what is known of that, before an image is deleted or written to,
//! * `create`, `convert`, `resize`: making images, as jobs where it takes long,
//! * `delete`: removing what nothing needs,
//! * `overlay`: what takes the writes of a guest so that the image below stays as it is,
//! * `output`: files that are there whole or not at all,
//! * `block_device`: the host's own disks,
//! * `storage_move`: a VM's disk goes to another place, while it runs too.

mod block_device;
mod census;
mod chain;
mod convert;
mod create;
mod delete;
mod error;
mod format;
mod hyperv;
mod info;
mod named;
mod needs;
mod output;
mod overlay;
mod overlay_book;
mod qemu_img;
mod resize;
mod storage_move;
mod users;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(crate) use crate::definition::DiskFormat;
use crate::host::Host;
use crate::jobs::Job;
use crate::lifecycle::VmState;
use crate::vm::Vm;
pub use block_device::BlockDevice;
use block_device::Devices;
pub(crate) use block_device::{is_block_device, lasting_name, require_free};
use census::{Reach, census};
pub(crate) use census::{note_overlays, require_disks_writable};
pub use chain::TreeNode;
use chain::{Chains, Link};
pub use convert::Convert;
pub(crate) use convert::require_space;
pub use create::{BackingFile, Layout, NewImage, Preallocation};
pub use delete::LeftImage;
pub use error::DiskError;
pub(crate) use format::certain_format;
pub(crate) use hyperv::{file_parameters, kind_of_vhd, metadata_region};
pub use info::{BackingImage, ImageInfo, ImageSnapshot};
pub(crate) use info::{Described, describe};
use needs::{Needs, needs_of};
pub(crate) use overlay::{backing_of, is_empty, laid_on, make_overlay, repair_counts, replay, replay_below, same_file};
pub(crate) use overlay_book::OverlayBook;
pub(crate) use qemu_img::{PercentReader, QemuImg};
pub use resize::{NewSize, Resize};
pub(crate) use storage_move::{Merges, storage_daemon};
pub use storage_move::{MoveDisk, Moved};
pub use users::ImageUser;
pub(crate) use users::users_of;

/// Most images of one folder that are shown.
const MAX_IMAGES: usize = 1000;

/// The disk images of a host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Disks {
    host: Host,
    program: QemuImg,
}

/// What a request led to: a finished image, or a job that makes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Made {
    /// It is done.
    Image(Box<ImageInfo>),
    /// It takes a while.
    Job(Box<Job>),
}

impl Disks {
    pub(crate) fn new(host: Host, qemu: &Path) -> Self {
        Self { host, program: QemuImg::beside(qemu) }
    }

    /// Describes an image; a guest that uses it is not disturbed. Without a `format` it is that of the VM's definition
    /// that names the image, else the one that its name tells.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or its format is not clear.
    pub async fn info(&self, path: &Path, format: Option<DiskFormat>) -> Result<ImageInfo, DiskError> {
        let mut info = info::info(&self.program, path, format.or_else(|| self.format_in_definitions(path))).await?;
        info.users = self.users(path)?;
        Ok(info)
    }

    /// The images that VMs name, those that were made for VMs, those in `folders`, and all that these stand on.
    ///
    /// # Errors
    ///
    /// When a folder cannot be read.
    pub async fn tree(&self, folders: &[PathBuf]) -> Result<Vec<TreeNode>, DiskError> {
        Ok(self.chains(folders).await?.tree())
    }

    /// The block devices of the host.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn devices(&self) -> Result<Vec<BlockDevice>, DiskError> {
        Devices::default().list().map_err(|error| DiskError::unreadable(Path::new("/sys/class/block"), error))
    }

    /// Who needs an image: VMs that name it, or images that stand on it.
    pub(crate) async fn need_of(&self, path: &Path) -> Result<Option<String>, DiskError> {
        Ok(census(self.host.shared(), vec![path.into()], Reach::All).await?.need_of(path))
    }

    /// The VM that writes to an image directly.
    pub(crate) fn writer_of(&self, path: &Path) -> Option<String> {
        self.writer_among(path, |_| true)
    }

    /// The same, if it is on.
    fn writer_that_is_on(&self, path: &Path) -> Option<String> {
        use VmState::{Created, Deleted, Failed, Stopped};
        self.writer_among(path, |vm| !matches!(vm.status().state, Created | Stopped | Failed | Deleted))
    }

    fn writer_among(&self, path: &Path, counts: impl Fn(&Vm) -> bool) -> Option<String> {
        let path = real(path).ok()?;
        let same = |other: &Path| real(other).is_ok_and(|other| other == path);
        let writes = |vm: &Vm| {
            let definitions = vm.definitions();
            let mut disks = definitions.iter().flat_map(|definition| &definition.disks);
            disks.any(|disk| !disk.readonly && disk.source.path().is_some_and(same))
        };
        self.host.list().iter().find(|vm| counts(vm) && writes(vm)).map(|vm| vm.name().to_owned())
    }

    /// Who has an image open, with the VMs by name.
    fn users(&self, path: &Path) -> Result<Vec<ImageUser>, DiskError> {
        let mut users = users_of(path).map_err(|error| DiskError::unreadable(path, error))?;
        let vms = self.host.list();
        for user in &mut users {
            let vm = vms.iter().find(|vm| vm.status().pid == Some(user.pid));
            user.vm = vm.map(|vm| vm.name().to_owned());
        }
        Ok(users)
    }

    /// Fails when anybody has the image open.
    fn unused(&self, path: &Path) -> Result<(), DiskError> {
        self.used_by(path, |_| true)
    }

    /// Fails when anybody writes to the image.
    fn unwritten(&self, path: &Path) -> Result<(), DiskError> {
        self.used_by(path, |user| user.writes)
    }

    fn used_by(&self, path: &Path, counts: impl Fn(&ImageUser) -> bool) -> Result<(), DiskError> {
        let by = Devices::default().why_in_use(path).map_err(|error| DiskError::unreadable(path, error))?;
        if let Some(by) = by {
            return Err(DiskError::InUse { path: path.into(), by });
        }
        match self.users(path)?.into_iter().find(counts) {
            Some(user) => Err(DiskError::InUse { path: path.into(), by: user.in_words() }),
            None => Ok(()),
        }
    }

    /// The format by which a VM's definition names the image at `path`, or an overlay that a VM's definition names.
    fn format_in_definitions(&self, path: &Path) -> Option<DiskFormat> {
        let path = real(path).ok()?;
        let definitions = self.host.list().into_iter().flat_map(|vm| vm.definitions());
        let is_it = |other: &Path| real(other).is_ok_and(|other| other == path);
        definitions.into_iter().find_map(|definition| {
            definition.disks.iter().find_map(|disk| {
                let at = disk.source.path()?;
                let below = || backing_of(at).ok().flatten().filter(|below| is_it(&below.path));
                if is_it(at) { Some(disk.format) } else { below()?.format }
            })
        })
    }

    /// What [`tree`](Self::tree) shows.
    async fn chains(&self, folders: &[PathBuf]) -> Result<Chains, DiskError> {
        let mut chains = Chains::default();
        let mut formats = Vec::new();
        for vm in self.host.list() {
            let definitions = vm.definitions();
            for disk in definitions.iter().flat_map(|definition| &definition.disks).filter(|disk| !disk.cdrom) {
                let Some(path) = disk.source.path() else { continue };
                let path = real(path).unwrap_or_else(|_| path.into());
                chains.name(path.clone(), vm.name());
                formats.push((path, Some(disk.format)));
            }
        }
        for folder in folders {
            formats.extend(images_in(folder)?.into_iter().map(|path| (path, None)));
        }
        // There may be none yet.
        formats.extend(images_in(self.host.images()).unwrap_or_default().into_iter().map(|path| (path, None)));
        let noted = self.host.shared().overlays.read().unwrap_or_default();
        formats.extend(noted.iter().filter_map(|noted| Some((real(noted.overlay()).ok()?, None))));
        let mut done = BTreeSet::new();
        for (path, said) in formats {
            self.follow(path, said, &mut chains, &mut done).await;
        }
        Ok(chains)
    }

    /// Notes an image and all that it stands on.
    async fn follow(&self, path: PathBuf, said: Option<DiskFormat>, chains: &mut Chains, done: &mut BTreeSet<PathBuf>) {
        let mut next = Some((path, said));
        while let Some((path, said)) = next.take().filter(|(path, _)| done.insert(path.clone())) {
            let described = match format::to_read(&path, said) {
                Ok(format) => info::describe(&self.program, &path, format).await.map(|described| (format, described)),
                Err(error) => Err(error),
            };
            let mut link = Link { format: said, ..Link::default() };
            match described {
                Ok((format, described)) => {
                    (link.format, link.size) = (Some(format), Some(described.size));
                    if let Some(backing) = described.backing {
                        link.backing = backing.path().map(|path| real(&path).unwrap_or(path));
                        link.remote = link.backing.is_none().then(|| backing.name.clone());
                        let format = backing.locate().ok().map(|(_, format)| format);
                        next = link.backing.clone().map(|path| (path, format));
                    }
                }
                Err(error) => link.problem = Some(error.to_string()),
            }
            chains.insert(path, link);
        }
    }
}

/// The files in `folder` whose names are those of images, but for discs, and those that need others.
fn images_in(folder: &Path) -> Result<Vec<PathBuf>, DiskError> {
    let folder = &real(folder)?;
    let entries = fs::read_dir(folder).map_err(|error| DiskError::unreadable(folder, error))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let is_disc = |path: &Path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("iso"));
    let needs = |path: &Path| needs_of(path).is_ok_and(|needs| needs != Needs::default());
    let is_image = |path: &PathBuf| match DiskFormat::of_name(path) {
        _ if is_hidden(path) || !path.is_file() => false,
        Some(_) => !is_disc(path),
        None => needs(path),
    };
    let mut images: Vec<_> = paths.filter(is_image).filter_map(|path| real(&path).ok()).take(MAX_IMAGES).collect();
    images.sort();
    Ok(images)
}

/// What is not complete is made under such a name.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// The path without links: two names of one image are one image.
fn real(path: &Path) -> Result<PathBuf, DiskError> {
    fs::canonicalize(path).map_err(|error| DiskError::unreadable(path, error))
}

fn absolute(path: &Path) -> Result<(), DiskError> {
    if path.is_absolute() {
        Ok(())
    } else {
        Err(DiskError::invalid(format!("{} is not an absolute path", path.display())))
    }
}
