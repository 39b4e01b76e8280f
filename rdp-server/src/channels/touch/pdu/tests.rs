use ironrdp_core::{decode as read, encode_vec};
use ironrdp_rdpei::pdu::{
    CsReadyFlags, CsReadyPdu, DismissHoveringTouchContactPdu, PenContact, PenContactDataFlags, PenContactFlags,
    PenEventPdu, PenFlags, PenFrame, RdpInputProtocolVersion, RdpeiPdu, ScReadyFeatures, ScReadyPdu, TouchContact,
    TouchContactDataFlags, TouchContactFlags, TouchEventPdu, TouchFrame,
};
use proptest::prelude::*;

use super::*;

/// Another implementation's contact, with any of the fields that it may have.
fn touch_contact() -> impl Strategy<Value = TouchContact> {
    let place = (-0x1fff_ffff..=0x1fff_ffff_i32, -0x1fff_ffff..=0x1fff_ffff_i32);
    let side = -0x3fff..=0x3fff_i16;
    let rect = [side.clone(), side.clone(), side.clone(), side];
    let numbers = (0..0x4000_0000_u32, 0..0x4000_0000_u32);
    (any::<u8>(), place, 0..0x40_u32, 0..8_u16, rect, numbers).prop_map(
        |(id, (x, y), flags, fields, [left, top, right, bottom], (orientation, pressure))| {
            let mut contact = TouchContact::new(id, x, y, TouchContactFlags::from_bits_retain(flags));
            let fields = TouchContactDataFlags::from_bits_retain(fields);
            if fields.contains(TouchContactDataFlags::CONTACTRECT_PRESENT) {
                contact = contact.with_contact_rect(left, top, right, bottom);
            }
            if fields.contains(TouchContactDataFlags::ORIENTATION_PRESENT) {
                contact = contact.with_orientation(orientation);
            }
            if fields.contains(TouchContactDataFlags::PRESSURE_PRESENT) {
                contact = contact.with_pressure(pressure);
            }
            contact
        },
    )
}

fn pen_contact() -> impl Strategy<Value = PenContact> {
    let place = (-0x1fff_ffff..=0x1fff_ffff_i32, -0x1fff_ffff..=0x1fff_ffff_i32);
    let numbers = (0..8_u32, 0..0x4000_0000_u32, 0..0x8000_u16, -0x3fff..=0x3fff_i16, -0x3fff..=0x3fff_i16);
    (any::<u8>(), place, 0..0x40_u32, 0..32_u16, numbers).prop_map(
        |(id, (x, y), contact_flags, fields, (flags, pressure, rotation, tilt_x, tilt_y))| {
            let mut pen = PenContact::new(id, x, y, PenContactFlags::from_bits_retain(contact_flags));
            pen.fields_present = PenContactDataFlags::from_bits_retain(fields);
            let has = |field| pen.fields_present.contains(field);
            pen.fields.pen_flags =
                has(PenContactDataFlags::PENFLAGS_PRESENT).then(|| PenFlags::from_bits_retain(flags));
            pen.fields.pressure = has(PenContactDataFlags::PRESSURE_PRESENT).then_some(pressure);
            pen.fields.rotation = has(PenContactDataFlags::ROTATION_PRESENT).then_some(rotation);
            pen.fields.tilt_x = has(PenContactDataFlags::TILTX_PRESENT).then_some(tilt_x);
            pen.fields.tilt_y = has(PenContactDataFlags::TILTY_PRESENT).then_some(tilt_y);
            pen
        },
    )
}

fn ours(contact: &TouchContact) -> Contact {
    let fields = &contact.fields;
    let left = fields.contact_rect_left;
    Contact {
        common: Common {
            id: contact.contact_id,
            x: contact.x,
            y: contact.y,
            phase: phase(contact.contact_flags.bits()),
        },
        rect: left.map(|left| {
            let others = [fields.contact_rect_top, fields.contact_rect_right, fields.contact_rect_bottom];
            let [top, right, bottom] = others.map(Option::unwrap);
            [left, top, right, bottom]
        }),
        orientation: fields.orientation,
        pressure: fields.pressure,
    }
}

fn our_pen(pen: &PenContact) -> Pen {
    Pen {
        common: Common { id: pen.device_id, x: pen.x, y: pen.y, phase: phase(pen.contact_flags.bits()) },
        flags: pen.fields.pen_flags.map(|flags| flags.bits()),
        pressure: pen.fields.pressure,
        rotation: pen.fields.rotation,
        tilt_x: pen.fields.tilt_x,
        tilt_y: pen.fields.tilt_y,
    }
}

#[test]
fn what_we_send_is_what_another_implementation_reads() {
    let ready =
        ScReadyPdu::new(RdpInputProtocolVersion::V300).with_features(ScReadyFeatures::MULTIPEN_INJECTION_SUPPORTED);
    assert_eq!(read::<RdpeiPdu>(&sc_ready(true)).unwrap(), RdpeiPdu::ScReady(ready));
    let fingers = ScReadyPdu::new(RdpInputProtocolVersion::V101);
    assert_eq!(read::<RdpeiPdu>(&sc_ready(false)).unwrap(), RdpeiPdu::ScReady(fingers));
    assert_eq!(read::<RdpeiPdu>(&suspend_input()).unwrap(), RdpeiPdu::SuspendInput);
    assert_eq!(read::<RdpeiPdu>(&resume_input()).unwrap(), RdpeiPdu::ResumeInput);
    assert_eq!(sc_ready(true), [1, 0, 14, 0, 0, 0, 0, 0, 3, 0, 1, 0, 0, 0]);
}

#[test]
fn what_the_client_can_do_is_read() {
    let flags = CsReadyFlags::DISABLE_TIMESTAMP_INJECTION | CsReadyFlags::SHOW_TOUCH_VISUALS;
    let message = encode_vec(&CsReadyPdu::new(flags, RdpInputProtocolVersion::V101, 10)).unwrap();
    let ready = CsReady { version: 0x0001_0001, timestamps: false, multipen: false, max_contacts: 10 };
    assert_eq!(decode(&message), Ok(ClientPdu::Ready(ready)));
    let flags = CsReadyFlags::ENABLE_MULTIPEN_INJECTION;
    let message = encode_vec(&CsReadyPdu::new(flags, RdpInputProtocolVersion::V300, 256)).unwrap();
    let ready = CsReady { version: VERSION_3_0, timestamps: true, multipen: true, max_contacts: 256 };
    assert_eq!(decode(&message), Ok(ClientPdu::Ready(ready)));
    // A version that does not exist yet, with a field that does not exist yet.
    let later = [2, 0, 18, 0, 0, 0, 4, 0, 0, 0, 0, 0, 9, 0, 10, 0, 7, 7];
    let ready = CsReady { version: 0x0009_0000, timestamps: true, multipen: true, max_contacts: 10 };
    assert_eq!(decode(&later), Ok(ClientPdu::Ready(ready)));
}

#[test]
fn the_eight_combinations_of_flags_are_phases_and_no_other_is() {
    let legal = |flags: &u32| TouchContactFlags::from_bits_retain(*flags).is_legal();
    let phases: Vec<_> = (0..=0xff_u32).filter(legal).map(phase).collect();
    assert_eq!(phases.len(), 8);
    assert!(phases.iter().all(Option::is_some));
    assert!((0..=0xff_u32).filter(|flags| !legal(flags)).all(|flags| phase(flags).is_none()));
}

#[test]
fn what_nobody_expects_is_told_apart_from_what_is_broken() {
    assert_eq!(decode(&[9, 0, 8, 0, 0, 0, 1, 2]), Ok(ClientPdu::Unexpected(9)));
    assert_eq!(decode(&sc_ready(true)), Ok(ClientPdu::Unexpected(1)));
    assert_eq!(decode(&[6, 0, 7, 0, 0, 0, 3]), Ok(ClientPdu::DismissHovering(3)));
    let dismiss = encode_vec(&DismissHoveringTouchContactPdu::new(255)).unwrap();
    assert_eq!(decode(&dismiss), Ok(ClientPdu::DismissHovering(255)));
}

#[test]
fn broken_messages_are_refused() {
    for (message, error) in [
        (&[][..], TouchError::Truncated),
        (&[3, 0, 6, 0, 0], TouchError::Truncated),
        (&[3, 0, 7, 0, 0, 0], TouchError::Length { announced: 7, real: 6 }),
        (&[3, 0, 6, 0, 0, 0, 0], TouchError::Length { announced: 6, real: 7 }),
        (&[6, 0, 8, 0, 0, 0, 1, 1], TouchError::TooLong(1)),
        (&[6, 0, 6, 0, 0, 0], TouchError::Truncated),
        (&[2, 0, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 10], TouchError::Truncated),
        // 257 frames; one frame that is not there; 32767 contacts that are not there.
        (&[3, 0, 9, 0, 0, 0, 0, 0x81, 1], TouchError::TooManyFrames(257)),
        (&[3, 0, 8, 0, 0, 0, 0, 1], TouchError::Truncated),
        (&[8, 0, 11, 0, 0, 0, 0, 1, 0xff, 0xff, 0], TouchError::Truncated),
        // A contact with a field of the future.
        (&[3, 0, 15, 0, 0, 0, 0, 1, 1, 0, 0, 8, 0, 0, 0x19], TouchError::UnknownFields(8)),
        (&[8, 0, 15, 0, 0, 0, 0, 1, 1, 0, 0, 32, 0, 0, 0x19], TouchError::UnknownFields(32)),
    ] {
        assert_eq!(decode(message), Err(error), "{message:02x?}");
    }
}

proptest! {
    #[test]
    fn what_another_implementation_sends_is_read(time in 0..0x4000_0000_u32, frames in proptest::collection::vec(
        (0..0x2000_0000_0000_0000_u64, proptest::collection::vec(touch_contact(), 0..5)), 0..5)) {
        let wanted = frames.iter().map(|(offset, contacts)| Frame {
            offset: *offset,
            contacts: contacts.iter().map(ours).collect(),
        });
        let wanted = ClientPdu::Touch(wanted.collect());
        let frames = frames.into_iter().map(|(offset, contacts)| TouchFrame::new(offset, contacts)).collect();
        let message = encode_vec(&TouchEventPdu::new(time, frames)).unwrap();
        prop_assert_eq!(decode(&message), Ok(wanted));
    }

    #[test]
    fn pens_of_another_implementation_are_read(frames in proptest::collection::vec(
        (0..0x2000_0000_0000_0000_u64, proptest::collection::vec(pen_contact(), 0..5)), 0..5)) {
        let wanted = frames.iter().map(|(offset, pens)| Frame {
            offset: *offset,
            contacts: pens.iter().map(our_pen).collect(),
        });
        let wanted = ClientPdu::Pen(wanted.collect());
        let frames = frames.into_iter().map(|(offset, pens)| PenFrame::new(offset, pens)).collect();
        let message = encode_vec(&PenEventPdu::new(0, frames)).unwrap();
        prop_assert_eq!(decode(&message), Ok(wanted));
    }

    #[test]
    fn any_bytes_end_in_a_message_or_an_error(mut bytes in proptest::collection::vec(any::<u8>(), 6..200)) {
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[1] = 0;
        bytes[2..6].copy_from_slice(&length.to_le_bytes());
        let _ = decode(&bytes);
    }
}
