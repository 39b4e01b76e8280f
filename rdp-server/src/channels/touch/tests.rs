use console::ContactPhase;
use ironrdp_core::encode_vec;
use ironrdp_rdpei::pdu::{
    CsReadyFlags, CsReadyPdu, DismissHoveringTouchContactPdu, PenContact, PenContactFlags, PenEventPdu, PenFlags,
    PenFrame, RdpInputProtocolVersion, TouchContact as ClientContact, TouchContactFlags, TouchEventPdu,
    TouchFrame as ClientFrame,
};
use proptest::prelude::*;

use super::*;

const DESKTOP: Size = Size::new(1920, 1080);
const GUEST: GuestTouch = GuestTouch { max_contacts: 64, pens: true };
const DOWN: u32 = 0x19;
const MOVE: u32 = 0x1a;
const HOVER: u32 = 0x0a;
const UP: u32 = 0x04;
const LIFT: u32 = 0x0c;
const SUSPEND: [u8; 6] = [4, 0, 6, 0, 0, 0];
const RESUME: [u8; 6] = [5, 0, 6, 0, 0, 0];

fn ready(flags: CsReadyFlags, version: RdpInputProtocolVersion) -> Vec<u8> {
    encode_vec(&CsReadyPdu::new(flags, version, 10)).unwrap()
}

fn client(flags: CsReadyFlags, version: RdpInputProtocolVersion) -> TouchChannel {
    let mut channel = TouchChannel::new(DESKTOP, Some(GUEST));
    assert_eq!(channel.poll_output(), Some(TouchOutput::Send(pdu::sc_ready(true))));
    channel.handle_message(&ready(flags, version)).unwrap();
    assert_eq!(channel.poll_output(), None);
    channel
}

fn opened() -> TouchChannel {
    client(CsReadyFlags::ENABLE_MULTIPEN_INJECTION, RdpInputProtocolVersion::V300)
}

fn finger(id: u8, x: i32, y: i32, flags: u32) -> ClientContact {
    ClientContact::new(id, x, y, TouchContactFlags::from_bits_retain(flags))
}

fn touch(channel: &mut TouchChannel, frames: Vec<(u64, Vec<ClientContact>)>) {
    let frames = frames.into_iter().map(|(offset, contacts)| ClientFrame::new(offset, contacts)).collect();
    channel.handle_message(&encode_vec(&TouchEventPdu::new(3, frames)).unwrap()).unwrap();
}

fn pen(channel: &mut TouchChannel, offset: u64, pens: Vec<PenContact>) {
    let event = PenEventPdu::new(3, vec![PenFrame::new(offset, pens)]);
    channel.handle_message(&encode_vec(&event).unwrap()).unwrap();
}

fn outputs(channel: &mut TouchChannel) -> Vec<TouchOutput> {
    std::iter::from_fn(|| channel.poll_output()).collect()
}

/// Ids and phases of the frames that are left.
fn phases(channel: &mut TouchChannel) -> Vec<Vec<(u16, ContactPhase)>> {
    let frames = outputs(channel).into_iter().filter_map(|output| match output {
        TouchOutput::Touch(frame) => Some(frame.contacts.iter().map(|contact| (contact.id, contact.phase)).collect()),
        _ => None,
    });
    frames.collect()
}

#[test]
fn frames_stay_whole_with_their_times_sizes_and_pressures() {
    let mut channel = opened();
    let first = finger(5, 10, 20, DOWN).with_contact_rect(-3, -2, 4, 6).with_orientation(90).with_pressure(1024);
    touch(&mut channel, vec![(0, vec![first, finger(6, 30, 40, DOWN)]), (8000, vec![finger(5, 11, 20, MOVE)])]);
    let contact = |id, phase, x, y| TouchContact {
        id,
        phase,
        position: FinePoint { x, y },
        pressure: None,
        size: None,
        orientation: None,
    };
    let first = TouchContact {
        pressure: Some(u16::MAX),
        size: Some(ContactSize { width: 700, height: 800 }),
        orientation: Some(270),
        ..contact(0, ContactPhase::Down, 1050, 2050)
    };
    let frames = [
        TouchFrame {
            contacts: vec![first, contact(1, ContactPhase::Down, 3050, 4050)],
            since_previous: Duration::ZERO,
        },
        TouchFrame {
            contacts: vec![contact(0, ContactPhase::Move, 1150, 2050)],
            since_previous: Duration::from_millis(8),
        },
    ];
    assert_eq!(outputs(&mut channel), frames.map(TouchOutput::Touch));
}

#[test]
fn nothing_is_outside_of_the_desktop() {
    let mut channel = opened();
    let position = |channel: &mut TouchChannel| match channel.poll_output() {
        Some(TouchOutput::Touch(frame)) => frame.contacts[0].position,
        other => panic!("{other:?}"),
    };
    touch(&mut channel, vec![(0, vec![finger(0, -5, 0x1fff_ffff, DOWN)])]);
    assert_eq!(position(&mut channel), FinePoint { x: 50, y: 107_950 });
    channel.set_desktop(Size::new(100, 100));
    touch(&mut channel, vec![(0, vec![finger(0, 500, 50, MOVE)])]);
    assert_eq!(position(&mut channel), FinePoint { x: 9950, y: 5050 });
}

#[test]
fn an_impossible_contact_is_cancelled_and_the_others_go_on() {
    let mut channel = opened();
    touch(&mut channel, vec![(0, vec![finger(0, 1, 1, DOWN), finger(1, 2, 2, DOWN)])]);
    touch(&mut channel, vec![(0, vec![finger(0, 1, 1, DOWN), finger(1, 3, 2, MOVE)])]);
    touch(&mut channel, vec![(0, vec![finger(0, 1, 1, MOVE), finger(1, 3, 2, UP)])]);
    use ContactPhase::{Down, Move, Up, UpCanceled};
    let expected = vec![vec![(0, Down), (1, Down)], vec![(0, UpCanceled), (1, Move)], vec![(1, Up)]];
    assert_eq!(phases(&mut channel), expected);
}

#[test]
fn a_tap_of_which_only_the_end_is_told_is_a_tap() {
    let mut channel = opened();
    touch(&mut channel, vec![(0, vec![finger(0, 1, 1, DOWN)])]);
    touch(&mut channel, vec![(0, vec![finger(0, 1, 1, UP), finger(1, 2, 2, UP)])]);
    use ContactPhase::{Down, Up};
    assert_eq!(phases(&mut channel), vec![vec![(0, Down)], vec![(1, Down)], vec![(0, Up), (1, Up)]]);
    // The end of one that was cancelled is none.
    touch(&mut channel, vec![(0, vec![finger(0, 1, 1, DOWN)])]);
    channel.cancel_all();
    outputs(&mut channel);
    touch(&mut channel, vec![(0, vec![finger(0, 1, 1, UP)])]);
    assert_eq!(outputs(&mut channel), []);
}

#[test]
fn a_contact_that_is_twice_in_a_frame_is_cancelled_once() {
    let mut channel = opened();
    touch(&mut channel, vec![(0, vec![finger(0, 1, 1, DOWN)])]);
    let thrice = vec![finger(0, 1, 1, MOVE), finger(0, 1, 1, UP), finger(0, 1, 1, DOWN), finger(1, 1, 1, DOWN)];
    touch(&mut channel, vec![(0, thrice)]);
    use ContactPhase::{Down, UpCanceled};
    assert_eq!(phases(&mut channel), vec![vec![(0, Down)], vec![(0, UpCanceled), (1, Down)]]);
}

#[test]
fn more_fingers_than_the_client_announced_or_the_guest_takes_are_not_shown() {
    let mut channel = opened();
    touch(&mut channel, vec![(0, (0..12).map(|id| finger(id, 1, 1, DOWN)).collect())]);
    assert_eq!(phases(&mut channel).concat().len(), 10);
    channel.set_guest(Some(GuestTouch { max_contacts: 2, pens: false }));
    outputs(&mut channel);
    touch(&mut channel, vec![(0, (20..30).map(|id| finger(id, 1, 1, DOWN)).collect())]);
    assert_eq!(phases(&mut channel).concat().len(), 2);
}

#[test]
fn a_guest_without_pens_gets_none_and_the_client_is_told_so() {
    let mut channel = TouchChannel::new(DESKTOP, Some(GuestTouch { pens: false, ..GUEST }));
    assert_eq!(channel.poll_output(), Some(TouchOutput::Send(pdu::sc_ready(false))));
    channel.handle_message(&ready(CsReadyFlags::empty(), RdpInputProtocolVersion::V200)).unwrap();
    pen(&mut channel, 0, vec![PenContact::new(0, 1, 1, PenContactFlags::from_bits_retain(DOWN))]);
    assert_eq!(outputs(&mut channel), []);
}

#[test]
fn another_guest_does_not_get_what_the_one_before_had() {
    let mut channel = opened();
    touch(&mut channel, vec![(0, vec![finger(0, 1, 1, DOWN)])]);
    channel.set_guest(Some(GUEST));
    touch(&mut channel, vec![(0, vec![finger(0, 1, 1, MOVE)])]);
    use ContactPhase::{Down, UpCanceled};
    assert_eq!(phases(&mut channel), vec![vec![(0, Down)], vec![(0, UpCanceled)]]);
}

#[test]
fn a_finger_that_hovers_can_be_dismissed() {
    let mut channel = opened();
    touch(&mut channel, vec![(0, vec![finger(3, 1, 1, HOVER)])]);
    let dismiss = encode_vec(&DismissHoveringTouchContactPdu::new(3)).unwrap();
    channel.handle_message(&dismiss).unwrap();
    channel.handle_message(&dismiss).unwrap();
    let expected = vec![vec![(0, ContactPhase::Hover)], vec![(0, ContactPhase::Leave)]];
    assert_eq!(phases(&mut channel), expected);
}

#[test]
fn while_nobody_takes_touch_the_client_is_told_to_be_silent() {
    let mut channel = opened();
    touch(&mut channel, vec![(0, vec![finger(0, 1, 1, DOWN), finger(1, 1, 1, HOVER)])]);
    outputs(&mut channel);
    channel.set_guest(None);
    channel.set_guest(None);
    let [TouchOutput::Touch(cancel), TouchOutput::Send(suspend)] = &outputs(&mut channel)[..] else { panic!("more") };
    let cancelled: Vec<_> = cancel.contacts.iter().map(|contact| (contact.id, contact.phase)).collect();
    assert_eq!(cancelled, [(0, ContactPhase::UpCanceled), (1, ContactPhase::LeaveCanceled)]);
    assert_eq!(suspend, &SUSPEND);

    // What was on its way, or comes from a client that does not listen.
    touch(&mut channel, vec![(0, vec![finger(0, 2, 1, MOVE), finger(1, 1, 1, DOWN), finger(2, 1, 1, DOWN)])]);
    assert_eq!(outputs(&mut channel), []);

    channel.set_guest(Some(GUEST));
    channel.set_guest(Some(GUEST));
    assert_eq!(outputs(&mut channel), [TouchOutput::Send(RESUME.to_vec())]);
    // Fingers that were down all the time are not taken for new ones.
    touch(&mut channel, vec![(0, vec![finger(0, 2, 1, MOVE), finger(1, 1, 1, UP), finger(2, 1, 1, MOVE)])]);
    assert_eq!(outputs(&mut channel), []);
    touch(&mut channel, vec![(0, vec![finger(0, 2, 1, UP), finger(1, 1, 1, DOWN)])]);
    assert_eq!(phases(&mut channel), vec![vec![(0, ContactPhase::Down)]]);
}

#[test]
fn a_client_that_is_ready_after_the_taker_has_gone_is_silenced_at_once() {
    let mut channel = TouchChannel::new(DESKTOP, Some(GUEST));
    channel.set_guest(None);
    assert_eq!(outputs(&mut channel), [TouchOutput::Send(pdu::sc_ready(true))]);
    channel.handle_message(&ready(CsReadyFlags::empty(), RdpInputProtocolVersion::V200)).unwrap();
    assert_eq!(outputs(&mut channel), [TouchOutput::Send(SUSPEND.to_vec())]);
    channel.set_guest(Some(GUEST));
    assert_eq!(outputs(&mut channel), [TouchOutput::Send(RESUME.to_vec())]);
}

#[test]
fn what_comes_out_of_sequence_is_ignored() {
    let mut channel = TouchChannel::new(DESKTOP, Some(GUEST));
    outputs(&mut channel);
    touch(&mut channel, vec![(0, vec![finger(0, 1, 1, DOWN)])]);
    assert_eq!(outputs(&mut channel), []);
    channel.handle_message(&ready(CsReadyFlags::empty(), RdpInputProtocolVersion::V100)).unwrap();
    channel.handle_message(&ready(CsReadyFlags::empty(), RdpInputProtocolVersion::V300)).unwrap();
    channel.handle_message(&[99, 0, 6, 0, 0, 0]).unwrap();
    // A client of version 1 has no pens.
    pen(&mut channel, 0, vec![PenContact::new(0, 1, 1, PenContactFlags::from_bits_retain(DOWN))]);
    assert_eq!(outputs(&mut channel), []);
}

#[test]
fn times_of_a_client_that_has_none_are_not_believed() {
    let flags = CsReadyFlags::DISABLE_TIMESTAMP_INJECTION;
    let mut channel = client(flags, RdpInputProtocolVersion::V101);
    touch(&mut channel, vec![(5000, vec![finger(0, 1, 1, DOWN)]), (5000, vec![finger(0, 1, 1, MOVE)])]);
    for output in outputs(&mut channel) {
        assert!(matches!(output, TouchOutput::Touch(frame) if frame.since_previous.is_zero()));
    }
}

#[test]
fn a_frame_without_news_adds_its_time_to_the_next() {
    let mut channel = opened();
    touch(&mut channel, vec![(0, vec![finger(0, 1, 1, DOWN)]), (2000, vec![]), (3000, vec![finger(0, 1, 1, UP)])]);
    let times: Vec<_> = outputs(&mut channel)
        .into_iter()
        .map(|output| match output {
            TouchOutput::Touch(frame) => frame.since_previous.as_micros(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(times, [0, 5000]);
}

#[test]
fn pens_have_pressure_tilt_rotation_and_buttons() {
    let mut channel = opened();
    let flags = PenContactFlags::from_bits_retain;
    let contact = PenContact::new(7, 10, 20, flags(DOWN))
        .with_pen_flags(PenFlags::BARREL_PRESSED | PenFlags::INVERTED)
        .with_pressure(512)
        .with_rotation(90)
        .with_tilt(-45, 300);
    pen(&mut channel, 0, vec![contact]);
    pen(&mut channel, 4000, vec![PenContact::new(7, 90, 90, flags(LIFT))]);
    let plain = PenEvent {
        device: 0,
        phase: ContactPhase::Lift,
        position: FinePoint { x: 1050, y: 2050 },
        buttons: PenButtons::default(),
        pressure: None,
        rotation: None,
        tilt: None,
        since_previous: Duration::from_millis(4),
    };
    let drawn = PenEvent {
        phase: ContactPhase::Down,
        buttons: PenButtons { barrel: true, eraser: false, inverted: true },
        pressure: Some(0x7fff),
        rotation: Some(90),
        tilt: Some(PenTilt { x: -45, y: 90 }),
        since_previous: Duration::ZERO,
        ..plain
    };
    assert_eq!(outputs(&mut channel), [TouchOutput::Pen(drawn), TouchOutput::Pen(plain)]);
    channel.cancel_all();
    channel.cancel_all();
    let cancel = PenEvent { phase: ContactPhase::LeaveCanceled, since_previous: Duration::ZERO, ..plain };
    assert_eq!(outputs(&mut channel), [TouchOutput::Pen(cancel)]);
}

#[test]
fn a_client_that_did_not_ask_for_several_pens_has_one() {
    let pens = |id| PenContact::new(id, 1, 1, PenContactFlags::from_bits_retain(DOWN));
    let mut channel = client(CsReadyFlags::empty(), RdpInputProtocolVersion::V300);
    pen(&mut channel, 0, vec![pens(0), pens(1)]);
    assert_eq!(outputs(&mut channel).len(), 1);
    let mut channel = opened();
    pen(&mut channel, 0, (0..6).map(pens).collect());
    assert_eq!(outputs(&mut channel).len(), MAX_PENS);
}

proptest! {
    #[test]
    fn any_messages_end_in_output_or_an_error(messages in proptest::collection::vec(
        (prop_oneof![Just(3_u8), Just(6), Just(8), any::<u8>()], proptest::collection::vec(any::<u8>(), 0..100)), 0..20)) {
        let mut channel = opened();
        for (id, body) in messages {
            let length = u32::try_from(6 + body.len()).unwrap();
            let message = [&[id, 0][..], &length.to_le_bytes(), &body].concat();
            let _ = channel.handle_message(&message);
            outputs(&mut channel);
        }
    }
}
