//! MS-RDPEPS 2.2.1 Preconnection PDU: routing data that a client sends before everything else.
//!
//! The version field is ignored: `cbSize` alone tells what is there (MS-RDPEPS 3.2.5.1).

use super::target::Target;

/// Longest blob that is read: a GUID with options needs 122 bytes, a signed ticket about 2 KiB.
pub const MAX_BLOB_BYTES: usize = 4096;

const V1_BYTES: usize = 16;
const V2_HEADER_BYTES: usize = 18;

/// The routing data of a blob: `<GUID or name>[;EnhancedMode=1][;tok=…]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preconnection {
    /// The number in the blob's `Id` field.
    pub id: u32,
    /// The machine it names.
    pub target: Option<Target>,
    /// Whether it asks for an enhanced session.
    pub enhanced: bool,
    /// A one-time ticket.
    pub ticket: Option<String>,
}

/// Why a blob is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PreconnectionError {
    /// `cbSize` is less than a header, between the two versions, or above [`MAX_BLOB_BYTES`].
    #[error("pre-connection blob of {0} bytes")]
    Size(u32),
    /// The text does not fit in the blob.
    #[error("pre-connection blob of {size} bytes with {units} characters")]
    Text {
        /// The blob's size in bytes.
        size: usize,
        /// The length of its text in UTF-16 units.
        units: u16,
    },
    /// The text is not UTF-16.
    #[error("pre-connection blob is not utf-16")]
    NotUtf16,
}

/// Reads the blob at the start of `bytes`, and says how many bytes it takes. None: more bytes are needed.
///
/// # Errors
///
/// When the sizes contradict each other or the text is not UTF-16.
pub fn read(bytes: &[u8]) -> Result<Option<(Preconnection, usize)>, PreconnectionError> {
    let Some((size, _)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let declared = u32::from_le_bytes(*size);
    let size = usize::try_from(declared).unwrap_or(usize::MAX);
    if !(V1_BYTES..=MAX_BLOB_BYTES).contains(&size) || size == V1_BYTES + 1 {
        return Err(PreconnectionError::Size(declared));
    }
    let Some(blob) = bytes.get(..size) else {
        return Ok(None);
    };
    let id = blob.get(12..16).and_then(|id| id.try_into().ok()).map_or(0, u32::from_le_bytes);
    let mut preconnection = match blob.get(V1_BYTES..V2_HEADER_BYTES) {
        Some(&[low, high]) => parse(&text(blob, u16::from_le_bytes([low, high]))?),
        _ => Preconnection::default(),
    };
    preconnection.id = id;
    Ok(Some((preconnection, size)))
}

/// Reads a blob's text: the machine first, then options in any order. Unknown options mean nothing to us.
#[must_use]
pub fn parse(text: &str) -> Preconnection {
    let mut preconnection = Preconnection::default();
    for (at, part) in text.split(';').enumerate() {
        match part.split_once('=') {
            Some((key, value)) if key.eq_ignore_ascii_case("EnhancedMode") => {
                preconnection.enhanced = value.trim() == "1";
            }
            Some((key, value)) if key.eq_ignore_ascii_case("tok") => {
                preconnection.ticket = Some(value.to_owned());
            }
            Some(_) => {}
            None if at == 0 => preconnection.target = Target::parse(part),
            None => {}
        }
    }
    preconnection
}

/// The text of a V2 blob, up to its first NUL.
fn text(blob: &[u8], units: u16) -> Result<String, PreconnectionError> {
    let end = V2_HEADER_BYTES + 2 * usize::from(units);
    let bytes = blob.get(V2_HEADER_BYTES..end).ok_or(PreconnectionError::Text { size: blob.len(), units })?;
    let units = bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit)).take_while(|unit| *unit != 0);
    char::decode_utf16(units).collect::<Result<_, _>>().map_err(|_| PreconnectionError::NotUtf16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GUID: &str = "C824F53E-95D2-46C6-9A18-23A5BB403532";

    fn blob(text: &str) -> Vec<u8> {
        let units: Vec<u16> = text.encode_utf16().chain([0]).collect();
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(V2_HEADER_BYTES + 2 * units.len()).unwrap().to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(2u32.to_le_bytes());
        bytes.extend(7u32.to_le_bytes());
        bytes.extend(u16::try_from(units.len()).unwrap().to_le_bytes());
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes
    }

    #[test]
    fn hyper_v_blobs_have_their_known_sizes() {
        let basic = blob(GUID);
        assert_eq!(basic[..18], [0x5c, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0x25, 0]);
        let enhanced = blob(&format!("{GUID};EnhancedMode=1"));
        assert_eq!(enhanced[0], 0x7a);
        let (read, size) = read(&enhanced).unwrap().unwrap();
        assert_eq!((read.target, read.enhanced, read.id, size), (Target::parse(GUID), true, 7, 122));
    }

    #[test]
    fn what_follows_the_blob_is_left_alone() {
        let mut bytes = blob("web01");
        let size = bytes.len();
        bytes.extend([0x16, 3, 1]);
        assert_eq!(read(&bytes).unwrap().unwrap().1, size);
    }

    #[test]
    fn the_size_alone_decides_the_version() {
        let mut v1 = vec![16, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0];
        let (read_v1, size) = read(&v1).unwrap().unwrap();
        assert_eq!((read_v1.id, read_v1.target, size), (9, None, 16));
        v1[0] = 18;
        v1.extend([0, 0]);
        assert_eq!(read(&v1).unwrap().unwrap().1, 18);
        for size in [0u32, 15, 17, 4097, u32::MAX] {
            let mut bytes = size.to_le_bytes().to_vec();
            bytes.extend([0; 60]);
            assert_eq!(read(&bytes), Err(PreconnectionError::Size(size)));
        }
    }

    #[test]
    fn text_longer_than_its_blob_is_refused() {
        let mut bytes = blob("web01");
        bytes[16] = 7;
        assert_eq!(read(&bytes), Err(PreconnectionError::Text { size: 30, units: 7 }));
    }

    #[test]
    fn options_are_read_in_any_order_and_unknown_ones_ignored() {
        let table = [
            ("web01", Target::parse("web01"), false, None),
            ("web01;", Target::parse("web01"), false, None),
            ("web01;EnhancedMode=0", Target::parse("web01"), false, None),
            ("web01;Head=2;enhancedmode=1;tok=a=b", Target::parse("web01"), true, Some("a=b")),
            ("tok=abc", None, false, Some("abc")),
            ("", None, false, None),
            ("{c824f53e-95d2-46c6-9a18-23a5bb403532}", Target::parse(GUID), false, None),
        ];
        for (text, target, enhanced, ticket) in table {
            let read = parse(text);
            assert_eq!((read.target, read.enhanced, read.ticket.as_deref()), (target, enhanced, ticket), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_prefix_asks_for_more_and_never_gives_an_answer(text in "[a-z0-9;=]{0,40}", cut in 0usize..200) {
            let bytes = blob(&text);
            if cut < bytes.len() {
                prop_assert_eq!(read(&bytes[..cut]), Ok(None));
            }
        }
    }
}
