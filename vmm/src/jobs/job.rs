//! What a job is, in words and numbers.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::leftover::Leftover;

/// Names a job for as long as it is remembered, and no other after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Makes a disk image and reserves its space.
    DiskCreate,
    /// Copies a disk image into another format.
    DiskConvert,
    /// Copies a disk image into a larger one of the same format, which takes its place.
    DiskResize,
    /// Keeps the state of a VM.
    CheckpointCreate,
    /// Keeps the state of a VM because it is time, and forgets the oldest.
    CheckpointAutomatic,
    /// Makes a VM what it was.
    CheckpointRevert,
    /// Forgets a state of a VM.
    CheckpointDelete,
    /// Has the overlays of a VM that hold no state go back into the files below them.
    CheckpointMerge,
    /// Moves a disk of a VM to another place.
    DiskMove,
    /// Makes an entry of a library.
    LibraryExport,
    /// Compares an entry of a library with its checksums.
    LibraryVerify,
}

/// How far a job has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It works.
    Running,
    /// It has been told to stop, and has not yet.
    Cancelling,
    /// It did what it was meant to.
    Done,
    /// It could not: the job has the reason.
    Failed,
    /// It stopped because somebody asked.
    Cancelled,
    /// The gateway ended under it.
    Interrupted,
}

/// One job at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// What it does it to, for people.
    pub target: String,
    /// The VM it belongs to, if it is one's.
    pub vm: Option<String>,
    /// How far it has come.
    pub state: JobState,
    /// What it is at, in a word or two.
    pub step: Option<String>,
    /// How much of the step is done.
    pub progress: Progress,
    /// When it was begun, in seconds since 1970.
    pub started: u64,
    /// When it ended, in seconds since 1970.
    pub ended: Option<u64>,
    /// Why it did not end as it was meant to.
    pub problem: Option<String>,
    /// What came of it.
    pub result: Option<Value>,
    /// Greater after each change that can be seen.
    pub revision: u64,
}

/// How much of a job is done. Everything is 0 or absent as long as it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes done; never more than `total`.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// From 0 to 100.
    pub percent: f32,
    /// Bytes in a second, of late.
    pub rate: Option<u64>,
    /// Seconds that are left at that rate.
    pub left: Option<u64>,
}

/// A job to begin.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// What it does.
    pub kind: JobKind,
    /// What it does it to, for people.
    pub target: String,
    /// The VM it belongs to.
    pub vm: Option<String>,
    /// What was asked, for a later gateway that begins it again when this one ends under it; none: it does not.
    pub again: Option<Value>,
}

/// Why a job ended before its work was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfinished {
    /// It was told to stop, and left nothing behind.
    Stopped,
    /// It could not go on.
    Failed(String),
    /// It goes on by itself when this gateway has ended; the next takes it over.
    Left,
}

/// What is kept of a job on disk: itself, and what a later gateway needs to clear up after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) job: Job,
    #[serde(default)]
    pub(super) leftovers: Vec<Leftover>,
    /// As in [`NewJob`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) again: Option<Value>,
}

impl Record {
    /// What was asked, if a later gateway shall do it.
    pub(super) fn to_begin_again(&self) -> Option<&Value> {
        self.again.as_ref().filter(|_| self.job.state == JobState::Running)
    }
}

impl JobState {
    /// Whether nothing will change any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Running | Self::Cancelling)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DiskCreate => "disk-create",
            Self::DiskConvert => "disk-convert",
            Self::DiskResize => "disk-resize",
            Self::CheckpointCreate => "checkpoint-create",
            Self::CheckpointAutomatic => "checkpoint-automatic",
            Self::CheckpointRevert => "checkpoint-revert",
            Self::CheckpointDelete => "checkpoint-delete",
            Self::CheckpointMerge => "checkpoint-merge",
            Self::DiskMove => "disk-move",
            Self::LibraryExport => "library-export",
            Self::LibraryVerify => "library-verify",
        })
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        })
    }
}
