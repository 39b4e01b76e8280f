//! A move from its beginning, or from where an earlier gateway left it, to its end.
//!
//! It looks at what there is, does what `decision` says, and looks again, until the disk is in one place only.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use super::compare::{self, SOURCE, lock};
use super::daemon::Daemon;
use super::decision::{Decision, Engine, MERGE, Phase, Place, SETTLE, SWITCH, Step, decide};
use super::journal::{EngineStamp, Entry, Journal, Location};
use super::merge::Merge;
use super::mirror::{Mirror, State, Stopped, attached};
use super::plan::{Plan, claim_target};
use super::switch::{Report, Rest, Stage, define};
use super::{MoveDisk, Moved};
use crate::definition::Disk;
use crate::disks::users::users_of;
use crate::disks::{Disks, is_block_device};
use crate::engine::{ProcessStamp, Qmp, QmpError, node_name, parse_node_name};
use crate::jobs::{JobHandle, JobId, Unfinished};
use crate::lifecycle::{Hold, HoldKind, Monitor, VmState};
use crate::vm::Vm;

/// How soon it is looked again when nothing could be done.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// How often it is looked whether nobody has a file open any more.
const MOST_LOOKS: u32 = 50;
/// A move.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) disks: Disks,
    pub(super) vm: Vm,
    pub(super) journal: Journal,
    pub(super) entry: Entry,
    pub(super) hold: Hold,
    pub(super) source: Disk,
    pub(super) target: Disk,
    pub(super) size: u64,
    pub(super) rate: Option<u64>,
    /// What shows both places.
    pub(super) daemon: Option<Arc<Daemon>>,
    /// Whether an earlier gateway began it: what the guest has written since then is not known.
    pub(super) taken_over: bool,
    pub(super) report: Arc<Mutex<Report>>,
    /// What QEMU said of a copy that ended by itself.
    problem: Option<String>,
}

impl Move {
    pub(super) fn new(disks: Disks, vm: Vm, plan: Plan, request: &MoveDisk, job: JobId) -> Self {
        let location = |disk: &Disk| Location::new(&disk.source, disk.format);
        let entry = Entry {
            delete_source: request.delete_source,
            checksum: request.verify,
            engine: stamp(&plan.monitor),
            ..Entry::new(job, vm.uuid(), &plan.source.id, location(&plan.source), location(&plan.target))
        };
        Self {
            journal: Journal::new(disks.host.moves().to_path_buf()),
            disks,
            vm,
            entry,
            hold: plan.hold,
            source: plan.source,
            target: plan.target,
            size: plan.size,
            rate: request.rate,
            daemon: Some(Arc::new(plan.daemon)),
            taken_over: false,
            report: Arc::default(),
            problem: None,
        }
    }

    /// The merge of an overlay into the file that it stands on.
    pub(super) fn merge(disks: Disks, vm: Vm, plan: Merge, job: JobId) -> Self {
        let location = |disk: &Disk| Location::new(&disk.source, disk.format);
        let entry = Entry::new(job, vm.uuid(), &plan.overlay.id, location(&plan.overlay), location(&plan.below));
        Self {
            journal: Journal::new(disks.host.moves().to_path_buf()),
            disks,
            vm,
            entry: Entry { engine: stamp(&plan.monitor), ..entry.into_merge() },
            hold: plan.hold,
            source: plan.overlay,
            target: plan.below,
            size: plan.size,
            rate: None,
            daemon: None,
            taken_over: false,
            report: Arc::default(),
            problem: None,
        }
    }

    /// Takes over a move that an earlier gateway left.
    pub(super) async fn take_over(disks: Disks, vm: Vm, journal: Journal, entry: Entry) -> Result<Self, String> {
        let disk = vm.definition().disk(&entry.disk).cloned().ok_or("the VM has no such disk any more")?;
        let at = |location: &Location| Disk { source: location.source(), format: location.format, ..disk.clone() };
        let (source, target) = (at(&entry.source), at(&entry.target));
        let (hold, _) = vm.hold_disk(&entry.disk).await?;
        if entry.engine.is_some() && entry.phase != Phase::Copying {
            hold.change(HoldKind::Frozen);
        }
        Ok(Self {
            disks,
            vm,
            journal,
            entry,
            hold,
            source,
            target,
            size: 0,
            rate: None,
            daemon: None,
            taken_over: true,
            report: Arc::default(),
            problem: None,
        })
    }

    /// Does all of it.
    pub(super) async fn run(mut self, job: JobHandle) -> Result<Option<Value>, Unfinished> {
        let begun = match self.begin(&job).await {
            Ok(()) if self.entry.engine.is_none() => self.copy_off(&job).await,
            begun => begun,
        };
        self.settle(&job, begun.err()).await
    }

    pub(super) fn is_merge(&self) -> bool {
        self.entry.merge
    }

    /// Makes the target, and has QEMU begin to copy if there is one.
    async fn begin(&mut self, job: &JobHandle) -> Result<(), Unfinished> {
        job.step("preparing");
        self.leave_daemon(job).await?;
        self.note(Phase::Copying).await?;
        self.entry.made = claim_target(&self.target).map_err(failed)?;
        // A file that nobody has noted is empty.
        self.note(Phase::Copying).await?;
        self.disks.make_target(&self.target, self.size).await.map_err(failed)?;
        if self.entry.engine.is_none() {
            return Ok(());
        }
        let Monitor::On(qmp, _) = self.vm.monitor().await else { return Err(failed("QEMU does not answer")) };
        self.name_nodes(&qmp).await?;
        self.note(Phase::Copying).await?;
        let Some(mirror) = self.mirror() else { return Ok(()) };
        mirror.start(&qmp, &self.target, self.rate).await.map_err(failed)
    }

    /// Asks QEMU what it calls the disk, and chooses what it will call it.
    async fn name_nodes(&mut self, qmp: &Qmp) -> Result<(), Unfinished> {
        let node = attached(qmp, &self.entry.disk).await.map_err(failed)?;
        let node = node.ok_or_else(|| failed("QEMU has no such disk"))?;
        let generation = parse_node_name(&node).map_or(0, |(_, generation)| generation);
        if let Some(engine) = &mut self.entry.engine {
            engine.target_node = node_name(&self.entry.disk, generation + 1);
            engine.source_node = node;
        }
        Ok(())
    }

    /// Looks and decides until there is one place; `reason` is why the copy is to be given up.
    pub(super) async fn settle(
        mut self,
        job: &JobHandle,
        mut reason: Option<Unfinished>,
    ) -> Result<Option<Value>, Unfinished> {
        loop {
            let engine = self.engine().await;
            match decide(self.defined(), engine) {
                Decision::Wait => {
                    if job.gateway_stops() {
                        return Err(Unfinished::Left);
                    }
                    sleep(LOOK_AGAIN).await;
                }
                Decision::GoOn if reason.is_some() => {
                    if let Err(error) = self.give_up_copy().await {
                        tracing::warn!(%error, "a copy cannot be given up");
                        sleep(LOOK_AGAIN).await;
                    }
                }
                Decision::GoOn => match self.copy(job).await {
                    Ok(()) => {}
                    Err(Unfinished::Left) => return Err(Unfinished::Left),
                    Err(why) => reason = Some(why),
                },
                Decision::Discard => {
                    let reason = reason.unwrap_or_else(|| self.lost());
                    return Err(match self.discard().await {
                        Ok(()) => reason,
                        Err(left) => failed(format!("{}; {left}", in_words(&reason))),
                    });
                }
                Decision::Finish => match self.finish(job).await {
                    Ok(moved) => return Ok(serde_json::to_value(moved).ok()),
                    Err(error) => {
                        tracing::warn!(%error, disk = self.entry.disk, "a disk that has moved cannot be settled yet");
                        if job.gateway_stops() {
                            return Err(Unfinished::Left);
                        }
                        sleep(LOOK_AGAIN).await;
                    }
                },
            }
        }
    }

    /// What there is of the QEMU that copies.
    async fn engine(&mut self) -> Engine {
        let Some(stamp) = self.entry.engine.clone() else { return Engine::Off };
        let (qmp, pid) = match self.vm.monitor().await {
            Monitor::Off => return Engine::Off,
            Monitor::Silent => return Engine::Silent,
            Monitor::On(qmp, pid) => (qmp, pid),
        };
        // Another was started from the definition, and calls other things the same.
        if pid != stamp.pid || start_time(pid) != Some(stamp.start_time) {
            return Engine::Off;
        }
        let Some(mirror) = self.mirror() else { return Engine::Off };
        let asked = async { Ok::<_, QmpError>((attached(&qmp, &self.entry.disk).await?, mirror.state(&qmp).await?)) };
        let Ok((node, state)) = asked.await else { return Engine::Silent };
        if let State::Ended { problem: Some(problem) } = &state {
            self.problem = Some(problem.clone());
        }
        let attached = match node {
            // A job that is about to end has its filter there.
            Some(node) if node == stamp.target_node => Some(Place::Target),
            Some(_) => Some(Place::Source),
            None => None,
        };
        Engine::On { attached, mirrors: matches!(state, State::Copying { .. } | State::InStep) }
    }

    /// Which place the definition names.
    fn defined(&self) -> Place {
        let definition = self.vm.definition();
        let disk = definition.disks.iter().find(|disk| disk.id == self.entry.disk);
        let is_target = disk.is_some_and(|disk| disk.source == self.target.source);
        if is_target { Place::Target } else { Place::Source }
    }

    /// Copies, compares and switches, from wherever it is. Without an error it is to be looked again.
    async fn copy(&mut self, job: &JobHandle) -> Result<(), Unfinished> {
        let (Some(mirror), Monitor::On(qmp, _)) = (self.mirror(), self.vm.monitor().await) else {
            sleep(LOOK_AGAIN).await;
            return Ok(());
        };
        if let Phase::Switching { resume } = self.entry.phase {
            self.thaw(resume).await?;
        }
        job.step("copying");
        // The loser looked, or waited.
        let in_step = tokio::select! {
            in_step = mirror.until_in_step(&qmp, |done, total| job.advance(done, total)) => in_step,
            () = job.stopped() => return Err(stopped(job)),
        };
        match in_step {
            Ok(()) => {}
            // What came of it is seen when it is looked again.
            Err(Stopped::Qmp(_)) => {
                sleep(LOOK_AGAIN).await;
                return Ok(());
            }
            Err(Stopped::Ended(problem)) => {
                return Err(failed(problem.unwrap_or_else(|| "QEMU gave the copy up".into())));
            }
        }
        if self.entry.merge {
            return self.switch(self.stage(mirror, None, None), &MERGE, job).await;
        }
        let rest = tokio::select! {
            rest = self.compare(&qmp, &mirror, job) => rest,
            () = job.stopped() => return Err(stopped(job)),
        };
        let rest = match rest {
            Ok(rest) => rest,
            // Perhaps it is QEMU that has gone, and not the copy that is bad.
            Err(error) if matches!(self.engine().await, Engine::On { mirrors: true, .. }) => return Err(failed(error)),
            Err(_) => return Ok(()),
        };
        self.switch(self.stage(mirror, Some(rest), None), &SWITCH, job).await
    }

    /// Has the driver do the last steps.
    async fn switch(&mut self, stage: Stage, steps: &'static [Step], job: &JobHandle) -> Result<(), Unfinished> {
        job.step("switching");
        if job.seal().is_err() {
            return Err(stopped(job));
        }
        match self.vm.switch_disk(stage.into_switch(steps)).await {
            Ok(()) => {
                self.entry.phase = Phase::Switched { resume: false };
                Ok(())
            }
            Err(error) => {
                // How far it came is in the journal, too.
                self.reread();
                Err(failed(error))
            }
        }
    }

    /// What an earlier gateway left standing still with the source goes on.
    async fn thaw(&mut self, resume: bool) -> Result<(), Unfinished> {
        self.note(Phase::Copying).await?;
        self.hold.change(HoldKind::Live);
        self.let_go_on(resume).await
    }

    async fn let_go_on(&self, resume: bool) -> Result<(), Unfinished> {
        if resume && self.vm.status().state == VmState::Paused {
            self.vm.resume().await.map_err(failed)
        } else {
            Ok(())
        }
    }

    async fn give_up_copy(&self) -> Result<(), QmpError> {
        match (self.mirror(), self.vm.monitor().await) {
            (Some(mirror), Monitor::On(qmp, _)) if self.entry.merge => mirror.cancel_commit(&qmp).await,
            (Some(mirror), Monitor::On(qmp, _)) => mirror.cancel(&qmp).await,
            _ => Err(QmpError::Closed),
        }
    }

    /// The source is the disk: what was made for the target goes. An error says what stays.
    async fn discard(&mut self) -> Result<(), String> {
        if let Engine::On { .. } = self.engine().await
            && let Err(error) = self.give_up_copy().await
        {
            tracing::warn!(%error, "what is left of a copy stays in QEMU until it ends");
        }
        if let Phase::Switching { resume } | Phase::Switched { resume } = self.entry.phase {
            self.hold.change(HoldKind::Live);
            if let Err(error) = self.let_go_on(resume).await {
                tracing::warn!(?error, "the guest cannot go on");
            }
        }
        if self.defined() == Place::Target {
            let defined = define(self.vm.definition_file(), &self.source).await;
            defined.map_err(|error| format!("and the definition still names {}: {error}", self.target.source))?;
        }
        let removed = self.remove_target().await;
        removed.map_err(|error| format!("and {} is still there: {error}", self.target.source))
    }

    async fn remove_target(&mut self) -> io::Result<()> {
        // It has the target open; it and a QEMU that was killed are gone in a moment.
        self.daemon = None;
        let is_ours = |path: &&Path| !self.entry.merge && !is_block_device(path);
        let Some(path) = self.target.source.path().filter(is_ours) else { return Ok(()) };
        let Some(made) = &self.entry.made else {
            // The name was kept, and that gateway ended before it could say so.
            return if self.taken_over && is_empty_file(path) { fs::remove_file(path) } else { Ok(()) };
        };
        let mut looks = 0;
        while path.exists() && !users_of(path)?.is_empty() {
            looks += 1;
            if looks > MOST_LOOKS {
                return Err(io::Error::other("something has it open"));
            }
            sleep(LOOK_AGAIN).await;
        }
        made.remove().map(drop)
    }

    /// The target is the disk: says so where it is not said yet, and releases the source.
    async fn finish(&mut self, job: &JobHandle) -> Result<Moved, String> {
        job.step("releasing");
        if let (Some(mirror), Engine::On { .. }) = (self.mirror(), self.engine().await) {
            if let Phase::Switching { resume } = self.entry.phase {
                let stage = self.stage(mirror.clone(), None, Some(resume));
                let settled = self.vm.switch_disk(stage.into_switch(&SETTLE)).await;
                settled.map_err(|error| error.to_string())?;
                self.entry.phase = Phase::Switched { resume: false };
            }
            self.hold.change(HoldKind::Live);
            if let Phase::Switched { resume } = self.entry.phase {
                self.let_go_on(resume).await.map_err(|_| "the guest cannot go on".to_owned())?;
            }
            let Monitor::On(qmp, _) = self.vm.monitor().await else { return Err("QEMU does not answer".into()) };
            let released =
                if self.entry.merge { mirror.release_commit(&qmp).await } else { mirror.release(&qmp).await };
            released.map_err(|error| error.to_string())?;
        }
        let sha256 = if self.entry.checksum { self.checksum_unless_stopped(job).await? } else { None };
        self.daemon = None;
        let deleted = if self.entry.delete_source { Some(self.delete_source().await) } else { None };
        let report = lock(&self.report);
        Ok(Moved {
            disk: self.entry.disk.clone(),
            target: self.target.source.to_string(),
            format: self.target.format,
            source: self.source.source.to_string(),
            source_kept: !matches!(deleted, Some(Ok(()))),
            problem: deleted.and_then(Result::err),
            compared: report.compared,
            stood_still: report.stood_still,
            sha256,
        })
    }

    /// The disk has moved: whoever cancels now wants no checksum.
    async fn checksum_unless_stopped(&mut self, job: &JobHandle) -> Result<Option<String>, String> {
        job.unseal();
        let stopped = async {
            job.stopped().await;
            job.is_cancelled()
        };
        tokio::select! {
            sum = self.checksum(job) => Ok(sum),
            cancelled = stopped => if cancelled { Ok(None) } else { Err("the gateway ends".into()) },
        }
    }

    /// The checksum of the source, which nobody writes to any more.
    async fn checksum(&mut self, job: &JobHandle) -> Option<String> {
        job.step("computing the checksum");
        let summed = async {
            let daemon = match self.daemon.take() {
                Some(daemon) => daemon,
                None => Arc::new(self.disks.start_daemon(&self.vm, &self.entry.disk).await.map_err(io::Error::other)?),
            };
            daemon.show(&self.source, SOURCE).await.map_err(io::Error::other)?;
            let total = daemon.connect(SOURCE, None).await?.size();
            compare::checksum(&daemon, compare::counted(job, total)).await
        };
        let summed: io::Result<String> = summed.await;
        summed.inspect_err(|error| tracing::warn!(%error, "the checksum of a moved disk cannot be computed")).ok()
    }

    async fn delete_source(&self) -> Result<(), String> {
        let Some(path) = self.source.source.path() else { return Err("it is no file".into()) };
        // An earlier gateway may have done it.
        if path.exists() { self.disks.delete(path).await.map_err(|error| error.to_string()) } else { Ok(()) }
    }

    /// Why it came to nothing, when nobody gave a reason.
    fn lost(&self) -> Unfinished {
        let words = self.problem.clone().unwrap_or_else(|| "QEMU ended before the copy was complete".into());
        failed(format!("{words}; the disk is {} as before", self.source.source))
    }

    fn stage(&self, mirror: Mirror, rest: Option<Rest>, resume: Option<bool>) -> Stage {
        Stage {
            entry: self.entry.clone(),
            journal: self.journal.clone(),
            definition: self.vm.definition_file().clone(),
            mirror,
            source: self.source.clone(),
            target: self.target.clone(),
            rest,
            resume,
            report: self.report.clone(),
        }
    }

    pub(super) fn mirror(&self) -> Option<Mirror> {
        let engine = self.entry.engine.as_ref()?;
        Some(Mirror {
            job: format!("fanlight-move-{}", self.entry.job),
            source: engine.source_node.clone(),
            target: engine.target_node.clone(),
        })
    }

    /// Writes the journal before the next step.
    pub(super) async fn note(&mut self, phase: Phase) -> Result<(), Unfinished> {
        self.entry.phase = phase;
        let (journal, entry) = (self.journal.clone(), self.entry.clone());
        let written = tokio::task::spawn_blocking(move || journal.write(&entry)).await;
        written.map_err(failed)?.map_err(|error| failed(format!("the journal of the move: {error}")))
    }

    fn reread(&mut self) {
        let found = self.journal.read().unwrap_or_default();
        if let Some(entry) = found.entries.into_iter().find(|entry| entry.job == self.entry.job) {
            self.entry = entry;
        }
    }

    /// Notes what a later gateway must end.
    pub(super) async fn leave_daemon(&self, job: &JobHandle) -> Result<(), Unfinished> {
        let leftovers: Vec<_> = self.daemon.iter().filter_map(|daemon| daemon.leftover()).collect();
        job.leave(&leftovers).await
    }
}

/// What QEMU is, and what it calls the disk now and will call it.
fn stamp(monitor: &Monitor) -> Option<EngineStamp> {
    let Monitor::On(_, pid) = monitor else { return None };
    Some(EngineStamp {
        pid: *pid,
        start_time: start_time(*pid)?,
        source_node: String::new(),
        target_node: String::new(),
    })
}

fn start_time(pid: u32) -> Option<u64> {
    ProcessStamp::of(i32::try_from(pid).ok()?).map(|stamp| stamp.start_time)
}

pub(super) fn failed(reason: impl ToString) -> Unfinished {
    Unfinished::Failed(reason.to_string())
}

fn in_words(reason: &Unfinished) -> &str {
    match reason {
        Unfinished::Failed(reason) => reason,
        Unfinished::Stopped | Unfinished::Left => "it was cancelled",
    }
}

/// Why a job stops: somebody cancelled it, or the gateway ends and the next one goes on with it.
pub(super) fn stopped(job: &JobHandle) -> Unfinished {
    if job.is_cancelled() { Unfinished::Stopped } else { Unfinished::Left }
}

fn is_empty_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|data| data.is_file() && data.len() == 0)
}
