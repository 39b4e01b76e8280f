//! Guests whose memory follows their need.

use std::time::Duration;

use vmm::memory::{PoolConfig, Reason, VmMemoryView};
use vmm::{Definition, DiskFormat, DynamicMemory, Vm, VmState};

use crate::checkpoints::{create, done};
use crate::kit::{TestHost, firmware, shell, soon, types};
use crate::overlays::image;
use crate::snapshots::Guest;

const MIB: u64 = 1 << 20;

/// A host whose VMs share `pool` MiB.
async fn host(pool: u64) -> TestHost {
    TestHost::with(|config| {
        config.memory.pool = PoolConfig { size: Some(pool * MIB), reserve: Some(16 * MIB) };
        config.memory.tuning.reclaim_after = Duration::from_secs(5);
    })
    .await
}

fn dynamic(guest: Definition, startup: u32, minimum: u32, maximum: u32) -> Definition {
    Definition { memory: startup, dynamic_memory: Some(DynamicMemory::between(minimum, maximum)), ..guest }
}

/// Waits until `enough` says so of the VM's memory.
async fn memory(vm: &Vm, what: &str, enough: impl Fn(&VmMemoryView) -> bool) -> VmMemoryView {
    let look = async {
        loop {
            if let Some(view) = vm.memory().filter(|view| enough(view)) {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(3 * crate::kit::PATIENCE, look)
        .await
        .unwrap_or_else(|_| panic!("{what}: never, but {:?}", vm.memory()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_gets_what_it_needs_and_gives_back_what_it_does_not() {
    let mut host = host(2048).await;
    let disks = vec![image(host.folder(), "kept.qcow2", DiskFormat::Qcow2)];
    let guest = Definition { disks, ..Guest::definition("one") };
    let vm = host.host().create(dynamic(guest, 384, 192, 1024)).await.expect("created");
    vm.start().await.expect("starts");
    shell(&vm.console()).await;
    let idle = memory(&vm, "a report", |view| view.demand.is_some()).await;
    assert_eq!(idle.assigned, 384 * MIB, "{idle:?}");
    memory(&vm, "spare memory is given back", |view| view.assigned < 376 * MIB).await;
    let load = "mount -t tmpfs -o size=2g t /mnt; for i in $(seq 30); do dd if=/dev/zero of=/mnt/$i bs=1M count=12; sleep 1; done\n";
    types(&vm.console(), load).await;
    let grown = memory(&vm, "growth", |view| view.assigned > 560 * MIB).await;
    assert_eq!(grown.killed.unwrap_or(0), 0, "{grown:?}");
    // Another gateway finds the memory as it is.
    drop(vm);
    host.reopen().await;
    let vm = host.vm("one");
    let back = memory(&vm, "a report to another gateway", |view| view.demand.is_some()).await;
    assert!(back.assigned > 560 * MIB, "{back:?}");
    let mut guest = Guest::at(&vm).await;
    guest.run("until [ -e /mnt/30 ]; do sleep 1; done").await;
    let sum = "md5sum </mnt/random";
    let before = guest.tell(&format!("head -c 24000000 /dev/urandom >/mnt/random; {sum}")).await;
    let checkpoints = host.host().checkpoints(&vm);
    done(&host, create(&checkpoints, "grown", "").await).await;
    guest.run("umount /mnt").await;
    let idle = memory(&vm, "memory is given back", |view| view.assigned + 24 * MIB < back.assigned).await;
    assert_eq!(idle.killed.unwrap_or(0), 0, "{idle:?}");

    // What was plugged in then is there again, with all that was in it.
    done(&host, checkpoints.revert("grown").await.expect("begun")).await;
    assert_eq!(vm.status().state, VmState::Running);
    assert_eq!((guest.tell(sum).await, guest.tell("ls /mnt | wc -l").await), (before.clone(), "31".into()));
    let again = memory(&vm, "the memory that it had", |view| view.assigned > 560 * MIB).await;
    assert_eq!(again.killed.unwrap_or(0), 0, "{again:?}");
    // And into a QEMU that starts with less.
    vm.power_off().await.expect("switches off");
    done(&host, checkpoints.revert("grown").await.expect("begun")).await;
    assert_eq!(Guest::at(&vm).await.tell(sum).await, before);
    memory(&vm, "the memory that it had", |view| view.assigned > 560 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_start_up_memory_does_not_fit_is_refused_with_the_numbers() {
    let host = host(500).await;
    let first = host.host().create(dynamic(firmware("first"), 320, 320, 512)).await.expect("created");
    let second = host.host().create(dynamic(firmware("second"), 256, 128, 512)).await.expect("created");
    first.start().await.expect("starts");
    let refused = second.start().await.expect_err("does not fit").to_string();
    assert!(refused.contains("its start-up memory of 256 MiB does not fit"), "{refused}");
    assert!(refused.contains("share 500 MiB") && refused.contains("cannot give back 320 MiB"), "{refused}");
    assert_eq!(second.status().state, vmm::VmState::Created);
    first.power_off().await.expect("switches off");
    second.start().await.expect("starts now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_without_a_driver_keeps_what_it_started_with() {
    let host = host(2048).await;
    let vm = host.host().create(dynamic(firmware("mute"), 128, 64, 512)).await.expect("created");
    vm.start().await.expect("starts");
    let view = memory(&vm, "a look", |_| true).await;
    assert_eq!((view.assigned, view.reason), (128 * MIB, Reason::Starting));
    assert_eq!(host.host().memory().expect("at least one VM shares").pool, 2048 * MIB);
    vm.power_off().await.expect("switches off");
    soon("nothing to look at", async {
        while host.host().memory().is_some() || vm.memory().is_some() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}
