//! Where the bytes of a guest's disks may be.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use vmm::{
    BackingFile, Definition, Disk, DiskBus, DiskFormat, DiskSource, Layout, Made, NewImage, Preallocation, VmState,
};

use crate::disk_server::{NbdServer, certificates, web_server};
use crate::guest_disk::TellTale;
use crate::kit::{TestHost, console_guest, firmware, shell};
use crate::places::{LoopDevice, Mount};

const MIB: u64 = 1 << 20;

/// An image of which the first bytes are `text`.
fn image(host: &TestHost, name: &str, text: &str) -> PathBuf {
    let path = host.folder().join(name);
    fs::write(&path, text).expect("written");
    fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(2 * MIB)).expect("stretched");
    path
}

fn remote(url: &str) -> DiskSource {
    DiskSource::Remote(url.parse().expect("a URL"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_reads_and_writes_disks_of_servers_and_devices_of_the_host() {
    let host = TestHost::new().await;
    let mut telltale = TellTale::new(&host);
    certificates(host.folder());
    let (export, backing) = (image(&host, "export.raw", "of a server"), image(&host, "device.raw", "of a device"));
    let server = NbdServer::start(&export, Some(host.folder())).await;
    let mut disks = vec![telltale.disk(), Disk::new(remote(&server.url()), DiskFormat::Raw, DiskBus::Virtio)];
    let device = LoopDevice::over(&backing);
    disks.extend(device.as_ref().map(|device| Disk::new(device.0.clone(), DiskFormat::Raw, DiskBus::Virtio)));
    let vm = host.host().create(Definition { disks, ..console_guest("sources") }).await.expect("created");
    vm.start().await.expect("starts");
    shell(&vm.console()).await;
    let both = |server: &str, device_says: &str| {
        if device.is_some() { format!("{server}{device_says}") } else { server.to_owned() }
    };
    let last = if device.is_some() { "vdc" } else { "vdb" };
    let read = "for d in vdb vdc; do [ ! -b /dev/$d ] || head -c 11 /dev/$d; done";
    // One is found after the other.
    let read = format!("until [ -b /dev/{last} ]; do :; done; {read}");
    assert_eq!(telltale.ask(&vm, &read).await, both("of a server", "of a device"));
    let write = "for d in vdb vdc; do [ ! -b /dev/$d ] || echo of a guest! >/dev/$d; done; sync";
    telltale.ask(&vm, write).await;
    vm.power_off().await.expect("off");
    assert!(fs::read(&export).expect("there").starts_with(b"of a guest!"));
    drop(device.inspect(|_| assert!(fs::read(&backing).expect("there").starts_with(b"of a guest!"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_of_a_web_server_is_only_read_and_written_to_in_an_image_that_stands_on_it() {
    let host = TestHost::new().await;
    let mut telltale = TellTale::new(&host);
    let url = web_server(&image(&host, "live.raw", "of the web")).await;
    let overlay = host.folder().join("overlay.qcow2");
    let new = NewImage {
        path: overlay.clone(),
        size: None,
        format: None,
        layout: Layout::Dynamic,
        backing: Some(BackingFile { source: remote(&url), format: None }),
        preallocation: Preallocation::Off,
    };
    let Made::Image(info) = host.host().disks().create(new).await.expect("created") else { panic!("a job") };
    assert_eq!((info.size, info.backing[0].name.as_str(), &info.backing[0].problem), (2 * MIB, url.as_str(), &None));
    let direct = Disk { readonly: true, ..Disk::new(remote(&url), DiskFormat::Raw, DiskBus::Virtio) };
    let disks = vec![telltale.disk(), Disk::new(overlay, DiskFormat::Qcow2, DiskBus::Virtio), direct];
    let vm = host.host().create(Definition { disks, ..console_guest("web") }).await.expect("created");
    vm.start().await.expect("starts");
    shell(&vm.console()).await;
    let read = "until [ -b /dev/vdc ]; do :; done; head -c 10 /dev/vdb; head -c 10 /dev/vdc";
    assert_eq!(telltale.ask(&vm, read).await, "of the webof the web");
    let written = "echo of a guest >/dev/vdb; sync; echo 3 >/proc/sys/vm/drop_caches; head -c 10 /dev/vdb";
    assert_eq!(telltale.ask(&vm, written).await, "of a guest");
    assert_eq!(telltale.ask(&vm, "head -c 10 /dev/vdc; cat /sys/block/vdc/ro").await, "of the web1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_another_name_or_of_another_authority_is_not_trusted() {
    let host = TestHost::new().await;
    let (ours, theirs) = (host.folder().join("ours"), host.folder().join("theirs"));
    certificates(&ours);
    certificates(&theirs);
    let server = NbdServer::start(&image(&host, "export.raw", ""), Some(&ours)).await;
    for (name, url, says) in [
        ("good", server.url(), None),
        ("name", server.url().replace("tls-hostname=disks", "tls-hostname=other"), Some("not match the hostname")),
        ("authority", server.url().replace("/ours/", "/theirs/"), Some("certificate")),
        ("plain", server.url().replace("nbds+", "nbd+").split("&tls").collect::<Vec<_>>()[0].to_owned(), Some("TLS")),
    ] {
        let disks = vec![Disk::new(remote(&url), DiskFormat::Raw, DiskBus::Virtio)];
        let vm = host.host().create(Definition { disks, ..firmware(name) }).await.expect("created");
        let started = vm.start().await.map_err(|error| error.to_string());
        match says {
            None => started.expect("trusted"),
            Some(says) => {
                let error = started.expect_err("not trusted");
                assert!(error.contains(says), "{name}: {error}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_the_host_has_mounted_or_another_guest_writes_is_refused() {
    let host = TestHost::new().await;
    let image = image(&host, "device.raw", "");
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).status();
    assert!(made.expect("mkfs.ext4 runs").success());
    let Some(device) = LoopDevice::over(&image) else { return };
    let path = device.0.display();
    let disks = vec![Disk::new(device.0.clone(), DiskFormat::Raw, DiskBus::Virtio)];
    let vm = host.host().create(Definition { disks: disks.clone(), ..firmware("one") }).await.expect("created");
    let mounted = Mount::of(&device.0, host.folder().join("mnt")).expect("mounted");
    let error = vm.start().await.expect_err("mounted").to_string();
    let place = mounted.0.display();
    assert_eq!(error, format!("cannot start this VM: {path} is in use: {path} is mounted at {place}"));
    drop(mounted);
    vm.start().await.expect("free");
    let other = host.host().create(Definition { disks, ..firmware("two") }).await.expect("created");
    let error = other.start().await.expect_err("used").to_string();
    assert!(error.contains(&format!("{path} is in use: qemu-system-x86 writes it")), "{error}");
    assert_eq!(vm.status().state, VmState::Running);
    vm.power_off().await.expect("off");
    other.start().await.expect("free");
    other.power_off().await.expect("off");
}
