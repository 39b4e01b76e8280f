//! Files that are whole or not there, whatever happens to the host's power.
//!
//! The steps of a replacement are told to a [`Disk`], so that tests can take away its power between any two of them.

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
    replace_on(&mut HostDisk, path, mode, contents)
}

/// Makes what was created or removed in `folder` last.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    HostDisk.sync_folder(folder)
}

/// Makes a folder, and those above it, for its owner alone.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// What a replacement does, step by step.
trait Disk {
    type File;

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
struct HostDisk;

impl Disk for HostDisk {
    type File = File;

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

    use super::*;

    /// A disk with a cache, whose power goes after some steps. Of what was not synced, the names that changed last as far
    /// as a journal got, and of contents any beginning: what journalling file systems promise, and no more.
    #[derive(Default)]
    struct CutDisk {
        steps: usize,
        power_goes_after: usize,
        contents: Vec<Contents>,
        /// Names that last.
        lasting: BTreeMap<PathBuf, usize>,
        /// Changes of names in the cache.
        journal: Vec<Change>,
    }

    #[derive(Default)]
    struct Contents {
        written: Vec<u8>,
        lasts: bool,
    }

    enum Change {
        Create(PathBuf, usize),
        Rename(PathBuf, PathBuf),
        Remove(PathBuf),
    }

    impl CutDisk {
        fn step(&mut self) -> io::Result<()> {
            self.steps += 1;
            if self.steps > self.power_goes_after { Err(io::Error::other("no power")) } else { Ok(()) }
        }

        /// What a reader finds when the power is back.
        fn after_power_is_back(&self, journal: usize, kept: usize) -> BTreeMap<PathBuf, Vec<u8>> {
            let mut names = self.lasting.clone();
            apply(&mut names, &self.journal[..journal.min(self.journal.len())]);
            let read = |file: &usize| {
                let Contents { written, lasts } = &self.contents[*file];
                let length = if *lasts { written.len() } else { kept.min(written.len()) };
                written[..length].to_vec()
            };
            names.iter().map(|(path, file)| (path.clone(), read(file))).collect()
        }
    }

    fn apply(names: &mut BTreeMap<PathBuf, usize>, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Create(path, file) => drop(names.insert(path.clone(), *file)),
                Change::Rename(from, to) => {
                    if let Some(file) = names.remove(from) {
                        names.insert(to.clone(), file);
                    }
                }
                Change::Remove(path) => drop(names.remove(path)),
            }
        }
    }

    impl Disk for CutDisk {
        type File = usize;

        fn create(&mut self, path: &Path, _: u32) -> io::Result<usize> {
            self.step()?;
            self.contents.push(Contents::default());
            let file = self.contents.len() - 1;
            self.journal.push(Change::Create(path.into(), file));
            Ok(file)
        }

        fn write(&mut self, file: &mut usize, contents: &[u8]) -> io::Result<()> {
            self.step()?;
            self.contents[*file].written.extend_from_slice(contents);
            self.contents[*file].lasts = false;
            Ok(())
        }

        fn sync(&mut self, file: &usize) -> io::Result<()> {
            self.step()?;
            self.contents[*file].lasts = true;
            Ok(())
        }

        fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
            self.step()?;
            self.journal.push(Change::Rename(from.into(), to.into()));
            Ok(())
        }

        fn remove(&mut self, path: &Path) -> io::Result<()> {
            self.step()?;
            self.journal.push(Change::Remove(path.into()));
            Ok(())
        }

        fn sync_folder(&mut self, _: &Path) -> io::Result<()> {
            self.step()?;
            apply(&mut self.lasting, &self.journal);
            self.journal.clear();
            Ok(())
        }
    }

    type Replace = fn(&mut CutDisk, &Path, &[u8]) -> io::Result<()>;

    /// Replaces files until the power goes; whether what is found then is what was there, or what was to be.
    fn survives(replace: Replace, files: &[(usize, Vec<u8>)], steps: usize, journal: usize, kept: usize) -> bool {
        let mut disk = CutDisk { power_goes_after: steps, ..CutDisk::default() };
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
        let found = disk.after_power_is_back(journal, kept);
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
                disk.sync_folder(path)
            }),
            "written in place"
        );
        assert!(
            found(|disk, path, contents| {
                let mut file = disk.create(Path::new("/state/t"), PRIVATE)?;
                disk.write(&mut file, contents)?;
                disk.rename(Path::new("/state/t"), path)?;
                disk.sync_folder(path)
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
