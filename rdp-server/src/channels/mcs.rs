//! The envelope of slow-path PDUs from the server: TPKT (RFC 1006), X.224 data (RFC 905), MCS Send Data
//! Indication (T.125). Written by hand, in place: every graphics message passes through here.

use ironrdp_core::{Encode, EncodeResult, encode_vec};
use ironrdp_pdu::mcs::{DisconnectProviderUltimatum, DisconnectReason, McsMessage};
use ironrdp_pdu::rdp::client_info::CompressionType;
use ironrdp_pdu::rdp::headers::{
    CompressionFlags, ShareControlHeader, ShareControlPdu, ShareDataHeader, ShareDataPdu, StreamPriority,
};
use ironrdp_pdu::x224::X224;

/// The MCS user id of the server, which it names as the initiator of what it sends (MS-RDPBCGR 3.3.1.5).
pub const SERVER_USER_ID: u16 = 1002;

/// Bytes before the user data: TPKT 4, X.224 3, MCS choice 1, initiator 2, channel 2, priority 1, length 2.
pub const ENVELOPE_SIZE: usize = 15;

/// Most user data in one envelope: the PER length has 14 bits.
pub const MAX_USER_DATA: usize = 0x3fff;

/// MCS user ids start here; on the wire they are relative to it (T.125, `UserId`).
const MCS_BASE: u16 = 1001;
/// T.125 `DomainMCSPDU` choice 26, `sendDataIndication`, in the upper six bits.
const SEND_DATA_INDICATION: u8 = 26 << 2;
/// High priority, first and last segment.
const PRIORITY_AND_SEGMENTATION: u8 = 0x70;

/// Appends the envelope for `length` bytes of user data on `channel_id`; the caller appends the data.
///
/// # Panics
///
/// When `length` is more than [`MAX_USER_DATA`]: callers chunk by smaller limits.
pub fn begin_send_data(out: &mut Vec<u8>, channel_id: u16, length: usize) {
    assert!(length <= MAX_USER_DATA, "a chunk of {length} bytes does not fit one MCS PDU");
    // The long form of the PER length is valid for every length, and keeps the envelope's size constant.
    let [length_high, length_low] = (length as u16 | 0x8000).to_be_bytes();
    let [total_high, total_low] = ((length + ENVELOPE_SIZE) as u16).to_be_bytes();
    let [initiator_high, initiator_low] = (SERVER_USER_ID - MCS_BASE).to_be_bytes();
    let [channel_high, channel_low] = channel_id.to_be_bytes();
    out.extend_from_slice(&[3, 0, total_high, total_low, 2, 0xf0, 0x80]);
    out.extend_from_slice(&[SEND_DATA_INDICATION, initiator_high, initiator_low, channel_high, channel_low]);
    out.extend_from_slice(&[PRIORITY_AND_SEGMENTATION, length_high, length_low]);
}

/// A Share Data PDU of the server on the I/O channel (MS-RDPBCGR 2.2.8.1.1.1.2), in its envelope.
///
/// # Errors
///
/// When the PDU cannot be encoded.
pub fn encode_share_data(io_channel_id: u16, pdu: ShareDataPdu) -> EncodeResult<Vec<u8>> {
    encode_share_control(
        io_channel_id,
        ShareControlPdu::Data(ShareDataHeader {
            share_data_pdu: pdu,
            stream_priority: StreamPriority::Undefined,
            compression_flags: CompressionFlags::empty(),
            compression_type: CompressionType::K8,
        }),
    )
}

/// A Share Control PDU of the server on the I/O channel (MS-RDPBCGR 2.2.8.1.1.1.1), in its envelope.
///
/// # Errors
///
/// When the PDU cannot be encoded.
pub fn encode_share_control(io_channel_id: u16, pdu: ShareControlPdu) -> EncodeResult<Vec<u8>> {
    let header = ShareControlHeader { share_control_pdu: pdu, pdu_source: SERVER_USER_ID, share_id: 0 };
    encode_on_channel(io_channel_id, &header)
}

/// The MCS Disconnect Provider Ultimatum: the last PDU of a session that the server ends.
///
/// # Errors
///
/// When the PDU cannot be encoded.
pub fn encode_disconnect() -> EncodeResult<Vec<u8>> {
    let ultimatum = DisconnectProviderUltimatum::from_reason(DisconnectReason::ProviderInitiated);
    encode_vec(&X224(McsMessage::DisconnectProviderUltimatum(ultimatum)))
}

fn encode_on_channel(channel_id: u16, message: &impl Encode) -> EncodeResult<Vec<u8>> {
    let data = encode_vec(message)?;
    let mut out = Vec::with_capacity(ENVELOPE_SIZE + data.len());
    begin_send_data(&mut out, channel_id, data.len());
    out.extend_from_slice(&data);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use ironrdp_core::decode;
    use ironrdp_pdu::mcs::SendDataIndication;

    use super::*;

    #[test]
    fn the_envelope_is_what_the_protocol_library_reads() {
        for length in [0, 1, 127, 128, 1600, MAX_USER_DATA] {
            let data: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let mut out = Vec::new();
            begin_send_data(&mut out, 1005, data.len());
            assert_eq!(out.len(), ENVELOPE_SIZE);
            out.extend_from_slice(&data);
            let decoded: X224<SendDataIndication<'_>> = decode(&out).unwrap();
            let expected =
                SendDataIndication { initiator_id: SERVER_USER_ID, channel_id: 1005, user_data: Cow::Owned(data) };
            assert_eq!(decoded.0, expected);
        }
    }
}
