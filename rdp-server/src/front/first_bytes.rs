//! What a client speaks, from the first bytes it sends: one port serves all orders.
//!
//! ```text
//! 03 00 <length> .. E0        X.224 connection request: ordinary RDP
//! 16 03 01..04                TLS: VMConnect's order without a blob
//! <size> 0 <1|2>              pre-connection blob (MS-RDPEPS), then one of the two above
//! "GET " "RDG_" "RPC_"        HTTP: a gateway or WebSocket client
//! ```
//!
//! The forms exclude each other: a TLS record has 1 to 4 in its third byte where a blob of legal size has 0, and
//! blob sizes are even, so 3 never starts one.

use super::preconnection::MAX_BLOB_BYTES;

/// Bytes after which every verdict is final.
pub const FIRST_BYTES: usize = 12;

/// Shortest X.224 connection request in its TPKT header.
const MIN_REQUEST_BYTES: u16 = 11;
/// Longest X.224 connection request that is read.
pub const MAX_REQUEST_BYTES: u16 = 1024;

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstBytes {
    /// An X.224 connection request follows.
    X224,
    /// A TLS client hello follows.
    Tls,
    /// A pre-connection blob follows.
    Preconnection,
    /// An HTTP request follows.
    Http,
    /// Nothing this server knows.
    Unknown,
}

/// Looks at a client's first bytes. None: too few to tell.
///
/// A verdict never changes when more bytes come, and with [`FIRST_BYTES`] there always is one.
#[must_use]
pub fn classify(bytes: &[u8]) -> Option<FirstBytes> {
    use FirstBytes::{Http, Preconnection, Tls, X224};

    let verdicts =
        [(X224, is_request(bytes)), (Tls, is_tls(bytes)), (Preconnection, is_blob(bytes)), (Http, is_http(bytes))];
    match verdicts.iter().find(|(_, fits)| *fits == Fits::Yes) {
        Some((kind, _)) => Some(*kind),
        None if verdicts.iter().any(|(_, fits)| *fits == Fits::SoFar) => None,
        None => Some(FirstBytes::Unknown),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fits {
    Yes,
    SoFar,
    No,
}

/// Tests each byte that is there; `Yes` when all of `tests` could run.
fn fits<const N: usize>(bytes: &[u8], tests: [fn(u8) -> bool; N]) -> Fits {
    if !bytes.iter().zip(tests).all(|(byte, test)| test(*byte)) {
        Fits::No
    } else if bytes.len() < N {
        Fits::SoFar
    } else {
        Fits::Yes
    }
}

fn is_request(bytes: &[u8]) -> Fits {
    let shape = fits(bytes, [|b| b == 3, |b| b == 0, |_| true, |_| true, |_| true, |b| b == 0xE0]);
    match bytes {
        [_, _, high, low, ..] => {
            let length = u16::from_be_bytes([*high, *low]);
            if (MIN_REQUEST_BYTES..=MAX_REQUEST_BYTES).contains(&length) { shape } else { Fits::No }
        }
        _ => shape,
    }
}

fn is_tls(bytes: &[u8]) -> Fits {
    fits(bytes, [|b| b == 0x16, |b| b == 3, |b| (1..=4).contains(&b)])
}

fn is_blob(bytes: &[u8]) -> Fits {
    let zero: fn(u8) -> bool = |b| b == 0;
    let even: fn(u8) -> bool = |b| b % 2 == 0;
    let version: fn(u8) -> bool = |b| b == 1 || b == 2;
    let any: fn(u8) -> bool = |_| true;
    let shape = fits(bytes, [even, any, zero, zero, zero, zero, zero, zero, version, zero, zero, zero]);
    match bytes {
        [a, b, ..] => {
            let size = usize::from(u16::from_le_bytes([*a, *b]));
            if (16..=MAX_BLOB_BYTES).contains(&size) { shape } else { Fits::No }
        }
        _ => shape,
    }
}

fn is_http(bytes: &[u8]) -> Fits {
    let methods: [&[u8; 4]; 3] = [b"GET ", b"RDG_", b"RPC_"];
    let shared = bytes.len().min(4);
    if !methods.iter().any(|method| method[..shared] == bytes[..shared]) {
        Fits::No
    } else if shared < 4 {
        Fits::SoFar
    } else {
        Fits::Yes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REQUEST: &[u8] = &[3, 0, 0, 0x13, 0x0e, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 3, 0, 0, 0];
    const BLOB: &[u8] = &[0x5c, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x25, 0];
    /// A blob of 0x0316 bytes begins like TLS, but for its third byte.
    const BLOB_LIKE_TLS: &[u8] = &[0x16, 3, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    const HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0];

    #[test]
    fn each_form_is_recognised_and_never_before_it_is_certain() {
        let table: [(&[u8], FirstBytes, usize); 7] = [
            (REQUEST, FirstBytes::X224, 6),
            (HELLO, FirstBytes::Tls, 3),
            (BLOB, FirstBytes::Preconnection, 12),
            (BLOB_LIKE_TLS, FirstBytes::Preconnection, 12),
            (b"GET / HTTP/1.1\r\n", FirstBytes::Http, 4),
            (b"RDG_OUT_DATA /", FirstBytes::Http, 4),
            (b"RPC_IN_DATA /r", FirstBytes::Http, 4),
        ];
        for (bytes, kind, certain) in table {
            for length in 0..=bytes.len() {
                let expected = (length >= certain).then_some(kind);
                assert_eq!(classify(&bytes[..length]), expected, "{kind:?} after {length}");
            }
        }
    }

    #[test]
    fn anything_else_is_refused_at_once() {
        let table: [&[u8]; 9] = [
            b"SSH-2.0",
            b"\0\0\0\0",
            &[3, 1],
            &[3, 0, 0, 10],
            &[3, 0, 4, 1],
            &[3, 0, 0, 0x13, 0x0e, 0xf0],
            &[0x16, 3, 5],
            &[15, 0],
            &[17, 0, 0, 0],
        ];
        for bytes in table {
            assert_eq!(classify(bytes), Some(FirstBytes::Unknown), "{bytes:02x?}");
        }
    }

    proptest! {
        #[test]
        fn a_verdict_never_changes(bytes in proptest::collection::vec(any::<u8>(), 0..32)) {
            let mut before = None;
            for length in 0..=bytes.len() {
                let now = classify(&bytes[..length]);
                prop_assert!(before.is_none() || before == now);
                prop_assert!(now.is_some() || length < FIRST_BYTES);
                before = now;
            }
        }
    }
}
