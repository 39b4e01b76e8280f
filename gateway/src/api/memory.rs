//! The memory of host and VMs over the API.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use vmm::Vm;
use vmm::memory::HostMemoryView;

use super::ApiContext;
use super::model::{DynamicMemoryInfo, HostMemoryInfo, MemoryOverview, VmMemoryInfo};

pub(super) async fn show(State(context): State<Arc<ApiContext>>) -> Json<MemoryOverview> {
    let host = &context.session.host;
    Json(MemoryOverview { host: host.memory().map(describe_host), vms: host.list().iter().map(describe).collect() })
}

/// What changes by itself of a VM's memory; none when nothing does.
pub(super) fn dynamic(vm: &Vm) -> Option<DynamicMemoryInfo> {
    let settings = vm.memory_settings()?;
    let view = vm.memory();
    Some(DynamicMemoryInfo {
        startup: mib(settings.startup),
        minimum: mib(settings.minimum),
        maximum: mib(settings.maximum),
        buffer: settings.buffer,
        weight: settings.weight,
        demand: view.and_then(|view| view.demand).map(mib),
        pressure: view.and_then(|view| view.pressure()),
        target: view.map(|view| mib(view.target)),
        stalled: view.and_then(|view| view.stalled),
        killed: view.and_then(|view| view.killed),
        reporter: view.and_then(|view| view.reporter).map(|reporter| reporter.to_string()),
        report_age: view.and_then(|view| view.report_age),
        reason: view.map(|view| view.reason.to_string()),
    })
}

/// What a VM has now, in MiB; none while it is off.
pub(super) fn assigned(vm: &Vm) -> Option<u64> {
    let status = vm.status();
    status.pid?;
    Some(vm.memory().map_or(u64::from(vm.definition().memory), |view| mib(view.assigned)))
}

fn describe(vm: &Vm) -> VmMemoryInfo {
    VmMemoryInfo {
        vm: vm.name().to_owned(),
        state: vm.status().state.to_string(),
        assigned: assigned(vm),
        dynamic: dynamic(vm),
    }
}

fn describe_host(view: HostMemoryView) -> HostMemoryInfo {
    HostMemoryInfo {
        total: mib(view.total),
        available: mib(view.available),
        reserve: mib(view.reserve),
        fixed: mib(view.fixed),
        pool: mib(view.pool),
        least: mib(view.least),
    }
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}
