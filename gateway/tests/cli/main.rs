//! The program `fanlight` as its users meet it: command line against service, over the socket in a state folder.

mod door;
mod kit;
mod service;
mod users;
mod vms;
