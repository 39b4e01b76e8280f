//! RDP as a server: front door, handshake, input, graphics, channel framing.

#![forbid(unsafe_code)]

pub mod accept;
pub mod channels;
pub mod connection;
pub mod fast_path;
pub mod front;
#[doc(hidden)]
pub mod fuzz_oracle;
pub mod graphics;
pub mod input;
pub mod io;
#[cfg(test)]
mod testing;

pub use io::FrontConfig;
