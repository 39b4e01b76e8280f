//! Dynamic virtual channels (MS-RDPEDYC), server side, without the static channel below them.
//!
//! ```text
//!  start ─▶ capabilities sent ──capabilities response──▶ ready
//!  channel:  Requested ──status ≥ 0──▶ Open ──close (either side)──▶ gone
//!                 └──────status < 0──▶ gone
//! ```
//! A client that misuses one channel loses that channel; one that breaks DRDYNVC itself, the session.

use ironrdp_core::{Decode as _, ReadCursor, encode_vec};
use ironrdp_dvc::pdu::{
    CapabilitiesRequestPdu, CapsVersion, ClosePdu, CreateRequestPdu, DrdynvcClientPdu, DrdynvcDataPdu, DrdynvcServerPdu,
};
use thiserror::Error;

/// Longest message that a client may send on one dynamic channel, in bytes: a cache import offer of the
/// graphics channel with its 5462 entries (MS-RDPEGFX 2.2.2.16) is the longest there is.
pub const MAX_CLIENT_MESSAGE: usize = 80 * 1024;
/// Longest DRDYNVC PDU, header included (MS-RDPEDYC 2.2.3.1).
const MAX_PDU: usize = 1600;

/// A dynamic channel's number, unique within its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DynamicChannelId(u8);

impl From<DynamicChannelId> for u32 {
    fn from(id: DynamicChannelId) -> Self {
        id.0.into()
    }
}

/// The client broke DRDYNVC itself.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DynamicError {
    /// Not a PDU that a client sends.
    #[error("DRDYNVC PDU is malformed: {0}")]
    Malformed(String),
    /// A PDU before the capabilities response, or a second response.
    #[error("DRDYNVC PDU is out of sequence")]
    OutOfSequence,
}

/// Something that happened on a dynamic channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DynamicEvent {
    /// The client takes channels now: open those wanted.
    Ready,
    /// The client accepted a channel.
    Opened(DynamicChannelId),
    /// The client refused a channel, or one of the sides closed it.
    Closed(DynamicChannelId),
    /// A whole message.
    Message(DynamicChannelId, Vec<u8>),
}

#[derive(Debug)]
struct Channel {
    id: DynamicChannelId,
    open: bool,
    /// Bytes that the message in progress will have; 0 between messages.
    announced: usize,
    message: Vec<u8>,
}

/// The dynamic channels of one session.
#[derive(Debug, Default)]
pub struct DynamicChannels {
    ready: bool,
    next_id: u8,
    channels: Vec<Channel>,
}

impl DynamicChannels {
    /// No channel yet; send [`capabilities_request`](Self::capabilities_request) first.
    #[must_use]
    pub fn new() -> Self {
        Self { ready: false, next_id: 1, channels: Vec::new() }
    }

    /// The PDU that starts DRDYNVC (MS-RDPEDYC 2.2.1.1.2): version 2, without priority charges.
    #[must_use]
    pub fn capabilities_request(&self) -> Vec<u8> {
        encode(&DrdynvcServerPdu::Capabilities(CapabilitiesRequestPdu::new(CapsVersion::V2, None)))
    }

    /// Whether the client takes channels.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.ready
    }

    /// Opens a channel by name: its id, and the PDU that asks the client for it.
    ///
    /// # Panics
    ///
    /// After 255 channels in one session: ours opens a handful.
    pub fn open(&mut self, name: &str) -> (DynamicChannelId, Vec<u8>) {
        let id = DynamicChannelId(self.next_id);
        self.next_id = self.next_id.checked_add(1).expect("a session opens a handful of channels");
        self.channels.push(Channel { id, open: false, announced: 0, message: Vec::new() });
        (id, encode(&DrdynvcServerPdu::Create(CreateRequestPdu::new(id.into(), name.to_owned()))))
    }

    /// Closes a channel from our side: the PDU that tells the client.
    pub fn close(&mut self, id: DynamicChannelId) -> Vec<u8> {
        self.channels.retain(|channel| channel.id != id);
        encode(&DrdynvcServerPdu::Close(ClosePdu::new(id.into())))
    }

    /// Takes one PDU of the client; gives what happened, if anything.
    ///
    /// A message that breaks the channel's own rules closes that channel: the answer is
    /// [`DynamicEvent::Closed`], and [`close`](Self::close) is still to be sent.
    ///
    /// # Errors
    ///
    /// When the client breaks DRDYNVC itself.
    pub fn handle_pdu(&mut self, pdu: &[u8]) -> Result<Option<DynamicEvent>, DynamicError> {
        let decoded = DrdynvcClientPdu::decode(&mut ReadCursor::new(pdu));
        match decoded.map_err(|error| DynamicError::Malformed(error.to_string()))? {
            DrdynvcClientPdu::Capabilities(_) if self.ready => Err(DynamicError::OutOfSequence),
            DrdynvcClientPdu::Capabilities(_) => {
                self.ready = true;
                Ok(Some(DynamicEvent::Ready))
            }
            _ if !self.ready => Err(DynamicError::OutOfSequence),
            DrdynvcClientPdu::Create(response) => {
                // An HRESULT: the upper half are failures.
                let accepted = u32::from(response.creation_status()) < 0x8000_0000;
                let Some(at) = self.position(response.channel_id()) else {
                    return Ok(None);
                };
                if self.channels[at].open {
                    return Err(DynamicError::OutOfSequence);
                }
                let id = self.channels[at].id;
                if accepted {
                    self.channels[at].open = true;
                    return Ok(Some(DynamicEvent::Opened(id)));
                }
                self.channels.remove(at);
                Ok(Some(DynamicEvent::Closed(id)))
            }
            DrdynvcClientPdu::Close(close) => {
                let Some(at) = self.position(close.channel_id()) else {
                    return Ok(None);
                };
                Ok(Some(DynamicEvent::Closed(self.channels.remove(at).id)))
            }
            DrdynvcClientPdu::Data(data) => Ok(self.handle_data(data)),
            // An answer to a soft-sync request, which we never send.
            _ => Err(DynamicError::OutOfSequence),
        }
    }

    fn position(&self, id: u32) -> Option<usize> {
        self.channels.iter().position(|channel| u32::from(channel.id) == id)
    }

    /// Data for a channel that is gone is a race that every client can lose: it is dropped.
    fn handle_data(&mut self, data: DrdynvcDataPdu) -> Option<DynamicEvent> {
        let channel = self.channels.iter_mut().find(|channel| u32::from(channel.id) == data.channel_id())?;
        let id = channel.id;
        let message = match data {
            _ if !channel.open => Err(()),
            DrdynvcDataPdu::DataFirst(first) => channel.begin(first.length() as usize, first.into_data()),
            DrdynvcDataPdu::Data(data) => channel.go_on(data.into_data()),
            // Compression (version 3, which we do not announce), or a kind that this library will know some day.
            _ => Err(()),
        };
        match message {
            Ok(message) => message.map(|message| DynamicEvent::Message(id, message)),
            Err(()) => {
                self.channels.retain(|channel| channel.id != id);
                Some(DynamicEvent::Closed(id))
            }
        }
    }
}

impl Channel {
    fn begin(&mut self, announced: usize, data: Vec<u8>) -> Result<Option<Vec<u8>>, ()> {
        if self.announced != 0 || announced > MAX_CLIENT_MESSAGE || data.len() > announced {
            return Err(());
        }
        if data.len() == announced {
            return Ok(Some(data));
        }
        self.announced = announced;
        self.message = data;
        Ok(None)
    }

    fn go_on(&mut self, data: Vec<u8>) -> Result<Option<Vec<u8>>, ()> {
        if self.announced == 0 {
            return Ok(Some(data));
        }
        if self.message.len() + data.len() > self.announced {
            return Err(());
        }
        self.message.extend_from_slice(&data);
        if self.message.len() < self.announced {
            return Ok(None);
        }
        self.announced = 0;
        Ok(Some(std::mem::take(&mut self.message)))
    }
}

/// Cuts `message` into the data PDUs of a channel (MS-RDPEDYC 2.2.3.1, 2.2.3.2) and gives each to `each`.
///
/// Written by hand, in one reused buffer: every picture passes through here.
pub fn for_each_data_pdu(id: DynamicChannelId, message: &[u8], mut each: impl FnMut(&[u8])) {
    const DATA_FIRST: u8 = 2 << 4;
    const DATA: u8 = 3 << 4;
    let mut pdu = Vec::with_capacity(MAX_PDU.min(message.len() + 2));
    let mut rest = message;
    pdu.extend_from_slice(&[DATA, id.0]);
    if message.len() > MAX_PDU - pdu.len() {
        pdu.clear();
        let length = u32::try_from(message.len()).expect("our own messages are far below 4 GiB");
        // The two bits of `Len` say how long the length field is: 1, 2 or 4 bytes.
        match u16::try_from(length) {
            Ok(length) => {
                pdu.extend_from_slice(&[DATA_FIRST | 1 << 2, id.0]);
                pdu.extend_from_slice(&length.to_le_bytes());
            }
            Err(_) => {
                pdu.extend_from_slice(&[DATA_FIRST | 2 << 2, id.0]);
                pdu.extend_from_slice(&length.to_le_bytes());
            }
        }
    }
    loop {
        let (data, after) = rest.split_at(rest.len().min(MAX_PDU - pdu.len()));
        pdu.extend_from_slice(data);
        each(&pdu);
        if after.is_empty() {
            return;
        }
        rest = after;
        pdu.clear();
        pdu.extend_from_slice(&[DATA, id.0]);
    }
}

fn encode(pdu: &DrdynvcServerPdu) -> Vec<u8> {
    encode_vec(pdu).expect("a PDU of constant shape encodes")
}

#[cfg(test)]
mod tests {
    use ironrdp_dvc::pdu::{CapabilitiesResponsePdu, CreateResponsePdu, CreationStatus, DataFirstPdu, DataPdu};
    use proptest::prelude::*;

    use super::*;

    fn client(pdu: DrdynvcClientPdu) -> Vec<u8> {
        encode_vec(&pdu).unwrap()
    }

    fn opened() -> (DynamicChannels, DynamicChannelId) {
        let mut channels = DynamicChannels::new();
        let ready = client(DrdynvcClientPdu::Capabilities(CapabilitiesResponsePdu::new(CapsVersion::V2)));
        assert_eq!(channels.handle_pdu(&ready), Ok(Some(DynamicEvent::Ready)));
        let (id, _) = channels.open("test");
        let accept = client(DrdynvcClientPdu::Create(CreateResponsePdu::new(id.into(), CreationStatus::OK)));
        assert_eq!(channels.handle_pdu(&accept), Ok(Some(DynamicEvent::Opened(id))));
        (channels, id)
    }

    #[test]
    fn a_channel_opens_carries_messages_and_closes() {
        let (mut channels, id) = opened();
        let whole = client(DrdynvcClientPdu::Data(DrdynvcDataPdu::Data(DataPdu::new(id.into(), b"hi".to_vec()))));
        assert_eq!(channels.handle_pdu(&whole), Ok(Some(DynamicEvent::Message(id, b"hi".to_vec()))));
        let first = DataFirstPdu::new(id.into(), 4, b"ab".to_vec());
        let first = client(DrdynvcClientPdu::Data(DrdynvcDataPdu::DataFirst(first)));
        assert_eq!(channels.handle_pdu(&first), Ok(None));
        let last = client(DrdynvcClientPdu::Data(DrdynvcDataPdu::Data(DataPdu::new(id.into(), b"cd".to_vec()))));
        assert_eq!(channels.handle_pdu(&last), Ok(Some(DynamicEvent::Message(id, b"abcd".to_vec()))));
        let close = client(DrdynvcClientPdu::Close(ClosePdu::new(id.into())));
        assert_eq!(channels.handle_pdu(&close), Ok(Some(DynamicEvent::Closed(id))));
        assert_eq!(channels.handle_pdu(&whole), Ok(None));
    }

    #[test]
    fn a_message_that_is_too_long_closes_its_channel_only() {
        let (mut channels, id) = opened();
        let first = DataFirstPdu::new(id.into(), MAX_CLIENT_MESSAGE as u32 + 1, b"ab".to_vec());
        let first = client(DrdynvcClientPdu::Data(DrdynvcDataPdu::DataFirst(first)));
        assert_eq!(channels.handle_pdu(&first), Ok(Some(DynamicEvent::Closed(id))));
    }

    #[test]
    fn nothing_is_taken_before_the_capabilities() {
        let mut channels = DynamicChannels::new();
        let close = client(DrdynvcClientPdu::Close(ClosePdu::new(1)));
        assert_eq!(channels.handle_pdu(&close), Err(DynamicError::OutOfSequence));
    }

    proptest! {
        #[test]
        fn data_pdus_are_short_and_hold_the_message(length in 0usize..200_000) {
            let (_, id) = opened();
            let message: Vec<u8> = (0..length).map(|i| (i % 253) as u8).collect();
            let mut back = Vec::new();
            let mut announced = None;
            for_each_data_pdu(id, &message, |pdu| {
                assert!(pdu.len() <= MAX_PDU);
                match DrdynvcServerPdu::decode(&mut ReadCursor::new(pdu)).unwrap() {
                    DrdynvcServerPdu::Data(DrdynvcDataPdu::DataFirst(first)) => {
                        announced = Some(first.length() as usize);
                        back.extend(first.into_data());
                    }
                    DrdynvcServerPdu::Data(DrdynvcDataPdu::Data(data)) => back.extend(data.into_data()),
                    other => panic!("{other:?}"),
                }
            });
            prop_assert_eq!(&back, &message);
            prop_assert!(announced.is_none_or(|length| length == message.len()));
            prop_assert_eq!(announced.is_some(), length > MAX_PDU - 2);
        }

        #[test]
        fn any_bytes_end_in_an_event_or_an_error(pdus in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..64), 0..20)) {
            let (mut channels, _) = opened();
            for pdu in pdus {
                let _ = channels.handle_pdu(&pdu);
            }
        }
    }
}
