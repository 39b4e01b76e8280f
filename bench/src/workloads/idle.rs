//! What a session costs while nothing happens.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use crate::machine::processor_time;
use crate::report::{Report, median};
use crate::world::{QUIET, World};

const WINDOW: Duration = Duration::from_secs(10);
const ROUNDS: usize = 3;

/// Runs everything.
pub(crate) async fn run() -> Result<Report> {
    let mut report = Report::new("idle");
    let world = World::start(&["one"])?;
    let pid = world.gateway_pid()?;
    let mut client = world.client("one").await?;
    let mut rows = Vec::new();
    let (mut rates, mut loads) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        client.until_quiet(QUIET).await?;
        let span = world.span()?;
        let (started, time, before) = (Instant::now(), processor_time(pid)?, client.received());
        let frames = client.during(WINDOW).await?;
        let elapsed = started.elapsed().as_secs_f64();
        let after = client.received();
        let rate = (after.wire - before.wire) as f64 / elapsed;
        let load = 100.0 * (processor_time(pid)?.saturating_sub(time)).as_secs_f64() / elapsed;
        rows.push(vec![
            ("seconds", json!(elapsed)),
            ("TCP B/s", json!(rate)),
            ("frames", json!(frames.len())),
            ("gateway, % of a core", json!(load)),
            ("foreign cores", json!(span.foreign()?)),
        ]);
        rates.push(rate);
        loads.push(load);
    }
    report.table("One session, guest at its prompt, 1920x1080", rows);
    report.at_most("traffic of an idle session", median(&rates), 0.0, "B/s");
    report.at_most("gateway with an idle session", median(&loads), 0.5, "% of a core");
    Ok(report)
}
