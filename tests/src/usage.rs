//! What a process takes from the machine.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Pid;

/// Ticks per second in `/proc/PID/stat`: fixed on Linux.
const TICKS: u64 = 100;

/// Resident memory, in KiB.
///
/// # Errors
///
/// When there is no such process.
pub fn memory(pid: Pid) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process without memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Processor time so far, its own and the kernel's for it.
///
/// # Errors
///
/// When there is no such process.
pub fn processor_time(pid: Pid) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    // The name may hold anything, a bracket too. The state comes next, which is field 3.
    let (_, fields) = stat.rsplit_once(')').context("no name in its stat")?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    let ticks: u64 =
        fields.get(14 - 3..=15 - 3).context("too few fields")?.iter().map(|n| n.parse().unwrap_or(0)).sum();
    Ok(Duration::from_millis(ticks * 1000 / TICKS))
}

/// Open files.
///
/// # Errors
///
/// When there is no such process.
pub fn open_files(pid: Pid) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()))?.count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{Look, wait_until};

    #[test]
    fn this_process_uses_some_of_everything() {
        let own = rustix::process::getpid();
        assert!(memory(own).unwrap() > 500 && open_files(own).unwrap() > 2);
        let busy = || (0..1_000_000u64).map(std::hint::black_box).sum::<u64>();
        wait_until(Duration::from_secs(10), "some work", || {
            busy();
            let used = processor_time(own)?;
            Ok(Look::when(!used.is_zero(), || "none was done".to_owned()))
        })
        .unwrap();
    }
}
