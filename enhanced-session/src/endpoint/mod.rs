//! The two ends of the bus: [`Host`] offers channels, [`Guest`] opens them (`docs/bus.md`, sections 3 to 8).
//!
//! Both are plain values. Bytes of the port and the time go in with `handle_*`; what is to be written to the port, what
//! happened and when to call again come out with `poll_*`; everything else is a command. After any call all three
//! `poll_*` may have something. An owner does this:
//!
//! ```text
//! loop {
//!     while let Some(event) = end.poll_event()                 what happened
//!     if nothing waits for the port: end.poll_transmit(..)     bytes for it; what is more urgent may still overtake
//!     wait for: the port to be readable (if wants_bytes)       handle_bytes
//!               the port to be writable (if something waits)
//!               poll_timeout()                                 handle_timeout
//!               its own services                               send, receive, …
//! }
//! ```
//!
//! ```text
//!                 Host, Guest       offers, openings, surfaces, faults; who may say what when
//!                      │
//!                     End           open channels, kicks, events
//!              ┌───────┼────────┐
//!   Conversation     Pipe      Link
//!   messages,     stream │ ring  SYNC, liveness, control messages
//!   requests
//! ```

mod conversation;
mod end;
mod event;
mod guest;
mod host;
mod kicks;
mod link;
mod pipe;
mod recent;
mod statistics;
mod under_way;

use std::time::Duration;

pub use conversation::MAX_REQUESTS;
pub use event::{
    Agent, AttachError, Disconnect, Event, Fault, OfferError, OfferInfo, OpenError, PeerInfo, SendError, SurfaceError,
    SurfacePlace,
};
pub use guest::{Guest, GuestConfig, Preference};
pub use host::{Host, HostConfig, Offering};
pub use link::Random;
pub use statistics::{Bytes, ChannelStatistics, Statistics, Traffic};

/// Channels that are offered at once, sub-channels included.
pub const MAX_CHANNELS: usize = 64;
/// Channels that are open at once.
pub const MAX_OPEN: usize = 64;
/// Surfaces that are granted at once, over all channels.
pub const MAX_SURFACES: usize = 64;
/// Sub-channels of one channel.
pub const MAX_SUBCHANNELS: u16 = 16;
/// The window of a host that is not told otherwise, in bytes.
pub const DEFAULT_WINDOW: u32 = 128 * 1024;

/// Channel numbers are below this: those that are offered, and those that are not released yet.
const CHANNEL_LIMIT: u32 = 256;
/// The version of every class, as far as this crate speaks it.
const CLASS_MAJOR: u16 = 1;
const CLASS_MINOR: u16 = 0;
/// How long a host waits for PAUSED.
const QUIESCE_TIME: Duration = Duration::from_secs(2);
/// How often an end that is to be quiet looks whether all that was sent has been taken: nobody kicks for that.
const QUIET_LOOK: Duration = Duration::from_millis(10);
/// How long a guest waits before it contacts a host again that was busy.
const BUSY_TIME: Duration = Duration::from_secs(5);

/// A channel, by its number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(pub u32);

/// A surface, by its number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SurfaceId(pub u32);

/// What carries a channel's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Rings in shared memory.
    Ring,
    /// Frames on the port.
    Stream,
}

impl std::fmt::Display for ChannelId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a control message is not acted on.
#[derive(Debug, Clone, Copy)]
struct Complaint(crate::control::ErrorCode, &'static str);
