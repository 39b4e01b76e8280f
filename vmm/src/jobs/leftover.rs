//! What a job that did not end well leaves behind, and how a later gateway clears it away.
//!
//! A file is removed only when it is the very one that the job made: a name says little, days later.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::engine::{ProcessStamp, boot_id};

/// How long a killed program may take to be gone.
const END: Duration = Duration::from_secs(5);

/// Something that is of no use unless the job ends well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Leftover {
    /// An empty file that keeps a name.
    Placeholder(FileStamp),
    /// A file that is not complete, and is given the name `target` once it is.
    Partial { file: FileStamp, target: PathBuf },
    /// A folder that is not complete, with all in it, and is given the name `target` once it is.
    Folder { folder: FileStamp, target: PathBuf },
    /// A program that does the job's work.
    Program { pid: i32, start_time: u64, boot: String },
}

/// A file, and what tells it from another of its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileStamp {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Nanoseconds since 1970, where the file system tells: numbers of inodes are used again.
    born: Option<u64>,
}

/// What became of all that was left.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Cleared {
    pub(super) removed: Vec<PathBuf>,
    /// What is still there, and why.
    pub(super) kept: Vec<String>,
    /// A file had got its name: the work had been done.
    pub(super) complete: bool,
}

impl Leftover {
    /// The program with that number, which is our child and has not been waited for.
    pub(crate) fn program(pid: u32) -> io::Result<Self> {
        let stamp = i32::try_from(pid).ok().and_then(ProcessStamp::of);
        let stamp = stamp.ok_or_else(|| io::Error::other("the program has ended"))?;
        Ok(Self::Program { pid: stamp.pid, start_time: stamp.start_time, boot: boot_id()? })
    }
}

impl FileStamp {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let data = fs::symlink_metadata(path)?;
        let born = data.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let born = born.and_then(|since| u64::try_from(since.as_nanos()).ok());
        Ok(Self { path: path.into(), device: data.dev(), inode: data.ino(), born })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this very file is at `path`.
    fn is_at(&self, path: &Path) -> bool {
        Self::of(path).is_ok_and(|found| Self { path: self.path.clone(), ..found } == *self)
    }

    /// Whether it is where it was and nobody has written to it.
    pub(crate) fn is_empty_and_there(&self) -> bool {
        self.is_at(&self.path) && fs::metadata(&self.path).is_ok_and(|data| data.len() == 0)
    }

    /// Removes it, unless something else has its name.
    pub(crate) fn remove(&self) -> io::Result<bool> {
        self.remove_by(|path| fs::remove_file(path))
    }

    /// The same of a folder, with all that is in it.
    fn remove_folder(&self) -> io::Result<bool> {
        self.remove_by(|path| fs::remove_dir_all(path))
    }

    fn remove_by(&self, remove: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<bool> {
        if !self.is_at(&self.path) {
            return Ok(false);
        }
        remove(&self.path).map(|()| true)
    }
}

/// Ends the programs first, so that nothing writes any more, then removes the files.
pub(super) fn clear(leftovers: &[Leftover]) -> Cleared {
    let mut cleared = Cleared::default();
    for leftover in leftovers {
        if let Leftover::Program { pid, start_time, boot } = leftover
            && let Err(error) = end(ProcessStamp { pid: *pid, start_time: *start_time }, boot)
        {
            cleared.kept.push(format!("process {pid}: {error}"));
        }
    }
    for leftover in leftovers {
        cleared.file(leftover);
    }
    cleared
}

impl Cleared {
    fn file(&mut self, leftover: &Leftover) {
        let file = match leftover {
            Leftover::Program { .. } => return,
            // One that is not empty any more is somebody's.
            Leftover::Placeholder(file) if fs::metadata(&file.path).is_ok_and(|data| data.len() > 0) => return,
            Leftover::Partial { file, target } | Leftover::Folder { folder: file, target } if file.is_at(target) => {
                self.complete = true;
                return;
            }
            Leftover::Placeholder(file) | Leftover::Partial { file, .. } | Leftover::Folder { folder: file, .. } => {
                file
            }
        };
        let is_folder = matches!(leftover, Leftover::Folder { .. });
        match if is_folder { file.remove_folder() } else { file.remove() } {
            Ok(true) => self.removed.push(file.path.clone()),
            Ok(false) => {}
            Err(error) => self.kept.push(format!("{}: {error}", file.path.display())),
        }
    }
}

/// Ends a process, unless it has ended already and another has its number.
fn end(stamp: ProcessStamp, boot: &str) -> io::Result<()> {
    if boot_id()? != boot {
        return Ok(());
    }
    let Some(pid) = Pid::from_raw(stamp.pid) else { return Ok(()) };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    // Only now the number cannot be given to another process unnoticed.
    if ProcessStamp::of(stamp.pid) != Some(stamp) {
        return Ok(());
    }
    pidfd_send_signal(&process, Signal::KILL)?;
    let patience = Timespec::try_from(END).map_err(|_| io::Error::other("no such time"))?;
    match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience))? {
        0 => Err(io::Error::other("does not end even when killed")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("fanlight-leftover-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).expect("a folder");
            Self(path)
        }

        fn file(&self, name: &str, text: &str) -> FileStamp {
            let path = self.0.join(name);
            fs::write(&path, text).expect("written");
            FileStamp::of(&path).expect("there")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn only_what_the_job_made_is_removed() {
        let folder = Folder::new("own");
        let target = folder.0.join("disk.qcow2");
        let placeholder = Leftover::Placeholder(folder.file("disk.qcow2", ""));
        let partial = Leftover::Partial { file: folder.file(".partial", "half"), target: target.clone() };
        let replaced = Leftover::Placeholder(folder.file("replaced", ""));
        folder.file("other", "another file");
        fs::rename(folder.0.join("other"), folder.0.join("replaced")).expect("replaced");
        let filled = Leftover::Placeholder(folder.file("filled", ""));
        folder.file("filled", "by somebody");
        let gone = Leftover::Placeholder(folder.file("gone", ""));
        fs::remove_file(folder.0.join("gone")).expect("removed");
        let cleared = clear(&[placeholder, partial, replaced, filled, gone]);
        assert_eq!(cleared.removed, [target, folder.0.join(".partial")]);
        assert_eq!((cleared.kept.len(), cleared.complete), (0, false));
        assert_eq!(fs::read_to_string(folder.0.join("filled")).expect("there"), "by somebody");
        assert_eq!(fs::read_to_string(folder.0.join("replaced")).expect("there"), "another file");
    }

    #[test]
    fn a_file_that_has_its_name_is_complete() {
        let folder = Folder::new("complete");
        let target = folder.0.join("disk.qcow2");
        let placeholder = Leftover::Placeholder(folder.file("disk.qcow2", ""));
        let partial = Leftover::Partial { file: folder.file(".partial", "whole"), target: target.clone() };
        fs::rename(folder.0.join(".partial"), &target).expect("renamed");
        assert_eq!(clear(&[placeholder, partial]), Cleared { complete: true, ..Cleared::default() });
        assert_eq!(fs::read_to_string(target).expect("there"), "whole");
    }

    #[test]
    fn the_program_is_ended_and_another_with_its_number_is_not() {
        let mut child = Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().expect("a program");
        let program = Leftover::program(child.id()).expect("it runs");
        let Leftover::Program { pid, start_time, boot } = program.clone() else { panic!("a program") };
        let other = Leftover::Program { pid, start_time: start_time + 1, boot: boot.clone() };
        let earlier = Leftover::Program { pid, start_time, boot: "another start of the host".into() };
        assert_eq!(clear(&[other, earlier]), Cleared::default());
        assert_eq!(child.try_wait().expect("ours"), None, "it still runs");
        assert_eq!(clear(&[program]), Cleared::default());
        assert!(!child.wait().expect("ours").success());
    }
}
