//! The port as a stream of frames: cutting it, finding each other on it, and whose turn it is (`docs/bus.md`,
//! sections 2 and 3).
//!
//! ```text
//!   bytes of the port ──▶ Deframer ──▶ frames ──▶ Sync: looking │ in step
//!   bytes for the port ◀── Scheduler ◀── SYNC, control, kick, credit │ one lane per channel
//! ```

mod deframer;
mod frame;
mod scheduler;
mod sync;

pub use deframer::{Deframer, MAX_BUFFERED};
pub use frame::{FRAME_HEADER, Frame, MAX_FRAME_BODY, SYNC_FRAME};
pub use scheduler::{Emitted, MAX_BULK_PAYLOAD, MAX_CONTROL_QUEUED, MIN_WINDOW, Scheduler};
pub use sync::{Role, Sync, SyncBody, Verdict};
