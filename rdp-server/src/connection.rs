//! A session after its handshake: the client's PDUs become events, the server's intentions become PDUs.
//!
//! No I/O, no clock, no picture: graphics has its own core ([`crate::graphics`]), to which the events lead, and
//! its output is put into envelopes by [`frame_graphics_message`].
//!
//! ```text
//!            handle_frame                      poll_event
//!  client ───────────────▶  Connection  ───────────────────▶  session
//!         ◀───────────────              ◀───────────────────
//!            poll_output              deny_shutdown, disconnect, …
//! ```

mod touch;

use std::collections::VecDeque;

use console::{Rect, Size};
use ironrdp_core::decode;
use ironrdp_pdu::gcc::ClientEarlyCapabilityFlags;
use ironrdp_pdu::geometry::InclusiveRectangle;
use ironrdp_pdu::mcs::{McsMessage, SendDataRequest};
use ironrdp_pdu::rdp::headers::{ShareControlHeader, ShareControlPdu, ShareDataPdu};
use ironrdp_pdu::rdp::server_error_info::{ErrorInfo, ProtocolIndependentCode, RdpSpecificCode, ServerSetErrorInfoPdu};
use ironrdp_pdu::x224::X224;
use thiserror::Error;

use crate::accept::Handshake;
use crate::channels::display_control;
use crate::channels::dynamic::{DynamicChannelId, DynamicChannels, DynamicError, DynamicEvent, for_each_data_pdu};
use crate::channels::mcs;
use crate::channels::static_channel::{ChunkError, Reassembly, encode_message};
use crate::input::{self, InputError, InputEvent};

use touch::Touch;

/// Name of the graphics pipeline's dynamic channel (MS-RDPEGFX 2.1).
pub const GRAPHICS_CHANNEL_NAME: &str = "Microsoft::Windows::RDS::Graphics";

/// What the handshake found out that the session needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionConfig {
    /// The MCS channel of share PDUs.
    pub io_channel_id: u16,
    /// The MCS channel of auto-detection, heartbeats and multitransport, if the client asked for one.
    pub message_channel_id: Option<u16>,
    /// The static channel of DRDYNVC, if the client has it.
    pub dynamic_channel_id: Option<u16>,
    /// The client takes the graphics pipeline (RNS_UD_CS_SUPPORT_DYNVC_GFX_PROTOCOL, MS-RDPBCGR 2.2.1.3.2).
    pub graphics_pipeline: bool,
    /// The client's desktop; [`Connection::set_desktop`] tells another.
    pub desktop_size: Size,
}

impl From<&Handshake> for ConnectionConfig {
    fn from(handshake: &Handshake) -> Self {
        let early = handshake.client.early_capability_flags;
        Self {
            io_channel_id: handshake.io_channel_id,
            message_channel_id: handshake.message_channel_id,
            dynamic_channel_id: handshake.channel_id("drdynvc"),
            graphics_pipeline: early.contains(ClientEarlyCapabilityFlags::SUPPORT_DYN_VC_GFX_PROTOCOL),
            desktop_size: handshake.desktop_size,
        }
    }
}

/// Something that the client did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Keyboard, pointer, fingers or pen.
    Input(InputEvent),
    /// The client wants its monitor in this size.
    WantedSize(Size),
    /// The graphics channel is open; its messages go to this address.
    GraphicsOpened(GraphicsAddress),
    /// The client has no graphics channel, or no longer.
    GraphicsClosed,
    /// A message on the graphics channel.
    GraphicsMessage(Vec<u8>),
    /// A frame sent outside the graphics channel was shown (MS-RDPRFX 2.2.3.1).
    FrameAcknowledged(u32),
    /// A part of the picture is to be sent again.
    Refresh(Rect),
    /// Nobody looks (`true`), or somebody looks again (`false`).
    SuppressOutput(bool),
    /// Part of a Deactivation-Reactivation: the whole PDU, for the acceptor.
    Reactivation(Vec<u8>),
    /// The client wants to end the session.
    ShutdownRequested,
    /// The client has left.
    Left,
}

/// Where the messages of the graphics channel go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphicsAddress {
    static_channel_id: u16,
    channel: DynamicChannelId,
}

/// Why the server ends a session; the client shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// The gateway stops.
    ServerShutdown,
    /// An administrator ended the session, or took its machine away.
    EndedByAdministrator,
    /// The user may not use this machine (any more).
    NotAllowed,
    /// The client broke the protocol.
    BadClient,
}

/// The client broke the protocol; the session ends.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConnectionError {
    /// Keyboard or pointer input.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A chunk of the DRDYNVC channel.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// DRDYNVC itself.
    #[error(transparent)]
    Dynamic(#[from] DynamicError),
    /// A PDU that does not decode.
    #[error("{what} does not decode: {error}")]
    Malformed {
        /// Which layer.
        what: &'static str,
        /// What the decoder says.
        error: String,
    },
    /// A PDU that only a server sends, or one of another phase of the connection.
    #[error("{0} is not for an established session")]
    Unexpected(String),
}

/// The protocol state of an established session.
#[derive(Debug)]
pub struct Connection {
    config: ConnectionConfig,
    chunks: Reassembly,
    dynamic: DynamicChannels,
    graphics: Option<DynamicChannelId>,
    display_control: Option<DynamicChannelId>,
    touch: Touch,
    reactivating: bool,
    events: VecDeque<Event>,
    output: VecDeque<Vec<u8>>,
}

impl Connection {
    /// The session that follows a handshake. Its first output starts the dynamic channels.
    #[must_use]
    pub fn new(config: ConnectionConfig) -> Self {
        let mut connection = Self {
            chunks: Reassembly::new(crate::channels::dynamic::MAX_CLIENT_MESSAGE),
            dynamic: DynamicChannels::new(),
            graphics: None,
            display_control: None,
            touch: Touch::new(config.desktop_size),
            reactivating: false,
            events: VecDeque::new(),
            output: VecDeque::new(),
            config,
        };
        match connection.config.dynamic_channel_id {
            Some(_) => connection.send_dynamic(&connection.dynamic.capabilities_request()),
            None => connection.events.push_back(Event::GraphicsClosed),
        }
        connection
    }

    /// Takes one whole PDU of the client, fast-path or TPKT.
    ///
    /// # Errors
    ///
    /// When the client breaks the protocol: say [`Farewell::BadClient`] and close.
    pub fn handle_frame(&mut self, pdu: &[u8]) -> Result<(), ConnectionError> {
        // MS-RDPBCGR 2.2.8.1.2: a TPKT starts with its version, 3; the low two bits of fast-path input are 0.
        if pdu.first() == Some(&3) {
            return self.handle_tpkt(pdu);
        }
        let events = &mut self.events;
        Ok(input::decode_fast_path(pdu, |event| events.push_back(Event::Input(event)))?)
    }

    /// What the client did, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What to send to the client, oldest first: whole PDUs.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.output.pop_front()
    }

    /// While set, share PDUs of the capability exchange come out as [`Event::Reactivation`].
    pub fn set_reactivating(&mut self, reactivating: bool) {
        self.reactivating = reactivating;
    }

    /// Answers [`Event::ShutdownRequested`]: the client then asks its user and leaves by itself
    /// (MS-RDPBCGR 1.3.1.4.1).
    pub fn deny_shutdown(&mut self) {
        self.send_share_data(ShareDataPdu::ShutdownDenied);
    }

    /// Ends the session with a reason that the client shows (MS-RDPBCGR 2.2.5.1.1). Close after the output is sent.
    pub fn disconnect(&mut self, farewell: Farewell) {
        // Whether or not the client announced that it shows reasons: FreeRDP does the one without the other.
        let info = match farewell {
            // Not SERVER_SHUTDOWN (0x19), which FreeRDP shows as an unknown error.
            Farewell::ServerShutdown | Farewell::EndedByAdministrator => {
                ErrorInfo::ProtocolIndependentCode(ProtocolIndependentCode::RpcInitiatedDisconnect)
            }
            Farewell::NotAllowed => {
                ErrorInfo::ProtocolIndependentCode(ProtocolIndependentCode::ServerInsufficientPrivileges)
            }
            Farewell::BadClient => ErrorInfo::RdpSpecificCode(RdpSpecificCode::UnknownPduType),
        };
        self.send_share_data(ShareDataPdu::ServerSetErrorInfo(ServerSetErrorInfoPdu(info)));
        self.output.push_back(mcs::encode_disconnect().expect("a PDU of constant shape encodes"));
    }

    fn handle_tpkt(&mut self, pdu: &[u8]) -> Result<(), ConnectionError> {
        let X224(message) = decode::<X224<McsMessage<'_>>>(pdu).map_err(malformed("MCS PDU"))?;
        match message {
            McsMessage::SendDataRequest(data) => self.handle_data(&data, pdu),
            McsMessage::DisconnectProviderUltimatum(_) => {
                self.events.push_back(Event::Left);
                Ok(())
            }
            other => Err(ConnectionError::Unexpected(mcs_name(&other).to_owned())),
        }
    }

    fn handle_data(&mut self, data: &SendDataRequest<'_>, pdu: &[u8]) -> Result<(), ConnectionError> {
        if data.channel_id == self.config.io_channel_id {
            self.handle_share(&data.user_data, pdu)
        } else if Some(data.channel_id) == self.config.dynamic_channel_id {
            match self.chunks.handle_chunk(&data.user_data)? {
                Some(message) => self.handle_dynamic(&message),
                None => Ok(()),
            }
        } else {
            // Other channels have no owner yet, and clients announce some of them unasked.
            Ok(())
        }
    }

    fn handle_share(&mut self, user_data: &[u8], pdu: &[u8]) -> Result<(), ConnectionError> {
        let header: ShareControlHeader = decode(user_data).map_err(malformed("share control PDU"))?;
        let data = match header.share_control_pdu {
            ShareControlPdu::Data(data) => data.share_data_pdu,
            ShareControlPdu::ClientConfirmActive(_) if self.reactivating => {
                self.events.push_back(Event::Reactivation(pdu.to_vec()));
                return Ok(());
            }
            other => return Err(ConnectionError::Unexpected(other.as_short_name().to_owned())),
        };
        let event = match data {
            ShareDataPdu::Synchronize(_) | ShareDataPdu::Control(_) | ShareDataPdu::FontList(_)
                if self.reactivating =>
            {
                Event::Reactivation(pdu.to_vec())
            }
            ShareDataPdu::Input(events) => {
                input::slow_path_events(&events, |event| self.events.push_back(Event::Input(event)));
                return Ok(());
            }
            ShareDataPdu::FrameAcknowledge(acknowledge) => Event::FrameAcknowledged(acknowledge.frame_id),
            ShareDataPdu::SuppressOutput(suppress) => {
                let suppressed = suppress.desktop_rect.is_none();
                if suppressed {
                    // A window that is not to be seen is not touched, and its client may not say so.
                    self.cancel_touch();
                }
                Event::SuppressOutput(suppressed)
            }
            ShareDataPdu::RefreshRectangle(refresh) => {
                self.events.extend(refresh.areas_to_refresh.iter().filter_map(rect).map(Event::Refresh));
                return Ok(());
            }
            ShareDataPdu::ShutdownRequest => Event::ShutdownRequested,
            // A late or repeated part of the connection's end, and reports on drawing orders that we never send.
            ShareDataPdu::Synchronize(_)
            | ShareDataPdu::Control(_)
            | ShareDataPdu::FontList(_)
            | ShareDataPdu::BitmapCachePersistentList(_)
            | ShareDataPdu::BitmapCacheErrorPdu(_)
            | ShareDataPdu::OffscreenCacheErrorPdu(_)
            | ShareDataPdu::DrawNineGridErrorPdu(_)
            | ShareDataPdu::DrawGdiPusErrorPdu(_) => return Ok(()),
            other => return Err(ConnectionError::Unexpected(other.as_short_name().to_owned())),
        };
        self.events.push_back(event);
        Ok(())
    }

    fn handle_dynamic(&mut self, message: &[u8]) -> Result<(), ConnectionError> {
        match self.dynamic.handle_pdu(message)? {
            None => {}
            Some(DynamicEvent::Ready) => self.open_channels(),
            Some(DynamicEvent::Opened(id)) => self.handle_opened(id),
            Some(DynamicEvent::Closed(id)) => self.handle_closed(id),
            Some(DynamicEvent::Message(id, message)) => self.handle_message(id, message),
        }
        Ok(())
    }

    fn handle_opened(&mut self, id: DynamicChannelId) {
        if Some(id) == self.display_control {
            self.send_dynamic_data(id, &display_control::capabilities());
        } else if let (Some(static_channel_id), true) = (self.config.dynamic_channel_id, Some(id) == self.graphics) {
            self.events.push_back(Event::GraphicsOpened(GraphicsAddress { static_channel_id, channel: id }));
        } else if self.touch.is(id) {
            self.touch_opened();
        }
    }

    /// A message that breaks its channel's rules costs the client that channel.
    fn handle_message(&mut self, id: DynamicChannelId, message: Vec<u8>) {
        if Some(id) == self.graphics {
            self.events.push_back(Event::GraphicsMessage(message));
        } else if Some(id) == self.display_control {
            match display_control::wanted_size(&message) {
                Ok(Some(size)) => self.events.push_back(Event::WantedSize(size)),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "display control channel closed");
                    self.close_channel(id);
                }
            }
        } else if self.touch.is(id)
            && let Err(error) = self.handle_touch(&message)
        {
            tracing::debug!(%error, "touch channel closed");
            self.close_channel(id);
        }
    }

    fn open_channels(&mut self) {
        if self.config.graphics_pipeline {
            let (id, request) = self.dynamic.open(GRAPHICS_CHANNEL_NAME);
            self.graphics = Some(id);
            self.send_dynamic(&request);
        } else {
            self.events.push_back(Event::GraphicsClosed);
        }
        let (id, request) = self.dynamic.open(display_control::CHANNEL_NAME);
        self.display_control = Some(id);
        self.send_dynamic(&request);
        self.offer_touch();
    }

    /// Closes the graphics channel from our side, after its messages broke MS-RDPEGFX.
    pub fn close_graphics(&mut self) {
        if let Some(id) = self.graphics {
            self.close_channel(id);
        }
    }

    fn close_channel(&mut self, id: DynamicChannelId) {
        let close = self.dynamic.close(id);
        self.send_dynamic(&close);
        self.handle_closed(id);
    }

    fn handle_closed(&mut self, id: DynamicChannelId) {
        if self.graphics == Some(id) {
            self.graphics = None;
            self.events.push_back(Event::GraphicsClosed);
        } else if self.display_control == Some(id) {
            self.display_control = None;
        } else if self.touch.is(id) {
            self.touch_closed();
        }
    }

    fn send_dynamic_data(&mut self, id: DynamicChannelId, message: &[u8]) {
        let mut pdus = Vec::new();
        for_each_data_pdu(id, message, |pdu| pdus.push(pdu.to_vec()));
        for pdu in pdus {
            self.send_dynamic(&pdu);
        }
    }

    fn send_dynamic(&mut self, pdu: &[u8]) {
        if let Some(channel_id) = self.config.dynamic_channel_id {
            let mut out = Vec::new();
            encode_message(&mut out, channel_id, pdu);
            self.output.push_back(out);
        }
    }

    fn send_share_data(&mut self, pdu: ShareDataPdu) {
        let encoded = mcs::encode_share_data(self.config.io_channel_id, pdu);
        self.output.push_back(encoded.expect("a PDU of constant shape encodes"));
    }
}

/// Puts a message of the graphics channel into its envelopes: what goes on the wire.
#[must_use]
pub fn frame_graphics_message(address: GraphicsAddress, message: &[u8]) -> Vec<u8> {
    // An envelope, a chunk header and a data PDU header for each 1600 bytes come to about 2 %.
    let mut out = Vec::with_capacity(message.len() + message.len() / 48 + 48);
    for_each_data_pdu(address.channel, message, |pdu| encode_message(&mut out, address.static_channel_id, pdu));
    out
}

fn rect(area: &InclusiveRectangle) -> Option<Rect> {
    let width = u32::from(area.right).checked_sub(area.left.into())? + 1;
    let height = u32::from(area.bottom).checked_sub(area.top.into())? + 1;
    Some(Rect::new(area.left.into(), area.top.into(), width, height))
}

fn malformed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> ConnectionError {
    move |error| ConnectionError::Malformed { what, error: error.to_string() }
}

fn mcs_name(message: &McsMessage<'_>) -> &'static str {
    match message {
        McsMessage::ErectDomainRequest(_) => "MCS erect domain request",
        McsMessage::AttachUserRequest(_) => "MCS attach user request",
        McsMessage::AttachUserConfirm(_) => "MCS attach user confirm",
        McsMessage::ChannelJoinRequest(_) => "MCS channel join request",
        McsMessage::ChannelJoinConfirm(_) => "MCS channel join confirm",
        McsMessage::SendDataIndication(_) => "MCS send data indication",
        McsMessage::SendDataRequest(_) => "MCS send data request",
        McsMessage::DisconnectProviderUltimatum(_) => "MCS disconnect provider ultimatum",
    }
}

#[cfg(test)]
mod tests;
