//! One session's way from a monitor to its client.
//!
//! ```text
//!  Waiting ──gfx_opened──▶ Egfx ◀──CapsAdvertise── Legacy
//!     └──time is up, gfx_closed──▶ Legacy ◀──gfx_closed── Egfx
//! ```

use std::time::{Duration, Instant};

use console::{DisplayUpdate, Point, Rect, Size};

use super::egfx::Egfx;
use super::monitor::Monitor;
use super::shadow::merge;
use super::{ClientGraphics, GraphicsError};

/// How long a client that has the graphics pipeline may take to open its channel.
const OPENING: Duration = Duration::from_secs(3);

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

/// How pictures reach a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GraphicsMode {
    /// Not decided: the client may still open the graphics channel.
    Waiting,
    /// Through the graphics channel, with this version of its capabilities.
    Egfx {
        /// As in MS-RDPEGFX 2.2.3, for example 0x000a0701.
        version: u32,
    },
    /// In fast-path updates.
    FastPath,
}

/// The monitor and the pointer of one session.
///
/// Feed it with what happens, then poll [`poll_output`](Self::poll_output) until it has nothing, and no more
/// often than the connection's send buffer is (nearly) empty: a frame that is not asked for is not encoded.
pub struct Pipeline {
    client: ClientGraphics,
    desktop: Size,
    path: Path,
    monitor: Monitor,
    suppressed: bool,
    /// Kept for its memory.
    boxes: Vec<Rect>,
}

/// How pictures reach the client.
enum Path {
    /// It may still open the graphics channel.
    Waiting {
        until: Instant,
    },
    Egfx(Box<Egfx>),
    Legacy,
}

impl Pipeline {
    /// A pipeline for a client that was just activated with a desktop of `desktop`.
    #[must_use]
    pub fn new(client: ClientGraphics, desktop: Size, now: Instant) -> Self {
        let path = if client.egfx { Path::Waiting { until: now + OPENING } } else { Path::Legacy };
        Self { client, desktop, path, monitor: Monitor::new(desktop), suppressed: false, boxes: Vec::new() }
    }

    /// The size the client believes its desktop has.
    #[must_use]
    pub fn desktop_size(&self) -> Size {
        self.desktop
    }

    /// How pictures reach the client at the moment.
    #[must_use]
    pub fn mode(&self) -> GraphicsMode {
        match &self.path {
            Path::Waiting { .. } => GraphicsMode::Waiting,
            Path::Egfx(egfx) => {
                egfx.version().map_or(GraphicsMode::Waiting, |version| GraphicsMode::Egfx { version })
            }
            Path::Legacy => GraphicsMode::FastPath,
        }
    }

    /// Adds what changed on the monitor.
    pub fn update(&mut self, update: DisplayUpdate) {
        self.monitor.update(update);
    }

    /// The client opened the graphics channel.
    pub fn gfx_opened(&mut self, now: Instant) {
        let _ = now;
        self.path = Path::Egfx(Box::new(Egfx::new()));
    }

    /// The graphics channel is gone, or the client has none; the session goes on without it.
    pub fn gfx_closed(&mut self) {
        self.path = Path::Legacy;
    }

    /// The client sent a message on the graphics channel.
    ///
    /// # Errors
    ///
    /// When the message is not one a client may send now. The channel is to be closed then.
    pub fn handle_gfx_message(&mut self, now: Instant, bytes: &[u8]) -> Result<(), GraphicsError> {
        if let Path::Egfx(egfx) = &mut self.path {
            return egfx.handle_message(now, bytes);
        }
        // It opened the channel late.
        let mut egfx = Egfx::new();
        egfx.handle_message(now, bytes)?;
        self.path = Path::Egfx(Box::new(egfx));
        Ok(())
    }

    /// The client acknowledged a surface frame (`TS_FRAME_ACKNOWLEDGE_PDU`).
    pub fn handle_surface_frame_ack(&mut self, now: Instant, frame_id: u32) {
        let _ = (now, frame_id);
    }

    /// The client wants `rect` again (Refresh Rect).
    pub fn refresh(&mut self, rect: Rect) {
        self.monitor.refresh(rect);
    }

    /// The client wants no pictures (`true`), or wants them again (Suppress Output).
    pub fn suppress(&mut self, suppressed: bool) {
        self.suppressed = suppressed;
    }

    /// The client was reactivated with a desktop of `size`.
    pub fn set_desktop(&mut self, size: Size) {
        self.desktop = size;
    }

    /// The client says its pointer is at `at`: a guest that follows it is not worth a pointer update.
    pub fn client_pointer(&mut self, now: Instant, at: Point) {
        let _ = (now, at, &self.client);
    }

    /// The next thing to send, made from the newest state.
    pub fn poll_output(&mut self, now: Instant) -> Option<GraphicsOutput> {
        if let Path::Waiting { until } = self.path
            && now >= until
        {
            self.path = Path::Legacy;
        }
        let Self { path, monitor, suppressed, boxes, desktop, .. } = self;
        let Path::Egfx(egfx) = path else { return None };
        if let Some(reply) = egfx.poll_reply() {
            return Some(GraphicsOutput::Gfx(reply));
        }
        if *suppressed {
            return None;
        }
        let frame = poll_egfx(now, egfx, monitor, boxes)?;
        *desktop = monitor.size();
        Some(GraphicsOutput::Gfx(frame))
    }

    /// When to poll again although nothing happened.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        match &self.path {
            Path::Waiting { until } => Some(*until),
            Path::Egfx(egfx) if self.monitor.is_dirty() => egfx.window().reopens_at(),
            Path::Egfx(_) | Path::Legacy => None,
        }
    }
}

/// The next frame of the graphics pipeline, if the client has credit for it and anything changed.
fn poll_egfx(now: Instant, egfx: &mut Egfx, monitor: &mut Monitor, boxes: &mut Vec<Rect>) -> Option<Vec<u8>> {
    if !egfx.is_ready() || !monitor.is_known() || !egfx.window().is_open(now) {
        return None;
    }
    let size = monitor.size();
    let another_surface = egfx.surface_size() != Some(size);
    if another_surface {
        // A new surface begins black.
        monitor.restart_black();
    } else if !monitor.is_dirty() {
        return None;
    }
    let shadow = monitor.look();
    boxes.clear();
    shadow.take(boxes);
    if boxes.is_empty() && !another_surface {
        return None;
    }
    merge(boxes);
    egfx.begin_frame(size);
    for rect in boxes.iter() {
        egfx.draw(shadow, *rect);
    }
    Some(egfx.end_frame(now))
}

#[cfg(test)]
mod tests;
