//! What a client sends on the graphics channel. Not one byte of it is trusted.

use ironrdp_core::{Decode as _, ReadCursor};
use ironrdp_egfx::pdu::{CapabilitySet, GfxPdu, QueueDepth};

use super::super::GraphicsError;

/// `RDPGFX_HEADER`: command, flags, length of the whole (2.2.1.5).
const HEADER: usize = 8;

/// Longest PDU of a client: an offer of 5462 cached bitmaps (2.2.2.16), with room for a newer one.
const MAX_LENGTH: usize = 256 * 1024;

/// Most capability sets of an advertisement; there are eleven kinds.
const MAX_CAPS: usize = 64;

/// A PDU that clients may send.
#[derive(Debug)]
pub(super) enum ClientMessage {
    /// The known ones of the advertised capability sets.
    CapsAdvertise(Vec<CapabilitySet>),
    FrameAcknowledge {
        frame_id: u32,
        queue_depth: QueueDepth,
    },
    /// How long a frame took: for statistics only.
    QoeFrameAcknowledge,
    /// What a client kept from an earlier session.
    CacheImportOffer,
}

impl ClientMessage {
    /// Reads one PDU; returns it, and the bytes after it.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), GraphicsError> {
        let Some(header) = bytes.first_chunk::<HEADER>() else {
            return Err(misbehaved("RDPGFX_HEADER", format!("{} bytes are none", bytes.len())));
        };
        let [command_low, command_high, _, _, length @ ..] = *header;
        let name = name(u16::from_le_bytes([command_low, command_high]))?;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if !(HEADER..=MAX_LENGTH.min(bytes.len())).contains(&length) {
            return Err(misbehaved(name, format!("a length of {length} in a message of {}", bytes.len())));
        }
        let (pdu, after) = bytes.split_at(length);
        let pdu = GfxPdu::decode(&mut ReadCursor::new(pdu)).map_err(|error| misbehaved(name, error.to_string()))?;
        Ok((Self::from_pdu(name, pdu)?, after))
    }

    /// The error for a PDU that came when it may not.
    pub(super) fn misplaced(&self, when: &str) -> GraphicsError {
        let name = match self {
            Self::CapsAdvertise(_) => "RDPGFX_CAPS_ADVERTISE_PDU",
            Self::FrameAcknowledge { .. } => "RDPGFX_FRAME_ACKNOWLEDGE_PDU",
            Self::QoeFrameAcknowledge => "RDPGFX_QOE_FRAME_ACKNOWLEDGE_PDU",
            Self::CacheImportOffer => "RDPGFX_CACHE_IMPORT_OFFER_PDU",
        };
        misbehaved(name, format!("sent {when}"))
    }

    fn from_pdu(name: &'static str, pdu: GfxPdu) -> Result<Self, GraphicsError> {
        match pdu {
            GfxPdu::CapabilitiesAdvertise(advertised) if advertised.0.len() > MAX_CAPS => {
                Err(misbehaved(name, format!("{} capability sets", advertised.0.len())))
            }
            GfxPdu::CapabilitiesAdvertise(advertised) => {
                let known = advertised.0.iter().filter_map(|caps| caps.parsed().transpose());
                let known: Result<_, _> = known.collect();
                known.map(Self::CapsAdvertise).map_err(|error| misbehaved(name, error.to_string()))
            }
            GfxPdu::FrameAcknowledge(ack) => {
                Ok(Self::FrameAcknowledge { frame_id: ack.frame_id, queue_depth: ack.queue_depth })
            }
            GfxPdu::QoeFrameAcknowledge(_) => Ok(Self::QoeFrameAcknowledge),
            GfxPdu::CacheImportOffer(_) => Ok(Self::CacheImportOffer),
            _ => Err(misbehaved(name, "not a client's".to_owned())),
        }
    }
}

/// The name of a command that clients send.
fn name(command: u16) -> Result<&'static str, GraphicsError> {
    match command {
        0x0d => Ok("RDPGFX_FRAME_ACKNOWLEDGE_PDU"),
        0x10 => Ok("RDPGFX_CACHE_IMPORT_OFFER_PDU"),
        0x12 => Ok("RDPGFX_CAPS_ADVERTISE_PDU"),
        0x16 => Ok("RDPGFX_QOE_FRAME_ACKNOWLEDGE_PDU"),
        _ => Err(misbehaved("RDPGFX_HEADER", format!("command {command:#06x} is not a client's"))),
    }
}

fn misbehaved(pdu: &'static str, reason: String) -> GraphicsError {
    GraphicsError::PeerMisbehaved { pdu, reason }
}

/// Feeds a channel with a client's bytes, for the fuzzer: whatever they are, it ends in an error or in answers.
pub fn fuzz_gfx_client_message(data: &[u8]) {
    let now = std::time::Instant::now();
    let mut egfx = super::Egfx::new(now);
    // Messages are cut where the fuzzer says, so that it reaches what comes after an agreement.
    for message in data.split(|byte| *byte == 0xfe) {
        if egfx.handle_message(now, message).is_err() {
            return;
        }
        while egfx.poll_reply().is_some() {}
    }
}
