//! Definitions that read like the tables of `docs/bus.md`, section 9: the fields of a message stand on the wire in
//! the order in which they stand here, and how each is written follows from its type (`field.rs`).

/// The messages of one direction: an enum with `encode`, `decode` and `MAX_BYTES`.
///
/// ```text
/// messages! {
///     /// What the host sends.
///     pub enum ToGuest {
///         /// The variant, its kind on the wire, its fields.
///         Beat = 1 {
///             /// What it is, in which unit.
///             sequence: u64,
///         },
///     }
/// }
/// ```
macro_rules! messages {
    ($(#[$meta:meta])* pub enum $name:ident {$(
        $(#[$variant_meta:meta])* $variant:ident = $kind:literal
            $({ $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? })?
    ),* $(,)?}) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_meta])* $variant $({ $($(#[$field_meta])* $field: $type),* })?,)*
            /// A kind that a later version has: to be skipped. A request of this kind is answered with kind 0.
            Unknown(
                /// The kind.
                u16
            ),
        }

        impl $name {
            /// Longest encoding, in bytes.
            pub const MAX_BYTES: usize = {
                let mut longest = 0;
                $(longest = $crate::class::field::longer(
                    longest,
                    0 $($(+ <$type as $crate::class::field::Field>::MAX_BYTES)*)?
                );)*
                $crate::class::define::HEADER + longest
            };

            /// The message's bytes.
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                let mut writer = $crate::wire::Writer::new();
                match self {
                    $(Self::$variant $({ $($field),* })? => {
                        writer.u16($kind).u16(0);
                        $($($crate::class::field::Field::write($field, &mut writer);)*)?
                    })*
                    Self::Unknown(kind) => {
                        writer.u16(*kind).u16(0);
                    }
                }
                writer.into_bytes()
            }

            /// Reads a message; bytes after its last field are ignored.
            ///
            /// # Errors
            ///
            /// When the bytes end too early or a field has a value that it cannot have.
            pub fn decode(bytes: &[u8]) -> Result<Self, $crate::wire::Malformed> {
                let mut reader = $crate::wire::Reader::new(bytes);
                match reader.u16("kind")? {
                    $($kind => {
                        reader.zeros(2, "flags")?;
                        Ok(Self::$variant $({
                            $($field: $crate::class::field::Field::read(&mut reader, stringify!($field))?),*
                        })?)
                    })*
                    kind => reader.u16("flags").map(|_| Self::Unknown(kind)),
                }
            }
        }

        #[cfg(test)]
        impl $name {
            /// Any message that can be.
            pub(in $crate::class) fn any() -> proptest::strategy::BoxedStrategy<Self> {
                use proptest::strategy::Strategy as _;
                proptest::strategy::Union::new([
                    $($crate::class::define::any_of!(
                        [Self::$variant] $({ $($field: $type),* })?
                    ),)*
                ]).boxed()
            }
        }
    };
}

/// A struct that is part of messages: its fields one after the other.
macro_rules! record {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$field_meta:meta])* pub $field:ident: $type:ty),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type),*
        }

        impl $crate::class::field::Field for $name {
            const MAX_BYTES: usize = 0 $(+ <$type as $crate::class::field::Field>::MAX_BYTES)*;

            fn write(&self, writer: &mut $crate::wire::Writer) {
                $($crate::class::field::Field::write(&self.$field, writer);)*
            }

            fn read(
                reader: &mut $crate::wire::Reader<'_>,
                _: &'static str,
            ) -> Result<Self, $crate::wire::Malformed> {
                Ok(Self { $($field: $crate::class::field::Field::read(reader, stringify!($field))?),* })
            }

            #[cfg(test)]
            fn any() -> proptest::strategy::BoxedStrategy<Self> {
                $crate::class::define::any_of!([Self] { $($field: $type),* })
            }
        }
    };
}

/// One of several things inside a message: u8 tag, then its fields.
macro_rules! choice {
    ($(#[$meta:meta])* pub enum $name:ident {$(
        $(#[$variant_meta:meta])* $variant:ident = $tag:literal
            $({ $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? })?
    ),* $(,)?}) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_meta])* $variant $({ $($(#[$field_meta])* $field: $type),* })?,)*
        }

        impl $crate::class::field::Field for $name {
            const MAX_BYTES: usize = {
                let mut longest = 0;
                $(longest = $crate::class::field::longer(
                    longest,
                    0 $($(+ <$type as $crate::class::field::Field>::MAX_BYTES)*)?
                );)*
                1 + longest
            };

            fn write(&self, writer: &mut $crate::wire::Writer) {
                match self {
                    $(Self::$variant $({ $($field),* })? => {
                        writer.u8($tag);
                        $($($crate::class::field::Field::write($field, writer);)*)?
                    })*
                }
            }

            fn read(
                reader: &mut $crate::wire::Reader<'_>,
                what: &'static str,
            ) -> Result<Self, $crate::wire::Malformed> {
                match reader.u8(what)? {
                    $($tag => Ok(Self::$variant $({
                        $($field: $crate::class::field::Field::read(reader, stringify!($field))?),*
                    })?),)*
                    tag => Err($crate::wire::Malformed::Value { what, value: tag.into() }),
                }
            }

            #[cfg(test)]
            fn any() -> proptest::strategy::BoxedStrategy<Self> {
                use proptest::strategy::Strategy as _;
                proptest::strategy::Union::new([
                    $($crate::class::define::any_of!(
                        [Self::$variant] $({ $($field: $type),* })?
                    ),)*
                ]).boxed()
            }
        }
    };
}

/// A number with a name for each value; others are malformed.
macro_rules! codes {
    ($(#[$meta:meta])* $vis:vis enum $name:ident: $integer:ident {
        $($(#[$variant_meta:meta])* $variant:ident = $code:literal),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $vis enum $name {
            $($(#[$variant_meta])* $variant),*
        }

        $crate::class::define::foreign_codes! { $name: $integer { $($variant = $code),* } }
    };
}

/// Codes for an enum that is defined elsewhere.
macro_rules! foreign_codes {
    ($name:ident: $integer:ident { $($variant:ident = $code:literal),* $(,)? }) => {
        impl $crate::class::field::Field for $name {
            const MAX_BYTES: usize = size_of::<$integer>();

            fn write(&self, writer: &mut $crate::wire::Writer) {
                let code: $integer = match self {
                    $(Self::$variant => $code),*
                };
                writer.$integer(code);
            }

            fn read(
                reader: &mut $crate::wire::Reader<'_>,
                what: &'static str,
            ) -> Result<Self, $crate::wire::Malformed> {
                match reader.$integer(what)? {
                    $($code => Ok(Self::$variant),)*
                    code => Err($crate::wire::Malformed::Value { what, value: code.into() }),
                }
            }

            #[cfg(test)]
            fn any() -> proptest::strategy::BoxedStrategy<Self> {
                use proptest::strategy::Strategy as _;
                proptest::sample::select(vec![$(Self::$variant),*]).boxed()
            }
        }
    };
}

/// A number whose bits are told apart; bits without a name must be zero.
macro_rules! flags {
    ($(#[$meta:meta])* pub struct $name:ident: $integer:ident {
        $($(#[$field_meta:meta])* pub $field:ident = $bit:literal),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: bool),*
        }

        $crate::class::define::foreign_flags! { $name: $integer { $($field = $bit),* } }
    };
}

/// Bits for a struct of `bool`s that is defined elsewhere.
macro_rules! foreign_flags {
    ($name:ident: $integer:ident { $($field:ident = $bit:literal),* $(,)? }) => {
        impl $crate::class::field::Field for $name {
            const MAX_BYTES: usize = size_of::<$integer>();

            fn write(&self, writer: &mut $crate::wire::Writer) {
                writer.$integer(0 $(| if self.$field { $bit } else { 0 })*);
            }

            fn read(
                reader: &mut $crate::wire::Reader<'_>,
                what: &'static str,
            ) -> Result<Self, $crate::wire::Malformed> {
                const KNOWN: $integer = 0 $(| $bit)*;
                let bits = reader.$integer(what)?;
                if bits & !KNOWN != 0 {
                    return Err($crate::wire::Malformed::Value { what, value: bits.into() });
                }
                Ok(Self { $($field: bits & $bit != 0),* })
            }

            #[cfg(test)]
            fn any() -> proptest::strategy::BoxedStrategy<Self> {
                $crate::class::define::any_of!([Self] { $($field: bool),* })
            }
        }
    };
}

/// A number between two others, both included.
macro_rules! ranged {
    ($(#[$meta:meta])* pub struct $name:ident($integer:ident) = $least:literal..=$most:literal;) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name($integer);

        impl $name {
            /// The least that it can be.
            pub const MIN: $integer = $least;
            /// The most that it can be.
            pub const MAX: $integer = $most;

            /// The number, or the nearest that it can be.
            #[must_use]
            pub fn clamped(value: $integer) -> Self {
                Self(value.clamp(Self::MIN, Self::MAX))
            }

            /// The number.
            #[must_use]
            pub const fn value(self) -> $integer {
                self.0
            }
        }

        impl $crate::class::field::Field for $name {
            const MAX_BYTES: usize = size_of::<$integer>();

            fn write(&self, writer: &mut $crate::wire::Writer) {
                writer.$integer(self.0);
            }

            fn read(
                reader: &mut $crate::wire::Reader<'_>,
                what: &'static str,
            ) -> Result<Self, $crate::wire::Malformed> {
                let value = reader.$integer(what)?;
                if (Self::MIN..=Self::MAX).contains(&value) {
                    Ok(Self(value))
                } else {
                    Err($crate::wire::Malformed::Value { what, value: value.into() })
                }
            }

            #[cfg(test)]
            fn any() -> proptest::strategy::BoxedStrategy<Self> {
                use proptest::strategy::Strategy as _;
                (Self::MIN..=Self::MAX).prop_map(Self).boxed()
            }
        }
    };
}

/// A strategy for a struct, or a variant, out of those of its fields (nested pairs: tuples end at twelve).
#[cfg(test)]
macro_rules! any_of {
    ([$($path:tt)+]) => {
        proptest::strategy::Strategy::boxed(proptest::strategy::Just($($path)+))
    };
    ([$($path:tt)+] { $($field:ident: $type:ty),* }) => {
        proptest::strategy::Strategy::boxed(proptest::strategy::Strategy::prop_map(
            $crate::class::define::pairs!(strategy $($type),*),
            |$crate::class::define::pairs!(pattern $($field),*)| $($path)+ { $($field),* },
        ))
    };
}

#[cfg(test)]
macro_rules! pairs {
    (strategy) => { proptest::strategy::Just(()) };
    (strategy $first:ty $(, $rest:ty)*) => {
        (<$first as $crate::class::field::Field>::any(), $crate::class::define::pairs!(strategy $($rest),*))
    };
    (pattern) => { () };
    (pattern $first:ident $(, $rest:ident)*) => { ($first, $crate::class::define::pairs!(pattern $($rest),*)) };
}

#[cfg(test)]
pub(super) use {any_of, pairs};
pub(super) use {choice, codes, flags, foreign_codes, foreign_flags, messages, ranged, record};

/// Bytes of a message before its first field: u16 kind, u16 flags.
pub(super) const HEADER: usize = 4;
