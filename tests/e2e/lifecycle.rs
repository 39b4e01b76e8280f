//! Gateways and guests that stop, die and come back, and what the people connected to them see of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fanlight_tests::client::{CONNECT, Client};
use fanlight_tests::gateway::{Gateway, Person};
use fanlight_tests::guest::Guest;
use fanlight_tests::picture::Likeness;
use fanlight_tests::text::Screen;
use fanlight_tests::wait::stays_so;

use crate::harness::journeys;
use crate::world::{Desk, World, echo_new_word, enter, font};

journeys![
    a_guest_counts_on_while_the_gateway_is_killed_and_started_again,
    a_killed_qemu_is_told_and_concerns_nobody_else,
    a_guest_that_switches_itself_off_is_started_in_the_same_session,
    a_guest_shuts_down_when_it_is_asked,
    a_paused_guest_stands_still_and_a_reset_one_boots_anew,
    a_gateway_that_stops_says_so,
    a_deleted_vm_ends_its_sessions,
];

fn a_guest_counts_on_while_the_gateway_is_killed_and_started_again(_: &World) -> Result<()> {
    let (mut gateway, person, guest) = gateway_with_guest()?;
    guest.boot()?;
    let mut leaving = gateway.client(&person).open()?;
    // This one comes back by itself: FreeRDP tries every five seconds.
    let staying = gateway.client(&person).with(["+auto-reconnect", "/auto-reconnect-max-retries:20"]).open()?;
    enter(&leaving, "counter")?;
    let before = wait_for_count(&leaving, 3)?;
    let qemu = guest.pid()?;

    gateway.kill();
    leaving.wait_for_end()?;
    gateway.start_again()?;
    ensure!(guest.state()? == "running" && guest.pid()? == qemu, "the guest was not taken back");

    let client = gateway.client(&person).open()?;
    let after = wait_for_count(&client, before + 1)?;
    ensure!(!lines_after(&client.screen(font()?)?, after).contains(&"counter 1".to_owned()), "it began again");
    client.wait_for_picture(Likeness::Exact, || guest.picture())?;
    wait_for_count(&staying, after + 1)?;
    staying.wait_for_picture(Likeness::Exact, || guest.picture()).map(drop)
}

fn a_killed_qemu_is_told_and_concerns_nobody_else(world: &World) -> Result<()> {
    world.on_two_guests(|victim, other| {
        let (client, bystander) = (victim.connect().open()?, other.connect().open()?);
        echo_new_word(&client, victim.guest)?;
        victim.guest.kill_qemu()?;
        victim.guest.wait_for_state("failed")?;
        let reason = victim.guest.reason()?.context("a failure without a reason")?;
        ensure!(reason.contains("kill") || reason.contains("signal"), "the reason is `{reason}`");
        client.wait_for_screen(font()?, "a notice", shows_notice)?;
        echo_new_word(&bystander, other.guest)?;
        // The same session sees the guest again.
        victim.guest.boot()?;
        echo_new_word(&client, victim.guest).map(drop)
    })
}

fn a_guest_that_switches_itself_off_is_started_in_the_same_session(world: &World) -> Result<()> {
    world.on_guest(|desk| {
        let client = desk.connect().open()?;
        enter(&client, "poweroff")?;
        goes_off(desk, &client)?;
        desk.guest.boot()?;
        echo_new_word(&client, desk.guest).map(drop)
    })
}

fn a_guest_shuts_down_when_it_is_asked(world: &World) -> Result<()> {
    world.on_guest(|desk| {
        let client = desk.connect().open()?;
        echo_new_word(&client, desk.guest)?;
        desk.guest.request("shutdown")?;
        goes_off(desk, &client)
    })
}

/// The guest is off, and the client shows a notice instead of its last picture.
fn goes_off(desk: &Desk<'_>, client: &Client) -> Result<()> {
    desk.guest.wait_for_state("stopped")?;
    client.wait_for_screen(font()?, "a notice", shows_notice).map(drop)
}

/// Whether there is something, and none of it is written with a console's letters.
fn shows_notice(screen: &Screen) -> bool {
    let mut words = screen.lines().flat_map(str::split_whitespace);
    let is_word = |word: &str| word.len() > 2 && word.chars().all(|c| c.is_ascii_alphabetic());
    screen.last() != "" && !words.any(is_word)
}

fn a_paused_guest_stands_still_and_a_reset_one_boots_anew(world: &World) -> Result<()> {
    world.on_guest(|desk| {
        let client = desk.connect().open()?;
        enter(&client, "counter")?;
        wait_for_count(&client, 2)?;
        desk.guest.request("pause")?;
        desk.guest.wait_for_state("paused")?;
        let stands = desk.guest.picture()?;
        stays_so(Duration::from_secs(3), || {
            ensure!(desk.guest.picture()? == stands, "a paused guest draws");
            Ok(())
        })?;
        desk.guest.request("resume")?;
        let count = last_count(&font()?.read(&stands)).context("no number on the screen")?;
        wait_for_count(&client, count + 2)?;
        desk.guest.request("reset")?;
        client.wait_for_screen(font()?, "a screen without numbers", |screen| last_count(screen).is_none())?;
        desk.guest.wait_for_prompt()?;
        echo_new_word(&client, desk.guest)?;
        client.close()
    })
}

fn a_gateway_that_stops_says_so(_: &World) -> Result<()> {
    let (mut gateway, person, guest) = gateway_with_guest()?;
    guest.request("start")?;
    let qemu = guest.pid()?;
    let mut clients = [gateway.client(&person).open()?, gateway.client(&person).with(["-gfx"]).open()?];
    let status = gateway.stop()?;
    ensure!(status.success(), "the gateway ended with {status}");
    for client in &mut clients {
        let end = client.wait_for_end()?;
        let told = end.errors.iter().any(|error| error == "ERRINFO_RPC_INITIATED_DISCONNECT");
        ensure!(told, "the client ended with {end:?}");
    }
    rustix::process::test_kill_process(qemu).context("the guest is gone with the gateway")?;
    gateway.start_again()?;
    ensure!(guest.pid()? == qemu, "the guest was not taken back");
    Ok(())
}

fn a_deleted_vm_ends_its_sessions(_: &World) -> Result<()> {
    let (gateway, person, guest) = gateway_with_guest()?;
    let mut client = gateway.client(&person).open()?;
    guest.delete()?;
    let end = client.wait_for_end()?;
    ensure!(
        end.errors.iter().any(|error| error == "ERRINFO_RPC_INITIATED_DISCONNECT"),
        "the client ended with {end:?}"
    );
    ensure!(guest.state().is_err(), "the VM is still there");
    Ok(())
}

fn gateway_with_guest() -> Result<(Gateway, Person, Guest)> {
    let gateway = Gateway::start()?;
    let person = gateway.add_user("demo", "a-word-and-9-more", None)?;
    let guest = gateway.create_guest("only")?;
    Ok((gateway, person, guest))
}

/// Waits until the guest's `counter` has written `least` or more on the client's screen; what it has written.
fn wait_for_count(client: &Client, least: u32) -> Result<u32> {
    let what = format!("the count to be {least}");
    let reached = |screen: &Screen| last_count(screen).is_some_and(|count| count >= least);
    let screen = client.wait_for_screen_within(CONNECT, font()?, &what, reached)?;
    last_count(&screen).context("a count that was there a moment ago")
}

fn last_count(screen: &Screen) -> Option<u32> {
    screen.last().strip_prefix("counter ")?.parse().ok()
}

fn lines_after(screen: &Screen, count: u32) -> Vec<String> {
    screen.lines().skip_while(|line| *line != format!("counter {count}")).map(str::to_owned).collect()
}
