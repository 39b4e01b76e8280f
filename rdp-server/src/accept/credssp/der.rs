//! The little of DER that CredSSP and SPNEGO are made of: tags below 31 and definite lengths.

/// Why bytes are not the DER expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed der")]
pub struct Malformed;

/// `INTEGER`.
pub(super) const INTEGER: u8 = 0x02;
/// `OCTET STRING`.
pub(super) const OCTET_STRING: u8 = 0x04;
/// `OBJECT IDENTIFIER`.
pub(super) const OID: u8 = 0x06;
/// `ENUMERATED`.
pub(super) const ENUMERATED: u8 = 0x0A;
/// `SEQUENCE`.
pub(super) const SEQUENCE: u8 = 0x30;
/// `[APPLICATION 0]`.
pub(super) const APPLICATION: u8 = 0x60;

/// The constructed tag `[number]`.
pub(super) const fn context(number: u8) -> u8 {
    0xA0 | number
}

/// How long a value is with its header, from its first bytes; none when they are too few to tell.
pub(super) fn total_length(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    Ok(header(bytes)?.and_then(|(header, length)| header.checked_add(length)))
}

/// Bytes of a header, and of the value that follows. None: the header is not complete.
fn header(bytes: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let [_, first, rest @ ..] = bytes else {
        return Ok(None);
    };
    if first & 0x80 == 0 {
        return Ok(Some((2, usize::from(*first))));
    }
    let count = usize::from(first & 0x7F);
    // More than three bytes of length are more than we read of anything; zero is the indefinite form.
    if !(1..=3).contains(&count) {
        return Err(Malformed);
    }
    let length = rest.get(..count).map(|digits| digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)));
    Ok(length.map(|length| (2 + count, length)))
}

/// Reads values one after the other.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next value, which must have this tag.
    pub(super) fn value(&mut self, tag: u8) -> Result<&'a [u8], Malformed> {
        self.optional(tag)?.ok_or(Malformed)
    }

    /// The next value if it has this tag.
    pub(super) fn optional(&mut self, tag: u8) -> Result<Option<&'a [u8]>, Malformed> {
        if self.0.first() != Some(&tag) {
            return Ok(None);
        }
        let (start, length) = header(self.0)?.ok_or(Malformed)?;
        let end = start.checked_add(length).ok_or(Malformed)?;
        let value = self.0.get(start..end).ok_or(Malformed)?;
        self.0 = self.0.get(end..).ok_or(Malformed)?;
        Ok(Some(value))
    }

    /// The value inside the next one, if that has the tag `[number]`.
    pub(super) fn optional_inside(&mut self, number: u8, tag: u8) -> Result<Option<&'a [u8]>, Malformed> {
        self.optional(context(number))?.map(|inner| Reader::new(inner).value(tag)).transpose()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// An unsigned integer of at most 32 bits.
pub(super) fn unsigned(value: &[u8]) -> Result<u32, Malformed> {
    let digits = value.strip_prefix(&[0]).unwrap_or(value);
    if value.is_empty() || digits.len() > 4 {
        return Err(Malformed);
    }
    Ok(digits.iter().fold(0, |sum, digit| sum << 8 | u32::from(*digit)))
}

/// Encodes a value.
pub(super) fn tagged(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut encoded = vec![tag];
    let length = value.len().to_be_bytes();
    let digits = length.iter().position(|digit| *digit != 0).map_or(&length[..0], |first| &length[first..]);
    match (value.len(), u8::try_from(digits.len())) {
        (..0x80, _) => encoded.push(digits.first().copied().unwrap_or(0)),
        (_, Ok(count)) => {
            encoded.push(0x80 | count);
            encoded.extend(digits);
        }
        (_, Err(_)) => unreachable!("a length has at most 8 bytes"),
    }
    encoded.extend(value);
    encoded
}

/// Encodes an unsigned integer, or an NTSTATUS: as the signed 32 bits that clients read it as.
pub(super) fn integer(value: u32) -> Vec<u8> {
    let digits = value.to_be_bytes();
    let needed = digits.windows(2).take_while(|pair| pair[0] == 0 && pair[1] & 0x80 == 0).count();
    tagged(INTEGER, &digits[needed..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_every_form_come_back() {
        for length in [0usize, 1, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x1_0000] {
            let value = vec![7; length];
            let encoded = tagged(OCTET_STRING, &value);
            assert_eq!(total_length(&encoded), Ok(Some(encoded.len())));
            let mut reader = Reader::new(&encoded);
            assert_eq!(reader.value(OCTET_STRING), Ok(&value[..]));
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn incomplete_headers_ask_for_more_and_strange_ones_are_refused() {
        for bytes in [&[][..], &[0x30], &[0x30, 0x82], &[0x30, 0x82, 1]] {
            assert_eq!(total_length(bytes), Ok(None));
        }
        for bytes in [[0x30, 0x80], [0x30, 0x84], [0x30, 0xFF]] {
            assert_eq!(total_length(&bytes), Err(Malformed));
        }
    }

    #[test]
    fn integers_are_as_short_as_they_can_be() {
        assert_eq!(integer(6), [2, 1, 6]);
        assert_eq!(integer(0x80), [2, 2, 0, 0x80]);
        assert_eq!(integer(0xC000_006D), [2, 4, 0xC0, 0, 0, 0x6D]);
        assert_eq!(unsigned(&[0, 0xC0, 0, 0, 0x6D]), Ok(0xC000_006D));
        assert_eq!(unsigned(&[]), Err(Malformed));
        assert_eq!(unsigned(&[1; 5]), Err(Malformed));
    }

    #[test]
    fn truncated_values_are_refused() {
        assert_eq!(Reader::new(&[4, 3, 1, 2]).value(OCTET_STRING), Err(Malformed));
        assert_eq!(Reader::new(&[4, 1, 1]).value(INTEGER), Err(Malformed));
    }
}
