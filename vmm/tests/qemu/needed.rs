//! Nothing that a chain needs is deleted or written to, wherever what needs it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmm::{
    BackingFile, Definition, Disk, DiskBus, DiskError, DiskFormat, Disks, Layout, NewImage, NewSize, Preallocation,
    Resize, VmState,
};

use crate::kit::{TestHost, firmware};

const MIB: u64 = 1 << 20;

async fn create(disks: &Disks, path: &Path, backing: Option<&Path>) {
    let image = NewImage {
        path: path.into(),
        size: Some(MIB),
        format: Some(DiskFormat::Qcow2),
        layout: Layout::Dynamic,
        backing: backing.map(|base| BackingFile { source: base.to_path_buf().into(), format: Some(DiskFormat::Qcow2) }),
        preallocation: Preallocation::Off,
    };
    disks.create(image).await.expect("created");
}

/// Runs `qemu-img`, as somebody does who does not ask Fanlight.
fn qemu_img(words: &[&str], paths: &[&Path]) {
    let done = Command::new("qemu-img").args(words).args(paths).output().expect("qemu-img runs");
    assert!(done.status.success(), "{done:?}");
}

fn overlay_by_hand(base: &Path, overlay: &Path) {
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"], &[base, overlay]);
}

fn folder(host: &TestHost, name: &str) -> PathBuf {
    let folder = host.folder().join(name);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn disk(path: &Path) -> Disk {
    Disk::new(path.to_path_buf(), DiskFormat::Qcow2, DiskBus::Scsi)
}

fn with(name: &str, disks: Vec<Disk>) -> Definition {
    Definition { disks, ..firmware(name) }
}

async fn stays(disks: &Disks, path: &Path, words: &str) {
    for forced in [false, true] {
        let deleted = if forced { disks.delete_by_force(path).await } else { disks.delete(path).await };
        let error = deleted.expect_err("needed");
        assert!(matches!(error, DiskError::Needed { .. }) && error.to_string().contains(words), "{error}");
    }
    assert!(path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_stays_whose_overlay_is_elsewhere() {
    let mut host = TestHost::new().await;
    let (here, there) = (folder(&host, "here"), folder(&host, "there"));
    let [base, ours, had] = [here.join("base.qcow2"), there.join("ours"), there.join("had.qcow2")];
    let disks = host.host().disks();
    create(&disks, &base, None).await;
    create(&disks, &ours, Some(&base)).await;
    stays(&disks, &base, "there/ours stands on it").await;
    // VMs had some that somebody made by hand, and have them no more.
    disks.delete(&ours).await.expect("nothing stands on it");
    let detached = there.join("detached");
    for overlay in [&had, &detached] {
        overlay_by_hand(&base, overlay);
    }
    host.host().create(with("had", vec![disk(&had)])).await.expect("created");
    host.host().delete("had").await.expect("deleted");
    let vm = host.host().create(with("has", vec![disk(&detached)])).await.expect("created");
    vm.detach_disk(&detached.display().to_string()).await.expect("detached");
    drop(vm);
    host.reopen().await;
    stays(&host.host().disks(), &base, "there/detached stands on it").await;
    fs::remove_file(&detached).expect("removed");
    let disks = host.host().disks();
    stays(&disks, &base, "there/had.qcow2 stands on it").await;
    let error = disks.resize(Resize { path: base.clone(), format: None, size: NewSize::By(MIB), shrink: false }).await;
    assert!(error.expect_err("stood on").to_string().ends_with("there/had.qcow2 stands on it"));
    fs::remove_file(&had).expect("removed");
    disks.delete(&base).await.expect("what stood on it is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_stays_whose_overlay_has_any_name_among_any_number_of_files() {
    let host = TestHost::new().await;
    let (here, disks) = (folder(&host, "here"), host.host().disks());
    let [base, snapshot] = ["base.qcow2", "base.snap1"].map(|name| here.join(name));
    create(&disks, &base, None).await;
    for number in 0..1500 {
        fs::write(here.join(format!("{number:04}.raw")), "").expect("written");
    }
    // Relative, as libvirt does not write it and people do.
    let words = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", "base.snap1"];
    let made = Command::new("qemu-img").current_dir(&here).args(words).status();
    assert!(made.expect("qemu-img runs").success());
    stays(&disks, &base, "base.snap1 stands on it").await;
    let data = here.join("data.raw");
    let option = format!("data_file={}", data.display());
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &option], &[&here.join("whole"), Path::new("1M")]);
    stays(&disks, &data, "it holds bytes of").await;
    disks.delete(&snapshot).await.expect("nothing stands on it");
    disks.delete(&base).await.expect("nothing stands on it any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disks_of_a_vm_stay_whose_definition_is_refused() {
    let mut host = TestHost::new().await;
    let (here, disks) = (folder(&host, "here"), host.host().disks());
    let [base, own] = ["base.qcow2", "own.qcow2"].map(|name| here.join(name));
    create(&disks, &base, None).await;
    let far = folder(&host, "far").join("far.qcow2");
    overlay_by_hand(&base, &far);
    create(&disks, &own, None).await;
    host.host().create(with("slip", vec![disk(&own), disk(&far)])).await.expect("created");
    let file = host.config.definitions.join("slip.toml");
    let text = fs::read_to_string(&file).expect("there");
    for slip in
        [text.replace("vcpus = 1", "vcpus = 0"), text.replace("[[disk]]", "[[disk"), format!("{text}\nnonsense = 1")]
    {
        assert_ne!(slip, text);
        fs::write(&file, &slip).expect("written");
        host.reopen().await;
        let disks = host.host().disks();
        assert!(host.host().find("slip").is_none());
        stays(&disks, &own, "it is a disk of VM slip").await;
        stays(&disks, &far, "it is a disk of VM slip").await;
        stays(&disks, &base, "far.qcow2 stands on it").await;
    }
    fs::remove_file(&file).expect("removed");
    host.host().disks().delete(&own).await.expect("nobody names it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_stays_whose_overlay_is_among_the_images_made_for_vms() {
    let host = TestHost::new().await;
    let disks = host.host().disks();
    let (base, images) = (folder(&host, "library").join("disk0.qcow2"), folder(&host, "images"));
    create(&disks, &base, None).await;
    let overlay = images.join("three-disk0.qcow2");
    overlay_by_hand(&base, &overlay);
    stays(&disks, &base, "three-disk0.qcow2 stands on it").await;
    let tree = disks.tree(&[]).await.expect("a tree");
    assert_eq!((&tree[0].path, &tree[0].above[0].path), (&base, &overlay));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_needed_is_deleted_by_force_only() {
    let host = TestHost::new().await;
    let (here, disks) = (folder(&host, "here"), host.host().disks());
    let [kept, entry] = ["kept.qcow2", "entry.qcow2"].map(|name| here.join(name));
    create(&disks, &kept, None).await;
    create(&disks, &entry, None).await;
    qemu_img(&["snapshot", "-c", "before"], &[&kept]);
    fs::write(here.join("vm.toml"), "[[disk]]\npath = \"entry.qcow2\"\n").expect("written");
    for (path, words) in [(&kept, "a state of a VM is kept in it"), (&entry, "vm.toml names it")] {
        let error = disks.delete(path).await.expect_err("perhaps needed");
        assert!(matches!(error, DiskError::Doubted { .. }) && error.to_string().contains(words), "{error}");
        disks.delete_by_force(path).await.expect("its owner knows");
        assert!(!path.exists());
    }
    // An overlay on a share that is not there now.
    let (base, share) = (here.join("base.qcow2"), folder(&host, "share"));
    create(&disks, &base, None).await;
    create(&disks, &share.join("overlay.qcow2"), Some(&base)).await;
    let book = host.folder().join("overlays.json");
    let text = fs::read_to_string(&book).expect("noted");
    assert!(text.contains("\"same_disk\": true"), "{text}");
    fs::write(&book, text.replace("\"same_disk\": true", "\"same_disk\": false")).expect("written");
    fs::rename(&share, here.join("elsewhere")).expect("renamed");
    let error = disks.delete(&base).await.expect_err("perhaps needed").to_string();
    assert!(error.contains("overlay.qcow2 stands on it, and is not there now"), "{error}");
    disks.delete_by_force(&base).await.expect("its owner knows");
    assert!(!fs::read_to_string(&book).expect("there").contains("overlay.qcow2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_does_not_write_to_what_an_overlay_stands_on() {
    let host = TestHost::new().await;
    let (here, disks) = (folder(&host, "here"), host.host().disks());
    let [base, near] = ["base.qcow2", "near"].map(|name| here.join(name));
    let far = folder(&host, "far").join("far.qcow2");
    create(&disks, &base, None).await;
    create(&disks, &far, Some(&base)).await;
    host.host().create(with("off", vec![disk(&far)])).await.expect("created");
    let (writer, other) = (with("writer", vec![disk(&base)]), with("other", Vec::new()));
    let (writer, other) = (host.host().create(writer).await.expect("created"), host.host().create(other).await);
    let other = other.expect("created");
    other.start().await.expect("starts");
    let refused = |error: vmm::RequestError, overlay: &str| {
        let words = format!("{overlay} stands on it, and would be spoilt if a guest wrote to it");
        assert!(error.to_string().contains(&words), "{error}");
    };
    refused(writer.start().await.expect_err("an overlay of a VM that is off"), "far.qcow2");
    assert_eq!(writer.status().state, VmState::Failed);
    refused(other.attach_disk(disk(&base)).await.expect_err("the same"), "far.qcow2");
    let reader = Disk { readonly: true, ..disk(&base) };
    other.attach_disk(reader).await.expect("it only reads");
    other.detach_disk(&base.display().to_string()).await.expect("detached");
    // One that no VM has.
    host.host().delete("off").await.expect("deleted");
    refused(writer.start().await.expect_err("it was noted"), "far.qcow2");
    disks.delete(&far).await.expect("nothing stands on it");
    overlay_by_hand(&base, &near);
    refused(writer.start().await.expect_err("one beside"), "near");
    disks.delete(&near).await.expect("nothing stands on it");
    writer.start().await.expect("nothing stands on it any more");
    // And no overlay is made on what a guest writes to.
    let above = NewImage {
        path: far.clone(),
        size: Some(MIB),
        format: Some(DiskFormat::Qcow2),
        layout: Layout::Dynamic,
        backing: Some(BackingFile { source: base.clone().into(), format: Some(DiskFormat::Qcow2) }),
        preallocation: Preallocation::Off,
    };
    let error = disks.create(above).await.expect_err("in use").to_string();
    assert!(error.contains("VM writer writes it") && !far.exists(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_writes_to_a_raw_disk_keeps_no_other_from_starting() {
    let host = TestHost::new().await;
    let (here, disks) = (folder(&host, "here"), host.host().disks());
    let [victim, liar] = ["victim.qcow2", "liar.img"].map(|name| here.join(name));
    create(&disks, &victim, None).await;
    overlay_by_hand(&victim, &liar);
    let raw = Disk::new(liar.clone(), DiskFormat::Raw, DiskBus::Scsi);
    host.host().create(with("liar", vec![raw])).await.expect("created");
    let vm = host.host().create(with("victim", vec![disk(&victim)])).await.expect("created");
    vm.start().await.expect("a guest's bytes decide nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_are_not_restored_below_an_overlay() {
    let host = TestHost::new().await;
    let (here, disks) = (folder(&host, "here"), host.host().disks());
    let (base, above) = (here.join("base.qcow2"), here.join("above"));
    create(&disks, &base, None).await;
    let vm = host.host().create(with("back", vec![disk(&base)])).await.expect("created");
    vm.save_snapshot("before".parse().expect("a name")).await.expect("saved");
    overlay_by_hand(&base, &above);
    let error = vm.restore_disks("before".parse().expect("a name")).await.expect_err("stood on").to_string();
    assert!(error.contains("above stands on it"), "{error}");
    fs::remove_file(&above).expect("removed");
    vm.restore_disks("before".parse().expect("a name")).await.expect("restored");
}
