//! Running `qemu-img`: what it says is bounded in time and length, and it ends with whoever waits for it.

use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::error::DiskError;
use crate::jobs::{JobHandle, Leftover, Unfinished};

/// A question takes milliseconds, unless the disk is slow.
const DEADLINE: Duration = Duration::from_secs(30);
/// Longest answer, and longest complaint.
const MAX_ANSWER: u64 = 4 * 1024 * 1024;
const MAX_COMPLAINT: u64 = 16 * 1024;
/// How often a file is looked at that grows without a word.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// `qemu-img`, of the same QEMU that runs the guests.
#[derive(Debug, Clone)]
pub(crate) struct QemuImg {
    program: PathBuf,
}

/// How it is known how far a long run has come.
#[derive(Debug, Clone, Copy)]
pub(super) enum Progress<'a> {
    /// It says so: `-p` is among the arguments.
    Told { total: u64 },
    /// By the space that a file takes.
    Grown { file: &'a Path, total: u64 },
}

impl QemuImg {
    /// The one beside `qemu`, else the one on the path.
    pub(crate) fn beside(qemu: &Path) -> Self {
        let beside = qemu.with_file_name("qemu-img");
        let is_there = qemu.parent().is_some_and(|folder| !folder.as_os_str().is_empty()) && beside.exists();
        Self { program: if is_there { beside } else { "qemu-img".into() } }
    }

    /// Runs it for its answer.
    pub(super) async fn ask(&self, arguments: Vec<OsString>) -> Result<Vec<u8>, DiskError> {
        self.ask_within(DEADLINE, arguments).await
    }

    /// Runs it for what it says of the image at `path`, in JSON.
    pub(super) async fn ask_about<T: DeserializeOwned>(
        &self,
        path: &Path,
        arguments: Vec<OsString>,
    ) -> Result<T, DiskError> {
        serde_json::from_slice(&self.ask(arguments).await?).map_err(|error| senseless(path, error))
    }

    /// Runs it for its answer, which may take so long.
    pub(crate) async fn ask_within(&self, deadline: Duration, arguments: Vec<OsString>) -> Result<Vec<u8>, DiskError> {
        let mut child = self.start(&arguments)?;
        let answer = async {
            let (answer, complaint) =
                tokio::join!(read(child.stdout.take(), MAX_ANSWER + 1), read(child.stderr.take(), MAX_COMPLAINT));
            let status = child.wait().await?;
            io::Result::Ok((status, answer?, complaint?))
        };
        let ended = timeout(deadline, answer).await;
        let ended =
            ended.map_err(|_| DiskError::Refused(format!("qemu-img did not end within {} s", deadline.as_secs())))?;
        let (status, answer, complaint) = ended.map_err(|error| self.not_run(error))?;
        if !status.success() {
            return Err(DiskError::Refused(in_words(status, &complaint)));
        }
        if answer.len() as u64 > MAX_ANSWER {
            return Err(DiskError::Refused(format!("qemu-img says more than {MAX_ANSWER} bytes")));
        }
        Ok(answer)
    }

    /// Runs it as the work of `job`, with what is left of it when it is interrupted.
    pub(super) async fn work(
        &self,
        arguments: Vec<OsString>,
        progress: Progress<'_>,
        job: &JobHandle,
        leftovers: &[Leftover],
    ) -> Result<(), Unfinished> {
        let mut child = self.start(&arguments).map_err(|error| Unfinished::Failed(error.to_string()))?;
        let mut left = leftovers.to_vec();
        // One that has ended already has no number any more, and leaves no program.
        left.extend(child.id().and_then(|pid| Leftover::program(pid).ok()));
        job.leave(&left).await?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let ((), complaint, status) =
                tokio::join!(follow(stdout, progress, job), read(stderr, MAX_COMPLAINT), child.wait());
            io::Result::Ok((status?, complaint?))
        };
        // The loser is ended with what it reads from and waits for: nothing of it is needed.
        let ended = tokio::select! {
            ended = work => Some(ended),
            () = watch(progress, job) => None,
            () = job.stopped() => None,
        };
        let Some(ended) = ended else {
            // Only then nothing writes to the file any more.
            child.kill().await?;
            return Err(Unfinished::Stopped);
        };
        let (status, complaint) = ended?;
        if status.success() { Ok(()) } else { Err(Unfinished::Failed(in_words(status, &complaint))) }
    }

    fn start(&self, arguments: &[OsString]) -> Result<Child, DiskError> {
        Command::new(&self.program)
            .args(arguments)
            .current_dir("/")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| self.not_run(error))
    }

    fn not_run(&self, error: io::Error) -> DiskError {
        DiskError::NoProgram { program: self.program.clone(), error }
    }
}

/// Takes in what it says of its progress, until it says nothing more.
async fn follow(stdout: Option<impl AsyncRead + Unpin>, progress: Progress<'_>, job: &JobHandle) {
    let Some(mut stdout) = stdout else { return };
    let (mut reader, mut chunk) = (PercentReader::default(), [0; 512]);
    // What cannot be read is not worth ending the work for.
    while let Ok(count @ 1..) = stdout.read(&mut chunk).await {
        if let (Some(hundredths), Progress::Told { total }) =
            (reader.read(chunk.get(..count).unwrap_or_default()), progress)
        {
            let done = u128::from(total) * u128::from(hundredths) / 10_000;
            job.advance(u64::try_from(done).unwrap_or(total), total);
        }
    }
}

/// Looks at the file that grows. Never returns.
async fn watch(progress: Progress<'_>, job: &JobHandle) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Progress::Grown { file, total } = progress
            && let Ok(taken) = space_taken(file)
        {
            job.advance(taken, total);
        }
    }
}

/// The bytes that a file takes on its disk.
pub(super) fn space_taken(file: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(std::fs::metadata(file)?.blocks().saturating_mul(512))
}

/// Reads the `    (12.34/100%)\r` of `-p`, in whatever pieces it comes.
#[derive(Debug, Default)]
pub(crate) struct PercentReader {
    /// Since the last bracket; what grows longer than any number is none.
    number: Option<Vec<u8>>,
}

impl PercentReader {
    /// The last number in `bytes` that is complete, in hundredths of a percent.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Option<u16> {
        let mut last = None;
        for byte in bytes {
            match (byte, &mut self.number) {
                (b'(', _) => self.number = Some(Vec::new()),
                (b'/', Some(number)) => {
                    last = hundredths(number).or(last);
                    self.number = None;
                }
                (byte, Some(number)) if number.len() < 8 => number.push(*byte),
                _ => self.number = None,
            }
        }
        last
    }
}

/// `12.34` → 1234.
fn hundredths(number: &[u8]) -> Option<u16> {
    let (whole, part) = std::str::from_utf8(number).ok()?.trim().split_once('.')?;
    let part = if part.len() == 2 { part.parse::<u16>().ok()? } else { return None };
    let all = whole.parse::<u16>().ok()?.checked_mul(100)?.checked_add(part)?;
    (all <= 10_000).then_some(all)
}

async fn read(from: Option<impl AsyncRead + Unpin>, most: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let Some(mut from) = from else { return Ok(text) };
    (&mut from).take(most).read_to_end(&mut text).await?;
    // What is more is of no interest, but it must not block on saying it.
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(text)
}

/// An answer about the image at `path` that cannot be read.
pub(super) fn senseless(path: &Path, reason: impl Display) -> DiskError {
    DiskError::Refused(format!("what qemu-img says of {} makes no sense: {reason}", path.display()))
}

/// What it complained of, without its name before each line.
fn in_words(status: ExitStatus, complaint: &[u8]) -> String {
    let text = String::from_utf8_lossy(complaint).replace(|c: char| c.is_control() && c != '\n', "?");
    let lines: Vec<_> = text.lines().map(|line| line.strip_prefix("qemu-img: ").unwrap_or(line).trim()).collect();
    let words = lines.join("; ");
    if words.is_empty() { format!("qemu-img ended with {status}") } else { format!("qemu-img: {words}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_are_read_in_whatever_pieces_they_come() {
        let text = b"    (0.00/100%)\r    (1.33/100%)\r    (100.00/100%)\r\n";
        for size in 1..text.len() {
            let mut reader = PercentReader::default();
            let read: Vec<_> = text.chunks(size).filter_map(|chunk| reader.read(chunk)).collect();
            assert_eq!(read.last(), Some(&10_000), "in pieces of {size}");
            assert!(read.is_sorted());
        }
        let mut reader = PercentReader::default();
        for nonsense in [&b"(100.01/100%)"[..], b"(-1.00/", b"(1.5/", b"((((", b"(999999999999.00/", b"/////"] {
            assert_eq!(reader.read(nonsense), None);
        }
        assert_eq!(reader.read(b"(12.34/100%)"), Some(1234));
    }
}
