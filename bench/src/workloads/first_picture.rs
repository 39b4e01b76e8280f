//! How long a person looks at nothing: from the password to the whole picture.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::report::{Report, median, percentile};
use crate::world::{self, QUIET, World};
use fanlight_tests::headless::keyboard::ENTER;
use fanlight_tests::headless::{Client, Timeline};

const ROUNDS: usize = 15;

/// One connection.
struct Connection {
    timeline: Timeline,
    first_frame: Instant,
    complete: Instant,
    frames: usize,
    rdp_bytes: u64,
}

/// Runs everything.
pub(crate) async fn run() -> Result<Report> {
    let mut report = Report::new("first-picture");
    let world = World::start(&["one"])?;
    let mut rows = Vec::new();
    for (content, command) in [("shell prompt", "clear"), ("screen full of text", "")] {
        // A session before, so that the guest has the client's size already.
        let mut client = world.client("one").await?;
        if command.is_empty() {
            world::fill_with_text(&mut client).await?;
        } else {
            client.type_text(command).await?;
            client.tap(ENTER).await?;
            client.until_quiet(QUIET).await?;
        }
        drop(client);
        let span = world.span()?;
        let mut connections = Vec::new();
        for _ in 0..ROUNDS {
            world.wait_for_sessions(0)?;
            connections.push(connect(&world).await?);
        }
        let millis = |from: fn(&Connection) -> Instant, to: fn(&Connection) -> Instant| -> Vec<f64> {
            connections.iter().map(|one| (to(one) - from(one)).as_secs_f64() * 1e3).collect()
        };
        let picture = millis(|one| one.timeline.authenticated, |one| one.complete);
        rows.push(vec![
            ("content", json!(content)),
            ("TCP to TLS ms", json!(median(&millis(|one| one.timeline.connected, |one| one.timeline.encrypted)))),
            ("to logon ms", json!(median(&millis(|one| one.timeline.encrypted, |one| one.timeline.authenticated)))),
            ("to active ms", json!(median(&millis(|one| one.timeline.authenticated, |one| one.timeline.activated)))),
            ("to first frame ms", json!(median(&millis(|one| one.timeline.activated, |one| one.first_frame)))),
            ("logon to picture ms", json!(median(&picture))),
            ("p95", json!(percentile(&picture, 95))),
            ("TCP to picture ms", json!(median(&millis(|one| one.timeline.started, |one| one.complete)))),
            ("frames", json!(median(&connections.iter().map(|one| one.frames as f64).collect::<Vec<_>>()))),
            ("RDP bytes", json!(median(&connections.iter().map(|one| one.rdp_bytes as f64).collect::<Vec<_>>()))),
            ("foreign cores", json!(span.foreign()?)),
        ]);
        report.at_most(format!("logon to picture, {content}"), median(&picture), 300.0, "ms");
    }
    report.table(format!("{ROUNDS} connections to an idle guest, 1920x1080, medians"), rows);
    Ok(report)
}

/// Connects, waits for the picture and leaves. The guest is idle: once nothing comes any more, the last frame was
/// the one that completed it.
async fn connect(world: &World) -> Result<Connection> {
    let mut client = Client::connect(&world.options("one")).await?;
    let first = client.next_frame().await?;
    let rest = client.until_quiet(Duration::from_millis(200)).await?;
    let last = rest.last().unwrap_or(&first);
    let complete = last.arrived;
    let size = client.screen().lock().picture().size().context("nothing is on the output")?;
    anyhow::ensure!(size == (world::SIZE.0.into(), world::SIZE.1.into()), "the picture is {size:?}");
    Ok(Connection {
        timeline: client.timeline(),
        first_frame: first.arrived,
        complete,
        frames: 1 + rest.len(),
        rdp_bytes: client.received().rdp,
    })
}
