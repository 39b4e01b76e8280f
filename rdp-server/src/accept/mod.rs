//! From the first byte to an active session, as values that turn bytes into bytes.

mod error;
mod gatekeeper;
mod handshake;

pub use error::{AcceptError, Step};
pub use gatekeeper::{Gatekeeper, NtHash};
pub use handshake::{ClientData, Handshake};
