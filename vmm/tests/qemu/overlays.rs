//! Checkpoints of VMs whose disks are no qcow2 images.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmm::{Definition, Disk, DiskError, DiskFormat, JobState, MoveDisk, NewSize, Resize, Vm, VmState};

use crate::checkpoints::{create, disk, done, ends};
use crate::kit::{TestHost, console_guest, firmware};
use crate::snapshots::Guest;

const SIZE: &str = "8M";
/// What a guest reads at the beginning of its disks.
const READ: &str = "echo 3 >/proc/sys/vm/drop_caches; for d in a b c; do head -c 3 /dev/vd$d; done";

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_goes_back_whatever_its_disks_are() {
    let mut host = TestHost::new().await;
    let bases = [("a.raw", DiskFormat::Raw), ("b.vhdx", DiskFormat::Vhdx), ("c.vhd", DiskFormat::Vhd)];
    let disks = bases.map(|(name, format)| image(host.folder(), name, format)).to_vec();
    let vm = host.host().create(Definition { disks, ..console_guest("bases") }).await.expect("created");
    let files: Vec<PathBuf> = paths(&vm);
    vm.start().await.expect("starts");
    let mut guest = Guest::at(&vm).await;
    guest.run("until [ -b /dev/vdc ]; do :; done").await;
    guest.run(&write("one")).await;
    let folder = host.folder().to_path_buf();
    let name = |name: &str| folder.join(name);
    let (raw, vhdx) = (name("a.raw.checkpoints-2.qcow2"), name("b.vhdx.checkpoints.qcow2"));

    // A gateway that ended after it had made the first overlay, and after the definition named the second.
    drop((vm, guest));
    host.close();
    fs::write(host.folder().join("a.raw.checkpoints.qcow2"), "").expect("written");
    let backing = ["create", "-q", "-f", "qcow2", "-u", "-F", "vhdx", "-b"];
    let made = Command::new("qemu-img").args(backing).args([&files[1], &vhdx]).arg(SIZE).status();
    assert!(made.expect("qemu-img runs").success());
    let file = host.config.definitions.join("bases.toml");
    let mut definition = Definition::load(&file).expect("there");
    (definition.disks[1].source, definition.disks[1].format) = (vhdx.clone().into(), DiskFormat::Qcow2);
    fs::write(&file, definition.to_toml()).expect("written");
    host.reopen().await;
    let vm = host.vm("bases");
    let disks = host.host().disks();
    let writes =
        async |path: &Path| disks.info(path, None).await.expect("described").users.iter().any(|user| user.writes);
    assert!(writes(&vhdx).await && !writes(&files[1]).await, "the next one goes on with it");
    let mut guest = Guest::at(&vm).await;
    guest.run(&write("two")).await;

    let checkpoints = host.host().checkpoints(&vm);
    let job = ends(&host, create(&checkpoints, "first", "").await).await;
    assert_eq!((job.state, vm.status().state), (JobState::Done, VmState::Running), "{job:?}");
    let told = job.result.expect("told")["overlays"].as_array().map(Vec::len);
    assert_eq!((told, paths(&vm)), (Some(2), vec![raw, vhdx, name("c.vhd.checkpoints.qcow2")]));
    let before = contents(&files);
    guest.run(&write("new")).await;
    assert_eq!(guest.tell(READ).await, "newnewnew");
    done(&host, create(&checkpoints, "second", "").await).await;
    done(&host, checkpoints.revert("first").await.expect("begun")).await;
    assert_eq!(guest.tell(READ).await, "twotwotwo");
    // Another QEMU, another gateway.
    vm.power_off().await.expect("switches off");
    drop((vm, guest, checkpoints));
    host.reopen().await;
    let vm = host.vm("bases");
    let checkpoints = host.host().checkpoints(&vm);
    done(&host, checkpoints.revert("second").await.expect("begun")).await;
    let mut guest = Guest::at(&vm).await;
    assert_eq!(guest.tell(READ).await, "newnewnew");
    assert_eq!(contents(&files), before, "nothing was written to what the overlays stand on");

    // Moved, a disk has all its content, and what it stood on is free.
    let disks = host.host().disks();
    let target = host.folder().join("moved.raw");
    let movement = || MoveDisk {
        target: target.display().to_string(),
        format: None,
        rate: None,
        verify: false,
        delete_source: true,
        leave_snapshots: false,
    };
    let refused = disks.move_disk(&vm, "disk1", movement()).await.expect_err("checkpoints would stay behind");
    assert!(refused.to_string().contains("holds 2 snapshots, which would stay behind"), "{refused}");
    for name in ["first", "second"] {
        done(&host, checkpoints.delete(name).await.expect("begun")).await;
    }
    done(&host, disks.move_disk(&vm, "disk1", movement()).await.expect("begun")).await;
    assert_eq!(guest.tell(READ).await, "newnewnew");
    assert!(fs::read(&target).expect("there").starts_with(b"new"));
    assert_eq!(disks.info(&files[1], None).await.expect("described").users, [], "nobody has it open");
    disks.delete(&files[1]).await.expect("nothing stands on it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_off_has_checkpoints_whatever_its_disks_are() {
    let mut host = TestHost::new().await;
    let disks = vec![image(host.folder(), "a.raw", DiskFormat::Raw), image(host.folder(), "b.vhdx", DiskFormat::Vhdx)];
    let vm = host.host().create(Definition { disks: disks.clone(), ..firmware("off") }).await.expect("created");
    let files = paths(&vm);
    for (file, format) in files.iter().zip(["raw", "vhdx"]) {
        qemu_io(format, "write -P 1 0 64k", file);
    }
    let before = contents(&files);
    let checkpoints = host.host().checkpoints(&vm);
    assert_eq!(checkpoints.list().await.expect("listed").checkpoints, []);
    done(&host, create(&checkpoints, "first", "").await).await;
    assert_eq!(vm.status().state, VmState::Created);
    for overlay in paths(&vm) {
        qemu_io("qcow2", "read -P 1 0 64k", &overlay);
        qemu_io("qcow2", "write -P 2 0 64k", &overlay);
    }
    vm.start().await.expect("starts");
    done(&host, create(&checkpoints, "second", "").await).await;
    vm.power_off().await.expect("switches off");
    done(&host, checkpoints.revert("first").await.expect("begun")).await;
    for overlay in paths(&vm) {
        qemu_io("qcow2", "read -P 1 0 64k", &overlay);
    }
    assert_eq!(contents(&files), before);

    // The images below are needed as they are.
    let images = host.host().disks();
    let overlays = paths(&vm);
    let node =
        images.tree(&[]).await.expect("looked").into_iter().find(|node| node.path == files[0]).expect("it is shown");
    assert_eq!((node.above.len(), &node.above[0].path, node.above[0].vms.len()), (1, &overlays[0], 1));
    assert!(matches!(images.delete(&files[0]).await, Err(DiskError::Needed { .. })));
    let resize = Resize { path: files[1].clone(), format: None, size: NewSize::By(1 << 20), shrink: false };
    assert!(matches!(images.resize(resize).await, Err(DiskError::Needed { .. })));
    let other = host.host().create(firmware("other")).await.expect("created");
    let error = other.attach_disk(disks[0].clone()).await.expect_err("refused").to_string();
    assert!(error.contains("stands on it, which has the checkpoints"), "{error}");
    drop((vm, other, checkpoints));
    host.close();
    let file = host.config.definitions.join("off.toml");
    let definition = Definition { disks, ..Definition::load(&file).expect("there") };
    fs::write(&file, definition.to_toml()).expect("edited by hand");
    host.reopen().await;
    let error = host.vm("off").start().await.expect_err("refused").to_string();
    assert!(error.contains("a.raw is needed") && error.contains("fanlight disk delete"), "{error}");
    assert_eq!(contents(&files), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_can_have_no_overlay_costs_nothing_but_the_checkpoint() {
    let host = TestHost::new().await;
    let good = image(host.folder(), "a.raw", DiskFormat::Raw);
    // No name is left beside it.
    let long = "x".repeat(240) + ".raw";
    let disks = vec![good, image(host.folder(), &long, DiskFormat::Raw)];
    let vm = host.host().create(Definition { disks, ..firmware("long") }).await.expect("created");
    let before = vm.definition();
    vm.start().await.expect("starts");
    let job = ends(&host, create(&host.host().checkpoints(&vm), "a", "").await).await;
    assert!(job.state == JobState::Failed && job.problem.expect("why").contains("cannot write"));
    assert_eq!((vm.definition(), vm.status().state), (before, VmState::Running));
    assert!(!host.folder().join("a.raw.checkpoints.qcow2").exists());
}

fn image(folder: &Path, name: &str, format: DiskFormat) -> Disk {
    let path = folder.join(name);
    let driver = if format == DiskFormat::Vhd { "vpc" } else { format.word() };
    let force = if format == DiskFormat::Vhd { &["-o", "force_size=on"][..] } else { &[] };
    let made = Command::new("qemu-img").args(["create", "-q", "-f", driver]).args(force).arg(&path).arg(SIZE).status();
    assert!(made.expect("qemu-img runs").success());
    disk(&path, format)
}

/// Has a guest write the word to the beginning of each of its disks.
fn write(word: &str) -> String {
    format!("for d in a b c; do echo {word} >/dev/vd$d; done; sync")
}

fn paths(vm: &Vm) -> Vec<PathBuf> {
    vm.definition().disks.iter().filter_map(|disk| disk.source.path().map(Into::into)).collect()
}

fn contents(files: &[PathBuf]) -> Vec<Vec<u8>> {
    files.iter().map(|file| fs::read(file).expect("there")).collect()
}

fn qemu_io(format: &str, command: &str, image: &Path) {
    let output = Command::new("qemu-io").args(["-f", format, "-c", command]).arg(image).output().expect("qemu-io runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("failed"), "{command} {}: {output:?}", image.display());
}
