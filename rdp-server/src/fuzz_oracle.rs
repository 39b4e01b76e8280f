//! Oracles for fuzz targets: each takes any bytes and panics only when an invariant is broken.

use crate::front::first_bytes::{FIRST_BYTES, classify};
use crate::front::{FrameSplitter, connection_request, preconnection};

/// A verdict about the first bytes comes in time and never changes.
pub fn fuzz_first_bytes(bytes: &[u8]) {
    let mut before = None;
    for length in 0..=bytes.len().min(2 * FIRST_BYTES) {
        let now = classify(&bytes[..length]);
        assert!(before.is_none() || now == before, "a verdict changed");
        assert!(now.is_some() || length < FIRST_BYTES, "no verdict after {length} bytes");
        before = now;
    }
}

/// The splitter consumes bytes, asks for more or fails: it never spins, and gives back all it was given.
///
/// # Panics
///
/// When it does not.
pub fn fuzz_framing(bytes: &[u8]) {
    let mut splitter = FrameSplitter::new();
    let mut handed_out = 0;
    for chunk in bytes.chunks(1 + bytes.len() / 7) {
        splitter.push(chunk);
        loop {
            let pending = splitter.pending().len();
            match splitter.next_frame() {
                Ok(Some(frame)) => {
                    assert!(!frame.bytes().is_empty(), "an empty frame");
                    assert_eq!(splitter.pending().len() + frame.bytes().len(), pending, "bytes lost");
                    assert!(bytes[handed_out..].starts_with(frame.bytes()), "bytes changed");
                    handed_out += frame.bytes().len();
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(splitter.next_frame(), Err(error), "an error went away");
                    return;
                }
            }
        }
    }
    assert_eq!(handed_out + splitter.pending().len(), bytes.len(), "bytes lost");
}

/// A blob is read, refused, or needs more bytes than there are; it never takes more than there are.
pub fn fuzz_preconnection(bytes: &[u8]) {
    if let Ok(Some((_, size))) = preconnection::read(bytes) {
        assert!((16..=preconnection::MAX_BLOB_BYTES).contains(&size) && size <= bytes.len(), "size {size}");
    }
}

/// A connection request is read or refused.
pub fn fuzz_connection_request(bytes: &[u8]) {
    let _ = connection_request::read(bytes);
}
