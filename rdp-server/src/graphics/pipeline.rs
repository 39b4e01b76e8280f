//! One session's way from a monitor to its client.
//!
//! ```text
//!  Waiting ──gfx_opened──▶ Egfx ◀──CapsAdvertise── Legacy
//!     └──time is up, gfx_closed──▶ Legacy ◀──time is up, gfx_closed── Egfx
//! ```

use std::time::{Duration, Instant};

use console::{DisplayUpdate, Point, Rect, Size};

use super::egfx::Egfx;
use super::legacy::Legacy;
use super::monitor::{Monitor, Scrolling};
use super::pointer::Pointer;
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
    /// In RemoteFX.
    RemoteFx,
    /// In bitmap updates.
    Bitmaps,
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
    pointer: Pointer,
    output: Output,
    reactivation: Reactivation,
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
    Legacy(Box<Legacy>),
}

/// Whether the client wants pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Allowed,
    Suppressed,
}

/// How a client without the graphics pipeline comes to a desktop of another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reactivation {
    /// It may be asked for, but not again for the size of which it made another.
    Idle { refused: Option<Size> },
    /// It was asked for.
    Pending(Size),
}

impl Pipeline {
    /// A pipeline for a client that was just activated with a desktop of `desktop`.
    #[must_use]
    pub fn new(client: ClientGraphics, desktop: Size, now: Instant) -> Self {
        let path = Path::Waiting { until: if client.egfx { now + OPENING } else { now } };
        let pointer = Pointer::new(client.pointer, client.max_request_size);
        Self {
            client,
            desktop,
            path,
            monitor: Monitor::new(desktop),
            pointer,
            output: Output::Allowed,
            reactivation: Reactivation::Idle { refused: None },
            boxes: Vec::new(),
        }
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
            Path::Egfx(egfx) => egfx.version().map_or(GraphicsMode::Waiting, |version| GraphicsMode::Egfx { version }),
            Path::Legacy(legacy) if legacy.is_remote_fx() => GraphicsMode::RemoteFx,
            Path::Legacy(_) => GraphicsMode::Bitmaps,
        }
    }

    /// Adds what changed on the monitor.
    pub fn update(&mut self, mut update: DisplayUpdate) {
        if let Some(cursor) = update.cursor.take() {
            self.pointer.update(cursor);
        }
        self.monitor.update(update);
    }

    /// The client opened the graphics channel.
    pub fn gfx_opened(&mut self, now: Instant) {
        self.path = Path::Egfx(Box::new(Egfx::new(now + OPENING)));
    }

    /// The graphics channel is gone, or the client has none; the session goes on without it.
    pub fn gfx_closed(&mut self) {
        self.path = Path::Legacy(Box::new(Legacy::new(&self.client)));
        self.monitor.restart_unknown();
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
        let mut egfx = Egfx::new(now + OPENING);
        egfx.handle_message(now, bytes)?;
        self.path = Path::Egfx(Box::new(egfx));
        Ok(())
    }

    /// The client acknowledged a surface frame (`TS_FRAME_ACKNOWLEDGE_PDU`).
    pub fn handle_surface_frame_ack(&mut self, now: Instant, frame_id: u32) {
        if let Path::Legacy(legacy) = &mut self.path {
            legacy.acknowledged(now, frame_id);
        }
    }

    /// The client wants `rect` again (Refresh Rect).
    pub fn refresh(&mut self, rect: Rect) {
        self.monitor.refresh(rect);
    }

    /// The client wants no pictures (`true`), or wants them again (Suppress Output).
    pub fn suppress(&mut self, suppressed: bool) {
        let output = if suppressed { Output::Suppressed } else { Output::Allowed };
        let resumed = std::mem::replace(&mut self.output, output) != output && !suppressed;
        // Surfaces outlive being minimised; a desktop that is drawn on directly may not.
        if resumed && matches!(self.path, Path::Legacy(_)) {
            self.monitor.refresh(self.monitor.size().rect());
        }
    }

    /// The client was reactivated with a desktop of `size`.
    pub fn set_desktop(&mut self, size: Size) {
        let refused = match self.reactivation {
            Reactivation::Pending(wanted) if wanted != size => Some(wanted),
            _ => None,
        };
        self.reactivation = Reactivation::Idle { refused };
        self.desktop = size;
        self.pointer.restart();
        match &mut self.path {
            Path::Legacy(_) => self.monitor.restart_unknown(),
            Path::Egfx(egfx) => egfx.lose_surface(),
            Path::Waiting { .. } => {}
        }
    }

    /// The client says its pointer is at `at`: a guest that follows it is not worth a pointer update.
    pub fn client_pointer(&mut self, now: Instant, at: Point) {
        self.pointer.client_pointer(now, at);
    }

    /// The next thing to send, made from the newest state.
    pub fn poll_output(&mut self, now: Instant) -> Option<GraphicsOutput> {
        if self.waiting_until().is_some_and(|until| now >= until) {
            self.gfx_closed();
        }
        if let Path::Egfx(egfx) = &mut self.path
            && let Some(reply) = egfx.poll_reply()
        {
            return Some(GraphicsOutput::Gfx(reply));
        }
        if self.output == Output::Suppressed || matches!(self.reactivation, Reactivation::Pending(_)) {
            return None;
        }
        if let Some(pointer) = self.pointer.poll(now) {
            return Some(GraphicsOutput::FastPath(pointer));
        }
        if !self.monitor.is_known() {
            return None;
        }
        match self.path {
            Path::Waiting { .. } => None,
            Path::Egfx(_) => self.poll_egfx(now).map(GraphicsOutput::Gfx),
            Path::Legacy(_) => self.poll_legacy(now),
        }
    }

    /// Whether a part of the picture waits for the client, or has not been looked at.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.monitor.is_known() && self.monitor.is_dirty()
    }

    /// When to poll again although nothing happened.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let reopens = || match &self.path {
            Path::Egfx(egfx) => egfx.window().reopens_at(),
            Path::Legacy(legacy) => legacy.reopens_at(),
            Path::Waiting { .. } => None,
        };
        self.waiting_until().or_else(|| reopens().filter(|_| self.monitor.is_dirty()))
    }

    /// How long the client may take to open the graphics channel and to say what it can do.
    fn waiting_until(&self) -> Option<Instant> {
        match &self.path {
            Path::Waiting { until } => Some(*until),
            Path::Egfx(egfx) => egfx.awaits_caps_until(),
            Path::Legacy(_) => None,
        }
    }

    /// The next frame of the graphics pipeline, if the client has credit for it and anything changed.
    fn poll_egfx(&mut self, now: Instant) -> Option<Vec<u8>> {
        let Path::Egfx(egfx) = &mut self.path else { return None };
        if !egfx.is_ready() || !egfx.window().is_open(now) {
            return None;
        }
        let size = self.monitor.size();
        let another_surface = egfx.surface_size() != Some(size);
        if another_surface {
            // A new surface begins black.
            self.monitor.restart_black();
        } else if !self.monitor.is_dirty() {
            return None;
        }
        // What a new surface shows cannot have moved.
        let scrolling = if another_surface { Scrolling::Ignore } else { Scrolling::Search };
        let mut moves = Vec::new();
        self.boxes.clear();
        let shadow = self.monitor.take(scrolling, &mut moves, &mut self.boxes);
        if self.boxes.is_empty() && moves.is_empty() && !another_surface {
            return None;
        }
        merge(&mut self.boxes);
        egfx.begin_frame(size);
        moves.iter().for_each(|found| egfx.copy_rows(found.from, found.to_y));
        self.boxes.iter().for_each(|rect| egfx.draw(shadow, *rect));
        self.desktop = size;
        Some(egfx.end_frame(now))
    }

    /// The next picture in fast-path updates, or the wish for a desktop that it fits.
    fn poll_legacy(&mut self, now: Instant) -> Option<GraphicsOutput> {
        let size = self.monitor.size();
        let refused = self.reactivation == Reactivation::Idle { refused: Some(size) };
        if size != self.desktop && self.client.desktop_resize && !refused {
            self.reactivation = Reactivation::Pending(size);
            return Some(GraphicsOutput::Reactivate(size));
        }
        let Path::Legacy(legacy) = &mut self.path else { return None };
        if self.monitor.has_another_size() {
            self.monitor.restart_unknown();
        }
        if !self.monitor.is_dirty() || !legacy.is_open(now) {
            return None;
        }
        self.boxes.clear();
        let shadow = self.monitor.take(Scrolling::Ignore, &mut Vec::new(), &mut self.boxes);
        // A client that cannot follow sees what fits on its desktop.
        let bounds = size.rect().intersect(self.desktop.rect());
        self.boxes.iter_mut().for_each(|rect| *rect = rect.intersect(bounds));
        self.boxes.retain(|rect| !rect.is_empty());
        if self.boxes.is_empty() {
            return None;
        }
        Some(GraphicsOutput::FastPath(legacy.encode(now, shadow, bounds, &self.boxes)))
    }
}

#[cfg(test)]
mod legacy_tests;
#[cfg(test)]
mod tests;
