//! The kit of the end-to-end tests: a real gateway, real guests, real clients on a screen that nobody looks at.
//!
//! | module | what |
//! | --- | --- |
//! | [`environment`] | what is under test, as `./x test` says |
//! | [`gateway`], [`api`] | a `fanlight` on a state folder of its own |
//! | [`guest`] | a virtual machine with the console guest, and QEMU's view of its screen |
//! | [`shell`] | programs in a guest that connect to the test |
//! | [`client`] | FreeRDP 3 and 2, as a person would use them |
//! | [`headless`] | an RDP client without a window, which does exactly what it is told |
//! | [`display`], [`keys`], [`touch_screen`] | the X server a client draws on: pictures, keys, pointer, fingers |
//! | [`picture`], [`text`] | pixels, and what is written in them |
//! | [`wire`], [`tls`] | what a client of ill will sends |
//! | [`usage`] | memory and processor time of a process |
//! | [`process`], [`scratch`], [`wait`] | programs, files, patience |

#![forbid(unsafe_code)]

pub mod api;
pub mod client;
pub mod display;
pub mod environment;
pub mod gateway;
pub mod guest;
pub mod headless;
pub mod keys;
pub mod picture;
pub mod process;
pub mod scratch;
pub mod shell;
pub mod text;
pub mod tls;
pub mod touch_screen;
pub mod usage;
pub mod wait;
pub mod wire;
