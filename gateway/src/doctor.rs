//! Whether this host can do the work: what is there, what that means, and how to mend it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::timeout;
use vmm::Host;

use crate::certificate::Identity;
use crate::config::Config;
use crate::users::Users;

/// The QEMU that is looked for when the configuration names none.
const QEMU: &str = "qemu-system-x86_64";
/// Below this, the display of a VM cannot be shared.
const OLDEST_QEMU: (u32, u32) = (7, 2);
/// What is tested every day.
const RECOMMENDED_QEMU: (u32, u32) = (10, 0);
/// A program that only prints its version and takes longer hangs.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(20);
/// Less free space than this and a guest's disk may fill it before anybody looks.
const LITTLE_DISK: u64 = 1 << 30;
/// Less free memory than this and a second VM does not start.
const LITTLE_MEMORY_KIB: u64 = 512 * 1024;
/// A session takes a handful of descriptors, a flood of connections a few hundred.
const FEW_DESCRIPTORS: u64 = 4096;
/// A certificate that ends sooner is worth a word.
const CERTIFICATE_NOTICE: Duration = Duration::from_secs(30 * 24 * 3600);

/// All that was looked at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Whether VMs can run and be shown here.
    pub works: bool,
    /// Each thing that was looked at.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// How bad it is.
    pub level: Level,
    /// What is there.
    pub found: String,
    /// What that means.
    pub meaning: String,
    /// How to mend it.
    pub mend: Option<String>,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Good,
    /// It works, and could be better.
    Poor,
    /// Nothing works without it.
    Missing,
}

/// Looks at everything.
pub async fn examine(config: &Config, host: &Host) -> Report {
    let qemu = config.qemu.clone().unwrap_or_else(|| PathBuf::from(QEMU));
    let version = run(&qemu, &["--version"]).await;
    let mut checks = vec![qemu_version(&qemu, version.as_deref())];
    if version.is_ok() {
        checks.push(display(&qemu).await);
        checks.push(accelerator(host).await);
        checks.push(dynamic_memory(&qemu).await);
    }
    checks.push(disk_images().await);
    checks.extend([state_folder(config), memory(), descriptors(), certificate(config), users(config)]);
    Report { works: checks.iter().all(|check| check.level != Level::Missing), checks }
}

impl Check {
    fn new(name: &str, level: Level, found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level, found: found.into(), meaning: meaning.into(), mend: None }
    }

    fn mend(self, how: impl Into<String>) -> Self {
        Self { mend: Some(how.into()), ..self }
    }
}

fn qemu_version(qemu: &Path, version: Result<&str, &String>) -> Check {
    const INSTALL: &str = "apt-get install -t bookworm-backports qemu-system-x86";
    let text = match version {
        Ok(text) => text.lines().next().unwrap_or_default(),
        Err(error) => {
            return Check::new("qemu", Level::Missing, format!("{}: {error}", qemu.display()), "no VM can run")
                .mend(INSTALL);
        }
    };
    match parse_version(text) {
        None => Check::new("qemu", Level::Poor, text, "a version that cannot be read; it may or may not do"),
        Some(found) if found < OLDEST_QEMU => {
            Check::new("qemu", Level::Missing, text, "too old: the screens of its VMs cannot be shared").mend(INSTALL)
        }
        Some(found) if found < RECOMMENDED_QEMU => {
            Check::new("qemu", Level::Poor, text, "works; 10.0 and later share the screen without copying")
                .mend(INSTALL)
        }
        Some(_) => Check::new("qemu", Level::Good, text, "runs the VMs"),
    }
}

/// `QEMU emulator version 10.0.2 (Debian …)` → (10, 0).
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_once("version ")?.1.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

async fn display(qemu: &Path) -> Check {
    let listed = run(qemu, &["-display", "help"]).await;
    if listed.is_ok_and(|list| list.lines().any(|line| line.trim() == "dbus")) {
        return Check::new("display", Level::Good, "the D-Bus display module", "shows the VMs' screens");
    }
    Check::new("display", Level::Missing, "no D-Bus display module", "the screens of VMs cannot be shown")
        .mend("apt-get install -t bookworm-backports qemu-system-modules-opengl")
}

async fn accelerator(host: &Host) -> Check {
    let report = host.probe_accelerator().await;
    let kvm = report.accelerator == vmm::Accelerator::Kvm;
    let level = if kvm { Level::Good } else { Level::Poor };
    let meaning = if kvm {
        "VMs run at the speed of the hardware"
    } else {
        "VMs run, with their processors translated in software: about ten times slower"
    };
    let check = Check::new("accelerator", level, format!("{}: {}", report.accelerator, report.why), meaning);
    if kvm {
        check
    } else {
        check.mend("switch virtualisation on in the firmware, and see that /dev/kvm can be opened (group kvm)")
    }
}

async fn dynamic_memory(qemu: &Path) -> Check {
    let listed = run(qemu, &["-device", "help"]).await.unwrap_or_default();
    memory_devices(&listed)
}

/// Judges QEMU's list of devices: `name "virtio-mem-pci", bus PCI`.
fn memory_devices(listed: &str) -> Check {
    const DEVICES: [&str; 3] = ["virtio-balloon-pci", "virtio-mem-pci", "hv-balloon"];
    let is_there = |device: &&str| listed.contains(&format!("name \"{device}\""));
    let (there, missing): (Vec<_>, Vec<_>) = DEVICES.into_iter().partition(is_there);
    if missing.is_empty() {
        let meaning = "VMs can be given memory as they need it; hv-balloon, for Windows, works on KVM only";
        return Check::new("guest memory", Level::Good, there.join(", "), meaning);
    }
    let meaning = "VMs with dynamic memory that want these devices do not start";
    Check::new("guest memory", Level::Poor, format!("no {}", missing.join(", ")), meaning)
        .mend("apt-get install -t bookworm-backports qemu-system-x86")
}

async fn disk_images() -> Check {
    match run(Path::new("qemu-img"), &["--version"]).await {
        Ok(text) => Check::new("qemu-img", Level::Good, text.lines().next().unwrap_or_default(), "creates disk images"),
        Err(_) => Check::new("qemu-img", Level::Poor, "not there", "only raw disk images can be created")
            .mend("apt-get install qemu-utils"),
    }
}

fn state_folder(config: &Config) -> Check {
    let folder = config.state.path();
    // Before the first start there is nothing; what counts is the disk it will lie on.
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let writable = rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_ok();
    if !writable {
        return Check::new(
            "state folder",
            Level::Missing,
            format!("{} cannot be written", folder.display()),
            "nothing can be kept",
        )
        .mend("choose another folder with --state or FANLIGHT_STATE");
    }
    let free = rustix::fs::statvfs(there).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    let found = format!("{}, {} MiB free", folder.display(), free >> 20);
    if free < LITTLE_DISK {
        return Check::new("state folder", Level::Poor, found, "a guest that writes may soon stop")
            .mend("make room on that disk");
    }
    Check::new("state folder", Level::Good, found, "keeps definitions, users and the certificate")
}

fn memory() -> Check {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    match available {
        None => Check::new("memory", Level::Poor, "unknown", "/proc/meminfo cannot be read"),
        Some(kib) if kib < LITTLE_MEMORY_KIB => {
            Check::new("memory", Level::Poor, format!("{} MiB available", kib >> 10), "little room for VMs")
        }
        Some(kib) => Check::new("memory", Level::Good, format!("{} MiB available", kib >> 10), "room for VMs"),
    }
}

fn descriptors() -> Check {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let found = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("at most {limit}"));
    if limit.is_some_and(|limit| limit < FEW_DESCRIPTORS) {
        return Check::new("open files", Level::Poor, found, "a flood of connections is harder to bear")
            .mend("raise the hard limit: `LimitNOFILE=` of the systemd unit, or ulimit -Hn");
    }
    Check::new("open files", Level::Good, found, "enough for many connections")
}

/// Looks only: the certificate is made by `serve`.
fn certificate(config: &Config) -> Check {
    if config.certificate.is_none() && !config.state.certificate().exists() {
        return Check::new("certificate", Level::Good, "none yet", "made on first start");
    }
    match Identity::load_or_create(config) {
        Err(error) => Check::new("certificate", Level::Missing, error.to_string(), "no client can connect")
            .mend("mend the files, or remove them so that a new certificate is made"),
        Ok(identity) => {
            let left = identity.valid_until.duration_since(SystemTime::now()).unwrap_or_default();
            let found = format!("sha256:{}, {} days left", identity.fingerprint, left.as_secs() / (24 * 3600));
            if left < CERTIFICATE_NOTICE {
                return Check::new("certificate", Level::Poor, found, "clients will soon warn").mend("renew it");
            }
            Check::new("certificate", Level::Good, found, "clients know the gateway by it")
        }
    }
}

fn users(config: &Config) -> Check {
    match Users::open(config.state.users()) {
        Err(error) => Check::new("users", Level::Missing, error.to_string(), "nobody can log on").mend("mend the file"),
        Ok(users) if users.book().is_empty() => {
            Check::new("users", Level::Poor, "none", "nobody can log on, and only loopback is listened on")
                .mend("fanlight user add NAME")
        }
        Ok(users) => Check::new("users", Level::Good, users.book().len().to_string(), "can log on"),
    }
}

async fn run(program: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(PROGRAM_DEADLINE, output).await.map_err(|_| "does not answer".to_owned())?;
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_qemu_are_read_and_judged() {
        let judge = |text: &str| qemu_version(Path::new("qemu"), Ok(text)).level;
        assert_eq!(judge("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2~bpo12+1)"), Level::Good);
        assert_eq!(judge("QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7)"), Level::Poor);
        assert_eq!(judge("QEMU emulator version 5.2.0"), Level::Missing);
        assert_eq!(judge("something else"), Level::Poor);
    }

    #[test]
    fn devices_for_dynamic_memory_are_found_in_a_list() {
        let debian = "name \"hv-balloon\", bus vmbus\nname \"virtio-balloon-pci\", bus PCI, alias \"virtio-balloon\"\n\
                      name \"virtio-mem-pci\", bus PCI\n";
        assert_eq!(memory_devices(debian).level, Level::Good);
        let old = memory_devices(&debian.replace("hv-balloon", "hv-syndbg"));
        assert_eq!((old.level, old.found.as_str()), (Level::Poor, "no hv-balloon"));
        assert_eq!(memory_devices("").level, Level::Poor);
    }
}
