//! Disks that fail: what is said of them, and when their guest goes on.

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Driver, Trouble, VmState};
use crate::engine::{Event, parse_device_name, parse_node_name};
use crate::lifecycle::disks::{Comeback, DiskFailure, Found, Step, look_at};
use crate::lifecycle::machine::{Machine, RunState};

/// What is known of disks that failed.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// What a disk said before the processors stopped.
    last: Option<DiskFailure>,
    /// None when the guest does not stand still for a disk, or shall do so until somebody resumes it.
    comeback: Option<Comeback>,
    /// The look that is under way.
    look: Option<oneshot::Receiver<Found>>,
}

impl Failures {
    /// Waits for what a look finds. Cancel safe.
    pub(super) async fn found(&mut self) -> Found {
        let Some(look) = &mut self.look else { return std::future::pending().await };
        let found = look.await.unwrap_or(Found::Unknown);
        self.look = None;
        found
    }

    /// When the next thing is to be done.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.comeback.as_ref()?.poll_timeout()
    }

    /// Whether a guest that runs is not yet to be shown so.
    pub(super) fn hide(&self) -> bool {
        self.comeback.as_ref().is_some_and(Comeback::is_hidden)
    }

    /// Nothing goes on by itself any more.
    pub(super) fn end_comeback(&mut self) {
        (self.comeback, self.look) = (None, None);
    }

    /// Whether there is something that goes on by itself.
    pub(super) fn come_back(&self) -> bool {
        self.comeback.is_some()
    }

    fn put_off(&mut self) {
        if let Some(comeback) = &mut self.comeback {
            comeback.put_off(Instant::now());
        }
    }
}

impl Driver {
    /// A disk failed, and QEMU is about to stop the processors for it.
    pub(super) fn note_disk_failure(&mut self, event: &Event) {
        let text = |key: &str| event.data[key].as_str().unwrap_or("?");
        let node = text("node-name");
        let device = || event.data["qom-path"].as_str().map(parse_device_name);
        // The file that an overlay went into has a node without a name of ours.
        let disk = parse_node_name(node).map(|(disk, _)| disk).or_else(device).unwrap_or(node);
        let reason = format!("a {} failed: {}", text("operation"), text("reason"));
        let no_room = event.data["nospace"] == true;
        self.failures.last = Some(DiskFailure { disk: disk.into(), reason, no_room });
    }

    /// Somebody let the processors go on. When the disk fails again it says so anew.
    pub(super) fn note_resumption(&mut self) {
        if !self.failures.come_back() {
            self.failures.last = None;
        }
    }

    /// The processors stand still for a disk: says why, and sees to it that they go on when it is back.
    pub(super) async fn wait_for_disk(&mut self) {
        if self.failures.last.is_none() {
            self.failures.last = self.ask_for_failure().await;
        }
        let why = self.failures.last.as_ref().map_or_else(|| "a disk failed".to_owned(), ToString::to_string);
        if self.machine.as_ref().is_some_and(Machine::is_kept_paused) {
            self.failures.end_comeback();
            return self.enter(VmState::Paused, Some(format!("{why}; it waits to be resumed")));
        }
        let now = Instant::now();
        self.failures.comeback.get_or_insert_with(|| Comeback::new(now)).handle_failure(now);
        self.enter(VmState::Paused, Some(format!("{why}; looking again")));
    }

    /// Stops the processors; one that stands still for a disk shall not go on by itself any more.
    pub(super) async fn pause(&mut self) -> Result<(), Trouble> {
        self.keep_paused(true)?;
        let paused = self.ask_qemu("stop").await;
        if paused.is_err() {
            // What it says is better than what this would.
            let _ = self.keep_paused(false);
        }
        paused
    }

    /// Lets the processors go on.
    pub(super) async fn resume(&mut self) -> Result<(), Trouble> {
        self.keep_paused(false)?;
        self.failures.end_comeback();
        self.ask_qemu("cont").await
    }

    /// It is late enough for something.
    pub(super) async fn handle_failures_timer(&mut self, now: Instant) {
        match self.failures.comeback.as_mut().and_then(|comeback| comeback.handle_timeout(now)) {
            // QEMU may be silent until a job of its own ends.
            Some(Step::Look) if self.job.is_some() => self.failures.put_off(),
            Some(Step::Look) => {
                let failed = self.failures.last.as_ref();
                let definition = self.definition.current();
                let disk = failed.and_then(|failed| definition.disks.iter().find(|disk| disk.id == failed.disk));
                self.failures.look = Some(look_at(disk.map(|disk| disk.source.clone())));
            }
            Some(Step::Show) => self.look().await,
            Some(Step::Forget) => {
                self.failures = Failures::default();
            }
            None => {}
        }
    }

    /// A look has ended.
    pub(super) async fn handle_found(&mut self, found: Found) {
        if self.job.is_some() {
            return self.failures.put_off();
        }
        let no_room = self.failures.last.as_ref().is_some_and(|failure| failure.no_room);
        let Some(comeback) = &mut self.failures.comeback else { return };
        let Some(machine) = self.machine.as_ref().filter(|_| comeback.handle_found(Instant::now(), found, no_room))
        else {
            return;
        };
        tracing::debug!(?found, "the disk may be back");
        // Somebody may have let it go on, or done something else with it.
        if matches!(machine.run_state().await, Ok(RunState::DiskFailed)) {
            // What comes of it is seen when it is looked at.
            let _ = machine.command("cont").await;
        } else {
            self.failures.end_comeback();
        }
        self.look().await;
    }

    fn keep_paused(&self, kept: bool) -> Result<(), Trouble> {
        let Some(machine) = &self.machine else { return Ok(()) };
        machine.keep_paused(kept).map_err(|error| Trouble::Refused(format!("its runtime folder: {error}")))
    }

    /// What QEMU still knows of a failure that an earlier gateway was told of.
    async fn ask_for_failure(&self) -> Option<DiskFailure> {
        self.plug().ok()??.drives().await.ok()?.failure()
    }
}
