//! How `console`'s fingers and pens are written.

use std::ops::Deref;

use console::{
    ContactPhase, ContactSize, FinePoint, MAX_CONTACTS, PenButtons, PenEvent, PenTilt, TouchContact, TouchFrame,
};
#[cfg(test)]
use proptest::prelude::*;

use super::ToGuest;
use crate::class::bounded;
use crate::class::define::{foreign_codes, foreign_flags};
use crate::class::field::Field;
use crate::wire::{Malformed, Reader, Writer};

/// Fingers of one moment: at most [`MAX_CONTACTS`], no id twice. On the wire: u16 count, then each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contacts(Vec<TouchContact>);

impl Contacts {
    /// All of `contacts`.
    ///
    /// # Errors
    ///
    /// When there are too many, or an id stands there twice.
    pub fn new(contacts: Vec<TouchContact>) -> Result<Self, Malformed> {
        bounded::check("contacts", contacts.len(), MAX_CONTACTS)?;
        let mut seen: Vec<_> = contacts.iter().map(|contact| contact.id).collect();
        seen.sort_unstable();
        match seen.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Malformed::Value { what: "contact id", value: pair[0].into() }),
            None => Ok(Self(contacts)),
        }
    }

    /// The fingers.
    #[must_use]
    pub fn into_vec(self) -> Vec<TouchContact> {
        self.0
    }
}

impl Deref for Contacts {
    type Target = [TouchContact];

    fn deref(&self) -> &[TouchContact] {
        &self.0
    }
}

impl ToGuest {
    /// The message for a frame on a monitor (index in the layout).
    ///
    /// # Errors
    ///
    /// When the frame has too many fingers, or an id twice.
    pub fn touch(serial: u32, monitor: u16, frame: TouchFrame) -> Result<Self, Malformed> {
        let contacts = Contacts::new(frame.contacts)?;
        Ok(Self::Touch { serial, monitor, contacts, since_previous: frame.since_previous })
    }
}

impl Field for Contacts {
    const MAX_BYTES: usize = 2 + MAX_CONTACTS * TouchContact::MAX_BYTES;

    fn write(&self, writer: &mut Writer) {
        writer.u16(u16::try_from(self.len()).unwrap_or(u16::MAX));
        for contact in self.iter() {
            contact.write(writer);
        }
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        let count = usize::from(reader.u16(what)?);
        bounded::check(what, count, MAX_CONTACTS)?;
        Self::new((0..count).map(|_| TouchContact::read(reader, what)).collect::<Result<_, _>>()?)
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        let contacts = proptest::collection::vec(TouchContact::any(), 0..=MAX_CONTACTS);
        let with_ids = contacts.prop_map(|mut contacts| {
            for (id, contact) in contacts.iter_mut().enumerate() {
                contact.id = u16::try_from(id * 7).expect("small");
            }
            Self(contacts)
        });
        with_ids.boxed()
    }
}

impl Field for TouchContact {
    const MAX_BYTES: usize = 2 + 1 + FinePoint::MAX_BYTES + 3 + (1 + ContactSize::MAX_BYTES) + 3;

    fn write(&self, writer: &mut Writer) {
        self.id.write(writer);
        self.phase.write(writer);
        self.position.write(writer);
        self.pressure.write(writer);
        self.size.write(writer);
        self.orientation.map(Degrees::turned).write(writer);
    }

    fn read(reader: &mut Reader<'_>, _: &'static str) -> Result<Self, Malformed> {
        Ok(Self {
            id: Field::read(reader, "contact id")?,
            phase: Field::read(reader, "contact flags")?,
            position: Field::read(reader, "contact position")?,
            pressure: Field::read(reader, "contact pressure")?,
            size: Field::read(reader, "contact size")?,
            orientation: Option::<Degrees>::read(reader, "contact orientation")?.map(|angle| angle.0),
        })
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        let touch = (any::<Option<u16>>(), Option::<ContactSize>::any(), proptest::option::of(0..360u16));
        (any::<u16>(), ContactPhase::any(), FinePoint::any(), touch)
            .prop_map(|(id, phase, position, (pressure, size, orientation))| Self {
                id,
                phase,
                position,
                pressure,
                size,
                orientation,
            })
            .boxed()
    }
}

impl Field for PenEvent {
    const MAX_BYTES: usize = 1 + 1 + FinePoint::MAX_BYTES + 1 + 3 + 3 + 3 + 8;

    fn write(&self, writer: &mut Writer) {
        self.device.write(writer);
        self.phase.write(writer);
        self.position.write(writer);
        self.buttons.write(writer);
        self.pressure.write(writer);
        self.rotation.map(Degrees::turned).write(writer);
        self.tilt.write(writer);
        self.since_previous.write(writer);
    }

    fn read(reader: &mut Reader<'_>, _: &'static str) -> Result<Self, Malformed> {
        Ok(Self {
            device: Field::read(reader, "pen device")?,
            phase: Field::read(reader, "pen flags")?,
            position: Field::read(reader, "pen position")?,
            buttons: Field::read(reader, "pen buttons")?,
            pressure: Field::read(reader, "pen pressure")?,
            rotation: Option::<Degrees>::read(reader, "pen rotation")?.map(|angle| angle.0),
            tilt: Field::read(reader, "pen tilt")?,
            since_previous: Field::read(reader, "time since the pen's event before")?,
        })
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        let place = (any::<u8>(), ContactPhase::any(), FinePoint::any(), PenButtons::any());
        let touch = (any::<Option<u16>>(), proptest::option::of(0..360u16), Option::<PenTilt>::any());
        (place, touch, std::time::Duration::any())
            .prop_map(|((device, phase, position, buttons), (pressure, rotation, tilt), since_previous)| Self {
                device,
                phase,
                position,
                buttons,
                pressure,
                rotation,
                tilt,
                since_previous,
            })
            .boxed()
    }
}

/// An angle, 0 to 359. On the wire: u16.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Degrees(u16);

impl Degrees {
    const TURN: u16 = 360;

    /// Whole turns are none.
    const fn turned(degrees: u16) -> Self {
        Self(degrees % Self::TURN)
    }
}

impl Field for Degrees {
    const MAX_BYTES: usize = 2;

    fn write(&self, writer: &mut Writer) {
        writer.u16(self.0);
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        match reader.u16(what)? {
            degrees if degrees < Self::TURN => Ok(Self(degrees)),
            degrees => Err(Malformed::Value { what, value: degrees.into() }),
        }
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        (0..Self::TURN).prop_map(Self).boxed()
    }
}

// The bits are those of MS-RDPEI 2.2.3.3.1.1 and of Windows' injection: 1 down, 2 update, 4 up, 8 in range,
// 0x10 in contact, 0x20 canceled. There are no other combinations.
foreign_codes! {
    ContactPhase: u8 {
        Down = 0x19,
        Move = 0x1a,
        Hover = 0x0a,
        Lift = 0x0c,
        Up = 0x04,
        Leave = 0x02,
        UpCanceled = 0x24,
        LeaveCanceled = 0x22,
    }
}

foreign_flags! { PenButtons: u8 { barrel = 1, eraser = 2, inverted = 4 } }

/// u32 width, u32 height.
impl Field for ContactSize {
    const MAX_BYTES: usize = 8;

    fn write(&self, writer: &mut Writer) {
        writer.u32(self.width).u32(self.height);
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        Ok(Self { width: reader.u32(what)?, height: reader.u32(what)? })
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        any::<(u32, u32)>().prop_map(|(width, height)| Self { width, height }).boxed()
    }
}

/// Upright is 0; this is flat.
const FLAT: i8 = 90;

/// i8 x, i8 y, each −90 to 90.
impl Field for PenTilt {
    const MAX_BYTES: usize = 2;

    fn write(&self, writer: &mut Writer) {
        self.x.clamp(-FLAT, FLAT).write(writer);
        self.y.clamp(-FLAT, FLAT).write(writer);
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        let mut angle = || match i8::read(reader, what)? {
            angle if (-FLAT..=FLAT).contains(&angle) => Ok(angle),
            angle => Err(Malformed::Value { what, value: u64::from(angle.cast_unsigned()) }),
        };
        Ok(Self { x: angle()?, y: angle()? })
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        (-FLAT..=FLAT, -FLAT..=FLAT).prop_map(|(x, y)| Self { x, y }).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn finger(id: u16) -> TouchContact {
        TouchContact {
            id,
            phase: ContactPhase::Down,
            position: FinePoint { x: 150, y: -1 },
            pressure: Some(0x0102),
            size: None,
            orientation: Some(90),
        }
    }

    #[test]
    fn a_touch_reads_as_it_is_specified() {
        let frame = TouchFrame { contacts: vec![finger(3)], since_previous: Duration::from_nanos(5) };
        let message = ToGuest::touch(2, 1, frame).expect("one finger");
        let bytes = [
            [0x03, 0, 0, 0, 2, 0, 0, 0, 1, 0, 1, 0].as_slice(),
            &[3, 0, 0x19, 150, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
            &[1, 0x02, 0x01, 0, 1, 90, 0],
            &[5, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(message.encode(), bytes);
        assert_eq!(ToGuest::decode(&bytes), Ok(message));
    }

    #[test]
    fn a_pen_reads_as_it_is_specified() {
        let event = PenEvent {
            device: 1,
            phase: ContactPhase::Hover,
            position: FinePoint { x: 1, y: 2 },
            buttons: PenButtons { barrel: true, eraser: false, inverted: true },
            pressure: None,
            rotation: Some(359),
            tilt: Some(PenTilt { x: -90, y: 0 }),
            since_previous: Duration::ZERO,
        };
        let bytes = [
            [0x04, 0, 0, 0, 9, 0, 0, 0, 0, 0].as_slice(),
            &[1, 0x0a, 1, 0, 0, 0, 2, 0, 0, 0, 5],
            &[0, 1, 0x67, 0x01, 1, 0xa6, 0],
            &[0; 8],
        ]
        .concat();
        let message = ToGuest::Pen { serial: 9, monitor: 0, event };
        assert_eq!(message.encode(), bytes);
        assert_eq!(ToGuest::decode(&bytes), Ok(message));
    }

    #[test]
    fn a_frame_has_each_finger_once_and_not_too_many() {
        assert!(Contacts::new(vec![finger(1), finger(2), finger(1)]).is_err());
        assert!(Contacts::new((0..64).map(finger).collect()).is_ok());
        assert!(Contacts::new((0..65).map(finger).collect()).is_err());
        let mut bytes = ToGuest::touch(0, 0, TouchFrame { contacts: vec![finger(1)], ..TouchFrame::default() })
            .expect("one finger")
            .encode();
        bytes[10] = 65;
        assert!(ToGuest::decode(&bytes).is_err());
    }

    #[test]
    fn flags_that_no_contact_can_have_are_refused() {
        let valid = (0..=u8::MAX).filter(|flags| ContactPhase::read(&mut Reader::new(&[*flags]), "flags").is_ok());
        assert_eq!(valid.count(), 8);
    }

    #[test]
    fn angles_out_of_range_are_turned_or_held_when_written_and_refused_when_read() {
        let mut writer = Writer::new();
        TouchContact { orientation: Some(450), ..finger(0) }.write(&mut writer);
        PenTilt { x: 127, y: -128 }.write(&mut writer);
        assert!(writer.into_bytes().ends_with(&[1, 90, 0, 90, 0xa6]));
        assert!(PenTilt::read(&mut Reader::new(&[91, 0]), "tilt").is_err());
        assert!(Degrees::read(&mut Reader::new(&[0x68, 0x01]), "angle").is_err());
    }
}
