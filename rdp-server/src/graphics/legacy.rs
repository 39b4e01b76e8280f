//! Pictures in fast-path updates: RemoteFX in surface commands, or bitmaps.
//!
//! MS-RDPBCGR 2.2.9.1.2.1.10.1 `TS_SURFCMD` and 2.2.9.2 (the commands).
//! <https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpbcgr/9312438a-812b-432d-a3fe-a808e454f282>

use std::time::Instant;

use console::Rect;
use ironrdp_core::{Encode as _, WriteCursor};
use ironrdp_pdu::fast_path::UpdateCode;
use ironrdp_pdu::geometry::ExclusiveRectangle;
use ironrdp_pdu::surface_commands::{
    ExtendedBitmapDataPdu, FrameAction, FrameMarkerPdu, SurfaceBitsPdu, SurfaceCommand,
};

use super::ClientGraphics;
use super::bitmap::BitmapEncoder;
use super::remote_fx::RemoteFx;
use super::shadow::Shadow;
use super::window::Window;
use crate::fast_path::write_update;

/// Bytes of a surface command beside its bitmap, and of two frame markers.
const COMMAND_OVERHEAD: usize = 22 + 2 * MARKER;

/// Smallest limit for RemoteFX: a tile of noise must fit.
const MIN_REMOTE_FX_REQUEST: usize = 64 * 1024;

/// Bytes of a frame marker.
const MARKER: usize = 8;

/// Frames in flight of a client that acknowledges and names no limit.
const UNLIMITED: usize = usize::MAX;

/// The fast-path pictures of one client.
pub(super) struct Legacy {
    codec: Codec,
    /// Of a client that acknowledges frames.
    window: Option<Window>,
    last_frame: u32,
}

enum Codec {
    RemoteFx { codec_id: u8, encoder: Box<RemoteFx>, limit: usize },
    Bitmap(BitmapEncoder),
}

impl Legacy {
    pub(super) fn new(client: &ClientGraphics) -> Self {
        let limit = client.max_request_size;
        let Some(support) = client.remote_fx.filter(|_| limit >= MIN_REMOTE_FX_REQUEST) else {
            let encoder = BitmapEncoder::new(client.color_depth, client.bitmap_header);
            return Self { codec: Codec::Bitmap(encoder), window: None, last_frame: 0 };
        };
        let encoder = Box::new(RemoteFx::new(support.entropy, limit - COMMAND_OVERHEAD));
        let window = client
            .surface_frames
            .map(|most| Window::new(usize::try_from(most).ok().filter(|most| *most > 0).unwrap_or(UNLIMITED)));
        Self { codec: Codec::RemoteFx { codec_id: support.codec_id, encoder, limit }, window, last_frame: 0 }
    }

    pub(super) fn is_remote_fx(&self) -> bool {
        matches!(self.codec, Codec::RemoteFx { .. })
    }

    /// The client acknowledged a frame.
    pub(super) fn acknowledged(&mut self, now: Instant, frame_id: u32) {
        if let Some(window) = &mut self.window {
            window.acknowledged(now, frame_id, 0);
        }
    }

    /// Whether a frame may be sent now.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.window.as_ref().is_none_or(|window| window.is_open(now))
    }

    /// When frames may be sent again although nothing is acknowledged.
    pub(super) fn reopens_at(&self) -> Option<Instant> {
        self.window.as_ref().and_then(Window::reopens_at)
    }

    /// Fast-path PDUs with some rectangles, each of which lies inside one tile and inside `bounds`.
    pub(super) fn encode(&mut self, now: Instant, shadow: &Shadow, bounds: Rect, boxes: &[Rect]) -> Vec<u8> {
        let (codec_id, encoder, limit) = match &mut self.codec {
            Codec::Bitmap(encoder) => return encoder.encode(shadow, bounds, boxes),
            Codec::RemoteFx { codec_id, encoder, limit } => (*codec_id, encoder, *limit),
        };
        let mut out = SurfaceUpdates { update: Vec::new(), limit, out: Vec::new() };
        let frame_id = self.window.is_some().then(|| self.last_frame.wrapping_add(1));
        if let Some(id) = frame_id {
            out.push(&marker(FrameAction::Begin, id));
        }
        encoder.encode(shadow, bounds, boxes, |data| out.push(&surface_bits(codec_id, bounds, data)));
        if let Some(id) = frame_id {
            out.push(&marker(FrameAction::End, id));
            self.last_frame = id;
        }
        let out = out.finish();
        if let Some(window) = &mut self.window {
            window.sent(now, self.last_frame, out.len());
        }
        out
    }
}

/// Surface commands, as many in one update as the client takes.
struct SurfaceUpdates {
    update: Vec<u8>,
    limit: usize,
    out: Vec<u8>,
}

impl SurfaceUpdates {
    fn push(&mut self, command: &SurfaceCommand<'_>) {
        let (start, size) = (self.update.len(), command.size());
        if start + size > self.limit {
            self.flush();
        }
        let start = self.update.len();
        self.update.resize(start + size, 0);
        command.encode(&mut WriteCursor::new(&mut self.update[start..])).expect("it has the room it asked for");
    }

    fn finish(mut self) -> Vec<u8> {
        self.flush();
        self.out
    }

    fn flush(&mut self) {
        if !self.update.is_empty() {
            write_update(UpdateCode::SurfaceCommands, &self.update, &mut self.out);
            self.update.clear();
        }
    }
}

fn marker(frame_action: FrameAction, id: u32) -> SurfaceCommand<'static> {
    SurfaceCommand::FrameMarker(FrameMarkerPdu { frame_action, frame_id: Some(id) })
}

/// RemoteFX data whose tiles count from the corner of the desktop.
fn surface_bits(codec_id: u8, bounds: Rect, data: &[u8]) -> SurfaceCommand<'_> {
    let [width, height] = [bounds.width, bounds.height].map(|side| u16::try_from(side).unwrap_or(u16::MAX));
    SurfaceCommand::SetSurfaceBits(SurfaceBitsPdu {
        destination: ExclusiveRectangle { left: 0, top: 0, right: width, bottom: height },
        extended_bitmap_data: ExtendedBitmapDataPdu { bpp: 32, codec_id, width, height, header: None, data },
    })
}
