//! What people are shown of memory.

use std::fmt;

use super::{MemorySettings, Reason};

/// The memory of the host at the last tick. Amounts in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemoryView {
    /// All there is.
    pub total: u64,
    /// What could be used at once.
    pub available: u64,
    /// What stays free whatever VMs ask for.
    pub reserve: u64,
    /// What VMs have whose memory is always the same.
    pub fixed: u64,
    /// What VMs with dynamic memory share.
    pub pool: u64,
    /// What of it cannot be taken away from them.
    pub least: u64,
}

/// The dynamic memory of a VM that is on, at the last tick. Amounts in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VmMemoryView {
    /// What its owner wants.
    pub settings: MemorySettings,
    /// What it has.
    pub assigned: u64,
    /// What it uses, as far as it has said.
    pub demand: Option<u64>,
    /// Its part of the pool.
    pub target: u64,
    /// What of it nobody can take away.
    pub least: u64,
    /// Why it has what it has.
    pub reason: Reason,
    /// Who told of the guest.
    pub reporter: Option<Reporter>,
    /// How many seconds ago.
    pub report_age: Option<u64>,
    /// In how much of the last ten seconds some program waited for memory, in percent.
    pub stalled: Option<f32>,
    /// How many programs were killed for want of memory since the guest started.
    pub killed: Option<u64>,
}

/// Who tells of a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reporter {
    /// The driver of its balloon.
    Balloon,
    /// The agent, over the bus.
    Agent,
}

impl fmt::Display for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Balloon => "balloon",
            Self::Agent => "agent",
        })
    }
}

impl VmMemoryView {
    /// What it uses in percent of what it has; more than 100 is a guest that swaps.
    #[must_use]
    pub fn pressure(&self) -> Option<u64> {
        Some(self.demand?.saturating_mul(100) / self.assigned.max(1))
    }
}
