//! Keys, buttons and wheels reach the guest, and none stays pressed.

use std::time::Duration;

use anyhow::{Result, ensure};
use fanlight_tests::client::{Client, SEEN};
use fanlight_tests::display::Button;
use fanlight_tests::guest::Guest;
use fanlight_tests::keys::keysym;
use fanlight_tests::text::Screen;
use fanlight_tests::wait::stays_so;

use crate::harness::journeys;
use crate::world::{Desk, World, echo_new_word, font, interrupt, new_word, wait_for_line};

journeys![
    every_character_can_be_typed,
    every_character_can_be_typed_as_unicode,
    keys_that_a_lost_client_held_are_released,
    lock_keys_follow_the_client,
    a_lost_client_leaves_no_key_to_virtual_hardware,
    buttons_and_wheel_reach_the_guest,
    buttons_and_wheel_reach_virtual_hardware,
];

/// Everything but the quotes around it.
const CHARACTERS: &str =
    "!\"#$%&()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~";

fn every_character_can_be_typed(world: &World) -> Result<()> {
    world.on_guest(|desk| type_everything(desk, &[]))
}

fn every_character_can_be_typed_as_unicode(world: &World) -> Result<()> {
    world.on_guest(|desk| type_everything(desk, &["/kbd:unicode:on"]))
}

fn type_everything(desk: &Desk<'_>, options: &[&str]) -> Result<()> {
    let client = desk.connect().with(options.iter().copied()).open()?;
    let word = new_word();
    client.type_text(&format!("echo '{word} {CHARACTERS}'\n"))?;
    wait_for_line(&client, desk.guest, &format!("{word} {CHARACTERS}"))?;
    client.close()
}

fn keys_that_a_lost_client_held_are_released(world: &World) -> Result<()> {
    // A key that the agent holds down repeats itself as often as the client says.
    world.on_guest(|desk| lose_a_client_that_holds_keys(desk, 1))
}

fn a_lost_client_leaves_no_key_to_virtual_hardware(world: &World) -> Result<()> {
    world.on_hardware(|desk| lose_a_client_that_holds_keys(desk, 3))
}

/// The letter that is held is seen `times`, at least, before the client is killed.
fn lose_a_client_that_holds_keys(desk: &Desk<'_>, times: usize) -> Result<()> {
    let lost = desk.connect().open()?;
    let marker = new_word();
    lost.type_text(&format!("echo {marker}"))?;
    lost.press(keysym::SHIFT)?;
    lost.press(u32::from('q'))?;
    lost.wait_for_screen(font()?, "the key that is held", |screen| typed_after(screen, &marker).len() >= times)?;
    // Killed: it tells nobody that it goes.
    drop(lost);
    desk.gateway.wait_for_no_session_on(desk.guest.name())?;
    let client = desk.connect().open()?;
    client.wait_for_screen(font()?, &marker, |screen| screen.has(&marker))?;
    let typed = typed_after(&client.screen(font()?)?, &marker);
    stays_so(Duration::from_secs(2), || {
        let now = typed_after(&client.screen(font()?)?, &marker);
        ensure!(now == typed, "it was `{typed}`, now it is `{now}`");
        Ok(())
    })?;
    // Neither key is pressed: what is typed now has no capitals.
    client.type_text("\n")?;
    echo_new_word(&client, desk.guest)?;
    client.close()
}

/// What stands behind `marker` in the last line that has it.
fn typed_after(screen: &Screen, marker: &str) -> String {
    let line = screen.lines().rev().find_map(|line| line.split_once(marker));
    line.map(|(_, typed)| typed.trim_end().to_owned()).unwrap_or_default()
}

fn lock_keys_follow_the_client(world: &World) -> Result<()> {
    world.on_guest(|desk| {
        let client = desk.connect().open()?;
        client.tap(keysym::CAPS_LOCK)?;
        let word = new_word();
        client.type_text(&format!("echo {word}\n"))?;
        let shouted = word.to_uppercase();
        client.wait_for_screen(font()?, &shouted, |screen| screen.has(&format!("ECHO {shouted}")))?;
        client.close()?;
        // A client whose lock is off comes to a guest whose lock is on.
        let client = desk.connect().open()?;
        echo_new_word(&client, desk.guest)?;
        client.close()
    })
}

/// Reads a pointer's device: the time and the zeros after a value are left out.
const SHOW_EVENTS: &str = "while :; do dd bs=24 count=1 <&3 2>/dev/null | od -An -td2 -j16; done\n";

fn buttons_and_wheel_reach_the_guest(world: &World) -> Result<()> {
    world.on_guest(|desk| {
        desk.guest.wait_for_agent()?;
        buttons_and_wheel_are_those_of(desk, "Fanlight pointer")
    })
}

fn buttons_and_wheel_reach_virtual_hardware(world: &World) -> Result<()> {
    world.on_hardware(|desk| buttons_and_wheel_are_those_of(desk, "QEMU Virtio Tablet"))
}

fn buttons_and_wheel_are_those_of(desk: &Desk<'_>, device: &str) -> Result<()> {
    let client = desk.connect().open()?;
    let open = format!(
        "exec 3<$(grep -lx '{device}' /sys/class/input/event*/device/name | sed 's,/sys/class,/dev,;s,/device.*,,')"
    );
    client.type_text(&format!("{open}; echo ready; {SHOW_EVENTS}"))?;
    client.wait_for_screen(font()?, "the device to be open", |screen| screen.has_line("ready"))?;
    client.move_pointer(200, 300)?;
    wait_for_event(&client, desk.guest, "a move", |[kind, _, _]| kind == 3)?;
    // As in Linux's input-event-codes.h: keys are of type 1, relative axes of type 2; the wheel is axis 8.
    for (button, event) in [
        (Button::Left, [1, 0x110, 1]),
        (Button::Right, [1, 0x111, 1]),
        (Button::Middle, [1, 0x112, 0]),
        (Button::WheelUp, [2, 8, 1]),
        (Button::WheelDown, [2, 8, -1]),
    ] {
        client.click(button)?;
        wait_for_event(&client, desk.guest, &format!("{button:?} to be {event:?}"), |seen| seen == event)?;
    }
    interrupt(&client)?;
    client.close()
}

/// Waits until an event for which `is_it` holds is on the screen.
fn wait_for_event(client: &Client, guest: &Guest, what: &str, is_it: impl Fn([i32; 3]) -> bool) -> Result<()> {
    guest.wait_for_screen(SEEN, what, |screen| screen.lines().filter_map(read_event).any(&is_it))?;
    client.wait_for_screen(font()?, what, |screen| screen.lines().filter_map(read_event).any(&is_it)).map(drop)
}

/// Type, code and value of an event, as `od` writes them in four numbers.
fn read_event(line: &str) -> Option<[i32; 3]> {
    let numbers: Vec<i32> = line.split_whitespace().map(|number| number.parse().ok()).collect::<Option<_>>()?;
    let [kind, code, low, _] = numbers.try_into().ok()?;
    Some([kind, code, low])
}
