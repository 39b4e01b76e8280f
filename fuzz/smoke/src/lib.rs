//! The fuzzer's smoke run: an ordinary test that feeds every oracle with its seeds and with mutations of them.
//!
//! It finds what is easy to find, on every `./x test`, with the stable compiler and the same inputs each time. What it
//! takes a fuzzer to find is found by `./x fuzz NAME MINUTES`.

#![forbid(unsafe_code)]

use enhanced_session::class::fuzz_oracle as classes;
use enhanced_session::fuzz_oracle as bus;
use rdp_server::fuzz_oracle as rdp;
use vmm::fuzz_oracle as vm;

mod mutate;

pub use mutate::Mutator;

/// An oracle: takes any bytes and panics when an invariant is broken.
pub type Oracle = fn(&[u8]);

/// Every fuzz target and its oracle. The names are those of `fuzz/fuzz_targets` and `fuzz/seeds`.
pub const TARGETS: [(&str, Oracle); 24] = [
    ("bus_classes", classes::fuzz_bus_classes),
    ("bus_control", bus::fuzz_bus_control),
    ("bus_guest", bus::fuzz_bus_guest),
    ("bus_host", bus::fuzz_bus_host),
    ("bus_region", bus::fuzz_bus_region),
    ("bus_ring", bus::fuzz_bus_ring),
    ("bus_stream", bus::fuzz_bus_stream),
    ("connection_request", rdp::fuzz_connection_request),
    ("credssp", rdp::fuzz_credssp),
    ("definition", vm::fuzz_definition),
    ("display_control", rdp::fuzz_display_control),
    ("dynamic_channels", rdp::fuzz_dynamic_channels),
    ("first_bytes", rdp::fuzz_first_bytes),
    ("framing", rdp::fuzz_framing),
    ("graphics", rdp::fuzz_gfx_client_message),
    ("hyperv_image", vm::fuzz_hyperv_image),
    ("image_info", vm::fuzz_image_info),
    ("input", rdp::fuzz_input),
    ("login", rdp::fuzz_login),
    ("ntlm", rdp::fuzz_ntlm),
    ("preconnection", rdp::fuzz_preconnection),
    ("session", rdp::fuzz_session),
    ("static_channel", rdp::fuzz_static_channel),
    ("touch", rdp::fuzz_touch),
];
