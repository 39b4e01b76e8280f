//! Fanlight: the one place where virtual machines, remote desktops, sockets, clocks and files meet.
//!
//! | module | what it owns |
//! | --- | --- |
//! | `cli` | the command line |
//! | `service` | the running gateway: everything below, started and ended in order |
//! | `config`, `state`, `files` | `fanlight.toml`, the state folder, files written whole |
//! | `certificate`, `users`, `gate` | who we are, who may log on, to which VMs |
//! | `listener`, `door` | sockets for RDP, and what a peer may cost before logon |
//! | `session`, `sessions`, `context` | one client at one VM; all of them; what each is given |
//! | `bus` | the host's end of each VM's bus, and what the agents say |
//! | `api` | HTTP on a unix socket: the server, and the command line's client |
//! | `doctor`, `logging`, `problem` | the host's check, log lines, what went wrong |

#![forbid(unsafe_code)]

pub mod api;
pub mod bus;
pub mod certificate;
pub mod cli;
pub mod config;
pub mod context;
pub mod doctor;
pub mod door;
pub mod files;
pub mod gate;
pub mod listener;
pub mod logging;
pub mod problem;
pub mod service;
pub mod session;
pub mod sessions;
pub mod state;
#[cfg(test)]
mod testing;
pub mod users;

pub use config::Config;
pub use service::run;
