//! The client's end of the touch channel (MS-RDPEI): it says exactly what it is told to say.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use ironrdp_core::{Encode, EncodeResult, WriteCursor, decode, ensure_size, impl_as_any};
use ironrdp_dvc::{DvcClientProcessor, DvcEncode, DvcMessage, DvcProcessor, encode_dvc_messages};
use ironrdp_pdu::{PduResult, pdu_other_err};
use ironrdp_rdpei::CHANNEL_NAME;
pub use ironrdp_rdpei::pdu;
use ironrdp_svc::{ChannelFlags, SvcMessage};
use pdu::{CsReadyPdu, RdpeiPdu, ScReadyPdu};

/// What the server has said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TouchState {
    /// What it can do; none before it opened the channel and said so.
    pub server: Option<ScReadyPdu>,
    /// Whether it wants to hear nothing.
    pub suspended: bool,
    /// Whether it has closed the channel.
    pub closed: bool,
    channel_id: Option<u32>,
}

/// A handle on what the server has said, while the channel owns another.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedTouch(Arc<Mutex<TouchState>>);

/// The processor that the dynamic channel drives.
pub(super) struct TouchChannel {
    state: SharedTouch,
    answer: CsReadyPdu,
}

/// A message as bytes, whatever they are.
struct Message(Vec<u8>);

impl SharedTouch {
    /// The processor of a client that answers the server with `answer`.
    pub(super) fn channel(&self, answer: CsReadyPdu) -> TouchChannel {
        TouchChannel { state: self.clone(), answer }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, TouchState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message into the envelopes of the channel.
    pub(super) fn encode(&self, message: &[u8]) -> Result<Vec<SvcMessage>> {
        let channel_id = self.lock().channel_id.context("the server has not opened the touch channel")?;
        let message: DvcMessage = Box::new(Message(message.to_vec()));
        Ok(encode_dvc_messages(channel_id, vec![message], ChannelFlags::empty())?)
    }
}

impl_as_any!(TouchChannel);

impl DvcProcessor for TouchChannel {
    fn channel_name(&self) -> &str {
        CHANNEL_NAME
    }

    fn start(&mut self, channel_id: u32) -> PduResult<Vec<DvcMessage>> {
        *self.state.lock() = TouchState { channel_id: Some(channel_id), ..TouchState::default() };
        Ok(Vec::new())
    }

    fn process(&mut self, _: u32, message: &[u8]) -> PduResult<Vec<DvcMessage>> {
        let mut state = self.state.lock();
        match decode(message) {
            Ok(RdpeiPdu::ScReady(ready)) => {
                state.server = Some(ready);
                return Ok(vec![Box::new(RdpeiPdu::CsReady(self.answer.clone()))]);
            }
            Ok(RdpeiPdu::SuspendInput) => state.suspended = true,
            Ok(RdpeiPdu::ResumeInput) => state.suspended = false,
            other => {
                eprintln!("touch channel: {other:?} from a server");
                return Err(pdu_other_err!("touch message"));
            }
        }
        Ok(Vec::new())
    }

    fn close(&mut self, _: u32) {
        self.state.lock().closed = true;
    }
}

impl DvcClientProcessor for TouchChannel {}

impl Encode for Message {
    fn encode(&self, dst: &mut WriteCursor<'_>) -> EncodeResult<()> {
        ensure_size!(in: dst, size: self.0.len());
        dst.write_slice(&self.0);
        Ok(())
    }

    fn name(&self) -> &'static str {
        "touch message"
    }

    fn size(&self) -> usize {
        self.0.len()
    }
}

impl DvcEncode for Message {}
