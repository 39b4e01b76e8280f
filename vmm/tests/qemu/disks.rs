//! Disk images, with the real `qemu-img`.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use vmm::{
    BackingFile, Convert, Definition, Disk, DiskBus, DiskError, DiskFormat, Disks, ImageInfo, Job, JobId, JobState,
    Layout, Made, NewImage, NewSize, Preallocation, Resize,
};

use crate::kit::{PATIENCE, TestHost, firmware, soon};

const MIB: u64 = 1 << 20;

fn new(path: PathBuf, size: u64) -> NewImage {
    NewImage {
        path,
        size: Some(size),
        format: None,
        layout: Layout::Dynamic,
        backing: None,
        preallocation: Preallocation::Off,
    }
}

fn over(path: PathBuf, backing: &Path) -> NewImage {
    NewImage {
        size: None,
        backing: Some(BackingFile { source: backing.to_path_buf().into(), format: None }),
        ..new(path, 0)
    }
}

fn convert(source: &Path, target: PathBuf) -> Convert {
    Convert { source: source.into(), source_format: None, target, format: None, layout: Layout::Dynamic, rate: None }
}

fn resize(path: &Path, size: NewSize) -> Resize {
    Resize { path: path.into(), format: None, size, shrink: false }
}

async fn create(disks: &Disks, image: NewImage) -> ImageInfo {
    match disks.create(image).await.expect("created") {
        Made::Image(info) => *info,
        Made::Job(job) => panic!("a job: {job:?}"),
    }
}

/// A file of `size` bytes, none of which can be guessed.
fn random_file(path: &Path, size: u64) {
    let mut random = fs::File::open("/dev/urandom").map(|file| std::io::Read::take(file, size)).expect("random");
    std::io::copy(&mut random, &mut fs::File::create(path).expect("a file")).expect("written");
}

async fn ended(host: &TestHost, id: JobId) -> Job {
    let jobs = host.host().jobs();
    soon("the end of the job", async {
        let mut job = jobs.get(id).expect("known");
        while !job.state.is_final() {
            job = jobs.wait(id, job.revision, PATIENCE).await.expect("known");
        }
        job
    })
    .await
}

async fn done(host: &TestHost, job: Job) -> ImageInfo {
    let job = ended(host, job.id).await;
    assert_eq!(job.state, JobState::Done, "{job:?}");
    serde_json::from_value(job.result.expect("an image")).expect("an image")
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).expect("there").map(|entry| entry.expect("a file").file_name());
    let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_all_formats_are_exactly_as_large_as_asked_for() {
    let host = TestHost::new().await;
    let disks = host.host().disks();
    // No number of cylinders, heads and sectors makes this size.
    let size = 100 * MIB + 512;
    for (name, layout) in [
        ("a.img", Layout::Dynamic),
        ("a.qcow2", Layout::Dynamic),
        ("a.vhd", Layout::Dynamic),
        ("fixed.vhd", Layout::Fixed),
    ] {
        let path = host.folder().join(name);
        let info = create(&disks, NewImage { layout, ..new(path.clone(), size - 1) }).await;
        assert_eq!((info.size, info.path.as_path()), (size, path.as_path()));
        assert_eq!(info, disks.info(&path, None).await.expect("read again"));
        assert_eq!(info.layout, (info.format == DiskFormat::Vhd).then_some(layout));
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600, "guests' data is for nobody else");
        assert!(matches!(disks.create(new(path.clone(), size)).await, Err(DiskError::Exists(_))));
    }
    // MS-VHDX: whole sectors are enough, but QEMU wants its own measure.
    let vhdx = create(&disks, new(host.folder().join("a.vhdx"), 64 * MIB)).await;
    assert_eq!((vhdx.size, vhdx.layout), (64 * MIB, Some(Layout::Dynamic)));
}

#[tokio::test(flavor = "multi_thread")]
async fn space_that_is_reserved_is_there() {
    let host = TestHost::new().await;
    let disks = host.host().disks();
    for (name, layout, preallocation) in [
        ("a.img", Layout::Dynamic, Preallocation::Falloc),
        ("b.img", Layout::Dynamic, Preallocation::Full),
        ("c.qcow2", Layout::Dynamic, Preallocation::Falloc),
        ("d.vhd", Layout::Fixed, Preallocation::Falloc),
        ("e.vhdx", Layout::Fixed, Preallocation::Falloc),
    ] {
        let image = NewImage { layout, preallocation, ..new(host.folder().join(name), 16 * MIB) };
        let Made::Job(job) = disks.create(image).await.expect("begun") else { panic!("{name} takes no job") };
        let info = done(&host, *job).await;
        assert!(info.on_disk >= Some(16 * MIB), "{info:?}");
    }
    let too_large = NewImage { preallocation: Preallocation::Falloc, ..new(host.folder().join("f.img"), 1 << 49) };
    let error = disks.create(too_large).await.expect_err("no space").to_string();
    assert!(error.contains("bytes, and"), "{error}");
    assert!(!host.folder().join("f.img").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_the_same_after_a_journey_through_all_formats() {
    let host = TestHost::new().await;
    let disks = host.host().disks();
    let source = host.folder().join("a.img");
    random_file(&source, 5 * MIB);
    let before = fs::read(&source).expect("read");
    fs::OpenOptions::new().write(true).open(&source).and_then(|file| file.set_len(32 * MIB)).expect("stretched");
    let mut from = source;
    for (name, layout) in [
        ("b.qcow2", Layout::Dynamic),
        ("c.vhdx", Layout::Fixed),
        ("d.vhd", Layout::Fixed),
        ("e.vhdx", Layout::Dynamic),
        ("f.vhd", Layout::Dynamic),
        ("g.raw", Layout::Dynamic),
    ] {
        let to = host.folder().join(name);
        let job = disks.convert(Convert { layout, ..convert(&from, to.clone()) }).await.expect("begun");
        let info = done(&host, job).await;
        assert_eq!((info.size, &info.path), (32 * MIB, &to));
        from = to;
    }
    let after = fs::read(&from).expect("read");
    assert!(after.starts_with(&before) && after[before.len()..].iter().all(|byte| *byte == 0));
    assert_eq!(after.len() as u64, 32 * MIB);
    assert!(matches!(disks.convert(convert(&from, from.clone())).await, Err(DiskError::Exists(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_tells_its_progress_and_leaves_nothing_when_cancelled() {
    let host = TestHost::new().await;
    let disks = host.host().disks();
    let source = host.folder().join("a.img");
    random_file(&source, 24 * MIB);
    let slowly = Convert { rate: Some(4 * MIB), ..convert(&source, host.folder().join("b.qcow2")) };
    let before = names(host.folder());
    let job = disks.convert(slowly).await.expect("begun");
    let jobs = host.host().jobs();
    let half_way = soon("some progress", async {
        let mut now = job.clone();
        while now.progress.done == 0 {
            now = jobs.wait(job.id, now.revision, PATIENCE).await.expect("known");
        }
        now
    })
    .await;
    assert_eq!((half_way.step.as_deref(), half_way.progress.total), (Some("copying"), 24 * MIB));
    assert_eq!(names(host.folder()).len(), before.len() + 2, "the name is kept, and the file is made beside it");
    jobs.cancel(job.id).expect("it runs");
    assert_eq!(ended(&host, job.id).await.state, JobState::Cancelled);
    assert_eq!(names(host.folder()), before);
}

/// Stands in for `qemu-img`: the same, but copies find no room.
const FULL_DISK_QEMU_IMG: &str = r#"#!/bin/sh
[ "$1" = convert ] || exec qemu-img "$@"
for target; do :; done
printf half >"$target"
echo 'qemu-img: error while writing at byte 0: No space left on device' >&2
exit 1
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_cannot_be_written_says_why_and_leaves_nothing() {
    let mut host = TestHost::new().await;
    let program = host.folder().join("qemu-img");
    fs::write(&program, FULL_DISK_QEMU_IMG).expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("executable");
    host.config.qemu = Some(host.folder().join("qemu-system-x86_64"));
    host.reopen().await;
    let source = host.folder().join("a.img");
    random_file(&source, MIB);
    let before = names(host.folder());
    let job = host.host().disks().convert(convert(&source, host.folder().join("b.vhdx"))).await.expect("begun");
    let job = ended(&host, job.id).await;
    assert_eq!(job.state, JobState::Failed);
    let full = "qemu-img: error while writing at byte 0: No space left on device";
    assert_eq!(job.problem.as_deref(), Some(full));
    assert_eq!(names(host.folder()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_becomes_larger_and_smaller_only_when_asked_for_by_name() {
    let host = TestHost::new().await;
    let disks = host.host().disks();
    let path = host.folder().join("a.qcow2");
    create(&disks, new(path.clone(), 16 * MIB)).await;
    let Made::Image(info) = disks.resize(resize(&path, NewSize::By(MIB))).await.expect("larger") else {
        panic!("a job")
    };
    assert_eq!(info.size, 17 * MIB);
    let error = disks.resize(resize(&path, NewSize::To(MIB))).await.expect_err("smaller").to_string();
    assert!(error.contains("loses the last 16777216"), "{error}");
    let smaller = Resize { shrink: true, ..resize(&path, NewSize::To(MIB)) };
    let Made::Image(info) = disks.resize(smaller).await.expect("smaller") else { panic!("a job") };
    assert_eq!(info.size, MIB);
    create(&disks, over(host.folder().join("b.qcow2"), &path)).await;
    let error = disks.resize(resize(&path, NewSize::By(MIB))).await.expect_err("stood on").to_string();
    assert!(error.ends_with("b.qcow2 stands on it"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vhd_that_becomes_larger_keeps_what_is_in_it() {
    let host = TestHost::new().await;
    let disks = host.host().disks();
    let source = host.folder().join("a.img");
    random_file(&source, 3 * MIB);
    for (name, layout) in
        [("a.vhd", Layout::Fixed), ("b.vhd", Layout::Dynamic), ("b.vhdx", Layout::Dynamic), ("c.vhdx", Layout::Fixed)]
    {
        let path = host.folder().join(name);
        let job = disks.convert(Convert { layout, ..convert(&source, path.clone()) }).await.expect("begun");
        done(&host, job).await;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("its owner's");
        let Made::Job(job) = disks.resize(resize(&path, NewSize::To(40 * MIB))).await.expect("begun") else {
            panic!("no job")
        };
        let info = done(&host, *job).await;
        assert_eq!((info.size, info.layout), (40 * MIB, Some(layout)));
        assert!(layout == Layout::Fixed || info.on_disk < Some(16 * MIB), "it stays thin: {info:?}");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o640, "its mode stays");
        let back = host.folder().join(format!("{name}.raw"));
        done(&host, disks.convert(convert(&path, back.clone())).await.expect("begun")).await;
        assert!(fs::read(&back).expect("read").starts_with(&fs::read(&source).expect("read")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_running_vm_writes_to_is_left_alone_and_its_user_is_named() {
    let host = TestHost::new().await;
    let disks = host.host().disks();
    let path = host.folder().join("a.qcow2");
    create(&disks, new(path.clone(), 16 * MIB)).await;
    let disk = Disk::new(path.clone(), DiskFormat::Qcow2, DiskBus::Virtio);
    let vm = host.host().create(Definition { disks: vec![disk], ..firmware("web01") }).await.expect("created");
    vm.start().await.expect("starts");
    let pid = vm.status().pid.expect("a process");
    let info = disks.info(&path, None).await.expect("a guest is not disturbed");
    let [user] = &info.users[..] else { panic!("one user: {info:?}") };
    assert_eq!((user.vm.as_deref(), user.pid, user.writes, user.locks), (Some("web01"), pid, true, true));
    let used = format!("{} is in use: VM web01 writes it (process {pid})", path.display());
    let target = host.folder().join("b.raw");
    assert_eq!(disks.convert(convert(&path, target.clone())).await.expect_err("used").to_string(), used);
    let smaller = Resize { shrink: true, ..resize(&path, NewSize::To(MIB)) };
    let error = disks.resize(smaller).await.expect_err("used").to_string();
    assert!(error.contains("VM web01 is on; a disk becomes smaller only while its VM is off"), "{error}");
    assert_eq!(disks.create(over(target.clone(), &path)).await.expect_err("not qcow2").to_string(), used);
    let needed = format!("{} is needed: it is a disk of VM web01", path.display());
    assert_eq!(disks.delete(&path).await.expect_err("named").to_string(), needed);
    vm.power_off().await.expect("off");
    done(&host, disks.convert(convert(&path, target)).await.expect("free now")).await;
    assert_eq!(disks.delete(&path).await.expect_err("named").to_string(), needed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_cannot_be_removed_before_what_stands_on_it() {
    let host = TestHost::new().await;
    let disks = host.host().disks();
    let [base, middle, top] = ["base.qcow2", "middle.qcow2", "top.qcow2"].map(|name| host.folder().join(name));
    create(&disks, new(base.clone(), 16 * MIB)).await;
    create(&disks, over(middle.clone(), &base)).await;
    let info = create(&disks, over(top.clone(), &middle)).await;
    let chain: Vec<_> = info.backing.iter().map(|image| (image.name.as_str(), image.size)).collect();
    let [middle_name, base_name] = [&middle, &base].map(|path| path.to_str().expect("text"));
    assert_eq!(chain, [(middle_name, Some(16 * MIB)), (base_name, Some(16 * MIB))]);
    let tree = disks.tree(&[host.folder().into()]).await.expect("a tree");
    let [root] = &tree[..] else { panic!("one root: {tree:?}") };
    assert_eq!((&root.path, &root.above[0].path, &root.above[0].above[0].path), (&base, &middle, &top));
    for path in [&base, &middle] {
        assert!(matches!(disks.delete(path).await, Err(DiskError::Needed { .. })));
    }
    for path in [&top, &middle, &base] {
        disks.delete(path).await.expect("nothing stands on it any more");
        assert!(!path.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_is_broken_is_described_as_far_as_it_goes() {
    let host = TestHost::new().await;
    let disks = host.host().disks();
    let (base, top) = (host.folder().join("base.qcow2"), host.folder().join("top.qcow2"));
    create(&disks, new(base.clone(), 16 * MIB)).await;
    create(&disks, over(top.clone(), &base)).await;
    fs::remove_file(&base).expect("removed behind our back");
    let info = disks.info(&top, None).await.expect("described");
    let problem = info.backing[0].problem.as_deref().expect("a problem");
    assert!(problem.contains("No such file"), "{problem}");
    let error = disks.convert(convert(&top, host.folder().join("copy.raw"))).await.expect_err("broken").to_string();
    assert!(error.contains("stands on") && error.contains("No such file"), "{error}");
    let tree = disks.tree(&[host.folder().into()]).await.expect("a tree");
    assert!(tree[0].problem.as_deref().is_some_and(|problem| problem.contains("No such file")), "{tree:?}");
    assert_eq!(tree[0].above[0].path, top);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_pretends_to_be_another_is_not_followed() {
    let host = TestHost::new().await;
    let disks = host.host().disks();
    let secret = host.folder().join("secret.img");
    random_file(&secret, MIB);
    // What a guest could write to its raw disk.
    let pretends = host.folder().join("guest.img");
    let written = NewImage { format: Some(DiskFormat::Qcow2), ..over(pretends.clone(), &secret) };
    create(&disks, written).await;
    let target = host.folder().join("copy.qcow2");
    let error = disks.convert(convert(&pretends, target.clone())).await.expect_err("not clear").to_string();
    assert!(error.contains("its name says raw and its bytes look like qcow2"), "{error}");
    // Its owner knows that it is raw: then it is copied as it is.
    let raw = Convert { source_format: Some(DiskFormat::Raw), ..convert(&pretends, target) };
    let info = done(&host, disks.convert(raw).await.expect("begun")).await;
    assert_eq!(info.size, fs::metadata(&pretends).expect("there").len().next_multiple_of(512));
}
