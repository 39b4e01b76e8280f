//! What is kept of a password: an argon2id hash and, where NLA is allowed, the NT hash.

use std::sync::{Condvar, Mutex, PoisonError};

use argon2::password_hash::{self, Output, PasswordHash, Salt, SaltString};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use md4::{Digest, Md4};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

/// Longest password, in bytes: what the password field of Client Info can carry (MS-RDPBCGR 2.2.1.11.1.1).
pub const MAX_PASSWORD: usize = 512;

/// OWASP's profile for argon2id: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// A hash that asks for more was not made here.
const MAX_MEMORY_KIB: usize = 256 * 1024;
/// Hashes computed at once: each costs 19 MiB and a core.
const CONCURRENT_HASHES: usize = 2;
/// Blocks reserved for a hash, above 32 MiB. glibc maps an allocation of that size on its own and gives it back
/// when freed; a smaller one would stay with the process after the second logon. What is not used is not touched,
/// so it costs no memory.
const RESERVED_BLOCKS: usize = 33 * 1024;

/// The one-way forms of a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// argon2id, as a PHC string.
    pub(super) argon2: String,
    /// MD4 of the password in UTF-16, what NTLM proves knowledge of.
    pub(super) nt_hash: Option<NtDigest>,
}

/// An NT hash; wiped when dropped and never printed.
#[derive(Clone, PartialEq, Eq, Zeroize)]
#[zeroize(drop)]
pub struct NtDigest(pub(super) [u8; 16]);

/// Why a password is not taken.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PasswordError {
    /// There is nothing in it.
    #[error("the password is empty")]
    Empty,
    /// Longer than RDP can carry.
    #[error("the password is longer than {MAX_PASSWORD} bytes")]
    TooLong,
    /// A zero or a line break, which a client cannot send.
    #[error("the password holds a control character")]
    ControlCharacter,
    /// argon2 could not run.
    #[error("cannot hash the password: {0}")]
    Hash(String),
}

impl Secret {
    /// Hashes `password`, which takes tens of milliseconds.
    ///
    /// # Errors
    ///
    /// When no client could log on with it.
    pub fn new(password: &str, keep: Keep) -> Result<Self, PasswordError> {
        check(password)?;
        let mut salt = [0; Salt::RECOMMENDED_LENGTH];
        getrandom::fill(&mut salt).map_err(|error| PasswordError::Hash(error.to_string()))?;
        let argon2 = hash(password, &salt).map_err(|error| PasswordError::Hash(error.to_string()))?;
        let nt_hash = (keep == Keep::NtHashToo).then(|| NtDigest::of(password));
        Ok(Self { argon2, nt_hash })
    }

    /// Whether `password` is the one this was made from. Blocks for tens of milliseconds.
    #[must_use]
    pub fn verify(&self, password: &str) -> bool {
        verify(&self.argon2, password).unwrap_or(false)
    }

    /// Does the work of [`verify`](Self::verify) for a user who does not exist.
    pub fn verify_nobody(password: &str) {
        // The result is `false` by definition; only the time it takes matters.
        let _ = hash(password, &[0; Salt::RECOMMENDED_LENGTH]);
    }

    /// The NT hash, when one is kept.
    #[must_use]
    pub fn nt_hash(&self) -> Option<&NtDigest> {
        self.nt_hash.as_ref()
    }
}

/// Which forms of a password to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// argon2id only: the user cannot log on by NLA.
    Argon2Only,
    /// The NT hash too; who steals it can log on with it.
    NtHashToo,
}

impl NtDigest {
    /// The digest of `password`.
    #[must_use]
    pub fn of(password: &str) -> Self {
        let utf16: Zeroizing<Vec<u8>> = Zeroizing::new(password.encode_utf16().flat_map(u16::to_le_bytes).collect());
        Self(Md4::digest(&*utf16).into())
    }

    /// The 16 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl std::fmt::Debug for NtDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NtDigest(..)")
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A random password that is easy to read out and type: 16 characters of 32, 80 bits.
///
/// # Errors
///
/// When the system has no randomness.
pub fn random_password() -> Result<Zeroizing<String>, getrandom::Error> {
    const ALPHABET: [u8; 32] = *b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut bytes = Zeroizing::new([0u8; 16]);
    getrandom::fill(&mut *bytes)?;
    Ok(Zeroizing::new(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect()))
}

/// Whether `text` can be the argon2 hash of a user.
pub(super) fn is_hash(text: &str) -> bool {
    PasswordHash::new(text).is_ok_and(|hash| hash.algorithm == Algorithm::Argon2id.ident() && hash.hash.is_some())
}

fn check(password: &str) -> Result<(), PasswordError> {
    if password.is_empty() {
        Err(PasswordError::Empty)
    } else if password.len() > MAX_PASSWORD {
        Err(PasswordError::TooLong)
    } else if password.chars().any(char::is_control) {
        Err(PasswordError::ControlCharacter)
    } else {
        Ok(())
    }
}

fn hash(password: &str, salt: &[u8]) -> password_hash::Result<String> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None)?;
    let salt = SaltString::encode_b64(salt)?;
    let output = digest(password, salt.as_salt(), Version::V0x13, &params)?;
    let text = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: (&params).try_into()?,
        salt: Some(salt.as_salt()),
        hash: Some(output),
    };
    Ok(text.to_string())
}

fn verify(expected: &str, password: &str) -> password_hash::Result<bool> {
    let expected = PasswordHash::new(expected)?;
    let params = Params::try_from(&expected)?;
    let version = expected.version.and_then(|version| Version::try_from(version).ok()).unwrap_or_default();
    let (Some(salt), Some(output)) = (expected.salt, expected.hash) else { return Ok(false) };
    // `Output` compares in constant time.
    Ok(digest(password, salt, version, &params)? == output)
}

fn digest(password: &str, salt: Salt<'_>, version: Version, params: &Params) -> password_hash::Result<Output> {
    if params.block_count() > MAX_MEMORY_KIB {
        return Err(password_hash::Error::Algorithm);
    }
    let mut salt_bytes = [0; Salt::MAX_LENGTH];
    let salt = salt.decode_b64(&mut salt_bytes)?;
    let argon2 = Argon2::new(Algorithm::Argon2id, version, params.clone());
    let _turn = Turn::wait();
    let mut blocks: Vec<Block> = Vec::with_capacity(params.block_count().max(RESERVED_BLOCKS));
    blocks.resize(params.block_count(), Block::new());
    Output::init_with(params.output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN), |out| {
        Ok(argon2.hash_password_into_with_memory(password.as_bytes(), salt, out, &mut blocks)?)
    })
}

/// One of [`CONCURRENT_HASHES`] turns; waiting for it blocks the thread.
struct Turn;

static FREE_TURNS: Mutex<usize> = Mutex::new(CONCURRENT_HASHES);
static TURN_FREED: Condvar = Condvar::new();

impl Turn {
    fn wait() -> Self {
        let free = FREE_TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = TURN_FREED.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *FREE_TURNS.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        TURN_FREED.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_password_verifies() {
        let secret = Secret::new("correct horse", Keep::Argon2Only).unwrap();
        assert!(secret.verify("correct horse"));
        assert!(!secret.verify("correct horsf"));
        assert!(!secret.verify(""));
        assert!(secret.nt_hash().is_none());
        assert!(secret.argon2.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(is_hash(&secret.argon2));
    }

    #[test]
    fn hashes_of_other_argon2_programs_are_understood() {
        // echo -n password | argon2 somesalt -id -t 2 -m 16 -p 4 -l 24
        let text = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        assert_eq!(verify(text, "password"), Ok(true));
        assert_eq!(verify(text, "passwort"), Ok(false));
    }

    #[test]
    fn the_nt_hash_is_the_well_known_one() {
        let digest = NtDigest::of("password");
        let hex: String = digest.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "8846f7eaee8fb117ad06bdd830b7586c");
    }

    #[test]
    fn passwords_no_client_can_send_are_refused() {
        let refused = |password: &str| Secret::new(password, Keep::Argon2Only).unwrap_err();
        assert_eq!(refused(""), PasswordError::Empty);
        assert_eq!(refused("a\nb"), PasswordError::ControlCharacter);
        assert_eq!(refused(&"x".repeat(MAX_PASSWORD + 1)), PasswordError::TooLong);
    }

    #[test]
    fn secrets_do_not_show_themselves() {
        let secret = Secret::new("visible?", Keep::NtHashToo).unwrap();
        assert_eq!(format!("{secret:?} {:?}", secret.nt_hash()), "Secret(..) Some(NtDigest(..))");
    }

    #[test]
    fn random_passwords_differ_and_are_typeable() {
        let (one, two) = (random_password().unwrap(), random_password().unwrap());
        assert_ne!(one, two);
        assert!(one.len() == 16 && one.chars().all(|c| c.is_ascii_alphanumeric()));
    }
}
