use std::borrow::Cow;

use console::{ContactPhase, FinePoint, TouchFrame};
use ironrdp_core::{Decode as _, Encode, ReadCursor, encode_vec};
use ironrdp_dvc::pdu::{
    CapabilitiesResponsePdu, CapsVersion, ClosePdu, CreateResponsePdu, CreationStatus, DataPdu, DrdynvcClientPdu,
    DrdynvcDataPdu, DrdynvcServerPdu,
};
use ironrdp_pdu::mcs::SendDataIndication;
use ironrdp_pdu::rdp::client_info::CompressionType;
use ironrdp_pdu::rdp::headers::{CompressionFlags, ShareDataHeader, StreamPriority};
use ironrdp_pdu::rdp::suppress_output::SuppressOutputPdu;
use proptest::prelude::*;

use super::*;
use crate::channels::touch::{self, GuestTouch};

const IO: u16 = 1003;
const DRDYNVC: u16 = 1004;

fn connection(graphics_pipeline: bool) -> Connection {
    Connection::new(ConnectionConfig {
        io_channel_id: IO,
        message_channel_id: None,
        dynamic_channel_id: Some(DRDYNVC),
        graphics_pipeline,
        desktop_size: Size::new(1024, 768),
    })
}

fn request(channel_id: u16, user_data: Vec<u8>) -> Vec<u8> {
    let data = SendDataRequest { initiator_id: 1002, channel_id, user_data: Cow::Owned(user_data) };
    encode_vec(&X224(McsMessage::SendDataRequest(data))).unwrap()
}

fn share(pdu: ShareDataPdu) -> Vec<u8> {
    let data = ShareDataHeader {
        share_data_pdu: pdu,
        stream_priority: StreamPriority::Medium,
        compression_flags: CompressionFlags::empty(),
        compression_type: CompressionType::K8,
    };
    let header = ShareControlHeader { share_control_pdu: ShareControlPdu::Data(data), pdu_source: 1002, share_id: 0 };
    request(IO, encode_vec(&header).unwrap())
}

fn chunk(pdu: &impl Encode) -> Vec<u8> {
    let message = encode_vec(pdu).unwrap();
    let header = [(message.len() as u32).to_le_bytes(), 3u32.to_le_bytes()].concat();
    request(DRDYNVC, [header, message].concat())
}

/// The next DRDYNVC PDU of the server.
fn next_dynamic(connection: &mut Connection) -> DrdynvcServerPdu {
    let out = connection.poll_output().expect("there is output");
    let X224(data) = decode::<X224<SendDataIndication<'_>>>(&out).unwrap();
    assert_eq!(data.channel_id, DRDYNVC);
    DrdynvcServerPdu::decode(&mut ReadCursor::new(&data.user_data[8..])).unwrap()
}

/// Opens the channels up to the client's answers: ids of graphics and display control.
fn open(connection: &mut Connection) -> (u32, u32) {
    assert!(matches!(next_dynamic(connection), DrdynvcServerPdu::Capabilities(_)));
    let ready = DrdynvcClientPdu::Capabilities(CapabilitiesResponsePdu::new(CapsVersion::V2));
    connection.handle_frame(&chunk(&ready)).unwrap();
    let mut id_of = |name: &str| match next_dynamic(connection) {
        DrdynvcServerPdu::Create(create) => {
            assert_eq!(create.channel_name(), name);
            create.channel_id()
        }
        other => panic!("{other:?}"),
    };
    (id_of(GRAPHICS_CHANNEL_NAME), id_of(display_control::CHANNEL_NAME))
}

fn answer(connection: &mut Connection, id: u32, status: CreationStatus) {
    connection.handle_frame(&chunk(&DrdynvcClientPdu::Create(CreateResponsePdu::new(id, status)))).unwrap();
}

#[test]
fn the_graphics_channel_opens_and_carries_messages_both_ways() {
    let mut connection = connection(true);
    let (graphics, _) = open(&mut connection);
    answer(&mut connection, graphics, CreationStatus::OK);
    let Some(Event::GraphicsOpened(address)) = connection.poll_event() else { panic!("not opened") };

    let data = DrdynvcClientPdu::Data(DrdynvcDataPdu::Data(DataPdu::new(graphics, b"caps".to_vec())));
    connection.handle_frame(&chunk(&data)).unwrap();
    assert_eq!(connection.poll_event(), Some(Event::GraphicsMessage(b"caps".to_vec())));

    // One glyph's message: 15 bytes of envelope, 8 of chunk header, 2 of data PDU header.
    assert_eq!(frame_graphics_message(address, &[7; 100]).len(), 125);
}

#[test]
fn a_client_without_a_graphics_channel_is_told_apart_at_once_or_when_it_refuses() {
    let mut legacy = connection(false);
    assert!(matches!(next_dynamic(&mut legacy), DrdynvcServerPdu::Capabilities(_)));
    let ready = DrdynvcClientPdu::Capabilities(CapabilitiesResponsePdu::new(CapsVersion::V2));
    legacy.handle_frame(&chunk(&ready)).unwrap();
    assert_eq!(legacy.poll_event(), Some(Event::GraphicsClosed));

    let mut refusing = connection(true);
    let (graphics, _) = open(&mut refusing);
    answer(&mut refusing, graphics, CreationStatus::NO_LISTENER);
    assert_eq!(refusing.poll_event(), Some(Event::GraphicsClosed));
}

#[test]
fn a_broken_display_control_message_closes_that_channel_only() {
    let mut connection = connection(true);
    let (_, display) = open(&mut connection);
    answer(&mut connection, display, CreationStatus::OK);
    assert!(matches!(next_dynamic(&mut connection), DrdynvcServerPdu::Data(_)));
    let garbage = DrdynvcClientPdu::Data(DrdynvcDataPdu::Data(DataPdu::new(display, vec![0xff; 12])));
    connection.handle_frame(&chunk(&garbage)).unwrap();
    assert!(matches!(next_dynamic(&mut connection), DrdynvcServerPdu::Close(_)));
    connection.handle_frame(&share(ShareDataPdu::ShutdownRequest)).unwrap();
    assert_eq!(connection.poll_event(), Some(Event::ShutdownRequested));
}

const GUEST: GuestTouch = GuestTouch { max_contacts: 10, pens: true };

/// A session whose client has been asked for touch, and the channel's id.
fn asked_for_touch() -> (Connection, u32) {
    let mut connection = connection(true);
    open(&mut connection);
    assert_eq!(connection.poll_output(), None, "asked for touch that nobody takes");
    connection.set_touch(Some(GUEST));
    let DrdynvcServerPdu::Create(create) = next_dynamic(&mut connection) else { panic!("not asked") };
    assert_eq!(create.channel_name(), touch::CHANNEL_NAME);
    (connection, create.channel_id())
}

/// The next message of the server on a dynamic channel.
fn next_message(connection: &mut Connection) -> Vec<u8> {
    match next_dynamic(connection) {
        DrdynvcServerPdu::Data(DrdynvcDataPdu::Data(data)) => data.into_data(),
        other => panic!("{other:?}"),
    }
}

fn send(connection: &mut Connection, id: u32, message: &[u8]) {
    let data = DrdynvcClientPdu::Data(DrdynvcDataPdu::Data(DataPdu::new(id, message.to_vec())));
    connection.handle_frame(&chunk(&data)).unwrap();
}

/// A session whose client has touch and one finger down.
fn touched() -> (Connection, u32) {
    let (mut connection, id) = asked_for_touch();
    answer(&mut connection, id, CreationStatus::OK);
    assert_eq!(next_message(&mut connection)[..2], [1, 0]);
    send(&mut connection, id, &[2, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 10, 0]);
    // One frame, one finger, at 0x2000, 5.
    send(&mut connection, id, &[3, 0, 17, 0, 0, 0, 0, 1, 1, 0, 7, 0, 0x80, 0x20, 0, 5, 0x19]);
    let frame = next_touch(&mut connection);
    assert_eq!(frame.contacts[0].phase, ContactPhase::Down);
    assert_eq!(frame.contacts[0].position, FinePoint { x: 102_350, y: 550 });
    (connection, id)
}

fn next_touch(connection: &mut Connection) -> TouchFrame {
    match connection.poll_event() {
        Some(Event::Input(InputEvent::Touch(frame))) => frame,
        other => panic!("{other:?}"),
    }
}

#[test]
fn touch_is_offered_when_somebody_takes_it_and_not_before() {
    let mut early = connection(true);
    early.set_touch(Some(GUEST));
    open(&mut early);
    assert!(matches!(next_dynamic(&mut early), DrdynvcServerPdu::Create(_)));
    let (mut later, _) = asked_for_touch();
    later.set_touch(None);
    later.set_touch(Some(GUEST));
    assert_eq!(later.poll_output(), None, "asked twice");
}

#[test]
fn a_client_without_touch_is_not_asked_again() {
    let (mut connection, id) = asked_for_touch();
    answer(&mut connection, id, CreationStatus::NO_LISTENER);
    connection.set_touch(None);
    connection.set_touch(Some(GUEST));
    assert_eq!((connection.poll_event(), connection.poll_output()), (None, None));
}

#[test]
fn touch_follows_the_one_who_takes_it() {
    let (mut connection, id) = touched();
    connection.set_touch(None);
    assert_eq!(next_touch(&mut connection).contacts[0].phase, ContactPhase::UpCanceled);
    assert_eq!(next_message(&mut connection), [4, 0, 6, 0, 0, 0]);
    connection.set_touch(Some(GUEST));
    assert_eq!(next_message(&mut connection), [5, 0, 6, 0, 0, 0]);
    send(&mut connection, id, &[3, 0, 15, 0, 0, 0, 0, 1, 1, 0, 8, 0, 1, 1, 0x19]);
    assert_eq!(next_touch(&mut connection).contacts[0].phase, ContactPhase::Down);
}

#[test]
fn a_broken_touch_message_closes_that_channel_only_and_lifts_the_fingers() {
    let (mut connection, id) = touched();
    send(&mut connection, id, &[3, 0, 99, 0, 0, 0]);
    assert_eq!(next_touch(&mut connection).contacts[0].phase, ContactPhase::UpCanceled);
    assert!(matches!(next_dynamic(&mut connection), DrdynvcServerPdu::Close(_)));
    send(&mut connection, id, &[3, 0, 15, 0, 0, 0, 0, 1, 1, 0, 8, 0, 1, 1, 0x19]);
    connection.set_touch(Some(GUEST));
    assert_eq!((connection.poll_event(), connection.poll_output()), (None, None));
    connection.handle_frame(&share(ShareDataPdu::ShutdownRequest)).unwrap();
    assert_eq!(connection.poll_event(), Some(Event::ShutdownRequested));
}

#[test]
fn a_client_that_closes_the_channel_or_hides_its_window_lifts_its_fingers() {
    let (mut closing, id) = touched();
    closing.handle_frame(&chunk(&DrdynvcClientPdu::Close(ClosePdu::new(id)))).unwrap();
    assert_eq!(next_touch(&mut closing).contacts[0].phase, ContactPhase::UpCanceled);
    closing.cancel_touch();
    assert_eq!(closing.poll_event(), None);

    let (mut hiding, _) = touched();
    hiding.handle_frame(&share(ShareDataPdu::SuppressOutput(SuppressOutputPdu { desktop_rect: None }))).unwrap();
    assert_eq!(next_touch(&mut hiding).contacts[0].phase, ContactPhase::UpCanceled);
    assert_eq!(hiding.poll_event(), Some(Event::SuppressOutput(true)));
}

#[test]
fn suppress_output_says_whether_anybody_looks() {
    let mut connection = connection(false);
    connection.handle_frame(&share(ShareDataPdu::SuppressOutput(SuppressOutputPdu { desktop_rect: None }))).unwrap();
    assert_eq!(connection.poll_event(), Some(Event::SuppressOutput(true)));
}

#[test]
fn what_only_a_server_sends_is_refused() {
    let error = connection(false).handle_frame(&share(ShareDataPdu::ShutdownDenied));
    assert!(matches!(error, Err(ConnectionError::Unexpected(_))), "{error:?}");
    let confirm = mcs::encode_disconnect().unwrap();
    let mut leaving = connection(false);
    leaving.handle_frame(&confirm).unwrap();
    assert_eq!(leaving.poll_event(), Some(Event::Left));
}

#[test]
fn a_farewell_is_a_reason_and_an_ultimatum() {
    let mut connection = connection(false);
    connection.poll_output();
    connection.disconnect(Farewell::ServerShutdown);
    assert!(connection.poll_output().is_some_and(|pdu| pdu.windows(4).any(|bytes| bytes == [0x01, 0, 0, 0])));
    assert_eq!(connection.poll_output(), Some(mcs::encode_disconnect().unwrap()));
}

proptest! {
    #[test]
    fn any_bytes_end_in_events_or_an_error(channel in prop_oneof![Just(IO), Just(DRDYNVC), any::<u16>()],
        data in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = connection(true).handle_frame(&request(channel, data.clone()));
        let _ = connection(true).handle_frame(&data);
    }
}
