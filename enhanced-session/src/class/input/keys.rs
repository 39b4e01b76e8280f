//! How `console`'s keys and buttons are written.

use console::{KeyState, LockKeys, PointerButton, Scancode, ScancodePrefix, WheelAxis};
#[cfg(test)]
use proptest::prelude::*;

use crate::class::define::{foreign_codes, foreign_flags};
use crate::class::field::Field;
use crate::wire::{Malformed, Reader, Writer};

foreign_codes! { KeyState: u8 { Pressed = 0, Released = 1 } }
foreign_codes! { ScancodePrefix: u8 { None = 0, E0 = 0xe0, E1 = 0xe1 } }
foreign_codes! { PointerButton: u8 { Left = 0, Middle = 1, Right = 2, Back = 3, Forward = 4 } }
foreign_codes! { WheelAxis: u8 { Vertical = 0, Horizontal = 1 } }
foreign_flags! { LockKeys: u8 { scroll = 1, num = 2, caps = 4 } }

/// Highest make code of set 1: the bit above says *released* on a PC's wire.
const MAX_MAKE_CODE: u8 = 0x7f;

/// u8 prefix, u8 code.
impl Field for Scancode {
    const MAX_BYTES: usize = 2;

    fn write(&self, writer: &mut Writer) {
        self.prefix.write(writer);
        // What a release bit would be is cut off, so that whatever is written can be read.
        writer.u8(self.code & MAX_MAKE_CODE);
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        let prefix = ScancodePrefix::read(reader, what)?;
        match reader.u8(what)? {
            code @ 0..=MAX_MAKE_CODE => Ok(Self { prefix, code }),
            code => Err(Malformed::Value { what, value: code.into() }),
        }
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        (ScancodePrefix::any(), 0..=MAX_MAKE_CODE).prop_map(|(prefix, code)| Self { prefix, code }).boxed()
    }
}
