//! What is measured.

pub(crate) mod boot;
pub(crate) mod bus;
pub(crate) mod codecs;
pub(crate) mod dynamic_memory;
pub(crate) mod first_picture;
pub(crate) mod glyph;
pub(crate) mod idle;
pub(crate) mod memory;
mod page;
pub(crate) mod stalled;
pub(crate) mod vmm;
