//! Each PDU in each state: what is not due is refused, and never leads to a session.

use std::borrow::Cow;

use ironrdp_core::encode_vec;
use ironrdp_pdu::mcs::{
    AttachUserRequest, ChannelJoinRequest, DisconnectProviderUltimatum, DisconnectReason, ErectDomainPdu, McsMessage,
    SendDataRequest,
};
use ironrdp_pdu::rdp::client_info::CompressionType;
use ironrdp_pdu::rdp::headers::{
    CompressionFlags, ShareControlHeader, ShareControlPdu, ShareDataHeader, ShareDataPdu, StreamPriority,
};
use ironrdp_pdu::x224::X224;
use proptest::prelude::*;

use super::*;

/// Feeds recorded messages, answering what the login asks for.
pub(super) fn replay(login: &mut Login, messages: &[Vec<u8>]) {
    for message in messages {
        feed(login, message).expect("a recorded message in its place");
    }
}

/// Feeds one message. Says whether the session became active.
fn feed(login: &mut Login, message: &[u8]) -> Result<bool, AcceptError> {
    login.handle_bytes(message)?;
    let mut active = false;
    while let Some(output) = login.poll_output() {
        match output {
            Output::StartTls => login.tls_started()?,
            Output::VerifyPassword { user, password } => {
                login.password_verified(gate().verify_password(&user, &password))?;
            }
            Output::Active(_) => active = true,
            Output::Send(_) | Output::Authenticated => {}
        }
    }
    Ok(active)
}

fn recorded(plan: ClientPlan) -> Vec<Vec<u8>> {
    let mut pair = Pair::new(plan, SecurityPolicy::NlaOrTls);
    let outcome = pair.run();
    outcome.server.expect("the recording is of a good handshake");
    pair.sent
}

fn mcs(message: McsMessage<'_>) -> Vec<u8> {
    encode_vec(&X224(message)).unwrap()
}

fn data(channel_id: u16, user_data: &[u8]) -> Vec<u8> {
    let user_data = Cow::Owned(user_data.to_vec());
    mcs(McsMessage::SendDataRequest(SendDataRequest { initiator_id: 1002, channel_id, user_data }))
}

fn share(pdu: ShareDataPdu) -> Vec<u8> {
    let header = ShareDataHeader {
        share_data_pdu: pdu,
        stream_priority: StreamPriority::Medium,
        compression_flags: CompressionFlags::empty(),
        compression_type: CompressionType::K8,
    };
    let header = ShareControlHeader { share_control_pdu: ShareControlPdu::Data(header), pdu_source: 1002, share_id: 0 };
    data(IO_CHANNEL_ID, &encode_vec(&header).unwrap())
}

/// PDUs that no handshake contains, or not at every place.
fn strays() -> Vec<Vec<u8>> {
    vec![
        vec![4, 5, 0, 1, 2],
        vec![3, 0, 0, 7, 2, 0xF0, 0x80],
        share(ShareDataPdu::ShutdownRequest),
        share(ShareDataPdu::ShutdownDenied),
        data(IO_CHANNEL_ID, &[1, 2, 3]),
        data(1004, &[0, 0, 0, 0, 3, 0, 0, 0]),
        data(1777, &[0]),
        mcs(McsMessage::ErectDomainRequest(ErectDomainPdu { sub_height: 0, sub_interval: 0 })),
        mcs(McsMessage::AttachUserRequest(AttachUserRequest)),
        mcs(McsMessage::ChannelJoinRequest(ChannelJoinRequest { initiator_id: 1002, channel_id: 1777 })),
        mcs(McsMessage::DisconnectProviderUltimatum(DisconnectProviderUltimatum::from_reason(
            DisconnectReason::UserRequested,
        ))),
        vec![0x30, 3, 0xA0, 1, 0],
    ]
}

/// What belongs to the session and may come while the Font List is on its way.
fn is_session_data(pdu: &[u8]) -> bool {
    let others = [share(ShareDataPdu::ShutdownRequest), share(ShareDataPdu::ShutdownDenied)];
    pdu[0] & 3 == 0 && pdu[0] != 0x30
        || others.iter().any(|other| other == pdu)
        || pdu == data(1004, &[0, 0, 0, 0, 3, 0, 0, 0])
        || pdu == data(1777, &[0])
}

/// The TPKT messages that are interchangeable: which channel is joined first is the client's choice.
fn is_join(pdu: &[u8]) -> bool {
    matches!(ironrdp_core::decode::<X224<McsMessage<'_>>>(pdu), Ok(X224(McsMessage::ChannelJoinRequest(_))))
}

fn each_pdu_in_each_state(plan: ClientPlan) {
    let messages = recorded(plan);
    let injections: Vec<_> = messages.iter().cloned().chain(strays()).collect();
    let mut refused = 0;
    for place in 0..messages.len() {
        let last = place + 1 == messages.len();
        for injected in injections.iter().filter(|injected| **injected != messages[place]) {
            let mut login = Login::new(settings(SecurityPolicy::NlaOrTls), gate());
            replay(&mut login, &messages[..place]);
            let step = login.step();
            match feed(&mut login, injected) {
                Err(_) => {
                    refused += 1;
                    continue;
                }
                Ok(active) => assert!(!active, "active by {injected:02x?} at {place}"),
            }
            if last && is_session_data(injected) || is_join(injected) && is_join(&messages[place]) {
                continue;
            }
            // What looks like the start of something longer must not get further either.
            let later = messages[place..].iter().try_fold(false, |_, message| feed(&mut login, message));
            assert!(!matches!(later, Ok(true)), "{injected:02x?} at {place} ({step}) was overlooked");
            let tpkt = |pdu: &[u8]| pdu.starts_with(&[3, 0]);
            let expected_tpkt = tpkt(&messages[place]) && step != Step::FirstBytes;
            assert!(!(tpkt(injected) && expected_tpkt), "{injected:02x?} at {place} ({step}) was not refused");
        }
    }
    assert!(refused > messages.len() * (injections.len() - 5), "only {refused} refused at once");
}

#[test]
fn each_pdu_in_each_state_of_nla() {
    each_pdu_in_each_state(ClientPlan::default());
}

#[test]
fn each_pdu_in_each_state_of_tls() {
    each_pdu_in_each_state(ClientPlan::tls_only());
}

#[test]
fn session_data_that_comes_early_is_kept_and_bounded() {
    let messages = recorded(ClientPlan::tls_only());
    let (font_list, before) = messages.split_last().unwrap();
    let mut login = Login::new(settings(SecurityPolicy::NlaOrTls), gate());
    replay(&mut login, before);
    feed(&mut login, &[4, 5, 0, 1, 2]).unwrap();
    feed(&mut login, &share(ShareDataPdu::ShutdownRequest)).unwrap();
    login.handle_bytes(font_list).unwrap();
    let handshake = std::iter::from_fn(|| login.poll_output()).find_map(|output| match output {
        Output::Active(handshake) => Some(handshake),
        _ => None,
    });
    let early = [vec![4, 5, 0, 1, 2], share(ShareDataPdu::ShutdownRequest)];
    assert_eq!(handshake.unwrap().input_events, early);

    let mut login = Login::new(settings(SecurityPolicy::NlaOrTls), gate());
    replay(&mut login, before);
    let flooded = (0..100).try_for_each(|_| feed(&mut login, &[4, 5, 0, 1, 2]).map(|_| ()));
    assert!(matches!(flooded, Err(AcceptError::PeerMisbehaved { step: Step::Activation, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn noise_at_any_place_is_no_session(
        place in 0usize..20,
        noise in proptest::collection::vec(any::<u8>(), 1..200),
        nla in any::<bool>(),
        framed in any::<bool>(),
    ) {
        let messages = recorded(if nla { ClientPlan::default() } else { ClientPlan::tls_only() });
        let place = place % messages.len();
        let mut login = Login::new(settings(SecurityPolicy::NlaOrTls), gate());
        replay(&mut login, &messages[..place]);
        let mut bytes = noise;
        if framed {
            // Noise that passes the framing, to get at what is behind it.
            let length = u16::try_from(bytes.len() + 7).unwrap().to_be_bytes();
            bytes.splice(0..0, [3, 0, length[0], length[1], 2, 0xF0, 0x80]);
        }
        prop_assert!(!matches!(feed(&mut login, &bytes), Ok(true)));
    }

    #[test]
    fn an_altered_message_at_any_place_is_no_panic(place in 0usize..20, at in 0usize..600, bit in 0u8..8, nla in any::<bool>()) {
        let mut messages = recorded(if nla { ClientPlan::default() } else { ClientPlan::tls_only() });
        let place = place % messages.len();
        let message = &mut messages[place];
        let at = at % message.len();
        message[at] ^= 1 << bit;
        let mut login = Login::new(settings(SecurityPolicy::NlaOrTls), gate());
        let _ = messages.iter().try_for_each(|message| feed(&mut login, message).map(|_| ()));
    }
}
