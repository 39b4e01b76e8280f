//! Messages of the channel (MS-RDPEI 2.2.3): bytes ⇄ values. What the client sends is checked for its form only.

use console::ContactPhase;

use super::TouchError;
use super::wire::Reader;

/// The oldest version whose peers know pens.
pub(super) const VERSION_2_0: u32 = 0x0002_0000;
/// The newest version: features that are told apart.
const VERSION_3_0: u32 = 0x0003_0000;
/// The newest version that has fingers only.
const VERSION_1_0_1: u32 = 0x0001_0001;
/// Frames in one message: more than a second of the fastest digitizer.
pub(super) const MAX_FRAMES: usize = 256;

const HEADER_BYTES: usize = 6;
/// A contact has at least an id, the fields it has, two coordinates and its flags.
const LEAST_CONTACT_BYTES: usize = 5;
/// A frame has at least a count and an offset.
const LEAST_FRAME_BYTES: usize = 2;
/// `SC_READY_MULTIPEN_INJECTION_SUPPORTED`: up to four pens at the same time.
const MULTIPEN_SUPPORTED: u32 = 0x0000_0001;

/// RDPINPUT_HEADER, `eventId` (2.2.2.6).
mod event_id {
    pub(super) const SC_READY: u16 = 1;
    pub(super) const CS_READY: u16 = 2;
    pub(super) const TOUCH: u16 = 3;
    pub(super) const SUSPEND_INPUT: u16 = 4;
    pub(super) const RESUME_INPUT: u16 = 5;
    pub(super) const DISMISS_HOVERING: u16 = 6;
    pub(super) const PEN: u16 = 8;
}

/// RDPINPUT_CS_READY_PDU, `flags` (2.2.3.2).
mod ready_flag {
    pub(super) const DISABLE_TIMESTAMP_INJECTION: u32 = 0x0000_0002;
    pub(super) const ENABLE_MULTIPEN_INJECTION: u32 = 0x0000_0004;
}

/// RDPINPUT_TOUCH_CONTACT, `fieldsPresent` (2.2.3.3.1.1).
mod touch_field {
    pub(super) const CONTACT_RECT: u16 = 0x0001;
    pub(super) const ORIENTATION: u16 = 0x0002;
    pub(super) const PRESSURE: u16 = 0x0004;
}

/// RDPINPUT_PEN_CONTACT, `fieldsPresent` (2.2.3.7.1.1).
mod pen_field {
    pub(super) const PEN_FLAGS: u16 = 0x0001;
    pub(super) const PRESSURE: u16 = 0x0002;
    pub(super) const ROTATION: u16 = 0x0004;
    pub(super) const TILT_X: u16 = 0x0008;
    pub(super) const TILT_Y: u16 = 0x0010;
}

/// A message of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ClientPdu {
    /// RDPINPUT_CS_READY_PDU (2.2.3.2).
    Ready(CsReady),
    /// RDPINPUT_TOUCH_EVENT_PDU (2.2.3.3), oldest frame first.
    Touch(Vec<Frame<Contact>>),
    /// RDPINPUT_DISMISS_HOVERING_TOUCH_CONTACT_PDU (2.2.3.6), with the contact's id.
    DismissHovering(u8),
    /// RDPINPUT_PEN_EVENT_PDU (2.2.3.7), oldest frame first.
    Pen(Vec<Frame<Pen>>),
    /// One that no client sends, or that later versions do: it is to be ignored (3.1.5.1).
    Unexpected(u16),
}

/// What the client can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CsReady {
    pub(super) version: u32,
    /// Whether the times of its frames mean something.
    pub(super) timestamps: bool,
    /// Whether it may use several pens.
    pub(super) multipen: bool,
    pub(super) max_contacts: u16,
}

/// What several contacts did at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame<T> {
    /// Microseconds after the frame before.
    pub(super) offset: u64,
    pub(super) contacts: Vec<T>,
}

/// What fingers and pens have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Common {
    /// `contactId` or `deviceId`.
    pub(super) id: u8,
    /// Pixels of the client's desktop.
    pub(super) x: i32,
    /// Pixels of the client's desktop.
    pub(super) y: i32,
    /// What the flags say that it did; none when they are no combination that the specification allows.
    pub(super) phase: Option<ContactPhase>,
}

impl Common {
    /// The same contact, doing that.
    pub(super) fn with(self, phase: ContactPhase) -> Self {
        Self { phase: Some(phase), ..self }
    }
}

/// RDPINPUT_TOUCH_CONTACT (2.2.3.3.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Contact {
    pub(super) common: Common,
    /// Pixels that it covers: left, top, right, bottom.
    pub(super) rect: Option<[i16; 4]>,
    /// Degrees, counter-clockwise.
    pub(super) orientation: Option<u32>,
    /// 0 to 1024.
    pub(super) pressure: Option<u32>,
}

/// RDPINPUT_PEN_CONTACT (2.2.3.7.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pen {
    pub(super) common: Common,
    /// See `PEN_FLAG_…`.
    pub(super) flags: Option<u32>,
    /// 0 to 1024.
    pub(super) pressure: Option<u32>,
    /// Degrees, clockwise.
    pub(super) rotation: Option<u16>,
    /// Degrees to the right.
    pub(super) tilt_x: Option<i16>,
    /// Degrees towards the user.
    pub(super) tilt_y: Option<i16>,
}

/// Reads one message of the client.
///
/// # Errors
///
/// When its length is not the announced one, when it ends inside a field, or when a count or a field cannot be.
pub(super) fn decode(message: &[u8]) -> Result<ClientPdu, TouchError> {
    let mut reader = Reader::new(message);
    let id = reader.u16()?;
    let announced = reader.u32()?;
    if usize::try_from(announced) != Ok(message.len()) {
        return Err(TouchError::Length { announced, real: message.len() });
    }
    let pdu = match id {
        // A later version may send more after it, as the server's does since version 3.
        event_id::CS_READY => return Ok(ClientPdu::Ready(cs_ready(&mut reader)?)),
        event_id::TOUCH => ClientPdu::Touch(frames(&mut reader, contact)?),
        event_id::DISMISS_HOVERING => ClientPdu::DismissHovering(reader.u8()?),
        event_id::PEN => ClientPdu::Pen(frames(&mut reader, pen)?),
        other => return Ok(ClientPdu::Unexpected(other)),
    };
    if reader.left() > 0 { Err(TouchError::TooLong(reader.left())) } else { Ok(pdu) }
}

/// RDPINPUT_SC_READY_PDU (2.2.3.1): the newest version, with several pens, or the newest that has none.
pub(super) fn sc_ready(pens: bool) -> Vec<u8> {
    if pens {
        let body = [VERSION_3_0.to_le_bytes(), MULTIPEN_SUPPORTED.to_le_bytes()].concat();
        encode(event_id::SC_READY, &body)
    } else {
        encode(event_id::SC_READY, &VERSION_1_0_1.to_le_bytes())
    }
}

/// RDPINPUT_SUSPEND_INPUT_PDU (2.2.3.4).
pub(super) fn suspend_input() -> Vec<u8> {
    encode(event_id::SUSPEND_INPUT, &[])
}

/// RDPINPUT_RESUME_INPUT_PDU (2.2.3.5).
pub(super) fn resume_input() -> Vec<u8> {
    encode(event_id::RESUME_INPUT, &[])
}

fn encode(id: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + body.len()).expect("our own messages are a few bytes long");
    [&id.to_le_bytes()[..], &length.to_le_bytes(), body].concat()
}

fn cs_ready(reader: &mut Reader<'_>) -> Result<CsReady, TouchError> {
    let flags = reader.u32()?;
    Ok(CsReady {
        version: reader.u32()?,
        timestamps: flags & ready_flag::DISABLE_TIMESTAMP_INJECTION == 0,
        multipen: flags & ready_flag::ENABLE_MULTIPEN_INJECTION != 0,
        max_contacts: reader.u16()?,
    })
}

/// The bodies of both events: the time of encoding, which says nothing about the time of the frames, and the frames.
fn frames<T>(
    reader: &mut Reader<'_>,
    contact: impl Fn(&mut Reader<'_>) -> Result<T, TouchError>,
) -> Result<Vec<Frame<T>>, TouchError> {
    let _encode_time = reader.unsigned_30()?;
    let count = reader.unsigned_15()?.into();
    if count > MAX_FRAMES {
        return Err(TouchError::TooManyFrames(count));
    }
    repeat(reader, count, LEAST_FRAME_BYTES, |reader| {
        let count = reader.unsigned_15()?.into();
        let offset = reader.unsigned_61()?;
        Ok(Frame { offset, contacts: repeat(reader, count, LEAST_CONTACT_BYTES, &contact)? })
    })
}

/// Reads `count` items of `least` bytes each or more.
fn repeat<T>(
    reader: &mut Reader<'_>,
    count: usize,
    least: usize,
    item: impl Fn(&mut Reader<'_>) -> Result<T, TouchError>,
) -> Result<Vec<T>, TouchError> {
    if count * least > reader.left() {
        return Err(TouchError::Truncated);
    }
    (0..count).map(|_| item(reader)).collect()
}

fn contact(reader: &mut Reader<'_>) -> Result<Contact, TouchError> {
    use touch_field::{CONTACT_RECT, ORIENTATION, PRESSURE};
    let (common, fields) = common(reader, CONTACT_RECT | ORIENTATION | PRESSURE)?;
    let mut rect = None;
    if fields & CONTACT_RECT != 0 {
        rect = Some([reader.signed_14()?, reader.signed_14()?, reader.signed_14()?, reader.signed_14()?]);
    }
    Ok(Contact {
        common,
        rect,
        orientation: when(fields & ORIENTATION, || reader.unsigned_30())?,
        pressure: when(fields & PRESSURE, || reader.unsigned_30())?,
    })
}

fn pen(reader: &mut Reader<'_>) -> Result<Pen, TouchError> {
    use pen_field::{PEN_FLAGS, PRESSURE, ROTATION, TILT_X, TILT_Y};
    let (common, fields) = common(reader, PEN_FLAGS | PRESSURE | ROTATION | TILT_X | TILT_Y)?;
    Ok(Pen {
        common,
        flags: when(fields & PEN_FLAGS, || reader.unsigned_30())?,
        pressure: when(fields & PRESSURE, || reader.unsigned_30())?,
        rotation: when(fields & ROTATION, || reader.unsigned_15())?,
        tilt_x: when(fields & TILT_X, || reader.signed_14())?,
        tilt_y: when(fields & TILT_Y, || reader.signed_14())?,
    })
}

/// The fields that always come, and which of the `known` others follow. How long an unknown one is, nobody knows.
fn common(reader: &mut Reader<'_>, known: u16) -> Result<(Common, u16), TouchError> {
    let id = reader.u8()?;
    let fields = reader.unsigned_15()?;
    if fields & !known != 0 {
        return Err(TouchError::UnknownFields(fields));
    }
    let (x, y) = (reader.signed_29()?, reader.signed_29()?);
    Ok((Common { id, x, y, phase: phase(reader.unsigned_30()?) }, fields))
}

fn when<T>(flag: u16, field: impl FnOnce() -> Result<T, TouchError>) -> Result<Option<T>, TouchError> {
    if flag == 0 { Ok(None) } else { field().map(Some) }
}

/// `contactFlags`: the eight combinations that there are (2.2.3.3.1.1).
fn phase(flags: u32) -> Option<ContactPhase> {
    const DOWN: u32 = 0x01;
    const UPDATE: u32 = 0x02;
    const UP: u32 = 0x04;
    const IN_RANGE: u32 = 0x08;
    const IN_CONTACT: u32 = 0x10;
    const CANCELED: u32 = 0x20;
    [
        (DOWN | IN_RANGE | IN_CONTACT, ContactPhase::Down),
        (UPDATE | IN_RANGE | IN_CONTACT, ContactPhase::Move),
        (UPDATE | IN_RANGE, ContactPhase::Hover),
        (UP | IN_RANGE, ContactPhase::Lift),
        (UP, ContactPhase::Up),
        (UPDATE, ContactPhase::Leave),
        (UP | CANCELED, ContactPhase::UpCanceled),
        (UPDATE | CANCELED, ContactPhase::LeaveCanceled),
    ]
    .into_iter()
    .find_map(|(combination, phase)| (flags == combination).then_some(phase))
}

#[cfg(test)]
mod tests {
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
}
