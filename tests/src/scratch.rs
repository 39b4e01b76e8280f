//! Where a test run keeps its files, and how it cleans up after one that was interrupted.
//!
//! Everything is under `$TMPDIR/fanlight-e2e-PID/`: state folders, logs, pictures of failures. Guests outlive
//! their gateway by design, so whoever removes a state folder ends the guests of it first.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// How the folder of a run is called, before its process id.
const PREFIX: &str = "fanlight-e2e-";

/// How long the logs and pictures of a failed run are kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The folder of this run.
#[must_use]
pub fn root() -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()))
}

/// A new, empty folder in it.
///
/// # Errors
///
/// When it cannot be created.
pub fn folder(name: &str) -> Result<PathBuf> {
    let folder = root().join(format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// Ends the guests of runs that are gone, and removes their folders once nobody will look at them any more.
///
/// # Errors
///
/// When the temporary folder cannot be read.
pub fn clear_leftovers() -> Result<()> {
    for entry in fs::read_dir(std::env::temp_dir())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(PREFIX).and_then(|pid| pid.parse::<i32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            end_guests(&path);
            if path.metadata()?.modified()?.elapsed().is_ok_and(|age| age > KEPT) {
                fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
    }
    Ok(())
}

/// Ends every guest whose state folder is in `folder`.
pub fn end_guests(folder: &Path) {
    entries(folder).iter().for_each(|state| end_guests_of(state));
}

/// Ends every guest of the state folder `state`.
pub fn end_guests_of(state: &Path) {
    for pid in guests_of(state) {
        // It may have ended by itself since.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// The QEMU processes of the state folder `state`.
#[must_use]
pub fn guests_of(state: &Path) -> Vec<Pid> {
    let runtime = entries(&state.join("run"));
    let uuids: Vec<&str> = runtime.iter().filter_map(|vm| vm.file_name()?.to_str()).collect();
    if uuids.is_empty() {
        return Vec::new();
    }
    let processes = entries(Path::new("/proc"));
    let pids = processes.iter().filter_map(|path| path.file_name()?.to_str()?.parse::<i32>().ok());
    let theirs = pids.filter(|pid| qemu_uuid(*pid).is_some_and(|uuid| uuids.contains(&uuid.as_str())));
    theirs.filter_map(Pid::from_raw).collect()
}

/// The UUID of the VM that a process runs, if it is a QEMU.
fn qemu_uuid(pid: i32) -> Option<String> {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut arguments = arguments.split(|byte| *byte == 0).skip_while(|argument| *argument != b"-uuid");
    String::from_utf8(arguments.nth(1)?.to_vec()).ok()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(found) = fs::read_dir(folder) else { return Vec::new() };
    found.filter_map(|entry| Some(entry.ok()?.path())).collect()
}
