//! What was decided, and why, in words.

use std::fmt;

use uuid::Uuid;

/// What was decided at a tick.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What there is for all VMs, in bytes.
    pub pool: u64,
    /// What of it cannot be taken away from the VMs, in bytes. When it is more than the pool, so is the sum of the
    /// targets.
    pub least: u64,
    /// One for each VM, in the order of the observations.
    pub decisions: Vec<Decision>,
}

/// What was decided for one VM. Amounts in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Which.
    pub id: Uuid,
    /// What it needs, as far as it has said.
    pub demand: Option<u64>,
    /// What nobody can take from it now.
    pub least: u64,
    /// Its part of the pool. All targets together are not more than the pool.
    pub target: u64,
    /// What it is to have until the next tick, on its way to the target.
    pub level: u64,
    /// Why.
    pub reason: Reason,
}

/// Why a VM has what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It has not said anything yet.
    Starting,
    /// It has never said anything.
    NeverReported,
    /// It says nothing any more.
    Silent,
    /// It does not run.
    Paused,
    /// It has what it wants.
    Content,
    /// It grows because it needs more.
    NeedGrows,
    /// It grows to have room.
    BufferGrows,
    /// It wants more, and others have to give it first.
    Waits,
    /// It wants more, and that is its part of what there is.
    Short,
    /// It needs more than it may have.
    AtMaximum,
    /// It needs more than it started with, and its guest takes no more.
    CannotGrow,
    /// It gives because another one is in need.
    GivesForNeed,
    /// It gives because another one lacks room.
    GivesForBuffer,
    /// It gives what it has not used for long.
    Reclaimed,
    /// It should give, but swaps.
    KeptSwapping,
    /// It should give, but its tasks wait for memory.
    KeptStalling,
    /// It should give, but would come to be short itself.
    KeptShort,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting: it has not reported yet",
            Self::NeverReported => "left as it is: its guest does not report; has it a balloon driver?",
            Self::Silent => "left as it is: its guest reports no more",
            Self::Paused => "left as it is: it does not run",
            Self::Content => "has what it wants",
            Self::NeedGrows => "grows: it needs more",
            Self::BufferGrows => "grows: its buffer is filled",
            Self::Waits => "waits for what others give back",
            Self::Short => "has its share of what there is, and wants more",
            Self::AtMaximum => "has its maximum, and wants more",
            Self::CannotGrow => "wants more, and its guest takes none: has it a virtio-mem driver?",
            Self::GivesForNeed => "gives: others need it",
            Self::GivesForBuffer => "gives what it can spare to others",
            Self::Reclaimed => "gives back what it has not used for long",
            Self::KeptSwapping => "keeps what others ask for: it swaps",
            Self::KeptStalling => "keeps what others ask for: its programs wait for memory",
            Self::KeptShort => "keeps what others ask for: it would be short itself",
        })
    }
}
