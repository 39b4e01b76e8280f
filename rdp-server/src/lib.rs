//! Skeleton.

#![forbid(unsafe_code)]

pub mod graphics;
