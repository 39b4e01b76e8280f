//! What a guest finds its disks on.

use std::fs;
use std::path::PathBuf;

use vmm::{Controllers, Definition, Disk, DiskBus, DiskFormat, DiskSource, IdeModel, ScsiModel};

use crate::guest_disk::TellTale;
use crate::kit::{TestHost, console_guest, shell, soon};

/// A disk that a guest knows by its size, in MiB.
fn disk(host: &TestHost, size: u64, bus: DiskBus, controller: u8) -> Disk {
    let path: PathBuf = host.folder().join(format!("{size}.raw"));
    fs::File::create(&path).and_then(|file| file.set_len(size << 20)).expect("an image");
    Disk { controller, serial: Some(format!("S-{size}")), ..Disk::new(path, DiskFormat::Raw, bus) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_finds_its_disks_on_every_controller() {
    let host = TestHost::new().await;
    let mut telltale = TellTale::new(&host);
    let disks = vec![
        telltale.disk(),
        disk(&host, 2, DiskBus::Virtio, 0),
        disk(&host, 3, DiskBus::Scsi, 0),
        disk(&host, 4, DiskBus::Scsi, 1),
        disk(&host, 5, DiskBus::Scsi, 2),
        disk(&host, 6, DiskBus::Ide, 0),
        disk(&host, 7, DiskBus::Ide, 1),
        disk(&host, 8, DiskBus::Ide, 1),
        disk(&host, 9, DiskBus::Ide, 2),
        Disk::cdrom(DiskSource::Empty, DiskBus::Ide),
    ];
    let controllers = Controllers {
        ide: vec![IdeModel::Ahci, IdeModel::Piix, IdeModel::Ahci],
        scsi: vec![ScsiModel::Virtio, ScsiModel::Lsi, ScsiModel::Virtio],
    };
    let definition = Definition { disks, controllers, ..console_guest("controllers") };
    let vm = host.host().create(definition).await.expect("created");
    vm.start().await.expect("starts");
    shell(&vm.console()).await;
    let block = |size: u64| (size << 10).to_string();
    let has = |said: &str, size| said.lines().any(|line| line.split_whitespace().nth(2) == Some(&block(size)));
    // Drivers are loaded one by one, as the devices are found.
    soon("all disks", async {
        while !((2..=9).all(|size| has(&telltale.said, size)) && telltale.said.contains("sr0")) {
            telltale.ask(&vm, "cat /proc/partitions; ls /sys/block; cat /sys/block/vdb/serial").await;
        }
    })
    .await;
    assert!(telltale.said.ends_with("S-2"), "{}", telltale.said);
}
