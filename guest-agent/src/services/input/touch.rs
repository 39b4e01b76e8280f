//! Touch frames → slots (type B of the kernel's multi-touch protocol).
//!
//! A slot holds one finger from the moment it touches until it does not; its tracking id is new each time. Everything
//! that happened at one moment ends with one SYN, so that programs see whole frames. Fingers that are only near are
//! not shown: touch screens do not have them.

use console::{ContactPhase, ContactSize, TouchContact};
use input_linux::{AbsoluteAxis, Key};

use super::desktop::Desktop;
use super::evdev::{AXIS_MAX, DOWN, Event, UP};

/// Fingers at a time.
pub(super) const SLOTS: u16 = 16;
/// Highest tracking id; then they begin anew.
pub(super) const MAX_TRACKING_ID: i32 = 0xffff;
/// Angles are told from upright to either side, in degrees.
pub(super) const MAX_ORIENTATION: i32 = 90;
/// How hard a finger presses of which the client cannot tell it.
const USUAL_PRESSURE: i32 = AXIS_MAX / 2;
/// `MT_TOOL_FINGER` and `MT_TOOL_PALM`: a palm is not meant, what it did is taken back.
const TOOL_FINGER: i32 = 0;
pub(super) const TOOL_PALM: i32 = 2;
/// No finger.
const NO_TRACKING_ID: i32 = -1;

/// The touch screen that the guest has from us.
#[derive(Debug, Default)]
pub(super) struct TouchScreen {
    slots: [Option<Finger>; SLOTS as usize],
    /// The slot that the kernel has been told last.
    current: usize,
    next_tracking_id: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Finger {
    /// The client's number on that monitor.
    monitor: u16,
    id: u16,
    tracking_id: i32,
    x: i32,
    y: i32,
}

impl TouchScreen {
    /// What the device does for what the fingers on one monitor did at one moment.
    pub(super) fn handle(&mut self, desktop: &Desktop, monitor: u16, contacts: &[TouchContact]) -> Vec<Event> {
        let mut events = Vec::new();
        let were_any = self.any();
        for contact in contacts {
            if let Some(place) = desktop.place(monitor, contact.position) {
                self.contact(desktop, monitor, contact, place, &mut events);
            }
        }
        self.finish(were_any, events)
    }

    /// All fingers come up.
    pub(super) fn release_all(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let were_any = self.any();
        for slot in 0..self.slots.len() {
            self.lift(slot, false, &mut events);
        }
        self.finish(were_any, events)
    }

    fn contact(
        &mut self,
        desktop: &Desktop,
        monitor: u16,
        contact: &TouchContact,
        (x, y): (i32, i32),
        events: &mut Vec<Event>,
    ) {
        let is_this = |finger: &Option<Finger>| finger.is_some_and(|it| it.monitor == monitor && it.id == contact.id);
        let held = self.slots.iter().position(is_this);
        let slot = match contact.phase {
            // Down again without having been up: another finger, in the same slot.
            ContactPhase::Down => {
                // With all slots in use it is one finger too many; the host knows how many there are.
                let Some(slot) = held.or_else(|| self.slots.iter().position(Option::is_none)) else { return };
                self.touch(slot, monitor, contact.id, events);
                slot
            }
            // One whose beginning was not seen is none.
            ContactPhase::Move => match held {
                Some(slot) => slot,
                None => return,
            },
            phase => {
                if let Some(slot) = held {
                    self.lift(slot, phase.is_canceled(), events);
                }
                return;
            }
        };
        self.select(slot, events);
        if let Some(Some(finger)) = self.slots.get_mut(slot) {
            (finger.x, finger.y) = (x, y);
        }
        events.push(Event::absolute(AbsoluteAxis::MultitouchPositionX, x));
        events.push(Event::absolute(AbsoluteAxis::MultitouchPositionY, y));
        let pressure = contact.pressure.map_or(USUAL_PRESSURE, i32::from);
        events.push(Event::absolute(AbsoluteAxis::MultitouchPressure, pressure));
        self.shape(desktop, contact, events);
    }

    /// A finger of unknown size keeps none: zero.
    fn shape(&self, desktop: &Desktop, contact: &TouchContact, events: &mut Vec<Event>) {
        let ContactSize { width, height } = contact.size.unwrap_or_default();
        let (width, height) = desktop.extent(width, height);
        let turned = i32::from(contact.orientation.unwrap_or(0));
        // The kernel turns the longer axis away from upright.
        let orientation = if width > height { turned + 90 } else { turned };
        events.push(Event::absolute(AbsoluteAxis::MultitouchTouchMajor, width.max(height)));
        events.push(Event::absolute(AbsoluteAxis::MultitouchTouchMinor, width.min(height)));
        events.push(Event::absolute(AbsoluteAxis::MultitouchOrientation, half_turn(orientation)));
    }

    fn touch(&mut self, slot: usize, monitor: u16, id: u16, events: &mut Vec<Event>) {
        let tracking_id = self.next_tracking_id;
        self.next_tracking_id = if tracking_id == MAX_TRACKING_ID { 0 } else { tracking_id + 1 };
        self.select(slot, events);
        events.push(Event::absolute(AbsoluteAxis::MultitouchTrackingId, tracking_id));
        events.push(Event::absolute(AbsoluteAxis::MultitouchToolType, TOOL_FINGER));
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(Finger { monitor, id, tracking_id, x: 0, y: 0 });
        }
    }

    fn lift(&mut self, slot: usize, is_canceled: bool, events: &mut Vec<Event>) {
        if self.slots.get_mut(slot).and_then(Option::take).is_none() {
            return;
        }
        self.select(slot, events);
        if is_canceled {
            events.push(Event::absolute(AbsoluteAxis::MultitouchToolType, TOOL_PALM));
        }
        events.push(Event::absolute(AbsoluteAxis::MultitouchTrackingId, NO_TRACKING_ID));
    }

    fn select(&mut self, slot: usize, events: &mut Vec<Event>) {
        if self.current != slot {
            self.current = slot;
            let number = i32::try_from(slot).unwrap_or(0);
            events.push(Event::absolute(AbsoluteAxis::MultitouchSlot, number));
        }
    }

    /// What programs see that know one finger only: the one that is down longest.
    fn finish(&self, were_any: bool, mut events: Vec<Event>) -> Vec<Event> {
        if events.is_empty() {
            return events;
        }
        if were_any != self.any() {
            events.push(Event::key(Key::ButtonTouch, if self.any() { DOWN } else { UP }));
        }
        // Ids that began anew are older than those before.
        let age = |finger: &&Finger| (self.next_tracking_id - 1 - finger.tracking_id).rem_euclid(MAX_TRACKING_ID + 1);
        if let Some(first) = self.slots.iter().flatten().max_by_key(age) {
            events.push(Event::absolute(AbsoluteAxis::X, first.x));
            events.push(Event::absolute(AbsoluteAxis::Y, first.y));
        }
        events.push(Event::SYN);
        events
    }

    fn any(&self) -> bool {
        self.slots.iter().any(Option::is_some)
    }
}

/// The same line, told by an angle of −90 (excluded) to 90 degrees.
const fn half_turn(degrees: i32) -> i32 {
    let degrees = degrees.rem_euclid(180);
    if degrees > MAX_ORIENTATION { degrees - 180 } else { degrees }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use console::{FinePoint, Rect};
    use input_linux::EventKind;
    use proptest::prelude::*;

    use super::*;

    fn desktop() -> Desktop {
        Desktop::new(vec![Rect { x: 0, y: 0, width: 0x1_0000, height: 0x1_0000 }])
    }

    /// On a desktop of 65536 pixels a pixel is a step of the axes.
    fn contact(id: u16, phase: ContactPhase, x: i32, y: i32) -> TouchContact {
        let position = FinePoint { x: x * 100, y: y * 100 };
        TouchContact { id, phase, position, pressure: None, size: None, orientation: None }
    }

    fn text(events: &[Event]) -> String {
        let short = |event: &Event| match (event.kind, AbsoluteAxis::from_code(event.code)) {
            (EventKind::Synchronize, _) => "SYN".to_owned(),
            (EventKind::Key, _) => format!("BTN_TOUCH={}", event.value),
            (_, Ok(AbsoluteAxis::MultitouchSlot)) => format!("SLOT={}", event.value),
            (_, Ok(AbsoluteAxis::MultitouchTrackingId)) => format!("ID={}", event.value),
            (_, Ok(AbsoluteAxis::MultitouchToolType)) => format!("TOOL={}", event.value),
            (_, Ok(AbsoluteAxis::MultitouchPositionX)) => format!("MX={}", event.value),
            (_, Ok(AbsoluteAxis::MultitouchPositionY)) => format!("MY={}", event.value),
            (_, Ok(AbsoluteAxis::MultitouchPressure)) => format!("P={}", event.value),
            (_, Ok(AbsoluteAxis::MultitouchTouchMajor)) => format!("MAJOR={}", event.value),
            (_, Ok(AbsoluteAxis::MultitouchTouchMinor)) => format!("MINOR={}", event.value),
            (_, Ok(AbsoluteAxis::MultitouchOrientation)) => format!("TURN={}", event.value),
            (_, Ok(axis)) => format!("{axis:?}={}", event.value),
            (_, Err(_)) => "?".to_owned(),
        };
        events.iter().map(short).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn two_fingers_of_one_frame_come_together() {
        let mut screen = TouchScreen::default();
        let frame = [contact(7, ContactPhase::Down, 10, 20), contact(3, ContactPhase::Down, 30, 40)];
        assert_eq!(
            text(&screen.handle(&desktop(), 0, &frame)),
            "ID=0 TOOL=0 MX=10 MY=20 P=32767 MAJOR=0 MINOR=0 TURN=0 \
             SLOT=1 ID=1 TOOL=0 MX=30 MY=40 P=32767 MAJOR=0 MINOR=0 TURN=0 BTN_TOUCH=1 X=10 Y=20 SYN"
        );
        let frame = [contact(7, ContactPhase::Up, 10, 20), contact(3, ContactPhase::Move, 31, 41)];
        assert_eq!(
            text(&screen.handle(&desktop(), 0, &frame)),
            "SLOT=0 ID=-1 SLOT=1 MX=31 MY=41 P=32767 MAJOR=0 MINOR=0 TURN=0 X=31 Y=41 SYN"
        );
        let frame = [contact(3, ContactPhase::UpCanceled, 31, 41)];
        assert_eq!(text(&screen.handle(&desktop(), 0, &frame)), "TOOL=2 ID=-1 BTN_TOUCH=0 SYN");
    }

    #[test]
    fn pressure_and_size_are_told_as_the_client_tells_them() {
        let mut screen = TouchScreen::default();
        let finger = TouchContact {
            pressure: Some(700),
            size: Some(ContactSize { width: 3000, height: 1000 }),
            orientation: Some(45),
            ..contact(1, ContactPhase::Down, 0, 0)
        };
        let events = text(&screen.handle(&desktop(), 0, &[finger]));
        assert!(events.contains("P=700 MAJOR=30 MINOR=10 TURN=-45"), "{events}");
        assert_eq!([half_turn(0), half_turn(90), half_turn(91), half_turn(359)], [0, 90, -89, -1]);
    }

    #[test]
    fn fingers_that_are_near_or_unknown_or_on_no_monitor_do_nothing() {
        let mut screen = TouchScreen::default();
        let frame = [
            contact(1, ContactPhase::Hover, 0, 0),
            contact(2, ContactPhase::Move, 0, 0),
            contact(3, ContactPhase::Up, 0, 0),
            contact(4, ContactPhase::Leave, 0, 0),
        ];
        assert_eq!(screen.handle(&desktop(), 0, &frame), []);
        assert_eq!(screen.handle(&desktop(), 1, &[contact(1, ContactPhase::Down, 0, 0)]), []);
    }

    #[test]
    fn a_finger_that_comes_down_again_is_another_one() {
        let mut screen = TouchScreen::default();
        let down = [contact(1, ContactPhase::Down, 1, 1)];
        screen.handle(&desktop(), 0, &down);
        let again = text(&screen.handle(&desktop(), 0, &down));
        assert!(again.starts_with("ID=1 TOOL=0") && !again.contains("BTN_TOUCH"), "{again}");
    }

    #[test]
    fn all_slots_can_be_used_and_then_none_is_left() {
        let mut screen = TouchScreen::default();
        let frame: Vec<_> = (0..=SLOTS).map(|id| contact(id, ContactPhase::Down, id.into(), 0)).collect();
        let events = text(&screen.handle(&desktop(), 0, &frame));
        assert_eq!(events.matches(" TOOL=0").count(), usize::from(SLOTS));
        let released = text(&screen.release_all());
        assert_eq!(released.matches("ID=-1").count(), usize::from(SLOTS));
        assert!(released.ends_with("BTN_TOUCH=0 SYN"));
        assert_eq!(screen.release_all(), []);
    }

    fn phase() -> impl Strategy<Value = ContactPhase> {
        use ContactPhase::{Down, Hover, Leave, LeaveCanceled, Lift, Move, Up, UpCanceled};
        proptest::sample::select(vec![Down, Move, Hover, Lift, Up, Leave, UpCanceled, LeaveCanceled])
    }

    proptest! {
        /// A kernel that believes everything: what it holds is what was meant.
        #[test]
        fn slots_are_used_as_the_kernel_expects(
            frames in proptest::collection::vec(proptest::collection::vec((0..20_u16, phase()), 0..8), 0..40),
        ) {
            let mut screen = TouchScreen::default();
            let (mut slot, mut ids, mut is_touched) = (0, BTreeMap::new(), false);
            let mut all: Vec<Vec<Event>> = frames.iter().map(|frame| {
                let contacts: Vec<_> = frame.iter().map(|(id, phase)| contact(*id, *phase, 5, 5)).collect();
                screen.handle(&desktop(), 0, &contacts)
            }).collect();
            all.push(screen.release_all());
            for frame in all {
                for event in &frame {
                    match (event.kind, AbsoluteAxis::from_code(event.code)) {
                        (EventKind::Key, _) => is_touched = event.value == DOWN,
                        (EventKind::Absolute, Ok(AbsoluteAxis::MultitouchSlot)) => slot = event.value,
                        (EventKind::Absolute, Ok(AbsoluteAxis::MultitouchTrackingId)) => match event.value {
                            NO_TRACKING_ID => prop_assert!(ids.remove(&slot).is_some()),
                            id => {
                                prop_assert!(ids.values().all(|each| *each != id));
                                ids.insert(slot, id);
                            }
                        },
                        _ => {}
                    }
                }
                prop_assert_eq!(frame.iter().filter(|event| **event == Event::SYN).count(), usize::from(!frame.is_empty()));
                prop_assert!(frame.last().is_none_or(|event| *event == Event::SYN));
                prop_assert_eq!(is_touched, !ids.is_empty());
            }
            prop_assert!(ids.is_empty());
        }
    }
}
