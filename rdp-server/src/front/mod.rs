//! The front door, without I/O: what a client's first bytes are, which machine it asks for, how its bytes split
//! into PDUs, and whether its address may try at all.
//!
//! Nothing here grants access. Everything a client sends before it has proved who it is counts as routing data.

pub mod target;

pub use target::Target;
