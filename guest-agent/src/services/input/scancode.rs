//! PC scancodes of set 1 → Linux' keys.
//!
//! Without a prefix, 0x01 to 0x53 are the same numbers in both. The others are the codes that Windows gives its keys,
//! which are what clients send: from USB's usage tables and from Microsoft's keyboards.

use console::{Scancode, ScancodePrefix};
use input_linux::Key;

/// The highest code that is its own key's number.
const LAST_COMMON: u8 = 0x53;

/// Without prefix.
const PLAIN: &[(u8, Key)] = &[
    // Print Screen together with Alt.
    (0x54, Key::Sysrq),
    (0x56, Key::NonUsBackslashAndPipe),
    (0x57, Key::F11),
    (0x58, Key::F12),
    (0x59, Key::KpEqual),
    (0x5c, Key::KpJpComma),
    (0x64, Key::F13),
    (0x65, Key::F14),
    (0x66, Key::F15),
    (0x67, Key::F16),
    (0x68, Key::F17),
    (0x69, Key::F18),
    (0x6a, Key::F19),
    (0x6b, Key::F20),
    (0x6c, Key::F21),
    (0x6d, Key::F22),
    (0x6e, Key::F23),
    (0x76, Key::F24),
    // Korean keyboards.
    (0x71, Key::Hanja),
    (0x72, Key::Hangul),
    // Japanese ones, and Brazilian ones.
    (0x70, Key::KatakanaHiragana),
    (0x73, Key::Ro),
    (0x77, Key::Hiragana),
    (0x78, Key::Katakana),
    (0x79, Key::Henkan),
    (0x7b, Key::Muhenkan),
    (0x7d, Key::Yen),
    (0x7e, Key::KpComma),
];

/// Behind E0.
const EXTENDED: &[(u8, Key)] = &[
    (0x1c, Key::KpEnter),
    (0x1d, Key::RightCtrl),
    (0x35, Key::KpSlash),
    (0x37, Key::Sysrq),
    (0x38, Key::RightAlt),
    // Programs that take Num Lock for an extended key, as Windows tells it to them.
    (0x45, Key::NumLock),
    // Pause together with Ctrl.
    (0x46, Key::Pause),
    (0x47, Key::Home),
    (0x48, Key::Up),
    (0x49, Key::PageUp),
    (0x4b, Key::Left),
    (0x4d, Key::Right),
    (0x4f, Key::End),
    (0x50, Key::Down),
    (0x51, Key::PageDown),
    (0x52, Key::Insert),
    (0x53, Key::Delete),
    (0x5b, Key::LeftMeta),
    (0x5c, Key::RightMeta),
    (0x5d, Key::Compose),
    (0x5e, Key::Power),
    (0x5f, Key::Sleep),
    (0x63, Key::Wakeup),
    // Sound and players.
    (0x10, Key::PreviousSong),
    (0x19, Key::NextSong),
    (0x20, Key::Mute),
    (0x22, Key::PlayPause),
    (0x24, Key::StopCD),
    (0x2c, Key::EjectCD),
    (0x2e, Key::VolumeDown),
    (0x30, Key::VolumeUp),
    // Browsers and programs.
    (0x21, Key::Calc),
    (0x32, Key::Homepage),
    (0x65, Key::Search),
    (0x66, Key::Bookmarks),
    (0x67, Key::Refresh),
    (0x68, Key::Stop),
    (0x69, Key::Forward),
    (0x6a, Key::Back),
    (0x6b, Key::Computer),
    (0x6c, Key::Mail),
    (0x6d, Key::Media),
    // Office keyboards.
    (0x07, Key::Redo),
    (0x08, Key::Undo),
    (0x0a, Key::Paste),
    (0x17, Key::Cut),
    (0x18, Key::Copy),
    (0x23, Key::SpellCheck),
    (0x3b, Key::Help),
    (0x3e, Key::New),
    (0x3f, Key::Open),
    (0x40, Key::Close),
    (0x41, Key::Reply),
    (0x42, Key::ForwardMail),
    (0x43, Key::Send),
    (0x57, Key::Save),
    (0x58, Key::Print),
];

/// Behind E1.
const PAUSE: &[(u8, Key)] = &[(0x1d, Key::Pause)];

/// The key; none when no keyboard has it, or it is no key (the shifts that keyboards slip in behind E0).
pub(super) fn key(scancode: Scancode) -> Option<Key> {
    let Scancode { prefix, code } = scancode;
    let table = match prefix {
        ScancodePrefix::None if (1..=LAST_COMMON).contains(&code) => return Key::from_code(code.into()).ok(),
        ScancodePrefix::None => PLAIN,
        ScancodePrefix::E0 => EXTENDED,
        ScancodePrefix::E1 => PAUSE,
    };
    table.iter().find(|(each, _)| *each == code).map(|(_, key)| *key)
}

/// Every key that there is a scancode for.
pub(super) fn keys() -> impl Iterator<Item = Key> {
    let prefixes = [ScancodePrefix::None, ScancodePrefix::E0, ScancodePrefix::E1].into_iter();
    prefixes.flat_map(|prefix| (1..=0x7f).filter_map(move |code| key(Scancode { prefix, code })))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Keys of the kernel's `input-event-codes.h`, by number.
    #[test]
    fn keys_have_the_kernels_numbers() {
        let plain = [
            (0x01, 1, "KEY_ESC"),
            (0x1e, 30, "KEY_A"),
            (0x2b, 43, "KEY_BACKSLASH"),
            (0x37, 55, "KEY_KPASTERISK"),
            (0x3a, 58, "KEY_CAPSLOCK"),
            (0x44, 68, "KEY_F10"),
            (0x45, 69, "KEY_NUMLOCK"),
            (0x53, 83, "KEY_KPDOT"),
            (0x56, 86, "KEY_102ND"),
            (0x57, 87, "KEY_F11"),
            (0x59, 117, "KEY_KPEQUAL"),
            (0x64, 183, "KEY_F13"),
            (0x6e, 193, "KEY_F23"),
            (0x76, 194, "KEY_F24"),
            (0x70, 93, "KEY_KATAKANAHIRAGANA"),
            (0x71, 123, "KEY_HANJA"),
            (0x72, 122, "KEY_HANGEUL"),
            (0x73, 89, "KEY_RO"),
            (0x79, 92, "KEY_HENKAN"),
            (0x7b, 94, "KEY_MUHENKAN"),
            (0x7d, 124, "KEY_YEN"),
            (0x7e, 121, "KEY_KPCOMMA"),
        ];
        let extended = [
            (0x1c, 96, "KEY_KPENTER"),
            (0x1d, 97, "KEY_RIGHTCTRL"),
            (0x20, 113, "KEY_MUTE"),
            (0x22, 164, "KEY_PLAYPAUSE"),
            (0x2e, 114, "KEY_VOLUMEDOWN"),
            (0x30, 115, "KEY_VOLUMEUP"),
            (0x32, 172, "KEY_HOMEPAGE"),
            (0x35, 98, "KEY_KPSLASH"),
            (0x37, 99, "KEY_SYSRQ"),
            (0x38, 100, "KEY_RIGHTALT"),
            (0x46, 119, "KEY_PAUSE"),
            (0x47, 102, "KEY_HOME"),
            (0x48, 103, "KEY_UP"),
            (0x53, 111, "KEY_DELETE"),
            (0x5b, 125, "KEY_LEFTMETA"),
            (0x5d, 127, "KEY_COMPOSE"),
            (0x5e, 116, "KEY_POWER"),
            (0x5f, 142, "KEY_SLEEP"),
            (0x65, 217, "KEY_SEARCH"),
            (0x6b, 157, "KEY_COMPUTER"),
            (0x6d, 226, "KEY_MEDIA"),
        ];
        let number = |scancode| key(scancode).map(|key| key.code());
        for (code, expected, name) in plain {
            assert_eq!(number(Scancode::plain(code)), Some(expected), "{name}");
        }
        for (code, expected, name) in extended {
            assert_eq!(number(Scancode::extended(code)), Some(expected), "{name}");
        }
        assert_eq!(number(Scancode { prefix: ScancodePrefix::E1, code: 0x1d }), Some(119));
    }

    #[test]
    fn what_is_no_key_has_none() {
        let none = [
            Scancode::plain(0),
            Scancode::plain(0x55),
            Scancode::plain(0x7f),
            Scancode::plain(0xff),
            Scancode::extended(0x2a),
            Scancode::extended(0x36),
            Scancode { prefix: ScancodePrefix::E1, code: 0x45 },
        ];
        for scancode in none {
            assert_eq!(key(scancode), None, "{scancode:?}");
        }
    }

    #[test]
    fn no_code_stands_in_a_table_twice() {
        for table in [PLAIN, EXTENDED, PAUSE] {
            let codes: BTreeSet<_> = table.iter().map(|(code, _)| code).collect();
            assert_eq!(codes.len(), table.len());
        }
        assert!(PLAIN.iter().all(|(code, _)| *code > LAST_COMMON));
        assert!(keys().all(|key| key != Key::Reserved));
    }
}
