//! Images of other programs' formats, with a guest that uses them.

use std::fs;
use std::path::Path;
use std::process::Command;

use vmm::{Convert, Definition, Disk, DiskBus, DiskFormat, Layout, Made, NewImage, Preallocation, VmState};

use crate::checkpoints::done;
use crate::firmware::runs_as_first_program;
use crate::kit::{TestHost, console_guest, reaches};

const SIZE: u64 = 8 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_reads_a_vmdk_and_writes_a_fixed_vhd() {
    let host = TestHost::new().await;
    let disks = host.host().disks();
    let name = |name: &str| host.folder().join(name);
    // Another program's: nothing here makes one.
    let (bytes, vmdk) = (not_compressible(), name("other.vmdk"));
    fs::write(name("other.raw"), &bytes).expect("written");
    convert("raw", &name("other.raw"), "vmdk", &vmdk);
    let vhd = NewImage {
        path: name("fixed.vhd"),
        size: Some(SIZE),
        format: None,
        layout: Layout::Fixed,
        backing: None,
        preallocation: Preallocation::Off,
    };
    assert!(matches!(disks.create(vhd).await.expect("created"), Made::Image(_)));

    let read = Disk { readonly: true, ..Disk::new(vmdk.clone(), DiskFormat::Vmdk, DiskBus::Virtio) };
    let written = Disk::new(name("fixed.vhd"), DiskFormat::Vhd, DiskBus::Virtio);
    let script = "mount -t devtmpfs dev /dev; modprobe virtio_blk; until [ -b /dev/vdb ]; do :; done; \
                  dd if=/dev/vda of=/dev/vdb bs=1M && sync && poweroff -f";
    let definition = runs_as_first_program(console_guest("formats"), script);
    let vm = host.host().create(Definition { disks: vec![read, written], ..definition }).await.expect("created");
    vm.start().await.expect("starts");
    let status = reaches(&vm, VmState::Stopped).await;
    assert_eq!(status.reason.as_deref(), Some("the guest shut down"));
    convert("vpc", &name("fixed.vhd"), "raw", &name("vhd.raw"));
    assert!(fs::read(name("vhd.raw")).expect("read").starts_with(&bytes), "what the guest wrote is what it read");
    assert_eq!(disks.info(&name("fixed.vhd"), None).await.expect("described").layout, Some(Layout::Fixed));

    let target = name("from-vmdk.qcow2");
    let request = Convert {
        source: vmdk,
        source_format: None,
        target: target.clone(),
        format: None,
        layout: Layout::Dynamic,
        rate: None,
    };
    done(&host, disks.convert(request).await.expect("begun")).await;
    convert("qcow2", &target, "raw", &name("qcow2.raw"));
    assert!(fs::read(name("qcow2.raw")).expect("read") == bytes, "the bytes are others");
}

/// The bytes of a disk of which no block is like another.
fn not_compressible() -> Vec<u8> {
    (0..SIZE / 8).flat_map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

fn convert(format: &str, from: &Path, into: &str, to: &Path) {
    let made = Command::new("qemu-img").args(["convert", "-f", format, "-O", into]).arg(from).arg(to).status();
    assert!(made.expect("qemu-img runs").success());
}
