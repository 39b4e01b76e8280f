//! How often a bus on which nothing is said wakes the agent and the gateway.
//!
//! A thread that waits of its own accord is woken once for each time: so the kernel's count of those is the count of
//! wake-ups. All threads of a process are added up.

use std::time::{Duration, Instant};

use anyhow::Result;
use fanlight_tests::guest::Machine;
use fanlight_tests::headless::keyboard::ENTER;
use fanlight_tests::shell::{Port, Shell};
use serde_json::{Value, json};

use crate::machine::{count_wakes, wakes};
use crate::report::{Report, median};
use crate::world::World;

const ROUNDS: usize = 5;
const WINDOW: Duration = Duration::from_secs(10);
const LIMIT: f64 = 2.0;
/// How long the guest may take to show what was typed, and how often it is typed: keys of a busy guest may come twice.
const ECHO: Duration = Duration::from_secs(10);
const TRIES: usize = 5;
/// What the guest's shell is asked.
const COUNT: &str = "cat /proc/$(pidof fanlight-agent)/task/*/status";
const NAME: &str = "idle";

/// Wake-ups per second.
#[derive(Default)]
struct Wakes {
    agent: Vec<f64>,
    gateway: Vec<f64>,
}

/// Measures it and adds it to the report.
pub(super) async fn measure(report: &mut Report) -> Result<()> {
    let rings = Machine { network: true, ..Machine::default() };
    let stream = Machine { tables: "[bus]\nmemory = 0\n", ..rings };
    let mut rows = Vec::new();
    for (way, machine) in [("rings", rings), ("stream", stream)] {
        let wakes = Wakes::on(machine).await?;
        let (agent, gateway) = (median(&wakes.agent), median(&wakes.gateway));
        rows.push(vec![
            ("way", json!(way)),
            ("agent, per second", json!(agent)),
            ("gateway, per second", json!(gateway)),
        ]);
        report.at_most(format!("an idle bus on the {way} wakes the agent"), agent, LIMIT, "times per second");
        report.at_most(format!("an idle bus on the {way} wakes the gateway"), gateway, LIMIT, "times per second");
    }
    report
        .table(format!("Wake-ups with one guest at its prompt and no session, median of {ROUNDS} × {WINDOW:?}"), rows);
    Ok(())
}

impl Wakes {
    async fn on(machine: Machine) -> Result<Self> {
        let world = World::start_on(NAME, machine)?;
        world.guest(NAME)?.wait_for_agent()?;
        let mut shell = shell(&world).await?;
        world.wait_for_sessions(0)?;
        let gateway = world.gateway_pid()?;
        let mut count = || Ok::<_, anyhow::Error>((Instant::now(), count_wakes(&shell.run(COUNT)?)?, wakes(gateway)?));
        let (mut counted, mut before) = (Self::default(), count()?);
        for _ in 0..ROUNDS {
            std::thread::sleep(WINDOW);
            let now = count()?;
            let seconds = (now.0 - before.0).as_secs_f64();
            counted.agent.push(now.1.saturating_sub(before.1) as f64 / seconds);
            counted.gateway.push(now.2.saturating_sub(before.2) as f64 / seconds);
            before = now;
        }
        Ok(counted)
    }
}

/// A shell in the guest that needs neither session nor bus, once a client has typed for it.
async fn shell(world: &World) -> Result<Shell> {
    let guest = world.guest(NAME)?;
    guest.wait_for_info("an address", has_address)?;
    let port = Port::open()?;
    let line = Shell::line(&port)?;
    let mut client = world.client(NAME).await?;
    for last in (0..TRIES).rev() {
        client.type_text(&line).await?;
        let shown = guest.wait_for_screen(ECHO, &line, |screen| screen.last().ends_with(&line));
        client.tap(ENTER).await?;
        match shown {
            Err(error) if last == 0 => return Err(error),
            Err(_) => {}
            Ok(_) => break,
        }
    }
    Ok(Shell::new(port.accept()?))
}

/// Whether it has one of QEMU's network.
fn has_address(info: &Value) -> bool {
    let interfaces = info["details"]["interfaces"].as_array().map(Vec::as_slice).unwrap_or_default();
    let addresses = interfaces.iter().filter_map(|interface| interface["addresses"].as_array()).flatten();
    addresses.filter_map(Value::as_str).any(|address| address.starts_with("10.0.2."))
}
