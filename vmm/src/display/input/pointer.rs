//! The pointer as QEMU's mouse understands it: positions inside the picture, or distances; notches, not units.

use std::collections::BTreeSet;

use console::{KeyState, Point, PointerButton, PointerEvent, Size, WheelAxis};

use super::Action;

/// Units of one notch of a wheel.
const NOTCH: i32 = 120;
/// Most notches of one event; nobody can tell more apart.
const MAX_NOTCHES: u32 = 16;

// QEMU's buttons (`InputButton` in its qapi/ui.json), which the wheels are among.
const LEFT: u32 = 0;
const MIDDLE: u32 = 1;
const RIGHT: u32 = 2;
const WHEEL_UP: u32 = 3;
const WHEEL_DOWN: u32 = 4;
const SIDE: u32 = 5;
const EXTRA: u32 = 6;
const WHEEL_LEFT: u32 = 7;
const WHEEL_RIGHT: u32 = 8;

/// How the guest's pointing device thinks of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PointerMode {
    /// A tablet.
    Absolute,
    /// A mouse; what a guest has before its tablet's driver is there.
    Relative,
}

/// The guest's pointer, as far as we know.
#[derive(Debug, Default)]
pub(super) struct Pointer {
    position: Point,
    pressed: BTreeSet<u32>,
    vertical: i32,
    horizontal: i32,
}

impl Pointer {
    /// What QEMU must be told for `event` when the monitor has `size`.
    pub(super) fn handle(&mut self, event: PointerEvent, mode: PointerMode, size: Size, actions: &mut Vec<Action>) {
        match event {
            PointerEvent::MoveTo { x, y } => self.move_to(Point { x, y }, mode, size, actions),
            PointerEvent::MoveBy { dx, dy } => self.move_by(dx, dy, mode, size, actions),
            PointerEvent::Button { button, state } => self.button(button, state, actions),
            PointerEvent::Wheel { axis, units } => self.wheel(axis, units, actions),
        }
    }

    /// Every button that is down comes up.
    pub(super) fn release_all(&mut self, actions: &mut Vec<Action>) {
        let released = std::mem::take(&mut self.pressed).into_iter();
        actions.extend(released.map(|button| Action::Button(button, KeyState::Released)));
    }

    fn move_to(&mut self, to: Point, mode: PointerMode, size: Size, actions: &mut Vec<Action>) {
        if size.is_empty() {
            return;
        }
        let to = Point { x: to.x.min(size.width - 1), y: to.y.min(size.height - 1) };
        let from = std::mem::replace(&mut self.position, to);
        match mode {
            PointerMode::Absolute => actions.push(Action::MoveTo(to.x, to.y)),
            PointerMode::Relative if from == to => {}
            PointerMode::Relative => {
                actions.push(Action::MoveBy(distance(from.x, to.x), distance(from.y, to.y)));
            }
        }
    }

    fn move_by(&mut self, dx: i32, dy: i32, mode: PointerMode, size: Size, actions: &mut Vec<Action>) {
        match mode {
            PointerMode::Absolute => {
                let x = self.position.x.saturating_add_signed(dx);
                let y = self.position.y.saturating_add_signed(dy);
                self.move_to(Point { x, y }, mode, size, actions);
            }
            PointerMode::Relative => actions.push(Action::MoveBy(dx, dy)),
        }
    }

    fn button(&mut self, button: PointerButton, state: KeyState, actions: &mut Vec<Action>) {
        let button = match button {
            PointerButton::Left => LEFT,
            PointerButton::Middle => MIDDLE,
            PointerButton::Right => RIGHT,
            PointerButton::Back => SIDE,
            PointerButton::Forward => EXTRA,
        };
        let changed = match state {
            KeyState::Pressed => self.pressed.insert(button),
            KeyState::Released => self.pressed.remove(&button),
        };
        if changed {
            actions.push(Action::Button(button, state));
        }
    }

    fn wheel(&mut self, axis: WheelAxis, units: i16, actions: &mut Vec<Action>) {
        let (turned, forth, back) = match axis {
            WheelAxis::Vertical => (&mut self.vertical, WHEEL_UP, WHEEL_DOWN),
            WheelAxis::Horizontal => (&mut self.horizontal, WHEEL_RIGHT, WHEEL_LEFT),
        };
        let units = i32::from(units);
        // Who turns back does not want the rest of the way forth first.
        if turned.signum() == -units.signum() {
            *turned = 0;
        }
        *turned += units;
        let (notches, button) = (*turned / NOTCH, if *turned > 0 { forth } else { back });
        *turned -= notches * NOTCH;
        for _ in 0..notches.unsigned_abs().min(MAX_NOTCHES) {
            actions.push(Action::Button(button, KeyState::Pressed));
            actions.push(Action::Button(button, KeyState::Released));
        }
    }
}

fn distance(from: u32, to: u32) -> i32 {
    i32::try_from(i64::from(to) - i64::from(from)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use console::KeyState::{Pressed, Released};

    use super::*;

    const SIZE: Size = Size::new(800, 600);

    fn run(pointer: &mut Pointer, mode: PointerMode, events: &[PointerEvent]) -> Vec<Action> {
        let mut actions = Vec::new();
        events.iter().for_each(|event| pointer.handle(*event, mode, SIZE, &mut actions));
        actions
    }

    #[test]
    fn positions_stay_inside_the_picture() {
        let mut pointer = Pointer::default();
        let events = [PointerEvent::MoveTo { x: 5000, y: 10 }, PointerEvent::MoveBy { dx: -9, dy: -50 }];
        let actions = run(&mut pointer, PointerMode::Absolute, &events);
        assert_eq!(actions, [Action::MoveTo(799, 10), Action::MoveTo(790, 0)]);
        let mut actions = Vec::new();
        pointer.handle(PointerEvent::MoveTo { x: 1, y: 1 }, PointerMode::Absolute, Size::default(), &mut actions);
        assert_eq!(actions, [], "there is no picture");
    }

    #[test]
    fn a_guest_with_a_mouse_only_gets_distances() {
        let mut pointer = Pointer::default();
        let events = [
            PointerEvent::MoveTo { x: 100, y: 50 },
            PointerEvent::MoveTo { x: 90, y: 60 },
            PointerEvent::MoveTo { x: 90, y: 60 },
            PointerEvent::MoveBy { dx: 3, dy: -4 },
        ];
        let actions = run(&mut pointer, PointerMode::Relative, &events);
        assert_eq!(actions, [Action::MoveBy(100, 50), Action::MoveBy(-10, 10), Action::MoveBy(3, -4)]);
    }

    #[test]
    fn fine_wheels_turn_by_the_notch() {
        let mut pointer = Pointer::default();
        let none: [u32; 0] = [];
        let mut turn = |axis, units| {
            let actions = run(&mut pointer, PointerMode::Absolute, &[PointerEvent::Wheel { axis, units }]);
            let buttons = actions.chunks(2).map(|pair| match pair {
                [Action::Button(button, Pressed), Action::Button(same, Released)] if button == same => *button,
                other => panic!("{other:?} is no notch"),
            });
            buttons.collect::<Vec<_>>()
        };
        assert_eq!(turn(WheelAxis::Vertical, 50), none);
        assert_eq!(turn(WheelAxis::Vertical, 70), [WHEEL_UP]);
        assert_eq!(turn(WheelAxis::Vertical, 110), none);
        assert_eq!(turn(WheelAxis::Vertical, -60), none, "turning back starts anew");
        assert_eq!(turn(WheelAxis::Vertical, -180), [WHEEL_DOWN, WHEEL_DOWN]);
        assert_eq!(turn(WheelAxis::Horizontal, 120), [WHEEL_RIGHT]);
        assert_eq!(turn(WheelAxis::Horizontal, -240), [WHEEL_LEFT, WHEEL_LEFT]);
        assert_eq!(turn(WheelAxis::Vertical, i16::MIN).len(), 16);
    }

    #[test]
    fn buttons_that_are_down_come_up_in_the_end() {
        let mut pointer = Pointer::default();
        let press = |button| PointerEvent::Button { button, state: Pressed };
        let events = [press(PointerButton::Left), press(PointerButton::Left), press(PointerButton::Forward)];
        let actions = run(&mut pointer, PointerMode::Absolute, &events);
        assert_eq!(actions, [Action::Button(LEFT, Pressed), Action::Button(EXTRA, Pressed)]);
        let mut actions = Vec::new();
        pointer.release_all(&mut actions);
        assert_eq!(actions, [Action::Button(LEFT, Released), Action::Button(EXTRA, Released)]);
    }
}
