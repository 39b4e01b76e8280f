//! MS-RDPBCGR 1.3.1.3 Deactivation-Reactivation Sequence: how a client without the graphics pipeline gets another
//! desktop size.
//!
//! ```text
//! start ─▶ Deactivate All, Demand Active ─▶ Confirming ─▶ Finalizing (4 PDUs) ─▶ finished
//! ```
//!
//! The session goes on reading its client meanwhile and passes on only what belongs here: Confirm Active,
//! Synchronize, Control and Font List.

use console::Size;
use ironrdp_acceptor::{Acceptor, DesktopSize};
use ironrdp_pdu::rdp::capability_sets::CapabilitySet;
use ironrdp_pdu::rdp::headers::{ServerDeactivateAll, ShareControlPdu};
use ironrdp_svc::StaticChannelSet;

use super::activation::{IO_CHANNEL_ID, Refusal, run, step};
use super::error::{AcceptError, Step};
use super::handshake::Handshake;
use super::pdu_kind::{PduKind, pdu_kind};
use crate::channels::mcs::encode_share_control;

/// A session's desktop on its way to another size.
pub struct Reactivation {
    acceptor: Acceptor,
    due: PduKind,
    desktop: Size,
    message_channel_id: Option<u16>,
    capabilities: Option<Vec<CapabilitySet>>,
}

impl Reactivation {
    /// Starts over with a desktop of `size`, and gives what is to be sent. No update may follow it until
    /// [`is_finished`](Self::is_finished).
    ///
    /// # Errors
    ///
    /// When one is running already.
    pub fn start(handshake: &mut Handshake, size: Size) -> Result<(Self, Vec<u8>), AcceptError> {
        let parked = handshake.take_acceptor().ok_or_else(|| refused("a reactivation is running"))?;
        let side = |pixels: u32| u16::try_from(pixels).unwrap_or(u16::MAX);
        let desktop = DesktopSize { width: side(size.width), height: side(size.height) };
        let mut acceptor = Acceptor::new_deactivation_reactivation(parked, StaticChannelSet::new(), desktop)
            .map_err(|error| refused(error.report().to_string()))?;
        let mut out = encode_share_control(IO_CHANNEL_ID, ShareControlPdu::ServerDeactivateAll(ServerDeactivateAll))
            .map_err(|error| refused(error.to_string()))?;
        run(&mut acceptor, &mut out).map_err(refusal)?;
        let reactivation = Self {
            acceptor,
            due: PduKind::ConfirmActive,
            desktop: size,
            message_channel_id: handshake.message_channel_id,
            capabilities: None,
        };
        Ok((reactivation, out))
    }

    /// Takes a PDU of the sequence, whole, and gives what is to be sent.
    ///
    /// # Errors
    ///
    /// When it is not the one that is due. The session is then over.
    pub fn handle_pdu(&mut self, pdu: &[u8]) -> Result<Vec<u8>, AcceptError> {
        let kind = pdu_kind(pdu, IO_CHANNEL_ID, self.message_channel_id);
        if self.is_finished() || kind != self.due {
            return Err(refused(format!("{kind:?} where {:?} is due", self.due)));
        }
        let mut out = Vec::new();
        step(&mut self.acceptor, pdu, &mut out).map_err(refusal)?;
        self.due = match kind {
            PduKind::ConfirmActive => PduKind::Synchronize,
            PduKind::Synchronize => PduKind::Cooperate,
            PduKind::Cooperate => PduKind::RequestControl,
            PduKind::RequestControl => PduKind::FontList,
            _ => {
                run(&mut self.acceptor, &mut out).map_err(refusal)?;
                let result = self.acceptor.get_result().ok_or_else(|| refused("it did not end with the font list"))?;
                self.capabilities = Some(result.capabilities);
                PduKind::Foreign
            }
        };
        Ok(out)
    }

    /// Whether the client has the new size: updates may flow again.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.capabilities.is_some()
    }

    /// Writes the outcome to the session's parameters. An unfinished one changes nothing but that no other can
    /// start.
    pub fn finish(self, handshake: &mut Handshake) {
        if let Some(capabilities) = self.capabilities {
            handshake.desktop_size = self.desktop;
            handshake.capabilities = capabilities;
            handshake.park_acceptor(self.acceptor);
        }
    }
}

impl std::fmt::Debug for Reactivation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reactivation").field("due", &self.due).field("desktop", &self.desktop).finish_non_exhaustive()
    }
}

fn refused(reason: impl Into<String>) -> AcceptError {
    AcceptError::PeerMisbehaved { step: Step::Activation, reason: reason.into() }
}

fn refusal(refusal: Refusal) -> AcceptError {
    match refusal {
        Refusal::Misbehaved(reason) => refused(reason),
        Refusal::Left => AcceptError::Closed { step: Step::Activation },
    }
}

#[cfg(test)]
mod tests;
