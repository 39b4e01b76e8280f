//! From MCS Connect Initial to an active session: a strict driver around `ironrdp-acceptor`.
//!
//! The acceptor is started here, after negotiation, TLS and CredSSP, with a connection request made up from what
//! was negotiated. It takes some PDUs for others and leaves early bytes unflushed; so each PDU is looked at before
//! it is passed on, and refused when it is not the one that is due.
//!
//! ```text
//! connect ─▶ Joining ─▶ credentials ─▶ permit ─▶ Confirming ─▶ Finalizing (4 PDUs) ─▶ active
//!                                   └▶ deny
//! ```

use console::Size;
use ironrdp_acceptor::{Acceptor, AcceptorState, DesktopSize};
use ironrdp_connector::Sequence as _;
use ironrdp_core::{WriteBuf, decode, encode_vec};
use ironrdp_pdu::mcs::SendDataRequest;
use ironrdp_pdu::nego::{ConnectionRequest, RequestFlags, SecurityProtocol};
use ironrdp_pdu::rdp::ClientInfoPdu;
use ironrdp_pdu::rdp::capability_sets::CapabilitySet;
use ironrdp_pdu::rdp::client_info::Credentials;
use ironrdp_pdu::rdp::headers::ShareDataPdu;
use ironrdp_pdu::rdp::server_error_info::{ErrorInfo, ProtocolIndependentCode, ServerSetErrorInfoPdu};
use ironrdp_pdu::x224::X224;

use super::capabilities::capabilities;
use super::client_data::{self, ConnectData};
use super::handshake::ClientData;
use super::pdu_kind::{PduKind, pdu_kind};
use crate::channels::mcs::{encode_disconnect, encode_share_data};
use crate::front::Frame;

/// The acceptor's fixed ids.
pub(super) const USER_CHANNEL_ID: u16 = 1002;
pub(super) const IO_CHANNEL_ID: u16 = 1003;

/// Frames of the session that may come before the handshake has ended, and their bytes in all.
const MAX_EARLY_FRAMES: usize = 64;
const MAX_EARLY_BYTES: usize = 64 * 1024;

/// Steps of the acceptor without input, in a row: the connection sequence has no ten in a row.
const MAX_SILENT_STEPS: usize = 32;

/// What negotiation settled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Negotiated {
    pub(super) requested: SecurityProtocol,
    pub(super) selected: SecurityProtocol,
}

/// Why a PDU ends the connection.
#[derive(Debug)]
pub(super) enum Refusal {
    Misbehaved(String),
    Left,
}

fn misbehaved<T>(reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Misbehaved(reason.into()))
}

/// What comes of a PDU.
pub(super) enum Progress {
    /// The next one is due.
    Wait,
    /// Client Info came: [`Activation::permit`] or [`Activation::deny`] is due.
    Credentials(Credentials),
    /// The session is active.
    Active,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Joining,
    Judging,
    Confirming,
    Finalizing(PduKind),
    Active,
}

/// The sequence from the channel joins on.
pub(super) struct Activation {
    acceptor: Acceptor,
    phase: Phase,
    pub(super) client: ClientData,
    pub(super) desktop: Size,
    pub(super) static_channels: Vec<(String, u16)>,
    pub(super) message_channel_id: Option<u16>,
    early: Vec<Vec<u8>>,
    capabilities: Vec<CapabilitySet>,
}

impl Activation {
    /// Starts with the Connect Initial PDU. Appends the answer to `out`.
    pub(super) fn connect(
        pdu: &[u8],
        negotiated: Negotiated,
        max_desktop: Size,
        out: &mut Vec<u8>,
    ) -> Result<Self, Refusal> {
        let connect = client_data::read_connect(pdu).map_err(Refusal::Misbehaved)?;
        if connect.selected.is_some_and(|selected| selected != negotiated.selected) {
            return misbehaved("client believes in another security protocol than was selected");
        }
        let desktop = client_data::desktop_size(connect.client.requested_size, max_desktop);
        let acceptor = negotiated_acceptor(negotiated, desktop, connect.client.color_depth)?;
        let (static_channels, message_channel_id) = channel_ids(&connect);
        let mut activation = Self {
            acceptor,
            phase: Phase::Joining,
            client: connect.client,
            desktop,
            static_channels,
            message_channel_id,
            early: Vec::new(),
            capabilities: Vec::new(),
        };
        activation.step(pdu, out)?;
        activation.run(out)?;
        Ok(activation)
    }

    /// Takes one PDU. Appends what is to be sent to `out`, also when it fails.
    pub(super) fn handle_frame(&mut self, frame: &Frame, out: &mut Vec<u8>) -> Result<Progress, Refusal> {
        match self.phase {
            Phase::Joining => self.handle_join(frame, out),
            Phase::Judging => misbehaved("pdu while the password is being verified"),
            Phase::Confirming => self.handle_confirm(frame, out),
            Phase::Finalizing(due) => self.handle_finalization(frame, due, out),
            Phase::Active => misbehaved("pdu after the handshake"),
        }
    }

    /// The user may go on. Appends licence and Demand Active to `out`.
    pub(super) fn permit(&mut self, out: &mut Vec<u8>) -> Result<(), Refusal> {
        assert_eq!(self.phase, Phase::Judging, "permission follows credentials");
        self.phase = Phase::Confirming;
        self.run(out)
    }

    /// The user may not. Appends the reason and the end of the connection to `out`.
    ///
    /// The licence comes first, as Windows has it: FreeRDP understands no reason before it. The reason is sent also
    /// to clients that did not announce that they show it: FreeRDP does not announce it and shows it, and whoever
    /// does not know the PDU has the connection's end right behind it.
    pub(super) fn deny(mut self, out: &mut Vec<u8>) {
        // A licence that cannot be encoded spares the client nothing but the reason.
        let _ = self.step(&[], out);
        let reason = ErrorInfo::ProtocolIndependentCode(ProtocolIndependentCode::ServerInsufficientPrivileges);
        let reason = ShareDataPdu::ServerSetErrorInfo(ServerSetErrorInfoPdu(reason));
        out.extend(encode_share_data(IO_CHANNEL_ID, reason).unwrap_or_default());
        out.extend(encode_disconnect().unwrap_or_default());
    }

    /// Takes the active session apart: the acceptor for later, capabilities, early frames.
    pub(super) fn finish(mut self) -> (Acceptor, Vec<CapabilitySet>, Vec<Vec<u8>>) {
        self.early.retain(|frame| !frame.is_empty());
        (self.acceptor, self.capabilities, self.early)
    }

    fn handle_join(&mut self, frame: &Frame, out: &mut Vec<u8>) -> Result<Progress, Refusal> {
        let Frame::Tpkt(pdu) = frame else {
            return misbehaved("input before the handshake has ended");
        };
        let joined = !matches!(state(&self.acceptor), AcceptorState::ChannelConnection { .. });
        if joined {
            return self.handle_client_info(pdu, out);
        }
        self.step(pdu, out)?;
        self.run(out)?;
        Ok(Progress::Wait)
    }

    fn handle_client_info(&mut self, pdu: &[u8], out: &mut Vec<u8>) -> Result<Progress, Refusal> {
        let malformed = |error: ironrdp_core::DecodeError| Refusal::Misbehaved(error.to_string());
        let X224(data) = decode::<X224<SendDataRequest<'_>>>(pdu).map_err(malformed)?;
        if data.channel_id != IO_CHANNEL_ID {
            return misbehaved("channel data before client info");
        }
        let info: ClientInfoPdu = decode(&data.user_data).map_err(malformed)?;
        // The next step would be the licence: it waits for the verdict.
        self.step(pdu, out)?;
        self.phase = Phase::Judging;
        Ok(Progress::Credentials(info.client_info.credentials))
    }

    fn handle_confirm(&mut self, frame: &Frame, out: &mut Vec<u8>) -> Result<Progress, Refusal> {
        match self.kind(frame) {
            Some(PduKind::ConfirmActive) => {
                self.step(frame.bytes(), out)?;
                self.phase = Phase::Finalizing(PduKind::Synchronize);
                Ok(Progress::Wait)
            }
            Some(PduKind::MessageChannel) => Ok(Progress::Wait),
            Some(PduKind::Disconnect) => Err(Refusal::Left),
            other => misbehaved(format!("{other:?} instead of confirm active")),
        }
    }

    fn handle_finalization(&mut self, frame: &Frame, due: PduKind, out: &mut Vec<u8>) -> Result<Progress, Refusal> {
        let kind = self.kind(frame);
        let session_data = matches!(kind, None | Some(PduKind::OtherShareData | PduKind::ChannelData));
        match kind {
            Some(kind) if kind == due => self.finalize(frame, due, out),
            Some(PduKind::MessageChannel) => Ok(Progress::Wait),
            Some(PduKind::Disconnect) => Err(Refusal::Left),
            // With its last PDU underway a client may already send input and what its caches hold.
            _ if session_data && due == PduKind::FontList => self.keep(frame),
            other => misbehaved(format!("{other:?} instead of {due:?}")),
        }
    }

    fn finalize(&mut self, frame: &Frame, due: PduKind, out: &mut Vec<u8>) -> Result<Progress, Refusal> {
        self.step(frame.bytes(), out)?;
        self.phase = match due {
            PduKind::Synchronize => Phase::Finalizing(PduKind::Cooperate),
            PduKind::Cooperate => Phase::Finalizing(PduKind::RequestControl),
            PduKind::RequestControl => Phase::Finalizing(PduKind::FontList),
            _ => {
                self.run(out)?;
                let Some(result) = self.acceptor.get_result() else {
                    return misbehaved("handshake did not end with the font list");
                };
                self.capabilities = result.capabilities;
                self.phase = Phase::Active;
                return Ok(Progress::Active);
            }
        };
        Ok(Progress::Wait)
    }

    fn keep(&mut self, frame: &Frame) -> Result<Progress, Refusal> {
        let held: usize = self.early.iter().map(Vec::len).sum();
        if self.early.len() >= MAX_EARLY_FRAMES || held + frame.bytes().len() > MAX_EARLY_BYTES {
            return misbehaved("too much data before the handshake has ended");
        }
        self.early.push(frame.bytes().to_vec());
        Ok(Progress::Wait)
    }

    /// The kind of a TPKT PDU; none for fast-path input.
    fn kind(&self, frame: &Frame) -> Option<PduKind> {
        match frame {
            Frame::Tpkt(pdu) => Some(pdu_kind(pdu, IO_CHANNEL_ID, self.message_channel_id)),
            Frame::FastPath(_) => None,
        }
    }

    fn step(&mut self, pdu: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        step(&mut self.acceptor, pdu, out)
    }

    fn run(&mut self, out: &mut Vec<u8>) -> Result<(), Refusal> {
        run(&mut self.acceptor, out)
    }
}

/// One step of the acceptor. What it wrote before it failed counts too.
pub(super) fn step(acceptor: &mut Acceptor, pdu: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
    let mut buffer = WriteBuf::new();
    let stepped = acceptor.step(pdu, None, &mut buffer);
    out.extend_from_slice(buffer.filled());
    stepped.map(|_| ()).map_err(|error| Refusal::Misbehaved(error.report().to_string()))
}

/// Steps until the acceptor waits for the client or is done.
pub(super) fn run(acceptor: &mut Acceptor, out: &mut Vec<u8>) -> Result<(), Refusal> {
    for _ in 0..MAX_SILENT_STEPS {
        if acceptor.next_pdu_hint().is_some() || matches!(state(acceptor), AcceptorState::Accepted { .. }) {
            return Ok(());
        }
        step(acceptor, &[], out)?;
    }
    misbehaved("the acceptor makes no progress")
}

/// An acceptor that believes to have negotiated, and to have gone through TLS and CredSSP.
fn negotiated_acceptor(negotiated: Negotiated, desktop: Size, color_depth: u8) -> Result<Acceptor, Refusal> {
    let side = |pixels: u32| u16::try_from(pixels).unwrap_or(u16::MAX);
    let size = DesktopSize { width: side(desktop.width), height: side(desktop.height) };
    let mut acceptor = Acceptor::new(negotiated.selected, size, capabilities(desktop, color_depth), None);
    let request = ConnectionRequest {
        nego_data: None,
        flags: RequestFlags::empty(),
        protocol: negotiated.requested,
        correlation_info: None,
    };
    let request = encode_vec(&X224(request)).map_err(|error| Refusal::Misbehaved(error.to_string()))?;
    let mut already_sent = Vec::new();
    step(&mut acceptor, &request, &mut already_sent)?;
    step(&mut acceptor, &[], &mut already_sent)?;
    if acceptor.reached_security_upgrade().is_some() {
        acceptor.mark_security_upgrade_as_done();
    }
    if acceptor.should_perform_credssp() {
        acceptor.mark_credssp_as_done();
    }
    Ok(acceptor)
}

/// The ids that the acceptor gives: static channels in the client's order, then the message channel.
fn channel_ids(connect: &ConnectData) -> (Vec<(String, u16)>, Option<u16>) {
    let mut ids = IO_CHANNEL_ID + 1..;
    let named = connect.channels.iter().cloned().zip(ids.by_ref()).collect();
    (named, connect.wants_message_channel.then(|| ids.next()).flatten())
}

fn state(acceptor: &Acceptor) -> &AcceptorState {
    match acceptor.state().as_any().downcast_ref() {
        Some(state) => state,
        None => unreachable!("an acceptor's state is an acceptor state"),
    }
}
