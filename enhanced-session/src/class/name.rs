//! Names of files, as strangers tell them.

use std::fmt;
use std::ops::Deref;

#[cfg(test)]
use proptest::prelude::*;

use super::bounded;
use super::field::Field;
use crate::wire::{Malformed, Reader, Writer};

/// Longest name, in bytes.
pub const MAX_NAME: usize = 255;
/// Longest path, in bytes.
pub const MAX_PATH: usize = 1024;

/// The name of a file in its folder: 1 to 255 bytes of UTF-8 without `/`, `\` and NUL, and neither `.` nor `..`.
///
/// On the wire: u16 length, then the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// A way down from somewhere: names with `/` between them, at most 1024 bytes. It leads nowhere else.
///
/// On the wire: u16 length, then the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path(String);

impl Name {
    /// The name.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn new(name: impl Into<String>) -> Result<Self, Malformed> {
        let name = name.into();
        check("name", &name).map(|()| Self(name))
    }

    /// The name.
    #[must_use]
    pub fn into_string(self) -> String {
        self.0
    }
}

impl Path {
    /// The path.
    ///
    /// # Errors
    ///
    /// When it is too long or what stands between two `/` is no name.
    pub fn new(path: impl Into<String>) -> Result<Self, Malformed> {
        let path = path.into();
        bounded::check("path", path.len(), MAX_PATH)?;
        path.split('/').try_for_each(|name| check("path", name)).map(|()| Self(path))
    }

    /// The names on the way, at least one.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The path.
    #[must_use]
    pub fn into_string(self) -> String {
        self.0
    }
}

fn check(what: &'static str, name: &str) -> Result<(), Malformed> {
    bounded::check(what, name.len(), MAX_NAME)?;
    let separators = ['/', '\\', '\0'];
    match name {
        "" => Err(Malformed::TooShort { what, missing: 1 }),
        "." | ".." => Err(Malformed::Value { what, value: u64::from(b'.') }),
        _ => match name.find(separators) {
            Some(at) => Err(Malformed::Value { what, value: name.as_bytes().get(at).copied().map_or(0, u64::from) }),
            None => Ok(()),
        },
    }
}

macro_rules! texts {
    ($($name:ident: $max:ident, $any:expr;)*) => {$(
        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Field for $name {
            const MAX_BYTES: usize = 2 + $max;

            fn write(&self, writer: &mut Writer) {
                writer.u16(u16::try_from(self.len()).unwrap_or(u16::MAX)).bytes(self.as_bytes());
            }

            fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
                let length = usize::from(reader.u16(what)?);
                Self::new(reader.text(length, $max, what)?)
            }

            #[cfg(test)]
            fn any() -> BoxedStrategy<Self> {
                $any.prop_map(|text| Self::new(text).expect("it is one")).boxed()
            }
        }
    )*};
}

texts! {
    Name: MAX_NAME, r"[^/\\\x00.][^/\\\x00]{0,20}";
    Path: MAX_PATH, r"[^/\\\x00.][^/\\\x00]{0,20}(/[^/\\\x00.][^/\\\x00]{0,20}){0,3}";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_anywhere() {
        for name in ["a", "...", ".hidden", "c:d", "é", " "] {
            assert!(Name::new(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a/b", r"a\b", "a\0", "/"] {
            assert!(Name::new(name).is_err(), "{name}");
        }
        assert!(Name::new("x".repeat(255)).is_ok());
        assert!(Name::new("x".repeat(256)).is_err());
    }

    #[test]
    fn a_path_only_leads_down() {
        assert_eq!(Path::new("a/b c/d").expect("a path").names().collect::<Vec<_>>(), ["a", "b c", "d"]);
        for path in ["", "/a", "a/", "a//b", "a/../b", "./a", r"..\a", r"a/..\..\b"] {
            assert!(Path::new(path).is_err(), "{path}");
        }
        let long = ["x"; 513].join("/");
        assert!(Path::new(&long[..1023]).is_ok());
        assert!(Path::new(long).is_err());
    }
}
