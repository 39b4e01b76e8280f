//! Static virtual channels: messages cut into chunks, each with a CHANNEL_PDU_HEADER (MS-RDPBCGR 2.2.6.1).

use thiserror::Error;

use super::mcs;

/// Most bytes of a message in one chunk (CHANNEL_CHUNK_LENGTH, MS-RDPBCGR 3.1.5.2.1).
pub const CHUNK_SIZE: usize = 1600;
/// Bytes of a chunk's header: total length, flags.
pub const HEADER_SIZE: usize = 8;

const FLAG_FIRST: u32 = 0x0000_0001;
const FLAG_LAST: u32 = 0x0000_0002;
/// CHANNEL_PACKET_COMPRESSED: bulk compression, which we never announce.
const FLAG_COMPRESSED: u32 = 0x0020_0000;

/// A client's chunk that does not follow MS-RDPBCGR 3.1.5.2.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ChunkError {
    /// Shorter than its header.
    #[error("static channel chunk is shorter than its header")]
    NoHeader,
    /// Compressed, though the server never offered it.
    #[error("static channel chunk claims compression")]
    Compressed,
    /// A message longer than anything we accept on a channel.
    #[error("static channel message of {announced} bytes is over the limit of {limit}")]
    TooLong {
        /// What the header announces.
        announced: usize,
        /// The limit.
        limit: usize,
    },
    /// A first chunk inside a message, a later chunk outside one, or more or fewer bytes than announced.
    #[error("static channel chunks are out of sequence")]
    OutOfSequence,
}

/// Appends `message` to `out` as chunks on the static channel `channel_id`, each in its MCS envelope.
pub fn encode_message(out: &mut Vec<u8>, channel_id: u16, message: &[u8]) {
    let total = u32::try_from(message.len()).expect("our own messages are far below 4 GiB");
    let mut rest = message;
    let mut flags = FLAG_FIRST;
    loop {
        let (chunk, after) = rest.split_at(rest.len().min(CHUNK_SIZE));
        if after.is_empty() {
            flags |= FLAG_LAST;
        }
        mcs::begin_send_data(out, channel_id, HEADER_SIZE + chunk.len());
        out.extend_from_slice(&total.to_le_bytes());
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(chunk);
        if after.is_empty() {
            return;
        }
        rest = after;
        flags = 0;
    }
}

/// Puts a client's chunks together again.
#[derive(Debug)]
pub struct Reassembly {
    limit: usize,
    announced: usize,
    message: Vec<u8>,
}

impl Reassembly {
    /// Accepts messages of at most `limit` bytes.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self { limit, announced: 0, message: Vec::new() }
    }

    /// Takes one chunk, header included; gives the message when it is whole.
    ///
    /// # Errors
    ///
    /// When the chunk breaks the sequence or the limits; the channel cannot go on then.
    pub fn handle_chunk(&mut self, chunk: &[u8]) -> Result<Option<Vec<u8>>, ChunkError> {
        let (length, rest) = chunk.split_first_chunk().ok_or(ChunkError::NoHeader)?;
        let (flags, data) = rest.split_first_chunk().ok_or(ChunkError::NoHeader)?;
        let announced = u32::from_le_bytes(*length) as usize;
        let flags = u32::from_le_bytes(*flags);
        if flags & FLAG_COMPRESSED != 0 {
            return Err(ChunkError::Compressed);
        }
        if announced > self.limit {
            return Err(ChunkError::TooLong { announced, limit: self.limit });
        }
        if flags & FLAG_FIRST != 0 {
            if !self.message.is_empty() {
                return Err(ChunkError::OutOfSequence);
            }
            self.announced = announced;
        }
        if announced != self.announced || self.message.len() + data.len() > announced {
            return Err(ChunkError::OutOfSequence);
        }
        self.message.extend_from_slice(data);
        if flags & FLAG_LAST == 0 {
            return Ok(None);
        }
        if self.message.len() != announced {
            return Err(ChunkError::OutOfSequence);
        }
        self.announced = 0;
        Ok(Some(std::mem::take(&mut self.message)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(total: u32, flags: u32, data: &[u8]) -> Vec<u8> {
        [&total.to_le_bytes()[..], &flags.to_le_bytes(), data].concat()
    }

    #[test]
    fn a_message_in_three_chunks_comes_back_whole() {
        let mut channel = Reassembly::new(100);
        assert_eq!(channel.handle_chunk(&chunk(5, FLAG_FIRST, b"ab")), Ok(None));
        assert_eq!(channel.handle_chunk(&chunk(5, 0, b"cd")), Ok(None));
        assert_eq!(channel.handle_chunk(&chunk(5, FLAG_LAST, b"e")), Ok(Some(b"abcde".to_vec())));
        assert_eq!(channel.handle_chunk(&chunk(1, FLAG_FIRST | FLAG_LAST, b"x")), Ok(Some(b"x".to_vec())));
    }

    #[test]
    fn lengths_are_checked_before_anything_is_kept() {
        let mut channel = Reassembly::new(100);
        let long = ChunkError::TooLong { announced: 101, limit: 100 };
        assert_eq!(channel.handle_chunk(&chunk(101, FLAG_FIRST, b"")), Err(long));
        assert_eq!(channel.handle_chunk(&chunk(1, FLAG_FIRST, b"ab")), Err(ChunkError::OutOfSequence));
        assert_eq!(channel.handle_chunk(b"short"), Err(ChunkError::NoHeader));
    }

    proptest! {
        #[test]
        fn what_is_kept_never_passes_the_limit(chunks in proptest::collection::vec(
            (0u32..300, 0u32..4, proptest::collection::vec(any::<u8>(), 0..100)), 0..50)) {
            let mut channel = Reassembly::new(200);
            for (total, flags, data) in chunks {
                let _ = channel.handle_chunk(&chunk(total, flags, &data));
                prop_assert!(channel.message.len() <= 200);
            }
        }
    }
}
