//! From the first byte to an active session, as values that turn bytes into bytes.

pub mod credssp;
mod error;
mod gatekeeper;
mod handshake;
pub mod ntlm;

pub use error::{AcceptError, Step};
pub use gatekeeper::{Gatekeeper, NtHash};
pub use handshake::{ClientData, Handshake};
