//! MS-NLMP 3.4: signing and sealing with extended session security and 128-bit keys.

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::NtlmError;
use super::crypto::{KEY_BYTES, Rc4, hmac_md5, md5};
use super::messages::flags;

/// Bytes of a message signature.
pub(super) const SIGNATURE_BYTES: usize = 16;

const SIGNATURE_VERSION: [u8; 4] = [1, 0, 0, 0];

/// A session in which messages are sealed, the server's end.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Seal {
    from_client: Direction,
    to_client: Direction,
}

#[derive(Zeroize, ZeroizeOnDrop)]
struct Direction {
    signing_key: [u8; KEY_BYTES],
    cipher: Rc4,
    sequence: u32,
    seal_checksum: bool,
}

impl Seal {
    pub(super) fn server(session_key: &[u8; KEY_BYTES], negotiated: u32) -> Self {
        let seal_checksum = negotiated & flags::KEY_EXCHANGE != 0;
        Self {
            from_client: Direction::new(session_key, "client-to-server", seal_checksum),
            to_client: Direction::new(session_key, "server-to-client", seal_checksum),
        }
    }

    #[cfg(test)]
    pub(super) fn client(session_key: &[u8; KEY_BYTES], negotiated: u32) -> Self {
        let server = Self::server(session_key, negotiated);
        let (mut a, mut b) = (server.from_client.copy(), server.to_client.copy());
        std::mem::swap(&mut a, &mut b);
        Self { from_client: a, to_client: b }
    }

    /// Seals a message for the client: signature, then ciphertext.
    pub fn seal(&mut self, message: &[u8]) -> Vec<u8> {
        let direction = &mut self.to_client;
        let digest = direction.digest(message);
        let mut sealed = vec![0; SIGNATURE_BYTES];
        sealed.extend_from_slice(message);
        let (signature, body) = sealed.split_at_mut(SIGNATURE_BYTES);
        direction.cipher.apply(body);
        signature.copy_from_slice(&direction.sign(digest));
        sealed
    }

    /// Opens a message from the client.
    ///
    /// # Errors
    ///
    /// When it is too short or its signature does not match.
    pub fn open(&mut self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, NtlmError> {
        let Some((signature, body)) = sealed.split_first_chunk::<SIGNATURE_BYTES>() else {
            return Err(NtlmError::PeerMisbehaved("sealed message shorter than its signature"));
        };
        let direction = &mut self.from_client;
        let mut message = Zeroizing::new(body.to_vec());
        direction.cipher.apply(&mut message);
        let digest = direction.digest(&message);
        if super::crypto::equal(&direction.sign(digest), signature) { Ok(message) } else { Err(NtlmError::LogonDenied) }
    }

    /// Checks the client's signature of `message`, for SPNEGO, and answers with the server's.
    ///
    /// Neither moves the ciphers on (MS-SPNG 3.3.5.1); both count as messages.
    ///
    /// # Errors
    ///
    /// When the signature does not match.
    pub fn countersign(&mut self, message: &[u8], signature: &[u8]) -> Result<[u8; SIGNATURE_BYTES], NtlmError> {
        let signature: &[u8; SIGNATURE_BYTES] =
            signature.try_into().map_err(|_| NtlmError::PeerMisbehaved("signature of a wrong length"))?;
        if super::crypto::equal(&self.from_client.sign_apart(message), signature) {
            Ok(self.to_client.sign_apart(message))
        } else {
            Err(NtlmError::LogonDenied)
        }
    }
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal(..)")
    }
}

impl Direction {
    fn new(session_key: &[u8; KEY_BYTES], name: &str, seal_checksum: bool) -> Self {
        let magic = |purpose: &str| format!("session key to {name} {purpose} key magic constant\0");
        let sealing_key = Zeroizing::new(md5(&[session_key, magic("sealing").as_bytes()]));
        Self {
            signing_key: md5(&[session_key, magic("signing").as_bytes()]),
            cipher: Rc4::new(&sealing_key),
            sequence: 0,
            seal_checksum,
        }
    }

    #[cfg(test)]
    fn copy(&self) -> Self {
        Self {
            signing_key: self.signing_key,
            cipher: self.cipher.clone(),
            sequence: self.sequence,
            seal_checksum: self.seal_checksum,
        }
    }

    fn digest(&self, message: &[u8]) -> [u8; KEY_BYTES] {
        hmac_md5(&self.signing_key, &[&self.sequence.to_le_bytes(), message])
    }

    /// MS-NLMP 3.4.4.2: the signature for a digest, moving on to the next message.
    fn sign(&mut self, digest: [u8; KEY_BYTES]) -> [u8; SIGNATURE_BYTES] {
        let mut signature = [0; SIGNATURE_BYTES];
        let (version, rest) = signature.split_at_mut(4);
        let (checksum, sequence) = rest.split_at_mut(8);
        version.copy_from_slice(&SIGNATURE_VERSION);
        checksum.copy_from_slice(&digest[..8]);
        if self.seal_checksum {
            self.cipher.apply(checksum);
        }
        sequence.copy_from_slice(&self.sequence.to_le_bytes());
        self.sequence = self.sequence.wrapping_add(1);
        signature
    }

    /// Signs without moving the cipher on.
    fn sign_apart(&mut self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let cipher = self.cipher.clone();
        let digest = self.digest(message);
        let signature = self.sign(digest);
        self.cipher = cipher;
        signature
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 16] = [0x55; 16];

    #[test]
    fn sealing_is_that_of_ms_nlmp_4_2_4_4() {
        // Exported session key 55..55; "Plaintext" in UTF-16LE sealed by the client as its first message.
        let plain: Vec<u8> = "Plaintext".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let mut client = Seal::client(&KEY, flags::KEY_EXCHANGE);
        let sealed = client.seal(&plain);
        let body = [
            0x54, 0xe5, 0x01, 0x65, 0xbf, 0x19, 0x36, 0xdc, 0x99, 0x60, 0x20, 0xc1, 0x81, 0x1b, 0x0f, 0x06, 0xfb, 0x5f,
        ];
        assert_eq!(sealed[SIGNATURE_BYTES..], body);
        let signature = [1, 0, 0, 0, 0x7f, 0xb3, 0x8e, 0xc5, 0xc5, 0x5d, 0x49, 0x76, 0, 0, 0, 0];
        assert_eq!(sealed[..SIGNATURE_BYTES], signature);
        let mut server = Seal::server(&KEY, flags::KEY_EXCHANGE);
        assert_eq!(*server.open(&sealed).unwrap(), plain);
    }

    #[test]
    fn both_directions_go_on_and_altered_messages_are_denied() {
        for negotiated in [0, flags::KEY_EXCHANGE] {
            let (mut client, mut server) = (Seal::client(&KEY, negotiated), Seal::server(&KEY, negotiated));
            for round in 0..4u8 {
                let sealed = client.seal(&[round; 40]);
                assert_eq!(*server.open(&sealed).unwrap(), [round; 40]);
                let sealed = server.seal(&[round; 3]);
                assert_eq!(*client.open(&sealed).unwrap(), [round; 3]);
            }
            let mut sealed = client.seal(b"last");
            sealed[17] ^= 1;
            assert_eq!(server.open(&sealed), Err(NtlmError::LogonDenied));
        }
    }

    #[test]
    fn short_messages_are_refused() {
        for length in 0..SIGNATURE_BYTES {
            let refused = Seal::server(&KEY, 0).open(&vec![0; length]);
            assert!(matches!(refused, Err(NtlmError::PeerMisbehaved(_))));
        }
    }

    #[test]
    fn a_signature_for_spnego_leaves_the_cipher_where_it_was() {
        let (mut client, mut server) =
            (Seal::client(&KEY, flags::KEY_EXCHANGE), Seal::server(&KEY, flags::KEY_EXCHANGE));
        let signature = client.to_client.sign_apart(b"mechanisms");
        let answer = server.countersign(b"mechanisms", &signature).unwrap();
        assert_eq!(client.from_client.sign_apart(b"mechanisms"), answer);
        let sealed = client.seal(b"next");
        assert_eq!(**server.open(&sealed).unwrap(), *b"next");
        assert_eq!(server.countersign(b"mechanisms", &[0; 16]), Err(NtlmError::LogonDenied));
    }
}
