//! Disks that go to places that are no plain files, and come from there, while their guest writes.

use std::fs;
use std::process::Command;

use vmm::{Disk, DiskBus, DiskFormat, DiskSource, MoveDisk, Moved, VmState};

use crate::disk_server::{NbdServer, certificates};
use crate::kit::{TestHost, soon};
use crate::moves::{SIZE, Scribe, begin, file, moved, moving, plain, sha256, to};
use crate::places::{LoopDevice, Mount};

/// Moves the scribe's log while it writes.
async fn goes(host: &TestHost, scribe: &Scribe, target: MoveDisk) -> Moved {
    let vm = host.vm("scribe");
    let source = moving(&vm);
    let job = begin(host, &vm, target.clone()).await;
    let moved = moved(host, &job).await;
    assert_eq!((&moved.source, &moved.target), (&source.source.to_string(), &target.target));
    assert_eq!(moving(&vm).source.to_string(), target.target);
    assert!(moved.source_kept && moved.stood_still.is_some() && moved.compared >= SIZE, "{moved:?}");
    let number = scribe.number();
    soon("the guest to write on", scribe.past(number)).await;
    assert_eq!(vm.status().state, VmState::Running);
    moved
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_goes_to_a_device_a_server_and_a_share_and_back_while_its_guest_writes() {
    let host = TestHost::new().await;
    certificates(host.folder());
    let (backing, export) = (host.folder().join("device.raw"), host.folder().join("export.raw"));
    for path in [&backing, &export] {
        fs::File::create(path).and_then(|file| file.set_len(SIZE)).expect("an image");
    }
    let scribe = Scribe::new(&host);
    let vm = host.host().create(scribe.definition()).await.expect("created");
    vm.start().await.expect("starts");
    scribe.write(&vm).await;

    // Skipped by name where it cannot be made.
    let device = LoopDevice::over(&backing);
    if let Some(device) = &device {
        let words = device.0.display().to_string();
        let moved = goes(&host, &scribe, to(words.clone())).await;
        assert_eq!(moved.format, DiskFormat::Raw);
        let qcow2 = MoveDisk { format: Some(DiskFormat::Qcow2), ..to(words) };
        let error = host.host().disks().move_disk(&vm, "disk1", qcow2).await.expect_err("in use").to_string();
        assert!(error.contains("it is a disk of VM scribe"), "{error}");
    }

    let server = NbdServer::start(&export, Some(host.folder())).await;
    goes(&host, &scribe, to(server.url())).await;
    assert!(matches!(moving(&vm).source, DiskSource::Remote(_)));
    // The device is whole, as it was when the guest went over to the server.
    drop(device.inspect(|_| assert!(fs::read(&backing).expect("there")[4096..].starts_with(b"record 1 of the log\n"))));

    // What is mounted from a server is a path like any other: a file system in memory stands for it.
    let share = Mount::in_memory(3 * SIZE, host.folder().join("share-stands-for-nfs"));
    if let Some(share) = &share {
        let target = share.0.join("log.qcow2").display().to_string();
        let on_server = fs::read(&export);
        let moved = goes(&host, &scribe, MoveDisk { verify: true, ..to(target) }).await;
        assert_eq!(moved.format, DiskFormat::Qcow2);
        // The server has all of it, as it was at the switch, and more than there was when the move began.
        let at_switch = fs::read(&export).expect("there");
        assert_eq!(moved.sha256, Some(sha256(&at_switch, host.folder())));
        assert_ne!(on_server.expect("there"), at_switch, "the guest wrote nothing meanwhile");
    }

    let (_, request) = file(&host, "home.raw");
    goes(&host, &scribe, request).await;
    drop((server, share));
    let number = scribe.number();
    soon("the guest to write on without any of them", scribe.past(number)).await;
    vm.power_off().await.expect("off");
    scribe.check(&vm);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_stands_on_another_goes_with_what_it_stands_on_and_leaves_that_as_it_is() {
    let host = TestHost::new().await;
    let mut scribe = Scribe::new(&host);
    let (base, overlay) = (host.folder().join("log"), host.folder().join("overlay.qcow2"));
    let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
    let made = Command::new("qemu-img").args(words).arg(&base).arg(&overlay).status();
    assert!(made.expect("qemu-img runs").success());
    scribe.disks[2] = Disk::new(overlay.clone(), DiskFormat::Qcow2, DiskBus::Virtio);
    let before = sha256(&fs::read(&base).expect("there"), host.folder());
    let vm = host.host().create(scribe.definition()).await.expect("created");
    vm.start().await.expect("starts");
    scribe.write(&vm).await;
    let source = moving(&vm);
    let (path, request) = file(&host, "alone.qcow2");
    let moved = goes(&host, &scribe, MoveDisk { verify: true, ..request }).await;
    assert_eq!(moved.sha256, Some(sha256(&plain(&source), host.folder())));
    assert_eq!(sha256(&fs::read(&base).expect("there"), host.folder()), before, "nobody writes to a base");
    let info = host.host().disks().info(&path, None).await.expect("read");
    assert_eq!((info.size, info.backing.len()), (SIZE, 0), "{info:?}");
    // It is whole without them.
    fs::remove_file(overlay).expect("removed");
    fs::remove_file(base).expect("removed");
    let number = scribe.number();
    soon("the guest to write on", scribe.past(number)).await;
    vm.power_off().await.expect("off");
    scribe.check(&vm);
}
