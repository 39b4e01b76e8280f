//! Notices that somebody writes, renames or removes files in a folder.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

/// How often it is looked in any case: what another host does on a share is told by nobody.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// The same where the kernel tells nothing at all.
const LOOK_OFTEN: Duration = Duration::from_secs(2);
/// Editors write, rename and remove in one go.
const SETTLES_WITHIN: Duration = Duration::from_millis(50);

/// A folder that is watched.
#[derive(Debug)]
pub(crate) struct FolderWatch {
    told: Option<AsyncFd<OwnedFd>>,
    /// Files that somebody has begun to write and not closed.
    unfinished: BTreeSet<OsString>,
}

impl FolderWatch {
    /// Watches `folder`, as well as the system can.
    pub(crate) fn new(folder: &Path) -> Self {
        let told = watch(folder).inspect_err(|error| {
            tracing::warn!(folder = %folder.display(), %error, "changes of files are noticed late");
        });
        Self { told: told.ok(), unfinished: BTreeSet::new() }
    }

    /// Waits until something may have changed. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        while let Some(told) = &self.told {
            // Who loses goes on the next time.
            let told = tokio::select! {
                told = told.readable() => told,
                () = sleep(LOOK_EVERY) => {
                    // Nobody writes for so long; of a link, which is only made, no end is told.
                    self.unfinished.clear();
                    return;
                }
            };
            sleep(SETTLES_WITHIN).await;
            let mut finished = false;
            let heard =
                told.map(|mut ready| ready.try_io(|fd| hear(fd.get_ref(), &mut self.unfinished, &mut finished)));
            if let Ok(Ok(Err(error))) | Err(error) = heard {
                tracing::warn!(%error, "changes of files are noticed late");
                (self.told, finished) = (None, true);
                self.unfinished.clear();
            }
            if finished {
                return;
            }
        }
        sleep(LOOK_OFTEN).await;
    }

    /// Whether somebody is about to write a file of the folder, as far as the system tells.
    pub(crate) fn is_being_written(&self, file: &Path) -> bool {
        file.file_name().is_some_and(|name| self.unfinished.contains(name))
    }
}

#[expect(deprecated, reason = "its successor is `unsafe` for types that may not own what they name; this one does")]
fn watch(folder: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let ends = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE;
    let begins = WatchFlags::MODIFY | WatchFlags::CREATE;
    inotify::add_watch(&fd, folder, begins | ends | WatchFlags::ONLYDIR)?;
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// Takes all that was told: which files are being written, and whether anything else was. The files themselves say the rest.
fn hear(fd: &OwnedFd, unfinished: &mut BTreeSet<OsString>, finished: &mut bool) -> io::Result<()> {
    let mut room = [MaybeUninit::uninit(); 4096];
    let mut told = inotify::Reader::new(fd, &mut room);
    loop {
        let event = match told.next() {
            Ok(event) => event,
            Err(Errno::INTR) => continue,
            // Nothing is left: the next wait shall wait.
            Err(error) => return Err(error.into()),
        };
        let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
        match name {
            Some(name) if event.events().intersects(ReadFlags::CREATE | ReadFlags::MODIFY) => {
                unfinished.insert(name.into());
            }
            Some(name) => {
                unfinished.remove(name);
                *finished = true;
            }
            // Something was missed.
            None => {
                unfinished.clear();
                *finished = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn a_file_that_is_written_renamed_or_removed_is_noticed() {
        let folder = std::env::temp_dir().join(format!("fanlight-folder-watch-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("temporary folder");
        let mut watch = FolderWatch::new(&folder);
        let (a, b) = (folder.join("a"), folder.join("b"));
        let changes: [&dyn Fn() -> io::Result<()>; 3] =
            [&|| std::fs::write(&a, "x"), &|| std::fs::rename(&a, &b), &|| std::fs::remove_file(&b)];
        for change in changes {
            change().expect("changed");
            let told = watch.told.as_ref().expect("the kernel tells");
            drop(tokio::time::timeout(LOOK_EVERY, told.readable()).await.expect("it was told"));
            watch.changed().await;
        }
        // Who writes is left alone until that is done.
        let mut file = std::fs::File::create(&a).expect("created");
        file.write_all(b"x").expect("written");
        std::fs::write(&b, "x").expect("written");
        watch.changed().await;
        assert!(watch.is_being_written(&a) && !watch.is_being_written(&b));
        drop(file);
        watch.changed().await;
        assert!(!watch.is_being_written(&a));
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
