//! The bus with both ends in memory.

mod adversary;
mod connect;
mod crash;
mod faults;
mod lifecycle;
mod messages;
mod model;
mod pair;
mod raw;
mod surfaces;
