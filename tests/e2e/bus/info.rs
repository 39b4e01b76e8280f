//! What an administrator is told by a guest's agent, and about the bus that it uses.

use anyhow::{Context, Result, ensure};
use fanlight_tests::gateway::Gateway;
use serde_json::Value;

use super::{has_address, shell};
use crate::harness::journeys;
use crate::world::{Desk, World};

journeys![
    an_agent_on_rings_tells_about_its_guest,
    an_agent_on_the_stream_tells_about_its_guest,
    an_agent_without_shared_memory_tells_about_its_guest,
    a_guest_without_an_agent_says_nothing,
];

/// What every VM is offered.
const CLASSES: [&str; 6] = ["guest-info", "heartbeat", "input", "memory", "shutdown", "timesync"];

fn an_agent_on_rings_tells_about_its_guest(world: &World) -> Result<()> {
    world.on_rings(|desk| {
        desk.guest.wait_for_info("an address", has_address)?;
        tells_about_its_guest(desk, "ring", "through shared memory")?;
        tells_the_truth(desk)
    })
}

fn an_agent_on_the_stream_tells_about_its_guest(world: &World) -> Result<()> {
    world.on_stream(|desk| {
        desk.guest.wait_for_info("an address", has_address)?;
        tells_about_its_guest(desk, "stream", "through the port alone")?;
        tells_the_truth(desk)
    })
}

fn an_agent_without_shared_memory_tells_about_its_guest(world: &World) -> Result<()> {
    world.on_hardware(|desk| tells_about_its_guest(desk, "stream", "through the port alone"))
}

/// What the commands of the command line say, for programs and for people.
fn tells_about_its_guest(desk: &Desk<'_>, transport: &str, in_words: &str) -> Result<()> {
    let (gateway, name) = (desk.gateway, desk.guest.name());
    let bus = desk.guest.wait_for_agent()?;
    let mut classes = bus.classes();
    classes.sort_unstable();
    ensure!(classes == CLASSES, "what is offered is {classes:?}");
    ensure!(bus.transports() == [transport], "it uses {bus:?}");
    ensure!(bus.faults() == 0, "it broke rules: {bus:?}");
    desk.guest.wait_for_info("everything", is_all_told)?;

    let info: Value = serde_json::from_str(&says(gateway, &["guest", "info", name, "--json"])?)?;
    let details = &info["details"];
    ensure!(details["host_name"] == "console" && details["system"] == "Linux", "the guest is {details}");
    ensure!(details["agent_version"] == env!("CARGO_PKG_VERSION"), "the agent is {details}");
    ensure!(info["health"] == "healthy" && info["clock"]["follows"] == true, "the guest is {info}");
    let memory = |which: &str| info["memory"][which].as_u64().unwrap_or(0) >> 20;
    ensure!((128..=256).contains(&memory("total")) && memory("available") < memory("total"), "memory in {info}");

    let kernel = details["kernel"].as_str().context("a guest without a kernel")?;
    let told = says(gateway, &["guest", "info", name])?;
    ensure!(told.contains("console") && told.contains(kernel) && told.contains("healthy"), "people read\n{told}");
    let pongs = says(gateway, &["guest", "ping", name, "--count", "3"])?;
    ensure!(pongs.lines().filter(|line| line.contains("answers")).count() == 3, "people read\n{pongs}");
    let shown = says(gateway, &["vm", "show", name])?;
    ensure!(shown.contains(&format!("connected, {in_words}")) && !shown.contains("faults"), "people read\n{shown}");
    for class in CLASSES {
        let is_there = |line: &str| line.split_whitespace().take(3).eq(["channel", class, &format!("{transport},")]);
        ensure!(shown.lines().any(is_there), "no {class} on a {transport} in\n{shown}");
    }
    Ok(())
}

fn is_all_told(info: &Value) -> bool {
    ["details", "health", "clock", "memory"].iter().all(|what| !info[*what].is_null())
}

/// What the agent says is what the guest's own programs say.
fn tells_the_truth(desk: &Desk<'_>) -> Result<()> {
    let client = desk.connect().open()?;
    let mut shell = shell(desk, &client)?;
    let info = desk.guest.wait_for_info("an address", has_address)?;
    let details = &info["details"];
    ensure!(details["kernel"] == shell.run("uname -r")?, "the kernel in {details}");
    ensure!(details["architecture"] == shell.run("uname -m")?, "the architecture in {details}");
    let card = details["interfaces"].as_array().context("no interfaces")?.iter().find(|card| card["name"] == "eth0");
    let card = card.with_context(|| format!("no card in {details}"))?;
    ensure!(card["mac"] == shell.run("cat /sys/class/net/eth0/address")?, "the card is {card}");
    let address = shell.run("ip -4 -o addr show eth0 | sed 's/.*inet //; s/ .*//'")?;
    ensure!(card["addresses"][0] == address.as_str(), "the card is {card}, and its address {address}");
    client.close()
}

fn a_guest_without_an_agent_says_nothing(_: &World) -> Result<()> {
    let gateway = Gateway::start()?;
    let guest = gateway.create_guest("off")?;
    for arguments in [["guest", "info", "off"], ["guest", "ping", "off"], ["vm", "reboot", "off"]] {
        let output = gateway.command(&arguments, "")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(4), "{arguments:?} ended with {}: {errors}", output.status);
        ensure!(errors.contains("no agent answers in `off`"), "{arguments:?} does not say why: {errors}");
    }
    // It is there as soon as it has been started, and the agent is not.
    guest.request("start")?;
    let shown = says(&gateway, &["vm", "show", "off"])?;
    ensure!(shown.contains("no agent is there"), "people read\n{shown}");
    guest.request("stop")
}

/// What a command that must succeed writes.
fn says(gateway: &Gateway, arguments: &[&str]) -> Result<String> {
    let output = gateway.command(arguments, "")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?} ended with {}: {errors}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}
