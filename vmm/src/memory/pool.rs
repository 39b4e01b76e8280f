//! How much memory the host has for its VMs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const GIB: u64 = 1 << 30;
const CGROUPS: &str = "/sys/fs/cgroup";

/// What the administrator decided about memory. Amounts in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct PoolConfig {
    /// What all VMs may have together; none: all that the host has but for the reserve.
    pub size: Option<u64>,
    /// What stays free on the host whatever VMs ask for; none: a twentieth of its memory, and at least a gibibyte.
    pub reserve: Option<u64>,
}

/// The memory of the host. Amounts in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostMemory {
    /// All of it, or what a control group leaves us.
    pub total: u64,
    /// What could be used without anything being swapped out.
    pub available: u64,
}

/// What VMs have, and what they could come to have. Amounts in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Occupied {
    /// What stands in the host's memory for guests.
    pub(crate) resident: u64,
    /// What VMs without dynamic memory may use.
    pub(crate) fixed: u64,
}

impl PoolConfig {
    pub(crate) fn reserve(&self, host: HostMemory) -> u64 {
        self.reserve.unwrap_or_else(|| (host.total / 20).max(GIB))
    }

    /// What VMs with dynamic memory share.
    ///
    /// Guests may use all they have at any moment. So there is no more for them than what stands there for guests now and
    /// what the host could still give: when other programs of the host need memory, guests make room.
    pub(crate) fn pool(&self, host: HostMemory, occupied: Occupied) -> u64 {
        let reserve = self.reserve(host);
        let by_size = self.size.unwrap_or(host.total.saturating_sub(reserve));
        let by_room = occupied.resident.saturating_add(host.available).saturating_sub(reserve);
        by_size.min(by_room).saturating_sub(occupied.fixed)
    }
}

impl HostMemory {
    /// Asks the system.
    pub(crate) fn read() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let value =
            |name| kib_after(&text, name).ok_or_else(|| io::Error::other(format!("no {name} in /proc/meminfo")));
        let host = Self { total: value("MemTotal:")?, available: value("MemAvailable:")? };
        Ok(own_groups().iter().fold(host, |host, group| host.within(group)))
    }

    fn within(self, group: &Path) -> Self {
        let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
        let (Some(most), Some(used)) = (number("memory.max"), number("memory.current")) else { return self };
        // Files that are cached give way.
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let cached = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        let cached = ["inactive_file ", "active_file "].into_iter().filter_map(cached).sum();
        let available = most.saturating_sub(used.saturating_sub(cached));
        Self { total: self.total.min(most), available: self.available.min(available) }
    }
}

/// How much of the host's memory stands there for the guest of a QEMU, in bytes. QEMU's own is not counted.
pub(crate) fn resident(pid: u32) -> u64 {
    // A process that is gone has none.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kib_after(&status, "RssShmem:").unwrap_or(0)
}

/// The control groups that we, and the QEMUs that we start, are in; the outermost has no limits.
fn own_groups() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(own) = text.lines().find_map(|line| line.strip_prefix("0::/")) else { return Vec::new() };
    let own = Path::new(CGROUPS).join(own);
    own.ancestors().take_while(|path| *path != Path::new(CGROUPS)).map(Path::to_path_buf).collect()
}

/// The number after `name` at the beginning of a line, in KiB as the kernel writes it; in bytes.
fn kib_after(text: &str, name: &str) -> Option<u64> {
    let number = text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?;
    number.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostMemory = HostMemory { total: 64 * GIB, available: 40 * GIB };

    fn pool(config: PoolConfig, resident: u64, fixed: u64) -> u64 {
        config.pool(HOST, Occupied { resident: resident * GIB, fixed: fixed * GIB }) / GIB
    }

    #[test]
    fn a_host_that_only_runs_guests_keeps_its_reserve() {
        let config = PoolConfig { reserve: Some(4 * GIB), ..PoolConfig::default() };
        assert_eq!(pool(config, 30, 0), 60);
        assert_eq!(pool(config, 30, 10), 50, "less what is promised to others");
        assert_eq!(PoolConfig::default().reserve(HOST), 64 * GIB / 20);
        assert_eq!(PoolConfig::default().reserve(HostMemory { total: 4 * GIB, available: 0 }), GIB);
    }

    #[test]
    fn when_the_host_is_short_guests_make_room() {
        let config = PoolConfig { reserve: Some(4 * GIB), ..PoolConfig::default() };
        assert_eq!(pool(config, 8, 0), 44);
        assert_eq!(pool(PoolConfig { size: Some(100 * GIB), ..config }, 8, 0), 44);
    }

    #[test]
    fn the_administrator_can_say_less() {
        let config = PoolConfig { size: Some(8 * GIB), reserve: Some(GIB) };
        assert_eq!(pool(config, 1, 3), 5);
        assert_eq!(pool(config, 1, 30), 0);
    }

    #[test]
    fn this_host_has_memory_and_this_process_some_of_it() {
        let host = HostMemory::read().expect("Linux");
        assert!(host.total > 0 && host.available <= host.total, "{host:?}");
        assert_eq!(resident(u32::MAX), 0);
    }
}
