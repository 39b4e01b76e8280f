//! What clients that accept nothing cost a person who types.

use anyhow::{Context, Result};
use serde_json::json;
use tokio::task::{JoinHandle, LocalSet};

use super::glyph::type_keys;
use crate::report::{Report, median, percentile};
use crate::world::World;
use fanlight_tests::headless::keyboard::ENTER;
use fanlight_tests::headless::{Client, Options};

const STALLED: usize = 20;
const KEYS: usize = 20;
/// Each round does every case once.
const ROUNDS: usize = 3;
/// Bytes the system keeps for a client that does not read: its server notices after one picture.
const RECEIVE_BUFFER: u32 = 4096;
/// Keeps the guest drawing: a page of numbers again and again.
const DRAW: &str = "while :; do seq 1000 1066; done";

/// Where the clients that do not read are.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    /// The VM of the stalled clients.
    stalled_at: Option<&'static str>,
    /// Whether the other VM draws all the time.
    drawing: bool,
}

const CASES: [Case; 4] = [
    Case { name: "nobody stalled", stalled_at: None, drawing: false },
    Case { name: "20 stalled on the same VM", stalled_at: Some("typed"), drawing: false },
    Case { name: "nobody stalled, another VM draws", stalled_at: None, drawing: true },
    Case { name: "20 stalled on a VM that draws", stalled_at: Some("drawing"), drawing: true },
];

/// Runs everything.
pub(crate) async fn run() -> Result<Report> {
    LocalSet::new().run_until(measure()).await
}

async fn measure() -> Result<Report> {
    let world = World::start(&["typed", "drawing"])?;
    let mut results: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); CASES.len()];
    for round in 1..=ROUNDS {
        for (case, (latencies, foreign)) in CASES.iter().zip(&mut results) {
            eprintln!("round {round} of {ROUNDS}: {}", case.name);
            let (keys, load) = once(&world, *case).await.with_context(|| case.name)?;
            latencies.extend(keys);
            foreign.push(load);
        }
    }
    let mut report = Report::new("stalled");
    let rows = CASES.iter().zip(&results).map(|(case, (latencies, foreign))| {
        vec![
            ("case", json!(case.name)),
            ("keys", json!(latencies.len())),
            ("key to picture ms", json!(median(latencies))),
            ("p95", json!(percentile(latencies, 95))),
            ("max", json!(percentile(latencies, 100))),
            ("foreign cores", json!(median(foreign))),
        ]
    });
    report.table("Typing in one VM, 1920x1080; rounds interleaved", rows.collect());
    for (with, without) in [(1, 0), (3, 2)] {
        let difference = median(&results[with].0) - median(&results[without].0);
        report.at_most(format!("typing is slower by, {}", CASES[with].name), difference, 10.0, "ms");
    }
    Ok(report)
}

/// Types with everything in place as `case` says; returns the latencies in ms and the foreign load.
async fn once(world: &World, case: Case) -> Result<(Vec<f64>, f64)> {
    let mut typist = world.client("typed").await?;
    let painter = if case.drawing { Some(Painter::start(world).await?) } else { None };
    let mut stalled = Vec::new();
    if let Some(vm) = case.stalled_at {
        let options = Options { receive_buffer: Some(RECEIVE_BUFFER), ..world.options(vm) };
        for _ in 0..STALLED {
            stalled.push(Client::connect(&options).await?);
        }
    }
    // The first keys meet what the connections have left behind.
    type_keys(&mut typist, 4).await?;
    let span = world.span()?;
    let keys = type_keys(&mut typist, KEYS).await?;
    let foreign = span.foreign()?;
    drop(stalled);
    if let Some(painter) = painter {
        painter.stop(world).await?;
    }
    drop(typist);
    world.wait_for_sessions(0)?;
    Ok((keys.iter().map(|key| key.first_ms).collect(), foreign))
}

/// The VM `drawing`, at work, with a client that looks on.
struct Painter {
    viewer: JoinHandle<anyhow::Error>,
}

impl Painter {
    async fn start(world: &World) -> Result<Self> {
        let mut client = world.client("drawing").await?;
        client.type_text(DRAW).await?;
        client.tap(ENTER).await?;
        client.next_frame().await?;
        Ok(Self { viewer: tokio::task::spawn_local(client.keep_up()) })
    }

    /// Starts the guest over: quicker than to find out whether Ctrl-C was heard.
    async fn stop(self, world: &World) -> Result<()> {
        self.viewer.abort();
        // The task is dropped, and with it the connection, when somebody waits for it. It was cancelled: no news.
        let _ = self.viewer.await;
        let guest = world.guest("drawing")?;
        guest.request("reset")?;
        guest.wait_for_prompt()
    }
}
