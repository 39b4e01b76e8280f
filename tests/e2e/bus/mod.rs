//! The bus between a host and the agent in its guest, as people and clients have it: over rings and over the stream.

mod classes;
mod crashes;
mod faults;
mod host;
mod info;
mod messages;
mod power;
mod touch;
mod typing;

use anyhow::Result;
use fanlight_tests::client::Client;
use fanlight_tests::headless::Options;
use fanlight_tests::headless::touch::pdu::CsReadyFlags;
use fanlight_tests::shell::{Port, Shell};
use serde_json::Value;

use crate::harness::Journey;
use crate::world::{Desk, enter};

pub(crate) fn journeys() -> Vec<Journey> {
    // Those that take longest come first.
    let journeys = [
        crashes::journeys(),
        faults::journeys(),
        power::journeys(),
        classes::journeys(),
        touch::journeys(),
        typing::journeys(),
        info::journeys(),
    ];
    journeys.into_iter().flatten().collect()
}

/// The desktop of clients without a window.
const SIZE: (u16, u16) = (1280, 800);
/// Their fingers.
const FINGERS: u8 = 10;

/// A client without a window, with ten fingers.
fn headless(desk: &Desk<'_>) -> Options {
    desk.headless(SIZE, CsReadyFlags::empty())
}

/// A shell that needs neither the keyboard nor the screen, for a guest with a network.
fn shell(desk: &Desk<'_>, client: &Client) -> Result<Shell> {
    desk.guest.wait_for_info("an address", has_address)?;
    let port = Port::open()?;
    enter(client, &Shell::line(&port)?)?;
    Ok(Shell::new(port.accept()?))
}

/// Whether the guest has an address of QEMU's network.
fn has_address(info: &Value) -> bool {
    let interfaces = info["details"]["interfaces"].as_array().map(Vec::as_slice).unwrap_or_default();
    let addresses = interfaces.iter().filter_map(|interface| interface["addresses"].as_array()).flatten();
    addresses.filter_map(Value::as_str).any(|address| address.starts_with("10.0.2."))
}
