//! The moves that are under way, on disk: one file per move, `JOB.json`, written and synced before each step.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::decision::Phase;
use crate::definition::{DiskFormat, DiskSource, replace_file};
use crate::files::remove_file;
use crate::jobs::{FileStamp, JobId};

/// What is read; a greater number is a later program's.
const VERSION: u32 = 2;
/// What a move is written as, which the first program knew.
const MOVES: u32 = 1;
/// Largest file that is read.
const MAX_FILE: u64 = 256 * 1024;
/// Most files that are looked at.
const MAX_FILES: usize = 10_000;

/// The folder of the moves.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    folder: PathBuf,
}

/// A move, as far as another gateway has to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) version: u32,
    pub(crate) job: JobId,
    pub(crate) vm: Uuid,
    /// What the VM calls the disk.
    pub(crate) disk: String,
    pub(crate) source: Location,
    pub(crate) target: Location,
    /// The file that was made for it; none for a device or a server, or as long as it is not made.
    pub(crate) made: Option<FileStamp>,
    /// Whether the target is the file that the source stands on, which stays whatever becomes of the merge.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) merge: bool,
    /// Whether the source goes when it is released.
    pub(crate) delete_source: bool,
    /// Whether the checksum of the disk is asked for.
    pub(crate) checksum: bool,
    /// The QEMU that copies; none while the VM is off.
    pub(crate) engine: Option<EngineStamp>,
    #[serde(flatten)]
    pub(crate) phase: Phase,
}

/// Where a disk's bytes are and how they are laid out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Location {
    /// A path or a URL.
    pub(crate) place: String,
    pub(crate) format: DiskFormat,
}

/// A QEMU, and what it calls the two places: another QEMU may call others the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EngineStamp {
    pub(crate) pid: u32,
    /// In clock ticks since the host was started.
    pub(crate) start_time: u64,
    pub(crate) source_node: String,
    pub(crate) target_node: String,
}

/// What was found in the folder.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) entries: Vec<Entry>,
    /// Files that were left as they are, and why.
    pub(crate) refused: Vec<(PathBuf, String)>,
}

impl Journal {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Writes what is known of a move; after a crash there is what was before, or this.
    pub(crate) fn write(&self, entry: &Entry) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        replace_file(&self.path(entry.job), &serde_json::to_string_pretty(entry)?)
    }

    /// Forgets a move that has come to its end.
    pub(crate) fn remove(&self, job: JobId) -> io::Result<()> {
        match remove_file(&self.path(job)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// All moves that did not come to their end.
    pub(crate) fn read(&self) -> io::Result<Found> {
        let mut found = Found::default();
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries?,
        };
        for file in entries.take(MAX_FILES) {
            let path = file?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(entry) if self.path(entry.job) == path => found.entries.push(entry),
                Ok(entry) => found.refused.push((path, format!("it is of job {}", entry.job))),
                Err(reason) => found.refused.push((path, reason)),
            }
        }
        Ok(found)
    }

    fn path(&self, job: JobId) -> PathBuf {
        self.folder.join(format!("{job}.json"))
    }
}

impl Entry {
    pub(super) fn new(job: JobId, vm: Uuid, disk: &str, source: Location, target: Location) -> Self {
        Self {
            version: MOVES,
            job,
            vm,
            disk: disk.into(),
            source,
            target,
            made: None,
            merge: false,
            delete_source: false,
            checksum: false,
            engine: None,
            phase: Phase::Copying,
        }
    }

    /// The same as the merge of an overlay into the file below.
    pub(super) fn into_merge(self) -> Self {
        Self { version: VERSION, merge: true, delete_source: true, ..self }
    }
}

impl Location {
    pub(super) fn new(source: &DiskSource, format: DiskFormat) -> Self {
        Self { place: source.to_string(), format }
    }

    /// Where that is; a URL that is none any more is nowhere.
    pub(super) fn source(&self) -> DiskSource {
        DiskSource::of_words(&self.place).unwrap_or(DiskSource::Empty)
    }
}

fn read(path: &Path) -> Result<Entry, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let mut text = String::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_FILE {
        return Err(format!("larger than {MAX_FILE} bytes"));
    }
    let Version { version } = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    if version > VERSION {
        return Err(format!("it was written by a later version of Fanlight ({version})"));
    }
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(job: u64) -> Entry {
        let location = |place: &str| Location { place: place.into(), format: DiskFormat::Qcow2 };
        let engine =
            EngineStamp { pid: 7, start_time: 8, source_node: "disk0.0".into(), target_node: "disk0.1".into() };
        Entry {
            engine: Some(engine),
            phase: Phase::Switching { resume: true },
            ..Entry::new(JobId(job), Uuid::nil(), "disk0", location("/a"), location("nbd://host/b"))
        }
    }

    #[test]
    fn what_was_written_is_read_and_what_is_not_ours_stays() {
        let folder = std::env::temp_dir().join(format!("fanlight-moves-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let journal = Journal::new(folder.clone());
        assert!(journal.read().expect("no folder is no move").entries.is_empty());
        journal.write(&entry(3)).expect("written");
        let copying = Entry { phase: Phase::Copying, engine: None, ..entry(3) };
        journal.write(&copying).expect("written again");
        journal.write(&entry(4)).expect("written");
        let text = fs::read_to_string(folder.join("4.json")).expect("there");
        fs::write(folder.join("5.json"), &text).expect("written");
        fs::write(folder.join("6.json"), "{").expect("written");
        fs::write(folder.join("7.json"), text.replace("\"version\": 1", "\"version\": 3")).expect("written");
        let mut found = journal.read().expect("read");
        found.entries.sort_by_key(|entry| entry.job);
        assert_eq!(found.entries, [copying, entry(4)]);
        assert_eq!(found.entries[1].target.source(), DiskSource::of_words("nbd://host/b").expect("a URL"));
        let mut reasons: Vec<_> = found.refused.into_iter().map(|(_, reason)| reason).collect();
        reasons.sort();
        assert!(reasons[0].starts_with("EOF"), "{reasons:?}");
        assert_eq!(reasons[1..], ["it is of job 4", "it was written by a later version of Fanlight (3)"]);
        journal.remove(JobId(3)).expect("removed");
        journal.remove(JobId(3)).expect("it is gone already");
        assert_eq!(journal.read().expect("read").entries, [entry(4)]);
        let merge = entry(4).into_merge();
        journal.write(&merge).expect("written");
        assert_eq!(journal.read().expect("read").entries, [merge]);
        fs::remove_dir_all(&folder).expect("removed");
    }
}
