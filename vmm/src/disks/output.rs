//! A file that is there whole or not at all: made under another name, and renamed when it is complete.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use super::error::DiskError;
use crate::files::{claim_file, put_in_place};
use crate::jobs::{FileStamp, Leftover};

/// A name that is kept, and a file that is made for it. Dropping it gives the name up and removes the file.
#[derive(Debug)]
pub(super) struct Output {
    target: PathBuf,
    /// The empty file that keeps the name; none when what is there is to be replaced.
    placeholder: Option<FileStamp>,
    partial: FileStamp,
    complete: bool,
}

impl Output {
    /// Keeps the name `target`, which nothing may have yet.
    pub(super) fn claim(target: &Path) -> Result<Self, DiskError> {
        let placeholder = claim(target)?;
        match partial(target) {
            Ok(partial) => Ok(Self { target: target.into(), placeholder: Some(placeholder), partial, complete: false }),
            Err(error) => {
                // The first error is the one to tell.
                let _ = placeholder.remove();
                Err(error)
            }
        }
    }

    /// Makes a file that will take the place of the one at `target`, with its owner and mode.
    pub(super) fn replace(target: &Path) -> Result<Self, DiskError> {
        let output = Self { target: target.into(), placeholder: None, partial: partial(target)?, complete: false };
        let alike = fs::metadata(target).and_then(|data| make_alike(output.path(), &data));
        alike.map_err(|error| DiskError::unwritable(target, error))?;
        Ok(output)
    }

    /// The file to write to.
    pub(super) fn path(&self) -> &Path {
        self.partial.path()
    }

    /// The name it will have.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// What is left of it when nobody is there to drop it.
    pub(super) fn leftovers(&self) -> Vec<Leftover> {
        let partial = Leftover::Partial { file: self.partial.clone(), target: self.target.clone() };
        self.placeholder.iter().cloned().map(Leftover::Placeholder).chain([partial]).collect()
    }

    /// Makes what was written last, and gives it its name.
    pub(super) fn complete(mut self) -> io::Result<()> {
        if let Some(placeholder) = &self.placeholder
            && !placeholder.is_empty_and_there()
        {
            let taken = format!("{} has been taken by another file meanwhile", self.target.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, taken));
        }
        put_in_place(self.path(), &self.target)?;
        self.complete = true;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.complete {
            return;
        }
        let placeholder = self.placeholder.as_ref().filter(|placeholder| placeholder.is_empty_and_there());
        for file in placeholder.into_iter().chain([&self.partial]) {
            if let Err(error) = file.remove() {
                tracing::warn!(file = %file.path().display(), %error, "cannot remove what was not completed");
            }
        }
    }
}

/// Creates the empty file, which fails when there is one: nothing is overwritten.
pub(super) fn claim(target: &Path) -> Result<FileStamp, DiskError> {
    claim_file(target).and_then(|()| FileStamp::of(target)).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => DiskError::Exists(target.into()),
        _ => DiskError::unwritable(target, error),
    })
}

/// Gives a file the owner and the mode that another has.
fn make_alike(path: &Path, other: &Metadata) -> io::Result<()> {
    let now = fs::metadata(path)?;
    let changed = |now: u32, other: u32| (now != other).then_some(other);
    let (user, group) = (changed(now.uid(), other.uid()), changed(now.gid(), other.gid()));
    if user.is_some() || group.is_some() {
        chown(path, user, group)?;
    }
    fs::set_permissions(path, Permissions::from_mode(other.mode() & 0o777))
}

/// A file beside `target` whose name nobody else takes.
fn partial(target: &Path) -> Result<FileStamp, DiskError> {
    let name = target.file_name().ok_or_else(|| DiskError::invalid("an image needs a file name"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{:08x}.part", uuid::Uuid::new_v4().as_fields().0));
    claim(&target.with_file_name(hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("fanlight-output-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).expect("a folder");
            Self(path)
        }

        fn names(&self) -> usize {
            fs::read_dir(&self.0).expect("there").count()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_name_is_kept_from_the_beginning_and_given_up_when_nothing_comes_of_it() {
        let folder = Folder::new("claim");
        let target = folder.0.join("a.qcow2");
        let output = Output::claim(&target).expect("free");
        assert!(matches!(Output::claim(&target), Err(DiskError::Exists(_))));
        fs::write(output.path(), "half").expect("written");
        drop(output);
        assert_eq!(folder.names(), 0);
        let output = Output::claim(&target).expect("free again");
        fs::write(output.path(), "whole").expect("written");
        output.complete().expect("renamed");
        assert_eq!((fs::read_to_string(&target).expect("there"), folder.names()), ("whole".into(), 1));
    }

    #[test]
    fn a_file_that_somebody_put_there_meanwhile_is_not_overwritten() {
        let folder = Folder::new("taken");
        let target = folder.0.join("a.qcow2");
        let output = Output::claim(&target).expect("free");
        fs::write(&target, "precious").expect("written");
        assert_eq!(output.complete().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!((fs::read_to_string(&target).expect("there"), folder.names()), ("precious".into(), 1));
    }

    #[test]
    fn a_file_is_replaced_only_when_the_other_is_complete() {
        let folder = Folder::new("replace");
        let target = folder.0.join("a.vhd");
        fs::write(&target, "before").expect("written");
        drop(Output::replace(&target).expect("room"));
        assert_eq!(fs::read_to_string(&target).expect("there"), "before");
        let output = Output::replace(&target).expect("room");
        fs::write(output.path(), "after").expect("written");
        output.complete().expect("renamed");
        assert_eq!((fs::read_to_string(&target).expect("there"), folder.names()), ("after".into(), 1));
    }
}
