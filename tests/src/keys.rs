//! Which key of an X keyboard gives which character.

use std::collections::HashMap;

use anyhow::{Context, Result};
use x11rb::connection::Connection;
use x11rb::protocol::xproto::ConnectionExt as _;
use x11rb::rust_connection::RustConnection;

/// X's numbers for keys, as far as tests press them.
pub mod keysym {
    /// The left shift key.
    pub const SHIFT: u32 = 0xffe1;
    /// The left control key.
    pub const CONTROL: u32 = 0xffe3;
    /// The caps lock key.
    pub const CAPS_LOCK: u32 = 0xffe5;
    /// The return key.
    pub const RETURN: u32 = 0xff0d;

    /// The keysym of a Latin-1 character; a line break is the return key.
    #[must_use]
    pub fn of(character: char) -> u32 {
        if character == '\n' { RETURN } else { u32::from(character) }
    }
}

/// A key, and whether shift is held with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stroke {
    pub(crate) keycode: u8,
    pub(crate) shifted: bool,
}

/// The keys of an X server.
#[derive(Debug)]
pub(crate) struct Keyboard {
    strokes: HashMap<u32, Stroke>,
}

impl Keyboard {
    pub(crate) fn of(connection: &RustConnection) -> Result<Self> {
        let (first, last) = (connection.setup().min_keycode, connection.setup().max_keycode);
        let mapping = connection.get_keyboard_mapping(first, last - first + 1)?.reply()?;
        let mut strokes = HashMap::new();
        let keys = mapping.keysyms.chunks(mapping.keysyms_per_keycode.into());
        for (keycode, keysyms) in (first..=last).zip(keys) {
            for (keysym, shifted) in keysyms.iter().take(2).zip([false, true]) {
                strokes.entry(*keysym).or_insert(Stroke { keycode, shifted });
            }
        }
        Ok(Self { strokes })
    }

    pub(crate) fn stroke(&self, keysym: u32) -> Result<Stroke> {
        self.strokes.get(&keysym).copied().with_context(|| format!("no key for keysym {keysym:#x}"))
    }
}
