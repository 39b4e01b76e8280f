//! Notices that somebody writes, renames or removes files in a folder.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
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
}

impl FolderWatch {
    /// Watches `folder`, as well as the system can.
    pub(crate) fn new(folder: &Path) -> Self {
        let told = watch(folder).inspect_err(|error| {
            tracing::warn!(folder = %folder.display(), %error, "changes of files are noticed late");
        });
        Self { told: told.ok() }
    }

    /// Waits until something may have changed. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        let Some(told) = &self.told else { return sleep(LOOK_OFTEN).await };
        // Who loses goes on the next time.
        let told = tokio::select! {
            told = told.readable() => told,
            () = sleep(LOOK_EVERY) => return,
        };
        sleep(SETTLES_WITHIN).await;
        match told.map(|mut ready| ready.try_io(|fd| forget(fd.get_ref()))) {
            Ok(Ok(Ok(())) | Err(_)) => {}
            Ok(Ok(Err(error))) | Err(error) => {
                tracing::warn!(%error, "changes of files are noticed late");
                self.told = None;
            }
        }
    }
}

#[expect(deprecated, reason = "its successor is `unsafe` for types that may not own what they name; this one does")]
fn watch(folder: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let what = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE;
    inotify::add_watch(&fd, folder, what | WatchFlags::ONLYDIR)?;
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// Takes all that was told: the files themselves say the rest.
fn forget(fd: &OwnedFd) -> io::Result<()> {
    let mut told = [0; 4096];
    loop {
        match rustix::io::read(fd, &mut told) {
            Ok(_) | Err(Errno::INTR) => {}
            // Nothing is left: the next wait shall wait.
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
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
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
