//! The primitives of MS-NLMP section 3 and 6: HMAC-MD5, RC4, the response key.
//!
//! All are broken as general cryptography. They run inside TLS, where the protocol demands exactly them.

use hmac::{Hmac, Mac};
use md5::{Digest, Md5};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes of an MD5 digest, and of every key here.
pub(super) const KEY_BYTES: usize = 16;

pub(super) fn md5(parts: &[&[u8]]) -> [u8; KEY_BYTES] {
    let mut digest = Md5::new();
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize().into()
}

pub(super) fn hmac_md5(key: &[u8], parts: &[&[u8]]) -> [u8; KEY_BYTES] {
    let Ok(mut mac) = Hmac::<Md5>::new_from_slice(key) else {
        unreachable!("hmac takes keys of every length");
    };
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// MS-NLMP 3.3.2 NTOWFv2: the response key, from the user and domain exactly as the client sent them (UTF-16LE).
pub(super) fn ntowf_v2(nt_hash: &[u8; KEY_BYTES], user: &[u8], domain: &[u8]) -> [u8; KEY_BYTES] {
    hmac_md5(nt_hash, &[&upper_case(user), domain])
}

/// Compares secrets in a time that does not depend on where they differ.
pub(super) fn equal(a: &[u8; KEY_BYTES], b: &[u8; KEY_BYTES]) -> bool {
    a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// Upper case as Windows has it: unit by unit, and only where the length stays the same (`ß` stays `ß`).
fn upper_case(utf16le: &[u8]) -> Vec<u8> {
    let units = utf16le.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit));
    units.flat_map(|unit| upper_unit(unit).to_le_bytes()).collect()
}

fn upper_unit(unit: u16) -> u16 {
    let Some(character) = char::from_u32(u32::from(unit)) else {
        return unit;
    };
    let mut upper = character.to_uppercase();
    match (upper.next(), upper.next()) {
        (Some(one), None) => u16::try_from(u32::from(one)).unwrap_or(unit),
        _ => unit,
    }
}

/// The RC4 stream cipher.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(super) struct Rc4 {
    state: [u8; 256],
    i: u8,
    j: u8,
}

impl Rc4 {
    pub(super) fn new(key: &[u8; KEY_BYTES]) -> Self {
        let mut state = [0; 256];
        (0..=u8::MAX).for_each(|at| state[usize::from(at)] = at);
        let mut j = 0u8;
        for at in 0..=u8::MAX {
            let i = usize::from(at);
            j = j.wrapping_add(state[i]).wrapping_add(key[i % KEY_BYTES]);
            state.swap(i, usize::from(j));
        }
        Self { state, i: 0, j: 0 }
    }

    pub(super) fn apply(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.i = self.i.wrapping_add(1);
            let a = self.state[usize::from(self.i)];
            self.j = self.j.wrapping_add(a);
            let b = self.state[usize::from(self.j)];
            self.state.swap(usize::from(self.i), usize::from(self.j));
            *byte ^= self.state[usize::from(a.wrapping_add(b))];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn rc4_gives_its_published_stream() {
        // RFC 6229, 128-bit key 0102..10, offset 0.
        let key: [u8; 16] = std::array::from_fn(|at| u8::try_from(at + 1).unwrap());
        let mut bytes = [0; 16];
        Rc4::new(&key).apply(&mut bytes);
        assert_eq!(bytes, [154, 199, 204, 154, 96, 157, 30, 247, 178, 147, 40, 153, 205, 228, 27, 151]);
    }

    #[test]
    fn the_response_key_is_that_of_ms_nlmp_4_2_4() {
        // MS-NLMP 4.2.2.1.2: NT hash of "Password"; 4.2.4.1.1: user "User", domain "Domain".
        let hash = [0xa4, 0xf4, 0x9c, 0x40, 0x65, 0x10, 0xbd, 0xca, 0xb6, 0x82, 0x4e, 0xe7, 0xc3, 0x0f, 0xd8, 0x52];
        let key = ntowf_v2(&hash, &utf16("User"), &utf16("Domain"));
        assert_eq!(key, [12, 134, 138, 64, 59, 253, 122, 147, 163, 0, 30, 242, 46, 240, 46, 63]);
    }

    #[test]
    fn upper_case_keeps_the_length() {
        assert_eq!(upper_case(&utf16("münchen-ß")), utf16("MÜNCHEN-ß"));
        assert_eq!(upper_case(&[0, 0xD8, b'a', 0]), [0, 0xD8, b'A', 0]);
    }

    #[test]
    fn equal_looks_at_every_byte() {
        let a = [7; KEY_BYTES];
        assert!(equal(&a, &a));
        for at in 0..KEY_BYTES {
            let mut b = a;
            b[at] ^= 1;
            assert!(!equal(&a, &b));
        }
    }
}
