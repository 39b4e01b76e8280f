//! What is said between us and one QEMU about memory.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::Instrument as _;

use super::MemoryReport;
use super::hardware::{Amounts, BALLOON, MORE, Orders};
use crate::definition::MemoryDevices;
use crate::engine::{Qmp, QmpError};

/// How often QEMU asks the guest, in seconds.
const POLLING_INTERVAL: u64 = 1;

/// What QEMU and its guest say of the memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Facts {
    pub(crate) amounts: Amounts,
    /// The guest's last report; none before the first.
    pub(crate) report: Option<Told>,
}

/// A report of a guest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Told {
    /// Tells it from the one before; none: nothing does.
    pub(crate) stamp: Option<u64>,
    pub(crate) report: MemoryReport,
}

/// Tells QEMU `orders`, or asks it when there are none, and hands on what it says. Nobody waits for it.
pub(crate) fn converse(
    qmp: Arc<Qmp>,
    devices: MemoryDevices,
    orders: Option<Orders>,
    reply: oneshot::Sender<Option<Facts>>,
) {
    let talk = async move {
        let said = match orders {
            Some(orders) => tell(&qmp, orders).await.map(|()| None),
            None => ask(&qmp, devices).await.map(Some),
        };
        if let Err(error) = &said {
            tracing::debug!(%error, "cannot talk with QEMU about memory");
        }
        // The controller may have gone.
        let _ = reply.send(said.ok().flatten());
    };
    tokio::spawn(talk.in_current_span());
}

/// Asks QEMU.
async fn ask(qmp: &Qmp, devices: MemoryDevices) -> Result<Facts, QmpError> {
    let balloon = qmp.execute("query-balloon", json!({})).await?;
    let summary = qmp.execute("query-memory-size-summary", json!({})).await?;
    let amounts = Amounts {
        startup: summary["base-memory"].as_u64().unwrap_or(0),
        left: balloon["actual"].as_u64().unwrap_or(0),
        plugged: 0,
        requested: 0,
        region: 0,
    };
    if devices == MemoryDevices::HyperV {
        // Without a driver in the guest there is none, which QEMU calls an error.
        let status = qmp.execute("query-hv-balloon-status-report", json!({})).await;
        return Ok(Facts { amounts, report: status.ok().as_ref().and_then(hyper_v_report) });
    }
    let devices = qmp.execute("query-memory-devices", json!({})).await?;
    let stats = qmp.execute("qom-get", property("guest-stats")).await?;
    let report = virtio_report(&stats);
    if report.is_none() {
        let interval =
            json!({ "path": balloon_path(), "property": "guest-stats-polling-interval", "value": POLLING_INTERVAL });
        qmp.execute("qom-set", interval).await?;
    }
    Ok(Facts { amounts: with_plugged(amounts, &devices), report })
}

/// Tells QEMU.
async fn tell(qmp: &Qmp, orders: Orders) -> Result<(), QmpError> {
    if let Some(bytes) = orders.plugged {
        let path = format!("/machine/peripheral/{MORE}");
        qmp.execute("qom-set", json!({ "path": path, "property": "requested-size", "value": bytes })).await?;
    }
    if let Some(bytes) = orders.balloon {
        qmp.execute("balloon", json!({ "value": bytes })).await?;
    }
    Ok(())
}

fn balloon_path() -> String {
    format!("/machine/peripheral/{BALLOON}")
}

fn property(name: &str) -> Value {
    json!({ "path": balloon_path(), "property": name })
}

fn with_plugged(amounts: Amounts, devices: &Value) -> Amounts {
    let mut devices = devices.as_array().into_iter().flatten().map(|device| &device["data"]);
    let Some(more) = devices.find(|data| data["id"] == MORE) else { return amounts };
    let bytes = |key: &str| more[key].as_u64().unwrap_or(0);
    let region = bytes("max-size");
    Amounts { plugged: bytes("size").min(region), requested: bytes("requested-size"), region, ..amounts }
}

/// The guest's own numbers (Virtio 1.3, 5.5.6.4): what it does not tell is all ones.
fn virtio_report(stats: &Value) -> Option<Told> {
    let told = |key: &str| stats["stats"][key].as_u64().filter(|value| *value != u64::MAX);
    let updated = stats["last-update"].as_u64().filter(|seconds| *seconds > 0)?;
    let report = MemoryReport {
        // Old guests only know what is free.
        available: told("stat-available-memory").or_else(|| told("stat-free-memory"))?,
        swapped_in: told("stat-swap-in"),
        killed: told("stat-oom-kills"),
        ..MemoryReport::default()
    };
    Some(Told { stamp: Some(updated), report })
}

/// Hyper-V's. What is committed counts in what is not there, and nobody knows how much that is: it is left out.
fn hyper_v_report(status: &Value) -> Option<Told> {
    let report = MemoryReport { available: status["available"].as_u64()?, ..MemoryReport::default() };
    Some(Told { stamp: None, report })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_without_a_driver_has_said_nothing() {
        let stats = json!({ "last-update": 0, "stats": { "stat-available-memory": u64::MAX } });
        assert_eq!(virtio_report(&stats), None);
        assert_eq!(virtio_report(&json!({ "last-update": 7, "stats": {} })), None);
        assert_eq!(virtio_report(&Value::Null), None);
    }

    #[test]
    fn what_a_guest_does_not_tell_is_not_known() {
        let old = json!({ "last-update": 7, "stats": {
            "stat-available-memory": u64::MAX, "stat-free-memory": 5000, "stat-swap-in": 12, "stat-oom-kills": u64::MAX,
        } });
        let report = MemoryReport { available: 5000, swapped_in: Some(12), ..MemoryReport::default() };
        assert_eq!(virtio_report(&old), Some(Told { stamp: Some(7), report }));
    }

    #[test]
    fn plugged_memory_is_found_among_other_devices() {
        let devices = json!([
            { "type": "dimm", "data": { "id": "dimm0", "size": 1 } },
            { "type": "virtio-mem", "data": { "id": MORE, "size": 8, "requested-size": 12, "max-size": 64 } },
        ]);
        let none = Amounts { startup: 100, left: 90, plugged: 0, requested: 0, region: 0 };
        let some = Amounts { plugged: 8, requested: 12, region: 64, ..none };
        assert_eq!((with_plugged(none, &devices), some.assigned()), (some, 98));
        assert_eq!(with_plugged(none, &json!([])), none);
    }
}
