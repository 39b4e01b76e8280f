//! `fanlight memory`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::Context;
use super::output::{Cell, Colour};
use crate::api::model::{DynamicMemoryInfo, MemoryOverview, VmMemoryInfo};
use crate::problem::Problem;

const HEADER: &[&str] = &["VM", "STATE", "ASSIGNED", "DEMAND", "PRESSURE", "MINIMUM", "MAXIMUM", "TARGET", "WHY"];
/// How often `--watch` looks; the service decides as often.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// From which pressure on a VM is near its limit.
const HIGH: u64 = 90;
/// And from which on it swaps.
const FULL: u64 = 100;

/// Show how much memory each VM has and needs, and why it has what it has
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fanlight memory
  fanlight memory --watch
  fanlight memory --watch --json | jq -c '.vms[] | [.vm, .assigned]'

Amounts are MiB. PRESSURE is DEMAND in percent of ASSIGNED: with a buffer of 20 % a VM at rest has 83.")]
pub(super) struct Memory {
    /// Show it again every second; with --json one line each time
    #[arg(long, short)]
    watch: bool,
}

impl Memory {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        if !self.watch {
            let overview: MemoryOverview = context.client.get("/v1/memory").await?;
            context.output.value(&overview, || describe(&overview, context));
            return Ok(ExitCode::SUCCESS);
        }
        loop {
            let overview: MemoryOverview = context.client.get("/v1/memory").await?;
            if !context.output.again(&overview, || describe(&overview, context)) {
                return Ok(ExitCode::SUCCESS);
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
    }
}

fn describe(overview: &MemoryOverview, context: &Context) -> String {
    let rows = overview.vms.iter().map(row).collect();
    let table = context.output.as_table(HEADER, rows);
    let Some(host) = &overview.host else { return table };
    let shared = overview.vms.iter().filter(|vm| vm.dynamic.is_some()).filter_map(|vm| vm.assigned).sum::<u64>();
    let mut lines = vec![format!(
        "host {} MiB, {} available, {} kept free; VMs with dynamic memory share {} and have {}",
        host.total, host.available, host.reserve, host.pool, shared
    )];
    if host.least > host.pool {
        lines.push(format!("not enough: {} MiB cannot be taken away from them", host.least));
    }
    lines.push(table);
    lines.join("\n")
}

fn row(vm: &VmMemoryInfo) -> Vec<Cell> {
    let number = |amount: Option<u64>| amount.map_or_else(|| "-".to_owned(), |amount| amount.to_string());
    let assigned = number(vm.assigned);
    let mut cells = vec![vm.vm.as_str().into(), vm.state.as_str().into(), assigned.into()];
    match &vm.dynamic {
        None => cells.extend(["-", "-", "-", "-", "-", "always the same"].map(Cell::from)),
        Some(dynamic) => {
            cells.push(number(dynamic.demand).into());
            cells.push(pressure(dynamic));
            cells.push(dynamic.minimum.to_string().into());
            cells.push(dynamic.maximum.to_string().into());
            cells.push(number(dynamic.target).into());
            cells.push(dynamic.reason.clone().unwrap_or_default().into());
        }
    }
    cells
}

fn pressure(dynamic: &DynamicMemoryInfo) -> Cell {
    match dynamic.pressure {
        None => "-".into(),
        Some(pressure) if pressure > FULL => Cell::coloured(pressure.to_string(), Colour::Red),
        Some(pressure) if pressure > HIGH => Cell::coloured(pressure.to_string(), Colour::Yellow),
        Some(pressure) => pressure.to_string().into(),
    }
}

/// What `vm show` says of the memory.
pub(super) fn summary(memory: u32, assigned: Option<u64>, dynamic: Option<&DynamicMemoryInfo>) -> String {
    let Some(dynamic) = dynamic else { return format!("{memory} MiB") };
    let range = format!("{} to {} MiB", dynamic.minimum, dynamic.maximum);
    let Some(assigned) = assigned else { return format!("{range}, starts with {memory}") };
    let demand = dynamic.demand.map(|demand| format!(", uses {demand}")).unwrap_or_default();
    let reason = dynamic.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let killed = dynamic.killed.filter(|killed| *killed > 0);
    let killed = killed.map(|killed| format!("; {killed} programs were killed for want of memory")).unwrap_or_default();
    format!("{assigned} MiB of {range}{demand}{reason}{killed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dynamic() -> DynamicMemoryInfo {
        DynamicMemoryInfo {
            startup: 512,
            minimum: 256,
            maximum: 2048,
            buffer: 20,
            weight: 5000,
            demand: Some(300),
            pressure: Some(83),
            target: Some(360),
            stalled: None,
            killed: Some(0),
            reporter: Some("balloon".into()),
            report_age: Some(1),
            reason: Some("has what it wants".into()),
        }
    }

    #[test]
    fn a_vm_is_told_in_one_line() {
        assert_eq!(summary(512, None, None), "512 MiB");
        assert_eq!(summary(512, None, Some(&dynamic())), "256 to 2048 MiB, starts with 512");
        let now = summary(512, Some(360), Some(&dynamic()));
        assert_eq!(now, "360 MiB of 256 to 2048 MiB, uses 300 (has what it wants)");
        let killed = DynamicMemoryInfo { killed: Some(2), ..dynamic() };
        assert!(summary(512, Some(360), Some(&killed)).ends_with("; 2 programs were killed for want of memory"));
    }

    #[test]
    fn every_row_has_a_cell_for_each_column() {
        for dynamic in [None, Some(dynamic())] {
            let vm = VmMemoryInfo { vm: "a".into(), state: "running".into(), assigned: Some(1), dynamic };
            assert_eq!(row(&vm).len(), HEADER.len());
        }
    }
}
