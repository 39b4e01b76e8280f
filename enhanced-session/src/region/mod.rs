//! The shared memory: access, mapping, layout, and who gets which piece of it (`docs/bus.md`, section 7).
//!
//! Whoever maps the region can write all of it at any time: that a page belongs to one end is a convention. So memory is
//! only ever *copied*, through atomics, into private bytes that are then parsed; and each end keeps its own copy of
//! every word it wrote.

mod arena;
mod heap;
mod layout;
mod mapping;
mod memory;

pub use arena::{Arena, Grant};
pub use heap::HeapMemory;
pub use layout::{ARENA, Direction, GuestPage, HostPage, MAX_CHANNELS, MAX_REGION, MIN_REGION, PAGE, State};
pub use mapping::Mapping;
pub use memory::SharedMemory;
