//! The program `fanlight` as its users meet it: command line against service, over the socket in a state folder.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod disks;
mod door;
mod kit;
mod service;
mod users;
mod vms;
