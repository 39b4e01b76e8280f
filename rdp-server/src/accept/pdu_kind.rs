//! Which PDU a frame holds, as far as the order of the handshake depends on it.

use ironrdp_core::decode;
use ironrdp_pdu::mcs::McsMessage;
use ironrdp_pdu::rdp::finalization_messages::ControlAction;
use ironrdp_pdu::rdp::headers::{ShareControlHeader, ShareControlPdu, ShareDataPdu};
use ironrdp_pdu::x224::X224;

/// A client's PDU after the channel joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PduKind {
    ConfirmActive,
    Synchronize,
    Cooperate,
    RequestControl,
    FontList,
    /// Another Share Data PDU: it belongs to the session.
    OtherShareData,
    /// Data on another channel than the I/O and the message channel.
    ChannelData,
    /// Network auto-detection, multitransport: optional features that we do not offer.
    MessageChannel,
    /// The client leaves.
    Disconnect,
    /// Nothing that a client sends after the channel joins, or malformed.
    Foreign,
}

/// Looks at a TPKT PDU.
pub(super) fn pdu_kind(pdu: &[u8], io_channel_id: u16, message_channel_id: Option<u16>) -> PduKind {
    let Ok(X224(message)) = decode::<X224<McsMessage<'_>>>(pdu) else {
        return PduKind::Foreign;
    };
    match message {
        McsMessage::SendDataRequest(data) if data.channel_id == io_channel_id => share_kind(&data.user_data),
        McsMessage::SendDataRequest(data) if Some(data.channel_id) == message_channel_id => PduKind::MessageChannel,
        McsMessage::SendDataRequest(_) => PduKind::ChannelData,
        McsMessage::DisconnectProviderUltimatum(_) => PduKind::Disconnect,
        _ => PduKind::Foreign,
    }
}

fn share_kind(user_data: &[u8]) -> PduKind {
    let Ok(header) = decode::<ShareControlHeader>(user_data) else {
        return PduKind::Foreign;
    };
    match header.share_control_pdu {
        ShareControlPdu::ClientConfirmActive(_) => PduKind::ConfirmActive,
        ShareControlPdu::Data(data) => match data.share_data_pdu {
            ShareDataPdu::Synchronize(_) => PduKind::Synchronize,
            ShareDataPdu::Control(control) if control.action == ControlAction::Cooperate => PduKind::Cooperate,
            ShareDataPdu::Control(control) if control.action == ControlAction::RequestControl => {
                PduKind::RequestControl
            }
            ShareDataPdu::FontList(_) => PduKind::FontList,
            _ => PduKind::OtherShareData,
        },
        _ => PduKind::Foreign,
    }
}
