//! The bus with both ends in memory.

mod connect;
mod pair;
