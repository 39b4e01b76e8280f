//! Power that goes while files are written, one after the other: what was done is noted and then done again as far as it came
//! before each cut, and all that a reader may find then is laid into the folder to be read.
//!
//! Of what was not synced there are, in each folder for itself, the names that changed last as far as its journal got, and of
//! contents any beginning: what file systems promise, and no more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Disk, HostDisk};

/// What was done below each folder that somebody watches.
static NOTES: Mutex<Vec<(PathBuf, Vec<Step>)>> = Mutex::new(Vec::new());

/// A step that was taken; names are those at that moment.
#[derive(Debug, Clone)]
enum Step {
    Create(PathBuf),
    /// At its end.
    Write(PathBuf, Vec<u8>),
    /// Another program wrote all of it.
    Found(PathBuf, Vec<u8>),
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncFolder(PathBuf),
    Mark(usize),
}

/// A folder in which it is noted what is done to its files. It goes with this.
#[derive(Debug)]
pub(crate) struct Recording {
    folder: PathBuf,
}

impl Recording {
    pub(crate) fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("fanlight-power-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).expect("a folder");
        notes().push((folder.clone(), Vec::new()));
        Self { folder }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A folder in it, which lasts.
    pub(crate) fn folder_named(&self, name: &str) -> PathBuf {
        let folder = self.folder.join(name);
        fs::create_dir(&folder).expect("a folder");
        folder
    }

    /// A file that has been there for long.
    pub(crate) fn lasting(&self, path: &Path, contents: impl AsRef<[u8]>) {
        fs::write(path, &contents).expect("written");
        let folder = path.parent().expect("in a folder").into();
        for step in
            [Step::Found(path.into(), contents.as_ref().into()), Step::Sync(path.into()), Step::SyncFolder(folder)]
        {
            note(path, || step);
        }
    }

    /// What another program, such as QEMU, writes to the end of a file.
    pub(crate) fn write(path: &Path, contents: &str) {
        let file = File::options().append(true).open(path);
        file.and_then(|mut file| file.write_all(contents.as_bytes())).expect("written");
        note(path, || Step::Write(path.into(), contents.into()));
    }

    /// What it has written lasts.
    pub(crate) fn flush(path: &Path) {
        note(path, || Step::Sync(path.into()));
    }

    /// Says where in `folder` everything is now.
    pub(crate) fn mark(folder: &Path, number: usize) {
        note(folder, || Step::Mark(number));
    }

    /// Cuts the power before each step that was noted, and once after the last: `check` is called with the last mark, for
    /// everything that may be in the folder then. How many that was.
    pub(crate) fn cut_everywhere(&self, mut check: impl FnMut(usize)) -> usize {
        let steps = notes().iter().find(|(folder, _)| *folder == self.folder).map(|(_, steps)| steps.clone());
        let steps = steps.expect("it is watched");
        let first = steps.iter().position(|step| matches!(step, Step::Mark(_))).expect("a first mark");
        let mut seen = BTreeSet::new();
        for end in first + 1..=steps.len() {
            let (mut disk, mut mark) = (CutDisk::default(), 0);
            for step in &steps[..end] {
                if let Step::Mark(number) = step {
                    mark = *number;
                }
                disk.play(step);
            }
            for files in disk.possibilities() {
                if seen.insert((mark, files.clone())) {
                    self.lay(&files);
                    check(mark);
                }
            }
        }
        seen.len()
    }

    /// Makes these all the files of the folder.
    fn lay(&self, files: &BTreeMap<PathBuf, Vec<u8>>) {
        let entries = |folder: &Path| -> Vec<PathBuf> {
            fs::read_dir(folder).expect("there").map(|entry| entry.expect("one").path()).collect()
        };
        let folders = entries(&self.folder).into_iter().filter(|path| path.is_dir());
        for folder in folders.chain([self.folder.clone()]) {
            let old = entries(&folder).into_iter().filter(|path| path.is_file());
            old.for_each(|path| fs::remove_file(path).expect("removed"));
        }
        for (path, contents) in files {
            fs::write(path, contents).expect("written");
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        notes().retain(|(folder, _)| *folder != self.folder);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn notes() -> MutexGuard<'static, Vec<(PathBuf, Vec<Step>)>> {
    NOTES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note(path: &Path, step: impl FnOnce() -> Step) {
    if let Some((_, steps)) = notes().iter_mut().find(|(folder, _)| path.starts_with(folder)) {
        steps.push(step());
    }
}

/// The host's disk, and what is done to it is noted.
pub(super) struct Watched(pub(super) HostDisk);

impl Disk for Watched {
    type File = (PathBuf, File);

    fn claim(&mut self, path: &Path, mode: u32) -> io::Result<Self::File> {
        let file = self.0.claim(path, mode)?;
        note(path, || Step::Create(path.into()));
        Ok((path.into(), file))
    }

    fn open(&mut self, path: &Path) -> io::Result<Self::File> {
        let file = self.0.open(path)?;
        note(path, || Step::Found(path.into(), fs::read(path).expect("read")));
        Ok((path.into(), file))
    }

    fn create(&mut self, path: &Path, mode: u32) -> io::Result<Self::File> {
        let file = self.0.create(path, mode)?;
        note(path, || Step::Create(path.into()));
        Ok((path.into(), file))
    }

    fn write(&mut self, (path, file): &mut Self::File, contents: &[u8]) -> io::Result<()> {
        self.0.write(file, contents)?;
        note(path, || Step::Write(path.clone(), contents.into()));
        Ok(())
    }

    fn sync(&mut self, (path, file): &Self::File) -> io::Result<()> {
        self.0.sync(file)?;
        note(path, || Step::Sync(path.clone()));
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)?;
        note(to, || Step::Rename(from.into(), to.into()));
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.0.remove(path)?;
        note(path, || Step::Remove(path.into()));
        Ok(())
    }

    fn sync_folder(&mut self, folder: &Path) -> io::Result<()> {
        self.0.sync_folder(folder)?;
        note(folder, || Step::SyncFolder(folder.into()));
        Ok(())
    }
}

/// A disk with a cache, whose power goes after some steps.
#[derive(Debug, Default)]
pub(super) struct CutDisk {
    steps: usize,
    /// None: never.
    power_goes_after: Option<usize>,
    contents: Vec<Contents>,
    /// Names as they are in the cache.
    names: BTreeMap<PathBuf, usize>,
    /// Names that last.
    lasting: BTreeMap<PathBuf, usize>,
    /// By their folder, changes of names in the cache.
    journals: BTreeMap<PathBuf, Vec<Change>>,
}

#[derive(Debug, Default)]
struct Contents {
    written: Vec<u8>,
    /// So much of it lasts.
    synced: usize,
}

#[derive(Debug)]
enum Change {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl CutDisk {
    pub(super) fn with_power_for(steps: usize) -> Self {
        Self { power_goes_after: Some(steps), ..Self::default() }
    }

    /// What a reader finds when the power is back: of each folder's changes as many as `journal` says, and of what was not
    /// synced so many bytes.
    pub(super) fn after_power_is_back(
        &self,
        journal: impl Fn(&Path) -> usize,
        kept: usize,
    ) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut names = self.lasting.clone();
        for (folder, changes) in &self.journals {
            changes.iter().take(journal(folder)).for_each(|change| apply(&mut names, change));
        }
        let read = |file: &usize| {
            let Contents { written, synced } = &self.contents[*file];
            written[..kept.max(*synced).min(written.len())].to_vec()
        };
        names.iter().map(|(path, file)| (path.clone(), read(file))).collect()
    }

    /// All that may be found.
    fn possibilities(&self) -> Vec<BTreeMap<PathBuf, Vec<u8>>> {
        let mut journals: Vec<BTreeMap<&Path, usize>> = vec![BTreeMap::new()];
        for (folder, changes) in &self.journals {
            let counts = 0..=changes.len();
            let with = |count| journals.iter().cloned().map(move |before| with(before, folder, count));
            journals = counts.flat_map(with).collect();
        }
        let found = |journal: &BTreeMap<&Path, usize>, kept| {
            self.after_power_is_back(|folder| journal.get(folder).copied().unwrap_or(0), kept)
        };
        journals.iter().flat_map(|journal| [0, 7, usize::MAX].map(|kept| found(journal, kept))).collect()
    }

    fn play(&mut self, step: &Step) {
        let played = match step {
            Step::Create(path) => self.create(path, 0).map(drop),
            Step::Write(path, contents) => self.open(path).and_then(|mut file| self.write(&mut file, contents)),
            Step::Found(path, contents) => {
                let known = self.names.contains_key(path);
                let file = if known { self.open(path) } else { self.create(path, 0) };
                file.map(|file| self.contents[file] = Contents { written: contents.clone(), synced: 0 })
            }
            Step::Sync(path) => self.open(path).and_then(|file| self.sync(&file)),
            Step::Rename(from, to) => self.rename(from, to),
            Step::Remove(path) => self.remove(path),
            Step::SyncFolder(path) => self.sync_folder(path),
            Step::Mark(_) => Ok(()),
        };
        played.unwrap_or_else(|error| panic!("{step:?} was done once: {error}"));
    }

    fn step(&mut self) -> io::Result<()> {
        self.steps += 1;
        let has_power = self.power_goes_after.is_none_or(|last| self.steps <= last);
        if has_power { Ok(()) } else { Err(io::Error::other("no power")) }
    }

    fn change(&mut self, change: Change) {
        let (Change::Create(path, _) | Change::Rename(_, path) | Change::Remove(path)) = &change;
        apply(&mut self.names, &change);
        let folder = path.parent().expect("in a folder").to_path_buf();
        self.journals.entry(folder).or_default().push(change);
    }
}

fn with<'a>(mut journal: BTreeMap<&'a Path, usize>, folder: &'a Path, count: usize) -> BTreeMap<&'a Path, usize> {
    journal.insert(folder, count);
    journal
}

fn apply(names: &mut BTreeMap<PathBuf, usize>, change: &Change) {
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

impl Disk for CutDisk {
    type File = usize;

    fn claim(&mut self, path: &Path, mode: u32) -> io::Result<usize> {
        self.create(path, mode)
    }

    fn open(&mut self, path: &Path) -> io::Result<usize> {
        self.step()?;
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn create(&mut self, path: &Path, _: u32) -> io::Result<usize> {
        self.step()?;
        self.contents.push(Contents::default());
        let file = self.contents.len() - 1;
        self.change(Change::Create(path.into(), file));
        Ok(file)
    }

    fn write(&mut self, file: &mut usize, contents: &[u8]) -> io::Result<()> {
        self.step()?;
        self.contents[*file].written.extend_from_slice(contents);
        Ok(())
    }

    fn sync(&mut self, file: &usize) -> io::Result<()> {
        self.step()?;
        let Contents { written, synced } = &mut self.contents[*file];
        *synced = written.len();
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        self.change(Change::Rename(from.into(), to.into()));
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.step()?;
        self.change(Change::Remove(path.into()));
        Ok(())
    }

    fn sync_folder(&mut self, folder: &Path) -> io::Result<()> {
        self.step()?;
        for change in self.journals.remove(folder).unwrap_or_default() {
            apply(&mut self.lasting, &change);
        }
        Ok(())
    }
}
