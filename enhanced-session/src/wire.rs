//! Cursors over bytes, little-endian. Everything that a peer wrote is read through [`Reader`].

use uuid::Uuid;

/// Bytes that are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// There are fewer bytes than the message needs.
    #[error("too short: {missing} bytes are missing for {what}")]
    TooShort {
        /// The field that does not fit.
        what: &'static str,
        /// How many more bytes it would take.
        missing: usize,
    },
    /// A field has a value that it cannot have.
    #[error("{what} cannot be {value}")]
    Value {
        /// The field.
        what: &'static str,
        /// What stands there.
        value: u64,
    },
    /// More than the message may hold.
    #[error("{what} is too long: {length}, at most {limit}")]
    TooLong {
        /// The field.
        what: &'static str,
        /// Its length.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A text that is not UTF-8.
    #[error("{what} is not UTF-8")]
    Text {
        /// The field.
        what: &'static str,
    },
}

/// Reads from the front of a slice. `what` names the field in the error.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of all of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes that have not been read.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// All bytes that have not been read.
    #[must_use]
    pub const fn rest(&mut self) -> &'a [u8] {
        let rest = self.rest;
        self.rest = &[];
        rest
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    ///
    /// When there are fewer.
    pub fn bytes(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let missing = Malformed::TooShort { what, missing: count.saturating_sub(self.rest.len()) };
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(missing)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// The next `N` bytes, by value.
    ///
    /// # Errors
    ///
    /// When there are fewer.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N, what)?);
        Ok(array)
    }

    /// One byte.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        self.array(what).map(u8::from_le_bytes)
    }

    /// Two bytes.
    ///
    /// # Errors
    ///
    /// When there are fewer.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.array(what).map(u16::from_le_bytes)
    }

    /// Four bytes.
    ///
    /// # Errors
    ///
    /// When there are fewer.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    ///
    /// When there are fewer.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Two bytes, signed.
    ///
    /// # Errors
    ///
    /// When there are fewer.
    pub fn i16(&mut self, what: &'static str) -> Result<i16, Malformed> {
        self.array(what).map(i16::from_le_bytes)
    }

    /// Four bytes, signed.
    ///
    /// # Errors
    ///
    /// When there are fewer.
    pub fn i32(&mut self, what: &'static str) -> Result<i32, Malformed> {
        self.array(what).map(i32::from_le_bytes)
    }

    /// Eight bytes, signed.
    ///
    /// # Errors
    ///
    /// When there are fewer.
    pub fn i64(&mut self, what: &'static str) -> Result<i64, Malformed> {
        self.array(what).map(i64::from_le_bytes)
    }

    /// A GUID in Windows' layout.
    ///
    /// # Errors
    ///
    /// When there are fewer than 16 bytes.
    pub fn guid(&mut self, what: &'static str) -> Result<Uuid, Malformed> {
        self.array(what).map(Uuid::from_bytes_le)
    }

    /// UTF-8 text of `length` bytes, which may be at most `limit`.
    ///
    /// # Errors
    ///
    /// When it is longer, there are fewer bytes, or they are not UTF-8.
    pub fn text(&mut self, length: usize, limit: usize, what: &'static str) -> Result<&'a str, Malformed> {
        if length > limit {
            return Err(Malformed::TooLong { what, length, limit });
        }
        std::str::from_utf8(self.bytes(length, what)?).map_err(|_| Malformed::Text { what })
    }

    /// `count` bytes that must be zero.
    ///
    /// # Errors
    ///
    /// When one is not, or there are fewer.
    pub fn zeros(&mut self, count: usize, what: &'static str) -> Result<(), Malformed> {
        match self.bytes(count, what)?.iter().find(|byte| **byte != 0) {
            Some(byte) => Err(Malformed::Value { what, value: u64::from(*byte) }),
            None => Ok(()),
        }
    }
}

/// Writes to the end of a buffer.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// What was written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// `count` zeros.
    pub fn zeros(&mut self, count: usize) -> &mut Self {
        self.bytes.resize(self.bytes.len() + count, 0);
        self
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Two bytes, signed.
    pub fn i16(&mut self, value: i16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Four bytes, signed.
    pub fn i32(&mut self, value: i32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Eight bytes, signed.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A GUID in Windows' layout.
    pub fn guid(&mut self, value: Uuid) -> &mut Self {
        self.bytes(&value.to_bytes_le())
    }
}
