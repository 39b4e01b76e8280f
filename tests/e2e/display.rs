//! What a person sees: the boot, what they type, what others do, to the last bit what the guest shows.

use anyhow::{Result, ensure};
use fanlight_tests::gateway::Gateway;
use fanlight_tests::guest::{BOOT, at_prompt};
use fanlight_tests::picture::Likeness;

use crate::harness::journeys;
use crate::world::{World, echo_new_word, enter, font, new_word, wait_for_line};

journeys![
    a_boot_is_seen_from_a_notice_to_the_prompt,
    what_is_typed_appears_to_the_bit,
    a_screen_full_of_scrolling_text_arrives_to_the_bit,
    two_clients_see_two_guests,
    a_second_client_shares_the_screen,
];

fn a_boot_is_seen_from_a_notice_to_the_prompt(_: &World) -> Result<()> {
    let gateway = Gateway::start()?;
    let person = gateway.add_user("demo", "secret-of-demo", None)?;
    let guest = gateway.create_guest("only")?;
    // Switched off: there is something to read, and no picture of a guest.
    let client = gateway.client(&person).open()?;
    let notice = client.wait_for_drawing()?;
    guest.request("start")?;
    let messages = "messages of the kernel, and no prompt yet";
    client.wait_for_screen_within(BOOT, font()?, messages, |screen| {
        screen.lines().any(is_kernel_message) && !at_prompt(screen)
    })?;
    client.wait_for_screen_within(BOOT, font()?, "the prompt", at_prompt)?;
    let picture = client.wait_for_picture(Likeness::Exact, || guest.picture())?;
    ensure!(picture != notice, "the notice is still there");
    // And it takes typing, in the session that was there before the guest.
    echo_new_word(&client, &guest).map(drop)
}

fn what_is_typed_appears_to_the_bit(world: &World) -> Result<()> {
    world.on_guest(|desk| {
        let client = desk.connect().open()?;
        echo_new_word(&client, desk.guest)?;
        client.close()
    })
}

fn a_screen_full_of_scrolling_text_arrives_to_the_bit(world: &World) -> Result<()> {
    world.on_guest(|desk| {
        let client = desk.connect().open()?;
        let word = new_word();
        enter(&client, &format!("dmesg; seq 1 300; echo {word}"))?;
        wait_for_line(&client, desk.guest, &word)?;
        client.close()
    })
}

fn two_clients_see_two_guests(world: &World) -> Result<()> {
    world.on_two_guests(|first, second| {
        let (left, right) = (first.connect().open()?, second.connect().open()?);
        let left_word = echo_new_word(&left, first.guest)?;
        let right_word = echo_new_word(&right, second.guest)?;
        let (left_screen, right_screen) = (left.screen(font()?)?, right.screen(font()?)?);
        ensure!(!left_screen.has(&right_word), "the second guest's word is on the first's screen:\n{left_screen:?}");
        ensure!(!right_screen.has(&left_word), "the first guest's word is on the second's screen:\n{right_screen:?}");
        Ok(())
    })
}

fn a_second_client_shares_the_screen(world: &World) -> Result<()> {
    world.on_guest(|desk| {
        let (first, second) = (desk.connect().open()?, desk.connect().open()?);
        // Both type, both see.
        let word = echo_new_word(&first, desk.guest)?;
        wait_for_line(&second, desk.guest, &word)?;
        let word = echo_new_word(&second, desk.guest)?;
        wait_for_line(&first, desk.guest, &word)?;
        // One goes, the other stays.
        first.close()?;
        echo_new_word(&second, desk.guest).map(drop)
    })
}

/// `[    1.234567] something`.
fn is_kernel_message(line: &str) -> bool {
    let time = line.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    time.is_some_and(|(time, _)| time.trim().parse::<f32>().is_ok())
}
