//! Checkpoints of VMs whose disks are no qcow2 images.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use vmm::{Definition, Disk, DiskError, DiskFormat, Job, JobKind, JobState, MoveDisk, NewSize, Resize, Vm, VmState};

use crate::checkpoints::{create, disk, done, ends};
use crate::kit::{PATIENCE, TestHost, firmware, reaches, runtime, shell, signal, soon, types};
use crate::moves::{Scribe, moving, plain};
use crate::snapshots::Guest;

const SIZE: &str = "8M";
/// What a guest reads at the beginning of its disks.
const READ: &str = "echo 3 >/proc/sys/vm/drop_caches; for d in a b c; do head -c 3 /dev/vd$d; done";

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_goes_back_whatever_its_disks_are() {
    let mut host = TestHost::new().await;
    let bases = [("a.raw", DiskFormat::Raw), ("b.vhdx", DiskFormat::Vhdx), ("c.vhd", DiskFormat::Vhd)];
    let disks = bases.map(|(name, format)| image(host.folder(), name, format)).to_vec();
    let vm = host.host().create(Definition { disks, ..Guest::definition("bases") }).await.expect("created");
    let (files, first_disks): (Vec<PathBuf>, _) = (paths(&vm), vm.definition().disks.clone());
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

    // With the last checkpoint the overlays go, and each disk is one file again.
    let disks = host.host().disks();
    let target = host.folder().join("moved.raw");
    let movement = |leave_snapshots| MoveDisk {
        target: target.display().to_string(),
        format: None,
        rate: None,
        verify: false,
        delete_source: true,
        leave_snapshots,
    };
    let refused = disks.move_disk(&vm, "disk1", movement(false)).await.expect_err("checkpoints would stay behind");
    assert!(refused.to_string().contains("holds 2 checkpoints of the VM"), "{refused}");
    let overlays = paths(&vm);
    let job = ends(&host, checkpoints.delete("first").await.expect("begun")).await;
    assert_eq!((job.result, paths(&vm)), (Some(json!({ "checkpoint": "first" })), overlays.clone()));
    let job = ends(&host, checkpoints.delete("second").await.expect("begun")).await;
    assert_eq!(merged(&job), named(&[0, 1, 2], &files), "{job:?}");
    assert_eq!((vm.definition().disks.clone(), vm.status().state), (first_disks, VmState::Running));
    assert!(overlays.iter().all(|overlay| !overlay.exists()));
    assert_eq!(guest.tell(READ).await, "newnewnew");
    guest.run(&write("end")).await;
    assert!(fs::read(&files[0]).expect("there").starts_with(b"end"), "it writes to the file itself");

    // All of it once more, with what QEMU has open by then; moved, a disk has all its content, and what it stood on is free.
    done(&host, create(&checkpoints, "third", "").await).await;
    guest.run(&write("top")).await;
    let overlay = paths(&vm)[1].clone();
    assert!(matches!(disks.delete(&files[1]).await, Err(DiskError::Needed { .. })));
    let moved = MoveDisk { delete_source: false, ..movement(true) };
    done(&host, disks.move_disk(&vm, "disk1", moved).await.expect("begun")).await;
    assert_eq!(guest.tell(READ).await, "toptoptop");
    assert!(fs::read(&target).expect("there").starts_with(b"top"));
    assert!(matches!(disks.delete(&overlay).await, Err(DiskError::Doubted { .. })), "a state is kept in it");
    for free in [&overlay, &files[1]] {
        assert_eq!(disks.info(free, None).await.expect("described").users, [], "nobody has it open");
        disks.delete_by_force(free).await.expect("nothing stands on it");
    }
    let job = ends(&host, checkpoints.delete("third").await.expect("begun")).await;
    assert_eq!(merged(&job), named(&[0, 2], &files), "{job:?}");
    assert_eq!(guest.tell(READ).await, "toptoptop");
    vm.power_off().await.expect("switches off");
    for (file, driver) in [(&files[0], "raw"), (&target, "raw"), (&files[2], "vpc")] {
        let read = host.folder().join("read");
        let made = Command::new("qemu-img").args(["convert", "-f", driver, "-O", "raw"]).arg(file).arg(&read).status();
        assert!(made.expect("qemu-img runs").success() && fs::read(&read).expect("there").starts_with(b"top"));
    }
}

/// What a merge is cut off by.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Accident {
    Qemu,
    Gateway,
    Cancel,
}

/// Overlays that are in the way of an accident take so much.
const BULK: &str = "write -P 7 16M 32M";

#[test]
fn a_merge_that_is_cut_off_leaves_one_complete_disk() {
    let mut life = runtime();
    let mut host = life.block_on(TestHost::new());
    let mut scribe = Scribe::new(&host);
    let log = host.folder().join("log.vhdx");
    let raw = scribe.disks[2].source.path().expect("a file");
    let made = Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "vhdx"]).arg(raw).arg(&log).status();
    assert!(made.expect("qemu-img runs").success());
    scribe.disks[2] = disk(&log, DiskFormat::Vhdx);
    let vm = life.block_on(host.host().create(scribe.definition())).expect("created");
    let disks = vm.definition().disks.clone();
    drop(vm);
    for (accident, step, percent) in [
        (Accident::Qemu, "merging", 20.0),
        (Accident::Gateway, "merging", 60.0),
        (Accident::Cancel, "merging", 1.0),
        (Accident::Qemu, "switching", 0.0),
        (Accident::Gateway, "merging", 1.0),
    ] {
        let gateway = accident == Accident::Gateway;
        let cut = life.block_on(async {
            let vm = host.vm("scribe");
            done(&host, create(&host.host().checkpoints(&vm), "only", "").await).await;
            qemu_io("qcow2", BULK, moving(&vm).source.path().expect("a file"));
            vm.start().await.expect("starts");
            writes(&vm).await;
            let job = host.host().checkpoints(&vm).delete("only").await.expect("begun");
            // Of three disks the last has the most.
            let jobs = host.host().jobs();
            let mut now = jobs.get(job.id).expect("remembered");
            let at = |now: &Job| now.step.as_deref() == Some(step) && now.progress.percent >= percent;
            soon("the moment of the accident", async {
                while !now.state.is_final() && !at(&now) {
                    now = jobs.wait(job.id, now.revision, Duration::from_secs(1)).await.expect("remembered");
                }
            })
            .await;
            match accident {
                Accident::Qemu => {
                    signal(vm.status().pid.expect("a process"), Signal::KILL);
                    reaches(&vm, VmState::Failed).await;
                }
                // It may be too late for that.
                Accident::Cancel => drop(jobs.cancel(job.id)),
                Accident::Gateway => {}
            }
            job
        });
        if gateway {
            // Nothing of this gateway does anything more.
            life.shutdown_timeout(PATIENCE);
            life = runtime();
        }
        life.block_on(async {
            if gateway {
                host.reopen().await;
            }
            let vm = host.vm("scribe");
            let job = ends(&host, cut).await;
            assert_eq!(host.host().checkpoints(&vm).list().await.expect("listed").checkpoints, []);
            match (accident, job.state) {
                (Accident::Cancel, JobState::Cancelled) => assert_eq!(moving(&vm).format, DiskFormat::Qcow2),
                (Accident::Gateway, _) | (_, JobState::Done) if accident != Accident::Qemu => {
                    assert_eq!((job.state, moving(&vm)), (JobState::Done, disks[2].clone()), "{job:?}");
                }
                (accident, state) => assert_eq!(accident, Accident::Qemu, "{state}: {job:?}"),
            }
            if accident != Accident::Qemu {
                reaches(&vm, VmState::Running).await;
                let number = last_record(&vm);
                soon("the guest to write on", async {
                    while last_record(&vm) <= number {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                })
                .await;
                vm.power_off().await.expect("off");
            }
            // Whichever file the definition names has everything.
            let whole = plain(&moving(&vm));
            assert!(whole[16 << 20..].iter().all(|byte| *byte == 7), "{job:?}: {}", moving(&vm).source);
            // An overlay that was left goes when somebody says so, while the guest runs, or with the next checkpoint.
            let checkpoints = host.host().checkpoints(&vm);
            if accident == Accident::Gateway || vm.definition().disks == disks {
                done(&host, create(&checkpoints, "next", "").await).await;
                done(&host, checkpoints.delete("next").await.expect("begun")).await;
            } else {
                vm.start().await.expect("starts");
                writes(&vm).await;
                done(&host, checkpoints.merge().await.expect("begun")).await;
                vm.power_off().await.expect("off");
            }
            assert_eq!(vm.definition().disks, disks);
            scribe.check(&vm);
        });
    }
    let left = fs::read_dir(host.folder()).expect("there").flatten();
    assert!(left.into_iter().all(|entry| !entry.file_name().to_string_lossy().contains(".checkpoints")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_goes_only_when_nothing_else_needs_the_file_below() {
    let host = TestHost::new().await;
    let disks = [
        ("a.raw", DiskFormat::Raw),
        ("b.vhdx", DiskFormat::Vhdx),
        ("c.vhd", DiskFormat::Vhd),
        ("d.raw", DiskFormat::Raw),
    ];
    let disks = disks.map(|(name, format)| image(host.folder(), name, format)).to_vec();
    let vm = host.host().create(Definition { disks, ..firmware("merge") }).await.expect("created");
    let (files, first_disks) = (paths(&vm), vm.definition().disks.clone());
    let checkpoints = host.host().checkpoints(&vm);
    done(&host, create(&checkpoints, "a", "").await).await;
    let overlays = paths(&vm);
    for overlay in &overlays {
        qemu_io("qcow2", "write -P 5 1M 1M", overlay);
    }
    // Somebody else's.
    let other = host.folder().join("other.qcow2");
    let backing = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
    let made = Command::new("qemu-img").args(backing).args([&files[3], &other]).status();
    assert!(made.expect("qemu-img runs").success());
    let job = ends(&host, checkpoints.delete("a").await.expect("begun")).await;
    assert_eq!(merged(&job), named(&[0, 1, 2], &files), "{job:?}");
    let kept = &job.result.as_ref().expect("told")["kept"];
    assert!(kept[0]["disk"] == "disk3" && kept[0]["reason"].as_str().expect("why").contains("other.qcow2"), "{job:?}");
    assert_eq!(paths(&vm), [&files[..3], &overlays[3..]].concat());
    for (file, driver) in files.iter().zip(["raw", "vhdx", "vpc"]) {
        qemu_io(driver, "read -P 5 1M 1M", file);
    }
    qemu_io("raw", "read -P 0 1M 1M", &files[3]);
    let left: Vec<bool> = overlays.iter().map(|overlay| overlay.exists()).collect();
    assert_eq!(left, [false, false, false, true]);
    let job = ends(&host, checkpoints.merge().await.expect("begun")).await;
    let problem = job.problem.as_deref().expect("why");
    assert!(job.state == JobState::Failed && problem.contains("other.qcow2"), "{job:?}");
    // It is done later.
    fs::remove_file(&other).expect("there");
    let job = ends(&host, checkpoints.merge().await.expect("begun")).await;
    assert_eq!((job.kind, merged(&job)), (JobKind::CheckpointMerge, named(&[3], &files)), "{job:?}");
    assert_eq!(vm.definition().disks, first_disks);
    let error = checkpoints.merge().await.expect_err("there is none").to_string();
    assert_eq!(error, "no disk of merge has an overlay that a checkpoint made");
    done(&host, create(&checkpoints, "b", "").await).await;
    let job = ends(&host, checkpoints.merge().await.expect("begun")).await;
    assert!(job.problem.as_deref().is_some_and(|why| why.contains("it holds checkpoints")), "{job:?}");
    done(&host, checkpoints.delete("b").await.expect("begun")).await;
    assert_eq!(vm.definition().disks, first_disks);
    qemu_io("raw", "read -P 5 1M 1M", &files[3]);
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

pub(crate) fn image(folder: &Path, name: &str, format: DiskFormat) -> Disk {
    let path = folder.join(name);
    let driver = if format == DiskFormat::Vhd { "vpc" } else { format.word() };
    let force = if format == DiskFormat::Vhd { &["-o", "force_size=on"][..] } else { &[] };
    let made = Command::new("qemu-img").args(["create", "-q", "-f", driver]).args(force).arg(&path).arg(SIZE).status();
    assert!(made.expect("qemu-img runs").success());
    disk(&path, format)
}

/// Has a guest keep its log, wherever its disks are.
async fn writes(vm: &Vm) {
    shell(&vm.console()).await;
    let before = last_record(vm);
    soon("a record", async {
        while last_record(vm) <= before {
            // On a busy machine a key may get lost; a second writer writes the same.
            types(&vm.console(), "\nuntil [ -b /dev/vda ]; do :; done; sh /dev/vda &\n").await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    })
    .await;
}

/// The number of the last record that a guest was told is on the disk.
fn last_record(vm: &Vm) -> u64 {
    let bytes = plain(&vm.definition().disks[1]);
    String::from_utf8_lossy(&bytes[..8]).trim_matches(['\0', ' ']).parse().unwrap_or(0)
}

/// The disks that a job made one file again, and the file.
fn merged(job: &Job) -> Vec<(String, String)> {
    let merged = job.result.as_ref().expect("told")["merged"].as_array().expect("some");
    let text = |value: &Value| value.as_str().expect("told").to_owned();
    let entry = |entry: &Value| (text(&entry["disk"]), text(&entry["file"]));
    merged.iter().map(entry).collect()
}

/// The same for so many disks and all files.
fn named(disks: &[usize], files: &[PathBuf]) -> Vec<(String, String)> {
    disks.iter().map(|disk| (format!("disk{disk}"), files[*disk].display().to_string())).collect()
}

/// Has a guest write the word to the beginning of each of its disks.
fn write(word: &str) -> String {
    format!("for d in a b c; do echo {word} >/dev/vd$d; done; sync")
}

pub(crate) fn paths(vm: &Vm) -> Vec<PathBuf> {
    vm.definition().disks.iter().filter_map(|disk| disk.source.path().map(Into::into)).collect()
}

fn contents(files: &[PathBuf]) -> Vec<Vec<u8>> {
    files.iter().map(|file| fs::read(file).expect("there")).collect()
}

pub(crate) fn qemu_io(format: &str, command: &str, image: &Path) {
    let output = Command::new("qemu-io").args(["-f", format, "-c", command]).arg(image).output().expect("qemu-io runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("failed"), "{command} {}: {output:?}", image.display());
}
