//! Files that are whole or not there, whatever happens to the host's power.
//!
//! What is done to them is told to a [`Disk`] step by step, so that tests can take away its power between any two of them:
//! `power_cut` does that to all that is written one after the other.

#[cfg(test)]
pub(crate) mod power_cut;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// What is kept is for its owner alone.
const PRIVATE: u32 = 0o600;

/// Puts `contents` in place of what `path` names: after a crash there is the old file or the new one, never a mixture.
pub(crate) fn replace_file(path: &Path, contents: &(impl AsRef<[u8]> + ?Sized)) -> io::Result<()> {
    replace(path, PRIVATE, contents.as_ref())
}

/// Puts `contents` in place of what `path` names, with the permissions `mode`: a reader, or a host that loses power, sees
/// the old file or the new one, and when this returns the new one.
///
/// # Errors
///
/// When the folder cannot be written or is full; the old file is then untouched.
pub fn replace(path: &Path, mode: u32, contents: &[u8]) -> io::Result<()> {
    replace_on(&mut host_disk(), path, mode, contents)
}

/// Creates an empty file, which fails when there is something of that name. Its name lasts when its folder is synced.
pub(crate) fn claim_file(path: &Path) -> io::Result<()> {
    host_disk().claim(path, PRIVATE).map(drop)
}

/// Gives the file `from`, which another program has written, the name `to` in the same folder: when this returns, that lasts
/// with all that is in it.
pub(crate) fn put_in_place(from: &Path, to: &Path) -> io::Result<()> {
    let disk = &mut host_disk();
    let file = disk.open(from)?;
    disk.sync(&file)?;
    disk.rename(from, to)?;
    to.parent().map_or(Ok(()), |folder| disk.sync_folder(folder))
}

/// Removes a file: when this returns, it is gone whatever happens.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    let disk = &mut host_disk();
    disk.remove(path)?;
    path.parent().map_or(Ok(()), |folder| disk.sync_folder(folder))
}

/// Makes what was created or removed in `folder` last.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    host_disk().sync_folder(folder)
}

/// Makes a folder, and those above it, for its owner alone.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// What is done to files, step by step.
trait Disk {
    type File;

    /// An empty file where there is none.
    fn claim(&mut self, path: &Path, mode: u32) -> io::Result<Self::File>;
    /// A file that another program has written.
    fn open(&mut self, path: &Path) -> io::Result<Self::File>;

    /// An empty file, in place of one that a crash may have left.
    fn create(&mut self, path: &Path, mode: u32) -> io::Result<Self::File>;
    fn write(&mut self, file: &mut Self::File, contents: &[u8]) -> io::Result<()>;
    /// What was written lasts.
    fn sync(&mut self, file: &Self::File) -> io::Result<()>;
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&mut self, path: &Path) -> io::Result<()>;
    /// What was created, renamed or removed in it lasts.
    fn sync_folder(&mut self, folder: &Path) -> io::Result<()>;
}

fn replace_on(disk: &mut impl Disk, path: &Path, mode: u32, contents: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file needs a folder"))?;
    let temporary = temporary(path).ok_or_else(|| io::Error::other("a file needs a name"))?;
    let written = write_synced(disk, &temporary, mode, contents).and_then(|()| disk.rename(&temporary, path));
    if let Err(error) = written {
        // The reason of the first failure is the one to tell; a leftover is harmless.
        let _ = disk.remove(&temporary);
        return Err(error);
    }
    disk.sync_folder(folder)
}

fn write_synced(disk: &mut impl Disk, path: &Path, mode: u32, contents: &[u8]) -> io::Result<()> {
    let mut file = disk.create(path, mode)?;
    disk.write(&mut file, contents)?;
    disk.sync(&file)
}

fn temporary(path: &Path) -> Option<PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name()?);
    name.push(format!(".{}.new", std::process::id()));
    Some(path.with_file_name(name))
}

/// The host's own.
#[cfg(not(test))]
fn host_disk() -> impl Disk {
    HostDisk
}

/// The same, with somebody who notes what is done to it.
#[cfg(test)]
fn host_disk() -> impl Disk {
    power_cut::Watched(HostDisk)
}

struct HostDisk;

impl Disk for HostDisk {
    type File = File;

    fn claim(&mut self, path: &Path, mode: u32) -> io::Result<File> {
        File::options().write(true).create_new(true).mode(mode).open(path)
    }

    fn open(&mut self, path: &Path) -> io::Result<File> {
        File::open(path)
    }

    fn create(&mut self, path: &Path, mode: u32) -> io::Result<File> {
        File::options().write(true).create(true).truncate(true).mode(mode).open(path)
    }

    fn write(&mut self, file: &mut File, contents: &[u8]) -> io::Result<()> {
        file.write_all(contents)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&mut self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::power_cut::CutDisk;
    use super::*;

    type Replace = fn(&mut CutDisk, &Path, &[u8]) -> io::Result<()>;

    /// Replaces files until the power goes; whether what is found then is what was there, or what was to be.
    fn survives(replace: Replace, files: &[(usize, Vec<u8>)], steps: usize, journal: usize, kept: usize) -> bool {
        let mut disk = CutDisk::with_power_for(steps);
        let mut expected: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        let mut under_way = None;
        for (name, contents) in files {
            let path = PathBuf::from(format!("/state/{name}"));
            if replace(&mut disk, &path, contents).is_err() {
                under_way = Some((path, contents.clone()));
                break;
            }
            expected.insert(path, contents.clone());
        }
        let found = disk.after_power_is_back(|_| journal, kept);
        let names = (0..3).map(|name| PathBuf::from(format!("/state/{name}")));
        names.into_iter().all(|path| {
            let (found, old) = (found.get(&path), expected.get(&path));
            let new = under_way.as_ref().filter(|(under_way, _)| *under_way == path).map(|(_, contents)| contents);
            found == old || (new.is_some() && found == new)
        })
    }

    fn files() -> impl Strategy<Value = Vec<(usize, Vec<u8>)>> {
        proptest::collection::vec((0_usize..3, proptest::collection::vec(any::<u8>(), 1..9)), 1..6)
    }

    proptest! {
        #[test]
        fn a_power_cut_leaves_the_old_file_or_the_new_one(
            files in files(), steps in 0_usize..40, journal in 0_usize..40, kept in 0_usize..9,
        ) {
            let replace: Replace = |disk, path, contents| replace_on(disk, path, PRIVATE, contents);
            prop_assert!(survives(replace, &files, steps, journal, kept));
        }
    }

    #[test]
    fn the_simulation_finds_each_step_that_is_left_out() {
        let files = vec![(0, b"old".to_vec()), (0, b"new".to_vec())];
        let found = |replace: Replace| {
            let cuts = (0..20).flat_map(|steps| (0..9).map(move |journal| (steps, journal)));
            !cuts.into_iter().all(|(steps, journal)| survives(replace, &files, steps, journal, 1))
        };
        assert!(!found(|disk, path, contents| replace_on(disk, path, PRIVATE, contents)));
        assert!(
            found(|disk, path, contents| {
                let mut file = disk.create(path, PRIVATE)?;
                disk.write(&mut file, contents)?;
                disk.sync(&file)?;
                disk.sync_folder(Path::new("/state"))
            }),
            "written in place"
        );
        assert!(
            found(|disk, path, contents| {
                let mut file = disk.create(Path::new("/state/t"), PRIVATE)?;
                disk.write(&mut file, contents)?;
                disk.rename(Path::new("/state/t"), path)?;
                disk.sync_folder(Path::new("/state"))
            }),
            "the contents not synced"
        );
        assert!(
            found(|disk, path, contents| {
                write_synced(disk, Path::new("/state/t"), PRIVATE, contents)?;
                disk.rename(Path::new("/state/t"), path)
            }),
            "the folder not synced"
        );
    }

    #[test]
    fn a_file_that_cannot_be_replaced_is_left_as_it_was() {
        let folder = std::env::temp_dir().join(format!("fanlight-files-{}", std::process::id()));
        fs::create_dir(&folder).expect("temporary folder");
        let file = folder.join("vm.toml");
        replace_file(&file, "one").expect("written");
        replace_file(&file, "two").expect("replaced");
        assert_eq!(fs::read_to_string(&file).expect("there"), "two");
        assert!(replace_file(&folder.join("missing/vm.toml"), "x").is_err());
        assert_eq!(fs::read_dir(&folder).expect("there").count(), 1, "no temporary file stays");
        fs::remove_dir_all(&folder).expect("removed");
    }
}
