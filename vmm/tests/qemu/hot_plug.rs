//! Disks that come and go while a guest runs, and discs in its drives.

use std::fs;
use std::path::PathBuf;

use vmm::{
    Cause, Definition, Disk, DiskBus, DiskFormat, DiskSource, Layout, Made, NewImage, NewSize, Preallocation,
    RequestError, Resize, VmState,
};

use crate::disk_server::NbdServer;
use crate::guest_disk::TellTale;
use crate::kit::{TestHost, console_guest, firmware, shell};

/// An image of `size` MiB of which the first bytes are `text`.
fn image(host: &TestHost, name: &str, size: u64, text: &str) -> PathBuf {
    let path = host.folder().join(name);
    fs::write(&path, text).expect("written");
    fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(size << 20)).expect("stretched");
    path
}

/// What prints the name of the SCSI disk of so many MiB, if there is one, in a guest's shell.
fn find(mib: u64) -> String {
    format!("cd /sys/block; grep -lx {} sd*/size 2>/dev/null | cut -d/ -f1 | grep .", mib << 11)
}

fn saved(host: &TestHost, name: &str) -> Definition {
    Definition::load(&host.config.definitions.join(format!("{name}.toml"))).expect("a definition")
}

/// A file system of discs that is only a name: what a guest finds when it looks for one.
fn disc(host: &TestHost, name: &str) -> PathBuf {
    let path = image(host, name, 1, "");
    let mut bytes = fs::read(&path).expect("read");
    // ECMA-119: volume descriptors begin at sector 16; the first is the primary one, the volume's name is at 40.
    let descriptor = &mut bytes[16 * 2048..];
    descriptor[..7].copy_from_slice(b"\x01CD001\x01");
    descriptor[40..72].copy_from_slice(format!("{name:<32}").as_bytes());
    fs::write(&path, bytes).expect("written");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_finds_a_disk_that_is_attached_and_loses_one_that_is_detached() {
    let host = TestHost::new().await;
    let mut telltale = TellTale::new(&host);
    let drive = Disk { id: "cd".into(), ..Disk::cdrom(DiskSource::Empty, DiskBus::Ide) };
    let disks = vec![telltale.disk(), drive];
    let vm = host.host().create(Definition { disks, ..console_guest("hot") }).await.expect("created");
    vm.start().await.expect("starts");
    shell(&vm.console()).await;

    let (file, export) = (image(&host, "file.raw", 3, "of a file"), image(&host, "export.raw", 4, "of a server"));
    let server = NbdServer::start(&export, None).await;
    vm.attach_disk(Disk::new(file.clone(), DiskFormat::Raw, DiskBus::Scsi)).await.expect("attached");
    let remote = DiskSource::Remote(server.url().parse().expect("a URL"));
    let remote = Disk { id: "remote".into(), ..Disk::new(remote, DiskFormat::Raw, DiskBus::Scsi) };
    vm.attach_disk(remote).await.expect("attached");
    assert_eq!(saved(&host, "hot"), *vm.definition());
    let names: Vec<_> = vm.definition().disks.iter().map(|disk| (disk.id.clone(), disk.unit)).collect();
    assert_eq!(names[2..], [("disk2".to_owned(), Some(0)), ("remote".to_owned(), Some(1))]);
    // Which of them is sda is not certain: they are known by their sizes.
    let read = |mib: u64, bytes: u64| format!("until d=$({}); do :; done; head -c {bytes} /dev/$d", find(mib));
    assert_eq!(telltale.ask(&vm, &read(3, 9)).await, "of a file");
    assert_eq!(telltale.ask(&vm, &read(4, 11)).await, "of a server");
    telltale.ask(&vm, &format!("echo of a guest >/dev/$({}); sync", find(3))).await;

    vm.detach_disk("disk2").await.expect("detached");
    vm.detach_disk(&server.url()).await.expect("detached");
    telltale.ask(&vm, "while ls /sys/block | grep sd; do :; done; echo gone").await;
    assert!(fs::read(&file).expect("it stays").starts_with(b"of a guest"));
    assert_eq!((saved(&host, "hot").disks.len(), vm.definition().disks.len()), (2, 2));
    // Nothing of it is left in QEMU: it can come again.
    vm.attach_disk(Disk::new(file, DiskFormat::Raw, DiskBus::Scsi)).await.expect("attached again");
    assert_eq!(telltale.ask(&vm, &read(3, 10)).await, "of a guest");
    assert_eq!(vm.status().next_start, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disc_is_changed_and_a_drive_that_the_guest_has_locked_is_opened_by_force_only() {
    let host = TestHost::new().await;
    let mut telltale = TellTale::new(&host);
    let drive = Disk { id: "cd".into(), ..Disk::cdrom(disc(&host, "FIRST"), DiskBus::Ide) };
    let vm = host.host().create(Definition { disks: vec![telltale.disk(), drive], ..console_guest("discs") });
    let vm = vm.await.expect("created");
    vm.start().await.expect("starts");
    shell(&vm.console()).await;
    let title = "until dd if=/dev/sr0 bs=1 skip=32808 count=6 2>/dev/null; do :; done";
    let waits = |name: &str| format!("until [ \"$({title})\" = '{name:<6}' ]; do :; done; echo {name}");
    assert_eq!(telltale.ask(&vm, &waits("FIRST")).await, "FIRST");
    let second = disc(&host, "SECOND");
    vm.change_disc("cd", second.clone().into(), false).await.expect("changed");
    assert_eq!(telltale.ask(&vm, &waits("SECOND")).await, "SECOND");
    assert_eq!(saved(&host, "discs").disks[1].source, DiskSource::Path(second.clone()));

    // Linux locks the drive for as long as somebody reads the disc.
    telltale.ask(&vm, "sleep 1000 </dev/sr0 >/dev/null 2>&1 & true").await;
    let error = vm.change_disc("cd", DiskSource::Empty, false).await.expect_err("locked").to_string();
    assert_eq!(error, "cannot change a disc of this VM: the guest has locked the drive, and not let go within 10 s");
    assert_eq!(saved(&host, "discs").disks[1].source, DiskSource::Path(second));
    vm.change_disc("cd", DiskSource::Empty, true).await.expect("ejected by force");
    assert_eq!(saved(&host, "discs").disks[1].source, DiskSource::Empty);
    let empty = "while dd if=/dev/sr0 bs=2048 count=1 of=/dev/null 2>/dev/null; do :; done; echo empty";
    assert_eq!(telltale.ask(&vm, empty).await, "empty");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_plugged_waits_for_the_next_start() {
    let mut host = TestHost::new().await;
    let vm = host.firmware_vm("waits").await;
    vm.attach_disk(Disk::new(image(&host, "cold.raw", 1, ""), DiskFormat::Raw, DiskBus::Ide)).await.expect("it is off");
    assert_eq!((vm.status().state, vm.status().next_start), (VmState::Created, vec![]));
    vm.start().await.expect("starts");
    vm.attach_disk(Disk::new(image(&host, "ide.raw", 1, ""), DiskFormat::Raw, DiskBus::Ide)).await.expect("noted");
    assert_eq!(vm.status().next_start, ["disk1"]);
    vm.detach_disk("disk0").await.expect("noted");
    assert_eq!(vm.status().next_start, ["disk1", "disk0"]);
    let again = Disk { id: "disk0".into(), ..Disk::new(image(&host, "b.raw", 1, ""), DiskFormat::Raw, DiskBus::Scsi) };
    let error = vm.attach_disk(again).await.expect_err("QEMU still has one").to_string();
    assert_eq!(
        error,
        "cannot attach a disk to this VM: the guest has a disk disk0 until its next start; take another name"
    );
    // A gateway that comes later sees the same.
    drop(vm);
    host.reopen().await;
    let vm = host.vm("waits");
    assert_eq!(vm.status().next_start, ["disk1", "disk0"]);
    vm.power_off().await.expect("off");
    vm.start().await.expect("starts");
    assert_eq!(vm.status().next_start, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_attached_leaves_no_trace() {
    let host = TestHost::new().await;
    let (vm, other) = (host.firmware_vm("traces").await, host.host().create(firmware("other")).await.expect("created"));
    vm.start().await.expect("starts");
    other.start().await.expect("starts");
    let scsi = |path: PathBuf| Disk::new(path, DiskFormat::Raw, DiskBus::Scsi);
    let taken = image(&host, "taken.raw", 1, "");
    other.attach_disk(scsi(taken.clone())).await.expect("attached");
    let before = saved(&host, "traces");
    let nbd = DiskSource::Remote("nbd+unix:///x?socket=/nonexistent".parse().expect("a URL"));
    for (disk, says) in [
        (scsi(host.folder().join("missing.raw")), "No such file"),
        (scsi(taken), "taken.raw is in use: VM other writes it"),
        (Disk { controller: 1, ..scsi(image(&host, "a.raw", 1, "")) }, "there is no controller 1"),
        (Disk { format: DiskFormat::Qcow2, ..scsi(image(&host, "b.raw", 1, "")) }, "not in qcow2 format"),
        (Disk { source: nbd, ..scsi(PathBuf::new()) }, "No such file"),
    ] {
        let error = vm.attach_disk(disk).await.expect_err("refused").to_string();
        assert!(error.contains(says), "{error}");
        assert_eq!((saved(&host, "traces"), &*vm.definition()), (before.clone(), &before));
    }
    let error = vm.detach_disk("disk7").await.expect_err("unknown").to_string();
    assert_eq!(error, "cannot detach a disk of this VM: it has no disk `disk7`");
    let edited = Definition { memory: 65, ..before };
    fs::write(host.config.definitions.join("traces.toml"), edited.to_toml()).expect("written");
    vm.attach_disk(scsi(image(&host, "c.raw", 1, ""))).await.expect("attached");
    let both = (saved(&host, "traces"), vm.definition());
    assert_eq!((both.0.memory, both.1.memory), (65, 64), "an edit by hand stays, and waits");
    assert!(both.0.disk("disk0").is_some() && both.0.disks == both.1.disks);
    fs::write(host.config.definitions.join("traces.toml"), "memory = 1").expect("written");
    let error = vm.attach_disk(scsi(image(&host, "d.raw", 1, ""))).await.expect_err("spoilt by hand").to_string();
    assert!(error.contains("traces.toml:1:1: missing field `name`"), "{error}");
    assert_eq!(*vm.definition(), *both.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_becomes_larger_while_its_guest_uses_it() {
    let host = TestHost::new().await;
    let disks = host.host().disks();
    let mut telltale = TellTale::new(&host);
    let (raw, qcow2) = (image(&host, "raw.raw", 4, ""), host.folder().join("two.qcow2"));
    let new = NewImage {
        path: qcow2.clone(),
        size: Some(4 << 20),
        format: None,
        layout: Layout::Dynamic,
        backing: None,
        preallocation: Preallocation::Off,
    };
    disks.create(new).await.expect("created");
    let on_scsi = Disk::new(raw.clone(), DiskFormat::Raw, DiskBus::Scsi);
    let on_virtio = Disk::new(qcow2.clone(), DiskFormat::Qcow2, DiskBus::Virtio);
    let definition = Definition { disks: vec![telltale.disk(), on_virtio, on_scsi], ..console_guest("grows") };
    let vm = host.host().create(definition).await.expect("created");
    vm.start().await.expect("starts");
    shell(&vm.console()).await;
    telltale.ask(&vm, "until [ -b /dev/vdb ] && [ -b /dev/sda ]; do :; done").await;
    let resize = |path: &PathBuf, size| Resize { path: path.clone(), format: None, size, shrink: true };
    for (path, device) in [(&qcow2, "vdb"), (&raw, "sda")] {
        let Made::Image(info) = disks.resize(resize(path, NewSize::By(3 << 20))).await.expect("larger") else {
            panic!("a job")
        };
        assert_eq!(info.size, 7 << 20);
        let size = format!("until [ $(cat /sys/block/{device}/size) = {} ]; do :; done; echo grown", (7 << 20) / 512);
        assert_eq!(telltale.ask(&vm, &size).await, "grown");
        let end = format!(
            "printf end | dd of=/dev/{device} bs=1 seek={} conv=notrunc 2>/dev/null; sync; echo kept",
            (7 << 20) - 3
        );
        assert_eq!(telltale.ask(&vm, &end).await, "kept");
        disks.resize(resize(path, NewSize::To(4 << 20))).await.expect_err("its guest has it");
    }
    assert!(fs::read(&raw).expect("read").ends_with(b"end"));
    vm.pause().await.expect("paused");
    disks.resize(resize(&raw, NewSize::By(1 << 20))).await.expect("larger while it stands still, too");
    assert_eq!(fs::metadata(&raw).expect("there").len(), 8 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_told_in_words_and_by_its_kind() {
    let host = TestHost::new().await;
    let (vm, other) = (host.firmware_vm("vm").await, host.host().create(firmware("other")).await.expect("created"));
    let scsi = |path: PathBuf| Disk::new(path, DiskFormat::Raw, DiskBus::Scsi);
    let taken = image(&host, "taken.raw", 1, "");
    other.attach_disk(scsi(taken.clone())).await.expect("attached");
    other.start().await.expect("starts");
    let qcow2 = host.folder().join("a.qcow2");
    let new = NewImage {
        path: qcow2.clone(),
        size: Some(1 << 20),
        format: None,
        layout: Layout::Dynamic,
        backing: None,
        preallocation: Preallocation::Off,
    };
    host.host().disks().create(new).await.expect("created");
    let cause = |error: RequestError, words: &str| match error {
        RequestError::Failed { reason, cause, .. } => {
            assert!(reason.contains(words), "{reason}");
            cause
        }
        error => panic!("{error}"),
    };
    for (disk, kind, words) in [
        (scsi(host.folder().join("missing.raw")), Cause::Missing, "No such file"),
        (
            Disk { controller: 7, ..scsi(image(&host, "b.raw", 1, "")) },
            Cause::Invalid,
            "disk disk0: there is no controller 7",
        ),
        (Disk { unit: Some(200), ..scsi(image(&host, "b.raw", 1, "")) }, Cause::Invalid, "disk disk0: `unit`"),
        (scsi(qcow2), Cause::Invalid, "a.qcow2 is qcow2 by its name and its bytes"),
    ] {
        assert_eq!(cause(vm.attach_disk(disk).await.expect_err("refused"), words), kind);
    }
    assert_eq!(cause(vm.detach_disk("disk9").await.expect_err("unknown"), "no disk `disk9`"), Cause::Missing);
    // Off, it takes what another has; on, it does not get it.
    vm.attach_disk(scsi(taken.clone())).await.expect("it is off");
    let in_use = "taken.raw is in use: VM other writes it";
    assert_eq!(cause(vm.start().await.expect_err("locked"), in_use), Cause::InUse);
    assert!(vm.status().reason.is_some_and(|reason| reason.contains(in_use)));
    fs::remove_file(&taken).expect("removed");
    assert_eq!(cause(vm.start().await.expect_err("gone"), "No such file"), Cause::Missing);
}
