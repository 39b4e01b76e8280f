//! Removing images: only those that nothing else needs.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::census::{Reach, census};
use super::overlay::{laid_on, snapshots_in};
use super::{DiskError, Disks, real};
use crate::definition::{Definition, Disk};
use crate::files::remove_file;

/// An image of a VM that is no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftImage {
    /// Where it is, or was.
    pub path: PathBuf,
    /// Why it is still there, when it was to go.
    pub kept: Option<String>,
    /// Whether it is no more.
    pub deleted: bool,
}

/// What keeps an image though nothing is known to need it.
#[derive(Debug, Clone, Copy)]
struct Doubts {
    /// States of VMs that are kept in it.
    states: bool,
    /// What may need it.
    needs: bool,
}

impl Doubts {
    const ALL: Self = Self { states: true, needs: true };
    const NONE: Self = Self { states: false, needs: false };
    /// The states are those of a VM that is no more.
    const OF_OTHERS: Self = Self { states: false, needs: true };
}

impl Disks {
    /// Removes an image that no VM names, nothing stands on and nobody uses.
    ///
    /// # Errors
    ///
    /// When it is otherwise, or it cannot be removed. When states of a VM are kept in it, a library's entry names it, or
    /// something that cannot be looked at may stand on it: [`DiskError::Doubted`].
    pub async fn delete(&self, path: &Path) -> Result<(), DiskError> {
        self.delete_unless(path, Doubts::ALL).await
    }

    /// The same, whatever is [`DiskError::Doubted`].
    ///
    /// # Errors
    ///
    /// When a VM names it, something stands on it or uses it, or it cannot be removed.
    pub async fn delete_by_force(&self, path: &Path) -> Result<(), DiskError> {
        self.delete_unless(path, Doubts::NONE).await
    }

    async fn delete_unless(&self, path: &Path, doubts: Doubts) -> Result<(), DiskError> {
        let path = &real(path)?;
        let data = fs::metadata(path).map_err(|error| DiskError::unreadable(path, error))?;
        if !data.is_file() {
            return Err(DiskError::invalid(format!("{} is not a file", path.display())));
        }
        let shared = self.host.shared();
        let mut census = census(shared, vec![path.clone()], Reach::All).await?;
        if let Some(by) = census.need_of(path) {
            return Err(DiskError::Needed { path: path.into(), by });
        }
        let states = if doubts.states { states_in(path) } else { None };
        let doubt = states.or_else(|| census.doubt_of(path).filter(|_| doubts.needs));
        if let Some(reason) = doubt {
            return Err(DiskError::Doubted { path: path.into(), reason });
        }
        self.unused(path)?;
        remove_file(path).map_err(|error| DiskError::unwritable(path, error))?;
        if let Err(error) = shared.overlays.forget(path) {
            tracing::warn!(%error, "the book of overlays has a note too many");
        }
        Ok(())
    }

    /// The images that a VM which is no more has left, as `definition` names them; those are not among them that it only
    /// read.
    #[must_use]
    pub fn left_by(&self, definition: &Definition) -> Vec<LeftImage> {
        let written = definition.disks.iter().filter(|disk| !disk.readonly);
        let mut left: Vec<LeftImage> = Vec::new();
        for path in written.flat_map(images_of).filter(|path| path.is_file()) {
            if left.iter().all(|image| image.path != path) {
                left.push(LeftImage { path, kept: None, deleted: false });
            }
        }
        left
    }

    /// Removes those of them that nothing else needs.
    pub async fn delete_left_by(&self, definition: &Definition) -> Vec<LeftImage> {
        let mut left = self.left_by(definition);
        for image in &mut left {
            match self.delete_unless(&image.path, Doubts::OF_OTHERS).await {
                Ok(()) => image.deleted = true,
                Err(error) => image.kept = Some(error.to_string()),
            }
        }
        left
    }
}

/// The image of a disk, and below it that on which a checkpoint laid it.
fn images_of(disk: &Disk) -> Vec<PathBuf> {
    let Some(path) = disk.source.path() else { return Vec::new() };
    let mut images = vec![path.to_path_buf()];
    while let Some((below, _)) =
        images.last().and_then(|path| laid_on(path)).filter(|(below, _)| !images.contains(below))
    {
        images.push(below);
    }
    images
}

/// That states of a VM are kept in an image, if they are.
fn states_in(path: &Path) -> Option<String> {
    let count = snapshots_in(path).unwrap_or(0);
    (count > 0).then(|| {
        let states = if count == 1 { "a state of a VM is".into() } else { format!("{count} states of a VM are") };
        format!("{states} kept in it (`fanlight disk info` names them)")
    })
}
