//! How far QEMU has come with a state: it answers no questions meanwhile, but the kernel counts what it reads and writes.

use std::fs;
use std::time::Duration;

use tokio::time::sleep;

use crate::jobs::JobHandle;

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a process does to its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Read,
    Written,
}

/// Waits for `work`, and meanwhile tells `job` how many of about `total` bytes have gone that way.
pub(super) async fn tell<T>(
    job: Option<&JobHandle>,
    pid: Option<u32>,
    flow: Flow,
    total: u64,
    work: impl Future<Output = T>,
) -> T {
    let (Some(job), Some(pid)) = (job, pid) else { return work.await };
    let Some(before) = count(pid, flow) else { return work.await };
    let look = async {
        loop {
            sleep(LOOK_EVERY).await;
            // A process that has ended has nothing more to tell.
            let done = count(pid, flow).unwrap_or(before).saturating_sub(before);
            job.advance(done.min(total), total);
        }
    };
    // The loser only looks.
    tokio::select! {
        done = work => done,
        () = look => unreachable!("it looks for ever"),
    }
}

/// About how many bytes of the guest's memory are in use: those that its QEMU shares with others.
pub(super) fn memory_in_use(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    parse_kib(&status, "RssShmem:").map_or(0, |kib| kib.saturating_mul(1024))
}

/// The bytes that a process has read or written so far (proc(5), `/proc/PID/io`).
fn count(pid: u32, flow: Flow) -> Option<u64> {
    let key = if flow == Flow::Read { "rchar:" } else { "wchar:" };
    let counts = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    parse_kib(&counts, key)
}

/// The number behind a key.
fn parse_kib(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counts_are_read() {
        assert_eq!(parse_kib("VmRSS:\t  10 kB\nRssShmem:\t     264 kB\n", "RssShmem:"), Some(264));
        assert_eq!(parse_kib("rchar: 123\nwchar: 456\n", "wchar:"), Some(456));
        assert_eq!(parse_kib("rchar:\n", "rchar:"), None);
        assert!(count(std::process::id(), Flow::Read).is_some_and(|bytes| bytes > 0));
        assert_eq!(count(u32::MAX, Flow::Read), None);
    }
}
