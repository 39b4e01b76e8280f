//! How long starting takes. For information: it depends on the machine more than on us.

use std::time::Instant;

use anyhow::Result;
use fanlight_tests::gateway::Gateway;
use serde_json::json;

use crate::machine::Span;
use crate::report::{Report, median};
use crate::world;

const ROUNDS: usize = 3;

/// Runs everything.
pub(crate) async fn run() -> Result<Report> {
    let mut report = Report::new("boot");
    let span = Span::start(&[])?;
    let (mut gateways, mut guests) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        let started = Instant::now();
        let gateway = Gateway::start()?;
        gateways.push(started.elapsed().as_secs_f64() * 1e3);
        let guest = gateway.create_guest("one")?;
        let started = Instant::now();
        guest.boot()?;
        guests.push(started.elapsed().as_secs_f64());
    }
    let foreign = span.foreign()?;
    report.table(
        format!("{ROUNDS} starts; looked for every 5 to 100 ms; foreign load (with QEMU) {foreign} cores"),
        vec![
            vec![
                ("what", json!("gateway on a new state folder, until its API answers")),
                ("ms, median", json!(median(&gateways))),
            ],
            vec![
                ("what", json!(format!("vm start until the shell's prompt, {}", world::describe_guest()?))),
                ("ms, median", json!(median(&guests) * 1e3)),
            ],
        ],
    );
    Ok(report)
}
