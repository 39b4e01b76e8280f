//! The client's end of the graphics channel (MS-RDPEGFX): what a frame holds, how large it was, when it came.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use ironrdp_core::{ReadCursor, decode_cursor, impl_as_any};
use ironrdp_dvc::{DvcClientProcessor, DvcMessage, DvcProcessor};
use ironrdp_egfx::CHANNEL_NAME;
use ironrdp_egfx::pdu::{
    CapabilitiesAdvertisePdu, CapabilitiesV107Flags, CapabilitySet, FrameAcknowledgePdu, GfxPdu, QueueDepth,
};
use ironrdp_graphics::zgfx::Decompressor;
use ironrdp_pdu::{PduResult, pdu_other_err};

use super::picture::{Decode, Picture};

/// One frame as the client got it.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// When its last byte came.
    pub arrived: Instant,
    /// Bytes of its graphics messages, compressed, without the channels' envelopes.
    pub message_bytes: u64,
}

/// Everything the graphics channel has brought.
pub struct Screen {
    zgfx: Decompressor,
    picture: Picture,
    /// Frames that nobody has looked at yet.
    frames: Vec<Frame>,
    decoded: u32,
    message_bytes: u64,
    /// Of it, what belongs to frames that have ended.
    bytes_in_frames: u64,
    arrived: Instant,
}

/// A handle on the screen for the client, while the channel owns another.
#[derive(Clone)]
pub struct SharedScreen(Arc<Mutex<Screen>>);

/// The processor that the dynamic channel drives.
pub(super) struct GraphicsChannel(SharedScreen);

impl SharedScreen {
    /// An empty screen.
    pub fn new(decode: Decode) -> Self {
        Self(Arc::new(Mutex::new(Screen {
            zgfx: Decompressor::new(),
            picture: Picture::new(decode),
            frames: Vec::new(),
            decoded: 0,
            message_bytes: 0,
            bytes_in_frames: 0,
            arrived: Instant::now(),
        })))
    }

    /// The screen as it is now.
    pub fn lock(&self) -> MutexGuard<'_, Screen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn channel(&self) -> GraphicsChannel {
        GraphicsChannel(self.clone())
    }
}

impl Screen {
    /// Takes one message of the server; returns the answers.
    ///
    /// # Errors
    ///
    /// When it does not decode.
    pub fn handle_message(&mut self, message: &[u8]) -> Result<Vec<GfxPdu>> {
        self.message_bytes += message.len() as u64;
        let mut plain = Vec::new();
        self.zgfx.decompress(message, &mut plain).map_err(|error| anyhow!("ZGFX: {error}"))?;
        let mut cursor = ReadCursor::new(&plain);
        let mut answers = Vec::new();
        while !cursor.is_empty() {
            let pdu: GfxPdu = decode_cursor(&mut cursor).context("a graphics message does not decode")?;
            if let GfxPdu::EndFrame(end) = &pdu {
                self.end_frame();
                answers.push(GfxPdu::FrameAcknowledge(FrameAcknowledgePdu {
                    queue_depth: QueueDepth::Unavailable,
                    frame_id: end.frame_id,
                    total_frames_decoded: self.decoded,
                }));
            }
            self.picture.apply(&pdu)?;
        }
        Ok(answers)
    }

    /// What a client says when the channel opens: everything but H.264.
    pub fn hello() -> GfxPdu {
        let newest = CapabilitySet::V10_7 { flags: CapabilitiesV107Flags::AVC_DISABLED };
        GfxPdu::CapabilitiesAdvertise(CapabilitiesAdvertisePdu::from_typed(&[newest]))
    }

    /// What comes from now on came at `at`.
    pub(super) fn set_arrived(&mut self, at: Instant) {
        self.arrived = at;
    }

    /// The frames since the last call.
    pub fn take_frames(&mut self) -> Vec<Frame> {
        std::mem::take(&mut self.frames)
    }

    /// The picture as far as it was decoded.
    pub fn picture(&self) -> &Picture {
        &self.picture
    }

    fn end_frame(&mut self) {
        self.decoded += 1;
        self.frames.push(Frame { arrived: self.arrived, message_bytes: self.message_bytes - self.bytes_in_frames });
        self.bytes_in_frames = self.message_bytes;
    }
}

impl_as_any!(GraphicsChannel);

impl DvcProcessor for GraphicsChannel {
    fn channel_name(&self) -> &str {
        CHANNEL_NAME
    }

    fn start(&mut self, _: u32) -> PduResult<Vec<DvcMessage>> {
        Ok(vec![Box::new(Screen::hello())])
    }

    fn process(&mut self, _: u32, message: &[u8]) -> PduResult<Vec<DvcMessage>> {
        match self.0.lock().handle_message(message) {
            Ok(answers) => Ok(answers.into_iter().map(|answer| Box::new(answer) as DvcMessage).collect()),
            Err(error) => {
                eprintln!("graphics channel: {error:#}");
                Err(pdu_other_err!("graphics message"))
            }
        }
    }
}

impl DvcClientProcessor for GraphicsChannel {}
