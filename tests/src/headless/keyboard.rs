//! Keys as fast-path input (MS-RDPBCGR 2.2.8.1.2).

use anyhow::{Context, Result, bail};
use ironrdp_core::encode_vec;
use ironrdp_pdu::input::fast_path::{FastPathInput, FastPathInputEvent, KeyboardFlags};

const LEFT_SHIFT: u8 = 0x2a;
/// The Enter key's scancode.
pub const ENTER: u8 = 0x1c;

/// The rows of a US keyboard from their first scancode: characters without and with shift.
const ROWS: [(u8, &str, &str); 4] = [
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1e, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
    (0x2b, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
];

/// One key pressed and released, as one PDU.
pub(super) fn tap(scancode: u8) -> Result<Vec<u8>> {
    encode(&[(scancode, KeyboardFlags::empty()), (scancode, KeyboardFlags::RELEASE)])
}

/// The key of a character, with shift around it when it needs that, as one PDU.
pub(super) fn character(character: char) -> Result<Vec<u8>> {
    let (scancode, shift) = find(character).with_context(|| format!("no key for {character:?}"))?;
    let mut events = vec![(scancode, KeyboardFlags::empty()), (scancode, KeyboardFlags::RELEASE)];
    if shift {
        events.insert(0, (LEFT_SHIFT, KeyboardFlags::empty()));
        events.push((LEFT_SHIFT, KeyboardFlags::RELEASE));
    }
    encode(&events)
}

fn find(character: char) -> Option<(u8, bool)> {
    match character {
        ' ' => return Some((0x39, false)),
        '\n' => return Some((ENTER, false)),
        _ => {}
    }
    ROWS.iter().find_map(|(first, plain, shifted)| {
        let place = |row: &str| row.chars().position(|key| key == character).and_then(|at| u8::try_from(at).ok());
        let (at, shift) = place(plain).map(|at| (at, false)).or_else(|| Some((place(shifted)?, true)))?;
        Some((first + at, shift))
    })
}

fn encode(events: &[(u8, KeyboardFlags)]) -> Result<Vec<u8>> {
    let events = events.iter().map(|(code, flags)| FastPathInputEvent::KeyboardEvent(*flags, *code)).collect();
    let Ok(input) = FastPathInput::new(events) else { bail!("too many events") };
    Ok(encode_vec(&input)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_found_on_their_keys() {
        assert_eq!(find('a'), Some((0x1e, false)));
        assert_eq!(find('Z'), Some((0x2c, true)));
        assert_eq!(find('~'), Some((0x29, true)));
        assert_eq!(find('/'), Some((0x35, false)));
        assert_eq!(find('é'), None);
    }
}
