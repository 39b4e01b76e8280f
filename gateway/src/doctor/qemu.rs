//! QEMU and the programs beside it.

use std::path::Path;

use vmm::Host;

use super::{Check, Level, run};

/// Below this, the display of a VM cannot be shared.
const OLDEST_QEMU: (u32, u32) = (7, 2);
/// What is tested every day.
const RECOMMENDED_QEMU: (u32, u32) = (10, 0);
/// The devices that every VM has.
const NEEDED_DEVICES: [&str; 7] = [
    "virtio-vga",
    "virtio-keyboard-pci",
    "virtio-tablet-pci",
    "qemu-xhci",
    "virtio-serial-pci",
    "virtio-balloon-pci",
    "virtio-net-pci",
];
/// Devices that some VMs have, and what is not there without.
const OTHER_DEVICES: [(&str, &str); 7] = [
    ("ivshmem-plain", "shared memory of the bus"),
    ("tpm-crb", "TPMs"),
    ("virtio-scsi-pci", "SCSI disks"),
    ("ich9-ahci", "IDE disks on controllers of their own"),
    ("piix3-ide", "IDE disks as old guests know them"),
    ("lsi53c895a", "SCSI disks as old guests know them"),
    ("usb-redir", "USB devices of clients"),
];

/// Looks at QEMU `program`, the `storage_daemon`, and what goes with them.
pub(super) async fn look(program: &Path, storage_daemon: &Path) -> Vec<Check> {
    let version = run(program, &["--version"]).await;
    let mut checks = vec![qemu_version(program, version.as_deref())];
    if version.is_ok() {
        let listed = run(program, &["-device", "help"]).await;
        checks.extend([display(program).await, devices(listed.as_deref())]);
        checks.push(memory_devices(&listed.unwrap_or_default()));
    }
    checks.extend([disk_images().await, self::storage_daemon(storage_daemon).await, remote_disks().await]);
    checks.extend([uefi(), tpm().await]);
    checks
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

/// QEMU has the rest of its devices in modules, which distributions put into packages of their own.
fn devices(listed: Result<&str, &String>) -> Check {
    const INSTALL: &str = "apt-get install -t bookworm-backports qemu-system-x86 qemu-system-common";
    let list = match listed {
        Ok(list) => list,
        Err(error) => {
            return Check::new("devices", Level::Missing, error.as_str(), "QEMU does not tell its devices")
                .mend(INSTALL);
        }
    };
    let there = |device: &str| list.contains(&format!("name \"{device}\""));
    let lacking: Vec<&str> = NEEDED_DEVICES.into_iter().filter(|device| !there(device)).collect();
    if !lacking.is_empty() {
        let found = format!("without {}", lacking.join(", "));
        return Check::new("devices", Level::Missing, found, "every VM has these").mend(INSTALL);
    }
    let lacking: Vec<_> = OTHER_DEVICES.into_iter().filter(|(device, _)| !there(device)).collect();
    if lacking.is_empty() {
        return Check::new("devices", Level::Good, "all that VMs may have", "QEMU lacks no module");
    }
    let names: Vec<&str> = lacking.iter().map(|(device, _)| *device).collect();
    let purposes: Vec<&str> = lacking.iter().map(|(_, purpose)| *purpose).collect();
    let meaning = format!("VMs have no {}", purposes.join(", no "));
    Check::new("devices", Level::Poor, format!("without {}", names.join(", ")), meaning).mend(INSTALL)
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

async fn storage_daemon(program: &Path) -> Check {
    const NAME: &str = "storage daemon";
    match run(program, &["--version"]).await {
        Ok(text) => Check::new(NAME, Level::Good, text.lines().next().unwrap_or_default(), "compares disks that move"),
        Err(error) => {
            let found = format!("{}: {error}", program.display());
            Check::new(NAME, Level::Poor, found, "no disk can be moved, and no overlay of checkpoints merged")
                .mend("apt-get install -t bookworm-backports qemu-system-common")
        }
    }
}

async fn remote_disks() -> Check {
    // It fails in any case: over the missing address where there is the driver, over that where there is none.
    let told = run(Path::new("qemu-img"), &["info", "--image-opts", "driver=http,url="]).await;
    if told.is_err_and(|reason| reason.contains("does not start with")) {
        return Check::new("remote disks", Level::Good, "HTTP and NBD", "disks and discs may be on web servers");
    }
    Check::new("remote disks", Level::Poor, "NBD only", "disks on web servers cannot be used")
        .mend("apt-get install -t bookworm-backports qemu-block-extra")
}

fn uefi() -> Check {
    const INSTALL: &str = "apt-get install ovmf";
    match (Host::uefi(false), Host::uefi(true)) {
        (None, None) => Check::new("uefi", Level::Poor, "not there", "VMs have BIOS only").mend(INSTALL),
        (Some(plain), Some(_)) => {
            Check::new("uefi", Level::Good, plain.display().to_string(), "VMs may have UEFI and Secure Boot")
        }
        (Some(plain), None) => {
            Check::new("uefi", Level::Poor, plain.display().to_string(), "VMs may have UEFI, and no Secure Boot")
                .mend(INSTALL)
        }
        (None, Some(secure)) => {
            Check::new("uefi", Level::Poor, secure.display().to_string(), "VMs may have UEFI only with Secure Boot")
                .mend(INSTALL)
        }
    }
}

async fn tpm() -> Check {
    match run(Path::new("swtpm"), &["--version"]).await {
        Ok(text) => Check::new("tpm", Level::Good, text.lines().next().unwrap_or_default(), "VMs may have a TPM 2.0"),
        Err(_) => Check::new("tpm", Level::Poor, "no swtpm", "VMs have no TPM").mend("apt-get install swtpm"),
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
    fn devices_are_found_in_qemus_list_and_missed_by_what_they_are_for() {
        let list = |devices: &[&str]| -> String {
            devices.iter().map(|device| format!("name \"{device}\", bus PCI\n")).collect()
        };
        let all = [&NEEDED_DEVICES[..], &OTHER_DEVICES.map(|(device, _)| device)[..]].concat();
        assert_eq!(devices(Ok(&list(&all))).level, Level::Good);
        let check = devices(Ok(&list(&all[..all.len() - 1])));
        assert_eq!((check.level, check.found.as_str()), (Level::Poor, "without usb-redir"));
        let check = devices(Ok(&list(&all[1..])));
        assert_eq!((check.level, check.found.as_str()), (Level::Missing, "without virtio-vga"));
        assert_eq!(devices(Err(&"dead".to_owned())).level, Level::Missing);
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
