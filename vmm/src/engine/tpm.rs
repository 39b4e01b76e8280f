//! A VM's TPM: swtpm, one process beside each QEMU.
//!
//! It listens on a socket of the runtime folder, to which QEMU connects, and ends by itself when QEMU lets go of it. So
//! it lives as long as QEMU does, whatever becomes of us. Its process is noted as QEMU's is, and found again.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::process::{LAUNCHER, Process};
use super::runtime_folder::RuntimeFolder;
use crate::definition::make_folder;

/// The name QEMU finds the socket by: it is started in the runtime folder, since paths of sockets are short.
pub(crate) const TPM_SOCKET: &str = "tpm.sock";

/// The TPM to start.
#[derive(Debug, Clone)]
pub(crate) struct TpmPlan {
    /// swtpm.
    pub(crate) program: PathBuf,
    /// Where it keeps its keys.
    pub(crate) state: PathBuf,
}

/// Starts the TPM; it listens when this returns.
///
/// # Errors
///
/// When the program cannot be started, or its folder not be made.
pub(crate) fn start_tpm(plan: &TpmPlan, folder: &RuntimeFolder) -> io::Result<Process> {
    make_folder(&plan.state)?;
    let log = folder.new_tpm_log()?;
    let socket = folder.listen_tpm()?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", LAUNCHER]).arg(folder.tpm_pid_file()).arg(log).arg(resolve(&plan.program)?);
    command.args(["socket", "--tpm2", "--terminate", "--ctrl", "type=unixio,fd=0"]);
    // Its options end at commas, which a path may have.
    command.args(["--tpmstate", "dir=.,mode=0600"]).current_dir(&plan.state);
    command.stdin(Stdio::from(OwnedFd::from(socket))).stdout(Stdio::null()).stderr(Stdio::null());
    Process::of_child(&command.spawn()?)
}

/// The program itself: that it is missing is to be said before anything is started.
fn resolve(program: &Path) -> io::Result<PathBuf> {
    let found = if program.components().count() > 1 {
        Some(program.to_path_buf())
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
    };
    found.filter(|file| file.is_file()).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "install swtpm"))
}
