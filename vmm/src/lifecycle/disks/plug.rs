//! Attaching and detaching disks and changing discs, as commands to QEMU.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::Drives;
use crate::definition::{Controllers, Disk, DiskSource};
use crate::disks::is_block_device;
use crate::engine::{Qmp, QmpError, device, node, node_name, parse_node_name, tls_name, tls_object};

/// A server that cannot be reached takes as long as its own deadline says.
const OPEN: Duration = Duration::from_secs(30);
/// How long a guest may take to let go of a disk, or of a disc in a drive.
const RELEASE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often a guest is asked to let go of a disc.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Changes the disks of one QEMU.
#[derive(Debug, Clone)]
pub(crate) struct Plug {
    qmp: Arc<Qmp>,
}

impl Plug {
    pub(crate) fn new(qmp: Arc<Qmp>) -> Self {
        Self { qmp }
    }

    /// What there is.
    pub(crate) async fn drives(&self) -> Result<Drives, QmpError> {
        Ok(Drives::of_qmp(&self.execute("query-block", json!({})).await?))
    }

    /// Attaches a disk. When that fails nothing of it is left.
    pub(crate) async fn attach(&self, disk: &Disk, controllers: &Controllers) -> Result<(), QmpError> {
        self.remove_unused(&disk.id).await?;
        let name = self.open(disk, 0).await?;
        let device = device(disk, controllers, name.as_deref(), None);
        match self.execute("device_add", device).await {
            Ok(_) => Ok(()),
            Err(error) => {
                self.close(&disk.id, name.as_deref()).await;
                Err(error)
            }
        }
    }

    /// Detaches a disk, and waits until the guest has let go of it.
    pub(crate) async fn detach(&self, id: &str) -> Result<(), QmpError> {
        let drives = self.drives().await?;
        self.execute("device_del", json!({ "id": id })).await?;
        let deadline = Instant::now() + RELEASE;
        // It is out of the guest's sight before QEMU has ended what the guest had asked of it.
        while self.has_device(id).await? || self.drives().await?.has(id) {
            if Instant::now() > deadline {
                let reason = format!("the guest has not let go of it within {} s", RELEASE.as_secs());
                return Err(QmpError::Refused { command: "device_del".into(), reason });
            }
            sleep(LOOK_AGAIN).await;
        }
        self.close(id, drives.node(id)).await;
        // What an overlay stands on has a node of its own.
        self.remove_unused(id).await
    }

    /// Makes a disk larger; the guest is told of it.
    pub(crate) async fn resize(&self, id: &str, size: u64) -> Result<(), QmpError> {
        let drives = self.drives().await?;
        let command = "block_resize";
        let Some(node) = drives.node(id) else {
            return Err(QmpError::Refused { command: command.into(), reason: format!("QEMU has no disk {id}") });
        };
        self.execute(command, json!({ "node-name": node, "size": size })).await.map(drop)
    }

    /// Puts what `disk` says into its drive: another disc, or none. With `force` whether the guest has locked it or not.
    pub(crate) async fn change_medium(&self, disk: &Disk, force: bool) -> Result<(), QmpError> {
        let drives = self.drives().await?;
        let name = self.open(disk, drives.next_generation(&disk.id)).await?;
        let changed = self.exchange(&disk.id, name.as_deref(), force).await;
        let left = if changed.is_ok() { drives.node(&disk.id) } else { name.as_deref() };
        if let Some(node) = left {
            self.remove_node(node).await;
        }
        changed
    }

    /// Opens what a disk has its bytes from; the name of the node, unless it is an empty drive.
    async fn open(&self, disk: &Disk, generation: u32) -> Result<Option<String>, QmpError> {
        if disk.source == DiskSource::Empty {
            return Ok(None);
        }
        if let Some(object) = tls_object(disk) {
            self.execute("object-add", object).await?;
        }
        let name = node_name(&disk.id, generation);
        match self.execute("blockdev-add", node(disk, &name, is_block_device)).await {
            Ok(_) => Ok(Some(name)),
            Err(error) => {
                self.close(&disk.id, None).await;
                Err(error)
            }
        }
    }

    /// Removes the nodes of a disk that has no device: what a gateway left that ended half-way.
    async fn remove_unused(&self, id: &str) -> Result<(), QmpError> {
        let nodes = self.execute("query-named-block-nodes", json!({ "flat": true })).await?;
        let names = nodes.as_array().into_iter().flatten().filter_map(|node| node["node-name"].as_str());
        for name in names.filter(|name| parse_node_name(name).is_some_and(|(disk, _)| disk == id)) {
            self.remove_node(name).await;
        }
        self.close(id, None).await;
        Ok(())
    }

    async fn exchange(&self, id: &str, node: Option<&str>, force: bool) -> Result<(), QmpError> {
        self.open_tray(id, force).await?;
        self.execute("blockdev-remove-medium", json!({ "id": id })).await?;
        if let Some(node) = node {
            self.execute("blockdev-insert-medium", json!({ "id": id, "node-name": node })).await?;
        }
        self.execute("blockdev-close-tray", json!({ "id": id })).await.map(drop)
    }

    async fn open_tray(&self, id: &str, force: bool) -> Result<(), QmpError> {
        let deadline = Instant::now() + RELEASE;
        loop {
            // A guest that has locked the tray is asked to open it, and QEMU does not wait for that.
            self.execute("blockdev-open-tray", json!({ "id": id, "force": force })).await?;
            if self.drives().await?.is_open(id) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let reason = format!("the guest has locked the drive, and not let go within {} s", RELEASE.as_secs());
                return Err(QmpError::Refused { command: "blockdev-open-tray".into(), reason });
            }
            sleep(ASK_AGAIN).await;
        }
    }

    async fn has_device(&self, id: &str) -> Result<bool, QmpError> {
        let devices = self.execute("qom-list", json!({ "path": "/machine/peripheral" })).await?;
        Ok(devices.as_array().into_iter().flatten().any(|device| device["name"] == id))
    }

    /// Lets go of what a disk has its bytes from.
    async fn close(&self, id: &str, node: Option<&str>) {
        if let Some(node) = node {
            self.remove_node(node).await;
        }
        // Few have certificates; those that have none have nothing to remove.
        let _ = self.execute("object-del", json!({ "id": tls_name(id) })).await;
    }

    async fn remove_node(&self, node: &str) {
        if let Err(error) = self.execute("blockdev-del", json!({ "node-name": node })).await {
            tracing::debug!(node, %error, "a node stays");
        }
    }

    async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.qmp.execute_within(OPEN, command, arguments).await
    }
}
