//! The two ends that tests put around the graphics: a guest that draws, and a client that decodes.

mod client;
mod fast_path_client;
mod guest;

pub(super) use client::GfxClient;
pub(super) use fast_path_client::FastPathClient;
pub(super) use guest::{Picture, Write, writes};
