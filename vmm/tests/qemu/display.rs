//! Pictures out, keys in.

use console::{KeyEvent, KeyState, Scancode, Size};
use vmm::{Definition, VmState};

use crate::kit::{TestHost, console_guest, lit, pixels, reaches, sees};

#[tokio::test(flavor = "multi_thread")]
async fn the_firmwares_text_is_seen_and_gone_when_the_vm_is_off() {
    let host = TestHost::new().await;
    let vm = host.firmware_vm("text").await;
    let mut viewer = vm.console().viewer();
    viewer.changed().await;
    assert!(viewer.take().scanout.is_none());
    vm.start().await.expect("starts");
    sees(&mut viewer, "text", |_, pixels| lit(pixels) > 500).await;
    vm.power_off().await.expect("switches off");
    sees(&mut viewer, "darkness", |update, _| update.scanout_changed && update.scanout.is_none()).await;
    vm.start().await.expect("starts");
    sees(&mut viewer, "text again", |_, pixels| lit(pixels) > 500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_screendump_is_what_the_viewer_sees() {
    let host = TestHost::new().await;
    let vm = host.firmware_vm("dump").await;
    vm.start().await.expect("starts");
    let mut viewer = vm.console().viewer();
    sees(&mut viewer, "text", |_, pixels| lit(pixels) > 500).await;
    let path = host.folder().join("dump.png");
    vm.screendump(&path).await.expect("dumped");
    let png = std::fs::read(&path).expect("there");
    assert_eq!(&png[1..4], b"PNG");
    let side = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().expect("four bytes"));
    assert_eq!(Size::new(side(16), side(20)), vm.console().scanout().expect("on").size());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_changes_the_guests_screen() {
    let host = TestHost::new().await;
    let vm = host.host().create(console_guest("keys")).await.expect("created");
    vm.start().await.expect("starts");
    let console = vm.console();
    let mut viewer = console.viewer();
    sees(&mut viewer, "the shell", |_, pixels| lit(pixels) > 2000).await;
    let before = lit(&pixels(&*console.scanout().expect("on")));
    // 500 characters, which nothing else draws.
    for _ in 0..500 {
        for state in [KeyState::Pressed, KeyState::Released] {
            let key = KeyEvent::Key { scancode: Scancode::plain(0x32), state };
            while console.send_key(key).is_err() {
                console.input_room().await;
            }
        }
    }
    sees(&mut viewer, "typed characters", |_, pixels| lit(pixels) > before + 500 * 20).await;
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
async fn the_guest_takes_the_size_that_was_wished_for_before_it_started() {
    let host = TestHost::new().await;
    let vm = host.host().create(console_guest("sized")).await.expect("created");
    let console = vm.console();
    console.request_size(Size::new(1024, 600));
    vm.start().await.expect("starts");
    let mut viewer = console.viewer();
    sees(&mut viewer, "the size", |update, _| {
        update.scanout.as_ref().is_some_and(|scanout| scanout.size() == Size::new(1024, 600))
    })
    .await;
}
