//! The life of a VM.
//!
//! ```text
//!              start                    pause
//! Created ──▶ Starting ──▶ Running ◀──────────▶ Paused
//!                ▲  │         │      resume        │
//!          start │  │         ▼  power off         │
//!             Stopped ◀── Stopping ◀───────────────┘
//!                ▲            │
//!                └─ Failed ◀──┴── from anywhere: QEMU died, hung, or could not start
//! ```
//!
//! * `state`: the words,
//! * `request_queue`: what is allowed when; pure,
//! * `snapshot`: states that a VM can go back to, and how QEMU keeps them,
//! * `driver`: the one task that changes anything,
//! * `machine`: one QEMU with all that hangs on it, while there is one.

mod disks;
mod driver;
mod holds;
mod machine;
mod request_queue;
mod snapshot;
mod state;

pub(crate) use disks::Drives;
pub(crate) use driver::{Driver, Message, Monitor, Switch};
pub(crate) use holds::{Hold, Holds, Kind as HoldKind};
pub(crate) use machine::Connections;
pub(crate) use snapshot::obstacle as snapshot_obstacle;
pub use snapshot::{InvalidTag, Snapshot, SnapshotTag};
pub use state::{Cause, Refusal, Request, RequestError, Status, VmState};
