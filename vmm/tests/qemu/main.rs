//! The crate against a real QEMU.
//!
//! Most tests need nothing but QEMU and its firmware. Those that need a guest take the console image from the
//! environment, as `./x test` sets it.

mod bus;
mod checkpoints;
mod disk_failures;
mod disk_server;
mod disks;
mod display;
mod efi;
mod failures;
mod firmware;
mod formats;
mod guest_disk;
mod hardware;
mod hot_plug;
mod kit;
mod library;
mod lifecycle;
mod memory;
mod move_accidents;
mod move_targets;
mod moves;
mod needed;
mod network;
mod overlays;
mod places;
mod secure_boot;
mod snapshots;
mod sources;
mod thirty_two_bit;
