//! `fanlight guest`: what the agent in a guest says.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::Context;
use super::output::duration;
use crate::api::client::segment;
use crate::api::model::Pong;
use crate::bus::{ClockState, GuestDetails, GuestStatus, Health, MemoryReport};
use crate::problem::Problem;

#[derive(Debug, Subcommand)]
pub(super) enum Guest {
    Info(Info),
    Ping(Ping),
}

/// Show what a guest is and has: system, name, addresses, users, clock, memory
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fanlight guest info web01\n  fanlight guest info web01 --json")]
pub(super) struct Info {
    /// The VM: name or UUID
    vm: String,
}

/// Ask a guest's agent for a sign of life
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fanlight guest ping web01\n  fanlight guest ping web01 --count 10")]
pub(super) struct Ping {
    /// The VM: name or UUID
    vm: String,
    /// How often
    #[arg(long, short, default_value_t = 1, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
}

impl Guest {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        match self {
            Self::Info(Info { vm }) => {
                let guest: GuestStatus = context.client.get(&path(&vm, "")).await?;
                context.output.value(&guest, || describe(&guest));
            }
            Self::Ping(Ping { vm, count }) => {
                for number in 1..=count {
                    let pong: Pong = context.client.post(&path(&vm, "/ping"), &Value::Null).await?;
                    context.output.value(&pong, || {
                        format!("{vm} answers, {number} of {count}: {:.3} ms", millis(pong.round_trip_us))
                    });
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn path(vm: &str, rest: &str) -> String {
    format!("/v1/vms/{}/guest{rest}", segment(vm))
}

fn millis(micros: u64) -> f64 {
    std::time::Duration::from_micros(micros).as_secs_f64() * 1e3
}

fn describe(guest: &GuestStatus) -> String {
    let mut lines = Vec::new();
    lines.extend(guest.details.iter().flat_map(describe_details));
    lines.extend(guest.health.map(|health| ("health", describe_health(health).to_owned())));
    lines.extend(guest.clock.map(|clock| ("clock", describe_clock(clock))));
    lines.extend(guest.memory.map(|memory| ("memory", describe_memory(memory))));
    lines.extend(guest.going_down.as_ref().map(|how| ("going down", how.clone())));
    if lines.is_empty() {
        return "the agent has not said anything yet".into();
    }
    let lines = lines.iter().map(|(name, value)| format!("{name:<12} {value}"));
    lines.collect::<Vec<_>>().join("\n")
}

fn describe_details(details: &GuestDetails) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("system", format!("{} {}", details.system, details.system_version).trim().to_owned()),
        ("kernel", format!("{} ({})", details.kernel, details.architecture)),
        ("host name", details.host_name.clone()),
        ("agent", details.agent_version.clone()),
        ("up for", duration(details.up_time)),
    ];
    lines.extend(details.interfaces.iter().map(|interface| {
        let state = if interface.up { "" } else { " (down)" };
        let mac = interface.mac.as_deref().unwrap_or("no address of its own");
        (
            "interface",
            format!("{}{state}  {mac}  {}", interface.name, interface.addresses.join(" ")).trim_end().to_owned(),
        )
    }));
    lines.extend(
        details
            .users
            .iter()
            .map(|user| ("user", format!("{} on {}, for {}", user.name, user.session, duration(user.since)))),
    );
    lines
}

const fn describe_health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "healthy",
        Health::Critical => "critical: something that the guest needs does not work",
        Health::Stopped => "it goes down",
        Health::Lost => "it does not answer",
    }
}

fn describe_clock(clock: ClockState) -> String {
    let offset = std::time::Duration::from_nanos(clock.offset_ns.unsigned_abs());
    let way = if clock.offset_ns < 0 { "behind" } else { "ahead" };
    let follows = if clock.follows { "follows the host" } else { "follows another source" };
    format!("{offset:.1?} {way} when last compared; {follows}")
}

fn describe_memory(memory: MemoryReport) -> String {
    let mib = |bytes: u64| bytes >> 20;
    let stalled = memory.stalled.map(|percent| format!(", {percent:.1} % of the time waited for")).unwrap_or_default();
    format!(
        "{} MiB, {} available, {} committed{stalled}",
        mib(memory.total),
        mib(memory.available),
        mib(memory.committed)
    )
}
