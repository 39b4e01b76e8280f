//! Fingers and pens reach the guest by its agent, as they are and whole.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use fanlight_tests::client::{Client, Program, SEEN};
use fanlight_tests::guest::Guest;
use fanlight_tests::text::Screen;
use fanlight_tests::touch_screen::{FINGERS, Touch};
use fanlight_tests::wait::{Look, wait_until};

use crate::harness::journeys;
use crate::world::{Desk, World, enter, font, new_word};

mod headless;

journeys![ten_fingers_reach_the_guest, ten_fingers_of_an_older_client_reach_the_guest];

pub(crate) use headless::journeys as headless_journeys;

/// The window of every client here, and the desktop of its guest.
const SIZE: (u16, u16) = (1280, 800);
/// One more than the highest place on an axis of the guest's touch screen.
const AXIS: u32 = 0x1_0000;

/// How many clients are tried, and how long each is touched, before touch counts as not felt.
const TRIES: usize = 12;
const FELT: Duration = Duration::from_secs(8);

/// A line of the guest's `digitizer fingers`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finger {
    /// Where it began, in pixels.
    began: (u32, u32),
    /// Where it is, or was last.
    at: (u32, u32),
    /// `down`, `up`, or `palm` when it was cancelled.
    state: String,
}

fn ten_fingers_reach_the_guest(world: &World) -> Result<()> {
    world.on_guest(|desk| ten_fingers(desk, Program::FreeRdp3))
}

fn ten_fingers_of_an_older_client_reach_the_guest(world: &World) -> Result<()> {
    world.on_guest(|desk| ten_fingers(desk, Program::FreeRdp2))
}

fn ten_fingers(desk: &Desk<'_>, program: Program) -> Result<()> {
    let mut client = open(desk, program)?;
    run_command(&client, "digitizer record")?;
    let place = |finger: u32, y: u16| (100 + 90 * u16::try_from(finger).unwrap_or(0), y);
    let places = |y: u16| (0..FINGERS).map(move |finger| place(finger, y)).map(|(x, y)| (u32::from(x), u32::from(y)));
    // Each step is waited for: what a finger does within 20 ms FreeRDP tells as one thing.
    for (what, y, state) in [(Touch::Down, 300, "down"), (Touch::Move, 420, "down"), (Touch::Up, 420, "up")] {
        for finger in 0..FINGERS {
            let (x, y) = place(finger, y);
            client.touch(finger, what, x, y)?;
        }
        wait_for_fingers(&client, desk.guest, &format!("ten fingers that are {state} at {y}"), |fingers| {
            let all = fingers.len() == 10 && fingers.iter().all(|finger| finger.state == state);
            let began = fingers.iter().map(|finger| finger.began).eq(places(300));
            all && began && fingers.iter().map(|finger| finger.at).eq(places(y))
        })?;
    }
    client.close()
}

/// A client whose fingers are felt.
///
/// FreeRDP 2 starts the thread that sends them before it says that there is something to send: every other time the
/// thread ends at once. Such a client is of no use, and another is tried.
fn open(desk: &Desk<'_>, program: Program) -> Result<Client> {
    let mut last = anyhow!("never opened");
    for _ in 0..TRIES {
        let mut client = desk.connect().program(program).with_touch_screen().open()?;
        run_command(&client, "true")?;
        match tap_until_felt(&mut client, desk) {
            Ok(()) => return Ok(client),
            Err(error) => last = error,
        }
        client.close()?;
        desk.gateway.wait_for_no_session_on(desk.guest.name())?;
    }
    Err(last)
}

/// Taps with all fingers until the gateway has passed one on. Where later nobody touches: a guest tells its programs only
/// what has changed.
fn tap_until_felt(client: &mut Client, desk: &Desk<'_>) -> Result<()> {
    wait_until(FELT, "a finger to be felt", || {
        for what in [Touch::Down, Touch::Up] {
            for (finger, place) in (0..FINGERS).zip(5..) {
                client.touch(finger, what, place, place)?;
            }
        }
        Ok(Look::when(touch_frames(desk)? > 0, || "none is".to_owned()))
    })
}

/// How many touch frames the newest session on the guest has passed on.
fn touch_frames(desk: &Desk<'_>) -> Result<u64> {
    let sessions = desk.gateway.api().get("/v1/sessions")?;
    let mut own = sessions.as_array().context("sessions are a list")?.iter().rev();
    let session = own.find(|session| session["vm"] == desk.guest.name()).context("no session")?;
    session["stats"]["touch_frames"].as_u64().with_context(|| format!("no number of touch frames in {session}"))
}

/// Asks the guest until `is_it` is content with what its touch screen feels.
fn wait_for_fingers(client: &Client, guest: &Guest, what: &str, is_it: impl Fn(&[Finger]) -> bool) -> Result<()> {
    wait_until(SEEN, what, || {
        let fingers: Vec<_> = run_command(client, "digitizer fingers")?.lines().filter_map(finger).collect();
        Ok(Look::when(is_it(&fingers), || format!("`{}` feels {fingers:?}", guest.name())))
    })
}

/// Has the guest do something on an empty screen; returns what it wrote.
fn run_command(client: &Client, command: &str) -> Result<Screen> {
    let word = new_word();
    enter(client, &format!("clear; {command}; echo {word}"))?;
    client.wait_for_screen(font()?, &word, |screen| screen.has_line(&word))
}

fn finger(line: &str) -> Option<Finger> {
    let mut words = line.strip_prefix("finger ")?.split_whitespace();
    let mut pixel = |side: u16| Some(words.next()?.parse::<u32>().ok()? * u32::from(side) / AXIS);
    let mut place = || Some((pixel(SIZE.0)?, pixel(SIZE.1)?));
    let (began, at) = (place()?, place()?);
    let state = words.nth(1)?.to_owned();
    Some(Finger { began, at, state })
}
