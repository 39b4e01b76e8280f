//! What a finished handshake knows about the client.

use std::fmt;

use console::Size;
use ironrdp_acceptor::Acceptor;
use ironrdp_pdu::gcc;
use ironrdp_pdu::nego::SecurityProtocol;
use ironrdp_pdu::rdp::capability_sets::CapabilitySet;

/// An active session's parameters, as negotiated.
#[non_exhaustive]
pub struct Handshake {
    /// The account that logged on.
    pub user: String,
    /// The machine it reached, by the name that [`Gatekeeper::authorise`](super::Gatekeeper::authorise) gave.
    pub vm: String,
    /// Whether the pre-connection blob asked for an enhanced session.
    pub enhanced: bool,
    /// The security protocol in effect: `SSL`, `HYBRID` or `HYBRID_EX`.
    pub protocol: SecurityProtocol,
    /// What the client said about itself before the capability exchange.
    pub client: ClientData,
    /// The desktop size that the capability exchange announced: the client's wish within the limits.
    pub desktop_size: Size,
    /// The client's capability sets, from its Confirm Active PDU.
    pub capabilities: Vec<CapabilitySet>,
    /// The static channels the client asked for, with the ids they were given, in the client's order.
    pub static_channels: Vec<(String, u16)>,
    /// The client's MCS user channel.
    pub user_channel_id: u16,
    /// The I/O channel.
    pub io_channel_id: u16,
    /// The MCS message channel, when the client asked for one.
    pub message_channel_id: Option<u16>,
    /// Whole PDUs that arrived while the connection was being finalized and belong to the session.
    pub input_events: Vec<Vec<u8>>,
    /// What a [`Reactivation`](super::Reactivation) continues from; none while one is running.
    pub(super) acceptor: Option<Box<Acceptor>>,
}

impl Handshake {
    pub(super) fn take_acceptor(&mut self) -> Option<Acceptor> {
        self.acceptor.take().map(|acceptor| *acceptor)
    }

    pub(super) fn park_acceptor(&mut self, acceptor: Acceptor) {
        self.acceptor = Some(Box::new(acceptor));
    }

    /// The id of a static channel, by name, without regard to case.
    #[must_use]
    pub fn channel_id(&self, name: &str) -> Option<u16> {
        self.static_channels.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, id)| *id)
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake")
            .field("user", &self.user)
            .field("vm", &self.vm)
            .field("protocol", &self.protocol)
            .field("client", &self.client)
            .field("desktop_size", &self.desktop_size)
            .field("static_channels", &self.static_channels)
            .finish_non_exhaustive()
    }
}

/// What a client says about itself in its MCS Connect Initial and Client Info PDUs. None of it is proven.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClientData {
    /// The client computer's name.
    pub name: String,
    /// Build number of the client program.
    pub build: u32,
    /// The desktop size it asked for, unlimited.
    pub requested_size: Size,
    /// Bits per pixel it asked for: 8, 15, 16, 24 or 32.
    pub color_depth: u8,
    /// Active input locale identifier; 0 when not said.
    pub keyboard_layout: u32,
    /// Optional features it announced.
    pub early_capability_flags: gcc::ClientEarlyCapabilityFlags,
    /// Its monitors, in its own coordinates; empty when it has one and did not say more.
    pub monitors: Vec<gcc::Monitor>,
    /// Size of its screen in millimetres, when it said so.
    pub physical_size: Option<Size>,
    /// Its scale factor in percent, when it said so.
    pub desktop_scale_factor: Option<u32>,
}
