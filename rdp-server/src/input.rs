//! The client's keyboard and pointer: fast-path (MS-RDPBCGR 2.2.8.1.2) and slow-path (2.2.8.1.1.3) input.
//!
//! Bytes become [`console`] nouns at once; nothing is queued or remembered here. Coordinates are those of the
//! session's desktop, which is the monitor's picture pixel by pixel.

use console::{
    KeyEvent, KeyState, LockKeys, PenEvent, PointerButton, PointerEvent, Scancode, ScancodePrefix, TouchFrame,
    WheelAxis,
};
use ironrdp_pdu::input::fast_path::SynchronizeFlags;
use ironrdp_pdu::input::mouse::PointerFlags;
use ironrdp_pdu::input::mouse_rel::PointerRelFlags;
use ironrdp_pdu::input::mouse_x::PointerXFlags;
use ironrdp_pdu::input::scan_code::KeyboardFlags;
use ironrdp_pdu::input::unicode::KeyboardFlags as UnicodeFlags;
use ironrdp_pdu::input::{InputEvent as SlowPathEvent, InputEventPdu};
use thiserror::Error;

/// Something the client did with one of its input devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputEvent {
    /// On the keyboard.
    Key(KeyEvent),
    /// On the pointer.
    Pointer(PointerEvent),
    /// With its fingers (see [`crate::channels::touch`]).
    Touch(TouchFrame),
    /// With a pen (see [`crate::channels::touch`]).
    Pen(PenEvent),
}

/// Input that does not follow the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InputError {
    /// The events end before their announced number or inside one.
    #[error("fast-path input ends inside event {at} of {announced}")]
    Truncated {
        /// Index of the event, from 0.
        at: u8,
        /// Events that the header announced.
        announced: u8,
    },
    /// A header without an event count, or shorter than a header.
    #[error("fast-path input has no header")]
    NoHeader,
    /// Encrypted, or with a signature: only Standard RDP Security has that.
    #[error("fast-path input claims encryption")]
    Encrypted,
    /// An event type that MS-RDPBCGR 2.2.8.1.2.2 does not know.
    #[error("fast-path input event type {0} is unknown")]
    UnknownEvent(u8),
}

/// Fast-path event codes (MS-RDPBCGR 2.2.8.1.2.2, `eventCode`).
mod event_code {
    pub(super) const SCANCODE: u8 = 0;
    pub(super) const MOUSE: u8 = 1;
    pub(super) const MOUSE_X: u8 = 2;
    pub(super) const SYNC: u8 = 3;
    pub(super) const UNICODE: u8 = 4;
    pub(super) const MOUSE_REL: u8 = 5;
    pub(super) const QOE_TIMESTAMP: u8 = 6;
}

/// The wheel's rotation: nine bits, two's complement (MS-RDPBCGR 2.2.8.1.1.3.1.1.3).
const WHEEL_ROTATION_MASK: u16 = 0x01ff;

/// Decodes one fast-path input PDU (`pdu` from its first byte to its last) and gives its events in order.
///
/// # Errors
///
/// When the bytes break the format. Events before the broken one have been given: they were valid.
pub fn decode_fast_path(pdu: &[u8], mut each: impl FnMut(InputEvent)) -> Result<(), InputError> {
    let (&header, rest) = pdu.split_first().ok_or(InputError::NoHeader)?;
    if header >> 6 != 0 {
        return Err(InputError::Encrypted);
    }
    let mut reader = Reader { bytes: rest };
    let length = reader.u8().ok_or(InputError::NoHeader)?;
    if length & 0x80 != 0 {
        reader.u8().ok_or(InputError::NoHeader)?;
    }
    let announced = match (header >> 2) & 0x0f {
        0 => reader.u8().ok_or(InputError::NoHeader)?,
        count => count,
    };
    for at in 0..announced {
        let truncated = InputError::Truncated { at, announced };
        let event_header = reader.u8().ok_or(truncated)?;
        let (code, flags) = (event_header >> 5, event_header & 0x1f);
        match code {
            event_code::SCANCODE => {
                let key = reader.u8().ok_or(truncated)?;
                scancode(key, flags & 0x01 != 0, flags & 0x02 != 0, flags & 0x04 != 0, &mut each);
            }
            event_code::UNICODE => unicode(reader.u16().ok_or(truncated)?, flags & 0x01 != 0, &mut each),
            event_code::MOUSE => {
                let (flags, x, y) = reader.triple().ok_or(truncated)?;
                mouse(flags, x, y, &mut each);
            }
            event_code::MOUSE_X => {
                let (flags, x, y) = reader.triple().ok_or(truncated)?;
                mouse_x(PointerXFlags::from_bits_retain(flags), x, y, &mut each);
            }
            event_code::MOUSE_REL => {
                let (flags, dx, dy) = reader.triple().ok_or(truncated)?;
                mouse_rel(PointerRelFlags::from_bits_retain(flags), dx.cast_signed(), dy.cast_signed(), &mut each);
            }
            event_code::SYNC => synchronize(SynchronizeFlags::from_bits_retain(flags), &mut each),
            event_code::QOE_TIMESTAMP => {
                reader.u16().and_then(|_| reader.u16()).ok_or(truncated)?;
            }
            unknown => return Err(InputError::UnknownEvent(unknown)),
        }
    }
    Ok(())
}

/// Gives the events of a slow-path input PDU in order.
pub fn slow_path_events(pdu: &InputEventPdu, mut each: impl FnMut(InputEvent)) {
    for event in &pdu.0 {
        match event {
            SlowPathEvent::ScanCode(key) => {
                let Ok(code) = u8::try_from(key.key_code) else { continue };
                scancode(
                    code,
                    key.flags.contains(KeyboardFlags::RELEASE),
                    key.flags.contains(KeyboardFlags::EXTENDED),
                    key.flags.contains(KeyboardFlags::EXTENDED_1),
                    &mut each,
                );
            }
            SlowPathEvent::Unicode(key) => {
                unicode(key.unicode_code, key.flags.contains(UnicodeFlags::RELEASE), &mut each);
            }
            SlowPathEvent::Mouse(pdu) => {
                // The PDU's decoder has taken the rotation out of the flags.
                let rotation = pdu.number_of_wheel_rotation_units.cast_unsigned() & WHEEL_ROTATION_MASK;
                let flags = (pdu.flags.bits() & !WHEEL_ROTATION_MASK) | rotation;
                mouse(flags, pdu.x_position, pdu.y_position, &mut each);
            }
            SlowPathEvent::MouseX(pdu) => mouse_x(pdu.flags, pdu.x_position, pdu.y_position, &mut each),
            SlowPathEvent::MouseRel(pdu) => mouse_rel(pdu.flags, pdu.x_delta, pdu.y_delta, &mut each),
            SlowPathEvent::Sync(pdu) => {
                let flags = u8::try_from(pdu.flags.bits() & 0x0f).unwrap_or(0);
                synchronize(SynchronizeFlags::from_bits_retain(flags), &mut each);
            }
            SlowPathEvent::Unused(_) => {}
        }
    }
}

fn scancode(code: u8, release: bool, extended: bool, extended1: bool, each: &mut impl FnMut(InputEvent)) {
    let prefix = match (extended, extended1) {
        (_, true) => ScancodePrefix::E1,
        (true, false) => ScancodePrefix::E0,
        (false, false) => ScancodePrefix::None,
    };
    // Code 0 is no key, and a set release bit in the code would be taken for another key.
    if code == 0 || code & 0x80 != 0 {
        return;
    }
    each(InputEvent::Key(KeyEvent::Key { scancode: Scancode { prefix, code }, state: key_state(!release) }));
}

fn unicode(unit: u16, release: bool, each: &mut impl FnMut(InputEvent)) {
    each(InputEvent::Key(KeyEvent::Unicode { unit, state: key_state(!release) }));
}

/// A synchronize event resets every key to up and then sets the locks (MS-RDPBCGR 2.2.8.1.1.3.1.1.5).
fn synchronize(flags: SynchronizeFlags, each: &mut impl FnMut(InputEvent)) {
    each(InputEvent::Key(KeyEvent::ReleaseAll));
    each(InputEvent::Key(KeyEvent::Locks(LockKeys {
        scroll: flags.contains(SynchronizeFlags::SCROLL_LOCK),
        num: flags.contains(SynchronizeFlags::NUM_LOCK),
        caps: flags.contains(SynchronizeFlags::CAPS_LOCK),
    })));
}

/// MS-RDPBCGR 2.2.8.1.1.3.1.1.3: a button's flag comes with the place it happened at; a wheel's does not.
fn mouse(raw_flags: u16, x: u16, y: u16, each: &mut impl FnMut(InputEvent)) {
    let flags = PointerFlags::from_bits_retain(raw_flags);
    let wheel = flags.intersection(PointerFlags::VERTICAL_WHEEL | PointerFlags::HORIZONTAL_WHEEL);
    if !wheel.is_empty() {
        let axis =
            if wheel.contains(PointerFlags::VERTICAL_WHEEL) { WheelAxis::Vertical } else { WheelAxis::Horizontal };
        let units = wheel_units(raw_flags);
        if units != 0 {
            each(InputEvent::Pointer(PointerEvent::Wheel { axis, units }));
        }
        return;
    }
    each(InputEvent::Pointer(PointerEvent::MoveTo { x: x.into(), y: y.into() }));
    let state = key_state(flags.contains(PointerFlags::DOWN));
    let buttons = [
        (PointerFlags::LEFT_BUTTON, PointerButton::Left),
        (PointerFlags::RIGHT_BUTTON, PointerButton::Right),
        (PointerFlags::MIDDLE_BUTTON_OR_WHEEL, PointerButton::Middle),
    ];
    press(buttons.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, button)| button), state, each);
}

/// MS-RDPBCGR 2.2.8.1.1.3.1.1.4: the fourth and fifth button.
fn mouse_x(flags: PointerXFlags, x: u16, y: u16, each: &mut impl FnMut(InputEvent)) {
    each(InputEvent::Pointer(PointerEvent::MoveTo { x: x.into(), y: y.into() }));
    let buttons = [(PointerXFlags::BUTTON1, PointerButton::Back), (PointerXFlags::BUTTON2, PointerButton::Forward)];
    let state = key_state(flags.contains(PointerXFlags::DOWN));
    press(buttons.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, button)| button), state, each);
}

/// MS-RDPBCGR 2.2.8.1.1.3.1.1.6: a pointer that only knows distances (a game, a captured mouse).
fn mouse_rel(flags: PointerRelFlags, dx: i16, dy: i16, each: &mut impl FnMut(InputEvent)) {
    if dx != 0 || dy != 0 {
        each(InputEvent::Pointer(PointerEvent::MoveBy { dx: dx.into(), dy: dy.into() }));
    }
    let buttons = [
        (PointerRelFlags::BUTTON1, PointerButton::Left),
        (PointerRelFlags::BUTTON2, PointerButton::Right),
        (PointerRelFlags::BUTTON3, PointerButton::Middle),
        (PointerRelFlags::XBUTTON1, PointerButton::Back),
        (PointerRelFlags::XBUTTON2, PointerButton::Forward),
    ];
    let state = key_state(flags.contains(PointerRelFlags::DOWN));
    press(buttons.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, button)| button), state, each);
}

fn press(buttons: impl Iterator<Item = PointerButton>, state: KeyState, each: &mut impl FnMut(InputEvent)) {
    for button in buttons {
        each(InputEvent::Pointer(PointerEvent::Button { button, state }));
    }
}

fn wheel_units(flags: u16) -> i16 {
    let rotation = (flags & WHEEL_ROTATION_MASK).cast_signed();
    if rotation & 0x0100 != 0 { rotation - 0x0200 } else { rotation }
}

fn key_state(pressed: bool) -> KeyState {
    if pressed { KeyState::Pressed } else { KeyState::Released }
}

/// Little-endian reads that end with `None` where the bytes do.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn u8(&mut self) -> Option<u8> {
        let (&first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(first)
    }

    fn u16(&mut self) -> Option<u16> {
        let (first, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(u16::from_le_bytes(*first))
    }

    fn triple(&mut self) -> Option<(u16, u16, u16)> {
        Some((self.u16()?, self.u16()?, self.u16()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(pdu: &[u8]) -> Vec<InputEvent> {
        let mut all = Vec::new();
        decode_fast_path(pdu, |event| all.push(event)).unwrap();
        all
    }

    fn pressed(scancode: Scancode) -> InputEvent {
        InputEvent::Key(KeyEvent::Key { scancode, state: KeyState::Pressed })
    }

    #[test]
    fn keys_keep_their_prefix() {
        assert_eq!(events(&[0x04, 4, 0x00, 0x1e]), [pressed(Scancode::plain(0x1e))]);
        assert_eq!(events(&[0x04, 4, 0x02, 0x48]), [pressed(Scancode::extended(0x48))]);
        let pause = Scancode { prefix: ScancodePrefix::E1, code: 0x1d };
        assert_eq!(events(&[0x04, 4, 0x04, 0x1d]), [pressed(pause)]);
    }

    #[test]
    fn a_count_of_zero_in_the_header_means_that_a_byte_follows() {
        assert_eq!(events(&[0x00, 5, 0x01, 0x01, 0x1e]).len(), 1);
    }

    #[test]
    fn wheels_have_sign_and_resolution() {
        let wheel = |flags: u16| {
            let [low, high] = flags.to_le_bytes();
            events(&[0x04, 9, 0x20, low, high, 0, 0, 0, 0])
        };
        let turned = |axis, units| vec![InputEvent::Pointer(PointerEvent::Wheel { axis, units })];
        assert_eq!(wheel(0x0200 | 120), turned(WheelAxis::Vertical, 120));
        assert_eq!(wheel(0x0200 | 0x0100 | 0x88), turned(WheelAxis::Vertical, -120));
        assert_eq!(wheel(0x0400 | 0x0100 | 0xff), turned(WheelAxis::Horizontal, -1));
    }

    #[test]
    fn a_button_moves_the_pointer_first() {
        let click = events(&[0x04, 9, 0x20, 0x00, 0x90, 10, 0, 20, 0]);
        let button = PointerEvent::Button { button: PointerButton::Left, state: KeyState::Pressed };
        assert_eq!(click, [InputEvent::Pointer(PointerEvent::MoveTo { x: 10, y: 20 }), InputEvent::Pointer(button)]);
    }

    #[test]
    fn synchronize_lifts_every_key_and_sets_the_locks() {
        let locks = LockKeys { scroll: false, num: true, caps: true };
        assert_eq!(
            events(&[0x04, 3, 0x66]),
            [InputEvent::Key(KeyEvent::ReleaseAll), InputEvent::Key(KeyEvent::Locks(locks))]
        );
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        assert_eq!(
            decode_fast_path(&[0x08, 4, 0x00, 0x1e], |_| {}),
            Err(InputError::Truncated { at: 1, announced: 2 })
        );
        assert_eq!(decode_fast_path(&[0xc4, 4, 0x00, 0x1e], |_| {}), Err(InputError::Encrypted));
        assert_eq!(decode_fast_path(&[0x04, 3, 0xe0], |_| {}), Err(InputError::UnknownEvent(7)));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_events_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut count = 0;
            let _ = decode_fast_path(&bytes, |_| count += 1);
            // At most a move, a release and five buttons from one event.
            prop_assert!(count <= 255 * 7);
        }
    }
}
