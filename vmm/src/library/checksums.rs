//! The list of an entry's checksums: as `sha256sum` writes it, so that it can be checked without us, too.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::{CHECKSUMS, LibraryError, entry};
use crate::jobs::{JobHandle, Unfinished};

/// How much is read at once.
const BLOCK: usize = 1024 * 1024;
/// How often it is said how far it has come.
const SAY_EVERY: Duration = Duration::from_millis(200);

/// Checksums by the names of the files.
pub(super) type Sums = BTreeMap<String, String>;

/// The list of an entry.
pub(super) fn read(folder: &Path) -> Result<Sums, LibraryError> {
    let path = folder.join(CHECKSUMS);
    let text = entry::read_text(&path).map_err(|error| LibraryError::Io { path: path.clone(), error })?;
    parse(&text).ok_or_else(|| LibraryError::NoEntry { entry: path, reason: "no list as sha256sum writes it".into() })
}

/// The text of a list.
pub(super) fn write(sums: &Sums) -> String {
    sums.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect()
}

/// Computes the checksums of files of a folder.
pub(super) async fn compute(folder: &Path, names: &[String], job: &JobHandle) -> Result<Sums, Unfinished> {
    let length = |name: &String| fs::metadata(folder.join(name)).map_or(0, |data| data.len());
    let total = names.iter().map(length).sum();
    let done = Arc::new(AtomicU64::new(0));
    let mut sums = Sums::new();
    for name in names {
        let path = folder.join(name);
        let told = |error: io::Error| Unfinished::Failed(format!("{name}: {error}"));
        let sum = aside(job, &done, total, move |done, stop| pour(File::open(path)?, None, done, stop)).await?;
        sums.insert(name.clone(), sum.map_err(told)?.ok_or(Unfinished::Stopped)?);
    }
    job.advance(total, total);
    Ok(sums)
}

/// Copies a file as it is, to where nothing is yet; when this returns, it lasts.
pub(super) async fn copy(from: &Path, to: &Path, job: &JobHandle) -> Result<(), Unfinished> {
    let told = |error: io::Error| Unfinished::Failed(format!("{}: {error}", from.display()));
    let total = fs::metadata(from).map_err(told)?.len();
    let (source, target) = (from.to_path_buf(), to.to_path_buf());
    let done = Arc::default();
    let copied = aside(job, &done, total, move |done, stop| {
        pour(File::open(source)?, Some(File::options().write(true).create_new(true).open(target)?), done, stop)
    });
    copied.await?.map_err(told)?.map(drop).ok_or(Unfinished::Stopped)
}

/// Does what waits for the disk in a thread of its own, says how far it has come, and stops it when the job is stopped.
async fn aside<T: Send + 'static>(
    job: &JobHandle,
    done: &Arc<AtomicU64>,
    total: u64,
    work: impl FnOnce(&AtomicU64, &AtomicBool) -> T + Send + 'static,
) -> Result<T, Unfinished> {
    let stop = Arc::new(AtomicBool::new(false));
    let (counter, stopping) = (done.clone(), stop.clone());
    let mut working = tokio::task::spawn_blocking(move || work(&counter, &stopping));
    let ended = loop {
        // A read goes on when somebody else is faster; it is told to stop.
        tokio::select! {
            ended = &mut working => break ended,
            () = job.stopped() => {
                stop.store(true, Ordering::Relaxed);
                break (&mut working).await;
            }
            () = tokio::time::sleep(SAY_EVERY) => job.advance(done.load(Ordering::Relaxed), total),
        }
    };
    ended.map_err(|error| Unfinished::Failed(error.to_string()))
}

/// Compares the files of `folder` with its list, on which all that are `needed` must be.
pub(super) async fn verify(folder: &Path, sums: &Sums, needed: &[PathBuf], job: &JobHandle) -> Result<(), Unfinished> {
    let listed =
        |path: &&PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| sums.contains_key(name));
    if let Some(path) = needed.iter().find(|path| !listed(path)) {
        return Err(Unfinished::Failed(format!("{} is not on the list of checksums", path.display())));
    }
    let names: Vec<String> = sums.keys().cloned().collect();
    let found = compute(folder, &names, job).await?;
    let wrong: Vec<&str> =
        names.iter().filter(|name| sums.get(*name) != found.get(*name)).map(String::as_str).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Unfinished::Failed(format!("not as it was when the entry was made: {}", wrong.join(", "))))
}

/// The checksum of a file, which is written to another if there is one; none when it is told to stop.
fn pour(mut from: File, mut to: Option<File>, done: &AtomicU64, stop: &AtomicBool) -> io::Result<Option<String>> {
    let (mut hash, mut block) = (Sha256::new(), vec![0; BLOCK]);
    loop {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let count = from.read(&mut block)?;
        let read = block.get(..count).unwrap_or_default();
        if read.is_empty() {
            break;
        }
        hash.update(read);
        to.as_mut().map_or(Ok(()), |to| to.write_all(read))?;
        done.fetch_add(count as u64, Ordering::Relaxed);
    }
    to.map_or(Ok(()), |to| to.sync_all())?;
    let mut text = String::new();
    for byte in hash.finalize() {
        // Writing into a text does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(Some(text))
}

/// Lines of 64 hexadecimal digits, two characters, and the name of a file of the same folder.
fn parse(text: &str) -> Option<Sums> {
    let line = |line: &str| {
        let (sum, rest) = line.split_at_checked(64)?;
        let name = rest.strip_prefix("  ").or_else(|| rest.strip_prefix(" *"))?;
        let good = sum.bytes().all(|byte| byte.is_ascii_hexdigit()) && entry::is_plain(name);
        good.then(|| (name.to_owned(), sum.to_ascii_lowercase()))
    };
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_is_written_and_as_sha256sum_writes_it() {
        let sum = "a".repeat(64);
        let sums = Sums::from([("disk.qcow2".to_owned(), sum.clone()), ("vm.toml".to_owned(), "0".repeat(64))]);
        assert_eq!(parse(&write(&sums)), Some(sums));
        assert_eq!(parse(&format!("{sum} *x\n")).map(|sums| sums.len()), Some(1));
        for bad in [format!("{sum} x"), format!("{sum}  ../x"), format!("{sum}  /x"), "short  x".into(), "é".repeat(40)]
        {
            assert_eq!(parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn the_checksum_is_that_of_sha256() {
        let path = std::env::temp_dir().join(format!("fanlight-sum-{}", std::process::id()));
        let copy = path.with_extension("copy");
        fs::write(&path, "abc").expect("written");
        let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let open = || File::open(&path).expect("there");
        let to = File::create(&copy).expect("made");
        assert_eq!(pour(open(), Some(to), &done, &stop).expect("read").as_deref(), Some(expected));
        assert_eq!((done.load(Ordering::Relaxed), fs::read_to_string(&copy).expect("there").as_str()), (3, "abc"));
        assert_eq!(pour(open(), None, &done, &AtomicBool::new(true)).expect("stopped"), None);
        fs::remove_file(&path).and_then(|()| fs::remove_file(&copy)).expect("removed");
    }
}
