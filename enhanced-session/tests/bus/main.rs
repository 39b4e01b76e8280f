//! The bus with both ends in memory.

mod connect;
mod faults;
mod lifecycle;
mod messages;
mod pair;
mod raw;
mod surfaces;
