//! MS-NLMP 2.2: the three messages, NEGOTIATE and AUTHENTICATE decoded, CHALLENGE encoded.

use super::crypto::{KEY_BYTES, Rc4};
use super::{Claim, NtlmError};

/// Longest message that is read. Real ones have a few hundred bytes.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024;

/// The computer name in our CHALLENGE. Some clients send it back as the domain of an undecorated user.
pub const SERVER_NAME: &str = "FANLIGHT";

const SIGNATURE: &[u8; 8] = b"NTLMSSP\0";
/// Windows 10's, with revision 15 of NTLM: clients look at nothing but the revision.
const VERSION: [u8; 8] = [10, 0, 0x63, 0x45, 0, 0, 0, 15];
const CHALLENGE_HEADER_BYTES: u32 = 56;

/// MS-NLMP 2.2.2.5 NEGOTIATE flags.
pub(super) mod flags {
    pub(in super::super) const UNICODE: u32 = 0x0000_0001;
    pub(in super::super) const REQUEST_TARGET: u32 = 0x0000_0004;
    pub(in super::super) const SIGN: u32 = 0x0000_0010;
    pub(in super::super) const SEAL: u32 = 0x0000_0020;
    pub(in super::super) const NTLM: u32 = 0x0000_0200;
    pub(in super::super) const ALWAYS_SIGN: u32 = 0x0000_8000;
    pub(in super::super) const TARGET_TYPE_SERVER: u32 = 0x0002_0000;
    pub(in super::super) const EXTENDED_SESSION_SECURITY: u32 = 0x0008_0000;
    pub(in super::super) const TARGET_INFO: u32 = 0x0080_0000;
    pub(in super::super) const VERSION: u32 = 0x0200_0000;
    pub(in super::super) const KEY_128: u32 = 0x2000_0000;
    pub(in super::super) const KEY_EXCHANGE: u32 = 0x4000_0000;
    pub(in super::super) const KEY_56: u32 = 0x8000_0000;
}

/// MS-NLMP 2.2.2.1 AV_PAIR ids.
mod av {
    pub(super) const END: u16 = 0;
    pub(super) const COMPUTER: u16 = 1;
    pub(super) const DOMAIN: u16 = 2;
    pub(super) const DNS_COMPUTER: u16 = 3;
    pub(super) const DNS_DOMAIN: u16 = 4;
    pub(super) const FLAGS: u16 = 6;
    pub(super) const TIMESTAMP: u16 = 7;
    /// In `FLAGS`: the AUTHENTICATE message carries an integrity code.
    pub(super) const HAS_INTEGRITY_CODE: u32 = 2;
}

/// The NEGOTIATE message (MS-NLMP 2.2.1.1). Only its flags matter.
pub(super) struct Negotiate {
    flags: u32,
}

impl Negotiate {
    pub(super) fn read(message: &[u8]) -> Result<Self, NtlmError> {
        let flags = field(body(message, 1)?, 12).map(u32::from_le_bytes);
        flags.map(|flags| Self { flags }).ok_or(NtlmError::PeerMisbehaved("truncated ntlm negotiate"))
    }

    /// The flags of the CHALLENGE: what both sides can do.
    pub(super) fn answer(&self) -> Result<u32, NtlmError> {
        const OPTIONAL: u32 = flags::SIGN | flags::SEAL | flags::ALWAYS_SIGN | flags::KEY_EXCHANGE | flags::KEY_56;
        const OURS: u32 = flags::REQUEST_TARGET | flags::TARGET_TYPE_SERVER | flags::TARGET_INFO | flags::VERSION;
        with_needed(self.flags)?;
        Ok(NEEDED | OURS | self.flags & OPTIONAL)
    }
}

/// What a sealed session of NTLMv2 cannot do without.
const NEEDED: u32 = flags::UNICODE | flags::NTLM | flags::EXTENDED_SESSION_SECURITY | flags::KEY_128;

fn with_needed(flags: u32) -> Result<u32, NtlmError> {
    let enough = flags & NEEDED == NEEDED;
    enough.then_some(flags).ok_or(NtlmError::PeerMisbehaved("client cannot do ntlmv2 with 128-bit keys"))
}

/// Encodes the CHALLENGE message (MS-NLMP 2.2.1.2).
pub(super) fn challenge(flags: u32, challenge: [u8; 8], file_time: u64) -> Vec<u8> {
    let name: Vec<u8> = SERVER_NAME.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let info = target_info(&name, file_time);
    let mut message = SIGNATURE.to_vec();
    message.extend(2u32.to_le_bytes());
    put_field(&mut message, &name, CHALLENGE_HEADER_BYTES);
    message.extend(flags.to_le_bytes());
    message.extend(challenge);
    message.extend([0; 8]);
    put_field(&mut message, &info, CHALLENGE_HEADER_BYTES + u32::from(short_len(&name)));
    message.extend(VERSION);
    message.extend(name);
    message.extend(info);
    message
}

fn target_info(name: &[u8], file_time: u64) -> Vec<u8> {
    let mut info = Vec::new();
    let pairs: [(u16, &[u8]); 6] = [
        (av::DOMAIN, name),
        (av::COMPUTER, name),
        (av::DNS_DOMAIN, name),
        (av::DNS_COMPUTER, name),
        (av::TIMESTAMP, &file_time.to_le_bytes()),
        (av::END, &[]),
    ];
    for (id, value) in pairs {
        info.extend(id.to_le_bytes());
        info.extend(short_len(value).to_le_bytes());
        info.extend(value);
    }
    info
}

fn put_field(message: &mut Vec<u8>, value: &[u8], offset: u32) {
    message.extend(short_len(value).to_le_bytes());
    message.extend(short_len(value).to_le_bytes());
    message.extend(offset.to_le_bytes());
}

fn short_len(value: &[u8]) -> u16 {
    u16::try_from(value.len()).unwrap_or(u16::MAX)
}

/// The AUTHENTICATE message (MS-NLMP 2.2.1.3).
pub(super) struct Authenticate<'a> {
    response: &'a [u8],
    /// UTF-16LE, exactly as sent: the proof was computed over it.
    pub(super) domain: &'a [u8],
    /// UTF-16LE, exactly as sent.
    pub(super) user: &'a [u8],
    workstation: &'a [u8],
    encrypted_session_key: &'a [u8],
    flags: u32,
    /// Where the first payload begins, which is where the header ends.
    header_end: usize,
}

impl<'a> Authenticate<'a> {
    pub(super) fn read(message: &'a [u8]) -> Result<Self, NtlmError> {
        let message = body(message, 3)?;
        let mut header_end = message.len();
        let mut payload = |at: usize| {
            let descriptor: [u8; 8] = field(message, at).ok_or(TRUNCATED)?;
            let [a, b, _, _, offset @ ..] = descriptor;
            let length = usize::from(u16::from_le_bytes([a, b]));
            if length == 0 {
                return Ok(&message[..0]);
            }
            let start = usize::try_from(u32::from_le_bytes(offset)).map_err(|_| TRUNCATED)?;
            let end = start.checked_add(length).ok_or(TRUNCATED)?;
            header_end = header_end.min(start);
            message.get(start..end).ok_or(TRUNCATED)
        };
        let response = payload(20)?;
        let domain = payload(28)?;
        let user = payload(36)?;
        let workstation = payload(44)?;
        let encrypted_session_key = payload(52)?;
        let _lm_response = payload(12)?;
        let flags = with_needed(field(message, 60).map_or(0, u32::from_le_bytes))?;
        Ok(Self { response, domain, user, workstation, encrypted_session_key, flags, header_end })
    }

    pub(super) fn claim(&self) -> Claim {
        Claim { user: text(self.user), domain: text(self.domain), workstation: text(self.workstation) }
    }

    /// The flags in effect: what the client chose from those it was `offered`.
    pub(super) const fn negotiated(&self, offered: u32) -> u32 {
        self.flags & offered
    }

    /// The NTLMv2 response: the proof, and what it proves (MS-NLMP 2.2.2.7, 2.2.2.8).
    pub(super) fn response(&self) -> Result<(&'a [u8; KEY_BYTES], &'a [u8]), NtlmError> {
        match self.response.split_first_chunk() {
            Some((proof, rest @ [1, 1, ..])) if rest.len() >= 28 => Ok((proof, rest)),
            // Empty is an anonymous logon, 24 bytes is NTLMv1.
            _ => Err(NtlmError::LogonDenied),
        }
    }

    /// The key all others derive from: chosen by the client when keys are exchanged, else the proof's.
    pub(super) fn session_key(&self, negotiated: u32, base: &[u8; KEY_BYTES]) -> Result<[u8; KEY_BYTES], NtlmError> {
        if negotiated & flags::KEY_EXCHANGE == 0 {
            return Ok(*base);
        }
        let mut key: [u8; KEY_BYTES] = self
            .encrypted_session_key
            .try_into()
            .map_err(|_| NtlmError::PeerMisbehaved("session key of a wrong length"))?;
        Rc4::new(base).apply(&mut key);
        Ok(key)
    }

    /// The integrity code. None when the client's response says that there is none.
    pub(super) fn integrity(&self, raw: &[u8]) -> Result<Option<Integrity>, NtlmError> {
        let (_, rest) = self.response()?;
        if av_flags(rest.get(28..).unwrap_or_default()) & av::HAS_INTEGRITY_CODE == 0 {
            return Ok(None);
        }
        // It is the last part of the header: after the version, or without one.
        let at = if self.header_end >= 72 + KEY_BYTES { 72 } else { 64 };
        let code: [u8; KEY_BYTES] = field(raw, at).filter(|_| at + KEY_BYTES <= self.header_end).ok_or(TRUNCATED)?;
        let mut without = raw.to_vec();
        if let Some(place) = without.get_mut(at..at + KEY_BYTES) {
            place.fill(0);
        }
        Ok(Some(Integrity { code, without }))
    }
}

/// The integrity code of an AUTHENTICATE message.
pub(super) struct Integrity {
    pub(super) code: [u8; KEY_BYTES],
    /// The message as it was when the code was computed: with zeros in the code's place.
    pub(super) without: Vec<u8>,
}

const TRUNCATED: NtlmError = NtlmError::PeerMisbehaved("truncated ntlm authenticate");

/// The value of the `FLAGS` pair in a list; 0 when there is none.
fn av_flags(mut pairs: &[u8]) -> u32 {
    while let [a, b, c, d, rest @ ..] = pairs {
        let id = u16::from_le_bytes([*a, *b]);
        let length = usize::from(u16::from_le_bytes([*c, *d]));
        let Some((value, tail)) = rest.split_at_checked(length) else {
            return 0;
        };
        match id {
            av::END => return 0,
            av::FLAGS => return field(value, 0).map_or(0, u32::from_le_bytes),
            _ => pairs = tail,
        }
    }
    0
}

/// Checks signature, type and size.
fn body(message: &[u8], kind: u8) -> Result<&[u8], NtlmError> {
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(NtlmError::PeerMisbehaved("ntlm message too long"));
    }
    let right = message.starts_with(SIGNATURE) && message.get(8..12) == Some(&[kind, 0, 0, 0]);
    if right { Ok(message) } else { Err(NtlmError::PeerMisbehaved("not the ntlm message expected")) }
}

fn field<const N: usize>(message: &[u8], at: usize) -> Option<[u8; N]> {
    message.get(at..)?.first_chunk().copied()
}

fn text(utf16le: &[u8]) -> String {
    let units = utf16le.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit));
    char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}
