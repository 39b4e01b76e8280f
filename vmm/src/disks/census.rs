//! All images that are known to need another: before one is deleted or written to.
//!
//! Those that VMs name, whether their definitions can be read or not; those in the folder of images that are made for VMs,
//! in the folders of the others, and in that of the image that it is about, whatever they are called; those in the book;
//! and all that these stand on. Only bytes are read, so that it can be asked before each start of a VM.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chain::{Chains, Link};
use super::error::DiskError;
use super::named::{Named, named_images};
use super::needs::{Needs, needs_of};
use super::overlay::{Below, is_name_of_overlay, require_writable};
use super::overlay_book::Noted;
use super::qemu_img::QemuImg;
use super::real;
use crate::definition::{Disk, DiskFormat, quoted_in};
use crate::host::HostShared;
use crate::library;

/// Most files of one folder that are looked at.
const MAX_FILES: usize = 100_000;

/// What is known of the images of a host.
#[derive(Debug, Default)]
pub(crate) struct Census {
    chains: Chains,
    /// The first path by which each file was met: two names of one file are one image.
    files: HashMap<(u64, u64), PathBuf>,
    /// What was looked at.
    looked: BTreeSet<PathBuf>,
    /// Of what cannot be known: the image that it may be about, or none where it may be any, and the reason.
    doubts: Vec<(Option<PathBuf>, String)>,
}

/// How far it is looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// In the folders of all images that VMs name.
    All,
    /// In those of the images that it is about.
    Near,
}

impl Census {
    /// Looks at what there is, for what is to happen to the images at `about`. Waits for disks.
    pub(crate) fn take(host: &HostShared, about: &[PathBuf], reach: Reach) -> Result<Self, DiskError> {
        let mut census = Self::default();
        let Named { images: named, unread } = named_images(host);
        census.doubts.extend(unread.into_iter().map(|reason| (None, reason)));
        for image in &named {
            let path = census.identity(&image.path);
            census.chains.name(path, &image.vm);
        }
        // What VMs name is believed to be what they say; the bytes of a raw disk are its guest's.
        for image in &named {
            census.follow(&image.path, image.format);
        }
        for path in about {
            census.follow(path, None);
        }
        let paths: Vec<PathBuf> = named.iter().map(|image| image.path.clone()).collect();
        if let Err(error) = host.overlays.note(&census.far_overlays(&paths)) {
            tracing::warn!(%error, "the overlays that VMs have are not noted");
        }
        let noted = host.overlays.read().map_err(|error| DiskError::unreadable(host.overlays.file(), error))?;
        noted.iter().for_each(|noted| census.believe(noted));
        let mut folders: BTreeSet<PathBuf> = about.iter().filter_map(|path| real(path.parent()?).ok()).collect();
        let required = folders.clone();
        folders.extend(real(&host.config.images));
        if reach == Reach::All {
            let all = census.chains.paths().map(Path::to_path_buf).collect::<Vec<_>>();
            folders.extend(all.iter().filter_map(|path| real(path.parent()?).ok()));
        }
        for folder in folders {
            match census.look_in(&folder) {
                Err(error) if reach == Reach::All && required.contains(&folder) => {
                    return Err(DiskError::unreadable(&folder, error));
                }
                Err(error) => tracing::debug!(folder = %folder.display(), %error, "its images are not known"),
                Ok(()) => {}
            }
        }
        Ok(census)
    }

    /// Why the image at `path` must stay, if it must.
    pub(crate) fn need_of(&mut self, path: &Path) -> Option<String> {
        let path = self.identity(path);
        self.chains.need_of(&path)
    }

    /// Why the image at `path` should stay, if nobody says that it need not.
    pub(crate) fn doubt_of(&mut self, path: &Path) -> Option<String> {
        let path = self.identity(path);
        let about = |about: &Option<PathBuf>| about.as_ref().is_none_or(|about| *about == path);
        let doubt = self.doubts.iter().find(|(image, _)| about(image)).map(|(_, reason)| reason.clone());
        doubt.or_else(|| entry_of(&path))
    }

    /// Why the bytes of the image at `path` must stay as they are, if they must.
    pub(crate) fn stood_on(&mut self, path: &Path) -> Option<String> {
        let path = self.identity(path);
        self.chains.stood_on(&path, |_| false)
    }

    /// Why the image at `path` cannot be written to as what `overlay` stood on, if it cannot.
    pub(crate) fn need_beside(&mut self, path: &Path, overlay: &Path) -> Option<String> {
        let (path, overlay) = (self.identity(path), self.identity(overlay));
        self.chains.need_beside(&path, &overlay)
    }

    /// Why the bytes of the image at `path` must stay as they are. An overlay that a checkpoint laid over it, and that no VM
    /// has, is not counted: what is in it decides.
    pub(crate) fn stood_on_by_others(&mut self, path: &Path) -> Option<String> {
        let path = self.identity(path);
        self.chains.stood_on(&path, |above| is_name_of_overlay(above, &path))
    }

    /// The images at `tops` and below that stand on another which is not beside them, and that.
    fn far_overlays(&mut self, tops: &[PathBuf]) -> Vec<(PathBuf, PathBuf)> {
        let mut far = Vec::new();
        for top in tops {
            let mut next = Some(self.identity(top));
            let mut seen = BTreeSet::new();
            while let Some(path) = next.take().filter(|path| seen.insert(path.clone())) {
                next = self.chains.backing(&path).map(Path::to_path_buf);
                if let Some(below) = next.clone().filter(|below| below.parent() != path.parent()) {
                    far.push((path, below));
                }
            }
        }
        far
    }

    /// The path that stands for the file.
    fn identity(&mut self, path: &Path) -> PathBuf {
        let path = real(path).unwrap_or_else(|_| path.into());
        match fs::metadata(&path) {
            Ok(data) => self.files.entry((data.dev(), data.ino())).or_insert(path).clone(),
            Err(_) => path,
        }
    }

    /// Notes an image and all that it stands on. The first who says which format it is counts.
    fn follow(&mut self, path: &Path, said: Option<DiskFormat>) {
        let mut next = Some(Below { path: path.into(), format: said });
        while let Some(Below { path, format }) = next.take() {
            let at = self.identity(&path);
            if !self.looked.insert(at.clone()) {
                return;
            }
            let needs = match format {
                // They stand alone; what a guest writes to a raw disk may look like anything.
                Some(DiskFormat::Raw | DiskFormat::Vhd | DiskFormat::Vhdx) => Needs::default(),
                // What cannot be read may be in the book.
                _ => needs_of(&path).unwrap_or_default(),
            };
            let backing = needs.backing.as_ref().map(|below| self.identity(&below.path));
            let parts = needs.parts.iter().map(|part| self.identity(part)).filter(|part| *part != at).collect();
            next = needs.backing;
            self.chains.insert(at, Link { format, backing, parts, ..Link::default() });
        }
    }

    /// Takes in what was noted of an overlay.
    fn believe(&mut self, noted: &Noted) {
        match fs::symlink_metadata(noted.overlay()) {
            Ok(_) => self.follow(noted.overlay(), None),
            Err(_) => {
                let (overlay, base) = (self.identity(noted.overlay()), self.identity(noted.base()));
                if self.chains.is_named(&overlay) {
                    self.chains.insert(overlay, Link { backing: Some(base), ..Link::default() });
                } else if !noted.is_gone() {
                    let reason = format!("{} stands on it, and is not there now", noted.overlay().display());
                    self.doubts.push((Some(base), reason));
                }
            }
        }
    }

    fn look_in(&mut self, folder: &Path) -> io::Result<()> {
        for (count, entry) in fs::read_dir(folder)?.enumerate() {
            if count == MAX_FILES {
                return Err(io::Error::other(format!("more than {MAX_FILES} files, too many to look at")));
            }
            let path = entry?.path();
            // It may have gone since.
            let Ok(data) = fs::metadata(&path) else { continue };
            let at = self.identity(&path);
            if !data.is_file() || self.looked.contains(&at) {
                continue;
            }
            match needs_of(&path) {
                Ok(needs) if needs == Needs::default() => {}
                Ok(_) => self.follow(&path, None),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let reason = format!("{} may stand on it, and cannot be read ({error})", path.display());
                    self.doubts.push((None, reason));
                }
            }
        }
        Ok(())
    }
}

/// Takes a census beside everything else.
pub(crate) async fn census(host: &Arc<HostShared>, about: Vec<PathBuf>, reach: Reach) -> Result<Census, DiskError> {
    let host = host.clone();
    let taken = tokio::task::spawn_blocking(move || Census::take(&host, &about, reach)).await;
    taken.map_err(|error| DiskError::Refused(error.to_string()))?
}

/// Has it noted what VMs have, before one has it no more.
pub(crate) async fn note_overlays(host: &Arc<HostShared>) {
    if let Err(error) = census(host, Vec::new(), Reach::Near).await {
        tracing::warn!(%error, "the overlays that VMs have are not noted");
    }
}

/// Fails when a guest that has `disks` would write to what others stand on.
pub(crate) async fn require_disks_writable(host: &Arc<HostShared>, disks: &[Disk]) -> Result<(), DiskError> {
    let written = disks.iter().filter(|disk| !disk.readonly).filter_map(|disk| disk.source.path());
    let written: Vec<PathBuf> = written.map(Path::to_path_buf).collect();
    if written.is_empty() {
        return Ok(());
    }
    let mut census = census(host, written.clone(), Reach::Near).await?;
    let program = QemuImg::beside(&host.qemu);
    for path in written {
        // One that is not there is missed elsewhere.
        if !path.exists() {
            continue;
        }
        require_writable(&program, &path).await?;
        if let Some(by) = census.stood_on_by_others(&path) {
            let reason = "would be spoilt if a guest wrote to it; give the VM an image of its own that stands on it";
            let by = format!("{by}, and {reason} (`fanlight disk create NEW --backing {}`)", path.display());
            return Err(DiskError::Needed { path, by });
        }
    }
    Ok(())
}

/// That an image belongs to an entry of a library, if it does.
fn entry_of(path: &Path) -> Option<String> {
    let (entry, name) = (path.parent()?.join(library::DEFINITION), path.file_name()?.to_str()?);
    let names = quoted_in(&entry).ok()?;
    names.iter().any(|quoted| quoted == name).then(|| format!("the library's {} names it", entry.display()))
}
