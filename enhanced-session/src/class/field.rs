//! How each type of field is written. Every value has exactly one encoding.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use console::{FinePoint, Point, Rect, Size};
#[cfg(test)]
use proptest::prelude::*;

use super::bounded::{self, Data, List, Text};
use crate::wire::{Malformed, Reader, Writer};

/// Something that a message is made of.
pub(super) trait Field: Sized + Clone + Debug + PartialEq + 'static {
    /// Most bytes that it takes.
    const MAX_BYTES: usize;

    fn write(&self, writer: &mut Writer);

    /// `what` names the field in the error.
    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed>;

    /// Any value that can be.
    #[cfg(test)]
    fn any() -> BoxedStrategy<Self>;
}

/// The longer of the two.
pub(super) const fn longer(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

macro_rules! integer_fields {
    ($($integer:ident),*) => {$(
        impl Field for $integer {
            const MAX_BYTES: usize = size_of::<Self>();

            fn write(&self, writer: &mut Writer) {
                writer.bytes(&self.to_le_bytes());
            }

            fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
                reader.array(what).map(Self::from_le_bytes)
            }

            #[cfg(test)]
            fn any() -> BoxedStrategy<Self> {
                any::<Self>().boxed()
            }
        }
    )*};
}

integer_fields!(u8, u16, u32, u64, i8, i16, i32, i64);

/// u8: 0 or 1.
impl Field for bool {
    const MAX_BYTES: usize = 1;

    fn write(&self, writer: &mut Writer) {
        writer.u8(u8::from(*self));
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        match reader.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(Malformed::Value { what, value: value.into() }),
        }
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        any::<Self>().boxed()
    }
}

impl<const N: usize> Field for [u8; N] {
    const MAX_BYTES: usize = N;

    fn write(&self, writer: &mut Writer) {
        writer.bytes(self);
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        reader.array(what)
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        any::<[u8; N]>().boxed()
    }
}

/// u8: 0 or 1, then the value if 1.
impl<T: Field> Field for Option<T> {
    const MAX_BYTES: usize = 1 + T::MAX_BYTES;

    fn write(&self, writer: &mut Writer) {
        self.is_some().write(writer);
        if let Some(value) = self {
            value.write(writer);
        }
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        bool::read(reader, what)?.then(|| T::read(reader, what)).transpose()
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        proptest::option::of(T::any()).boxed()
    }
}

impl<T: Field> Field for Box<T> {
    const MAX_BYTES: usize = T::MAX_BYTES;

    fn write(&self, writer: &mut Writer) {
        T::write(self, writer);
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        T::read(reader, what).map(Self::new)
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        T::any().prop_map(Self::new).boxed()
    }
}

/// u64 nanoseconds; 584 years and more are 584 years.
impl Field for Duration {
    const MAX_BYTES: usize = 8;

    fn write(&self, writer: &mut Writer) {
        writer.u64(u64::try_from(self.as_nanos()).unwrap_or(u64::MAX));
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        reader.u64(what).map(Self::from_nanos)
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        any::<u64>().prop_map(Self::from_nanos).boxed()
    }
}

impl<T: Field, const MAX: usize> Field for List<T, MAX> {
    const MAX_BYTES: usize = {
        assert!(MAX <= 0xffff, "a count is a u16");
        2 + MAX * T::MAX_BYTES
    };

    fn write(&self, writer: &mut Writer) {
        writer.u16(u16::try_from(self.len()).unwrap_or(u16::MAX));
        for value in self.iter() {
            value.write(writer);
        }
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        let count = usize::from(reader.u16(what)?);
        bounded::check(what, count, MAX)?;
        // Every value takes a byte at least: what is not there needs no room.
        let mut values = Vec::with_capacity(count.min(reader.remaining()));
        for _ in 0..count {
            values.push(T::read(reader, what)?);
        }
        Self::new(values)
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        proptest::collection::vec(T::any(), 0..=MAX.min(6)).prop_map(Self::first).boxed()
    }
}

impl<const MAX: usize> Field for Data<MAX> {
    const MAX_BYTES: usize = 4 + MAX;

    fn write(&self, writer: &mut Writer) {
        writer.u32(u32::try_from(self.len()).unwrap_or(u32::MAX)).bytes(self);
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        let length = usize::try_from(reader.u32(what)?).unwrap_or(usize::MAX);
        bounded::check(what, length, MAX)?;
        Self::new(reader.bytes(length, what)?.to_vec())
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..=MAX.min(40));
        bytes.prop_map(|bytes| Self::new(bytes).expect("no more than fit")).boxed()
    }
}

impl<const MAX: usize> Field for Text<MAX> {
    const MAX_BYTES: usize = {
        assert!(MAX <= 0xffff, "a length is a u16");
        2 + MAX
    };

    fn write(&self, writer: &mut Writer) {
        writer.u16(u16::try_from(self.len()).unwrap_or(u16::MAX)).bytes(self.as_bytes());
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        let length = usize::from(reader.u16(what)?);
        Self::new(reader.text(length, MAX, what)?)
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        any::<String>().prop_map(|text| Self::cut(&text)).boxed()
    }
}

/// u8: 4 or 6, then 4 or 16 bytes as they are on a network.
impl Field for IpAddr {
    const MAX_BYTES: usize = 17;

    fn write(&self, writer: &mut Writer) {
        match self {
            Self::V4(address) => writer.u8(4).bytes(&address.octets()),
            Self::V6(address) => writer.u8(6).bytes(&address.octets()),
        };
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        match reader.u8(what)? {
            4 => Ok(Self::V4(Ipv4Addr::from_octets(reader.array(what)?))),
            6 => Ok(Self::V6(Ipv6Addr::from_octets(reader.array(what)?))),
            value => Err(Malformed::Value { what, value: value.into() }),
        }
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        any::<Self>().boxed()
    }
}

/// Structs of other crates whose fields are written one after the other.
macro_rules! foreign_records {
    ($($name:ident { $($field:ident: $type:ty),* })*) => {$(
        impl Field for $name {
            const MAX_BYTES: usize = 0 $(+ <$type as Field>::MAX_BYTES)*;

            fn write(&self, writer: &mut Writer) {
                $(self.$field.write(writer);)*
            }

            fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
                Ok(Self { $($field: <$type as Field>::read(reader, what)?),* })
            }

            #[cfg(test)]
            fn any() -> BoxedStrategy<Self> {
                ($(<$type as Field>::any(),)*).prop_map(|($($field,)*)| Self { $($field),* }).boxed()
            }
        }
    )*};
}

foreign_records! {
    Point { x: u32, y: u32 }
    Size { width: u32, height: u32 }
    Rect { x: u32, y: u32, width: u32, height: u32 }
    FinePoint { x: i32, y: i32 }
}
