//! Dynamic memory: how much memory each guest has, decided once a second for all guests of a host together.
//!
//! ```text
//! reports ─▶ demand ─▶ layers ─▶ share ─▶ targets ─▶ pace ─▶ levels ─▶ balloon, virtio-mem ─▶ guests
//! ```
//!
//! The pool is given out in layers, and a layer gets nothing before the one above it is full:
//!
//! 1. *minimum*: what nobody can take from a guest (and all that a guest has which says nothing),
//! 2. *need*: what its programs use,
//! 3. *buffer*: room for them to grow, a percentage of the need,
//! 4. *keep*: what it was given earlier and nobody else asks for; the guest has files cached there.
//!
//! Within a layer weights decide (`share`). The result are the *targets*; how fast a guest gets there is its *level*
//! (`pace`): up at once, down with care.
//!
//! * `policy`: the step machine, without clock and I/O; `standing` and `decision` belong to it,
//! * `demand`: what a guest needs, told from its reports,
//! * [`simulation`]: guests and hosts made up, for tests and benchmarks.

mod board;
mod controller;
mod decision;
mod demand;
mod exchange;
mod hardware;
mod pace;
mod policy;
mod pool;
mod share;
pub mod simulation;
mod standing;
#[cfg(test)]
mod tests;
mod view;

use std::time::Instant;

pub use board::MemoryConfig;
pub(crate) use board::{Account, Board};
pub(crate) use controller::run;
pub use decision::{Decision, Plan, Reason};
pub(crate) use exchange::{Facts, converse};
pub(crate) use hardware::{BALLOON, Hardware, Orders, hyper_v_obstacle};
pub use policy::{Observation, Phase, Policy, Tuning};
pub use pool::{HostMemory, PoolConfig};
pub use view::{HostMemoryView, Reporter, VmMemoryView};

/// Most a weight can be.
pub const MAX_WEIGHT: u16 = 10_000;

/// What a VM's owner wants of its memory. Amounts in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySettings {
    /// What it keeps under all circumstances.
    pub minimum: u64,
    /// What it starts with.
    pub startup: u64,
    /// What it never exceeds.
    pub maximum: u64,
    /// How much it should have beyond its need, in percent of the need.
    pub buffer: u16,
    /// How much it counts when memory is short, from 0 to [`MAX_WEIGHT`].
    pub weight: u16,
}

/// What a guest says of its memory. Amounts in bytes; nothing of it is believed beyond the VM's own maximum.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MemoryReport {
    /// What its programs could be given without anything being swapped out; Linux' `MemAvailable`.
    pub available: u64,
    /// What its programs have been promised, where the guest keeps account of it (Windows).
    pub committed: Option<u64>,
    /// What stands in its swap files. It counts as needed while the guest suffers or has no room: else much of it may be
    /// of no use any more.
    pub swapped_out: Option<u64>,
    /// What was read from its swap files since it started.
    pub swapped_in: Option<u64>,
    /// What it reads from them in a second, when the guest reckons itself.
    pub swap_in_rate: Option<u64>,
    /// How many programs were killed for want of memory since it started.
    pub killed: Option<u64>,
    /// In how much of the last ten seconds some task waited for memory, in percent; Linux' `some avg10`.
    pub stalled: Option<f32>,
}

/// A report and its age.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// The report is not older than this.
    pub taken: Instant,
    /// What was reported.
    pub report: MemoryReport,
}

impl MemorySettings {
    /// What really is the least: a guest of that size cannot do with less than a part of it, whatever its owner says.
    ///
    /// The curve is Hyper-V's, as Linux has it (`hv_balloon.c`, `compute_balloon_floor`).
    #[must_use]
    pub fn least(&self) -> u64 {
        const MIB: u64 = 1 << 20;
        let (ram, mib) = (self.startup, self.startup / MIB);
        let floor = match mib {
            0..128 => 8 * MIB + ram / 2,
            128..512 => 40 * MIB + ram / 4,
            512..2048 => 104 * MIB + ram / 8,
            2048..8192 => 232 * MIB + ram / 16,
            _ => 488 * MIB + ram / 32,
        };
        self.minimum.max(floor.min(ram)).min(self.maximum)
    }
}
