//! The files by which a VM's QEMU is found: `qmp.sock`, `bus.sock`, `pid`, `qemu.log`; and its TPM: `tpm.sock`, `tpm.pid`,
//! `tpm.log`. `definition.toml` is what it was started as. `paused` is there while a guest shall stand still whatever its
//! disks do.
//!
//! They are facts of one run, never settings. `pid` holds the line of `/proc/PID/stat` and the host's boot
//! identity, so that a number that was given to another process since is not mistaken for QEMU.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};
use tokio::net::UnixStream;

use super::tpm::TPM_SOCKET;

const QMP_SOCKET: &str = "qmp.sock";
const BUS_SOCKET: &str = "bus.sock";
const DEFINITION: &str = "definition.toml";
const PID: &str = "pid";
const LOG: &str = "qemu.log";
const TPM_PID: &str = "tpm.pid";
const TPM_LOG: &str = "tpm.log";
const PAUSED: &str = "paused";
/// Longest log that is kept.
const MAX_LOG: u64 = 4 * 1024 * 1024;
/// Longest note of a process.
const MAX_PID: u64 = 4096;
/// How soon a socket before which others wait is tried again.
const CONNECT_AGAIN: Duration = Duration::from_millis(10);
/// How much of the end of the log is looked at.
const LOG_TAIL: u64 = 8 * 1024;

/// One VM's runtime folder.
#[derive(Debug)]
pub(crate) struct RuntimeFolder {
    path: PathBuf,
    /// The folder itself, opened: its sockets are reached through it whatever the length of its path.
    folder: OwnedFd,
}

/// A process, for as long as the host is not started over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessStamp {
    pub(crate) pid: i32,
    /// When it was started, in clock ticks since the host was.
    pub(crate) start_time: u64,
}

/// When the QEMU was started that somebody forgot to clear up after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leftover {
    ThisBoot,
    EarlierBoot,
}

impl RuntimeFolder {
    /// Opens the folder at `path`, which is made when it is not there.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Self::open(path)
    }

    /// Opens the folder at `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { path: path.into(), folder: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where it is kept what the VM was started as.
    pub(crate) fn definition(&self) -> PathBuf {
        self.path.join(DEFINITION)
    }

    /// Where the starting process writes who it is.
    pub(crate) fn pid_file(&self) -> PathBuf {
        self.path.join(PID)
    }

    /// A socket that QEMU will answer QMP on; who connects before QEMU is ready waits.
    pub(crate) fn listen_monitor(&self) -> io::Result<UnixListener> {
        self.listen(QMP_SOCKET)
    }

    /// A socket that QEMU will connect to the guest's port of the bus.
    pub(crate) fn listen_bus_port(&self) -> io::Result<UnixListener> {
        self.listen(BUS_SOCKET)
    }

    /// Where a starting TPM writes who it is.
    pub(super) fn tpm_pid_file(&self) -> PathBuf {
        self.path.join(TPM_PID)
    }

    /// A socket on which the TPM will answer QEMU.
    pub(super) fn listen_tpm(&self) -> io::Result<UnixListener> {
        self.listen(TPM_SOCKET)
    }

    /// Connects to QEMU's monitor. Waits for as long as QEMU takes nobody: the caller has a deadline.
    pub(crate) async fn connect_monitor(&self) -> io::Result<UnixStream> {
        self.connect(QMP_SOCKET).await
    }

    /// Connects to the guest's port of the bus. Waits as for the monitor.
    pub(crate) async fn connect_bus_port(&self) -> io::Result<UnixStream> {
        self.connect(BUS_SOCKET).await
    }

    /// An empty log for QEMU's standard output and error; the one before is kept beside it.
    pub(crate) fn new_log(&self) -> io::Result<PathBuf> {
        let path = self.path.join(LOG);
        match fs::rename(&path, self.path.join("qemu.log.1")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        File::options().append(true).create_new(true).mode(0o600).open(&path)?;
        Ok(path)
    }

    /// An empty log for the TPM.
    pub(super) fn new_tpm_log(&self) -> io::Result<PathBuf> {
        let path = self.path.join(TPM_LOG);
        File::options().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        Ok(path)
    }

    /// The last `lines` lines QEMU wrote.
    pub(crate) fn log_tail(&self, lines: usize) -> String {
        self.tail_of(LOG, lines)
    }

    /// The last `lines` lines the TPM wrote.
    pub(crate) fn tpm_log_tail(&self, lines: usize) -> String {
        self.tail_of(TPM_LOG, lines)
    }

    fn tail_of(&self, name: &str, lines: usize) -> String {
        // A reason is not worth a second failure: a log that cannot be read has nothing to say.
        let Ok(text) = self.read_log(name) else { return String::new() };
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        all[all.len().saturating_sub(lines)..].join("; ")
    }

    /// Empties a log that a guest has made QEMU fill.
    pub(crate) fn trim_log(&self) {
        let path = self.path.join(LOG);
        if fs::metadata(&path).is_ok_and(|data| data.len() > MAX_LOG)
            && let Err(error) = File::options().write(true).open(&path).and_then(|log| log.set_len(0))
        {
            tracing::warn!(file = %path.display(), %error, "cannot empty a log that has grown too long");
        }
    }

    /// The QEMU that was started last, unless it was ended in order or before the host was started over.
    pub(crate) fn stamp(&self) -> Option<ProcessStamp> {
        self.stamp_in(PID)
    }

    /// Its TPM, likewise.
    pub(super) fn tpm_stamp(&self) -> Option<ProcessStamp> {
        self.stamp_in(TPM_PID)
    }

    fn stamp_in(&self, name: &str) -> Option<ProcessStamp> {
        let text = self.read_pid(name)?;
        let (boot, stat) = text.split_once('\n')?;
        (boot == boot_id().ok()?).then_some(())?;
        ProcessStamp::parse(stat)
    }

    /// Whether a QEMU was started here and not ended in order: since the host was started, or before.
    pub(crate) fn leftover(&self) -> Option<Leftover> {
        let text = self.read_pid(PID)?;
        let same_boot = boot_id().is_ok_and(|boot| text.lines().next() == Some(boot.as_str()));
        Some(if same_boot { Leftover::ThisBoot } else { Leftover::EarlierBoot })
    }

    /// Notes that QEMU was ended in order.
    pub(crate) fn forget_process(&self) {
        for name in [PID, QMP_SOCKET, BUS_SOCKET, TPM_PID, TPM_SOCKET, PAUSED] {
            if let Err(error) = fs::remove_file(self.path.join(name))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(file = %self.path.join(name).display(), %error, "cannot remove a runtime file");
            }
        }
    }

    /// When QEMU was started, by the note of it.
    pub(crate) fn started(&self) -> Option<SystemTime> {
        fs::metadata(self.path.join(PID)).and_then(|note| note.modified()).ok()
    }

    /// Since when it is noted that the guest shall stand still; none: it is not.
    pub(crate) fn paused_since(&self) -> Option<SystemTime> {
        fs::metadata(self.path.join(PAUSED)).and_then(|note| note.modified()).ok()
    }

    /// Notes that the guest shall stand still until somebody asks otherwise, or need not.
    pub(crate) fn keep_paused(&self, kept: bool) -> io::Result<()> {
        let path = self.path.join(PAUSED);
        match if kept { File::create(path).map(drop) } else { fs::remove_file(path) } {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !kept => Ok(()),
            done => done,
        }
    }

    /// Whether that is noted.
    pub(crate) fn is_kept_paused(&self) -> bool {
        self.path.join(PAUSED).exists()
    }

    fn read_pid(&self, name: &str) -> Option<String> {
        let mut text = String::new();
        File::open(self.path.join(name)).ok()?.take(MAX_PID).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// A socket of that name; one that was there is removed.
    pub(crate) fn listen(&self, name: &str) -> io::Result<UnixListener> {
        let path = self.socket_path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        UnixListener::bind(path)
    }

    /// Connects to the socket of that name. Waits as for the monitor.
    pub(crate) async fn connect(&self, name: &str) -> io::Result<UnixStream> {
        loop {
            match UnixStream::connect(self.socket_path(name)).await {
                // QEMU lets two wait (it calls listen(2) with 1). Of room for another the kernel tells only who blocks.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(CONNECT_AGAIN).await,
                connected => return connected,
            }
        }
    }

    /// Removes a socket that nobody listens on any more.
    pub(crate) fn remove(&self, name: &str) {
        // The next who listens there does it otherwise.
        let _ = fs::remove_file(self.socket_path(name));
    }

    fn socket_path(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.folder.as_raw_fd()).into()
    }

    fn read_log(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut file = File::open(self.path.join(name))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut text = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut text)?;
        Ok(text)
    }
}

impl ProcessStamp {
    /// The stamp of a process that exists and is not merely waiting to be reaped.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        let state = fields.split_whitespace().next()?;
        if matches!(state, "Z" | "X") {
            return None;
        }
        Self::parse(&stat)
    }

    /// Reads a line of `/proc/PID/stat` (proc(5)): `pid (name) state …`, the start time is field 22.
    fn parse(stat: &str) -> Option<Self> {
        let pid = stat.split_whitespace().next()?.parse().ok()?;
        // The name may hold anything, a ')' too.
        let (_, after_name) = stat.rsplit_once(')')?;
        let start_time = after_name.split_whitespace().nth(22 - 3)?.parse().ok()?;
        Some(Self { pid, start_time })
    }
}

/// What tells this start of the host from every other.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "4321 (a) b (c)) S 1 4321 4321 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3";
        assert_eq!(ProcessStamp::parse(stat), Some(ProcessStamp { pid: 4321, start_time: 987_654 }));
        assert_eq!(ProcessStamp::parse("4321 (a"), None);
        assert_eq!(ProcessStamp::parse(""), None);
    }

    #[test]
    fn this_process_has_a_stamp_and_an_impossible_one_has_none() {
        let own = i32::try_from(std::process::id()).expect("fits");
        assert_eq!(ProcessStamp::of(own).map(|stamp| stamp.pid), Some(own));
        assert_eq!(ProcessStamp::of(-5), None);
    }
}
