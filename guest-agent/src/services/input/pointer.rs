//! The pointer: places, distances, buttons, wheels.

use std::collections::BTreeSet;

use console::{FinePoint, KeyState, PointerButton, WheelAxis};
use input_linux::{AbsoluteAxis, Key, RelativeAxis};

use super::desktop::Desktop;
use super::evdev::{DOWN, Device, Event, UP};

/// Buttons of a pointer.
pub(super) const BUTTONS: [Key; 5] =
    [Key::ButtonLeft, Key::ButtonRight, Key::ButtonMiddle, Key::ButtonSide, Key::ButtonExtra];

/// A notch of a wheel, in the units of fine wheels.
const NOTCH: i32 = 120;
/// No hand moves faster than so many counts at a time.
const MAX_DISTANCE: i32 = 0x7fff;

/// What of the pointer lasts: buttons that are down, and how far each wheel is beyond its last whole notch.
#[derive(Debug, Default)]
pub(super) struct Pointer {
    pressed: BTreeSet<Key>,
    vertical: i32,
    horizontal: i32,
}

impl Pointer {
    /// It is at a place. A monitor that is not there is none.
    pub(super) fn move_to(
        &mut self,
        desktop: &Desktop,
        monitor: u16,
        position: FinePoint,
        events: &mut Vec<(Device, Event)>,
    ) {
        if let Some((x, y)) = desktop.place(monitor, position) {
            let moved = [Event::absolute(AbsoluteAxis::X, x), Event::absolute(AbsoluteAxis::Y, y), Event::SYN];
            events.extend(moved.map(|event| (Device::Pointer, event)));
        }
    }

    /// It moved by a distance.
    pub(super) fn move_by(&mut self, dx: i32, dy: i32, events: &mut Vec<(Device, Event)>) {
        let moved = [(RelativeAxis::X, dx), (RelativeAxis::Y, dy)];
        let moved = moved.map(|(axis, by)| Event::relative(axis, by.clamp(-MAX_DISTANCE, MAX_DISTANCE)));
        events.extend(moved.into_iter().chain([Event::SYN]).map(|event| (Device::RelativePointer, event)));
    }

    /// A button went down or came up.
    pub(super) fn button(&mut self, button: PointerButton, state: KeyState, events: &mut Vec<(Device, Event)>) {
        let key = match button {
            PointerButton::Left => Key::ButtonLeft,
            PointerButton::Middle => Key::ButtonMiddle,
            PointerButton::Right => Key::ButtonRight,
            PointerButton::Back => Key::ButtonSide,
            PointerButton::Forward => Key::ButtonExtra,
        };
        let (changed, value) = match state {
            KeyState::Pressed => (self.pressed.insert(key), DOWN),
            KeyState::Released => (self.pressed.remove(&key), UP),
        };
        if changed {
            push(events, &[Event::key(key, value)]);
        }
    }

    /// A wheel turned. Programs that know fine wheels take the units, the others whole notches.
    pub(super) fn wheel(&mut self, axis: WheelAxis, units: i16, events: &mut Vec<(Device, Event)>) {
        let (rest, fine, coarse) = match axis {
            WheelAxis::Vertical => (&mut self.vertical, RelativeAxis::WheelHiRes, RelativeAxis::Wheel),
            WheelAxis::Horizontal => {
                (&mut self.horizontal, RelativeAxis::HorizontalWheelHiRes, RelativeAxis::HorizontalWheel)
            }
        };
        let units = i32::from(units);
        // Turning back begins anew: the first notch the other way is a whole one.
        if units.signum() != rest.signum() {
            *rest = 0;
        }
        *rest += units;
        let notches = *rest / NOTCH;
        *rest %= NOTCH;
        let mut turned = vec![Event::relative(fine, units)];
        if notches != 0 {
            turned.push(Event::relative(coarse, notches));
        }
        push(events, &turned);
    }

    /// All buttons come up.
    pub(super) fn release_all(&mut self, events: &mut Vec<(Device, Event)>) {
        let released: Vec<_> = std::mem::take(&mut self.pressed).into_iter().map(|key| Event::key(key, UP)).collect();
        if !released.is_empty() {
            push(events, &released);
        }
        (self.vertical, self.horizontal) = (0, 0);
    }
}

fn push(events: &mut Vec<(Device, Event)>, moment: &[Event]) {
    events.extend(moment.iter().chain([&Event::SYN]).map(|event| (Device::Pointer, *event)));
}

#[cfg(test)]
mod tests {
    use console::KeyState::{Pressed, Released};
    use console::Rect;

    use super::*;

    fn on(device: Device, moment: &[Event]) -> Vec<(Device, Event)> {
        moment.iter().map(|event| (device, *event)).collect()
    }

    #[test]
    fn places_and_distances_are_for_different_devices() {
        let desktop = Desktop::new(vec![Rect { x: 0, y: 0, width: 200, height: 100 }]);
        let mut pointer = Pointer::default();
        let mut events = Vec::new();
        pointer.move_to(&desktop, 0, FinePoint { x: 10_000, y: 5000 }, &mut events);
        pointer.move_to(&desktop, 1, FinePoint { x: 10_000, y: 5000 }, &mut events);
        let moved = [Event::absolute(AbsoluteAxis::X, 0x8000), Event::absolute(AbsoluteAxis::Y, 0x8000), Event::SYN];
        assert_eq!(std::mem::take(&mut events), on(Device::Pointer, &moved));
        pointer.move_by(-3, i32::MAX, &mut events);
        let moved = [Event::relative(RelativeAxis::X, -3), Event::relative(RelativeAxis::Y, 0x7fff), Event::SYN];
        assert_eq!(events, on(Device::RelativePointer, &moved));
    }

    #[test]
    fn a_button_changes_once_and_comes_up_with_all() {
        let mut pointer = Pointer::default();
        let mut events = Vec::new();
        pointer.button(PointerButton::Back, Pressed, &mut events);
        pointer.button(PointerButton::Back, Pressed, &mut events);
        pointer.button(PointerButton::Left, Released, &mut events);
        assert_eq!(events, on(Device::Pointer, &[Event::key(Key::ButtonSide, DOWN), Event::SYN]));
        events.clear();
        pointer.release_all(&mut events);
        pointer.release_all(&mut events);
        assert_eq!(events, on(Device::Pointer, &[Event::key(Key::ButtonSide, UP), Event::SYN]));
    }

    #[test]
    fn fine_turns_add_up_to_notches() {
        let mut pointer = Pointer::default();
        let mut turn = |units| {
            let mut events = Vec::new();
            pointer.wheel(WheelAxis::Vertical, units, &mut events);
            let notches = events.iter().filter(|(_, event)| event.code == RelativeAxis::Wheel.code());
            notches.map(|(_, event)| event.value).sum::<i32>()
        };
        assert_eq!([turn(120), turn(-240), turn(60), turn(60), turn(100), turn(-30)], [1, -2, 0, 1, 0, 0]);
        assert_eq!([turn(-90), turn(i16::MIN), turn(0)], [-1, -273, 0]);
    }

    #[test]
    fn a_turn_is_told_in_both_ways_at_one_moment() {
        let mut events = Vec::new();
        Pointer::default().wheel(WheelAxis::Horizontal, 150, &mut events);
        let turned = [
            Event::relative(RelativeAxis::HorizontalWheelHiRes, 150),
            Event::relative(RelativeAxis::HorizontalWheel, 1),
            Event::SYN,
        ];
        assert_eq!(events, on(Device::Pointer, &turned));
    }
}
