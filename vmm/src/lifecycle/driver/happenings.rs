//! What happens by itself: QEMU's doings, and the passing of time.

use std::time::SystemTime;

use serde_json::json;
use tokio::time::{Instant, timeout};

use super::{Driver, RETRY_AFTER, Trouble, VmState};
use crate::accelerator::AcceleratorReport;
use crate::definition::Accelerator;
use crate::engine::{Event, Exit, Leftover, QmpError, RuntimeFolder};
use crate::lifecycle::machine::{Happening, Machine, RunState};
use crate::lifecycle::state::{Cause, Request, RequestError};

impl Driver {
    /// Finds out what became of the VM while there was no gateway.
    pub(super) async fn take_back(&mut self) {
        let Ok(folder) = RuntimeFolder::open(&self.runtime) else { return };
        let (kept, started, paused) = (folder.definition(), folder.started(), folder.paused_since());
        match Machine::find(folder, &self.connections, self.host.config.deadlines) {
            Ok(Ok(machine)) => {
                self.take_back_definition(kept);
                self.status.send_modify(|status| status.pid = Some(machine.pid()));
                self.machine = Some(machine);
                self.recover().await;
                self.remember_since(started, paused);
                self.host.memory.wake();
                let status = self.status.borrow();
                tracing::info!(pid = status.pid, state = %status.state, "taken back");
            }
            Ok(Err(folder)) => self.note_leftover(&folder),
            Err(error) => self.enter(VmState::Failed, Some(format!("cannot look for its QEMU: {error}"))),
        }
    }

    /// What an earlier gateway entered has lasted since then, and not since there is this one.
    fn remember_since(&self, started: Option<SystemTime>, paused: Option<SystemTime>) {
        self.status.send_modify(|status| {
            let since = match status.state {
                VmState::Running => started,
                VmState::Paused => paused,
                _ => None,
            };
            status.since = since.unwrap_or(status.since).min(SystemTime::now());
        });
    }

    /// There is no QEMU; was there one the last time?
    fn note_leftover(&mut self, folder: &RuntimeFolder) {
        let leftover = folder.leftover();
        let said = folder.log_tail(3);
        folder.forget_process();
        match leftover {
            None => self.enter(VmState::Stopped, None),
            Some(Leftover::EarlierBoot) => {
                self.enter(VmState::Stopped, Some("the host was started over while it was on".into()));
            }
            Some(Leftover::ThisBoot) => {
                let reason = format!("QEMU ended while no gateway was there. {said}");
                self.enter(VmState::Failed, Some(reason.trim().into()));
            }
        }
    }

    /// Gets a QEMU to answer that does not, or not yet.
    async fn recover(&mut self) {
        let deadline = self.host.config.deadlines.command;
        let Some(machine) = &mut self.machine else { return };
        if let Err(reason) = machine.connect(deadline).await {
            self.enter(VmState::Failed, Some(reason));
            return;
        }
        self.look().await;
        self.look_at_port().await;
        if self.uncorrected && matches!(self.status.borrow().state, VmState::Running | VmState::Paused) {
            self.uncorrected = false;
            self.correct_disks().await;
            self.finish_overlays().await;
        }
        self.name_accelerator().await;
        self.attach_if_missing().await;
    }

    /// Whether a QEMU that did not answer still does not. It is not waited for long: who asks for it to be switched off
    /// is heard in between.
    async fn still_hangs(&mut self) -> bool {
        let Some(machine) = &mut self.machine else { return false };
        let answers = async { machine.connect(RETRY_AFTER).await.is_ok() && machine.run_state().await.is_ok() };
        !timeout(RETRY_AFTER, answers).await.unwrap_or(false)
    }

    /// Asks the QEMU that an earlier gateway started how its processors are run.
    async fn name_accelerator(&self) {
        if self.status.borrow().accelerator.is_some() {
            return;
        }
        let Some(machine) = &self.machine else { return };
        let Ok(kvm) = machine.execute("query-kvm", json!({})).await else { return };
        let accelerator = if kvm["enabled"] == true { Accelerator::Kvm } else { Accelerator::Tcg };
        let report = AcceleratorReport { accelerator, why: "it was started with it".into() };
        self.status.send_modify(|status| status.accelerator = Some(report));
    }

    pub(super) async fn handle_happening(&mut self, happening: Happening) {
        match happening {
            Happening::Event(event) => self.handle_event(&event).await,
            // Not at once: most often the process is about to end, and a monitor that closes again and again must not
            // keep us busy.
            Happening::MonitorLost => self.next_heartbeat = Instant::now() + RETRY_AFTER,
            Happening::DisplayLost => {
                if let Some(machine) = &mut self.machine {
                    machine.detach().await;
                }
                self.next_attach = Some(Instant::now() + RETRY_AFTER);
            }
            Happening::TpmLost(how) => {
                tracing::warn!(reason = how, "the TPM ended");
                self.tpm_failure = Some(format!("{how}; the guest has no TPM until the VM is started anew"));
                self.look().await;
            }
            Happening::Ended(exit) => self.handle_end(exit).await,
        }
    }

    async fn handle_event(&mut self, event: &Event) {
        tracing::debug!(event = event.name, data = %event.data, "QEMU");
        self.connections.bus.note(event);
        if event.name == "RESET" {
            self.connections.memory.begin_run();
        }
        let matters = match event.name.as_str() {
            "BLOCK_IO_ERROR" if event.data["action"] == "stop" => {
                self.note_disk_failure(event);
                true
            }
            // Not when it is seen to run: between a failure and the stop that follows it, it does.
            "RESUME" => {
                self.note_resumption();
                true
            }
            "STOP" | "SHUTDOWN" | "GUEST_PANICKED" | "RESET" | "WATCHDOG" => true,
            _ => false,
        };
        if self.job.is_some() {
            // QEMU may be silent until it ends. It is looked at then.
            return;
        }
        let missed = self.machine.as_ref().is_some_and(Machine::take_missed_events);
        if matters || missed {
            self.look().await;
        }
        if missed {
            self.look_at_port().await;
            // One of them may have been a reset, and one too many is noticed by nobody but the agent.
            self.connections.bus.count_reset();
        }
    }

    async fn handle_end(&mut self, exit: Exit) {
        let Some(machine) = self.machine.take() else { return };
        let reason = machine.obituary(exit);
        machine.bury().await;
        tracing::warn!(reason, "QEMU ended");
        self.enter(VmState::Failed, Some(reason.clone()));
        self.abandon_job(Trouble::Failed(reason));
    }

    /// Makes the state what QEMU says it is.
    pub(super) async fn look(&mut self) {
        let Some(machine) = &self.machine else { return };
        let state = machine.run_state().await;
        if let Ok(state) = &state {
            self.connections.bus.set_running(*state == RunState::Running);
        }
        match state {
            // Whether the disk is back will show in a moment.
            Ok(RunState::Running | RunState::Suspended) if self.failures.hide() => {}
            Ok(RunState::Running | RunState::Suspended) => {
                self.enter(VmState::Running, self.tpm_failure.clone());
            }
            Ok(RunState::Paused(why)) => {
                self.failures.end_comeback();
                self.enter(VmState::Paused, why.map(Into::into));
            }
            Ok(RunState::DiskFailed) => self.wait_for_disk().await,
            Ok(RunState::ShutDown) => {
                let ended = self.power_off(Some("the guest shut down".into())).await;
                self.fail_on(ended);
            }
            Ok(RunState::Broken) => {
                self.give_up("QEMU met an internal error and cannot run this guest further").await;
            }
            // Nobody looks while a load is under way, so that its gateway has ended before it did.
            Ok(RunState::Torn) => self.give_up("the loading of a snapshot was cut off; load it again").await,
            // The process has ended too, or the connection is found closed: what is to be said comes from there.
            Err(QmpError::Closed) => {}
            Err(error) => self.enter(VmState::Failed, Some(error.to_string())),
        }
    }

    /// Asks whether there is a port of the bus and who has it open: what happened to it before is told by no event.
    pub(super) async fn look_at_port(&self) {
        let Some(machine) = &self.machine else { return };
        match machine.bus_port().await {
            Ok(port) => self.connections.bus.set_port(port),
            // It is asked again when QEMU is found to answer.
            Err(error) => tracing::debug!(%error, "the port of the bus cannot be looked at"),
        }
    }

    /// What QEMU has cannot be run.
    async fn give_up(&mut self, reason: &str) {
        let Some(machine) = self.machine.take() else { return };
        let ended = machine.end_by_force().await.map(drop).map_err(Trouble::Failed);
        self.enter(VmState::Failed, Some(reason.into()));
        self.fail_on(ended);
    }

    fn fail_on(&mut self, done: Result<(), Trouble>) {
        if let Err(trouble) = done {
            self.enter(VmState::Failed, Some(trouble.reason()));
        }
    }

    pub(super) fn next_timer(&self) -> Instant {
        let shutdowns = self.shutdowns.iter().map(|(_, deadline)| *deadline);
        shutdowns.chain(self.next_attach).chain(self.failures.next_timer()).fold(self.next_heartbeat, Instant::min)
    }

    pub(super) async fn handle_timer(&mut self) {
        let now = Instant::now();
        self.end_overdue_shutdowns(now);
        if self.next_attach.is_some_and(|at| at <= now) {
            self.next_attach = self.job.is_some().then_some(now + RETRY_AFTER);
            self.attach_if_missing().await;
        }
        self.handle_failures_timer(now).await;
        if self.next_heartbeat <= now {
            self.heartbeat().await;
        }
    }

    /// Sees whether QEMU still answers; one that had stopped may have come back.
    async fn heartbeat(&mut self) {
        // A job without a QEMU works on images.
        let listens = self.machine.as_ref().is_none_or(|machine| machine.qmp().is_some());
        if self.job.is_some() && listens {
            // It has its own deadline.
            self.next_heartbeat = Instant::now() + self.host.config.deadlines.heartbeat;
            return;
        }
        self.abandon_job(Trouble::Failed(QmpError::Closed.to_string()));
        let failed = self.status.borrow().state == VmState::Failed;
        let until_next = if self.machine.is_some() && failed && self.still_hangs().await {
            2 * RETRY_AFTER
        } else {
            self.recover().await;
            self.host.config.deadlines.heartbeat
        };
        self.next_heartbeat = Instant::now() + until_next;
        if let Some(machine) = &self.machine {
            machine.trim_log();
        }
    }

    fn end_overdue_shutdowns(&mut self, now: Instant) {
        let limit = self.host.config.deadlines.guest_shutdown.as_secs();
        for (reply, _) in self.shutdowns.extract_if(.., |(_, deadline)| *deadline <= now) {
            let reason = format!("the guest did not go down within {limit} s");
            let _ = reply.send(Err(RequestError::Failed { request: Request::Shutdown, reason, cause: Cause::Failure }));
        }
    }

    async fn attach_if_missing(&mut self) {
        if self.job.is_none() && self.machine.as_ref().is_some_and(|machine| !machine.has_display()) {
            self.attach().await;
        }
    }

    /// Connects the display. A VM without one still runs: it is tried again.
    pub(super) async fn attach(&mut self) {
        let Some(machine) = &mut self.machine else { return };
        if let Err(reason) = machine.attach(&self.connections.display).await {
            tracing::warn!(reason, "the display cannot be reached");
            self.next_attach = Some(Instant::now() + RETRY_AFTER);
        }
    }
}
