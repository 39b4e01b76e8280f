//! What is measured.

pub(crate) mod codecs;
mod page;
