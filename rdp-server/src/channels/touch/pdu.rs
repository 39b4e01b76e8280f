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
mod tests;
