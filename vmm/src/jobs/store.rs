//! The book's pages on disk: one small file per job, `NUMBER.json`.
//!
//! A file that cannot be read, or was written by a later version, stays as it is; its number is not given again.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::job::{JobId, Record};
use crate::definition::replace_file;

/// What is written; a greater number is a later program's.
const VERSION: u32 = 1;
/// Largest file that is read.
const MAX_FILE: u64 = 256 * 1024;
/// Most files that are looked at: far more than are ever kept.
const MAX_FILES: usize = 10_000;

#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
}

/// What was found on opening.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) records: Vec<Record>,
    /// Greater than every number that a file has.
    pub(super) next: u64,
    /// Files that were left as they are, and why.
    pub(super) refused: Vec<(PathBuf, String)>,
}

#[derive(Serialize, Deserialize)]
struct Page<T> {
    version: u32,
    #[serde(flatten)]
    record: T,
}

impl Store {
    pub(super) fn open(folder: &Path) -> io::Result<(Self, Found)> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut found = Found::default();
        for entry in fs::read_dir(folder)?.take(MAX_FILES) {
            let path = entry?.path();
            let Some(number) = number(&path) else { continue };
            found.next = found.next.max(number.saturating_add(1));
            match read(&path) {
                Ok(record) if record.job.id == JobId(number) => found.records.push(record),
                Ok(record) => found.refused.push((path, format!("it is of job {}", record.job.id))),
                Err(reason) => found.refused.push((path, reason)),
            }
        }
        Ok((Self { folder: folder.into() }, found))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a job's file; after a crash there is the one before or this one.
    pub(super) fn save(&self, record: &Record) -> io::Result<()> {
        let text = serde_json::to_string_pretty(&Page { version: VERSION, record })?;
        replace_file(&self.path(record.job.id), &text)
    }

    pub(super) fn remove(&self, id: JobId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, id: JobId) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }
}

fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(".json")?.parse().ok()
}

fn read(path: &Path) -> Result<Record, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_FILE {
        return Err(format!("larger than {MAX_FILE} bytes"));
    }
    decode(&text)
}

/// Reads a job's file.
pub(super) fn decode(text: &str) -> Result<Record, String> {
    let page: Page<serde::de::IgnoredAny> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if page.version > VERSION {
        return Err(format!("it was written by a later version of Fanlight ({})", page.version));
    }
    serde_json::from_str::<Page<Record>>(text).map(|page| page.record).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::job::{Job, JobKind, JobState, Progress};
    use super::super::leftover::Leftover;
    use super::*;

    fn record(id: u64) -> Record {
        let job = Job {
            id: JobId(id),
            kind: JobKind::DiskConvert,
            target: "/srv/\"ä\".qcow2".into(),
            vm: None,
            state: JobState::Running,
            step: Some("copying".into()),
            progress: Progress { done: 1, total: 3, percent: 33.3, rate: Some(1), left: Some(2) },
            started: 5,
            ended: None,
            problem: None,
            result: Some(serde_json::json!({ "a": [1] })),
            revision: 4,
        };
        let program = Leftover::Program { pid: 7, start_time: u64::MAX, boot: "b".into() };
        Record { job, leftovers: vec![program], again: Some("asked".into()) }
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("fanlight-jobs-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn what_was_written_is_found_again() {
        let folder = folder("again");
        let (store, found) = Store::open(&folder).expect("opens");
        assert!(found.records.is_empty() && found.next == 0);
        store.save(&record(3)).expect("saved");
        store.save(&record(12)).expect("saved");
        store.remove(JobId(3)).expect("removed");
        store.remove(JobId(3)).expect("gone already");
        let (_, found) = Store::open(&folder).expect("opens");
        assert_eq!((found.records, found.next), (vec![record(12)], 13));
        fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn what_cannot_be_read_is_left_as_it_is_and_its_number_not_given_again() {
        let folder = folder("refused");
        let (store, _) = Store::open(&folder).expect("opens");
        store.save(&record(1)).expect("saved");
        let text = fs::read_to_string(folder.join("1.json")).expect("there");
        fs::write(folder.join("2.json"), text.replace("\"version\": 1", "\"version\": 2")).expect("written");
        fs::write(folder.join("4.json"), "{").expect("written");
        fs::write(folder.join("5.json"), &text).expect("written");
        fs::write(folder.join("notes.txt"), "not ours").expect("written");
        let (_, found) = Store::open(&folder).expect("opens");
        assert_eq!((found.records.len(), found.next), (1, 6));
        let mut reasons: Vec<_> = found.refused.into_iter().map(|(_, reason)| reason).collect();
        reasons.sort();
        assert!(reasons[0].starts_with("EOF while parsing"), "{reasons:?}");
        assert_eq!(reasons[1], "it is of job 1");
        assert_eq!(reasons[2], "it was written by a later version of Fanlight (2)");
        assert_eq!(fs::read_dir(&folder).expect("there").count(), 5, "nothing was removed");
        fs::remove_dir_all(&folder).expect("removed");
    }
}
