//! The book of overlays that are not beside what they stand on: where they are nobody would look, were they not noted.
//!
//! Noted are those that are made here, and those that VMs have had. One that is not there may be on a disk that is not there
//! either: it stays noted.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::needs::needs_of;
use super::overlay::same_file;
use crate::definition::{make_folder, replace_file};

/// Largest book that is read, in bytes.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// Where the book is.
#[derive(Debug)]
pub(crate) struct OverlayBook {
    file: PathBuf,
    /// One change at a time.
    changing: Mutex<()>,
}

/// An overlay and what it stood on when it was noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Noted {
    overlay: PathBuf,
    base: PathBuf,
    /// Whether both were on one file system: where the base is there, the overlay is, too, or it is gone.
    same_disk: bool,
}

impl OverlayBook {
    pub(crate) fn new(file: PathBuf) -> Self {
        Self { file, changing: Mutex::default() }
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// What is in it; nothing if nothing was ever written.
    pub(super) fn read(&self) -> io::Result<Vec<Noted>> {
        let file = match File::open(&self.file) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut text)?;
        if text.len() as u64 > MAX_FILE {
            return Err(io::Error::other(format!("larger than {MAX_FILE} bytes")));
        }
        Ok(serde_json::from_slice(&text)?)
    }

    /// Notes overlays with what each stands on, and forgets those that no longer are. Waits for the disk.
    pub(super) fn note(&self, overlays: &[(PathBuf, PathBuf)]) -> io::Result<()> {
        self.change(|noted| {
            let is_noted = |(overlay, base): &(PathBuf, PathBuf)| {
                noted.iter().any(|noted| (&noted.overlay, &noted.base) == (overlay, base))
            };
            if overlays.iter().all(is_noted) {
                return;
            }
            noted.retain(|noted| overlays.iter().all(|(overlay, _)| *overlay != noted.overlay) && !noted.is_over());
            noted.extend(overlays.iter().map(|(overlay, base)| Noted::new(overlay, base)));
        })
    }

    /// Forgets what there is of an image that is no more. Waits for the disk.
    pub(super) fn forget(&self, image: &Path) -> io::Result<()> {
        self.change(|noted| noted.retain(|noted| noted.overlay != image && noted.base != image))
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Noted>)) -> io::Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.read()?;
        let mut noted = before.clone();
        change(&mut noted);
        if noted == before {
            return Ok(());
        }
        self.file.parent().map_or(Ok(()), make_folder)?;
        replace_file(&self.file, &serde_json::to_string_pretty(&noted)?)
    }
}

impl Noted {
    pub(super) fn overlay(&self) -> &Path {
        &self.overlay
    }

    fn new(overlay: &Path, base: &Path) -> Self {
        let disk = |path: &Path| Some(fs::metadata(path.parent()?).ok()?.dev());
        let same_disk = matches!((disk(overlay), disk(base)), (Some(a), Some(b)) if a == b);
        Self { overlay: overlay.into(), base: base.into(), same_disk }
    }

    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// Whether the overlay, which is not there, was removed.
    pub(super) fn is_gone(&self) -> bool {
        self.same_disk && fs::symlink_metadata(&self.base).is_ok()
    }

    /// Whether nothing would be lost without this note.
    fn is_over(&self) -> bool {
        if fs::symlink_metadata(&self.overlay).is_err() {
            return self.is_gone();
        }
        let stands = |below: &Path| same_file(below, &self.base);
        needs_of(&self.overlay).is_ok_and(|needs| !needs.backing.is_some_and(|below| stands(&below.path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_forgotten_and_what_is_out_of_reach_is_not() {
        let folder = std::env::temp_dir().join(format!("fanlight-overlay-book-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).expect("a folder");
        let [base, near, far] = ["base", "near", "far"].map(|name| folder.join(name));
        fs::write(&base, "").expect("written");
        let book = OverlayBook::new(folder.join("state/overlays.json"));
        assert_eq!(book.read().expect("none"), []);
        book.note(&[(near.clone(), base.clone()), (far.clone(), base.clone())]).expect("written");
        let mut noted = book.read().expect("read");
        assert_eq!((noted.len(), noted[0].is_gone()), (2, true));
        // As if it had been on a share that is not there now.
        noted[1].same_disk = false;
        replace_file(book.file(), &serde_json::to_string(&noted).expect("text")).expect("written");
        let third = folder.join("third");
        book.note(&[(third.clone(), base.clone())]).expect("written");
        let overlays = |book: &OverlayBook| -> Vec<PathBuf> {
            book.read().expect("read").into_iter().map(|noted| noted.overlay).collect()
        };
        assert_eq!(overlays(&book), [far.clone(), third.clone()], "the near one is gone");
        fs::remove_file(&base).expect("removed");
        book.note(&[(near.clone(), folder.clone())]).expect("written");
        assert_eq!(overlays(&book), [far, third, near.clone()], "the base may be out of reach, too");
        book.forget(&base).expect("written");
        assert_eq!(overlays(&book), [near]);
        fs::write(book.file(), "{").expect("written");
        assert!(book.read().is_err() && book.forget(&base).is_err(), "what cannot be read is not replaced");
        fs::remove_dir_all(&folder).expect("removed");
    }
}
