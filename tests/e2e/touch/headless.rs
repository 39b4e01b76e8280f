//! What FreeRDP cannot do here: hover, draw with a pen, vanish, break the rules.

use std::time::Duration;

use anyhow::{Result, bail};
use fanlight_tests::client::SEEN;
use fanlight_tests::guest::Guest;
use fanlight_tests::headless::touch::pdu::{
    CsReadyFlags, DismissHoveringTouchContactPdu, PenContact, PenContactFlags, PenEventPdu, PenFlags, PenFrame,
    RdpeiPdu, TouchContact, TouchContactFlags, TouchEventPdu, TouchFrame,
};
use fanlight_tests::headless::{Client, run};
use fanlight_tests::text::Screen;
use tokio::time::Instant;

use super::{Finger, SIZE, finger};
use crate::harness::journeys;
use crate::world::{Desk, World, new_word};

journeys![
    touch_goes_and_comes_with_the_agent,
    fingers_of_a_lost_client_are_cancelled,
    fingers_of_two_clients_are_apart,
    a_finger_that_only_hovers_is_not_felt,
    a_pen_draws_with_pressure_and_tilt,
    a_client_that_misuses_touch_keeps_its_session,
];

const DOWN: u32 = 0x19;
const MOVE: u32 = 0x1a;
const HOVER: u32 = 0x0a;
const UP: u32 = 0x04;
/// How long a command may take before it is entered again.
const ANSWERED: Duration = Duration::from_secs(20);

fn touch_goes_and_comes_with_the_agent(world: &World) -> Result<()> {
    world.on_guest(|desk| {
        run(async {
            let mut client = connect(desk).await?;
            command(&mut client, desk.guest, "digitizer record").await?;
            client.touch(&fingers(&[(3, 100, 200, DOWN)])).await?;
            wait_for_fingers(&mut client, desk.guest, &[((100, 200), (100, 200), "down")]).await?;

            client.type_text("killall fanlight-agent\n").await?;
            client.wait_for_touch("order to be silent", |state| state.suspended).await?;
            client.wait_for_touch("order to go on", |state| !state.suspended).await?;

            command(&mut client, desk.guest, "digitizer record").await?;
            // The finger that was down all the time is over for the guest; one that begins is not.
            client.touch(&fingers(&[(3, 110, 200, MOVE)])).await?;
            client.touch(&fingers(&[(3, 110, 200, UP), (4, 500, 600, DOWN)])).await?;
            wait_for_fingers(&mut client, desk.guest, &[((500, 600), (500, 600), "down")]).await
        })
    })
}

fn fingers_of_a_lost_client_are_cancelled(world: &World) -> Result<()> {
    world.on_guest(|desk| {
        run(async {
            let (mut lost, mut other) = (connect(desk).await?, connect(desk).await?);
            command(&mut other, desk.guest, "digitizer record").await?;
            lost.touch(&fingers(&[(0, 10, 20, DOWN), (1, 30, 40, DOWN)])).await?;
            let places = [(10, 20), (30, 40)];
            wait_for_fingers(&mut other, desk.guest, &places.map(|place| (place, place, "down"))).await?;
            drop(lost);
            wait_for_fingers(&mut other, desk.guest, &places.map(|place| (place, place, "palm"))).await
        })
    })
}

fn fingers_of_two_clients_are_apart(world: &World) -> Result<()> {
    world.on_guest(|desk| {
        run(async {
            let (mut one, mut two) = (connect(desk).await?, connect(desk).await?);
            command(&mut two, desk.guest, "digitizer record").await?;
            one.touch(&fingers(&[(0, 100, 100, DOWN)])).await?;
            wait_for_fingers(&mut two, desk.guest, &[((100, 100), (100, 100), "down")]).await?;
            two.touch(&fingers(&[(0, 700, 700, DOWN)])).await?;
            two.touch(&fingers(&[(0, 720, 700, MOVE)])).await?;
            one.touch(&fingers(&[(0, 100, 100, UP)])).await?;
            let both = [((100, 100), (100, 100), "up"), ((700, 700), (720, 700), "down")];
            wait_for_fingers(&mut two, desk.guest, &both).await
        })
    })
}

fn a_finger_that_only_hovers_is_not_felt(world: &World) -> Result<()> {
    world.on_guest(|desk| {
        run(async {
            let mut client = connect(desk).await?;
            command(&mut client, desk.guest, "digitizer record").await?;
            client.touch(&fingers(&[(0, 100, 100, HOVER), (1, 600, 500, HOVER)])).await?;
            client.touch(&fingers(&[(0, 110, 100, HOVER), (1, 610, 500, DOWN)])).await?;
            client.touch(&RdpeiPdu::DismissHoveringTouchContact(DismissHoveringTouchContactPdu::new(0))).await?;
            wait_for_fingers(&mut client, desk.guest, &[((610, 500), (610, 500), "down")]).await
        })
    })
}

fn a_pen_draws_with_pressure_and_tilt(world: &World) -> Result<()> {
    world.on_guest(|desk| {
        run(async {
            let mut client = connect(desk).await?;
            command(&mut client, desk.guest, "digitizer record").await?;
            let pen = |x, y, flags| PenContact::new(0, x, y, PenContactFlags::from_bits_retain(flags));
            client.touch(&stroke(pen(640, 400, HOVER).with_tilt(-30, 45))).await?;
            client.touch(&stroke(pen(640, 400, DOWN).with_tilt(-30, 45).with_pressure(512))).await?;
            client.touch(&stroke(pen(960, 600, MOVE).with_tilt(0, 0).with_pressure(1024))).await?;
            client.touch(&stroke(pen(960, 600, UP))).await?;
            let eraser = pen(320, 200, DOWN).with_pen_flags(PenFlags::INVERTED | PenFlags::ERASER_PRESSED);
            client.touch(&stroke(eraser.with_pressure(256))).await?;
            let expected = [
                "pen 32793 32808 0 -30 45 pen near",
                "pen 32793 32808 32767 -30 45 pen touches",
                "pen 49177 49192 65535 0 0 pen touches",
                "pen 16409 16424 16383 0 0 rubber touches",
            ];
            wait_for(&mut client, desk.guest, "digitizer pen", "the pen", |screen| {
                expected.iter().all(|line| screen.has_line(line))
            })
            .await
        })
    })
}

fn a_client_that_misuses_touch_keeps_its_session(world: &World) -> Result<()> {
    world.on_guest(|desk| {
        run(async {
            let mut client = connect(desk).await?;
            command(&mut client, desk.guest, "digitizer record").await?;
            client.touch(&fingers(&[(0, 10, 20, DOWN)])).await?;
            client.touch_with(&[3, 0, 0xff, 0xff, 0xff, 0xff, 0, 1]).await?;
            client.wait_for_touch("end of the channel", |state| state.closed).await?;
            wait_for_fingers(&mut client, desk.guest, &[((10, 20), (10, 20), "palm")]).await
        })
    })
}

/// A client with touch at that guest, whose agent is there.
async fn connect(desk: &Desk<'_>) -> Result<Client> {
    let mut client = Client::connect(&desk.headless(SIZE, CsReadyFlags::ENABLE_MULTIPEN_INJECTION)).await?;
    client.wait_for_touch("touch channel", |state| state.server.is_some()).await?;
    desk.guest.wait_for_size(SIZE.0.into(), SIZE.1.into())?;
    // Elsewhere than later: a guest tells its programs only what has changed.
    for flags in [DOWN, UP] {
        let corner: Vec<_> = (0..2).map(|id| (id, i32::from(id), i32::from(id), flags)).collect();
        client.touch(&fingers(&corner)).await?;
    }
    Ok(client)
}

/// One frame of fingers: id, place, flags.
fn fingers(all: &[(u8, i32, i32, u32)]) -> RdpeiPdu {
    let contact = |(id, x, y, flags): &(u8, i32, i32, u32)| {
        TouchContact::new(*id, *x, *y, TouchContactFlags::from_bits_retain(*flags))
    };
    RdpeiPdu::Touch(TouchEventPdu::new(0, vec![TouchFrame::new(0, all.iter().map(contact).collect())]))
}

fn stroke(pen: PenContact) -> RdpeiPdu {
    RdpeiPdu::Pen(PenEventPdu::new(0, vec![PenFrame::new(0, vec![pen])]))
}

/// Has the guest do something.
async fn command(client: &mut Client, guest: &Guest, command: &str) -> Result<()> {
    wait_for(client, guest, command, "a command to be done", |_| true).await
}

type Expected<'a> = ((u32, u32), (u32, u32), &'a str);

/// Asks the guest until its touch screen feels just these: where they began, where they are, what became of them.
async fn wait_for_fingers(client: &mut Client, guest: &Guest, expected: &[Expected<'_>]) -> Result<()> {
    let expected: Vec<_> = expected
        .iter()
        .map(|(began, at, state)| Finger { began: *began, at: *at, state: (*state).to_owned() })
        .collect();
    wait_for(client, guest, "digitizer fingers", &format!("{expected:?}"), |screen| {
        screen.lines().filter_map(finger).eq(expected.iter().cloned())
    })
    .await
}

/// Enters `command` again and again until `is_it` is content with what the guest writes.
async fn wait_for(
    client: &mut Client,
    guest: &Guest,
    command: &str,
    what: &str,
    is_it: impl Fn(&Screen) -> bool,
) -> Result<()> {
    let deadline = Instant::now() + SEEN;
    loop {
        let (done, screen) = enter(client, guest, command).await?;
        if done && is_it(&screen) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("waited for {what}, but `{}` shows after `{command}`:\n{screen:?}", guest.name());
        }
    }
}

/// Enters `command`, and says whether the guest carried it out, with what its screen shows then. A busy guest loses keys.
async fn enter(client: &mut Client, guest: &Guest, command: &str) -> Result<(bool, Screen)> {
    let word = new_word();
    // Whatever was begun before ends with the line.
    client.type_text(&format!("\nclear; {command}; echo {word}\n")).await?;
    let deadline = Instant::now() + ANSWERED;
    loop {
        // A client that reads is one that is not waited for.
        client.during(Duration::from_millis(100)).await?;
        let screen = guest.screen()?;
        let done = screen.has_line(&word);
        if done || Instant::now() > deadline {
            return Ok((done, screen));
        }
    }
}
