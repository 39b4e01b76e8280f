//! Four guests whose maxima are more than there is, and four people at them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fanlight_tests::client::{Client, Connect};
use fanlight_tests::gateway::{Gateway, Person};
use fanlight_tests::guest::{Guest, Machine, Memory};
use fanlight_tests::picture::Likeness;
use fanlight_tests::wait::{Look, wait_until};
use serde_json::Value;

use crate::harness::journeys;
use crate::world::{World, echo_new_word, enter, font};

journeys![guests_lend_each_other_memory_and_nobody_is_killed, memory_is_shown_and_told];

/// What the four share, in MiB: as much as they start with, and less than half of what they could have.
const POOL: u64 = 1280;
const STARTUP: u64 = POOL / 4;
const MEMORY: Memory = Memory { startup: STARTUP, minimum: 200, maximum: 720 };
const SHARING: Machine = Machine { network: false, memory: Some(MEMORY), tables: "", parameters: "" };
const NAMES: [&str; 4] = ["one", "two", "three", "four"];
/// What is filled in a guest, in MiB. With it a guest needs far more than it started with.
const LOAD: u64 = 320;
/// How long memory may take to its place. It takes seconds; the machine may do much else.
const MOVED: Duration = Duration::from_secs(300);

fn guests_lend_each_other_memory_and_nobody_is_killed(_: &World) -> Result<()> {
    let (gateway, person) = gateway()?;
    let guests = NAMES.map(|name| gateway.create_guest_on(name, SHARING)).into_iter().collect::<Result<Vec<_>>>()?;
    for guest in &guests {
        guest.request("start")?;
    }
    for guest in &guests {
        guest.wait_for_prompt()?;
    }
    each_is_seen_by_its_client(&gateway, &person, &guests)?;
    for name in NAMES {
        wait_for(&gateway, name, "a report", |vm| vm.demand > 0)?;
    }
    let mut loaded = None;
    // Back again: what one was lent, the next one gets.
    for name in ["one", "three"] {
        if let Some(before) = loaded.replace(name) {
            fill(&gateway, &person, before, 0)?;
        }
        fill(&gateway, &person, name, LOAD)?;
        let busy = wait_for(&gateway, name, "growth", |vm| vm.assigned >= STARTUP + LOAD / 2)?;
        ensure!(busy.demand >= LOAD, "its load does not count: {busy:?}");
        let all = all(&gateway)?;
        let idle: u64 = all.iter().filter(|vm| vm.name != name).map(|vm| vm.assigned).sum();
        ensure!(idle < 3 * STARTUP, "nobody gave anything: {all:?}");
        ensure!(all.iter().all(|vm| vm.assigned >= MEMORY.minimum), "less than the minimum: {all:?}");
    }
    fill(&gateway, &person, "three", 0)?;
    wait_for(&gateway, "three", "memory to be given back", |vm| vm.assigned < STARTUP + LOAD / 2)?;
    for vm in all(&gateway)? {
        ensure!(vm.killed == 0, "programs were killed: {vm:?}");
    }
    for guest in &guests {
        ensure!(guest.state()? == "running", "`{}` is {}", guest.name(), guest.state()?);
    }
    Ok(())
}

/// All connected at once, each at a guest of its own, whose picture it shows to the bit.
fn each_is_seen_by_its_client(gateway: &Gateway, person: &Person, guests: &[Guest]) -> Result<()> {
    let clients = guests.iter().map(|guest| connect(gateway, person, guest.name()).open());
    let clients = clients.collect::<Result<Vec<_>>>()?;
    let mut sessions = gateway.sessions()?;
    let mut names: Vec<&str> = guests.iter().map(Guest::name).collect();
    sessions.sort();
    names.sort_unstable();
    ensure!(sessions == names, "there are sessions of {sessions:?}");
    let words = clients.iter().zip(guests).map(|(client, guest)| echo_new_word(client, guest));
    let words = words.collect::<Result<Vec<_>>>()?;
    for ((client, guest), word) in clients.iter().zip(guests).zip(&words) {
        client.wait_for_picture(Likeness::Exact, || guest.picture())?;
        let screen = client.screen(font()?)?;
        let shown: Vec<&String> = words.iter().filter(|word| screen.has(word)).collect();
        ensure!(shown == [word], "of {words:?} the client of `{}` shows {shown:?}:\n{screen:?}", guest.name());
    }
    clients.into_iter().try_for_each(Client::close)
}

fn memory_is_shown_and_told(_: &World) -> Result<()> {
    let gateway = Gateway::start_with("[memory]\npool = 1280\nreserve = 64\n")?;
    gateway.create_guest("fixed")?;
    let guest = gateway.create_guest_on("one", SHARING)?;
    let shown = text(&gateway, &["vm", "show", "one"])?;
    ensure!(shown.contains("memory       200 to 720 MiB, starts with 320"), "vm show says {shown}");
    guest.boot()?;
    wait_for(&gateway, "one", "a report", |vm| vm.demand > 0)?;
    let table = text(&gateway, &["memory"])?;
    ensure!(table.contains("VMs with dynamic memory share 1280 and have 320"), "memory says {table}");
    let row = table.lines().find(|line| line.starts_with("one ")).context("no row")?;
    ensure!(row.contains("running") && row.contains("has what it wants"), "memory says {table}");
    ensure!(table.lines().any(|line| line.starts_with("fixed ") && line.ends_with("always the same")), "{table}");
    let shown = text(&gateway, &["vm", "show", "one"])?;
    ensure!(shown.contains("memory       320 MiB of 200 to 720 MiB, uses "), "vm show says {shown}");
    Ok(())
}

/// A VM as `GET /v1/memory` has it; what is not known is 0.
#[derive(Debug)]
struct VmMemory {
    name: String,
    assigned: u64,
    demand: u64,
    killed: u64,
}

fn gateway() -> Result<(Gateway, Person)> {
    let gateway = Gateway::start_with(&format!("[memory]\npool = {POOL}\nreserve = 64\nreclaim-after = 5\n"))?;
    let person = gateway.add_user("demo", "lend-me-some-64", None)?;
    Ok((gateway, person))
}

fn all(gateway: &Gateway) -> Result<Vec<VmMemory>> {
    let overview = gateway.api().get("/v1/memory")?;
    let vms = overview["vms"].as_array().context("VMs are a list")?;
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    Ok(vms
        .iter()
        .map(|vm| VmMemory {
            name: vm["vm"].as_str().unwrap_or_default().to_owned(),
            assigned: number(&vm["assigned"]),
            demand: number(&vm["dynamic"]["demand"]),
            killed: number(&vm["dynamic"]["killed"]),
        })
        .collect())
}

/// Waits until `enough` says so of the memory of the VM `name`.
fn wait_for(gateway: &Gateway, name: &str, what: &str, enough: impl Fn(&VmMemory) -> bool) -> Result<VmMemory> {
    wait_until(MOVED, format_args!("{what} of `{name}`"), || {
        let mut all = all(gateway)?;
        let place = all.iter().position(|vm| vm.name == name && enough(vm));
        Ok(Look::or_not_yet(place.map(|place| all.swap_remove(place)), || format!("{all:?}")))
    })
}

/// Has the guest use so many MiB more than it does by itself; it takes no more at a time than it has.
fn fill(gateway: &Gateway, person: &Person, name: &str, mib: u64) -> Result<()> {
    let client = connect(gateway, person, name).open()?;
    enter(&client, &format!("fill {mib}"))?;
    let done = format!("filled {mib},");
    let screen = client
        .wait_for_screen_within(MOVED, font()?, &done, |screen| screen.lines().any(|line| line.starts_with(&done)))?;
    let line = screen.lines().find(|line| line.starts_with(&done)).context("it was there a moment ago")?;
    ensure!(line.ends_with("killed 0"), "programs were killed in `{name}`: {line}");
    client.close()
}

fn connect(gateway: &Gateway, person: &Person, vm: &str) -> Connect {
    Connect::to(gateway.address(), &format!("{vm}\\{}", person.name), &person.password)
}

fn text(gateway: &Gateway, arguments: &[&str]) -> Result<String> {
    let output = gateway.command(arguments, "")?;
    ensure!(output.status.success(), "{arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
