//! Splits a byte stream into PDUs: TPKT (RFC 1006) for everything slow, fast-path for input
//! (MS-RDPBCGR 2.2.8.1.2), told apart by the first byte.

/// Longest TPKT PDU: what its length field can say.
pub const MAX_TPKT_BYTES: usize = 0xFFFF;
/// Longest fast-path PDU: what its length field can say.
pub const MAX_FAST_PATH_BYTES: usize = 0x7FFF;

/// Shortest TPKT PDU: its header and the shortest X.224 header.
const MIN_TPKT_BYTES: usize = 7;
/// Consumed bytes that are worth moving the rest of the buffer for.
const COMPACT_BYTES: usize = 16 * 1024;

/// One PDU, whole, with its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// X.224 in TPKT.
    Tpkt(Vec<u8>),
    /// Fast-path input.
    FastPath(Vec<u8>),
}

impl Frame {
    /// The PDU's bytes, from its first header on.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Tpkt(bytes) | Self::FastPath(bytes) => bytes,
        }
    }

    /// The PDU's bytes, from its first header on.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Tpkt(bytes) | Self::FastPath(bytes) => bytes,
        }
    }
}

/// Why bytes are no PDU. The stream cannot be read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// The first byte starts neither TPKT nor fast-path.
    #[error("no pdu starts with byte {0:#04x}")]
    Start(u8),
    /// The length is shorter than the header that carries it.
    #[error("pdu of {0} bytes is shorter than its header")]
    TooShort(usize),
    /// The length is above what is allowed here.
    #[error("pdu of {length} bytes, where {limit} are allowed")]
    TooLong {
        /// What the PDU says.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
}

/// Collects bytes and hands out whole PDUs.
///
/// Each call of [`next_frame`](Self::next_frame) consumes bytes, asks for more, or fails for good: it cannot spin.
#[derive(Debug)]
pub struct FrameSplitter {
    buffer: Vec<u8>,
    consumed: usize,
    limit: usize,
}

impl FrameSplitter {
    /// A splitter that allows every length the headers can express.
    #[must_use]
    pub const fn new() -> Self {
        Self::with_limit(MAX_TPKT_BYTES)
    }

    /// A splitter that refuses PDUs longer than `limit` bytes.
    #[must_use]
    pub const fn with_limit(limit: usize) -> Self {
        Self { buffer: Vec::new(), consumed: 0, limit }
    }

    /// Changes the longest PDU allowed, for those not handed out yet.
    pub const fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Adds bytes from the client.
    pub fn push(&mut self, bytes: &[u8]) {
        self.compact();
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that were pushed and not handed out.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        self.buffer.get(self.consumed..).unwrap_or_default()
    }

    /// Drops `count` pending bytes that the caller has read by itself.
    pub fn consume(&mut self, count: usize) {
        self.consumed = self.consumed.saturating_add(count).min(self.buffer.len());
    }

    /// Takes all pending bytes.
    #[must_use]
    pub fn take_pending(&mut self) -> Vec<u8> {
        let pending = self.pending().to_vec();
        self.buffer.clear();
        self.consumed = 0;
        pending
    }

    /// The next whole PDU. None: more bytes are needed.
    ///
    /// # Errors
    ///
    /// When the next bytes are no PDU. The same error comes back for every further call.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FramingError> {
        let Some(header) = header(self.pending())? else {
            return Ok(None);
        };
        if header.length > self.limit {
            return Err(FramingError::TooLong { length: header.length, limit: self.limit });
        }
        let Some(bytes) = self.pending().get(..header.length) else {
            return Ok(None);
        };
        let frame = match header.kind {
            Kind::Tpkt => Frame::Tpkt(bytes.to_vec()),
            Kind::FastPath => Frame::FastPath(bytes.to_vec()),
        };
        self.consume(header.length);
        Ok(Some(frame))
    }

    fn compact(&mut self) {
        if self.consumed == self.buffer.len() {
            self.buffer.clear();
            self.consumed = 0;
        } else if self.consumed >= COMPACT_BYTES {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
    }
}

impl Default for FrameSplitter {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Tpkt,
    FastPath,
}

struct Header {
    kind: Kind,
    length: usize,
}

/// Reads a PDU's header; none when it is not complete.
fn header(bytes: &[u8]) -> Result<Option<Header>, FramingError> {
    let Some(first) = bytes.first() else {
        return Ok(None);
    };
    // The low two bits are fast-path's action; TPKT's version 3 is the other value they take.
    match (*first, first & 3) {
        (3, _) => tpkt_header(bytes),
        (_, 0) => fast_path_header(bytes),
        _ => Err(FramingError::Start(*first)),
    }
}

fn tpkt_header(bytes: &[u8]) -> Result<Option<Header>, FramingError> {
    let [_, _, high, low, ..] = bytes else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length < MIN_TPKT_BYTES {
        return Err(FramingError::TooShort(length));
    }
    Ok(Some(Header { kind: Kind::Tpkt, length }))
}

fn fast_path_header(bytes: &[u8]) -> Result<Option<Header>, FramingError> {
    let (length, header) = match bytes {
        [_, high, low, ..] if high & 0x80 != 0 => (u16::from_be_bytes([high & 0x7F, *low]), 3),
        [_, short, ..] if short & 0x80 == 0 => (u16::from(*short), 2),
        _ => return Ok(None),
    };
    let length = usize::from(length);
    if length < header {
        return Err(FramingError::TooShort(length));
    }
    Ok(Some(Header { kind: Kind::FastPath, length }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tpkt(length: u16) -> Vec<u8> {
        let mut bytes = vec![3, 0];
        bytes.extend(length.to_be_bytes());
        bytes.resize(usize::from(length).max(4), 0xAA);
        bytes
    }

    #[test]
    fn lengths_shorter_than_the_header_are_refused() {
        for length in 0..7 {
            let mut splitter = FrameSplitter::new();
            splitter.push(&tpkt(length));
            assert_eq!(splitter.next_frame(), Err(FramingError::TooShort(usize::from(length))));
            assert_eq!(splitter.next_frame(), Err(FramingError::TooShort(usize::from(length))));
        }
        for bytes in [&[0u8, 0][..], &[0, 1], &[0, 0x80, 0], &[0, 0x80, 2]] {
            let mut splitter = FrameSplitter::new();
            splitter.push(bytes);
            assert!(matches!(splitter.next_frame(), Err(FramingError::TooShort(_))), "{bytes:?}");
        }
    }

    #[test]
    fn a_limit_is_kept_before_the_bytes_arrive() {
        let mut splitter = FrameSplitter::with_limit(100);
        splitter.push(&[3, 0, 0, 101]);
        assert_eq!(splitter.next_frame(), Err(FramingError::TooLong { length: 101, limit: 100 }));
    }

    #[test]
    fn only_two_kinds_of_first_byte_start_a_pdu() {
        for first in 0..=u8::MAX {
            let mut splitter = FrameSplitter::new();
            splitter.push(&[first]);
            let known = first == 3 || first & 3 == 0;
            assert_eq!(splitter.next_frame().is_ok(), known, "{first:#x}");
        }
    }

    #[test]
    fn both_lengths_of_fast_path_are_read() {
        let mut splitter = FrameSplitter::new();
        splitter.push(&[4, 3, 9, 4, 0x80, 4, 7]);
        assert_eq!(splitter.next_frame(), Ok(Some(Frame::FastPath(vec![4, 3, 9]))));
        assert_eq!(splitter.next_frame(), Ok(Some(Frame::FastPath(vec![4, 0x80, 4, 7]))));
        assert_eq!(splitter.next_frame(), Ok(None));
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(
            lengths in proptest::collection::vec(7u16..3000, 1..12),
            cuts in proptest::collection::vec(1usize..700, 1..20),
        ) {
            let sent: Vec<_> = lengths.iter().map(|length| tpkt(*length)).collect();
            let stream = sent.concat();
            let mut splitter = FrameSplitter::new();
            let mut received = Vec::new();
            let mut rest = stream.as_slice();
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                splitter.push(now);
                rest = later;
                while let Some(frame) = splitter.next_frame().unwrap() {
                    received.push(frame.into_bytes());
                }
            }
            prop_assert_eq!(received, sent);
            prop_assert!(splitter.pending().is_empty());
        }

        #[test]
        fn random_bytes_are_consumed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            crate::fuzz_oracle::fuzz_framing(&bytes);
        }
    }
}
