//! A guest that writes into the memory of its bus whatever it likes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fanlight_tests::client::Client;
use fanlight_tests::gateway::Gateway;
use fanlight_tests::guest::{BOOT, Machine, at_prompt};
use fanlight_tests::text::Screen;
use fanlight_tests::wait::{Look, wait_until};

use super::shell;
use crate::harness::journeys;
use crate::world::{Desk, World, echo_new_word, font, new_word};

journeys![a_guest_that_breaks_rules_is_told_off_once_and_keeps_all_else];

/// What the log says of such a guest.
const TOLD_OFF: &str = "the guest breaks the bus's rules again and again";
/// Three of each channel: so each is kept from it once. What is offered again may be elsewhere, where nobody scribbles.
const FAULTS: u64 = 18;
/// How long its shell may take to an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// The places of the rings' control pages (docs/bus.md 7.3): both ends have written the same tag there.
const FIND: &str = "\
for d in /sys/bus/pci/devices/*; do \
    grep -q 0x1110 $d/device && grep -q 0x1af4 $d/vendor && read -r bar _ <<END
$(sed -n 3p $d/resource)
END
done; \
page=$((bar + 0x4000)); end=$((page + 0x200000)); \
while [ $page -lt $end ]; do \
    tag=$(devmem $((page + 8)) 32); \
    if [ $tag != 0x00000000 ] && [ $tag = $(devmem $((page + 0x48)) 32) ]; then pages=\"$pages $page\"; fi; \
    page=$((page + 0x1000)); \
done; \
echo $pages";
/// Counters there that cannot be, again and again.
const SCRIBBLE: &str = "\
(while :; do for page in $pages; do devmem $page 32 7; devmem $((page + 0x40)) 32 7; done; done) >/dev/null 2>&1 & \
scribbler=$!";
const STOP: &str = "kill $scribbler";

fn a_guest_that_breaks_rules_is_told_off_once_and_keeps_all_else(_: &World) -> Result<()> {
    let gateway = Gateway::start()?;
    let person = gateway.add_user("demo", "quiet-harbour-3", None)?;
    let wild = gateway.create_guest_on("wild", Machine { network: true, ..Machine::default() })?;
    let tame = gateway.create_guest("tame")?;
    let desks = [&wild, &tame].map(|guest| Desk { guest, person: &person, gateway: &gateway });
    desks.iter().try_for_each(|desk| desk.guest.request("start"))?;
    desks.iter().try_for_each(|desk| desk.guest.wait_for_prompt())?;
    let (wild_client, tame_client) = (desks[0].connect().open()?, desks[1].connect().open()?);
    let mut shell = shell(&desks[0], &wild_client)?;
    let connections = tame.wait_for_agent()?.connections();
    let before = wild.wait_for_agent()?;
    ensure!(before.transports() == ["ring"] && before.faults() == 0, "its bus is {before:?}");
    let qemu = wild.pid()?;

    let pages = shell.run(FIND)?;
    let rings = 2 * before.classes().len();
    ensure!(pages.split_whitespace().count() == rings, "of {rings} rings these are found: {pages}");
    shell.run(SCRIBBLE)?;
    wait_until(BOOT, "the guest to be told off", || {
        Ok(Look::when(gateway.log().contains(TOLD_OFF), || format!("the gateway wrote\n{}", gateway.process().tail())))
    })?;
    answers(&wild_client)?;
    echo_new_word(&tame_client, &tame).context("on its neighbour")?;
    wild.wait_for_bus("three faults of each channel", |bus| bus.faults() >= FAULTS)?;
    answers(&wild_client)?;

    shell.run(STOP)?;
    let after = wild.wait_for_agent()?;
    ensure!(after.transports() == ["ring"] && after.connections() == before.connections(), "its bus is {after:?}");
    wild.wait_for_pong()?;
    echo_new_word(&wild_client, &wild).context("when it breaks no rule any more")?;
    ensure!(wild.state()? == "running" && wild.pid()? == qemu, "it was started over");
    let bus = tame.bus()?;
    ensure!(bus.faults() == 0 && bus.connections() == connections, "its neighbour's bus is {bus:?}");
    echo_new_word(&tame_client, &tame).context("on its neighbour")?;
    let told_off = gateway.log().lines().filter(|line| line.contains(TOLD_OFF)).count();
    ensure!(told_off == 1, "it is told off {told_off} times:\n{}", gateway.log());
    wild_client.close()?;
    tame_client.close()
}

/// The console goes on while the bus breaks. Keys that are on their way to an agent whose channel breaks are gone, and are
/// typed again.
fn answers(client: &Client) -> Result<()> {
    wait_until(BOOT, "an answer of a guest that breaks rules", || {
        let word = new_word();
        client.type_text(&format!("\necho {word}\n"))?;
        let answered = |screen: &Screen| screen.has_line(&word) && at_prompt(screen);
        let screen = client.wait_for_screen_within(ANSWER, font()?, &word, answered);
        Ok(screen.map_or_else(|error| Look::NotYet(format!("{error:#}")), |_| Look::Found(())))
    })
}
