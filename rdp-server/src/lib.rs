//! RDP as a server: front door, handshake, input, graphics, channel framing.

#![forbid(unsafe_code)]

pub mod accept;
pub mod channels;
pub mod connection;
pub mod fast_path;
pub mod front;
pub mod graphics;
pub mod input;
pub mod io;
#[doc(hidden)]
pub mod fuzz_oracle;
#[cfg(test)]
mod testing;

pub use io::FrontConfig;
