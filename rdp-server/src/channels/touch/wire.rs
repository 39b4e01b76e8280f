//! Integers of variable length (MS-RDPEI 2.2.2): the top bits of the first byte say how many bytes follow.

use super::TouchError;

/// Reads fields from the front of a message.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn u8(&mut self) -> Result<u8, TouchError> {
        let (&first, rest) = self.bytes.split_first().ok_or(TouchError::Truncated)?;
        self.bytes = rest;
        Ok(first)
    }

    pub(super) fn u16(&mut self) -> Result<u16, TouchError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, TouchError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// `TWO_BYTE_UNSIGNED_INTEGER` (2.2.2.1): one length bit, up to 15 bits.
    pub(super) fn unsigned_15(&mut self) -> Result<u16, TouchError> {
        let (first, more) = self.first(1)?;
        Ok(low_16(self.rest(first, more)?))
    }

    /// `TWO_BYTE_SIGNED_INTEGER` (2.2.2.2): one length bit, a sign, up to 14 bits.
    pub(super) fn signed_14(&mut self) -> Result<i16, TouchError> {
        let (first, more) = self.first(1)?;
        let magnitude = low_16(self.rest(first & 0x3f, more)?).cast_signed();
        Ok(if first & 0x40 == 0 { magnitude } else { -magnitude })
    }

    /// `FOUR_BYTE_UNSIGNED_INTEGER` (2.2.2.3): two length bits, up to 30 bits.
    pub(super) fn unsigned_30(&mut self) -> Result<u32, TouchError> {
        let (first, more) = self.first(2)?;
        Ok(low_32(self.rest(first, more)?))
    }

    /// `FOUR_BYTE_SIGNED_INTEGER` (2.2.2.4): two length bits, a sign, up to 29 bits.
    pub(super) fn signed_29(&mut self) -> Result<i32, TouchError> {
        let (first, more) = self.first(2)?;
        let magnitude = low_32(self.rest(first & 0x1f, more)?).cast_signed();
        Ok(if first & 0x20 == 0 { magnitude } else { -magnitude })
    }

    /// `EIGHT_BYTE_UNSIGNED_INTEGER` (2.2.2.5): three length bits, up to 61 bits.
    pub(super) fn unsigned_61(&mut self) -> Result<u64, TouchError> {
        let (first, more) = self.first(3)?;
        self.rest(first, more)
    }

    fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], TouchError> {
        let (first, rest) = self.bytes.split_first_chunk().ok_or(TouchError::Truncated)?;
        self.bytes = rest;
        Ok(*first)
    }

    /// The first byte without its `length_bits`, and how many bytes these say that follow.
    fn first(&mut self, length_bits: u32) -> Result<(u8, u8), TouchError> {
        let first = self.u8()?;
        Ok((first & (0xff >> length_bits), first >> (8 - length_bits)))
    }

    /// `first` and the `more` bytes after it, most significant first.
    fn rest(&mut self, first: u8, more: u8) -> Result<u64, TouchError> {
        let mut value = u64::from(first);
        for _ in 0..more {
            value = value << 8 | u64::from(self.u8()?);
        }
        Ok(value)
    }
}

/// A value that had 15 bits at most.
fn low_16(value: u64) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

/// A value that had 30 bits at most.
fn low_32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a, T>(bytes: &'a [u8], field: impl Fn(&mut Reader<'a>) -> Result<T, TouchError>) -> T {
        for length in 0..bytes.len() {
            assert!(field(&mut Reader::new(&bytes[..length])).is_err(), "{length} bytes are enough");
        }
        let mut reader = Reader::new(bytes);
        let value = field(&mut reader).unwrap();
        assert_eq!(reader.left(), 0);
        value
    }

    #[test]
    fn the_examples_of_the_specification_are_read() {
        assert_eq!(read(&[0x9a, 0x1b], Reader::unsigned_15), 0x1a1b);
        assert_eq!(read(&[0xda, 0x1b], Reader::signed_14), -0x1a1b);
        assert_eq!(read(&[0x42], Reader::signed_14), -2);
        assert_eq!(read(&[0x9a, 0x1b, 0x1c], Reader::unsigned_30), 0x1a_1b1c);
        assert_eq!(read(&[0xba, 0x1b, 0x1c], Reader::signed_29), -0x1a_1b1c);
        assert_eq!(read(&[0x22], Reader::signed_29), -2);
        assert_eq!(read(&[0xda, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f, 0x2a], Reader::unsigned_61), 0x001a_1b1c_1d1e_1f2a);
    }

    #[test]
    fn the_ends_of_each_range_are_read() {
        assert_eq!(read(&[0xff; 2], Reader::unsigned_15), 0x7fff);
        assert_eq!(read(&[0xff; 2], Reader::signed_14), -0x3fff);
        assert_eq!(read(&[0xff; 4], Reader::unsigned_30), 0x3fff_ffff);
        assert_eq!(read(&[0xff; 4], Reader::signed_29), -0x1fff_ffff);
        assert_eq!(read(&[0xff; 8], Reader::unsigned_61), 0x1fff_ffff_ffff_ffff);
        assert_eq!(read(&[0x40], Reader::signed_14), 0);
    }
}
