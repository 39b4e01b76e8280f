//! The pen: near or touching, which end, how hard, how it leans.

use console::{PenEvent, PenTilt};
use input_linux::{AbsoluteAxis, Key};

use super::desktop::Desktop;
use super::evdev::{AXIS_MAX, DOWN, Event, UP};

/// How far a pen can lean to either side, in degrees.
pub(super) const MAX_TILT: i32 = 90;
/// Rotation is told from straight to either side, in degrees.
pub(super) const ROTATION: (i32, i32) = (-180, 179);
/// How hard a pen presses of which the client cannot tell it.
const USUAL_PRESSURE: i32 = AXIS_MAX / 2;

/// The tablet that the guest has from us. It knows one pen at a time.
#[derive(Debug, Default)]
pub(super) struct Tablet {
    pen: Option<Near>,
}

/// The pen that is near.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Near {
    device: u8,
    /// Which end points down: pen or eraser.
    tool: Key,
    touches: bool,
    barrel: bool,
}

impl Tablet {
    /// What the device does for `event`.
    pub(super) fn handle(&mut self, desktop: &Desktop, monitor: u16, event: &PenEvent) -> Vec<Event> {
        let Some(place) = desktop.place(monitor, event.position) else { return Vec::new() };
        if self.pen.is_some_and(|pen| pen.device != event.device) {
            return Vec::new();
        }
        if !event.phase.is_in_range() {
            return self.release_all();
        }
        let buttons = event.buttons;
        let near = Near {
            device: event.device,
            tool: if buttons.inverted || buttons.eraser { Key::ButtonToolRubber } else { Key::ButtonToolPen },
            touches: event.phase.is_touching(),
            barrel: buttons.barrel,
        };
        let mut events = Vec::new();
        // A pen that is turned round leaves and comes again.
        if self.pen.is_some_and(|pen| pen.tool != near.tool) {
            events = self.release_all();
        }
        self.come_near(near, event, place, &mut events);
        events
    }

    /// The pen leaves.
    pub(super) fn release_all(&mut self) -> Vec<Event> {
        let Some(pen) = self.pen.take() else { return Vec::new() };
        let mut events = Vec::new();
        if pen.touches {
            events.push(Event::absolute(AbsoluteAxis::Pressure, 0));
            events.push(Event::key(Key::ButtonTouch, UP));
        }
        if pen.barrel {
            events.push(Event::key(Key::ButtonStylus, UP));
        }
        events.extend([Event::key(pen.tool, UP), Event::SYN]);
        events
    }

    fn come_near(&mut self, near: Near, event: &PenEvent, (x, y): (i32, i32), events: &mut Vec<Event>) {
        let before = self.pen.replace(near);
        if before.is_none() {
            events.push(Event::key(near.tool, DOWN));
        }
        let pressure = if near.touches { event.pressure.map_or(USUAL_PRESSURE, i32::from) } else { 0 };
        let PenTilt { x: tilt_x, y: tilt_y } = event.tilt.unwrap_or_default();
        let rotation = i32::from(event.rotation.unwrap_or(0));
        events.extend([
            Event::absolute(AbsoluteAxis::X, x),
            Event::absolute(AbsoluteAxis::Y, y),
            Event::absolute(AbsoluteAxis::Pressure, pressure),
            Event::absolute(AbsoluteAxis::TiltX, tilt_x.into()),
            Event::absolute(AbsoluteAxis::TiltY, tilt_y.into()),
            Event::absolute(AbsoluteAxis::Z, if rotation > ROTATION.1 { rotation - 360 } else { rotation }),
        ]);
        let mut change = |key, was: bool, is: bool| {
            if was != is {
                events.push(Event::key(key, if is { DOWN } else { UP }));
            }
        };
        change(Key::ButtonTouch, before.is_some_and(|pen| pen.touches), near.touches);
        change(Key::ButtonStylus, before.is_some_and(|pen| pen.barrel), near.barrel);
        events.push(Event::SYN);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use console::{ContactPhase, FinePoint, PenButtons, Rect};
    use input_linux::EventKind;

    use super::*;

    fn pen(phase: ContactPhase, buttons: PenButtons) -> PenEvent {
        PenEvent {
            device: 0,
            phase,
            position: FinePoint { x: 5000, y: 5000 },
            buttons,
            pressure: Some(1000),
            rotation: Some(270),
            tilt: Some(PenTilt { x: -30, y: 10 }),
            since_previous: Duration::ZERO,
        }
    }

    fn handle(tablet: &mut Tablet, event: PenEvent) -> Vec<Event> {
        tablet.handle(&Desktop::new(vec![Rect { x: 0, y: 0, width: 100, height: 100 }]), 0, &event)
    }

    fn keys(events: &[Event]) -> Vec<(Key, i32)> {
        let keys = events.iter().filter(|event| event.kind == EventKind::Key);
        keys.map(|event| (Key::from_code(event.code).unwrap(), event.value)).collect()
    }

    const PLAIN: PenButtons = PenButtons { barrel: false, eraser: false, inverted: false };

    #[test]
    fn a_pen_comes_near_touches_and_leaves() {
        let mut tablet = Tablet::default();
        assert_eq!(
            handle(&mut tablet, pen(ContactPhase::Hover, PLAIN)),
            [
                Event::key(Key::ButtonToolPen, DOWN),
                Event::absolute(AbsoluteAxis::X, 0x8000),
                Event::absolute(AbsoluteAxis::Y, 0x8000),
                Event::absolute(AbsoluteAxis::Pressure, 0),
                Event::absolute(AbsoluteAxis::TiltX, -30),
                Event::absolute(AbsoluteAxis::TiltY, 10),
                Event::absolute(AbsoluteAxis::Z, -90),
                Event::SYN,
            ]
        );
        let touch = handle(&mut tablet, pen(ContactPhase::Down, PenButtons { barrel: true, ..PLAIN }));
        assert!(touch.contains(&Event::absolute(AbsoluteAxis::Pressure, 1000)));
        assert_eq!(keys(&touch), [(Key::ButtonTouch, DOWN), (Key::ButtonStylus, DOWN)]);
        assert_eq!(
            handle(&mut tablet, pen(ContactPhase::Up, PLAIN)),
            [
                Event::absolute(AbsoluteAxis::Pressure, 0),
                Event::key(Key::ButtonTouch, UP),
                Event::key(Key::ButtonStylus, UP),
                Event::key(Key::ButtonToolPen, UP),
                Event::SYN,
            ]
        );
        assert_eq!(tablet.release_all(), []);
    }

    #[test]
    fn a_pen_that_is_turned_round_is_another_tool() {
        let mut tablet = Tablet::default();
        handle(&mut tablet, pen(ContactPhase::Hover, PLAIN));
        let turned = handle(&mut tablet, pen(ContactPhase::Hover, PenButtons { inverted: true, ..PLAIN }));
        assert_eq!(keys(&turned), [(Key::ButtonToolPen, UP), (Key::ButtonToolRubber, DOWN)]);
        assert_eq!(turned.iter().filter(|event| **event == Event::SYN).count(), 2);
    }

    #[test]
    fn a_second_pen_waits_until_the_first_has_left() {
        let mut tablet = Tablet::default();
        handle(&mut tablet, pen(ContactPhase::Hover, PLAIN));
        let other = PenEvent { device: 1, ..pen(ContactPhase::Down, PLAIN) };
        assert_eq!(handle(&mut tablet, other), []);
        assert_eq!(handle(&mut tablet, PenEvent { phase: ContactPhase::Leave, ..other }), []);
        handle(&mut tablet, pen(ContactPhase::Leave, PLAIN));
        assert_eq!(keys(&handle(&mut tablet, other)), [(Key::ButtonToolPen, DOWN), (Key::ButtonTouch, DOWN)]);
    }
}
