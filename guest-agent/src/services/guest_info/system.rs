//! Linux, asked without running programs.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::netlink::{self, Monitor};
use super::{Facts, System, os_release, utmp};

/// No `utmp` of a guest is longer.
const MAX_UTMP_BYTES: u64 = 1024 * 1024;

/// The system that the agent runs in.
pub(super) struct Linux {
    /// None where the kernel refuses: then the addresses are asked for at every check.
    monitor: Option<Monitor>,
    interfaces: Option<Vec<netlink::Interface>>,
}

impl Linux {
    pub(super) fn new() -> Self {
        let monitor = Monitor::open().inspect_err(|error| tracing::debug!(%error, "no word of network changes"));
        Self { monitor: monitor.ok(), interfaces: None }
    }

    fn interfaces(&mut self) -> Vec<netlink::Interface> {
        if self.interfaces.is_none() || self.monitor.is_none() {
            let asked = netlink::interfaces().inspect_err(|error| tracing::debug!(%error, "no network addresses"));
            self.interfaces = asked.ok();
        }
        self.interfaces.clone().unwrap_or_default()
    }
}

impl System for Linux {
    fn facts(&mut self) -> Facts {
        let release = read("/etc/os-release").or_else(|| read("/usr/lib/os-release")).unwrap_or_default();
        let value = |name| os_release::value(&release, name);
        let uname = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let node = text(uname.nodename());
        Facts {
            system: value("NAME").unwrap_or_else(|| text(uname.sysname())),
            system_version: value("VERSION_ID").unwrap_or_default(),
            kernel: text(uname.release()),
            architecture: text(uname.machine()),
            host_name: with_domain(&node, &read("/etc/hosts").unwrap_or_default()),
            interfaces: self.interfaces(),
            logins: utmp::logins(&read_bytes("/run/utmp", MAX_UTMP_BYTES)),
        }
    }

    fn up_time(&self) -> Duration {
        Duration::from_secs(u64::try_from(rustix::system::sysinfo().uptime).unwrap_or(0))
    }

    fn network_changes(&self) -> Option<BorrowedFd<'_>> {
        self.monitor.as_ref().map(AsFd::as_fd)
    }

    fn take_network_changes(&mut self) -> bool {
        let changed = self.monitor.as_ref().is_some_and(Monitor::drain);
        if changed {
            self.interfaces = None;
        }
        changed
    }
}

/// The name, with the domain that `/etc/hosts` gives it.
fn with_domain(node: &str, hosts: &str) -> String {
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut canonical = lines.filter_map(|line| {
        let mut names = line.split_ascii_whitespace().skip(1);
        let first = names.next()?;
        let domain = first.strip_prefix(node)?;
        (domain.len() > 1 && domain.starts_with('.') && names.any(|name| name == node)).then_some(first)
    });
    canonical.next().unwrap_or(node).to_owned()
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn read_bytes(path: &str, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        let _ = std::io::Read::read_to_end(&mut std::io::Read::take(file, limit), &mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_gets_the_domain_that_hosts_gives_it() {
        let hosts = "127.0.0.1 localhost\n# 10.0.0.1 vm.wrong vm\n127.0.1.1 vm.example.org vm other\n";
        assert_eq!(with_domain("vm", hosts), "vm.example.org");
        assert_eq!(with_domain("other", hosts), "other");
        assert_eq!(with_domain("vm", "10.0.0.1 vm. vm\n10.0.0.2 vm.example.org\n"), "vm");
    }
}
