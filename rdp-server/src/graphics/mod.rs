//! What a session's client sees: pictures and pointers, from [`console::DisplayUpdate`]s to bytes.
//!
//! ```text
//!  DisplayUpdate ─▶ Pipeline ─▶ shadow (what changed?) ─▶ EGFX: ClearCodec ─▶ ZGFX ─▶ GraphicsOutput::Gfx
//!                     │                                 └▶ RemoteFX or bitmaps ─────▶ GraphicsOutput::FastPath
//!                     └▶ pointer ───────────────────────────────────────────────────▶ GraphicsOutput::FastPath
//! ```
//!
//! Nothing here waits, locks or reads a clock. There is no queue of frames: while the client has no credit
//! only the set of damaged rectangles grows, and the next frame shows the newest state.

mod bitmap;
mod clear_codec;
mod client;
mod egfx;
mod legacy;
mod monitor;
mod pipeline;
mod pointer;
mod remote_fx;
mod scroll;
mod shadow;
#[cfg(test)]
mod testing;
mod window;
mod zgfx;

pub use client::{BitmapHeader, ClientGraphics, ColorDepth, PointerSupport, RemoteFxSupport};
pub use egfx::fuzz_gfx_client_message;
pub use pipeline::{GraphicsMode, GraphicsOutput, Pipeline};

/// Why the graphics of a session cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphicsError {
    /// The client sent what the protocol does not allow.
    #[error("client misbehaved: {pdu}: {reason}")]
    PeerMisbehaved {
        /// The message it was reading, by its name in MS-RDPEGFX.
        pdu: &'static str,
        /// What was wrong with it.
        reason: String,
    },
    /// The client has nothing in common with this server.
    #[error("unsupported: {0}")]
    Unsupported(&'static str),
}
