use proptest::prelude::*;
use uuid::{Uuid, uuid};

use super::*;

const CLASS: Uuid = uuid!("08b101e2-48b1-5ba4-9085-d82472a93003");

/// Each message, and its body as section 5 lays it out.
fn table() -> Vec<(u16, ControlMessage, Vec<u8>)> {
    let words = |words: &[&[u8]]| words.concat();
    let contact = Contact {
        major: 1,
        minor: 2,
        features: Features(0x0d),
        guest_epoch: 0x1122_3344_5566_7788,
        os: Os::Linux,
        agent_version: AgentVersion(0, 1, 2),
        name: "agent".into(),
    };
    let ack = ContactAck {
        status: ContactStatus::Welcome,
        minor: 1,
        features: Features::PAUSE,
        host_epoch: 5,
        window: 0x1_0000,
        region: Some(RegionHint {
            nonce: 7,
            size: 0x10_0000,
            pci_slot: Some(PciSlot { bus: 0, device: 3, function: 1 }),
        }),
    };
    let offer = Offer {
        channel: 9,
        class: CLASS,
        instance: CLASS,
        flags: OfferFlags::SENSITIVE.or(OfferFlags::SURFACES),
        sub_index: 1,
        class_major: 1,
        class_minor: 3,
        rings: Some(OfferedRings {
            h2g_offset: 0x4000,
            g2h_offset: 0x6000,
            h2g_size: 0x1000,
            g2h_size: 0x2000,
            max_payload: 0x3f0,
        }),
        surface_offset: 0x9000,
        surface_size: 0x1000,
    };
    let guid = [0xe2, 0x01, 0xb1, 0x08, 0xb1, 0x48, 0xa4, 0x5b, 0x90, 0x85, 0xd8, 0x24, 0x72, 0xa9, 0x30, 0x03];
    let picture = Picture { fourcc: 0x3432_5258, stride: 4096, width: 1024, height: 768 };
    vec![
        (
            1,
            ControlMessage::Contact(contact),
            words(&[
                &[1, 0, 2, 0],
                &[0x0d, 0, 0, 0, 0, 0, 0, 0],
                &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11],
                &[1, 0, 0, 0],
                &[2, 0, 1, 0],
                &[5],
                b"agent",
            ]),
        ),
        (
            2,
            ControlMessage::ContactAck(ack),
            words(&[
                &[0, 0, 1, 0],
                &[8, 0, 0, 0, 0, 0, 0, 0],
                &[5, 0, 0, 0, 0, 0, 0, 0],
                &[0, 0, 1, 0],
                &[7, 0, 0, 0, 0, 0, 0, 0],
                &[0, 0, 0x10, 0, 0, 0, 0, 0],
                &[0x19, 0],
            ]),
        ),
        (3, ControlMessage::RequestOffers, vec![]),
        (
            4,
            ControlMessage::Offer(offer),
            words(&[
                &[9, 0, 0, 0],
                &guid,
                &guid,
                &[10, 0, 0, 0],
                &[1, 0, 1, 0, 3, 0, 0, 0],
                &[0, 0x40, 0, 0, 0, 0, 0, 0],
                &[0, 0x60, 0, 0, 0, 0, 0, 0],
                &[0, 0x10, 0, 0, 0, 0x20, 0, 0],
                &[0xf0, 3, 0, 0],
                &[0, 0x90, 0, 0, 0, 0, 0, 0],
                &[0, 0x10, 0, 0, 0, 0, 0, 0],
            ]),
        ),
        (5, ControlMessage::OffersDone { count: 3 }, vec![3, 0, 0, 0]),
        (
            6,
            ControlMessage::Open { channel: 9, open_id: 1, transport: TransportCode::Stream, class_minor: 2 },
            vec![9, 0, 0, 0, 1, 0, 0, 0, 3, 0, 2, 0],
        ),
        (
            7,
            ControlMessage::OpenResult { channel: 9, open_id: 1, status: Err(ErrorCode::WrongState) },
            vec![9, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0],
        ),
        (
            8,
            ControlMessage::Close { channel: 9, open_id: 1, reason: Reason::SessionLeft },
            vec![9, 0, 0, 0, 1, 0, 0, 0, 4, 0],
        ),
        (9, ControlMessage::Closed { channel: 9, open_id: 1 }, vec![9, 0, 0, 0, 1, 0, 0, 0]),
        (10, ControlMessage::Rescind { channel: 9, reason: Reason::Other(9) }, vec![9, 0, 0, 0, 9, 0]),
        (11, ControlMessage::Released { channel: 9 }, vec![9, 0, 0, 0]),
        (12, ControlMessage::Unload, vec![]),
        (13, ControlMessage::Unloaded, vec![]),
        (14, ControlMessage::Ping { cookie: 3 }, vec![3, 0, 0, 0, 0, 0, 0, 0]),
        (15, ControlMessage::Pong { cookie: 3 }, vec![3, 0, 0, 0, 0, 0, 0, 0]),
        (16, ControlMessage::Subchannel { channel: 9, count: 4 }, vec![9, 0, 0, 0, 4, 0]),
        (
            17,
            ControlMessage::SurfaceGrant(SurfaceGrant { channel: 9, surface: 1, offset: 2, length: 3, picture }),
            words(&[
                &[9, 0, 0, 0, 1, 0, 0, 0],
                &[2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
                b"XR24",
                &[0, 0x10, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0],
            ]),
        ),
        (18, ControlMessage::SurfaceRevoke { channel: 9, surface: 1 }, vec![9, 0, 0, 0, 1, 0, 0, 0]),
        (19, ControlMessage::SurfaceRevoked { channel: 9, surface: 1 }, vec![9, 0, 0, 0, 1, 0, 0, 0]),
        (
            20,
            ControlMessage::Error { code: ErrorCode::Other(77), ref_txid: 6, text: "né".into() },
            words(&[&[77, 0, 0, 0], &[6, 0, 0, 0, 0, 0, 0, 0], &[3, 0], "né".as_bytes()]),
        ),
        (21, ControlMessage::Pause, vec![]),
        (22, ControlMessage::Resume, vec![]),
        (23, ControlMessage::Paused, vec![]),
        (
            24,
            ControlMessage::Attach { region_nonce: 1, guest_nonce: 2 },
            vec![1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
        ),
        (25, ControlMessage::AttachResult { status: Ok(()) }, vec![0, 0, 0, 0]),
    ]
}

fn framed(message_type: u16, txid: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = message_type.to_le_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    bytes.extend(txid.to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn every_message_has_the_bytes_of_the_specification() {
    for (message_type, message, body) in table() {
        let bytes = framed(message_type, 0x0102, &body);
        assert_eq!(message.encode(0x0102), bytes, "{message:?}");
        assert_eq!(ControlMessage::decode(&bytes), Ok((0x0102, message)));
    }
}

#[test]
fn the_table_has_every_type() {
    let types: Vec<u16> = table().iter().map(|(message_type, ..)| *message_type).collect();
    assert_eq!(types, (1..=25).collect::<Vec<_>>());
    assert_eq!(
        ControlMessage::decode(&framed(26, 5, &[])),
        Err(ControlError::Unsupported { message_type: 26, txid: 5 })
    );
}

#[test]
fn fields_of_a_later_minor_version_are_ignored() {
    for (message_type, message, mut body) in table() {
        body.extend([0xaa; 5]);
        assert_eq!(ControlMessage::decode(&framed(message_type, 1, &body)), Ok((1, message)));
    }
}

#[test]
fn a_message_that_is_too_short_is_malformed() {
    for (message_type, _, body) in table() {
        for length in 0..body.len() {
            let cut = ControlMessage::decode(&framed(message_type, 1, &body[..length]));
            assert!(matches!(cut, Err(ControlError::Malformed { txid: 1, .. })), "type {message_type}: {cut:?}");
        }
    }
}

#[test]
fn flags_and_a_wrong_length_are_malformed() {
    let good = ControlMessage::Unload.encode(3);
    for (place, value) in [(2, 1), (3, 1), (4, 1)] {
        let mut bytes = good.clone();
        bytes[place] = value;
        assert!(matches!(ControlMessage::decode(&bytes), Err(ControlError::Malformed { txid: 3, .. })));
    }
    assert!(matches!(ControlMessage::decode(&good[..15]), Err(ControlError::Malformed { txid: 0, .. })));
}

#[test]
fn what_must_not_be_zero_is_not() {
    let open = ControlMessage::Open { channel: 1, open_id: 0, transport: TransportCode::Ring, class_minor: 0 };
    assert!(ControlMessage::decode(&open.encode(0)).is_err());
}

#[test]
fn one_ring_without_the_other_is_malformed() {
    let Some((_, ControlMessage::Offer(mut offer), _)) = table().into_iter().nth(3) else { panic!("an offer") };
    let rings = offer.rings.expect("it has rings");
    offer.rings = Some(OfferedRings { g2h_offset: 0, ..rings });
    assert!(ControlMessage::decode(&ControlMessage::Offer(offer).encode(0)).is_err());
    offer.rings = None;
    let bytes = ControlMessage::Offer(offer).encode(0);
    assert_eq!(ControlMessage::decode(&bytes), Ok((0, ControlMessage::Offer(offer))));
}

#[test]
fn texts_are_cut_between_letters() {
    let message = ControlMessage::Error { code: ErrorCode::Busy, ref_txid: 0, text: "é".repeat(200) };
    let Ok((_, ControlMessage::Error { text, .. })) = ControlMessage::decode(&message.encode(0)) else {
        panic!("it reads")
    };
    assert_eq!(text, "é".repeat(128));
}

proptest! {
    #[test]
    fn what_reads_reads_the_same_when_written_again(
        message_type in 0u16..30,
        body in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        if let Ok((txid, message)) = ControlMessage::decode(&framed(message_type, 7, &body)) {
            prop_assert_eq!(ControlMessage::decode(&message.encode(txid)), Ok((txid, message)));
        }
    }
}
