//! One session's way from a monitor to its client.

use std::time::Instant;

use console::{DisplayUpdate, Point, Rect, Size};

use super::{ClientGraphics, GraphicsError};

/// Something to send to the client.
#[derive(Debug, PartialEq, Eq)]
pub enum GraphicsOutput {
    /// One message for the dynamic channel `Microsoft::Windows::RDS::Graphics`, whole and wrapped.
    Gfx(Vec<u8>),
    /// One or more complete fast-path output PDUs.
    FastPath(Vec<u8>),
    /// The desktop has another size: deactivate and reactivate the client with this one, then call
    /// [`Pipeline::set_desktop`]. Nothing is drawn in between.
    Reactivate(Size),
}

/// The monitor and the pointer of one session.
///
/// Feed it with what happens, then poll [`poll_output`](Self::poll_output) until it has nothing, and no more
/// often than the connection's send buffer is (nearly) empty: a frame that is not asked for is not encoded.
#[derive(Debug)]
pub struct Pipeline {
    client: ClientGraphics,
    desktop: Size,
    pending: DisplayUpdate,
}

impl Pipeline {
    /// A pipeline for a client that was just activated with a desktop of `desktop`.
    #[must_use]
    pub fn new(client: ClientGraphics, desktop: Size, now: Instant) -> Self {
        let _ = now;
        Self { client, desktop, pending: DisplayUpdate::default() }
    }

    /// The size the client believes its desktop has.
    #[must_use]
    pub fn desktop_size(&self) -> Size {
        self.desktop
    }

    /// Adds what changed on the monitor.
    pub fn update(&mut self, update: DisplayUpdate) {
        self.pending = update;
    }

    /// The client opened the graphics channel.
    pub fn gfx_opened(&mut self, now: Instant) {
        let _ = now;
    }

    /// The graphics channel is gone; the session goes on without it.
    pub fn gfx_closed(&mut self) {}

    /// The client sent a message on the graphics channel.
    ///
    /// # Errors
    ///
    /// When the message is not one a client may send now. The channel is to be closed then.
    pub fn handle_gfx_message(&mut self, now: Instant, bytes: &[u8]) -> Result<(), GraphicsError> {
        let _ = (now, bytes);
        Ok(())
    }

    /// The client acknowledged a surface frame (`TS_FRAME_ACKNOWLEDGE_PDU`).
    pub fn handle_surface_frame_ack(&mut self, now: Instant, frame_id: u32) {
        let _ = (now, frame_id);
    }

    /// The client wants `rect` again (Refresh Rect).
    pub fn refresh(&mut self, rect: Rect) {
        let _ = rect;
    }

    /// The client wants no pictures (`true`), or wants them again (Suppress Output).
    pub fn suppress(&mut self, suppressed: bool) {
        let _ = suppressed;
    }

    /// The client was reactivated with a desktop of `size`.
    pub fn set_desktop(&mut self, size: Size) {
        self.desktop = size;
    }

    /// The client says its pointer is at `at`: a guest that follows it is not worth a pointer update.
    pub fn client_pointer(&mut self, now: Instant, at: Point) {
        let _ = (now, at);
    }

    /// The next thing to send, made from the newest state.
    pub fn poll_output(&mut self, now: Instant) -> Option<GraphicsOutput> {
        let _ = (now, &self.client);
        None
    }

    /// When to poll again although nothing happened.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        None
    }
}
