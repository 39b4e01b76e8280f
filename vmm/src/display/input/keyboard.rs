//! Keys as QEMU numbers them, the keys that are down, and the lock keys.

use std::collections::BTreeSet;

use console::us_layout::{self, Stroke};
use console::{KeyEvent, KeyState, LockKeys, Scancode, ScancodePrefix};

use super::Action;

const LEFT_SHIFT: u32 = 0x2a;
const RIGHT_SHIFT: u32 = 0x36;
const NUM_LOCK: u32 = 0x45;
const SCROLL_LOCK: u32 = 0x46;
const CAPS_LOCK: u32 = 0x3a;
const PAUSE: u32 = 0xc6;
const SYS_RQ: u32 = 0x54;

/// The guest's keyboard, as far as we know.
#[derive(Debug, Default)]
pub(super) struct Keyboard {
    pressed: BTreeSet<u32>,
    /// The lights, once what was typed has arrived: what the guest said last, and our taps since.
    locks: LockKeys,
    /// Num Lock went down as the second half of Pause.
    swallowed_num_lock: bool,
}

impl Keyboard {
    /// What QEMU must be told for `event`.
    pub(super) fn handle(&mut self, event: KeyEvent, actions: &mut Vec<Action>) {
        match event {
            KeyEvent::Key { scancode, state } => self.key(scancode, state, actions),
            KeyEvent::Unicode { unit, state: KeyState::Pressed } => self.character(unit, actions),
            // A character is typed as a whole when it goes down.
            KeyEvent::Unicode { state: KeyState::Released, .. } => {}
            KeyEvent::Locks(wanted) => self.set_locks(wanted, actions),
            KeyEvent::ReleaseAll => self.release_all(actions),
        }
    }

    /// The guest's lights changed.
    pub(super) fn set_lights(&mut self, lights: LockKeys) {
        self.locks = lights;
    }

    /// Whether a key is down.
    pub(super) fn is_any_down(&self) -> bool {
        !self.pressed.is_empty()
    }

    fn key(&mut self, scancode: Scancode, state: KeyState, actions: &mut Vec<Action>) {
        let Some(key) = qemu_key(scancode) else { return };
        if key == NUM_LOCK && self.is_second_half_of_pause(state) {
            return;
        }
        match state {
            KeyState::Pressed => {
                // A key that is down already repeats; only the first time switches a light.
                if self.pressed.insert(key) {
                    self.note_lock_key(key);
                }
            }
            KeyState::Released if !self.pressed.remove(&key) => return,
            KeyState::Released => {}
        }
        actions.push(Action::Key(key, state));
    }

    /// Pause is sent as E1 1D and 45 (MS-RDPBCGR 2.2.8.1.1.3.1.1.1): the 45 is no Num Lock.
    fn is_second_half_of_pause(&mut self, state: KeyState) -> bool {
        match state {
            KeyState::Pressed => {
                self.swallowed_num_lock = self.pressed.contains(&PAUSE);
                self.swallowed_num_lock
            }
            KeyState::Released => std::mem::take(&mut self.swallowed_num_lock),
        }
    }

    fn character(&mut self, unit: u16, actions: &mut Vec<Action>) {
        let stroke = char::from_u32(unit.into()).and_then(us_layout::stroke);
        let Some(Stroke { code, shift }) = stroke else {
            tracing::debug!(unit, "a character that the US layout does not have is dropped");
            return;
        };
        let is_letter = char::from_u32(unit.into()).is_some_and(|character| character.is_ascii_alphabetic());
        let shift = shift != (is_letter && self.locks.caps);
        let held: Vec<u32> = [LEFT_SHIFT, RIGHT_SHIFT].into_iter().filter(|key| self.pressed.contains(key)).collect();
        if shift && held.is_empty() {
            actions.push(Action::Key(LEFT_SHIFT, KeyState::Pressed));
            self.tap(code.into(), actions);
            actions.push(Action::Key(LEFT_SHIFT, KeyState::Released));
        } else if !shift && !held.is_empty() {
            actions.extend(held.iter().map(|key| Action::Key(*key, KeyState::Released)));
            self.tap(code.into(), actions);
            actions.extend(held.iter().map(|key| Action::Key(*key, KeyState::Pressed)));
        } else {
            self.tap(code.into(), actions);
        }
    }

    /// Strikes a key, which is as before afterwards: one that is held goes up and down again.
    fn tap(&self, key: u32, actions: &mut Vec<Action>) {
        let strike = if self.pressed.contains(&key) {
            [KeyState::Released, KeyState::Pressed]
        } else {
            [KeyState::Pressed, KeyState::Released]
        };
        actions.extend(strike.map(|state| Action::Key(key, state)));
    }

    fn set_locks(&mut self, wanted: LockKeys, actions: &mut Vec<Action>) {
        let keys = [
            (SCROLL_LOCK, self.locks.scroll, wanted.scroll),
            (NUM_LOCK, self.locks.num, wanted.num),
            (CAPS_LOCK, self.locks.caps, wanted.caps),
        ];
        for (key, have, want) in keys {
            if have != want {
                self.tap(key, actions);
            }
        }
        // Until the guest says otherwise: a guest without lights is not tapped again and again.
        self.locks = wanted;
    }

    fn note_lock_key(&mut self, key: u32) {
        match key {
            SCROLL_LOCK => self.locks.scroll = !self.locks.scroll,
            NUM_LOCK => self.locks.num = !self.locks.num,
            CAPS_LOCK => self.locks.caps = !self.locks.caps,
            _ => {}
        }
    }

    fn release_all(&mut self, actions: &mut Vec<Action>) {
        let released = std::mem::take(&mut self.pressed).into_iter();
        actions.extend(released.map(|key| Action::Key(key, KeyState::Released)));
        self.swallowed_num_lock = false;
    }
}

/// QEMU's number of a key ("qnum"): the code, with the highest bit for those behind E0.
fn qemu_key(scancode: Scancode) -> Option<u32> {
    let code = u32::from(scancode.code);
    match (scancode.prefix, code) {
        (_, 0 | 0x80..) => None,
        // Print Screen. QEMU has two numbers for its two halves on an old keyboard; guests know it by this one.
        (ScancodePrefix::E0, 0x37) => Some(SYS_RQ),
        // Shifts that a keyboard slips in around the E0 keys; they are no keys.
        (ScancodePrefix::E0, LEFT_SHIFT | RIGHT_SHIFT) => None,
        (ScancodePrefix::E0, _) => Some(code | 0x80),
        (ScancodePrefix::E1, 0x1d) => Some(PAUSE),
        (ScancodePrefix::E1, _) => None,
        (ScancodePrefix::None, _) => Some(code),
    }
}

#[cfg(test)]
mod tests {
    use console::KeyState::{Pressed, Released};
    use proptest::prelude::*;

    use super::*;

    fn key(scancode: Scancode, state: KeyState) -> KeyEvent {
        KeyEvent::Key { scancode, state }
    }

    fn run(keyboard: &mut Keyboard, events: &[KeyEvent]) -> Vec<(u32, KeyState)> {
        let mut actions = Vec::new();
        events.iter().for_each(|event| keyboard.handle(*event, &mut actions));
        let keys = actions.into_iter().map(|action| match action {
            Action::Key(key, state) => (key, state),
            other => panic!("a keyboard does not {other:?}"),
        });
        keys.collect()
    }

    fn unicode(character: char) -> KeyEvent {
        KeyEvent::Unicode { unit: u16::try_from(u32::from(character)).expect("basic plane"), state: Pressed }
    }

    #[test]
    fn keys_have_qemus_numbers() {
        let e1 = |code| Scancode { prefix: ScancodePrefix::E1, code };
        let cases = [
            (Scancode::plain(0x1e), Some(0x1e)),
            (Scancode::extended(0x48), Some(0xc8)),
            (Scancode::extended(0x1c), Some(0x9c)),
            (Scancode::extended(0x5b), Some(0xdb)),
            (Scancode::extended(0x46), Some(0xc6)),
            (e1(0x1d), Some(0xc6)),
            (e1(0x45), None),
            (Scancode::extended(0x37), Some(0x54)),
            (Scancode::plain(0x54), Some(0x54)),
            (Scancode::extended(0x2a), None),
            (Scancode::plain(0), None),
            (Scancode::plain(0x80), None),
        ];
        for (scancode, number) in cases {
            assert_eq!(qemu_key(scancode), number, "{scancode:?}");
        }
    }

    #[test]
    fn the_second_half_of_pause_is_no_num_lock() {
        let pause = Scancode { prefix: ScancodePrefix::E1, code: 0x1d };
        let num = Scancode::plain(0x45);
        let mut keyboard = Keyboard::default();
        let events = [key(pause, Pressed), key(num, Pressed), key(pause, Released), key(num, Released)];
        assert_eq!(run(&mut keyboard, &events), [(0xc6, Pressed), (0xc6, Released)]);
        assert_eq!(run(&mut keyboard, &[key(num, Pressed), key(num, Released)]), [(0x45, Pressed), (0x45, Released)]);
    }

    #[test]
    fn characters_are_typed_with_the_shift_they_need() {
        let mut keyboard = Keyboard::default();
        assert_eq!(run(&mut keyboard, &[unicode('a')]), [(0x1e, Pressed), (0x1e, Released)]);
        let shifted = [(0x2a, Pressed), (0x1e, Pressed), (0x1e, Released), (0x2a, Released)];
        assert_eq!(run(&mut keyboard, &[unicode('A')]), shifted);
        keyboard.set_lights(LockKeys { caps: true, ..LockKeys::default() });
        assert_eq!(run(&mut keyboard, &[unicode('a')]), shifted, "Caps Lock turns letters round");
        assert_eq!(run(&mut keyboard, &[unicode('1')]), [(0x02, Pressed), (0x02, Released)]);
        run(&mut keyboard, &[key(Scancode::plain(0x36), Pressed)]);
        let lifted = [(0x36, Released), (0x02, Pressed), (0x02, Released), (0x36, Pressed)];
        assert_eq!(run(&mut keyboard, &[unicode('1')]), lifted);
        assert_eq!(run(&mut keyboard, &[unicode('é'), KeyEvent::Unicode { unit: 0xd83d, state: Pressed }]), []);
    }

    #[test]
    fn lock_keys_are_tapped_only_when_they_differ() {
        let mut keyboard = Keyboard::default();
        let wanted = LockKeys { num: true, ..LockKeys::default() };
        assert_eq!(run(&mut keyboard, &[KeyEvent::Locks(wanted)]), [(0x45, Pressed), (0x45, Released)]);
        assert_eq!(run(&mut keyboard, &[KeyEvent::Locks(wanted)]), [], "the guest may be slow to say");
        keyboard.set_lights(LockKeys { num: true, caps: true, scroll: false });
        assert_eq!(run(&mut keyboard, &[KeyEvent::Locks(wanted)]), [(0x3a, Pressed), (0x3a, Released)]);
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
        fn nothing_stays_down_after_release_all(events in proptest::collection::vec(event(), 0..60)) {
            let mut keyboard = Keyboard::default();
            let mut down = BTreeSet::new();
            let mut all = run(&mut keyboard, &events);
            all.extend(run(&mut keyboard, &[KeyEvent::ReleaseAll]));
            for (key, state) in all {
                prop_assert!((1..=0xff).contains(&key));
                match state {
                    Pressed => { down.insert(key); }
                    Released => prop_assert!(down.remove(&key), "{:#x} came up without having been down", key),
                }
            }
            prop_assert!(down.is_empty());
        }
    }
}
