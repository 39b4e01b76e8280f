//! The guest's agent: the program at the far end of the bus. `README.md` says what it does and how it is run.
//!
//! ```text
//!   main ──▶ bus            the one loop
//!             ├─▶ poller    edges of files, signals
//!             ├─▶ port      the device of virtio-serial
//!             ├─▶ region    the memory of an ivshmem device
//!             └─▶ agent     the tenant: opens channels
//!                  └─▶ services   one for each class
//! ```

#![forbid(unsafe_code)]

pub mod agent;
pub mod bus;
pub mod log;
pub mod options;
pub mod poller;
pub mod port;
pub mod region;
pub mod services;
