//! The guest's screen has the size of the client's window, whenever that changes.

use anyhow::Result;
use fanlight_tests::picture::Likeness;

use crate::harness::journeys;
use crate::world::{Desk, World, echo_new_word};

journeys![
    the_screen_follows_the_window,
    the_screen_follows_the_window_without_the_graphics_pipeline,
    a_client_comes_back_with_another_size,
];

fn the_screen_follows_the_window(world: &World) -> Result<()> {
    world.on_guest(|desk| follow_window(desk, &["/dynamic-resolution"]))
}

fn the_screen_follows_the_window_without_the_graphics_pipeline(world: &World) -> Result<()> {
    world.on_guest(|desk| follow_window(desk, &["/dynamic-resolution", "-gfx"]))
}

fn a_client_comes_back_with_another_size(world: &World) -> Result<()> {
    world.on_guest(|desk| {
        for (width, height) in [(1280, 800), (800, 600), (1600, 1000)] {
            let client = desk.connect().size(width, height).open()?;
            desk.guest.wait_for_size(width.into(), height.into())?;
            echo_new_word(&client, desk.guest)?;
            client.close()?;
        }
        Ok(())
    })
}

fn follow_window(desk: &Desk<'_>, options: &[&str]) -> Result<()> {
    let client = desk.connect().size(1024, 768).with(options.iter().copied()).open()?;
    desk.guest.wait_for_size(1024, 768)?;
    client.wait_for_picture(Likeness::Exact, || desk.guest.picture())?;
    // Larger, smaller, and an odd one.
    for (width, height) in [(1600, 1000), (800, 600), (1366, 768)] {
        client.resize(width, height)?;
        desk.guest.wait_for_size(width.into(), height.into())?;
        echo_new_word(&client, desk.guest)?;
    }
    client.close()
}
