//! Control messages: how the two ends agree on everything that is not a channel's own (`docs/bus.md`, section 5).

mod contact;
mod numbers;
mod offer;

use crate::wire::{Malformed, Reader, Writer};

pub use contact::{AgentVersion, Contact, ContactAck, Features, MAX_AGENT_NAME, PciSlot, RegionHint};
pub use numbers::{ContactStatus, ErrorCode, Os, Reason, TransportCode};
pub use offer::{Offer, OfferFlags, OfferedRings, Picture, SurfaceGrant};

/// The version of the bus that this crate speaks: an end with another major version cannot be talked to.
pub const MAJOR: u16 = 1;
/// The newest minor version that it knows.
pub const MINOR: u16 = 0;
/// Bytes of a control message before its body.
pub const CONTROL_HEADER: usize = 16;
/// Longest text of an ERROR, in bytes.
pub const MAX_ERROR_TEXT: usize = 256;

/// A control message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlMessage {
    /// The guest is there.
    Contact(Contact),
    /// The host's answer to it.
    ContactAck(ContactAck),
    /// What is there to open?
    RequestOffers,
    /// A channel that may be opened.
    Offer(Offer),
    /// So many offers answered REQUEST_OFFERS.
    OffersDone {
        /// How many.
        count: u32,
    },
    /// The guest opens a channel.
    Open {
        /// The channel.
        channel: u32,
        /// Names this opening of it. Not 0.
        open_id: u32,
        /// What shall carry it.
        transport: TransportCode,
        /// Minor version of the class that the guest will speak.
        class_minor: u16,
    },
    /// Whether it is open.
    OpenResult {
        /// The channel.
        channel: u32,
        /// The opening.
        open_id: u32,
        /// Whether it succeeded.
        status: Result<(), ErrorCode>,
    },
    /// The sender wants no more of this opening.
    Close {
        /// The channel.
        channel: u32,
        /// The opening.
        open_id: u32,
        /// Why.
        reason: Reason,
    },
    /// The sender uses nothing of the channel any more.
    Closed {
        /// The channel.
        channel: u32,
        /// The opening.
        open_id: u32,
    },
    /// The offer is withdrawn, open or not.
    Rescind {
        /// The channel.
        channel: u32,
        /// Why.
        reason: Reason,
    },
    /// Number and memory of a rescinded channel can be used again.
    Released {
        /// The channel.
        channel: u32,
    },
    /// The guest stops using everything.
    Unload,
    /// The host does not expect it to any more.
    Unloaded,
    /// Are you there?
    Ping {
        /// Comes back in the answer.
        cookie: u64,
    },
    /// Yes.
    Pong {
        /// From the question.
        cookie: u64,
    },
    /// Please offer more channels of this instance.
    Subchannel {
        /// The channel.
        channel: u32,
        /// How many more.
        count: u16,
    },
    /// Memory for pictures.
    SurfaceGrant(SurfaceGrant),
    /// Stop writing there.
    SurfaceRevoke {
        /// The channel.
        channel: u32,
        /// The surface.
        surface: u32,
    },
    /// It is not written to any more.
    SurfaceRevoked {
        /// The channel.
        channel: u32,
        /// The surface.
        surface: u32,
    },
    /// A message was not acted on.
    Error {
        /// Why.
        code: ErrorCode,
        /// `txid` of that message.
        ref_txid: u64,
        /// The same for people, at most [`MAX_ERROR_TEXT`] bytes.
        text: String,
    },
    /// Stop sending on all channels.
    Pause,
    /// Go on.
    Resume,
    /// Nothing of the guest's is under way.
    Paused,
    /// The guest has found the shared memory.
    Attach {
        /// From its HOST page.
        region_nonce: u64,
        /// From the GUEST page.
        guest_nonce: u64,
    },
    /// Whether rings may be used.
    AttachResult {
        /// Whether they may.
        status: Result<(), ErrorCode>,
    },
}

/// Bytes that are no control message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// A newer peer may know this type.
    #[error("control message of unknown type {message_type}")]
    Unsupported {
        /// Its type.
        message_type: u16,
        /// Its `txid`.
        txid: u64,
    },
    /// It cannot be read.
    #[error("control message: {malformed}")]
    Malformed {
        /// Its `txid`, 0 when not even that can be read.
        txid: u64,
        /// What is wrong.
        malformed: Malformed,
    },
}

impl ControlMessage {
    /// The bytes on the wire. `txid` names the message for its answer; 0 if there is none.
    #[must_use]
    pub fn encode(&self, txid: u64) -> Vec<u8> {
        let mut body = Writer::new();
        let message_type = self.encode_body(&mut body);
        let body = body.into_bytes();
        let mut writer = Writer::new();
        // No body comes near 4 GiB: strings are cut to their limits.
        writer.u16(message_type).u16(0).u32(u32::try_from(body.len()).unwrap_or(u32::MAX)).u64(txid).bytes(&body);
        writer.into_bytes()
    }

    /// Reads a message, and its `txid`.
    ///
    /// # Errors
    ///
    /// When its type is not known, or it is not what that type should be.
    pub fn decode(bytes: &[u8]) -> Result<(u64, Self), ControlError> {
        let mut reader = Reader::new(bytes);
        let (message_type, flags, length, txid) =
            header(&mut reader).map_err(|malformed| ControlError::Malformed { txid: 0, malformed })?;
        let malformed = |malformed| ControlError::Malformed { txid, malformed };
        if flags != 0 {
            return Err(malformed(Malformed::Value { what: "flags of a control message", value: flags.into() }));
        }
        if usize::try_from(length) != Ok(reader.remaining()) {
            return Err(malformed(Malformed::Value { what: "length of a control message", value: length.into() }));
        }
        match Self::decode_body(message_type, &mut reader).map_err(malformed)? {
            Some(message) => Ok((txid, message)),
            None => Err(ControlError::Unsupported { message_type, txid }),
        }
    }

    /// Writes the body and returns the type.
    fn encode_body(&self, writer: &mut Writer) -> u16 {
        match self {
            Self::Contact(contact) => contact.encode(writer),
            Self::ContactAck(ack) => ack.encode(writer),
            Self::Offer(offer) => offer.encode(writer),
            Self::SurfaceGrant(grant) => grant.encode(writer),
            Self::RequestOffers | Self::Unload | Self::Unloaded | Self::Pause | Self::Resume | Self::Paused => {}
            Self::OffersDone { count } => drop(writer.u32(*count)),
            Self::Open { channel, open_id, transport, class_minor } => {
                writer.u32(*channel).u32(*open_id).u16(transport.to_wire()).u16(*class_minor);
            }
            Self::OpenResult { channel, open_id, status } => {
                writer.u32(*channel).u32(*open_id).u32(status_to_wire(*status));
            }
            Self::Close { channel, open_id, reason } => {
                writer.u32(*channel).u32(*open_id).u16(reason.to_wire());
            }
            Self::Closed { channel, open_id } => drop(writer.u32(*channel).u32(*open_id)),
            Self::Rescind { channel, reason } => drop(writer.u32(*channel).u16(reason.to_wire())),
            Self::Released { channel } => drop(writer.u32(*channel)),
            Self::Ping { cookie } | Self::Pong { cookie } => drop(writer.u64(*cookie)),
            Self::Subchannel { channel, count } => drop(writer.u32(*channel).u16(*count)),
            Self::SurfaceRevoke { channel, surface } | Self::SurfaceRevoked { channel, surface } => {
                writer.u32(*channel).u32(*surface);
            }
            Self::Error { code, ref_txid, text } => {
                let text = shortened(text, MAX_ERROR_TEXT);
                let length = u16::try_from(text.len()).unwrap_or(0);
                writer.u32(code.to_wire()).u64(*ref_txid).u16(length).bytes(text.as_bytes());
            }
            Self::Attach { region_nonce, guest_nonce } => drop(writer.u64(*region_nonce).u64(*guest_nonce)),
            Self::AttachResult { status } => drop(writer.u32(status_to_wire(*status))),
        }
        self.message_type()
    }

    fn message_type(&self) -> u16 {
        match self {
            Self::Contact(_) => 1,
            Self::ContactAck(_) => 2,
            Self::RequestOffers => 3,
            Self::Offer(_) => 4,
            Self::OffersDone { .. } => 5,
            Self::Open { .. } => 6,
            Self::OpenResult { .. } => 7,
            Self::Close { .. } => 8,
            Self::Closed { .. } => 9,
            Self::Rescind { .. } => 10,
            Self::Released { .. } => 11,
            Self::Unload => 12,
            Self::Unloaded => 13,
            Self::Ping { .. } => 14,
            Self::Pong { .. } => 15,
            Self::Subchannel { .. } => 16,
            Self::SurfaceGrant(_) => 17,
            Self::SurfaceRevoke { .. } => 18,
            Self::SurfaceRevoked { .. } => 19,
            Self::Error { .. } => 20,
            Self::Pause => 21,
            Self::Resume => 22,
            Self::Paused => 23,
            Self::Attach { .. } => 24,
            Self::AttachResult { .. } => 25,
        }
    }

    /// Reads the body of a message of this type; none when the type is not known.
    fn decode_body(message_type: u16, reader: &mut Reader<'_>) -> Result<Option<Self>, Malformed> {
        Ok(Some(match message_type {
            1 => Self::Contact(Contact::decode(reader)?),
            2 => Self::ContactAck(ContactAck::decode(reader)?),
            3 => Self::RequestOffers,
            4 => Self::Offer(Offer::decode(reader)?),
            5 => Self::OffersDone { count: reader.u32("count of offers")? },
            6 => Self::Open {
                channel: reader.u32("channel")?,
                open_id: open_id(reader)?,
                transport: TransportCode::from_wire(reader.u16("transport")?),
                class_minor: reader.u16("minor of the class")?,
            },
            7 => Self::OpenResult {
                channel: reader.u32("channel")?,
                open_id: open_id(reader)?,
                status: status_from_wire(reader.u32("status")?),
            },
            8 => Self::Close {
                channel: reader.u32("channel")?,
                open_id: open_id(reader)?,
                reason: Reason::from_wire(reader.u16("reason")?),
            },
            9 => Self::Closed { channel: reader.u32("channel")?, open_id: open_id(reader)? },
            10 => Self::Rescind { channel: reader.u32("channel")?, reason: Reason::from_wire(reader.u16("reason")?) },
            11 => Self::Released { channel: reader.u32("channel")? },
            12 => Self::Unload,
            13 => Self::Unloaded,
            14 => Self::Ping { cookie: reader.u64("cookie")? },
            15 => Self::Pong { cookie: reader.u64("cookie")? },
            16 => Self::Subchannel { channel: reader.u32("channel")?, count: reader.u16("count of channels")? },
            17 => Self::SurfaceGrant(SurfaceGrant::decode(reader)?),
            18 => Self::SurfaceRevoke { channel: reader.u32("channel")?, surface: reader.u32("surface")? },
            19 => Self::SurfaceRevoked { channel: reader.u32("channel")?, surface: reader.u32("surface")? },
            20 => Self::Error {
                code: ErrorCode::from_wire(reader.u32("code")?),
                ref_txid: reader.u64("txid of the cause")?,
                text: {
                    let length = usize::from(reader.u16("length of the text")?);
                    reader.text(length, MAX_ERROR_TEXT, "text of the error")?.to_owned()
                },
            },
            21 => Self::Pause,
            22 => Self::Resume,
            23 => Self::Paused,
            24 => Self::Attach { region_nonce: reader.u64("region nonce")?, guest_nonce: reader.u64("guest nonce")? },
            25 => Self::AttachResult { status: status_from_wire(reader.u32("status")?) },
            _ => return Ok(None),
        }))
    }
}

fn header(reader: &mut Reader<'_>) -> Result<(u16, u16, u32, u64), Malformed> {
    let message_type = reader.u16("type of a control message")?;
    let flags = reader.u16("flags of a control message")?;
    let length = reader.u32("length of a control message")?;
    Ok((message_type, flags, length, reader.u64("txid")?))
}

fn open_id(reader: &mut Reader<'_>) -> Result<u32, Malformed> {
    match reader.u32("open id")? {
        0 => Err(Malformed::Value { what: "open id", value: 0 }),
        open_id => Ok(open_id),
    }
}

fn status_to_wire(status: Result<(), ErrorCode>) -> u32 {
    status.map_or_else(ErrorCode::to_wire, |()| 0)
}

fn status_from_wire(number: u32) -> Result<(), ErrorCode> {
    if number == 0 { Ok(()) } else { Err(ErrorCode::from_wire(number)) }
}

/// As much of `text` as `limit` bytes can hold.
fn shortened(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or(text)
}

#[cfg(test)]
mod tests;
