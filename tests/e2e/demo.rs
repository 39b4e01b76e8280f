//! The first minute of somebody who tries it out.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fanlight_tests::client::Connect;
use fanlight_tests::environment::environment;
use fanlight_tests::guest::{BOOT, at_prompt};
use fanlight_tests::process::Process;
use fanlight_tests::scratch;

use crate::harness::journeys;
use crate::world::{World, enter, font, new_word};

journeys![the_printed_line_leads_to_a_shell];

/// How long the demo may take to say that it is ready.
const READY: Duration = Duration::from_secs(30);

fn the_printed_line_leads_to_a_shell(_: &World) -> Result<()> {
    let under_test = environment()?;
    let state = scratch::folder("demo")?;
    let mut command = Command::new(&under_test.program);
    command.args(["demo", "--port", "0", "--state"]).arg(&state);
    command.arg("--kernel").arg(&under_test.kernel).arg("--initrd").arg(&under_test.initrd);
    command.args(["--cmdline", &under_test.cmdline]);
    let mut demo = Process::start(command, &state.with_extension("log"))?;
    let _guest = EndGuests(&state);
    let ready =
        demo.wait_for_line(READY, "the line for programs", |line| Some(line.strip_prefix("ready: ")?.to_owned()))?;
    let value = |name: &str| {
        let found = ready.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        found.with_context(|| format!("no {name} in `{ready}`"))
    };
    let address: SocketAddr = value("rdp")?.parse()?;
    let client = Connect::to(address, value("user")?, value("password")?).open()?;
    client.wait_for_screen_within(BOOT, font()?, "the prompt", at_prompt)?;
    let word = new_word();
    enter(&client, &format!("echo {word}"))?;
    client.wait_for_screen(font()?, &word, |screen| screen.has_line(&word))?;

    let status = demo.interrupt()?;
    ensure!(status.success(), "after Ctrl-C it ended with {status}");
    ensure!(scratch::guests_of(&state).is_empty(), "its guest still runs");
    Ok(())
}

/// Ends what the demo leaves behind when it fails.
struct EndGuests<'a>(&'a std::path::Path);

impl Drop for EndGuests<'_> {
    fn drop(&mut self) {
        scratch::end_guests_of(self.0);
    }
}
