//! What sessions take of the gateway's memory.

use anyhow::Result;
use serde_json::json;

use crate::machine::memory;
use crate::report::Report;
use crate::world::{self, QUIET, World};
use fanlight_tests::headless::Client;
use fanlight_tests::headless::keyboard::ENTER;

const SESSIONS: [usize; 4] = [0, 1, 2, 4];

/// Runs everything.
pub(crate) async fn run() -> Result<Report> {
    let mut report = Report::new("memory");
    let world = World::start(&["one"])?;
    let pid = world.gateway_pid()?;
    let mut clients: Vec<Client> = Vec::new();
    let mut rows = Vec::new();
    for count in SESSIONS {
        while clients.len() < count {
            clients.push(world.client("one").await?);
            settle(&mut clients).await?;
        }
        world.wait_for_sessions(count)?;
        if let Some(typist) = clients.first_mut() {
            // Everything is drawn at least twice: no memory is left that is only asked for later.
            world::fill_with_text(typist).await?;
            settle(&mut clients).await?;
            if let Some(typist) = clients.first_mut() {
                typist.type_text("clear").await?;
                typist.tap(ENTER).await?;
            }
            settle(&mut clients).await?;
        }
        let used = memory(pid)?;
        rows.push(vec![
            ("sessions, 1920x1080", json!(count)),
            ("resident MB", json!(used.resident)),
            ("anonymous", json!(used.anonymous)),
            ("of files", json!(used.files)),
            ("shared with QEMU", json!(used.shared)),
            ("proportional (PSS)", json!(used.proportional)),
            ("highest so far", json!(used.peak)),
        ]);
        if count == 1 {
            report.at_most("resident memory with one session", used.resident, 40.0, "MB");
        }
    }
    report.table("Gateway, sessions on one VM after a page of text was drawn and cleared", rows);
    Ok(report)
}

/// Reads what all clients have to read: each acknowledges, none holds back the others.
async fn settle(clients: &mut [Client]) -> Result<()> {
    for _ in 0..2 {
        for client in &mut *clients {
            client.until_quiet(QUIET).await?;
        }
    }
    Ok(())
}
