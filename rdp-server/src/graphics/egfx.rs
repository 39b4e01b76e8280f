//! The server of the graphics pipeline.
//!
//! MS-RDPEGFX 3.2. <https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpegfx/da5c75f9-cd99-450c-98c4-014a496942b0>
//!
//! ```text
//!  AwaitCaps ──CapsAdvertise──▶ Ready { no surface } ──first frame──▶ Ready { surface }
//!                                   ▲                                   │      │ ▲
//!                                   └───────────CapsAdvertise───────────┘      └─┘ frames, acknowledgements
//! ```
//!
//! Everything of a frame, the surface it may need included, is one message: the compressor sees it whole and the
//! client never shows half of it.

mod message;
mod writer;

use std::time::Instant;

use console::{Rect, Size};
use ironrdp_egfx::pdu::{
    CacheImportReplyPdu, CapabilitiesConfirmPdu, CapabilitySet, CreateSurfacePdu, DeleteSurfacePdu, EndFramePdu,
    GfxPdu, MapSurfaceToOutputPdu, PixelFormat, QueueDepth, RawCapabilitySet, ResetGraphicsPdu, StartFramePdu,
    Timestamp,
};
use ironrdp_pdu::gcc::{Monitor, MonitorFlags};

use super::GraphicsError;
use super::clear_codec::{ClearCodec, Content};
use super::shadow::Shadow;
use super::window::Window;
use super::zgfx::Compressor;

use message::ClientMessage;
pub use message::fuzz_gfx_client_message;
use writer::CommandWriter;

/// One opened graphics channel.
pub(super) struct Egfx {
    state: State,
    window: Window,
    commands: CommandWriter,
    codec: ClearCodec,
    compressor: Compressor,
    /// Answers that wait to be sent.
    replies: Vec<GfxPdu>,
    last_frame: u32,
    last_surface: u16,
}

enum State {
    AwaitCaps { until: Instant },
    Ready { caps: CapabilitySet, surface: Option<Surface> },
}

#[derive(Clone, Copy)]
struct Surface {
    id: u16,
    size: Size,
}

impl Egfx {
    /// A channel that was just opened, and whose client is to name its capabilities until then.
    pub(super) fn new(until: Instant) -> Self {
        Self {
            state: State::AwaitCaps { until },
            window: Window::new(usize::MAX),
            commands: CommandWriter::new(),
            codec: ClearCodec::new(),
            compressor: Compressor::new(),
            replies: Vec::new(),
            last_frame: 0,
            last_surface: 0,
        }
    }

    /// A message of the client, which may hold several PDUs.
    pub(super) fn handle_message(&mut self, now: Instant, bytes: &[u8]) -> Result<(), GraphicsError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (message, after) = ClientMessage::decode(rest)?;
            self.handle(now, message)?;
            rest = after;
        }
        Ok(())
    }

    /// Whether capabilities are agreed on, so that frames may be sent.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready { .. })
    }

    /// Until when the client is to name its capabilities, if it has not.
    pub(super) fn awaits_caps_until(&self) -> Option<Instant> {
        match self.state {
            State::AwaitCaps { until } => Some(until),
            State::Ready { .. } => None,
        }
    }

    /// The version that was agreed on.
    pub(super) fn version(&self) -> Option<u32> {
        match &self.state {
            State::Ready { caps, .. } => Some(caps.version().into()),
            State::AwaitCaps { .. } => None,
        }
    }

    /// The size of what the client shows, if there is a surface.
    pub(super) fn surface_size(&self) -> Option<Size> {
        match &self.state {
            State::Ready { surface: Some(surface), .. } => Some(surface.size),
            _ => None,
        }
    }

    /// The next answer to the client, wrapped.
    pub(super) fn poll_reply(&mut self) -> Option<Vec<u8>> {
        if self.replies.is_empty() {
            return None;
        }
        self.replies.drain(..).for_each(|reply| self.commands.pdu(&reply));
        Some(self.wrap())
    }

    pub(super) fn window(&self) -> &Window {
        &self.window
    }

    /// The client's output was set up anew: the next frame begins with another surface.
    pub(super) fn lose_surface(&mut self) {
        if let State::Ready { surface, .. } = &mut self.state
            && let Some(old) = surface.take()
        {
            self.replies.push(GfxPdu::DeleteSurface(DeleteSurfacePdu { surface_id: old.id }));
        }
    }

    /// Begins a frame; `size` is the desktop's, and if the surface has another, a new one begins with it: black.
    pub(super) fn begin_frame(&mut self, size: Size) {
        let fresh = self.surface_size() != Some(size);
        if fresh {
            self.replace_surface(size);
        }
        self.last_frame = self.last_frame.wrapping_add(1);
        // Clients have no use for the time, and a constant costs nothing once compressed.
        let timestamp = Timestamp { milliseconds: 0, seconds: 0, minutes: 0, hours: 0 };
        self.commands.pdu(&GfxPdu::StartFrame(StartFramePdu { timestamp, frame_id: self.last_frame }));
        if fresh {
            self.commands.solid_fill(self.last_surface, [0; 3], size.rect());
        }
    }

    /// Adds a rectangle of the shadow to the frame.
    pub(super) fn draw(&mut self, shadow: &Shadow, rect: Rect) {
        let Some(surface) = self.surface_id() else { return };
        let (pixels, stride) = (shadow.pixels_from(rect), shadow.stride());
        match self.codec.read(pixels, stride, rect) {
            Content::Solid(bgr) => self.commands.solid_fill(surface, bgr, rect),
            Content::Mixed => {
                self.commands.bitmap(surface, rect, |out| self.codec.encode(pixels, stride, rect, out));
            }
        }
    }

    /// Adds a copy, up or down, of what the client shows.
    pub(super) fn copy_rows(&mut self, from: Rect, to_y: u32) {
        let Some(surface) = self.surface_id() else { return };
        self.commands.copy(surface, from, from.x, to_y);
    }

    /// Ends the frame: the message to send.
    pub(super) fn end_frame(&mut self, now: Instant) -> Vec<u8> {
        self.commands.pdu(&GfxPdu::EndFrame(EndFramePdu { frame_id: self.last_frame }));
        let message = self.wrap();
        self.window.sent(now, self.last_frame, message.len());
        message
    }

    fn handle(&mut self, now: Instant, message: ClientMessage) -> Result<(), GraphicsError> {
        match message {
            ClientMessage::CapsAdvertise(caps) => self.confirm(caps),
            _ if !self.is_ready() => Err(message.misplaced("before its capabilities")),
            ClientMessage::FrameAcknowledge { frame_id, queue_depth } => {
                match queue_depth {
                    QueueDepth::Suspend => self.window.suspend(),
                    QueueDepth::Unavailable => self.window.acknowledged(now, frame_id, 0),
                    QueueDepth::AvailableBytes(bytes) => self.window.acknowledged(now, frame_id, bytes),
                }
                Ok(())
            }
            ClientMessage::QoeFrameAcknowledge => Ok(()),
            ClientMessage::CacheImportOffer => {
                self.replies.push(GfxPdu::CacheImportReply(CacheImportReplyPdu { cache_slots: Vec::new() }));
                Ok(())
            }
        }
    }

    /// Answers with the best of the client's capability sets. A client that advertises again has dropped everything
    /// it had, and everything on its way to it (3.2.5.18).
    fn confirm(&mut self, advertised: Vec<CapabilitySet>) -> Result<(), GraphicsError> {
        let Some(caps) = advertised.into_iter().max_by_key(|caps| u32::from(caps.version())) else {
            return Err(GraphicsError::Unsupported("none of the client's graphics capability sets is known"));
        };
        tracing::debug!(version = ?caps.version(), "graphics pipeline agreed on");
        self.replies.clear();
        self.replies.push(GfxPdu::CapabilitiesConfirm(CapabilitiesConfirmPdu(RawCapabilitySet::from(&caps))));
        self.window = Window::new(usize::MAX);
        self.compressor.forget();
        self.codec = ClearCodec::new();
        self.state = State::Ready { caps, surface: None };
        Ok(())
    }

    fn replace_surface(&mut self, size: Size) {
        let State::Ready { surface, .. } = &mut self.state else {
            unreachable!("frames are sent once capabilities are agreed on")
        };
        if let Some(old) = surface.take() {
            self.commands.pdu(&GfxPdu::DeleteSurface(DeleteSurfacePdu { surface_id: old.id }));
        }
        self.last_surface = self.last_surface.wrapping_add(1);
        let new = Surface { id: self.last_surface, size };
        *surface = Some(new);
        self.commands.pdu(&GfxPdu::ResetGraphics(ResetGraphicsPdu {
            width: size.width,
            height: size.height,
            monitors: vec![Monitor {
                left: 0,
                top: 0,
                right: size.width.cast_signed() - 1,
                bottom: size.height.cast_signed() - 1,
                flags: MonitorFlags::PRIMARY,
            }],
        }));
        let [width, height] = [size.width, size.height].map(|side| u16::try_from(side).unwrap_or(u16::MAX));
        self.commands.pdu(&GfxPdu::CreateSurface(CreateSurfacePdu {
            surface_id: new.id,
            width,
            height,
            pixel_format: PixelFormat::XRgb,
        }));
        self.commands.pdu(&GfxPdu::MapSurfaceToOutput(MapSurfaceToOutputPdu {
            surface_id: new.id,
            output_origin_x: 0,
            output_origin_y: 0,
        }));
    }

    fn surface_id(&self) -> Option<u16> {
        match &self.state {
            State::Ready { surface, .. } => surface.map(|surface| surface.id),
            State::AwaitCaps { .. } => None,
        }
    }

    /// Compresses the commands written so far into a message.
    fn wrap(&mut self) -> Vec<u8> {
        let message = self.compressor.compress(self.commands.finish());
        self.commands.clear();
        message
    }
}
