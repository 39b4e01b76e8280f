//! From the first byte to an active session, as values that turn bytes into bytes.
//!
//! [`Login`] runs the whole sequence: it is fed what the client sends and says what to send back, when to start
//! TLS, and which password to verify. It reads no clock and no socket; [`crate::io`] gives it both.
//! [`Reactivation`] changes the desktop's size later on.

mod activation;
mod capabilities;
mod client_data;
pub mod credssp;
mod error;
mod gatekeeper;
mod handshake;
mod login;
pub mod ntlm;
mod pdu_kind;
mod reactivation;

pub use capabilities::capabilities;
pub use error::{AcceptError, Step};
pub use gatekeeper::{Gatekeeper, NtHash};
pub use handshake::{ClientData, Handshake};
pub use login::{Login, LoginSettings, Output};
pub use reactivation::Reactivation;
