//! Pictures out, keys in.

use console::Size;
use vmm::{Definition, VmState};

use crate::kit::{TestHost, console_guest, longest_run, reaches, sees, shell, types};

#[tokio::test(flavor = "multi_thread")]
async fn the_firmwares_text_is_seen_and_gone_when_the_vm_is_off() {
    let host = TestHost::new().await;
    let vm = host.firmware_vm("text").await;
    let mut viewer = vm.console().viewer();
    viewer.changed().await;
    assert!(viewer.take().scanout.is_none());
    vm.start().await.expect("starts");
    sees(&mut viewer, "text", |_, picture| picture.has_text()).await;
    vm.power_off().await.expect("switches off");
    sees(&mut viewer, "darkness", |update, _| update.scanout_changed && update.scanout.is_none()).await;
    vm.start().await.expect("starts");
    sees(&mut viewer, "text again", |_, picture| picture.has_text()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_screendump_is_what_the_viewer_sees() {
    let host = TestHost::new().await;
    let vm = host.firmware_vm("dump").await;
    vm.start().await.expect("starts");
    let mut viewer = vm.console().viewer();
    sees(&mut viewer, "text", |_, picture| picture.has_text()).await;
    let path = host.folder().join("dump.png");
    vm.screendump(&path).await.expect("dumped");
    let png = std::fs::read(&path).expect("there");
    assert_eq!(&png[1..4], b"PNG");
    let side = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().expect("four bytes"));
    assert_eq!(Size::new(side(16), side(20)), vm.console().scanout().expect("on").size());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_reach_the_guest_in_order_and_change_its_screen() {
    let host = TestHost::new().await;
    let vm = host.host().create(console_guest("keys")).await.expect("created");
    vm.start().await.expect("starts");
    let console = vm.console();
    shell(&console).await;
    let mut viewer = console.viewer();
    // 40 of them only if the guest computed it, which takes every character in its place.
    types(&console, "printf 'm%.0s' $(seq $((8 * 5))); echo\n").await;
    sees(&mut viewer, "the answer", |_, picture| longest_run(picture) == 40).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_starts_over_goes_on_running() {
    let host = TestHost::new().await;
    let vm = host.host().create(console_guest("again")).await.expect("created");
    vm.start().await.expect("starts");
    let console = vm.console();
    shell(&console).await;
    let (mut viewer, pid) = (console.viewer(), vm.status().pid);
    viewer.take();
    types(&console, "reboot -f\n").await;
    sees(&mut viewer, "the firmware", |_, picture| picture.size == Size::new(720, 400)).await;
    assert_eq!((vm.status().state, vm.status().pid), (VmState::Running, pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_monitor_has_its_own_picture() {
    let host = TestHost::new().await;
    let definition = Definition { monitors: 3, ..crate::kit::firmware("three") };
    let vm = host.host().create(definition).await.expect("created");
    vm.start().await.expect("starts");
    reaches(&vm, VmState::Running).await;
    for index in 0..3 {
        let mut viewer = vm.console_at(index).expect("there").viewer();
        sees(&mut viewer, "a picture", |update, _| update.scanout.is_some()).await;
    }
    assert!(vm.console_at(3).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_takes_the_size_that_is_wished_for_before_it_starts_and_while_it_runs() {
    let host = TestHost::new().await;
    let vm = host.host().create(console_guest("sized")).await.expect("created");
    let console = vm.console();
    console.request_size(Size::new(1024, 600));
    vm.start().await.expect("starts");
    let mut viewer = console.viewer();
    sees(&mut viewer, "the first size", |_, picture| picture.size == Size::new(1024, 600)).await;
    shell(&console).await;
    console.request_size(Size::new(1280, 720));
    sees(&mut viewer, "the second size", |_, picture| picture.size == Size::new(1280, 720)).await;
}
