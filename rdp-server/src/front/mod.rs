//! The front door, without I/O: what a client's first bytes are, which machine it asks for, how its bytes split
//! into PDUs, and whether its address may try at all.
//!
//! Nothing here grants access. Everything a client sends before it has proved who it is counts as routing data.

pub mod connection_request;
pub mod failure;
pub mod first_bytes;
pub mod framing;
pub mod preconnection;
pub mod target;

pub use failure::SecurityPolicy;
pub use framing::{Frame, FrameSplitter, FramingError};
pub use target::{LogonName, Routing, Target};
