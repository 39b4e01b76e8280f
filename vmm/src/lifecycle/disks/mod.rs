//! The disks of a VM that is on.
//!
//! The definition says what its owner wants, and QEMU has what there is. A change is written to the definition first and
//! made in QEMU then; when the gateway ends in between, the next one finds the difference and makes it, too.
//!
//! * `drives`: what QEMU has, and the difference; pure,
//! * `plug`: attaching, detaching and other discs, as commands to QEMU,
//! * `failure`: when a guest goes on that stands still for a disk; the decision is pure.

mod drives;
mod failure;
mod plug;

pub(crate) use drives::Drives;
pub(super) use drives::{Correction, can_be_plugged};
pub(super) use failure::{Comeback, DiskFailure, Found, Step, look_at};
pub(super) use plug::Plug;
