//! Live Storage Move: a disk of a VM goes to another file, format, device or server while the guest runs and writes on.
//!
//! QEMU copies (`blockdev-mirror`, each write of the guest to both places), and both places are compared by a process of its
//! own before the source is released. Whatever is killed, pulled or filled meanwhile: the VM has one complete disk, and
//! `decision` says which. A VM that is off is served by a storage daemon instead of its QEMU.
//!
//! * this file: what is asked and what came of it,
//! * `plan`: what is checked before anything begins, and the making of the target,
//! * `decision`: the order of the steps, and what is to be done after a crash; pure,
//! * `journal`: how far a move is, on disk,
//! * `moving`: a move from its beginning, or from where an earlier gateway left it, to its end,
//! * `comparing`: what it compares while the guest writes on, again and again until little is left,
//! * `switch`: its last steps, in the hands of the VM's driver,
//! * `off`: the copy of a disk whose VM is off,
//! * `merge`: the same with an overlay that no checkpoint needs any more, into the file below it,
//! * `mirror`: what QEMU is asked,
//! * `daemon`, `nbd`, `compare`, `ranges`: reading both places and comparing them,
//! * `direct`: the same in their files, where both are files of this machine.

mod compare;
mod comparing;
mod daemon;
mod decision;
mod direct;
mod journal;
mod merge;
mod mirror;
mod moving;
mod nbd;
mod off;
mod plan;
#[cfg(test)]
mod power_cut;
mod ranges;
mod switch;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{DiskError, Disks};
use crate::definition::DiskFormat;
use crate::jobs::{Job, JobHandle, JobId, JobKind, JobState, NewJob, Unfinished};
use crate::vm::Vm;

pub(crate) use daemon::storage_daemon;
pub(crate) use journal::Journal;
pub(crate) use merge::Merges;
use moving::Move;

/// How long a job is waited for at a time.
const A_WHILE: Duration = Duration::from_secs(60);

/// A disk to move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveDisk {
    /// Where to: the absolute path of a file that is not there yet or of a block device, or the URL of an NBD server.
    pub target: String,
    /// How it shall be laid out; none means what its name tells, and for a device or a server its bytes as they are.
    #[serde(default)]
    pub format: Option<DiskFormat>,
    /// Bytes per second at most.
    #[serde(default)]
    pub rate: Option<u64>,
    /// Whether the checksum of the whole disk is wanted, as it was at the switch.
    #[serde(default)]
    pub verify: bool,
    /// Whether the source is deleted when it has been compared and released.
    #[serde(default)]
    pub delete_source: bool,
    /// Whether snapshots inside the source may stay behind.
    #[serde(default)]
    pub leave_snapshots: bool,
}

/// A disk that has been moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// What the VM calls it.
    pub disk: String,
    /// Where it is.
    pub target: String,
    /// How it is laid out there.
    pub format: DiskFormat,
    /// Where it was.
    pub source: String,
    /// Whether what it was is still there.
    pub source_kept: bool,
    /// Why it is, when it should have been deleted.
    pub problem: Option<String>,
    /// Bytes that were compared; the rest of the disk reads as zeros in both places without being there.
    pub compared: u64,
    /// How long the guest stood still, in milliseconds; none when it did not run.
    pub stood_still: Option<u64>,
    /// SHA-256 of the whole disk as it was at the switch, if that was asked for.
    pub sha256: Option<String>,
}

impl Disks {
    /// Moves a disk of a VM to another place, as a job. The VM may do what it likes meanwhile.
    ///
    /// # Errors
    ///
    /// When there is no such disk, it cannot be moved, something is at the target already, there is no space, or the
    /// request says what cannot be.
    pub async fn move_disk(&self, vm: &Vm, disk: &str, request: MoveDisk) -> Result<Job, DiskError> {
        let plan = self.plan_move(vm, disk, &request).await?;
        let target = format!("{} of {} to {}", plan.source.id, vm.name(), request.target);
        let new = NewJob { kind: JobKind::DiskMove, target, vm: Some(vm.name().to_owned()), again: None };
        let (disks, vm) = (self.clone(), vm.clone());
        let job = self.host.jobs().spawn(new, |job| Move::new(disks, vm, plan, &request, job.id()).run(job));
        let job = job.await?;
        self.forget_when_over(job.id, job.id);
        Ok(job)
    }

    /// Removes the journal of a move once it is noted how its job ended: not before, or a gateway that ends in between
    /// leaves a job of which nobody knows that it was done.
    fn forget_when_over(&self, job: JobId, entry: JobId) {
        let (jobs, journal) = (self.host.jobs().clone(), Journal::new(self.host.moves().to_path_buf()));
        tokio::spawn(async move {
            let mut revision = 0;
            while let Some(now) = jobs.wait(job, revision, A_WHILE).await.filter(|job| !job.state.is_final()) {
                if now.revision == revision {
                    // The gateway stops, and nobody is made to wait.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                revision = now.revision;
            }
            if !jobs.lasts(job).await {
                // The next gateway goes by the journal.
                return;
            }
            if let Err(error) = journal.remove(entry) {
                tracing::warn!(%error, job = entry.0, "the journal of a move stays");
            }
        });
    }

    /// Takes over the moves that an earlier gateway left.
    pub(crate) async fn recover_moves(&self) {
        let journal = Journal::new(self.host.moves().to_path_buf());
        let found = match journal.read() {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "the moves of disks that did not end cannot be read");
                return;
            }
        };
        for (file, reason) in &found.refused {
            tracing::warn!(file = %file.display(), reason, "the journal of a move is left as it is");
        }
        for entry in found.entries {
            let Some(vm) = self.host.find(&entry.vm.to_string()) else {
                tracing::warn!(job = entry.job.0, vm = %entry.vm, "the VM of a move that did not end is not there");
                continue;
            };
            // One that was interrupted because nobody could take it over may have left a guest standing still.
            let is_over =
                |job: Job| job.state.is_final() && (entry.engine.is_none() || job.state != JobState::Interrupted);
            if self.host.jobs().get(entry.job).is_some_and(is_over) {
                self.forget_when_over(entry.job, entry.job);
                continue;
            }
            let (id, words) = (entry.job, format!("{} of {} to {}", entry.disk, vm.name(), entry.target.place));
            match Move::take_over(self.clone(), vm.clone(), journal.clone(), entry).await {
                Ok(moving) => self.continue_move(id, words, &vm, moving).await,
                Err(reason) => tracing::warn!(job = id.0, reason, "a move that did not end cannot be taken over"),
            }
        }
    }

    async fn go_on(self, moving: Move, vm: Vm, job: JobHandle) -> Result<Option<Value>, Unfinished> {
        if moving.is_merge() { self.go_on_merging(moving, &vm, &job).await } else { moving.settle(&job, None).await }
    }

    /// Goes on with a move as the job that it was, or as another if that is not known any more.
    async fn continue_move(&self, id: JobId, target: String, vm: &Vm, moving: Move) {
        let jobs = self.host.jobs();
        if jobs.is_orphan(id) {
            jobs.end_programs(id).await;
            // It is an orphan: nobody else adopts it.
            let _ = jobs.adopt(id, |job| self.clone().go_on(moving, vm.clone(), job));
            self.forget_when_over(id, id);
            return;
        }
        let new = NewJob { kind: JobKind::DiskMove, target, vm: Some(vm.name().to_owned()), again: None };
        match jobs.spawn(new, |job| self.clone().go_on(moving, vm.clone(), job)).await {
            Ok(job) => self.forget_when_over(job.id, id),
            Err(error) => tracing::warn!(%error, "a move that did not end has no job"),
        }
    }
}
