//! Who has an image open.
//!
//! QEMU locks what it writes, and refuses what another has locked; but whose lock it is the kernel does not say
//! (locks of an open file have no owner). So the open files of all processes are looked through.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A process that has an image open.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ImageUser {
    /// Its number.
    pub pid: u32,
    /// The program's name.
    pub program: String,
    /// The VM whose QEMU it is.
    pub vm: Option<String>,
    /// Whether it may write.
    pub writes: bool,
    /// Whether it holds a lock, so that QEMU refuses what does not go together.
    pub locks: bool,
}

impl ImageUser {
    /// For people.
    #[must_use]
    pub fn in_words(&self) -> String {
        let does = if self.writes { "writes" } else { "reads" };
        match &self.vm {
            Some(vm) => format!("VM {vm} {does} it (process {})", self.pid),
            None => format!("{} {does} it (process {})", self.program, self.pid),
        }
    }
}

/// Other processes that have the file or device at `path` open; those of other users are seen by root alone.
pub(crate) fn users_of(path: &Path) -> io::Result<Vec<ImageUser>> {
    let wanted = Identity::of(&fs::metadata(path)?);
    let mut users: Vec<ImageUser> = Vec::new();
    for entry in fs::read_dir("/proc")? {
        // Processes come and go.
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if pid != std::process::id() {
            users.extend(user(&entry.path(), pid, wanted));
        }
    }
    users.sort();
    Ok(users)
}

/// What makes two paths the same file, or the same device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    File { device: u64, inode: u64 },
    Device(u64),
}

impl Identity {
    fn of(data: &Metadata) -> Self {
        if data.file_type().is_block_device() {
            Self::Device(data.rdev())
        } else {
            Self::File { device: data.dev(), inode: data.ino() }
        }
    }
}

fn user(process: &Path, pid: u32, wanted: Identity) -> Option<ImageUser> {
    let mut found: Option<ImageUser> = None;
    for entry in fs::read_dir(process.join("fd")).ok()?.flatten() {
        // To follow the link is to look at the open file itself, whatever became of its name.
        if !fs::metadata(entry.path()).is_ok_and(|data| Identity::of(&data) == wanted) {
            continue;
        }
        let facts = fs::read_to_string(process.join("fdinfo").join(entry.file_name())).unwrap_or_default();
        let program =
            || fs::read_to_string(process.join("comm")).unwrap_or_default().trim().replace(char::is_control, "?");
        let user =
            found.get_or_insert_with(|| ImageUser { pid, program: program(), vm: None, writes: false, locks: false });
        user.writes |= writes(&facts);
        user.locks |= facts.lines().any(|line| line.starts_with("lock:"));
    }
    found
}

/// Whether a `/proc/PID/fdinfo/FD` (proc(5)) is of a file that may be written to: its flags are octal.
fn writes(facts: &str) -> bool {
    let flags = facts.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).unwrap_or(0);
    flags & 0o3 != 0
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_flags_tell_who_may_write() {
        assert!(writes("pos:\t0\nflags:\t02100002\nmnt_id:\t29\n"));
        assert!(writes("flags:\t0100001\n"));
        assert!(!writes("pos:\t0\nflags:\t0100000\n"));
        assert!(!writes("nonsense"));
    }

    #[test]
    fn a_process_that_has_the_file_open_is_found_by_whatever_name() {
        let path = std::env::temp_dir().join(format!("fanlight-users-{}.img", std::process::id()));
        let link = path.with_extension("link");
        let file = fs::File::create(&path).expect("a file");
        fs::hard_link(&path, &link).expect("a second name");
        assert_eq!(users_of(&path).expect("looked"), [], "we ourselves do not count");
        let mut child = Command::new("sleep").arg("600").stdin(Stdio::from(file)).spawn().expect("a program");
        let users = users_of(&link).expect("looked");
        child.kill().and_then(|()| child.wait()).expect("ended");
        let [user] = &users[..] else { panic!("one user, not {users:?}") };
        assert_eq!((user.pid, user.writes, user.locks), (child.id(), true, false));
        assert!(user.in_words().ends_with(&format!("writes it (process {})", child.id())));
        for name in [path, link] {
            fs::remove_file(name).expect("removed");
        }
    }
}
