//! Disks that are full, or gone: their guests stand still, and go on when the disks are back.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm::{Definition, Disk, DiskBus, DiskFormat, DiskSource, Status, Vm, VmState};

use crate::disk_server::NbdServer;
use crate::guest_disk::TellTale;
use crate::kit::{TestHost, console_guest, reaches, shell, soon, types};
use crate::places::Mount;

const MIB: u64 = 1 << 20;
/// Has a guest write to its first disk.
const WRITE: &str = "until [ -b /dev/vda ]; do :; done; cat /proc/version >/dev/vda; sync";
/// How long a guest takes to do what it is told when no key was lost.
const AGAIN: Duration = Duration::from_secs(15);
/// Longer than the first wait before a guest is let go on.
const A_WHILE: Duration = Duration::from_secs(3);

fn image(path: PathBuf, size: u64) -> PathBuf {
    fs::File::create(&path).and_then(|file| file.set_len(size)).expect("an image");
    path
}

/// Stands in for QEMU: the same, but no disk takes a byte, or, with `once`, not the first.
fn full_disk_qemu(folder: &Path, once: bool) -> PathBuf {
    let script = r#"#!/bin/sh
left=$#
while [ $left -gt 0 ]; do
    argument=$(printf %s "$1" | sed 's|"file":{"driver":"file","filename":"\([^"]*\)"}|"file":{"driver":"blkdebug","inject-error":[{"event":"none","iotype":"write","errno":28,"once":ONCE}],"image":{"driver":"file","filename":"\1"}}|')
    shift
    set -- "$@" "$argument"
    left=$((left - 1))
done
exec qemu-system-x86_64 "$@"
"#;
    let path = folder.join("qemu");
    fs::write(&path, script.replace("ONCE", &once.to_string())).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    path
}

/// Waits until it stands still for that reason.
async fn stands_still(vm: &Vm, why: impl Fn(&str) -> bool) {
    let mut watch = vm.watch();
    let still = |status: &Status| status.state == VmState::Paused && status.reason.as_deref().is_some_and(&why);
    let stopped = tokio::time::timeout(crate::kit::PATIENCE, watch.wait_for(still)).await.is_ok();
    assert!(stopped, "it does not stand still for the reason: {:?}", vm.status());
}

pub(crate) async fn boots(vm: &Vm) {
    vm.start().await.expect("starts");
    shell(&vm.console()).await;
}

/// Has the guest's shell do what makes it stand still. On a busy machine a key may get lost: then it is typed again.
pub(crate) async fn does(vm: &Vm, line: &str, why: impl Fn(&str) -> bool) {
    let still = stands_still(vm, why);
    tokio::pin!(still);
    loop {
        types(&vm.console(), &format!("\n{line}\n")).await;
        if tokio::time::timeout(AGAIN, &mut still).await.is_ok() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_pauses_its_vm_and_says_so() {
    let mut host = TestHost::new().await;
    host.config.qemu = Some(full_disk_qemu(host.folder(), false));
    host.reopen().await;
    let disk = Disk::new(image(host.folder().join("disk.raw"), MIB), DiskFormat::Raw, DiskBus::Virtio);
    let vm = host.host().create(Definition { disks: vec![disk], ..console_guest("full") }).await.expect("created");
    let other = host.firmware_vm("other").await;
    other.start().await.expect("starts");
    boots(&vm).await;
    let full = |why: &str| why == "disk disk0: a write failed: No space left on device; looking again";
    does(&vm, WRITE, full).await;
    assert_eq!(other.status().state, VmState::Running);
    vm.resume().await.expect("it may try again");
    stands_still(&vm, full).await;
    vm.power_off().await.expect("switches off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_disk_was_full_for_a_moment_goes_on_by_itself() {
    let mut host = TestHost::new().await;
    host.config.qemu = Some(full_disk_qemu(host.folder(), true));
    host.reopen().await;
    let path = image(host.folder().join("disk.raw"), MIB);
    let disk = Disk::new(path.clone(), DiskFormat::Raw, DiskBus::Virtio);
    let vm = host.host().create(Definition { disks: vec![disk], ..console_guest("full") }).await.expect("created");
    boots(&vm).await;
    does(&vm, WRITE, |why| why.contains("No space left on device")).await;
    let status = reaches(&vm, VmState::Running).await;
    assert_eq!(status.reason, None);
    soon("what the guest wrote", async {
        while !fs::read(&path).expect("there").starts_with(b"Linux version") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_disk_has_room_again_goes_on_by_itself() {
    let host = TestHost::new().await;
    let Some(small) = Mount::in_memory(8 * MIB, host.folder().join("small")) else { return };
    let in_the_way = small.0.join("filler");
    fs::write(&in_the_way, vec![1; 4 << 20]).expect("there is room");
    let mut telltale = TellTale::new(&host);
    let path = image(small.0.join("disk.raw"), 6 * MIB);
    let disks = vec![telltale.disk(), Disk::new(path.clone(), DiskFormat::Raw, DiskBus::Virtio)];
    let vm = host.host().create(Definition { disks, ..console_guest("full") }).await.expect("created");
    boots(&vm).await;
    let write = "until [ -b /dev/vdb ]; do :; done; tr '\\0' x </dev/zero | head -c 6291456 >/dev/vdb; sync";
    does(&vm, write, |why| why == "disk disk1: a write failed: No space left on device; looking again").await;
    fs::remove_file(in_the_way).expect("removed");
    reaches(&vm, VmState::Running).await;
    telltale.ask(&vm, "echo here").await;
    soon("all that the guest wrote", async {
        while fs::read(&path).expect("there").iter().any(|byte| *byte != b'x') {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    vm.power_off().await.expect("switches off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_server_is_back_goes_on_by_itself_unless_somebody_paused_it() {
    let mut host = TestHost::new().await;
    let export = image(host.folder().join("export.raw"), MIB);
    let server = NbdServer::start(&export, None).await;
    let mut telltale = TellTale::new(&host);
    let remote = DiskSource::Remote(server.url().parse().expect("a URL"));
    let disks = vec![telltale.disk(), Disk::new(remote, DiskFormat::Raw, DiskBus::Virtio)];
    let vm = host.host().create(Definition { disks, ..console_guest("remote") }).await.expect("created");
    boots(&vm).await;
    let write = "until [ -b /dev/vdb ]; do :; done; \
                 (while :; do date | dd of=/dev/vdb conv=notrunc,fsync; done) >/dev/null 2>&1 & echo begun";
    assert_eq!(telltale.ask(&vm, write).await, "begun");
    let writes = async || {
        let before = fs::read(&export).expect("there");
        soon("the guest to write", async {
            while fs::read(&export).expect("there") == before {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    };
    writes().await;
    drop(server);
    stands_still(&vm, |why| why.starts_with("disk disk1: a ") && why.ends_with("; looking again")).await;
    let server = NbdServer::start(&export, None).await;
    let status = reaches(&vm, VmState::Running).await;
    assert_eq!(status.reason, None);
    assert_eq!(telltale.ask(&vm, "echo here").await, "here");
    writes().await;

    drop(server);
    stands_still(&vm, |why| why.ends_with("; looking again")).await;
    vm.pause().await.expect("it shall not go on by itself");
    stands_still(&vm, |why| why.starts_with("disk disk1: a ") && why.ends_with("; it waits to be resumed")).await;
    let error = vm.pause().await.expect_err("it is paused").to_string();
    assert_eq!(error, "cannot pause a VM that is paused: it stands still already");
    drop(vm);
    host.reopen().await;
    let vm = host.vm("remote");
    let _server = NbdServer::start(&export, None).await;
    let goes_on = async {
        let mut watch = vm.watch();
        watch.wait_for(|status| status.state == VmState::Running).await.map(drop)
    };
    assert!(tokio::time::timeout(A_WHILE, goes_on).await.is_err(), "a person paused it: {:?}", vm.status());
    stands_still(&vm, |why| why == "disk disk1: a request failed; it waits to be resumed").await;
    vm.resume().await.expect("somebody wants it to go on");
    // QEMU may find its server only after a first try.
    reaches(&vm, VmState::Running).await;
    writes().await;
}
