//! Entries of a library: of disks that stand on others, and where there is no room.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use vmm::{Definition, DiskFormat, FromEntry, Job, JobState, LibraryError, Vm, VmState};

use crate::checkpoints::{create, disk, done, ends};
use crate::disk_failures::{boots, does};
use crate::firmware::runs_as_first_program;
use crate::kit::{TestHost, console_guest, firmware, reaches};
use crate::overlays::{image, paths, qemu_io};
use crate::places::Mount;

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_a_vm_with_overlays_stands_on_nothing() {
    let host = TestHost::new().await;
    let bases = [("a.raw", DiskFormat::Raw), ("b.vhdx", DiskFormat::Vhdx), ("c.vhd", DiskFormat::Vhd)];
    let disks = bases.map(|(name, format)| image(host.folder(), name, format)).to_vec();
    let vm = host.host().create(Definition { disks, ..firmware("original") }).await.expect("created");
    let files = paths(&vm);
    for (file, driver) in files.iter().zip(["raw", "vhdx", "vpc"]) {
        qemu_io(driver, "write -P 1 0 2M", file);
    }
    let checkpoints = host.host().checkpoints(&vm);
    done(&host, create(&checkpoints, "kept", "").await).await;
    let overlays = paths(&vm);
    for overlay in &overlays {
        qemu_io("qcow2", "write -P 2 1M 1M", overlay);
    }
    let entry = library(&host).join("entry");
    done(&host, host.host().export("original", entry.clone()).await.expect("begun")).await;
    assert_eq!(paths(&vm), overlays, "the VM is as it was");
    assert_eq!(checkpoints.list().await.expect("listed").checkpoints.len(), 1);
    // Whatever becomes of the original.
    for path in files.iter().chain(&overlays) {
        fs::remove_file(path).expect("there");
    }
    for number in 0..3 {
        let disk = entry.join(format!("disk{number}.qcow2"));
        let told = Command::new("qemu-img").args(["info", "--output=json"]).arg(&disk).output().expect("qemu-img runs");
        let told: Value = serde_json::from_slice(&told.stdout).expect("JSON");
        assert_eq!((&told["backing-filename"], &told["snapshots"]), (&Value::Null, &Value::Null), "{told}");
        qemu_io("qcow2", "read -P 1 0 1M", &disk);
        qemu_io("qcow2", "read -P 2 1M 1M", &disk);
    }
    done(&host, host.host().verify_entry(entry.clone()).await.expect("begun")).await;
    let made = from(&host, entry, "made").await;
    for path in paths(&made) {
        qemu_io("qcow2", "read -P 2 1M 1M", &path);
    }
    made.start().await.expect("starts");
    done(&host, create(&host.host().checkpoints(&made), "own", "").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_runs_directly_on_the_disk_of_an_entry_on_another_file_system() {
    let host = TestHost::new().await;
    let script = "mount -t devtmpfs dev /dev; modprobe virtio_blk; until [ -b /dev/vda ]; do :; done; \
                  tr '\\0' x </dev/zero | head -c 1048576 >/dev/vda; sync; poweroff -f";
    let disks = vec![image(host.folder(), "original.raw", DiskFormat::Raw)];
    let definition = Definition { disks, ..runs_as_first_program(console_guest("original"), script) };
    let original = host.host().create(definition).await.expect("created");
    // Who may mount nothing has it in a folder.
    let share = host.folder().join("share");
    let _mount = Mount::in_memory(192 * MIB, share.clone());
    fs::create_dir_all(&share).expect("a folder");
    let entry = share.join("entry");
    done(&host, host.host().export("original", entry.clone()).await.expect("begun")).await;
    let request = FromEntry { entry: entry.clone(), name: Some("direct".into()), direct: true };
    let vm = host.host().create_from(request).await.expect("made");
    assert_eq!(paths(&vm), [entry.join("disk0.raw")]);
    vm.start().await.expect("starts");
    reaches(&vm, VmState::Stopped).await;
    qemu_io("raw", "read -P 120 0 1M", &entry.join("disk0.raw"));
    qemu_io("raw", "read -P 0 0 1M", &paths(&original)[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_for_which_there_is_no_room_leaves_nothing() {
    let mut host = TestHost::new().await;
    let Some(small) = Mount::in_memory(32 * MIB, host.folder().join("small")) else { return };
    // As soon as something is copied, the room that was there is somebody else's.
    let filler = small.0.join("filler");
    let fill = format!("case $1 in convert) cat /dev/zero >{} 2>/dev/null;; esac", filler.display());
    for (name, first) in [("qemu-system-x86_64", ""), ("qemu-img", &fill)] {
        let path = host.folder().join(name);
        fs::write(&path, format!("#!/bin/sh\n{first}\nexec {name} \"$@\"\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }
    host.config.qemu = Some(host.folder().join("qemu-system-x86_64"));
    host.reopen().await;
    let image = |name: &str, size: u64| {
        let path = host.folder().join(name);
        fs::write(&path, vec![7; usize::try_from(size).expect("small")]).expect("an image");
        disk(&path, DiskFormat::Raw)
    };
    let large = Definition { disks: vec![image("large.raw", 33 * MIB)], ..firmware("large") };
    let medium = Definition { disks: vec![image("medium.raw", 20 * MIB)], ..firmware("medium") };
    for definition in [large, medium] {
        host.host().create(definition).await.expect("created");
    }
    let entry = small.0.join("entry");
    let error = host.host().export("large", entry.clone()).await.expect_err("it cannot fit").to_string();
    assert!(error.contains("bytes") && error.contains("small"), "{error}");
    assert_eq!(names(&small.0), [""; 0]);
    let job = ends(&host, host.host().export("medium", entry.clone()).await.expect("begun")).await;
    assert!(is_full(&job), "{job:?}");
    assert_eq!(names(&small.0), ["filler"]);
    host.vm("medium").start().await.expect("its disk is free again");
    // With room it is done.
    fs::remove_file(&filler).expect("there");
    host.vm("medium").power_off().await.expect("switches off");
    host.config.qemu = None;
    host.reopen().await;
    done(&host, host.host().export("medium", entry.clone()).await.expect("begun")).await;
    done(&host, host.host().verify_entry(entry).await.expect("begun")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_images_fill_the_disk_stands_still_until_there_is_room() {
    let mut host = TestHost::new().await;
    let Some(small) = Mount::in_memory(8 * MIB, host.folder().join("small")) else { return };
    host.config.images = small.0.join("images");
    host.reopen().await;
    let disks = vec![image(host.folder(), "original.raw", DiskFormat::Raw)];
    host.host().create(Definition { disks, ..console_guest("original") }).await.expect("created");
    let entry = library(&host).join("entry");
    done(&host, host.host().export("original", entry.clone()).await.expect("begun")).await;
    let before = fs::read(entry.join("disk0.raw")).expect("there");
    let vm = from(&host, entry.clone(), "made").await;
    let filler = small.0.join("filler");
    fs::write(&filler, vec![1; 4 << 20]).expect("there is room");
    boots(&vm).await;
    let write =
        "until [ -b /dev/vda ]; do :; done; tr '\\0' x </dev/zero | head -c 6291456 >/dev/vda; sync; poweroff -f";
    does(&vm, write, |why| why == "disk disk0: a write failed: No space left on device; looking again").await;
    fs::remove_file(filler).expect("there");
    reaches(&vm, VmState::Stopped).await;
    qemu_io("qcow2", "read -P 120 0 6M", &paths(&vm)[0]);
    assert!(fs::read(entry.join("disk0.raw")).expect("there") == before, "the library is as it was");
}

fn library(host: &TestHost) -> PathBuf {
    let folder = host.folder().join("library");
    fs::create_dir(&folder).expect("a folder");
    folder
}

async fn from(host: &TestHost, entry: PathBuf, name: &str) -> Vm {
    let request = FromEntry { entry, name: Some(name.into()), direct: false };
    let made: Result<Vm, LibraryError> = host.host().create_from(request).await;
    made.expect("made")
}

fn is_full(job: &Job) -> bool {
    job.state == JobState::Failed && job.problem.as_ref().is_some_and(|why| why.contains("No space left on device"))
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).expect("there").flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
