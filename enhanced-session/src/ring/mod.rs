//! Two ends, one ring, no locks (`docs/bus.md`, sections 7.3 and 7.4).
//!
//! A ring carries packets from a [`Producer`] to a [`Consumer`] in another process, and each word of its control page has
//! one writer. What the peer writes is a claim: it is copied, checked against private numbers, and breaks the channel
//! when it cannot be. A peer can stop a ring or fill it with nonsense, no more.
//!
//! ```text
//!   producer                                    consumer
//!   ────────                                    ────────
//!   push, push, push                            pop, pop, pop … until there is nothing
//!     copy each behind `in`                       copy each out, check the copy
//!   publish                                       nothing left, or half the ring taken:
//!     in ← new ───────────── fence ──────┐          out ← new ──────── fence ─────┐
//!     mask 0, and out = old in? kick ────┼──▶       pending_send satisfied? kick ─┼──▶ push again
//!   no room                              │        nothing left:                   │
//!     pending_send ← room                │          mask ← 0                      │
//!     fence, look at `out` again ◀───────┼──────────────────────────────────────────┘
//!                                        └──▶       fence, look at `in` again
//! ```
//!
//! Each arrow that crosses is a pair of "store mine, fence, load yours" on both sides: of two such pairs at least one
//! sees the other's store, so nobody goes to sleep unseen.

#![forbid(unsafe_code)]

mod consumer;
mod grant;
mod pending_map;
mod producer;
#[cfg(test)]
mod tests;

pub use consumer::Consumer;
pub use grant::{MAX_DATA, MAX_PAYLOAD, MIN_DATA, RingGrant, max_payload, ring_tag};
pub use pending_map::{Raiser, Watcher};
pub use producer::{Producer, Push};

use crate::wire::Malformed;

/// Whether the peer must be told to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a peer that is not kicked may sleep for ever"]
pub enum Kick {
    /// It may sleep: raise the channel ([`Raiser::raise`]).
    Needed,
    /// It looks by itself.
    NotNeeded,
}

/// What the peer did that cannot be. The channel is broken; nothing else is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// A counter that is not a multiple of 8.
    #[error("`{counter}` is {value:#x}, which is not a multiple of 8")]
    Unaligned {
        /// Which one.
        counter: &'static str,
        /// What stands there.
        value: u32,
    },
    /// A counter that went back, or further than there are bytes or room.
    #[error("`{counter}` went from {seen:#x} to {value:#x}, and can go by {limit:#x} at most")]
    Counter {
        /// Which one.
        counter: &'static str,
        /// What stands there.
        value: u32,
        /// What stood there before.
        seen: u32,
        /// By how much it can go.
        limit: u32,
    },
    /// A packet that is longer than what was published.
    #[error("a packet takes {length} bytes, of which {available} are there")]
    Cut {
        /// With its header and padding.
        length: u32,
        /// What is there.
        available: u32,
    },
    /// A packet with a longer payload than the ring's packets may have.
    #[error("a packet has {length} bytes, where {limit} are allowed")]
    TooLong {
        /// Of its payload.
        length: u32,
        /// What is allowed.
        limit: u32,
    },
    /// A header that cannot be.
    #[error("a packet's header is wrong: {0}")]
    Header(#[from] Malformed),
}

/// Accepts a counter that the peer wrote if it went on from `seen` by at most `limit`. Returns by how much.
fn check_counter(counter: &'static str, value: u32, seen: u32, limit: u32) -> Result<u32, RingFault> {
    if !value.is_multiple_of(ALIGN) {
        return Err(RingFault::Unaligned { counter, value });
    }
    // Counters are free-running: one that went back has gone on by nearly 2³².
    let step = value.wrapping_sub(seen);
    if step > limit {
        return Err(RingFault::Counter { counter, value, seen, limit });
    }
    Ok(step)
}

/// Everything on a ring begins at a multiple of this.
const ALIGN: u32 = 8;
