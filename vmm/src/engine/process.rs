//! The QEMU process: started so that it outlives us, watched, and ended by what cannot be mistaken for another.

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::command_line::ALLOCATOR;
use super::runtime_folder::{ProcessStamp, RuntimeFolder};

/// The descriptor by which QEMU has the socket of its bus port, or nothing.
pub(super) const BUS_PORT_FD: i32 = 3;
/// The descriptor by which QEMU has the memory of its bus, or nothing. It stays open, so that a later gateway finds the
/// memory there.
pub(crate) const BUS_MEMORY_FD: i32 = 4;

/// Becomes QEMU, or what runs beside it, without losing its process: moves what it was given as standard output and error
/// to the descriptors that QEMU expects it on, notes who it is, lets go of files that our own parent left open in us (a lock
/// or a pipe of a script would otherwise stay held), and leaves our session.
///
/// `$0` is the file for the note, `$1` the log, what follows the program and its arguments.
pub(super) const LAUNCHER: &str = r#"
set -e
exec 3>&1 4>&2 >> "$1" 2>&1 5>&- 6>&- 7>&- 8>&- 9>&-
shift
read -r boot < /proc/sys/kernel/random/boot_id
read -r stat < /proc/$$/stat
printf '%s\n%s\n' "$boot" "$stat" > "$0"
exec setsid "$@"
"#;

/// What QEMU is given besides its arguments.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// It answers QMP on this one.
    pub(crate) monitor: UnixListener,
    /// It connects the guest's port of the bus on this one.
    pub(crate) bus_port: Option<UnixListener>,
    /// The memory of the bus.
    pub(crate) bus_memory: Option<OwnedFd>,
}

/// A QEMU, or what runs beside it: ours, or one that an earlier gateway started.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    /// Known once it was asked for: the kernel tells it once.
    exit: OnceLock<Exit>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// With a code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It was another's child, so nobody tells us.
    Unknown,
}

impl Process {
    /// Starts QEMU with `arguments`, and with [`ALLOCATOR`] when there is a value for it.
    pub(crate) fn start(
        qemu: &Path,
        arguments: &[String],
        folder: &RuntimeFolder,
        allocator: Option<&str>,
        inherited: Inherited,
    ) -> io::Result<Self> {
        let Inherited { monitor, bus_port, bus_memory } = inherited;
        let log = folder.new_log()?;
        let child = Command::new("/bin/sh")
            .args(["-c", LAUNCHER])
            .arg(folder.pid_file())
            .arg(log)
            .arg(qemu)
            .args(arguments)
            .envs(allocator.map(|value| (ALLOCATOR, value)))
            // Where its sockets are, whose paths must be short.
            .current_dir(folder.path())
            .stdin(Stdio::from(OwnedFd::from(monitor)))
            // Only these three can be handed over without a moment in which another child could get them, too.
            .stdout(bus_port.map_or_else(Stdio::null, |listener| OwnedFd::from(listener).into()))
            .stderr(bus_memory.map_or_else(Stdio::null, Stdio::from))
            .spawn()?;
        Self::of_child(&child)
    }

    /// A child of ours. `Child` does not end or reap anything when it is dropped; the pidfd does both.
    pub(super) fn of_child(child: &Child) -> io::Result<Self> {
        Self::open(Pid::from_child(child))
    }

    /// The QEMU that `folder` tells of, if it still runs.
    pub(crate) fn find(folder: &RuntimeFolder) -> io::Result<Option<Self>> {
        Self::of_stamp(folder.stamp())
    }

    /// The TPM that `folder` tells of, if it still runs.
    pub(crate) fn find_tpm(folder: &RuntimeFolder) -> io::Result<Option<Self>> {
        Self::of_stamp(folder.tpm_stamp())
    }

    fn of_stamp(stamp: Option<ProcessStamp>) -> io::Result<Option<Self>> {
        let Some(stamp) = stamp else { return Ok(None) };
        let Some(pid) = Pid::from_raw(stamp.pid) else { return Ok(None) };
        let process = match Self::open(pid) {
            Ok(process) => process,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Only now the number cannot be given to another process unnoticed.
        if ProcessStamp::of(stamp.pid) == Some(stamp) { Ok(Some(process)) } else { Ok(None) }
    }

    /// Its number, for people.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it has ended. Cancel safe.
    pub(crate) async fn ended(&self) -> Exit {
        // A pidfd that cannot be waited for any more is of a process that is gone.
        let _ = self.pidfd.ready(Interest::READABLE).await;
        *self.exit.get_or_init(|| reap(self.pidfd.get_ref()))
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        if let Err(error) = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid = self.pid, %error, "cannot kill a process");
        }
    }

    fn open(pid: Pid) -> io::Result<Self> {
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "its successor is `unsafe` for types that may not own what they name; this one does"
        )]
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
        Ok(Self { pid: pid.as_raw_nonzero().get().unsigned_abs(), pidfd, exit: OnceLock::new() })
    }
}

/// How a process that has ended did; its number is free afterwards.
fn reap(pidfd: &OwnedFd) -> Exit {
    match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (_, Some(signal)) => Exit::Signal(signal),
            _ => Exit::Unknown,
        },
        // Not our child.
        _ => Exit::Unknown,
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "with exit code {code}"),
            Self::Signal(9) => write!(f, "by signal 9 (killed)"),
            Self::Signal(signal) => write!(f, "by signal {signal}"),
            Self::Unknown => write!(f, "while nobody watched"),
        }
    }
}
