//! The display as a whole, against a fake QEMU.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use console::{KeyEvent, KeyState, LockKeys, PointerButton, PointerEvent, Rect, Scancode, Scanout, Size};
use zbus::Variant;

use super::dbus::{KEYBOARD, LISTENER, MOUSE, UNIX_MAP, socket_pair};
use super::fake_qemu::{FakeConsole, FakeQemu, X8R8G8B8};
use super::link::Link;
use super::{Console, Display, Viewer};

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}

/// A display of one monitor, attached to a fake.
async fn attached(is_absolute: bool) -> (Arc<Display>, Link, FakeQemu, FakeConsole) {
    let display = Display::new(1);
    let (link, qemu, fake) = attach(&display, is_absolute).await;
    (display, link, qemu, fake)
}

async fn attach(display: &Arc<Display>, is_absolute: bool) -> (Link, FakeQemu, FakeConsole) {
    let (ours, theirs) = socket_pair().expect("sockets");
    let fake = async {
        let mut qemu = FakeQemu::serve(theirs, is_absolute).await;
        let console = qemu.console().await;
        (qemu, console)
    };
    let (link, (qemu, console)) = soon(async { tokio::join!(Link::connect(ours, display, None), fake) }).await;
    (link.expect("attached"), qemu, console)
}

fn console(display: &Arc<Display>) -> Console {
    display.console(0).expect("there")
}

async fn news(viewer: &mut Viewer) -> console::DisplayUpdate {
    soon(viewer.changed()).await;
    viewer.take()
}

fn pixel(scanout: &dyn Scanout, x: u32, y: u32) -> [u8; 4] {
    let mut pixel = [0; 4];
    scanout.copy_rect(Rect::new(x, y, 1, 1), &mut pixel, 4);
    pixel
}

#[tokio::test(flavor = "multi_thread")]
async fn mapped_pictures_are_shown_and_their_damage_told() {
    let (display, _link, _qemu, fake) = attached(true).await;
    assert_eq!(fake.interfaces, [UNIX_MAP]);
    let mut viewer = console(&display).viewer();
    viewer.take();
    let _memfd = fake.show_mapped(64, 48, [1, 2, 3, 4]).await.expect("shown");
    let update = news(&mut viewer).await;
    assert!(update.scanout_changed);
    assert_eq!(pixel(&*update.scanout.expect("on"), 63, 47), [1, 2, 3, 4]);
    fake.tell(UNIX_MAP, "UpdateMap", &(5_i32, 6_i32, 7_i32, 8_i32)).await;
    let update = news(&mut viewer).await;
    assert_eq!((update.scanout_changed, update.damage.rects()), (false, &[Rect::new(5, 6, 7, 8)][..]));
    fake.tell(LISTENER, "Disable", &()).await;
    assert!(news(&mut viewer).await.scanout.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_cannot_share_memory_sends_its_pictures() {
    let (display, _link, _qemu, fake) = attached(true).await;
    let mut viewer = console(&display).viewer();
    viewer.take();
    let picture = [7_u8; 4 * 4 * 3].as_slice();
    fake.call(LISTENER, "Scanout", &(4_u32, 3_u32, 16_u32, X8R8G8B8, picture)).await.expect("shown");
    let update = news(&mut viewer).await;
    let scanout = update.scanout.expect("on");
    assert_eq!((scanout.size(), pixel(&*scanout, 3, 2)), (Size::new(4, 3), [7; 4]));
    let part = [9_u8; 4 * 2].as_slice();
    fake.call(LISTENER, "Update", &(2_i32, 1_i32, 2_i32, 1_i32, 8_u32, X8R8G8B8, part)).await.expect("updated");
    let update = news(&mut viewer).await;
    assert_eq!(update.damage.rects(), [Rect::new(2, 1, 2, 1)]);
    assert_eq!((pixel(&*scanout, 3, 1), pixel(&*scanout, 1, 1)), ([9; 4], [7; 4]), "the same picture changes");
    fake.call(LISTENER, "Scanout", &(4_u32, 3_u32, 16_u32, X8R8G8B8, picture)).await.expect("shown");
    assert!(!news(&mut viewer).await.scanout_changed, "all of it is new, but it is the same monitor");
    fake.call(LISTENER, "Scanout", &(2_u32, 2_u32, 8_u32, X8R8G8B8, [1_u8; 16].as_slice())).await.expect("shown");
    assert!(news(&mut viewer).await.scanout_changed);
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused_and_the_display_goes_on() {
    let (display, _link, _qemu, fake) = attached(true).await;
    let memfd = fake.show_mapped(8, 8, [5; 4]).await.expect("shown");
    let huge = (zbus::Fd::from(&memfd), 4_000_000_000_u32, 16_000_u32, 16_000_u32, 64_000_u32, X8R8G8B8);
    assert!(fake.call(UNIX_MAP, "ScanoutMap", &huge).await.is_err());
    let short = (1000_u32, 1000_u32, 4000_u32, X8R8G8B8, [0_u8; 4].as_slice());
    assert!(fake.call(LISTENER, "Scanout", &short).await.is_err());
    let stray = (0_i32, 0_i32, 1_i32, 1_i32, 4_u32, X8R8G8B8, [0_u8; 4].as_slice());
    assert!(fake.call(LISTENER, "Update", &stray).await.is_err(), "there is no sent picture to update");
    let cursor = (i32::MAX, i32::MAX, 0_i32, 0_i32, [0_u8; 4].as_slice());
    assert!(fake.call(LISTENER, "CursorDefine", &cursor).await.is_err());
    assert!(fake.call(LISTENER, "CursorDefine", &"not a cursor").await.is_err());
    assert!(fake.call(LISTENER, "Explode", &()).await.is_err());
    fake.tell(UNIX_MAP, "UpdateMap", &(i32::MIN, i32::MIN, i32::MAX, i32::MAX)).await;
    assert_eq!(pixel(&*console(&display).scanout().expect("still on"), 0, 0), [5; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cursor_follows_the_guest() {
    let (display, _link, _qemu, fake) = attached(true).await;
    let mut viewer = console(&display).viewer();
    viewer.take();
    fake.tell(LISTENER, "CursorDefine", &(2_i32, 1_i32, 1_i32, 0_i32, [255_u8; 8].as_slice())).await;
    let cursor = news(&mut viewer).await.cursor.expect("changed");
    assert_eq!(cursor.shape.expect("defined").size, Size::new(2, 1));
    fake.tell(LISTENER, "MouseSet", &(30_i32, 40_i32, 1_i32)).await;
    let cursor = news(&mut viewer).await.cursor.expect("changed");
    assert_eq!((cursor.position, cursor.hidden), (Some(console::Point { x: 30, y: 40 }), false));
    fake.tell(LISTENER, "MouseSet", &(0_i32, 0_i32, 0_i32)).await;
    assert!(news(&mut viewer).await.cursor.expect("changed").hidden);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_qemu_goes_the_screen_is_dark_until_the_next_one_comes() {
    let (display, mut link, qemu, fake) = attached(true).await;
    let mut viewer = console(&display).viewer();
    let _memfd = fake.show_mapped(8, 8, [5; 4]).await.expect("shown");
    assert!(news(&mut viewer).await.scanout.is_some());
    drop(fake);
    qemu.main.clone().close().await.expect("closed");
    drop(qemu);
    soon(link.closed()).await;
    link.detach().await;
    assert!(news(&mut viewer).await.scanout.is_none());
    let (_link, _qemu, fake) = attach(&display, true).await;
    let _memfd = fake.show_mapped(16, 16, [6; 4]).await.expect("shown");
    let update = news(&mut viewer).await;
    assert_eq!(update.scanout.map(|scanout| scanout.size()), Some(Size::new(16, 16)));
}

#[tokio::test(flavor = "multi_thread")]
async fn input_arrives_in_order() {
    let (display, _link, mut qemu, fake) = attached(true).await;
    let _memfd = fake.show_mapped(100, 100, [0; 4]).await.expect("shown");
    let console = console(&display);
    let key = |state| KeyEvent::Key { scancode: Scancode::plain(0x1e), state };
    let left = |state| PointerEvent::Button { button: PointerButton::Left, state };
    console.send_pointer(PointerEvent::MoveTo { x: 500, y: 20 }).expect("room");
    console.send_key(key(KeyState::Pressed)).expect("room");
    console.send_pointer(left(KeyState::Pressed)).expect("room");
    console.send_key(KeyEvent::ReleaseAll).expect("room");
    let expected = [
        ("Mouse.SetAbsPosition", vec![99, 20]),
        ("Keyboard.Press", vec![0x1e]),
        ("Mouse.Press", vec![0]),
        ("Keyboard.Release", vec![0x1e]),
        ("Mouse.Release", vec![0]),
    ];
    for (method, numbers) in expected {
        assert_eq!(soon(qemu.next()).await, (method.to_owned(), numbers));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_keys_lose_nothing() {
    let (display, _link, mut qemu, _fake) = attached(true).await;
    let console = console(&display);
    let send = async {
        for number in 0..300_u32 {
            let code = u8::try_from(number % 50 + 2).expect("a code");
            let state = if number % 2 == 0 { KeyState::Pressed } else { KeyState::Released };
            // Press and release of the same key follow each other.
            let scancode = Scancode::plain(code - u8::from(state == KeyState::Released));
            while console.send_key(KeyEvent::Key { scancode, state }).is_err() {
                console.input_room().await;
            }
        }
    };
    let receive = async {
        for number in 0..300_i64 {
            let method = if number % 2 == 0 { "Keyboard.Press" } else { "Keyboard.Release" };
            let code = number / 2 * 2 % 50 + 2;
            assert_eq!(qemu.next().await, (method.to_owned(), vec![code]));
        }
    };
    soon(async { tokio::join!(send, receive) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mouse_gets_distances_until_the_tablets_driver_comes() {
    let (display, _link, mut qemu, fake) = attached(false).await;
    let _memfd = fake.show_mapped(100, 100, [0; 4]).await.expect("shown");
    let console = console(&display);
    console.send_pointer(PointerEvent::MoveTo { x: 10, y: 20 }).expect("room");
    assert_eq!(soon(qemu.next()).await, ("Mouse.RelMotion".into(), vec![10, 20]));
    qemu.change(MOUSE, "IsAbsolute", Variant::from(true)).await;
    soon(async {
        // One at a time: moves that wait for each other become one, and there and back is none.
        for (x, y) in [(30, 40), (10, 20)].into_iter().cycle() {
            console.send_pointer(PointerEvent::MoveTo { x, y }).expect("room");
            let (method, numbers) = qemu.next().await;
            if method == "Mouse.SetAbsPosition" {
                return assert_eq!(numbers, [i64::from(x), i64::from(y)]);
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guests_lights_are_known_and_lock_keys_follow_the_client() {
    let (display, _link, mut qemu, _fake) = attached(true).await;
    let console = console(&display);
    assert_eq!(console.lock_keys(), LockKeys::default());
    qemu.change(KEYBOARD, "Modifiers", Variant::from(0b100_u32)).await;
    let caps = LockKeys { caps: true, ..LockKeys::default() };
    soon(async {
        while console.lock_keys() != caps {
            tokio::task::yield_now().await;
        }
    })
    .await;
    console.send_key(KeyEvent::Locks(LockKeys { caps: true, num: true, scroll: false })).expect("room");
    assert_eq!(soon(qemu.next()).await, ("Keyboard.Press".into(), vec![0x45]));
    assert_eq!(soon(qemu.next()).await, ("Keyboard.Release".into(), vec![0x45]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_size_is_told_and_told_again_to_the_next_qemu() {
    let display = Display::new(1);
    console(&display).request_size(Size::new(1920, 1080));
    for _ in 0..2 {
        let (link, mut qemu, _fake) = attach(&display, true).await;
        let (method, numbers) = soon(qemu.next()).await;
        assert_eq!((method.as_str(), numbers), ("Console.SetUIInfo", vec![508, 285, 0, 0, 1920, 1080]));
        link.detach().await;
    }
}

/// The time QEMU's word takes to a viewer; the picture itself takes none, being mapped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_reaches_a_viewer_in_no_time() {
    let (display, _link, _qemu, fake) = attached(true).await;
    let _memfd = fake.show_mapped(64, 64, [0; 4]).await.expect("shown");
    let mut viewer = console(&display).viewer();
    viewer.take();
    let mut times = Vec::new();
    for _ in 0..500 {
        let sent = Instant::now();
        fake.tell(UNIX_MAP, "UpdateMap", &(0_i32, 0_i32, 8_i32, 16_i32)).await;
        soon(viewer.changed()).await;
        times.push(sent.elapsed());
        viewer.take();
    }
    times.sort();
    let (median, worst) = (times[250], times[499]);
    println!("damage to viewer, with the fake's sending: median {median:?}, worst {worst:?}");
    assert!(median < Duration::from_millis(2), "{median:?}");
}
