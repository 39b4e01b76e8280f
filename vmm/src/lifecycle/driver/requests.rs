//! How each request is carried out.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::json;
use tokio::time::Instant;

use super::{Driver, Failures, RequestId, Trouble, VmState};
use crate::accelerator::AcceleratorReport;
use crate::definition::{Accelerator, Definition, sync_folder};
use crate::disks::{
    DiskError, QemuImg, is_block_device, repair_counts, replay_below, require_disks_writable, require_free,
};
use crate::engine::{
    DISPLAY_DEVICE, Launch, MONITORS_IN_ORDER, QmpError, RuntimeFolder, TpmPlan, arguments, check_network,
    connect_network, flash,
};
use crate::lifecycle::machine::{Machine, Plan};
use crate::lifecycle::state::Cause;
use crate::memory::{Hardware, hyper_v_obstacle};

impl Driver {
    pub(super) async fn start(&mut self) -> Result<(), Trouble> {
        if self.machine.is_some() {
            // Before anything that is left is ended.
            self.require_readable()?;
        }
        if let Some(left) = self.machine.take() {
            left.end_by_force().await.map_err(Trouble::Failed)?;
            let reason = self.status.borrow().reason.clone();
            self.enter(VmState::Failed, reason);
        }
        let accelerator = self.boot().await?;
        self.run_processors().await?;
        self.enter(VmState::Running, None);
        tracing::info!(pid = self.status.borrow().pid, %accelerator, "started");
        Ok(())
    }

    /// Starts a QEMU whose processors wait, in place of one that may be left.
    pub(super) async fn boot(&mut self) -> Result<Accelerator, Trouble> {
        if self.machine.is_none() {
            self.require_readable()?;
        }
        self.host.memory.admit(&self.connections.memory).map_err(Trouble::Refused)?;
        self.connections.memory.begin_run();
        self.enter(VmState::Starting, None);
        (self.failures, self.uncorrected) = (Failures::default(), false);
        let definition = self.definition.current();
        self.tpm_failure = None;
        if let Some(left) = self.machine.take() {
            left.end_by_force().await.map_err(Trouble::Failed)?;
        }
        let report = self.accelerator().await?;
        self.status.send_modify(|status| status.accelerator = Some(report.clone()));
        if let Some(missing) = definition.missing_files() {
            return Err(Trouble::of(Cause::Missing, Trouble::Failed(missing)));
        }
        let mut paths = definition.disks.iter().filter_map(|disk| disk.source.path());
        paths.try_for_each(require_free).map_err(|by| Trouble::of(Cause::InUse, Trouble::Failed(by)))?;
        let below = self.look_below_disks(&definition).await;
        below.map_err(|error| Trouble::of(error.cause(), Trouble::Failed(error.to_string())))?;
        if Hardware::of(&definition).is_some_and(|hardware| hardware.is_hyper_v())
            && let Some(obstacle) = hyper_v_obstacle(&report, self.host.version().await)
        {
            return Err(Trouble::Failed(obstacle));
        }
        let deadline = self.host.config.deadlines.command;
        check_network(&definition, deadline).await.map_err(Trouble::Failed)?;
        let folder = RuntimeFolder::create(&self.runtime)
            .map_err(|error| Trouble::Failed(format!("runtime folder {}: {error}", self.runtime.display())))?;
        self.definition
            .begin_run(folder.definition())
            .map_err(|error| Trouble::Failed(format!("{}: {error}", folder.definition().display())))?;
        let launch = self.launch(&definition, report.accelerator).await.map_err(Trouble::Failed)?;
        let plan = Plan {
            qemu: &self.host.qemu,
            arguments: &arguments(&definition, &launch),
            allocator: launch.allocator(definition.monitors),
            bus: definition.bus,
            tpm: definition.tpm.is_some().then(|| self.tpm()),
        };
        let machine = Machine::start(plan, folder, &self.connections, self.host.config.deadlines).await;
        let machine = self.machine.insert(machine.map_err(|said| self.not_started(said, &definition))?);
        self.status.send_modify(|status| status.pid = Some(machine.pid()));
        if let Err(reason) = connect_network(&definition, deadline).await {
            if let Some(machine) = self.machine.take() {
                machine.end_by_force().await.map_err(Trouble::Failed)?;
            }
            return Err(Trouble::Failed(reason));
        }
        self.look_at_port().await;
        self.attach().await;
        Ok(report.accelerator)
    }

    /// Why QEMU ended at once, in our words where QEMU's say little.
    fn not_started(&self, said: String, definition: &Definition) -> Trouble {
        let paths = definition.disks.iter().filter_map(|disk| disk.source.path());
        if let Some(by) = self.who_locks(&said, paths) {
            return Trouble::of(Cause::InUse, Trouble::Failed(by));
        }
        match taken_forward(&said) {
            Some(rule) => {
                let reason = format!("the host's port of the forward {rule} cannot be had: another program has it");
                Trouble::of(Cause::InUse, Trouble::Failed(reason))
            }
            None => Trouble::Failed(said),
        }
    }

    /// Images that others stand on are not written to, and those that disks stand on can be read.
    async fn look_below_disks(&self, definition: &Definition) -> Result<(), DiskError> {
        let program = QemuImg::beside(&self.host.qemu);
        require_disks_writable(&self.host, &definition.disks).await?;
        if let Err(error) = replay_below(&program, definition).await {
            // QEMU says itself what it cannot read.
            tracing::warn!(%error, "an image below a disk is left as it is");
        }
        if let Err(error) = repair_counts(&program, definition, self.host.config.deadlines.snapshot).await {
            tracing::warn!(%error, "an image is left as it is");
        }
        Ok(())
    }

    async fn accelerator(&self) -> Result<AcceleratorReport, Trouble> {
        let asked = |accelerator| AcceleratorReport { accelerator, why: "the definition asks for it".into() };
        Ok(match self.definition.current().accelerator {
            Accelerator::Auto => self.host.probe().await,
            accelerator => asked(accelerator),
        })
    }

    fn tpm(&self) -> TpmPlan {
        let program = self.host.config.swtpm.clone().unwrap_or_else(|| "swtpm".into());
        TpmPlan { program, state: self.devices.join("tpm") }
    }

    async fn launch(&self, definition: &Definition, accelerator: Accelerator) -> Result<Launch, String> {
        let block_devices =
            definition.disks.iter().map(|disk| disk.source.path().is_some_and(is_block_device)).collect();
        let version = if definition.monitors > MONITORS_IN_ORDER { self.host.version().await } else { None };
        let flash = flash(definition.firmware, &self.devices)?;
        Ok(Launch { accelerator, block_devices, flash, version })
    }

    /// The last step of a start; a QEMU that cannot even do this is ended.
    async fn run_processors(&mut self) -> Result<(), Trouble> {
        let Some(machine) = &self.machine else { return Ok(()) };
        let Err(error) = machine.command("cont").await else { return Ok(()) };
        if let Some(machine) = self.machine.take() {
            machine.end_by_force().await.map_err(Trouble::Failed)?;
        }
        Err(Trouble::Failed(error.to_string()))
    }

    pub(super) async fn shut_down(&mut self, id: RequestId) -> Result<(), Trouble> {
        self.ask_qemu("system_powerdown").await?;
        if let Some(reply) = self.replies.remove(&id) {
            self.shutdowns.push((reply, Instant::now() + self.host.config.deadlines.guest_shutdown));
        }
        Ok(())
    }

    /// Ends QEMU; `reason` is why, when nobody asked for it.
    pub(super) async fn power_off(&mut self, reason: Option<String>) -> Result<(), Trouble> {
        let listens = self.status.borrow().state != VmState::Failed;
        self.enter(VmState::Stopping, None);
        if let Some(machine) = self.machine.take() {
            let ended = if listens { machine.end().await } else { machine.end_by_force().await.map(drop) };
            ended.map_err(Trouble::Failed)?;
        }
        self.enter(VmState::Stopped, reason);
        tracing::info!("stopped");
        Ok(())
    }

    /// Has QEMU carry out one command, and notes what it leads to.
    pub(super) async fn ask_qemu(&mut self, command: &str) -> Result<(), Trouble> {
        let Some(machine) = &self.machine else { return Err(Trouble::Refused("there is no QEMU".into())) };
        match machine.command(command).await {
            Ok(()) => {
                self.look().await;
                Ok(())
            }
            Err(error @ QmpError::Refused { .. }) => Err(Trouble::Refused(error.to_string())),
            Err(error) => Err(Trouble::Failed(error.to_string())),
        }
    }

    pub(super) fn delete(&mut self) -> Result<(), Trouble> {
        let removed = |result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Trouble::Refused(error.to_string())),
            _ => Ok(()),
        };
        removed(fs::remove_file(self.definition.path()))?;
        if let Some(folder) = self.definition.path().parent() {
            removed(sync_folder(folder))?;
        }
        removed(fs::remove_dir_all(&self.runtime))?;
        removed(fs::remove_dir_all(&self.devices))?;
        self.enter(VmState::Deleted, None);
        tracing::info!("deleted");
        Ok(())
    }

    pub(super) fn screendump(&self, path: &Path) -> Result<impl Future<Output = Result<(), String>> + use<>, String> {
        let machine = self.machine.as_ref().ok_or("the VM is off")?;
        let qmp = machine.qmp().ok_or_else(|| QmpError::Closed.to_string())?;
        let arguments = json!({ "filename": path, "device": DISPLAY_DEVICE, "head": 0, "format": "png" });
        Ok(async move { qmp.execute("screendump", arguments).await.map(drop).map_err(|error| error.to_string()) })
    }
}

/// The forward that QEMU could not set up, by what it said.
fn taken_forward(said: &str) -> Option<&str> {
    let (_, rule) = said.split_once("Could not set up host forwarding rule '")?;
    Some(rule.split_once('\'')?.0)
}
