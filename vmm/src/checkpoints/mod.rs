//! Checkpoints: states of a VM that it can go back to, with names, notes, and which came after which.
//!
//! A checkpoint is a snapshot in the images of the VM's disks (`lifecycle::snapshot`) and an entry in its book. The images
//! are the truth: what they have and no book knows is a checkpoint, too.
//!
//! * `book`: what is known beside the images, and what becomes of it in a crash; pure,
//! * `store`: the book on disk,
//! * `view`: book and images together, as a tree for people; pure,
//! * `hardware`: whether memory that was kept still fits the VM; pure,
//! * `keeper`: a VM's book in use: one change at a time, each on disk before it counts,
//! * `work`: making, going back, deleting: first entered, then asked of the VM, then entered as done,
//! * `takeover`: what an earlier gateway left unfinished,
//! * `automatic`: checkpoints taken by the clock,
//! * `progress`: how far QEMU has come,
//! * this file: [`Checkpoints`], which everybody else uses.

mod automatic;
mod book;
mod hardware;
mod keeper;
mod progress;
mod store;
mod takeover;
mod view;
mod work;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(crate) use automatic::keep_time;
pub(crate) use keeper::Keeper;
pub(crate) use takeover::take_over;
pub use view::{Checkpoint, CheckpointTree};
pub(crate) use work::start;

use crate::disks::{Disks, Merges};
use crate::jobs::{Job, JobHandle, JobKind, Jobs, JobsError, NewJob, Unfinished};
use crate::lifecycle::RequestError;
use crate::vm::Vm;
use work::Work;

/// The checkpoints of a VM. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    vm: Vm,
    jobs: Jobs,
    disks: Disks,
}

/// A checkpoint to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewCheckpoint {
    /// What people call it: 1 to 120 bytes without control characters.
    pub name: String,
    /// What they want to remember: 4096 bytes at most.
    #[serde(default)]
    pub notes: String,
}

/// A checkpoint cannot be made, used or changed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// There is none of that name.
    #[error("there is no checkpoint `{0}`")]
    Unknown(String),
    /// The name is taken.
    #[error("there is a checkpoint `{0}` already")]
    Exists(String),
    /// The request says what cannot be.
    #[error("{0}")]
    Invalid(String),
    /// Disks of the VM cannot keep its state: each that is no file of this host.
    #[error("this VM can have no checkpoints: {0}")]
    Disks(String),
    /// Not as things are.
    #[error("{0}")]
    Impossible(String),
    /// The book cannot be read or written.
    #[error("{}: {reason}", file.display())]
    Book {
        /// The file.
        file: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The disks cannot be asked.
    #[error("the checkpoints cannot be looked at: {0}")]
    Unseen(String),
    /// The VM is half-way back to a checkpoint.
    #[error("{0}; the next start of the VM goes on with it")]
    CutOff(RequestError),
    /// It was told to stop before it began.
    #[error("it was told to stop before it began")]
    Stopped,
    /// The VM did not do it.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// There is no room for a job.
    #[error(transparent)]
    Jobs(#[from] JobsError),
}

impl CheckpointError {
    fn book(file: PathBuf, error: &io::Error) -> Self {
        Self::Book { file, reason: error.to_string() }
    }
}

impl From<CheckpointError> for Unfinished {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Stopped => Self::Stopped,
            error => Self::Failed(error.to_string()),
        }
    }
}

impl Checkpoints {
    pub(crate) fn new(vm: Vm, jobs: Jobs, disks: Disks) -> Self {
        Self { vm, jobs, disks }
    }

    /// All of them. While one is being made, reverted to or deleted, as it was before.
    ///
    /// # Errors
    ///
    /// When the book cannot be read, or the disks can keep none.
    pub async fn list(&self) -> Result<CheckpointTree, CheckpointError> {
        work::list(&self.vm).await
    }

    /// Keeps the state of the VM: memory, devices and disks of one that is on, the disks of one that is off. A guest that
    /// runs stands still meanwhile. Disks that are not qcow2 get an overlay each; the job's result names these.
    ///
    /// # Errors
    ///
    /// When the name is taken or none, or disks cannot be part of it: all of them are named. What goes wrong later is told by
    /// the job.
    pub async fn create(&self, new: NewCheckpoint) -> Result<Job, CheckpointError> {
        let work = Work::Create(new);
        self.begin(JobKind::CheckpointCreate, work).await
    }

    /// Goes back to a checkpoint; what the VM has done since is lost unless another checkpoint has it. With memory it runs
    /// afterwards, unless it was paused; with disks only it is off.
    ///
    /// # Errors
    ///
    /// When there is none of that name, its disks or its hardware are not the VM's any more. What goes wrong later is told by
    /// the job.
    pub async fn revert(&self, name: &str) -> Result<Job, CheckpointError> {
        self.begin(JobKind::CheckpointRevert, Work::Revert(name.into())).await
    }

    /// Forgets a checkpoint. Those that came after it come after the one before it then; nothing changes for the guest.
    /// Overlays that hold none any more go back into the files below them, which may be cancelled: the job's result names
    /// those that did and those that stay.
    ///
    /// # Errors
    ///
    /// When there is none of that name. What goes wrong later is told by the job.
    pub async fn delete(&self, name: &str) -> Result<Job, CheckpointError> {
        self.begin(JobKind::CheckpointDelete, Work::Delete(name.into())).await
    }

    /// Has the overlays that hold no checkpoint go back into the files below them, as [`delete`](Self::delete) does: for those
    /// that stayed then. It may be cancelled; the job's result names those that did and those that stay.
    ///
    /// # Errors
    ///
    /// When no disk has an overlay. What goes wrong later is told by the job, which fails when not one went back.
    pub async fn merge(&self) -> Result<Job, CheckpointError> {
        let (vm, disks) = (self.vm.clone(), self.disks.clone());
        let name = vm.name().to_owned();
        if Disks::overlays_of(&vm).is_empty() {
            return Err(CheckpointError::Impossible(format!(
                "no disk of {name} has an overlay that a checkpoint made"
            )));
        }
        let target = format!("overlays of {name}");
        let new = NewJob { kind: JobKind::CheckpointMerge, target, vm: Some(name), again: None };
        let job = self.jobs.spawn(new, |job: JobHandle| async move {
            job.step("waiting");
            work::settled(&vm).await?;
            let overlays = Disks::overlays_of(&vm);
            Ok(Some(disks.merge_overlays(&vm, &job).await?.of_all(&overlays)?.to_json()))
        });
        Ok(job.await?)
    }

    /// Gives a checkpoint another name. One that was taken by the clock is kept from then on.
    ///
    /// # Errors
    ///
    /// When there is none of that name, or the other is taken or none.
    pub async fn rename(&self, name: &str, new: &str) -> Result<CheckpointTree, CheckpointError> {
        work::rename(&self.vm, name, new).await?;
        self.list().await
    }

    async fn begin(&self, kind: JobKind, work: Work) -> Result<Job, CheckpointError> {
        // What can be told before anything has begun is told at once.
        work::check(&self.vm, &work).await?;
        let target = format!("{} of {}", work.name(), self.vm.name());
        let new = NewJob { kind, target, vm: Some(self.vm.name().into()), again: None };
        let (vm, disks) = (self.vm.clone(), self.disks.clone());
        let job = self.jobs.spawn(new, |job: JobHandle| async move {
            let name = work.name().to_owned();
            let deletes = matches!(work, Work::Delete(_));
            job.step("waiting");
            let overlaid = work::run(&vm, work, Some(&job)).await?;
            if deletes {
                return Ok(Some(merged(&name, &disks.merge_overlays(&vm, &job).await?)));
            }
            Ok(Some(if overlaid.is_empty() {
                json!({ "checkpoint": name })
            } else {
                json!({ "checkpoint": name, "overlays": overlaid })
            }))
        });
        Ok(job.await?)
    }
}

/// What is told of a checkpoint that is deleted.
fn merged(name: &str, merges: &Merges) -> Value {
    let mut told = merges.to_json();
    told["checkpoint"] = json!(name);
    told
}
