//! Keyboard, pointer, touch, pen. (`docs/bus.md`, section 9.1)
//!
//! The host sends what the client did, in order; a serial number, one more with each message that has one, lets the
//! guest say how far it is. The host must not send kinds of input that the guest's capabilities lack. When the client
//! leaves or loses the focus, [`Event::ReleaseAll`] lets go of everything; the guest does the same by itself when the
//! channel closes.
//!
//! ```text
//! host                                                             guest
//!                                                             ◀──  Capabilities { max_contacts: 10, pen: true, … }
//! Layout { monitors: [0,0 1920×1080] }                        ──▶
//! Events { serial: 1, [MoveTo { 0, 960.00, 540.00 }, Button ]} ──▶
//! Touch { serial: 2, monitor: 0, contacts: [3: Down], … }      ──▶
//!                                                             ◀──  Ack { serial: 2, spent: 90 µs }
//!                                                             ◀──  Leds { caps }
//! ```

use std::time::Duration;

use console::{
    FinePoint, KeyEvent, KeyState, LockKeys, PenEvent, PointerButton, PointerEvent, Rect, Scancode, WheelAxis,
};

use super::bounded::List;
use super::define::{choice, flags, messages};

mod contact;
mod keys;

pub use contact::Contacts;

/// Most events in a message.
pub const MAX_EVENTS: usize = 256;
/// Most monitors of a desktop.
pub const MAX_MONITORS: usize = 16;
/// Hundredths of a pixel in a pixel.
pub const FINE: i32 = 100;

messages! {
    /// What the host sends.
    pub enum ToGuest {
        /// The monitors that positions are told in: before the first position, and when they change. Input for a
        /// monitor that the last layout does not have is ignored.
        Layout = 0x01 {
            /// Where each monitor lies in the desktop, in pixels of the client's picture; the desktop begins at 0, 0
            /// and is as large as they reach. When the guest's desktop has another size, it scales.
            monitors: List<Rect, MAX_MONITORS>,
        },
        /// Keys and the pointer, in the order in which they happened.
        Events = 0x02 {
            /// The message's number.
            serial: u32,
            /// What happened.
            events: List<Event, MAX_EVENTS>,
        },
        /// What all fingers on a monitor did at one moment.
        Touch = 0x03 {
            /// The message's number.
            serial: u32,
            /// Index in the layout.
            monitor: u16,
            /// The fingers.
            contacts: Contacts,
            /// How long after the touch message before it happened, zero if not known.
            since_previous: Duration,
        },
        /// A pen on a monitor did something.
        Pen = 0x04 {
            /// The message's number.
            serial: u32,
            /// Index in the layout.
            monitor: u16,
            /// What.
            event: PenEvent,
        },
    }
}

messages! {
    /// What the guest sends.
    pub enum ToHost {
        /// What the guest can take: first, and when that changes.
        Capabilities = 0x81 {
            /// Fingers at a time, 0 if there is no touch, at most 64.
            max_contacts: u16,
            /// Kinds of input.
            kinds: Kinds,
        },
        /// The lights of the guest's keyboard: first, and when they change.
        Leds = 0x82 {
            /// Those that are on.
            leds: LockKeys,
        },
        /// All messages up to a number were put into the guest's system. Sent after each message, or once for several
        /// that arrived together.
        Ack = 0x83 {
            /// The last of them.
            serial: u32,
            /// From the arrival of that message in the agent until its system had it.
            spent: Duration,
        },
    }
}

flags! {
    /// Kinds of input that a guest takes.
    pub struct Kinds: u16 {
        /// [`Event::Key`] and [`Event::Locks`].
        pub keyboard = 1,
        /// [`Event::Unicode`].
        pub unicode = 2,
        /// [`Event::MoveTo`], buttons and wheels.
        pub pointer = 4,
        /// [`Event::MoveBy`].
        pub relative_pointer = 8,
        /// [`ToGuest::Pen`].
        pub pen = 0x10,
    }
}

choice! {
    /// Something happened on the keyboard or the pointer.
    #[derive(Copy)]
    pub enum Event {
        /// A physical key.
        Key = 1 {
            /// Which.
            scancode: Scancode,
            /// Down (or repeating) or up.
            state: KeyState,
        },
        /// A UTF-16 code unit from an on-screen keyboard or an input method.
        Unicode = 2 {
            /// The code unit; a character outside the basic plane comes as two events.
            unit: u16,
            /// Down or up.
            state: KeyState,
        },
        /// The pointer is at a place.
        MoveTo = 3 {
            /// Index in the layout.
            monitor: u16,
            /// Where on the monitor, in 1/100 pixel.
            position: FinePoint,
        },
        /// The pointer moved by a distance, in the client's counts.
        MoveBy = 4 {
            /// To the right.
            dx: i32,
            /// Down.
            dy: i32,
        },
        /// A button of the pointer.
        Button = 5 {
            /// Which.
            button: PointerButton,
            /// Down or up.
            state: KeyState,
        },
        /// A wheel turned.
        Wheel = 6 {
            /// Which.
            axis: WheelAxis,
            /// How far, in 1/120 of a notch; up and right are positive.
            units: i16,
        },
        /// The lock keys of the client's keyboard; the guest's are to follow.
        Locks = 7 {
            /// Those that are on.
            locks: LockKeys,
        },
        /// Every key, button, finger and pen that is down comes up.
        ReleaseAll = 8,
    }
}

impl From<KeyEvent> for Event {
    fn from(event: KeyEvent) -> Self {
        match event {
            KeyEvent::Key { scancode, state } => Self::Key { scancode, state },
            KeyEvent::Unicode { unit, state } => Self::Unicode { unit, state },
            KeyEvent::Locks(locks) => Self::Locks { locks },
            KeyEvent::ReleaseAll => Self::ReleaseAll,
        }
    }
}

impl Event {
    /// What happened on the pointer while it was on a monitor (index in the layout). A pixel is its middle.
    #[must_use]
    pub fn pointer(monitor: u16, event: PointerEvent) -> Self {
        let fine =
            |pixels: u32| i32::try_from(pixels).unwrap_or(i32::MAX).saturating_mul(FINE).saturating_add(FINE / 2);
        match event {
            PointerEvent::MoveTo { x, y } => Self::MoveTo { monitor, position: FinePoint { x: fine(x), y: fine(y) } },
            PointerEvent::MoveBy { dx, dy } => Self::MoveBy { dx, dy },
            PointerEvent::Button { button, state } => Self::Button { button, state },
            PointerEvent::Wheel { axis, units } => Self::Wheel { axis, units },
        }
    }

    /// What happened on the keyboard; none if it was the pointer.
    #[must_use]
    pub const fn key_event(self) -> Option<KeyEvent> {
        match self {
            Self::Key { scancode, state } => Some(KeyEvent::Key { scancode, state }),
            Self::Unicode { unit, state } => Some(KeyEvent::Unicode { unit, state }),
            Self::Locks { locks } => Some(KeyEvent::Locks(locks)),
            Self::ReleaseAll => Some(KeyEvent::ReleaseAll),
            Self::MoveTo { .. } | Self::MoveBy { .. } | Self::Button { .. } | Self::Wheel { .. } => None,
        }
    }

    /// What happened on the pointer, in whole pixels of the monitor it is on; none if it was the keyboard. Places
    /// above or left of the monitor are its edge.
    #[must_use]
    pub fn pointer_event(self) -> Option<PointerEvent> {
        let pixel = |fine: i32| u32::try_from(fine / FINE).unwrap_or(0);
        match self {
            Self::MoveTo { position, .. } => Some(PointerEvent::MoveTo { x: pixel(position.x), y: pixel(position.y) }),
            Self::MoveBy { dx, dy } => Some(PointerEvent::MoveBy { dx, dy }),
            Self::Button { button, state } => Some(PointerEvent::Button { button, state }),
            Self::Wheel { axis, units } => Some(PointerEvent::Wheel { axis, units }),
            Self::Key { .. } | Self::Unicode { .. } | Self::Locks { .. } | Self::ReleaseAll => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_read_as_they_are_specified() {
        let events = List::from([
            Event::Key { scancode: Scancode::extended(0x1d), state: KeyState::Released },
            Event::Unicode { unit: 0x20ac, state: KeyState::Pressed },
            Event::MoveTo { monitor: 1, position: FinePoint { x: 0x0102, y: -1 } },
            Event::MoveBy { dx: -2, dy: 3 },
            Event::Button { button: PointerButton::Back, state: KeyState::Pressed },
            Event::Wheel { axis: WheelAxis::Horizontal, units: -120 },
            Event::Locks { locks: LockKeys { scroll: false, num: true, caps: true } },
            Event::ReleaseAll,
        ]);
        let bytes = [
            [0x02, 0, 0, 0, 7, 0, 0, 0, 8, 0].as_slice(),
            &[1, 0xe0, 0x1d, 1],
            &[2, 0xac, 0x20, 0],
            &[3, 1, 0, 0x02, 0x01, 0, 0, 0xff, 0xff, 0xff, 0xff],
            &[4, 0xfe, 0xff, 0xff, 0xff, 3, 0, 0, 0],
            &[5, 3, 0],
            &[6, 1, 0x88, 0xff],
            &[7, 6],
            &[8],
        ]
        .concat();
        let message = ToGuest::Events { serial: 7, events };
        assert_eq!(message.encode(), bytes);
        assert_eq!(ToGuest::decode(&bytes), Ok(message));
    }

    #[test]
    fn what_the_guest_says_reads_as_it_is_specified() {
        let kinds = Kinds { keyboard: true, pointer: true, pen: true, ..Kinds::default() };
        let capabilities = ToHost::Capabilities { max_contacts: 10, kinds };
        assert_eq!(capabilities.encode(), [0x81, 0, 0, 0, 10, 0, 0x15, 0]);
        let ack = [0x83, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(ToHost::decode(&ack), Ok(ToHost::Ack { serial: 7, spent: Duration::from_nanos(1) }));
        let leds = ToHost::Leds { leds: LockKeys { caps: true, ..LockKeys::default() } };
        assert_eq!(ToHost::decode(&[0x82, 0, 0, 0, 4]), Ok(leds));
        assert!(ToHost::decode(&[0x82, 0, 0, 0, 8]).is_err());
    }

    #[test]
    fn console_events_come_back_as_they_went() {
        let keys = [
            KeyEvent::Key { scancode: Scancode::plain(0x1e), state: KeyState::Pressed },
            KeyEvent::Unicode { unit: 7, state: KeyState::Released },
            KeyEvent::Locks(LockKeys::default()),
            KeyEvent::ReleaseAll,
        ];
        for key in keys {
            assert_eq!(Event::from(key).key_event(), Some(key));
            assert_eq!(Event::from(key).pointer_event(), None);
        }
        let moves = [
            PointerEvent::MoveTo { x: 1919, y: 0 },
            PointerEvent::MoveBy { dx: i32::MIN, dy: 1 },
            PointerEvent::Button { button: PointerButton::Left, state: KeyState::Pressed },
            PointerEvent::Wheel { axis: WheelAxis::Vertical, units: 120 },
        ];
        for pointer in moves {
            assert_eq!(Event::pointer(2, pointer).pointer_event(), Some(pointer));
            assert_eq!(Event::pointer(2, pointer).key_event(), None);
        }
    }

    #[test]
    fn places_outside_of_numbers_are_at_the_edge() {
        let far = Event::pointer(0, PointerEvent::MoveTo { x: u32::MAX, y: 0 });
        assert_eq!(far, Event::MoveTo { monitor: 0, position: FinePoint { x: i32::MAX, y: 50 } });
        let outside = Event::MoveTo { monitor: 0, position: FinePoint { x: -900, y: 199 } };
        assert_eq!(outside.pointer_event(), Some(PointerEvent::MoveTo { x: 0, y: 1 }));
    }
}
