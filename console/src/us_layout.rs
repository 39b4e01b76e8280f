//! Characters → keys of the US keyboard.

/// A key, and whether Shift goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stroke {
    /// The scancode of set 1, without prefix.
    pub code: u8,
    /// With Shift.
    pub shift: bool,
}

/// Rows of the keyboard: the code of the first key, then what the keys give without and with Shift.
const ROWS: [(u8, &str, &str); 5] = [
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1e, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
    (0x2b, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x39, " ", " "),
];

/// How the character is typed; `None` when the layout does not have it.
#[must_use]
pub fn stroke(character: char) -> Option<Stroke> {
    let code = match character {
        '\u{1b}' => 0x01,
        '\u{8}' => 0x0e,
        '\t' => 0x0f,
        '\r' | '\n' => 0x1c,
        _ => return ROWS.iter().find_map(|row| in_row(*row, character)),
    };
    Some(Stroke { code, shift: false })
}

fn in_row((first, plain, shifted): (u8, &str, &str), character: char) -> Option<Stroke> {
    let find = |keys: &str| keys.chars().position(|key| key == character).and_then(|at| u8::try_from(at).ok());
    let (at, shift) = find(plain).map(|at| (at, false)).or_else(|| find(shifted).map(|at| (at, true)))?;
    Some(Stroke { code: first + at, shift })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_printable_ascii_character_has_a_key_of_its_own() {
        let mut seen = std::collections::HashSet::new();
        for character in ' '..='~' {
            let stroke = stroke(character).unwrap_or_else(|| panic!("no key for {character:?}"));
            assert!(seen.insert((stroke.code, stroke.shift)), "{character:?} shares its key");
        }
    }

    #[test]
    fn a_few_keys_are_where_everybody_has_them() {
        let plain = |code| Some(Stroke { code, shift: false });
        assert_eq!(stroke('a'), plain(0x1e));
        assert_eq!(stroke('`'), plain(0x29));
        assert_eq!(stroke('\\'), plain(0x2b));
        assert_eq!(stroke('z'), plain(0x2c));
        assert_eq!(stroke('/'), plain(0x35));
        assert_eq!(stroke('\n'), plain(0x1c));
        assert_eq!(stroke('?'), Some(Stroke { code: 0x35, shift: true }));
        assert_eq!(stroke('é'), None);
    }
}
