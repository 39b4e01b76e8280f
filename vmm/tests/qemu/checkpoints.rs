//! Checkpoints, and what becomes of them when something is cut off.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use vmm::{
    CheckpointError, CheckpointSchedule, CheckpointTree, Checkpoints, Definition, Disk, DiskBus, DiskFormat,
    DiskSource, Job, JobId, JobKind, JobState, NewCheckpoint, Vm, VmState,
};

use crate::disk_server::NbdServer;
use crate::kit::{TestHost, firmware, is_alive, reaches, sees, signal, soon};

/// What is under way in a test takes seconds at most; slow machines are slow.
const JOB: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_goes_back_along_its_tree() {
    let mut host = TestHost::new().await;
    let vm = vm_with_disks(&host, "tree", 2).await;
    let checkpoints = host.host().checkpoints(&vm);
    write(&vm, "1");
    done(&host, create(&checkpoints, "clean", "as installed").await).await;
    assert_eq!(vm.status().state, VmState::Created);
    vm.start().await.expect("starts");
    let mut viewer = vm.console().viewer();
    sees(&mut viewer, "the firmware", |_, picture| picture.has_text()).await;
    done(&host, create(&checkpoints, "runs", "").await).await;
    vm.pause().await.expect("pauses");
    done(&host, create(&checkpoints, "12", "").await).await;
    assert_eq!(vm.status().state, VmState::Paused);
    let tree = checkpoints.list().await.expect("listed");
    assert_eq!(shape(&tree), [("clean", None), ("runs", Some("clean")), ("12", Some("runs"))]);
    let keeps: Vec<bool> = tree.checkpoints.iter().map(|found| found.memory).collect();
    assert_eq!((keeps, tree.here.as_deref()), (vec![false, true, true], Some("12")));
    assert!(tree.checkpoints[1].size.expect("known") > 1 << 20 && tree.checkpoints[0].notes == "as installed");

    done(&host, checkpoints.revert("runs").await.expect("begun")).await;
    assert_eq!(vm.status().state, VmState::Paused, "who stood still does so");
    checkpoints.rename("runs", "ran").await.expect("renamed");
    done(&host, create(&checkpoints, "runs", "").await).await;
    vm.power_off().await.expect("switches off");
    write(&vm, "2");
    // The gateway ends and another begins.
    drop((vm, checkpoints, viewer));
    host.reopen().await;
    let vm = host.vm("tree");
    let checkpoints = host.host().checkpoints(&vm);
    let tree = checkpoints.list().await.expect("listed");
    assert_eq!(shape(&tree), [("clean", None), ("ran", Some("clean")), ("12", Some("ran")), ("runs", Some("ran"))]);
    done(&host, checkpoints.delete("ran").await.expect("begun")).await;
    done(&host, checkpoints.revert("clean").await.expect("begun")).await;
    assert_eq!(vm.status().state, VmState::Stopped);
    assert!(holds(&vm, "1"), "the disks are what they were");
    let tree = checkpoints.list().await.expect("listed");
    assert_eq!(shape(&tree), [("clean", None), ("12", Some("clean")), ("runs", Some("clean"))]);
    assert_eq!(tree.here.as_deref(), Some("clean"));
    // One that is on is switched off for disks, and one that is off is started for memory.
    done(&host, checkpoints.revert("runs").await.expect("begun")).await;
    assert_eq!(vm.status().state, VmState::Running);
    done(&host, checkpoints.revert("clean").await.expect("begun")).await;
    assert_eq!(vm.status().state, VmState::Stopped);
    for name in ["clean", "12", "runs"] {
        done(&host, checkpoints.delete(name).await.expect("begun")).await;
    }
    assert_eq!(checkpoints.list().await.expect("listed").checkpoints, []);
    is_sound(&vm);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_told_before_anything_begins() {
    let host = TestHost::new().await;
    let vm = vm_with_disks(&host, "plain", 1).await;
    let checkpoints = host.host().checkpoints(&vm);
    done(&host, create(&checkpoints, "a", "").await).await;
    let refused = |result: Result<Job, CheckpointError>| result.expect_err("refused").to_string();
    let new = |name: &str| NewCheckpoint { name: name.into(), notes: String::new() };
    assert_eq!(refused(checkpoints.create(new("a")).await), "there is a checkpoint `a` already");
    assert_eq!(refused(checkpoints.revert("b").await), "there is no checkpoint `b`");
    assert_eq!(refused(checkpoints.delete("b").await), "there is no checkpoint `b`");
    assert!(refused(checkpoints.create(new(" ")).await).starts_with("a checkpoint's name has 1 to 120 bytes"));

    let remote = |name: &str| {
        let source = DiskSource::of_words(&format!("nbd://127.0.0.1/{name}")).expect("a URL");
        Disk::new(source, DiskFormat::Raw, DiskBus::Virtio)
    };
    let disks = vec![remote("one"), qcow2(host.folder(), "mixed"), remote("two")];
    let mixed = host.host().create(Definition { disks, ..firmware("mixed") }).await.expect("created");
    let error = refused(host.host().checkpoints(&mixed).create(new("a")).await);
    assert!(error.contains("/one") && error.contains("/two") && !error.contains("mixed.qcow2"), "{error}");
    assert!(host.host().jobs().list().iter().all(|job| job.vm.as_deref() != Some("mixed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_not_loaded_into_other_hardware() {
    let mut host = TestHost::new().await;
    let vm = vm_with_disks(&host, "grown", 1).await;
    vm.start().await.expect("starts");
    done(&host, create(&host.host().checkpoints(&vm), "small", "").await).await;
    vm.power_off().await.expect("switches off");
    drop(vm);
    host.close();
    let file = host.config.definitions.join("grown.toml");
    let text = fs::read_to_string(&file).expect("there").replace("memory = 64\nvcpus", "memory = 80\nvcpus");
    fs::write(&file, text).expect("written");
    host.reopen().await;
    let error = host.host().checkpoints(&host.vm("grown")).revert("small").await.expect_err("refused").to_string();
    assert_eq!(error, "this VM cannot go back to checkpoint `small`: `memory` was 64 MiB and is 80 MiB");
    host.vm("grown").start().await.expect("it can be started as it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_is_killed_while_it_deletes_leaves_the_other_states() {
    let host = TestHost::new().await;
    let vm = vm_with_disks(&host, "deleting", 2).await;
    let checkpoints = host.host().checkpoints(&vm);
    write(&vm, "1");
    done(&host, create(&checkpoints, "old", "").await).await;
    write(&vm, "2");
    for _ in 0..3 {
        vm.start().await.expect("starts");
        done(&host, create(&checkpoints, "short", "").await).await;
        let pid = vm.status().pid.expect("a process");
        let job = checkpoints.delete("short").await.expect("begun");
        // Wherever it happens to be.
        signal(pid, Signal::KILL);
        reaches(&vm, VmState::Failed).await;
        let ended = ends(&host, job).await;
        // What is left of it goes with the next change; it is never half a checkpoint.
        done(&host, create(&checkpoints, "next", "").await).await;
        let tree = checkpoints.list().await.expect("listed");
        assert_eq!((tree.unfinished.as_ref(), problems(&tree)), (None, 0), "after {ended:?}");
        let names: Vec<&str> = tree.checkpoints.iter().map(|found| found.name.as_str()).collect();
        assert!(names.contains(&"old") && names.contains(&"next"), "{names:?}");
        for name in names.iter().filter(|name| **name != "old") {
            done(&host, checkpoints.delete(name).await.expect("begun")).await;
        }
        is_sound(&vm);
    }
    done(&host, checkpoints.revert("old").await.expect("begun")).await;
    assert!(holds(&vm, "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revert_that_is_cut_off_is_done_by_the_next_start() {
    let host = TestHost::new().await;
    let vm = vm_with_disks(&host, "reverting", 2).await;
    let checkpoints = host.host().checkpoints(&vm);
    vm.start().await.expect("starts");
    sees(&mut vm.console().viewer(), "the firmware", |_, picture| picture.has_text()).await;
    done(&host, create(&checkpoints, "old", "").await).await;
    done(&host, create(&checkpoints, "new", "").await).await;
    let mut cut_off = 0;
    while cut_off == 0 {
        let mut watch = vm.bus().watch();
        let pid = vm.status().pid.expect("a process");
        let job = checkpoints.revert("old").await.expect("begun");
        soon("it stands still", watch.wait_for(|state| !state.vm_running)).await.expect("the VM is there");
        signal(pid, Signal::KILL);
        soon("its end", async {
            while is_alive(pid) {
                tokio::task::yield_now().await
            }
        })
        .await;
        let ended = ends(&host, job).await;
        let tree = checkpoints.list().await.expect("listed");
        if ended.state == JobState::Failed {
            cut_off += 1;
            assert!(ended.problem.expect("why").ends_with("the next start of the VM goes on with it"));
            assert_eq!(tree.unfinished.as_deref(), Some("going back to checkpoint `old` has not ended"));
            let new = NewCheckpoint { name: "x".into(), notes: String::new() };
            let refused = ends(&host, checkpoints.create(new).await.expect("begun")).await;
            assert!(refused.problem.expect("why").starts_with("going back to checkpoint `old` was cut off"));
        } else {
            // It was faster, and died of the signal afterwards.
            assert_eq!((ended.state, tree.here.as_deref()), (JobState::Done, Some("old")));
            reaches(&vm, VmState::Failed).await;
        }
        vm.start().await.expect("starts");
    }
    assert_eq!(vm.status().state, VmState::Running);
    let tree = checkpoints.list().await.expect("listed");
    assert_eq!((tree.here.as_deref(), tree.unfinished.as_deref(), shape(&tree).len()), (Some("old"), None, 2));
    sees(&mut vm.console().viewer(), "the firmware", |_, picture| picture.has_text()).await;
    done(&host, checkpoints.revert("new").await.expect("begun")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_gateway_left_is_brought_to_its_end() {
    let mut host = TestHost::new().await;
    let vm = vm_with_disks(&host, "left", 2).await;
    let checkpoints = host.host().checkpoints(&vm);
    for name in ["a", "b"] {
        done(&host, create(&checkpoints, name, "").await).await;
    }
    let (uuid, images) = (vm.uuid(), paths(&vm));
    drop((vm, checkpoints));
    // Half a checkpoint; one that was made, and nobody entered that; half a deletion.
    for (change, halves, left) in [
        (json!({ "create": entry("half") }), &[("-c", "half", 1)][..], vec!["a", "b"]),
        (json!({ "create": entry("made") }), &[("-c", "made", 2)], vec!["a", "b", "made"]),
        (json!({ "delete": "a" }), &[("-d", "a", 1)], vec!["b", "made"]),
        (json!({ "create": entry("never") }), &[], vec!["b", "made"]),
    ] {
        host.close();
        // The oldest is what a clock deletes, as a part of its job.
        let job = change["delete"].is_string().then_some(JobId(77));
        if let Some(id) = job {
            let file = host.config.jobs.join(format!("{id}.json"));
            fs::write(file, running(id, JobKind::CheckpointAutomatic).to_string()).expect("written");
        }
        edit(&host.config.checkpoints.join(format!("{uuid}.json")), |book| {
            book["checkpoints"]["pending"] = json!({ "what": change, "job": job });
        });
        for (what, tag, count) in halves {
            for image in images.iter().take(*count) {
                qemu_img(&["snapshot", what, tag], image);
            }
        }
        host.reopen().await;
        let checkpoints = host.host().checkpoints(&host.vm("left"));
        let tree = soon("the end", async {
            loop {
                let tree = checkpoints.list().await.expect("listed");
                if tree.unfinished.is_none() {
                    return tree;
                }
                tokio::task::yield_now().await;
            }
        });
        let tree = tree.await;
        let names: Vec<&str> = tree.checkpoints.iter().map(|found| found.name.as_str()).collect();
        assert_eq!((names, problems(&tree)), (left.clone(), 0));
        let listed = qemu_img(&["snapshot", "-l"], &images[0]);
        assert!(!listed.contains("half") && left.iter().all(|name| listed.contains(name)), "{listed}");
        if let Some(id) = job {
            let job = ends(&host, host.host().jobs().get(id).expect("it is remembered")).await;
            assert_eq!((job.state, job.result), (JobState::Done, None), "what it had made is not what it deletes");
        }
    }
    is_sound(&host.vm("left"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_book_of_a_later_version_is_left_as_it_is() {
    let mut host = TestHost::new().await;
    let vm = vm_with_disks(&host, "later", 1).await;
    let file = host.config.checkpoints.join(format!("{}.json", vm.uuid()));
    done(&host, create(&host.host().checkpoints(&vm), "a", "").await).await;
    drop(vm);
    host.close();
    edit(&file, |book| book["version"] = json!(2));
    let text = fs::read_to_string(&file).expect("there");
    host.reopen().await;
    let vm = host.vm("later");
    let error = host.host().checkpoints(&vm).list().await.expect_err("refused").to_string();
    assert_eq!(error, format!("{}: it was written by a later version of Fanlight (2)", file.display()));
    vm.start().await.expect("starts");
    assert_eq!(fs::read_to_string(&file).expect("there"), text);
    vm.power_off().await.expect("switches off");
    host.host().delete("later").await.expect("deleted");
    assert!(!file.exists(), "it goes with its VM");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_makes_one_and_drops_the_oldest_as_a_job_that_says_how_it_went() {
    let mut host = TestHost::new().await;
    let disks = vec![qcow2(host.folder(), "clock")];
    let checkpoints = Some(CheckpointSchedule { every: 1, keep: 1 });
    let definition = Definition { disks, checkpoints, ..firmware("clock") };
    let vm = host.host().create(definition).await.expect("created");
    done(&host, create(&host.host().checkpoints(&vm), "old", "").await).await;
    let file = host.config.checkpoints.join(format!("{}.json", vm.uuid()));
    // One that can have none, since its disk is on a server.
    let image = host.folder().join("late.raw");
    fs::write(&image, [0; 65_536]).expect("written");
    let server = NbdServer::start(&image, None).await;
    let source = DiskSource::of_words(&server.url()).expect("a URL");
    let disks = vec![Disk::new(source, DiskFormat::Raw, DiskBus::Virtio)];
    host.host().create(Definition { disks, checkpoints, ..firmware("late") }).await.expect("created");
    drop(vm);
    host.close();
    edit(&file, |book| {
        book["checkpoints"]["entries"][0]["automatic"] = json!(true);
        book["checkpoints"]["entries"][0]["taken"] = json!(5);
    });
    host.reopen().await;
    let vm = host.vm("clock");
    vm.start().await.expect("starts");
    host.vm("late").start().await.expect("starts");
    let jobs = host.host().jobs();
    let begun = |vm: &'static str| async move {
        let is_it = |job: &Job| job.kind == JobKind::CheckpointAutomatic && job.vm.as_deref() == Some(vm);
        let begun = tokio::time::timeout(Duration::from_secs(240), async {
            loop {
                if let Some(job) = jobs.list().into_iter().find(is_it) {
                    return job;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        begun.await.expect("one begun by the clock")
    };
    let job = ends(&host, begun("clock").await).await;
    let tree = host.host().checkpoints(&vm).list().await.expect("listed");
    let [only] = &tree.checkpoints[..] else { panic!("{tree:?}, {job:?}") };
    assert!(only.automatic && only.name.ends_with(" UTC"), "{only:?}");
    assert!(only.memory && vm.status().state == VmState::Running);
    assert_eq!((job.state, &job.target), (JobState::Done, &format!("{} of clock", only.name)));
    assert_eq!(job.result, Some(json!({ "checkpoint": only.name })));
    let job = ends(&host, begun("late").await).await;
    assert!(job.state == JobState::Failed && job.problem.as_deref().is_some_and(|why| why.contains("nbd")), "{job:?}");
}

/// The file of a job that a gateway left.
fn running(id: JobId, kind: JobKind) -> Value {
    let progress = json!({ "done": 0, "total": 0, "percent": 0.0, "rate": null, "left": null });
    let job = json!({ "id": id, "kind": kind, "target": "a", "vm": "left", "state": "running", "step": null, "progress": progress,
        "started": 1, "ended": null, "problem": null, "result": null, "revision": 1 });
    json!({ "version": 1, "job": job })
}

pub(crate) async fn create(checkpoints: &Checkpoints, name: &str, notes: &str) -> Job {
    let new = NewCheckpoint { name: name.into(), notes: notes.into() };
    checkpoints.create(new).await.expect("begun")
}

/// Waits for a job that must do what it was meant to.
pub(crate) async fn done(host: &TestHost, job: Job) {
    let job = ends(host, job).await;
    assert_eq!(job.state, JobState::Done, "{job:?}");
}

/// Waits for the end of a job, whichever it is.
pub(crate) async fn ends(host: &TestHost, mut job: Job) -> Job {
    let jobs = host.host().jobs();
    let end = async {
        while !job.state.is_final() {
            job = jobs.wait(job.id, job.revision, JOB).await.expect("it is remembered");
        }
    };
    tokio::time::timeout(JOB, end).await.expect("the end of a job");
    job
}

fn shape(tree: &CheckpointTree) -> Vec<(&str, Option<&str>)> {
    tree.checkpoints.iter().map(|found| (found.name.as_str(), found.parent.as_deref())).collect()
}

fn problems(tree: &CheckpointTree) -> usize {
    tree.checkpoints.iter().filter(|found| found.problem.is_some()).count()
}

async fn vm_with_disks(host: &TestHost, name: &str, count: usize) -> Vm {
    let disks = (0..count).map(|number| qcow2(host.folder(), &format!("{name}-{number}"))).collect();
    host.host().create(Definition { disks, ..firmware(name) }).await.expect("created")
}

fn qcow2(folder: &Path, name: &str) -> Disk {
    let path = folder.join(format!("{name}.qcow2"));
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&path).arg("64M").status();
    assert!(made.expect("qemu-img runs").success());
    disk(&path, DiskFormat::Qcow2)
}

pub(crate) fn disk(path: &Path, format: DiskFormat) -> Disk {
    Disk::new(path.to_path_buf(), format, DiskBus::Virtio)
}

fn paths(vm: &Vm) -> Vec<std::path::PathBuf> {
    vm.definition().disks.iter().filter_map(|disk| disk.source.path().map(Into::into)).collect()
}

/// Fills the beginning of each disk of a VM that is off.
fn write(vm: &Vm, byte: &str) {
    for path in paths(vm) {
        assert!(qemu_io(&format!("write -P {byte} 0 65536"), &path), "{}", path.display());
    }
}

/// Whether each disk of a VM that is off begins with that.
fn holds(vm: &Vm, byte: &str) -> bool {
    paths(vm).iter().all(|path| qemu_io(&format!("read -P {byte} 0 65536"), path))
}

fn qemu_io(command: &str, image: &Path) -> bool {
    let output =
        Command::new("qemu-io").args(["-f", "qcow2", "-c", command]).arg(image).output().expect("qemu-io runs");
    output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("failed")
}

fn qemu_img(arguments: &[&str], image: &Path) -> String {
    let output = Command::new("qemu-img").args(arguments).arg(image).output().expect("qemu-img runs");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into()
}

/// No image is damaged; space that nobody uses any more is no damage.
fn is_sound(vm: &Vm) {
    for path in paths(vm) {
        let output = Command::new("qemu-img").args(["check", "--output=json", "-U"]).arg(&path).output().expect("runs");
        let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
        assert!(report["corruptions"].as_u64().unwrap_or(0) == 0 && report["check-errors"] == 0, "{report}");
    }
}

fn entry(name: &str) -> Value {
    json!({ "tag": name, "name": name, "notes": "", "parent": null, "taken": 4_000_000_000_u64, "automatic": false, "memory": false,
            "definition": null })
}

/// Changes a book while no gateway is there.
fn edit(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut book: Value = serde_json::from_str(&fs::read_to_string(file).expect("a book")).expect("JSON");
    change(&mut book);
    fs::write(file, book.to_string()).expect("written");
}
