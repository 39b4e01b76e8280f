//! Which accelerator works here, found out by running something.
//!
//! That `/dev/kvm` opens proves nothing, nor does a firmware that boots: there are hosts (a KVM inside a
//! para-virtual machine, say) whose KVM stops at the first instruction it cannot emulate. So a tiny 64-bit program is
//! run under it, with the processor model that guests will get, and only its success counts.

mod payload;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::definition::Accelerator;
use crate::engine::{Qmp, cpu};

/// How the processors of a guest are run, and why so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AcceleratorReport {
    /// KVM or TCG.
    pub accelerator: Accelerator,
    /// Why, in a sentence for people.
    pub why: String,
}

/// Finds out whether KVM runs guests; TCG always does. Takes no longer than `deadline`.
pub(crate) async fn probe(qemu: &Path, folder: &Path, deadline: Duration) -> AcceleratorReport {
    let report = match try_accelerator(Accelerator::Kvm, qemu, folder, deadline).await {
        Ok(()) => AcceleratorReport { accelerator: Accelerator::Kvm, why: "a test program ran under KVM".into() },
        Err(why) => AcceleratorReport { accelerator: Accelerator::Tcg, why: format!("KVM does not work here: {why}") },
    };
    tracing::info!(accelerator = %report.accelerator, why = report.why, "accelerator");
    report
}

/// Runs the test program under `accelerator`.
async fn try_accelerator(
    accelerator: Accelerator,
    qemu: &Path,
    folder: &Path,
    deadline: Duration,
) -> Result<(), String> {
    if accelerator == Accelerator::Kvm {
        let opened = File::options().read(true).write(true).open("/dev/kvm");
        opened.map_err(|error| format!("/dev/kvm: {error}"))?;
    }
    let program = ProgramFile::write(folder).map_err(|error| format!("cannot write the test program: {error}"))?;
    let (mut child, monitor) =
        start(accelerator, qemu, &program.0).map_err(|error| format!("cannot run {}: {error}", qemu.display()))?;
    let verdict = timeout(deadline, async {
        tokio::select! {
            verdict = wait_for_end(&mut child) => verdict,
            () = wait_for_stop(monitor, deadline) => Err("it met an instruction it cannot run".into()),
        }
    });
    let silent = || format!("a test program of some hundred instructions did not end within {} s", deadline.as_secs());
    let verdict = verdict.await.unwrap_or_else(|_| Err(silent()));
    // One that ended by itself is not there any more.
    let _ = child.kill().await;
    verdict
}

fn start(accelerator: Accelerator, qemu: &Path, program: &Path) -> std::io::Result<(Child, UnixStream)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let ours = std::os::unix::net::UnixStream::from(ours);
    ours.set_nonblocking(true)?;
    let child = Command::new(qemu)
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "q35", "-m", "64M"])
        .args(["-accel", &accelerator.to_string(), "-cpu", cpu(accelerator)])
        .args(["-chardev", "socket,id=qmp,fd=0", "-mon", "chardev=qmp,mode=control"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel"])
        .arg(program)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    Ok((child, UnixStream::from_std(ours)?))
}

async fn wait_for_end(child: &mut Child) -> Result<(), String> {
    let mut said = child.stderr.take();
    let status = child.wait().await.map_err(|error| error.to_string())?;
    match status.code() {
        Some(payload::SUCCESS) => Ok(()),
        Some(code) if payload::failed_step(code).is_some() => {
            Err(format!("a test program failed at {}", payload::failed_step(code).unwrap_or_default()))
        }
        _ => {
            let mut text = Vec::new();
            if let Some(said) = &mut said {
                // What QEMU left in the pipe is there; a program it might have started is not waited for.
                let read = tokio::io::AsyncReadExt::read_buf(said, &mut text);
                let _ = timeout(Duration::from_millis(100), read).await;
            }
            let text = String::from_utf8_lossy(&text);
            let first = text.lines().next().unwrap_or("it said nothing");
            Err(format!("QEMU ended with {status}: {first}"))
        }
    }
}

/// Waits until QEMU says that the processors have stopped: they do only when the accelerator cannot go on.
async fn wait_for_stop(monitor: UnixStream, deadline: Duration) {
    if let Ok((_qmp, mut events)) = Qmp::open(monitor, deadline).await {
        while let Some(event) = events.recv().await {
            if event.name == "STOP" {
                return;
            }
        }
    }
    // The connection ended, so the process will in a moment.
    std::future::pending().await
}

/// The test program as a file, for as long as it is needed.
struct ProgramFile(PathBuf);

impl ProgramFile {
    fn write(folder: &Path) -> std::io::Result<Self> {
        // Two hosts of one process may look at the same time.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("probe.{}.{number}.elf", std::process::id()));
        let file = Self(path);
        std::fs::write(&file.0, payload::elf())?;
        Ok(file)
    }
}

impl Drop for ProgramFile {
    fn drop(&mut self) {
        // A leftover of a few kilobytes is overwritten the next time.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

    fn folder() -> PathBuf {
        std::env::temp_dir()
    }

    #[tokio::test]
    async fn the_test_program_runs_under_translation() {
        let qemu = Path::new("qemu-system-x86_64");
        try_accelerator(Accelerator::Tcg, qemu, &folder(), DEADLINE).await.expect("TCG runs everything");
    }

    #[tokio::test]
    async fn the_probe_answers_in_time_and_says_why() {
        let report = probe(Path::new("qemu-system-x86_64"), &folder(), DEADLINE).await;
        assert!(matches!(report.accelerator, Accelerator::Kvm | Accelerator::Tcg));
        assert!(!report.why.is_empty());
    }

    #[tokio::test]
    async fn a_qemu_that_is_not_there_is_a_reason() {
        let error = try_accelerator(Accelerator::Tcg, Path::new("/nonexistent/qemu"), &folder(), DEADLINE).await;
        assert_eq!(error, Err("cannot run /nonexistent/qemu: No such file or directory (os error 2)".into()));
    }
}
