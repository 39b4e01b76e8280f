//! End-to-end tests: a real gateway, real QEMU guests, real FreeRDP clients. `./x test` runs them.
//!
//! One module per journey of a user, an administrator or an attacker. They run a few at a time and share one
//! gateway with two booted guests where they can; what breaks things has its own.
//! With `FANLIGHT_TEST_LONG=1` those that look for what happens seldom look longer.

mod bus;
mod checkpoints;
mod command_line;
mod demo;
mod display;
mod editing;
mod harness;
mod hostile;
mod input;
mod library;
mod lifecycle;
mod login;
mod memory;
mod modes;
mod resize;
mod storage_move;
mod touch;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Those that take longest come first, so that none is left alone at the end.
    let journeys = [
        bus::journeys(),
        hostile::journeys(),
        memory::journeys(),
        lifecycle::journeys(),
        checkpoints::journeys(),
        display::journeys(),
        demo::journeys(),
        resize::journeys(),
        input::journeys(),
        touch::journeys(),
        touch::headless_journeys(),
        modes::journeys(),
        storage_move::journeys(),
        editing::journeys(),
        library::journeys(),
        login::journeys(),
        command_line::journeys(),
    ];
    harness::run(journeys.into_iter().flatten().collect())
}
