//! How guests lend each other memory: made-up guests through an hour, and four real ones through a load.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fanlight_tests::gateway::Gateway;
use fanlight_tests::guest::{BOOT, Guest, Machine, Memory};
use fanlight_tests::headless::keyboard::ENTER;
use fanlight_tests::headless::{Client, Decode, Options};
use serde_json::{Value, json};
use vmm::memory::Tuning;
use vmm::memory::simulation::{Guest as MadeUp, Load, Second, Simulation};

use crate::machine::Span;
use crate::report::{Report, Row};
use crate::world::SIZE;

const NAMES: [&str; 4] = ["one", "two", "three", "four"];
/// What the real guests share, in MiB, and what each may have: as much as they start with, and less than half of what
/// they could have.
const POOL: u64 = 1280;
const MEMORY: Memory = Memory { startup: POOL / 4, minimum: 200, maximum: 720 };
const SHARING: Machine = Machine { network: false, memory: Some(MEMORY), tables: "", parameters: "" };
/// What is filled in the first guest, in MiB.
const LOAD: u64 = 320;
/// How long memory may take to come, at most.
const STEP: f64 = 2000.0;
/// How long the real guests are watched after their load is gone.
const AFTERWARDS: Duration = Duration::from_secs(60);
/// Columns of a plot.
const COLUMNS: usize = 72;
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What a guest had over time, in MiB: one entry each second.
struct Trace {
    name: String,
    used: Vec<u64>,
    assigned: Vec<u64>,
}

/// Runs everything.
pub(crate) async fn run() -> Result<Report> {
    let mut report = Report::new("dynamic-memory");
    simulate(&mut report);
    real(&mut report).await?;
    Ok(report)
}

/// The policy alone, with guests whose programs would be killed as soon as memory comes too late.
fn simulate(report: &mut Report) {
    let idle = || MadeUp::new(160, 384, 1024, Load::constant(120));
    let busy = |from: u32| MadeUp { load: Load::steps(&[(0, 120), (from, 800), (from + 300, 120)]), ..idle() };
    let simulated = [
        ("one of four needs 800 MiB, then another; they share 1536", 1536, vec![busy(60), idle(), busy(500), idle()]),
        ("weights 8000 and 2000, each needs 2000 MiB; they share 2048", 2048, vec![weighed(8000), weighed(2000)]),
        ("three with a need that sways by 5 %; they share 1200 MiB", 1200, vec![swaying(), swaying(), swaying()]),
    ];
    for (what, pool, guests) in simulated {
        let seconds = Simulation::new(pool, Tuning::default(), guests).run(1200);
        let missing = seconds.iter().flat_map(|second| &second.guests).map(|guest| guest.missing).max().unwrap_or(0);
        let traces = traces_of(&seconds);
        report.table(format!("Made up, 20 minutes: {what}\n\n{}", plot(&traces)), rows(&traces));
        report.at_most(format!("{what}: MiB refused to a program"), missing as f64, 0.0, "MiB");
    }
}

fn weighed(weight: u16) -> MadeUp {
    let mut guest = MadeUp::new(256, 512, 4096, Load::steps(&[(0, 400), (20, 2000)]));
    (guest.settings.weight, guest.swap) = (weight, 4096);
    guest
}

fn swaying() -> MadeUp {
    MadeUp::new(128, 400, 1024, Load::constant(300).with_noise(5))
}

fn traces_of(seconds: &[Second]) -> Vec<Trace> {
    let count = seconds.first().map_or(0, |second| second.guests.len());
    let trace = |index: usize| {
        let guests = || seconds.iter().filter_map(|second| second.guests.get(index));
        Trace {
            name: format!("guest {}", index + 1),
            used: guests().map(|guest| guest.used).collect(),
            assigned: guests().map(|guest| guest.assigned).collect(),
        }
    };
    (0..count).map(trace).collect()
}

/// Four console guests; in the first some memory is filled and emptied.
async fn real(report: &mut Report) -> Result<()> {
    eprintln!("starting a gateway and {} guests", NAMES.len());
    let gateway = Gateway::start_with(&format!("[memory]\npool = {POOL}\nreserve = 64\nreclaim-after = 15\n"))?;
    let person = gateway.add_user("bench", "ZGlmZmljdWx0", None)?;
    let guests: Vec<Guest> =
        NAMES.map(|name| gateway.create_guest_on(name, SHARING)).into_iter().collect::<Result<_>>()?;
    guests.iter().try_for_each(|guest| guest.request("start"))?;
    guests.iter().try_for_each(Guest::wait_for_prompt)?;
    let mut client = Client::connect(&Options {
        address: gateway.address(),
        user: person.name.clone(),
        password: person.password.clone(),
        vm: Some(NAMES[0].to_owned()),
        size: SIZE,
        decode: Decode::Rectangles,
        receive_buffer: None,
        touch: None,
    })
    .await?;
    let span = Span::start(&[])?;
    let mut watch = Watch::new(&gateway);
    watch.during(Duration::from_secs(10)).await?;
    client.type_text(&format!("fill {LOAD}; fill 0")).await?;
    client.tap(ENTER).await?;
    let filled = watch.until(&guests[0], "filled 0,").await?;
    watch.during(AFTERWARDS).await?;
    let foreign = span.foreign()?;
    let step = |word: &str| -> Option<f64> {
        let line = filled.iter().find(|line| line.starts_with(&format!("filled {LOAD},")))?;
        line.split(", ").find_map(|part| part.strip_prefix(word)?.trim().split(' ').next()?.parse().ok())
    };
    let longest = step("longest").context("the guest did not say how long it waited")?;
    let killed: u64 = watch.killed.iter().sum();
    let title = format!(
        "Real: four console guests share {POOL} MiB, {LOAD} MiB are filled in the first; foreign load (with QEMU) \
         {foreign} cores\n\n{}",
        plot(&watch.traces)
    );
    report.table(title, rows(&watch.traces));
    report.at_most("longest wait of a program for memory", longest, STEP, "ms");
    report.at_most("programs killed for want of memory", killed as f64, 0.0, "");
    Ok(())
}

/// Looks at the memory of all guests once a second.
struct Watch<'a> {
    gateway: &'a Gateway,
    traces: Vec<Trace>,
    killed: Vec<u64>,
    next: Instant,
}

impl<'a> Watch<'a> {
    fn new(gateway: &'a Gateway) -> Self {
        let trace = |name: &str| Trace { name: name.to_owned(), used: Vec::new(), assigned: Vec::new() };
        Self { gateway, traces: NAMES.map(trace).into(), killed: vec![0; NAMES.len()], next: Instant::now() }
    }

    async fn during(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.look().await?;
        }
        Ok(())
    }

    /// Watches until a line on the guest's screen begins with `words`; returns the screen.
    async fn until(&mut self, guest: &Guest, words: &str) -> Result<Vec<String>> {
        let end = Instant::now() + BOOT;
        loop {
            self.look().await?;
            let lines: Vec<String> = guest.screen()?.lines().map(str::to_owned).collect();
            if lines.iter().any(|line| line.starts_with(words)) {
                return Ok(lines);
            }
            anyhow::ensure!(Instant::now() < end, "no `{words}` on the screen: {lines:?}");
        }
    }

    async fn look(&mut self) -> Result<()> {
        tokio::time::sleep_until(self.next.into()).await;
        self.next += Duration::from_secs(1);
        let overview = self.gateway.api().get("/v1/memory")?;
        for (place, name) in NAMES.into_iter().enumerate() {
            let vms = overview["vms"].as_array().context("VMs are a list")?;
            let vm = vms.iter().find(|vm| vm["vm"] == name).context("a guest is gone")?;
            let number = |value: &Value| value.as_u64().unwrap_or(0);
            self.traces[place].assigned.push(number(&vm["assigned"]));
            self.traces[place].used.push(number(&vm["dynamic"]["demand"]));
            self.killed[place] = number(&vm["dynamic"]["killed"]);
        }
        Ok(())
    }
}

/// One row for each guest: what it had at ten moments.
fn rows(traces: &[Trace]) -> Vec<Row> {
    const MOMENTS: [&str; 10] = ["0 %", "10 %", "20 %", "30 %", "40 %", "50 %", "60 %", "70 %", "80 %", "90 %"];
    let row = |trace: &Trace| -> Row {
        let moments = MOMENTS.iter().enumerate().map(|(tenth, title)| {
            let at = trace.assigned.len() * tenth / MOMENTS.len();
            (*title, json!(trace.assigned.get(at)))
        });
        std::iter::once(("MiB assigned at", json!(trace.name))).chain(moments).collect()
    };
    traces.iter().map(row).collect()
}

/// What each guest used and had, as lines of blocks as high as the most that any had.
fn plot(traces: &[Trace]) -> String {
    let all = || traces.iter().flat_map(|trace| trace.assigned.iter().chain(&trace.used));
    let (most, seconds) = (all().max().copied().unwrap_or(0), traces.first().map_or(0, |trace| trace.assigned.len()));
    let mut text = format!("```text\nfull height {most} MiB, full width {seconds} s\n");
    for trace in traces {
        text += &format!(
            "{:<8} uses {}\n{:<8} has  {}\n",
            trace.name,
            blocks(&trace.used, most),
            "",
            blocks(&trace.assigned, most)
        );
    }
    text + "```"
}

fn blocks(values: &[u64], most: u64) -> String {
    let columns = COLUMNS.min(values.len());
    let highest = |column: usize| {
        let (from, to) = (values.len() * column / columns, values.len() * (column + 1) / columns);
        values[from..to].iter().max().copied().unwrap_or(0)
    };
    let block = |value: u64| {
        let height = value * (BLOCKS.len() as u64 - 1) / most.max(1);
        BLOCKS[usize::try_from(height).unwrap_or(0).min(BLOCKS.len() - 1)]
    };
    (0..columns).map(|column| block(highest(column))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_shows_the_highest_of_each_column() {
        assert_eq!(blocks(&[0, 100, 50], 100), "▁█▄");
        assert_eq!(blocks(&[], 100), "");
        let values: Vec<u64> = (0..144).collect();
        assert_eq!(blocks(&values, 143).chars().count(), COLUMNS);
    }
}
