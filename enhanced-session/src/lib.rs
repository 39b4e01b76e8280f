//! The bus between a host and a guest, and the classes of channels it carries. `docs/bus.md` is its specification.
//!
//! ```text
//!            class        messages of each service, both ends' encodings
//!              │
//!           endpoint      Host, Guest: who offers, who opens; faults, recovery
//!           ┌──┴───┐
//!        stream   ring    frames, credit and priorities on a port │ rings, pending map in shared memory
//!           │      │
//!        control  region  control messages │ the shared memory: layout, arena, mapping
//!           └──┬───┘
//!  message, packet, wire  what both carry; cursors over bytes
//! ```
//!
//! Nothing here does I/O, reads a clock or waits, except that memory is shared: bytes, kicks and time go in, bytes and
//! events come out. The only `unsafe` is `region/mapping.rs`.

pub mod class;
pub mod control;
pub mod endpoint;
#[doc(hidden)]
pub mod fuzz_oracle;
pub mod message;
pub mod packet;
pub mod region;
pub mod ring;
pub mod stream;
pub mod wire;
