//! What a VM is doing, and what it can be asked.

use std::fmt;
use std::time::SystemTime;

use serde::Serialize;

use super::snapshot::SnapshotTag;
use crate::accelerator::AcceleratorReport;
use crate::definition::{Disk, DiskSource};

/// What a VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// It was never started.
    Created,
    /// Its QEMU is being started.
    Starting,
    /// Its processors run.
    Running,
    /// Its processors stand still, its memory stays.
    Paused,
    /// Its QEMU is being ended.
    Stopping,
    /// It was started and has ended in order.
    Stopped,
    /// It ended, or answers no more, against everybody's will: the status has the reason.
    Failed,
    /// It is no more; its handles only say so.
    Deleted,
}

/// What a VM can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Start it.
    Start,
    /// Ask the guest to shut down (ACPI power button).
    Shutdown,
    /// Switch it off.
    PowerOff,
    /// Start the guest over.
    Reset,
    /// Stop the processors.
    Pause,
    /// Let the processors go on.
    Resume,
    /// Forget the VM; its disks stay.
    Delete,
    /// Keep the state that it is in; of one that is off, its disks.
    SaveSnapshot {
        /// Under this name.
        tag: SnapshotTag,
    },
    /// Go back to a state that was kept, from whatever it is doing. One that is off is started in that state.
    LoadSnapshot {
        /// Its name.
        tag: SnapshotTag,
    },
    /// Make the disks what they were in a state that was kept. One that is on is switched off for it.
    RestoreDisks {
        /// Its name.
        tag: SnapshotTag,
    },
    /// Forget a state that was kept.
    DeleteSnapshot {
        /// Its name.
        tag: SnapshotTag,
    },
    /// Have a disk go on where it was copied to: the last step of a move.
    SwitchDisk {
        /// What the VM calls it.
        disk: String,
    },
    /// Give it another disk.
    AttachDisk {
        /// Which, and where.
        #[serde(skip)]
        disk: Box<Disk>,
    },
    /// Take a disk from it; its image stays.
    DetachDisk {
        /// Its name.
        id: String,
    },
    /// Make a disk larger that its QEMU has open.
    ResizeDisk {
        /// Its name.
        id: String,
        /// To so many bytes.
        size: u64,
    },
    /// Put another disc into a drive, or none.
    ChangeDisc {
        /// The drive's name.
        id: String,
        /// The disc.
        #[serde(skip)]
        source: Box<DiskSource>,
        /// Whether the guest has locked the drive or not.
        force: bool,
    },
}

impl Request {
    /// Whether it goes on beside others for as long as the disks take, and can be given up.
    pub(super) fn takes_long(&self) -> bool {
        use Request::{DeleteSnapshot, LoadSnapshot, RestoreDisks, SaveSnapshot, SwitchDisk};
        matches!(
            self,
            SaveSnapshot { .. } | LoadSnapshot { .. } | RestoreDisks { .. } | DeleteSnapshot { .. } | SwitchDisk { .. }
        )
    }
}

/// Everything to know about a VM at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// What it is doing.
    pub state: VmState,
    /// Why, when it is not because of the last request.
    pub reason: Option<String>,
    /// How its processors are run, since it was last started.
    pub accelerator: Option<AcceleratorReport>,
    /// The QEMU process, while there is one.
    pub pid: Option<u32>,
    /// The disks that its QEMU has otherwise than the definition, until it is started again.
    pub next_start: Vec<String>,
    /// When the state was reached.
    #[serde(serialize_with = "as_unix_seconds")]
    pub since: SystemTime,
}

impl Status {
    pub(crate) fn new(state: VmState) -> Self {
        Self { state, reason: None, accelerator: None, pid: None, next_start: Vec::new(), since: SystemTime::now() }
    }
}

/// A request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The state does not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It was tried and went wrong.
    #[error("cannot {request} this VM: {reason}")]
    Failed {
        /// What was asked.
        request: Request,
        /// What went wrong.
        reason: String,
        /// What kind of reason that is.
        cause: Cause,
    },
    /// The host is going away.
    #[error("cannot {request} this VM: its host has ended")]
    HostEnded {
        /// What was asked.
        request: Request,
    },
}

/// What kind of reason something went wrong for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The request, or the definition, says what cannot be.
    Invalid,
    /// Something it names is not there.
    Missing,
    /// Something else has what it needs.
    InUse,
    /// Something here or in the system failed.
    #[default]
    Failure,
}

/// A request that the state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {request} a VM that is {state}: {why}")]
pub struct Refusal {
    /// What was asked.
    pub request: Request,
    /// The state at that moment, or the one that earlier requests lead to.
    pub state: VmState,
    /// Why the state does not allow it.
    pub why: &'static str,
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Deleted => "deleted",
        })
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Shutdown => "shut down",
            Self::PowerOff => "power off",
            Self::Reset => "reset",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Delete => "delete",
            Self::SaveSnapshot { .. } => "save a snapshot of",
            Self::LoadSnapshot { .. } => "load a snapshot of",
            Self::RestoreDisks { .. } => "restore the disks of",
            Self::DeleteSnapshot { .. } => "delete a snapshot of",
            Self::SwitchDisk { .. } => "switch a disk of",
            Self::AttachDisk { .. } => "attach a disk to",
            Self::DetachDisk { .. } => "detach a disk of",
            Self::ResizeDisk { .. } => "resize a disk of",
            Self::ChangeDisc { .. } => "change a disc of",
        })
    }
}

pub(super) fn as_unix_seconds<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}
