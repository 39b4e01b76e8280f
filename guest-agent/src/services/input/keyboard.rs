//! The keyboard: scancodes and characters → key events, which keys are down, and the lock keys.

use std::collections::BTreeSet;

use console::us_layout::{self, Stroke};
use console::{KeyEvent, KeyState, LockKeys, Scancode};
use input_linux::Key;

use super::evdev::{DOWN, Event, REPEAT, UP};
use super::scancode;

const SHIFTS: [Key; 2] = [Key::LeftShift, Key::RightShift];

/// The keyboard that the guest has from us.
#[derive(Debug, Default)]
pub(super) struct Keyboard {
    pressed: BTreeSet<Key>,
    /// The lights, once what was typed has arrived: what the guest said last, and our taps since.
    locks: LockKeys,
    /// Num Lock went down as the second half of Pause.
    swallowed_num_lock: bool,
}

impl Keyboard {
    /// What the device does for `event`.
    pub(super) fn handle(&mut self, event: KeyEvent, events: &mut Vec<Event>) {
        match event {
            KeyEvent::Key { scancode, state } => {
                if let Some(key) = scancode::key(scancode) {
                    self.key(key, state, events);
                }
            }
            KeyEvent::Unicode { unit, state: KeyState::Pressed } => self.character(unit, events),
            // A character is typed as a whole when it goes down.
            KeyEvent::Unicode { state: KeyState::Released, .. } => {}
            KeyEvent::Locks(wanted) => self.set_locks(wanted, events),
            KeyEvent::ReleaseAll => self.release_all(events),
        }
    }

    /// The guest's lights changed.
    pub(super) fn set_lights(&mut self, lights: LockKeys) {
        self.locks = lights;
    }

    fn key(&mut self, key: Key, state: KeyState, events: &mut Vec<Event>) {
        if key == Key::NumLock && self.is_second_half_of_pause(state) {
            return;
        }
        let value = match state {
            // A key that is down already repeats; only the first time switches a light.
            KeyState::Pressed if !self.pressed.insert(key) => REPEAT,
            KeyState::Pressed => {
                self.note_lock_key(key);
                DOWN
            }
            KeyState::Released if !self.pressed.remove(&key) => return,
            KeyState::Released => UP,
        };
        push(events, key, value);
    }

    /// Pause is sent as E1 1D and 45 (MS-RDPBCGR 2.2.8.1.1.3.1.1.1): the 45 is no Num Lock.
    fn is_second_half_of_pause(&mut self, state: KeyState) -> bool {
        match state {
            KeyState::Pressed => {
                self.swallowed_num_lock = self.pressed.contains(&Key::Pause);
                self.swallowed_num_lock
            }
            KeyState::Released => std::mem::take(&mut self.swallowed_num_lock),
        }
    }

    /// Types a character that the US layout has; the guest's layout may make another of it. Others cannot be typed
    /// with keys.
    fn character(&mut self, unit: u16, events: &mut Vec<Event>) {
        let character = char::from_u32(unit.into());
        let stroke = character.and_then(us_layout::stroke);
        let Some((Stroke { shift, .. }, key)) =
            stroke.and_then(|stroke| Some((stroke, scancode::key(Scancode::plain(stroke.code))?)))
        else {
            tracing::debug!(unit, "a character that the US layout does not have is dropped");
            return;
        };
        let is_letter = character.is_some_and(|character| character.is_ascii_alphabetic());
        let shift = shift != (is_letter && self.locks.caps);
        let held: Vec<Key> = SHIFTS.into_iter().filter(|key| self.pressed.contains(key)).collect();
        if shift && held.is_empty() {
            push(events, Key::LeftShift, DOWN);
            self.tap(key, events);
            push(events, Key::LeftShift, UP);
        } else if !shift && !held.is_empty() {
            held.iter().for_each(|key| push(events, *key, UP));
            self.tap(key, events);
            held.iter().for_each(|key| push(events, *key, DOWN));
        } else {
            self.tap(key, events);
        }
    }

    /// Strikes a key, which is as before afterwards: one that is held goes up and down again.
    fn tap(&self, key: Key, events: &mut Vec<Event>) {
        let strike = if self.pressed.contains(&key) { [UP, DOWN] } else { [DOWN, UP] };
        strike.into_iter().for_each(|value| push(events, key, value));
    }

    fn set_locks(&mut self, wanted: LockKeys, events: &mut Vec<Event>) {
        let keys = [
            (Key::ScrollLock, self.locks.scroll, wanted.scroll),
            (Key::NumLock, self.locks.num, wanted.num),
            (Key::CapsLock, self.locks.caps, wanted.caps),
        ];
        for (key, have, want) in keys {
            if have != want {
                self.tap(key, events);
            }
        }
        // Until the guest says otherwise: a guest without lights is not tapped again and again.
        self.locks = wanted;
    }

    fn note_lock_key(&mut self, key: Key) {
        match key {
            Key::ScrollLock => self.locks.scroll = !self.locks.scroll,
            Key::NumLock => self.locks.num = !self.locks.num,
            Key::CapsLock => self.locks.caps = !self.locks.caps,
            _ => {}
        }
    }

    fn release_all(&mut self, events: &mut Vec<Event>) {
        let released = std::mem::take(&mut self.pressed).into_iter();
        released.for_each(|key| push(events, key, UP));
        self.swallowed_num_lock = false;
    }
}

/// Each change of a key is a moment of its own: down and up within one would be nothing.
fn push(events: &mut Vec<Event>, key: Key, value: i32) {
    events.extend([Event::key(key, value), Event::SYN]);
}

#[cfg(test)]
mod tests {
    use console::KeyState::{Pressed, Released};
    use console::ScancodePrefix;
    use input_linux::EventKind;
    use proptest::prelude::*;

    use super::*;

    fn key(scancode: Scancode, state: KeyState) -> KeyEvent {
        KeyEvent::Key { scancode, state }
    }

    fn run(keyboard: &mut Keyboard, sent: &[KeyEvent]) -> Vec<(Key, i32)> {
        let mut events = Vec::new();
        sent.iter().for_each(|event| keyboard.handle(*event, &mut events));
        let pairs = events.chunks(2).map(|pair| match pair {
            [Event { kind: EventKind::Key, code, value }, Event::SYN] => (Key::from_code(*code).unwrap(), *value),
            other => panic!("{other:?} is no key and its end"),
        });
        pairs.collect()
    }

    fn unicode(character: char) -> KeyEvent {
        KeyEvent::Unicode { unit: u16::try_from(u32::from(character)).unwrap(), state: Pressed }
    }

    const A: Scancode = Scancode::plain(0x1e);

    #[test]
    fn a_key_goes_down_repeats_and_comes_up_once() {
        let mut keyboard = Keyboard::default();
        let sent = [key(A, Pressed), key(A, Pressed), key(A, Released), key(A, Released)];
        assert_eq!(run(&mut keyboard, &sent), [(Key::A, DOWN), (Key::A, REPEAT), (Key::A, UP)]);
    }

    #[test]
    fn the_second_half_of_pause_is_no_num_lock() {
        let pause = Scancode { prefix: ScancodePrefix::E1, code: 0x1d };
        let num = Scancode::plain(0x45);
        let mut keyboard = Keyboard::default();
        let sent = [key(pause, Pressed), key(num, Pressed), key(pause, Released), key(num, Released)];
        assert_eq!(run(&mut keyboard, &sent), [(Key::Pause, DOWN), (Key::Pause, UP)]);
        let sent = [key(num, Pressed), key(num, Released)];
        assert_eq!(run(&mut keyboard, &sent), [(Key::NumLock, DOWN), (Key::NumLock, UP)]);
    }

    #[test]
    fn characters_are_typed_with_the_shift_they_need() {
        let mut keyboard = Keyboard::default();
        assert_eq!(run(&mut keyboard, &[unicode('a')]), [(Key::A, DOWN), (Key::A, UP)]);
        let shifted = [(Key::LeftShift, DOWN), (Key::A, DOWN), (Key::A, UP), (Key::LeftShift, UP)];
        assert_eq!(run(&mut keyboard, &[unicode('A')]), shifted);
        keyboard.set_lights(LockKeys { caps: true, ..LockKeys::default() });
        assert_eq!(run(&mut keyboard, &[unicode('a')]), shifted, "Caps Lock turns letters round");
        run(&mut keyboard, &[key(Scancode::plain(0x36), Pressed)]);
        let lifted = [(Key::RightShift, UP), (Key::Num1, DOWN), (Key::Num1, UP), (Key::RightShift, DOWN)];
        assert_eq!(run(&mut keyboard, &[unicode('1')]), lifted);
        assert_eq!(run(&mut keyboard, &[unicode('é'), KeyEvent::Unicode { unit: 0xd83d, state: Pressed }]), []);
    }

    #[test]
    fn lock_keys_are_tapped_only_when_they_differ() {
        let mut keyboard = Keyboard::default();
        let wanted = LockKeys { num: true, ..LockKeys::default() };
        assert_eq!(run(&mut keyboard, &[KeyEvent::Locks(wanted)]), [(Key::NumLock, DOWN), (Key::NumLock, UP)]);
        assert_eq!(run(&mut keyboard, &[KeyEvent::Locks(wanted)]), [], "the guest may be slow to say");
        keyboard.set_lights(LockKeys { num: true, caps: true, scroll: false });
        assert_eq!(run(&mut keyboard, &[KeyEvent::Locks(wanted)]), [(Key::CapsLock, DOWN), (Key::CapsLock, UP)]);
        let caps = Scancode::plain(0x3a);
        run(&mut keyboard, &[key(caps, Pressed), key(caps, Pressed), key(caps, Released)]);
        let both = LockKeys { caps: true, ..wanted };
        assert_eq!(run(&mut keyboard, &[KeyEvent::Locks(both)]), [], "the user switched it");
    }

    fn event() -> impl Strategy<Value = KeyEvent> {
        let state = prop_oneof![Just(Pressed), Just(Released)];
        let prefix = prop_oneof![Just(ScancodePrefix::None), Just(ScancodePrefix::E0), Just(ScancodePrefix::E1)];
        prop_oneof![
            8 => (prefix, any::<u8>(), state.clone())
                .prop_map(|(prefix, code, state)| key(Scancode { prefix, code }, state)),
            2 => (any::<u16>(), state).prop_map(|(unit, state)| KeyEvent::Unicode { unit, state }),
            1 => (any::<bool>(), any::<bool>(), any::<bool>())
                .prop_map(|(scroll, num, caps)| KeyEvent::Locks(LockKeys { scroll, num, caps })),
        ]
    }

    proptest! {
        #[test]
        fn nothing_stays_down_after_release_all(sent in proptest::collection::vec(event(), 0..60)) {
            let mut keyboard = Keyboard::default();
            let mut down = BTreeSet::new();
            let mut all = run(&mut keyboard, &sent);
            all.extend(run(&mut keyboard, &[KeyEvent::ReleaseAll]));
            for (key, value) in all {
                match value {
                    DOWN => prop_assert!(down.insert(key), "{key:?} went down twice"),
                    UP => prop_assert!(down.remove(&key), "{key:?} came up without having been down"),
                    _ => prop_assert!(down.contains(&key), "{key:?} repeats without being down"),
                }
            }
            prop_assert!(down.is_empty());
        }
    }
}
