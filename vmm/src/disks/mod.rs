//! Disk images that no VM has to run for: made, described, converted, resized, shown as trees, removed.
//!
//! Everything that goes through an image is done by `qemu-img`, of the QEMU that runs the guests; what may be done is
//! decided here.
//!
//! * `format`, `hyperv`: which format an image has, and who is believed about that,
//! * `qemu_img`: the program, bounded in time and length,
//! * `info`, `users`: what an image is, and who has it open,
//! * `chain`: which image stands on which; pure,
//! * `create`, `convert`, `resize`: making images, as jobs where it takes long,
//! * `overlay`: what takes the writes of a guest so that the image below stays as it is,
//! * `output`: files that are there whole or not at all,
//! * `block_device`: the host's own disks,
//! * `storage_move`: a VM's disk goes to another place, while it runs too.

mod block_device;
mod chain;
mod convert;
mod create;
mod error;
mod format;
mod hyperv;
mod info;
mod output;
mod overlay;
mod qemu_img;
mod resize;
mod storage_move;
mod users;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use block_device::BlockDevice;
pub(crate) use block_device::{is_block_device, lasting_name, require_free};
pub use chain::TreeNode;
pub use convert::Convert;
pub(crate) use convert::require_space;
pub use create::{BackingFile, Layout, NewImage, Preallocation};
pub use error::DiskError;
pub(crate) use hyperv::{file_parameters, kind_of_vhd, metadata_region};
pub use info::{BackingImage, ImageInfo, ImageSnapshot};
pub(crate) use info::{Described, describe};
pub(crate) use overlay::{
    backing_of, is_empty, laid_on, make_overlay, repair_counts, replay, replay_below, require_disks_writable,
    require_writable, same_file,
};
pub(crate) use qemu_img::{PercentReader, QemuImg};
pub use resize::{NewSize, Resize};
pub(crate) use storage_move::Merges;
pub use storage_move::{MoveDisk, Moved};
pub use users::ImageUser;

use crate::definition::{DiskFormat, sync_folder};
use crate::host::Host;
use crate::jobs::Job;
use crate::vm::Vm;
use block_device::Devices;
use chain::{Chains, Link};
use users::users_of;

/// Most images of one folder that are looked at.
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

    /// The images that VMs name, those in `folders`, and all that these stand on.
    ///
    /// # Errors
    ///
    /// When a folder cannot be read.
    pub async fn tree(&self, folders: &[PathBuf]) -> Result<Vec<TreeNode>, DiskError> {
        Ok(self.chains(folders).await?.tree())
    }

    /// Removes an image that no VM names, nothing stands on and nobody uses.
    ///
    /// # Errors
    ///
    /// When it is otherwise, or it cannot be removed.
    pub async fn delete(&self, path: &Path) -> Result<(), DiskError> {
        let path = &real(path)?;
        let data = fs::metadata(path).map_err(|error| DiskError::unreadable(path, error))?;
        if !data.is_file() {
            return Err(DiskError::invalid(format!("{} is not a file", path.display())));
        }
        let folder = path.parent().map(Path::to_path_buf);
        if let Some(by) = self.chains(folder.as_slice()).await?.need_of(path) {
            return Err(DiskError::Needed { path: path.into(), by });
        }
        self.unused(path)?;
        fs::remove_file(path).map_err(|error| DiskError::unwritable(path, error))?;
        let synced = folder.map_or(Ok(()), |folder| sync_folder(&folder));
        synced.map_err(|error| DiskError::unwritable(path, error))
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
        let path = real(path)?;
        // Those that VMs stand on are ours; the others are found in its own folder.
        let folder = path.parent().map(Path::to_path_buf);
        Ok(self.chains(folder.as_slice()).await?.need_of(&path))
    }

    /// The VM that writes to an image directly.
    pub(crate) fn writer_of(&self, path: &Path) -> Option<String> {
        let path = real(path).ok()?;
        let same = |other: &Path| real(other).is_ok_and(|other| other == path);
        let writes = |vm: &Vm| {
            let definitions = vm.definitions();
            let mut disks = definitions.iter().flat_map(|definition| &definition.disks);
            disks.any(|disk| !disk.readonly && disk.source.path().is_some_and(same))
        };
        self.host.list().iter().find(|vm| writes(vm)).map(|vm| vm.name().to_owned())
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

    /// The images that VMs name, those in `folders`, and all that these stand on.
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

/// The files in `folder` whose names are those of images, but for discs.
fn images_in(folder: &Path) -> Result<Vec<PathBuf>, DiskError> {
    let folder = &real(folder)?;
    let entries = fs::read_dir(folder).map_err(|error| DiskError::unreadable(folder, error))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let is_disc = |path: &Path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("iso"));
    let is_image = |path: &PathBuf| DiskFormat::of_name(path).is_some() && !is_disc(path) && path.is_file();
    let mut images: Vec<_> = paths.filter(is_image).filter_map(|path| real(&path).ok()).take(MAX_IMAGES).collect();
    images.sort();
    Ok(images)
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
