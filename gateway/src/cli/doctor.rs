//! `fanlight doctor`.

use std::process::ExitCode;

use clap::Args;
use vmm::{Host, HostConfig};

use super::Context;
use super::output::{Colour, Output};
use crate::doctor::{Check, Level, Report, examine};
use crate::problem::{Code, Problem};

/// Check whether this host can run VMs and show them, and say how to mend what is missing
///
/// The exit code is 1 only when something is missing without which nothing works.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fanlight doctor\n  fanlight doctor --json")]
pub(super) struct Doctor {}

impl Doctor {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        let report = match context.client.get("/v1/doctor").await {
            Err(problem) if problem.code == Code::NoService => alone(context).await?,
            answer => answer?,
        };
        context.output.value(&report, || describe(&report, context.output));
        Ok(if report.works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Without a service: the same checks, with a host that knows no VMs and touches none of those that run.
async fn alone(context: &Context) -> Result<Report, Problem> {
    let failed = |error: &dyn std::fmt::Display| Problem::new(Code::Internal, error);
    let config = context.config()?;
    let folder = std::env::temp_dir().join(format!("fanlight-doctor-{}", std::process::id()));
    crate::files::create_private_folder(&folder).map_err(|error| failed(&error))?;
    let settings = HostConfig { qemu: config.qemu.clone(), ..HostConfig::new(folder.join("vms"), folder.join("run")) };
    let host = Host::open(settings).await;
    let report = match host {
        Ok(host) => Ok(examine(&config, &host, None).await),
        Err(error) => Err(failed(&error)),
    };
    // It holds nothing that anybody needs.
    let _ = std::fs::remove_dir_all(&folder);
    report
}

fn describe(report: &Report, output: Output) -> String {
    let verdict = if report.works {
        output.paint("This host can run VMs and show them.", Colour::Green)
    } else {
        output.paint("Something is missing without which nothing works.", Colour::Red)
    };
    let checks = report.checks.iter().map(|check| describe_check(check, output));
    checks.chain([format!("\n{verdict}")]).collect::<Vec<_>>().join("\n")
}

fn describe_check(check: &Check, output: Output) -> String {
    let (sign, colour) = match check.level {
        Level::Good => ("ok", Colour::Green),
        Level::Poor => ("note", Colour::Yellow),
        Level::Missing => ("MISSING", Colour::Red),
    };
    let padding = " ".repeat(8 - sign.len());
    let mut text = format!("{}{padding}{:<19} {}", output.paint(sign, colour), check.name, check.found);
    text += &format!("\n{:28}{}", "", check.meaning);
    if let Some(mend) = &check.mend {
        text += &format!("\n{:28}to mend: {mend}", "");
    }
    text
}
