//! `fanlight status`.

use std::process::ExitCode;

use clap::Args;

use super::Context;
use crate::api::model::ServiceStatus;
use crate::problem::Problem;

/// Tell whether the service runs, where it listens and what it does
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fanlight status\n  fanlight status --json")]
pub(super) struct Status {}

impl Status {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        let status: ServiceStatus = context.client.get("/v1/status").await?;
        context.output.value(&status, || describe(&status));
        Ok(ExitCode::SUCCESS)
    }
}

fn describe(status: &ServiceStatus) -> String {
    let lines = [
        ("version", status.version.clone()),
        ("process", status.pid.to_string()),
        ("listening", status.listening.join(", ")),
        ("certificate", format!("sha256:{}", status.fingerprint)),
        ("users", status.users.to_string()),
        ("vms", status.vms.to_string()),
        ("sessions", status.sessions.to_string()),
        ("at the door", format!("{} waiting, {} silent", status.door.waiting, status.door.silent)),
        ("refused", format!("{} connections", status.door.refused)),
    ];
    lines.map(|(name, value)| format!("{name:<12} {value}")).join("\n")
}
