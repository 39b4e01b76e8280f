//! The bus with both ends in memory.

mod connect;
mod lifecycle;
mod messages;
mod pair;
mod raw;
mod surfaces;
