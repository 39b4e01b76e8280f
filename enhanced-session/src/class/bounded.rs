//! Values with a limit that hold no more than it: what is built can be encoded.

use std::ops::Deref;

use crate::wire::Malformed;

/// At most `MAX` values. On the wire: u16 count, then each.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct List<T, const MAX: usize>(Vec<T>);

/// At most `MAX` bytes. On the wire: u32 length, then the bytes.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Data<const MAX: usize>(Vec<u8>);

/// At most `MAX` bytes of UTF-8. On the wire: u16 length, then the text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Text<const MAX: usize>(String);

impl<T, const MAX: usize> List<T, MAX> {
    /// All of `values`.
    ///
    /// # Errors
    ///
    /// When there are more than `MAX`.
    pub fn new(values: Vec<T>) -> Result<Self, Malformed> {
        check("list", values.len(), MAX)?;
        Ok(Self(values))
    }

    /// The first `MAX` of `values`.
    #[must_use]
    pub fn first(mut values: Vec<T>) -> Self {
        values.truncate(MAX);
        Self(values)
    }

    /// The values.
    #[must_use]
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }
}

impl<const MAX: usize> Data<MAX> {
    /// All of `bytes`.
    ///
    /// # Errors
    ///
    /// When there are more than `MAX`.
    pub fn new(bytes: Vec<u8>) -> Result<Self, Malformed> {
        check("data", bytes.len(), MAX)?;
        Ok(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

impl<const MAX: usize> Text<MAX> {
    /// All of `text`.
    ///
    /// # Errors
    ///
    /// When it has more than `MAX` bytes.
    pub fn new(text: impl Into<String>) -> Result<Self, Malformed> {
        let text = text.into();
        check("text", text.len(), MAX)?;
        Ok(Self(text))
    }

    /// As much of `text` as `MAX` bytes hold, in whole characters.
    #[must_use]
    pub fn cut(text: &str) -> Self {
        Self(text[..text.floor_char_boundary(MAX)].to_owned())
    }

    /// The text.
    #[must_use]
    pub fn into_string(self) -> String {
        self.0
    }
}

pub(super) fn check(what: &'static str, length: usize, limit: usize) -> Result<(), Malformed> {
    if length > limit { Err(Malformed::TooLong { what, length, limit }) } else { Ok(()) }
}

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const MAX: usize, const N: usize> From<[T; N]> for List<T, MAX> {
    /// An array that fits, which the compiler checks.
    fn from(values: [T; N]) -> Self {
        const { assert!(N <= MAX, "the array is longer than the list may be") };
        Self(values.into())
    }
}

impl<T, const MAX: usize> Deref for List<T, MAX> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<const MAX: usize> Deref for Data<MAX> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<const MAX: usize> Deref for Text<MAX> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> std::fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self)
    }
}

/// Pictures, sound and files do not belong into logs.
impl<const MAX: usize> std::fmt::Debug for Data<MAX> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_longer_than_its_limit() {
        assert!(List::<u8, 2>::new(vec![1, 2]).is_ok());
        assert_eq!(List::<u8, 2>::new(vec![1, 2, 3]), Err(Malformed::TooLong { what: "list", length: 3, limit: 2 }));
        assert_eq!(*List::<u8, 2>::first(vec![1, 2, 3]), [1, 2]);
        assert!(Data::<2>::new(vec![0; 3]).is_err());
        assert!(Text::<2>::new("abc").is_err());
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(&*Text::<3>::cut("aé€"), "aé");
        assert_eq!(&*Text::<2>::cut("€"), "");
        assert_eq!(&*Text::<9>::cut("short"), "short");
    }
}
