//! Keys take the bus where they shall, virtual hardware where they shall not, and go over from one to the other while
//! somebody types.

use std::time::Duration;

use anyhow::{Result, ensure};
use fanlight_tests::client::Client;
use fanlight_tests::headless::{self, run};
use fanlight_tests::keys::keysym;
use fanlight_tests::shell::Shell;
use fanlight_tests::text::Screen;
use fanlight_tests::wait::stays_so;

use super::{headless as options, shell};
use crate::harness::journeys;
use crate::world::{Desk, World, echo_new_word, font, new_word, wait_for_line};

journeys![
    typed_text_takes_the_rings_where_there_are_any,
    typed_text_takes_the_stream_where_there_is_nothing_else,
    typed_text_takes_the_hardware_where_the_definition_says_so,
    keys_go_over_to_the_hardware_and_back_while_shift_is_held,
    keys_that_may_take_only_the_bus_wait_for_the_agent,
    an_agent_that_is_killed_while_somebody_types_leaves_no_key_behind,
    what_is_typed_while_the_agent_comes_stays_in_order,
    characters_take_the_bus_with_the_keys,
];

/// How the guest's shell takes the agent away, and how it gives it back. What waits in its place is a `sleep`.
const TAKE_AGENT: &str =
    "mv /bin/fanlight-agent /bin/away; kill -9 $(pidof fanlight-agent); until pidof sleep; do usleep 50000; done";
const GIVE_AGENT: &str = "mv /bin/away /bin/fanlight-agent; kill $(pidof sleep)";
/// A shell's line holds a thousand letters.
const MOST_TYPED: usize = 900;
/// How long a key that repeats itself takes to be seen.
const A_WHILE: Duration = Duration::from_secs(2);

fn typed_text_takes_the_rings_where_there_are_any(world: &World) -> Result<()> {
    world.on_rings(|desk| {
        let by_bus = typed_by_bus(desk)?;
        ensure!(by_bus > 0, "nothing of it went over the bus");
        Ok(())
    })
}

fn typed_text_takes_the_stream_where_there_is_nothing_else(world: &World) -> Result<()> {
    world.on_stream(|desk| {
        let by_bus = typed_by_bus(desk)?;
        ensure!(by_bus > 0, "nothing of it went over the bus");
        Ok(())
    })
}

fn typed_text_takes_the_hardware_where_the_definition_says_so(world: &World) -> Result<()> {
    world.on_hardware(|desk| {
        let by_bus = typed_by_bus(desk)?;
        ensure!(by_bus == 0, "{by_bus} messages went over the bus");
        Ok(())
    })
}

/// Types a command in a real client; how many messages of input the agent got meanwhile.
fn typed_by_bus(desk: &Desk<'_>) -> Result<u64> {
    desk.guest.wait_for_agent()?;
    let client = desk.connect().open()?;
    // What a session says when it begins is not counted.
    echo_new_word(&client, desk.guest)?;
    let before = desk.guest.bus()?.sent("input");
    echo_new_word(&client, desk.guest)?;
    let sent = desk.guest.bus()?.sent("input") - before;
    client.close()?;
    Ok(sent)
}

fn keys_go_over_to_the_hardware_and_back_while_shift_is_held(world: &World) -> Result<()> {
    world.on_rings(|desk| {
        desk.guest.wait_for_agent()?;
        let client = desk.connect().open()?;
        let mut shell = shell(desk, &client)?;
        let word = new_word();
        client.type_text(&format!("echo {word}"))?;
        client.press(keysym::SHIFT)?;
        tap(&client, "ab")?;
        ends_with(&client, &format!("{word}AB"))?;
        take_agent(desk, &mut shell)?;
        let before = desk.guest.bus()?.connections();
        tap(&client, "cd")?;
        ends_with(&client, &format!("{word}ABCD"))?;
        give_agent(desk, &mut shell)?;
        ensure!(desk.guest.bus()?.connections() == before + 1, "the agent came more than once");
        tap(&client, "ef")?;
        ends_with(&client, &format!("{word}ABCDEF"))?;
        ensure!(desk.guest.bus()?.sent("input") > 0, "the agent is there and nothing goes over the bus");
        client.release(keysym::SHIFT)?;
        tap(&client, "gh")?;
        ends_with(&client, &format!("{word}ABCDEFgh"))?;
        stands_still(&client)?;
        client.type_text("\n")?;
        wait_for_line(&client, desk.guest, &format!("{word}ABCDEFgh"))?;
        client.close()
    })
}

fn keys_that_may_take_only_the_bus_wait_for_the_agent(world: &World) -> Result<()> {
    world.on_stream(|desk| {
        desk.guest.wait_for_agent()?;
        let client = desk.connect().open()?;
        let mut shell = shell(desk, &client)?;
        let word = new_word();
        client.type_text(&format!("echo {word}"))?;
        ends_with(&client, &word)?;
        client.press(keysym::SHIFT)?;
        take_agent(desk, &mut shell)?;
        tap(&client, "abc")?;
        stands_still(&client)?;
        ends_with(&client, &word)?;
        give_agent(desk, &mut shell)?;
        // Shift is held all the time.
        tap(&client, "de")?;
        ends_with(&client, &format!("{word}DE"))?;
        client.release(keysym::SHIFT)?;
        client.type_text("f\n")?;
        wait_for_line(&client, desk.guest, &format!("{word}DEf"))?;
        client.close()
    })
}

fn an_agent_that_is_killed_while_somebody_types_leaves_no_key_behind(world: &World) -> Result<()> {
    world.on_rings(|desk| {
        let before = desk.guest.wait_for_agent()?.connections();
        let client = desk.connect().open()?;
        let mut shell = shell(desk, &client)?;
        let word = new_word();
        client.type_text(&format!("echo {word}"))?;
        ends_with(&client, &word)?;
        client.press(keysym::SHIFT)?;
        shell.run("(usleep 300000; kill -9 $(pidof fanlight-agent)) >/dev/null 2>&1 &")?;
        let mut typed = String::new();
        for letter in ('a'..='z').cycle() {
            tap(&client, &letter.to_string())?;
            typed.push(letter.to_ascii_uppercase());
            if desk.guest.bus()?.connections() != before {
                break;
            }
        }
        desk.guest.wait_for_agent()?;
        client.release(keysym::SHIFT)?;
        // What was on its way to the agent when it died is gone, and that is all.
        tap(&client, "xyz")?;
        client.wait_for_screen(font()?, "what was typed last", |screen| line_of(screen, &word).ends_with("xyz"))?;
        stands_still(&client)?;
        let seen = line_of(&client.screen(font()?)?, &word);
        typed += "xyz";
        ensure!(is_part(&seen, &typed), "of {typed} came {seen}");
        client.type_text("\n")?;
        echo_new_word(&client, desk.guest)?;
        client.close()
    })
}

fn what_is_typed_while_the_agent_comes_stays_in_order(world: &World) -> Result<()> {
    world.on_rings(|desk| {
        desk.guest.wait_for_agent()?;
        let client = desk.connect().open()?;
        let mut shell = shell(desk, &client)?;
        take_agent(desk, &mut shell)?;
        let word = new_word();
        let ends = |screen: &Screen| line_of(screen, &word).ends_with("the end");
        let (typed, screen) = run(async {
            let mut fast = headless::Client::connect(&options(desk)).await?;
            fast.type_text(&format!("echo {word}")).await?;
            shell.run(GIVE_AGENT)?;
            let mut typed = String::new();
            // Twice as fast as virtual hardware takes it: some of it waits when the agent comes.
            for letter in ('a'..='z').cycle().take(MOST_TYPED) {
                fast.type_text(&letter.to_string()).await?;
                typed.push(letter);
                fast.during(Duration::from_millis(10)).await?;
                if letter == 'z' && desk.guest.bus()?.is_complete() {
                    break;
                }
            }
            fast.type_text("the end").await?;
            desk.guest.wait_for_agent()?;
            // Who goes without a farewell takes back what has not been read.
            Ok((typed + "the end", client.wait_for_screen(font()?, "what was typed last", ends)?))
        })?;
        let seen = line_of(&screen, &word);
        ensure!(seen == typed, "{typed} came as\n{seen}");
        client.type_text("\n")?;
        client.close()
    })
}

fn characters_take_the_bus_with_the_keys(world: &World) -> Result<()> {
    world.on_stream(|desk| {
        desk.guest.wait_for_agent()?;
        let client = desk.connect().with(["/kbd:unicode:on"]).open()?;
        let word = new_word();
        client.type_text(&format!("echo '{word} Ab~|%_z'\n"))?;
        wait_for_line(&client, desk.guest, &format!("{word} Ab~|%_z"))?;
        client.close()
    })
}

/// Presses keys one after the other, whatever is held besides.
fn tap(client: &Client, keys: &str) -> Result<()> {
    keys.chars().try_for_each(|key| client.tap(u32::from(key)))
}

/// Waits until the line that is being typed ends with `text`.
fn ends_with(client: &Client, text: &str) -> Result<Screen> {
    client.wait_for_screen(font()?, &format!("`{text}`"), |screen| screen.last().ends_with(text))
}

/// What stands on the screen after a while is what stands there now.
fn stands_still(client: &Client) -> Result<()> {
    let screen = client.screen(font()?)?;
    stays_so(A_WHILE, || {
        let now = client.screen(font()?)?;
        ensure!(now == screen, "it was\n{screen:?}\nand is\n{now:?}");
        Ok(())
    })
}

/// What was typed behind `word`, also where it goes on in the next lines.
fn line_of(screen: &Screen, word: &str) -> String {
    let mut lines = screen.lines().skip_while(|line| !line.contains(&format!("echo {word}")));
    let first = lines.next().and_then(|line| line.split_once(word)).map(|(_, rest)| rest.to_owned());
    first.into_iter().chain(lines.map(str::to_owned)).collect()
}

/// Whether all of `part` is in `whole`, in the same order.
fn is_part(part: &str, whole: &str) -> bool {
    let mut rest = whole.chars();
    part.chars().all(|letter| rest.any(|other| other == letter))
}

fn take_agent(desk: &Desk<'_>, shell: &mut Shell) -> Result<()> {
    shell.run(TAKE_AGENT)?;
    desk.guest.wait_for_bus("the end of the agent", |bus| !bus.is_connected()).map(drop)
}

fn give_agent(desk: &Desk<'_>, shell: &mut Shell) -> Result<()> {
    shell.run(GIVE_AGENT)?;
    desk.guest.wait_for_agent().map(drop)
}
