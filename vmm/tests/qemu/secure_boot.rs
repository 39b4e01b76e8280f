//! Secure Boot with what distributions sign: Debian's shim, GRUB and kernel, from a disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use vmm::{Definition, Disk, DiskBus, DiskFormat, Firmware, VmState};

use crate::guest_disk::TellTale;
use crate::kit::{TestHost, console_files, firmware as blank};

/// How long firmware, loaders and a kernel may take on a busy machine.
const WAY_UP: Duration = Duration::from_secs(300);
/// What tells the first disk by which loader and kernel the guest came up, and what the kernel thinks of it.
const TELLS: &str = "export PATH=/bin; mount -t proc proc /proc; mount -t devtmpfs dev /dev; modprobe virtio_blk; \
    until [ -b /dev/vda ]; do :; done; (cat /proc/cmdline; dmesg | grep secureboot:) >/dev/vda; sync; poweroff -f";

/// A disk that UEFI starts from: shim, which the firmware judges; GRUB, which shim judges; and two kernels, which GRUB
/// has shim judge. GRUB prefers the one that differs in a byte from what was signed.
fn starts_with(host: &TestHost, name: &str, shim: &Path) -> PathBuf {
    let disk = host.folder().join(format!("{name}.raw"));
    let (signed, initrd) = (signed(), console_files().1);
    let linux = |kernel: &str| {
        let cmdline = format!("loader={name} console=tty0 quiet rdinit=/bin/sh -- -c");
        format!("linux /{kernel} {cmdline} \"{TELLS}\"")
    };
    let menu = host.folder().join("grub.cfg");
    let script = format!("if {}; then true; else {}; fi\ninitrd /initrd\nboot\n", linux("changed"), linux("signed"));
    fs::write(&menu, script).expect("written");
    mtools(&disk, "mformat", &["-C", "-T", "131072", "-h", "64", "-s", "32", "::"]);
    mtools(&disk, "mmd", &["::/EFI", "::/EFI/BOOT", "::/EFI/debian"]);
    for (file, place) in [
        (shim, "/EFI/BOOT/BOOTX64.EFI"),
        (&signed.join("grubx64.efi"), "/EFI/BOOT/grubx64.efi"),
        (&menu, "/EFI/debian/grub.cfg"),
        (&signed.join("vmlinuz"), "/signed"),
        (&changed(host, "vmlinuz"), "/changed"),
        (&initrd, "/initrd"),
    ] {
        mtools(&disk, "mcopy", &[file.to_str().expect("a path"), &format!("::{place}")]);
    }
    disk
}

fn mtools(disk: &Path, program: &str, arguments: &[&str]) {
    let output = Command::new(program).arg("-i").arg(disk).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} (of the package mtools): {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The folder of what Debian signed.
fn signed() -> PathBuf {
    console_files().0.with_file_name("signed")
}

/// The same program made a second later, as its header says: it runs as well, and is not what was signed.
fn changed(host: &TestHost, program: &str) -> PathBuf {
    let path = signed().join(program);
    let mut bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let header = u32::from_le_bytes(bytes[0x3c..0x40].try_into().expect("four bytes"));
    let header = usize::try_from(header).expect("near");
    assert_eq!(bytes[header..header + 4], *b"PE\0\0");
    bytes[header + 8] ^= 1;
    let path = host.folder().join(program);
    fs::write(&path, bytes).expect("written");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn secure_boot_starts_a_signed_loader_and_kernel_and_none_that_differ_in_a_byte() {
    let host = TestHost::new().await;
    let first = starts_with(&host, "changed", &changed(&host, "shimx64.efi"));
    let second = starts_with(&host, "signed", &signed().join("shimx64.efi"));
    for (name, secure_boot, says) in [
        ("open", false, ["BOOT_IMAGE=/changed loader=changed ", "secureboot: Secure boot disabled"]),
        ("secure", true, ["BOOT_IMAGE=/signed loader=signed ", "secureboot: Secure boot enabled"]),
    ] {
        let telltale = TellTale::new(&host);
        let disk = |path: &Path| Disk::new(path.to_owned(), DiskFormat::Raw, DiskBus::Virtio);
        let disks = vec![telltale.disk(), disk(&first), disk(&second)];
        let firmware = Firmware::Uefi { secure_boot };
        let definition = Definition { memory: 384, firmware, disks, ..blank(name) };
        let vm = host.host().create(definition).await.expect("created");
        vm.start().await.expect("starts");
        let mut watch = vm.watch();
        let stopped = watch.wait_for(|status| status.state == VmState::Stopped);
        let status = tokio::time::timeout(WAY_UP, stopped).await.expect("the guest switches off").expect("lives");
        assert_eq!(status.reason.as_deref(), Some("the guest shut down"));
        let said = telltale.text();
        assert!(said.starts_with(says[0]) && said.contains(says[1]), "{name}: {said}");
    }
}
