//! The server's side of NTLMv2 (MS-NLMP), for any number of users known by their NT hash.
//!
//! ```text
//! client                               server
//!   NEGOTIATE  ───────────────────────▶
//!              ◀───────────────────────  CHALLENGE (8 random bytes)
//!   AUTHENTICATE (user, domain, proof) ▶ look up the account, check proof and MIC, derive keys
//!              ◀── sealed messages ────▶
//! ```
//!
//! An unknown account goes through the same computations with a hash that nobody has, and fails like a wrong
//! password does.

mod crypto;
mod messages;
mod seal;

use messages::{Authenticate, Negotiate};
pub use messages::{MAX_MESSAGE_BYTES, SERVER_NAME};
use zeroize::Zeroizing;

pub use self::seal::Seal;
use super::NtHash;

/// Why NTLM did not end in a session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NtlmError {
    /// The client broke the protocol, or asks for something older than NTLMv2 with 128 bits.
    #[error("{0}")]
    PeerMisbehaved(&'static str),
    /// Unknown user, wrong password, or an altered message: one answer for all.
    #[error("logon denied")]
    LogonDenied,
}

/// What the server contributes to an exchange. Random and current in production, fixed in tests.
#[derive(Debug, Clone)]
pub struct ServerSecrets {
    /// The challenge.
    pub challenge: [u8; 8],
    /// Now, in 100 ns since 1601.
    pub file_time: u64,
    /// The hash that unknown accounts are checked against.
    pub nobody: NtHash,
}

/// An exchange whose NEGOTIATE was answered.
#[derive(Debug)]
pub struct Challenged {
    negotiate: Vec<u8>,
    challenge: Vec<u8>,
    secrets: ServerSecrets,
    flags: u32,
}

/// Who a client says it is, from its AUTHENTICATE message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The user name, as sent.
    pub user: String,
    /// The domain, as sent.
    pub domain: String,
    /// The client computer's name, as sent.
    pub workstation: String,
}

/// Answers a NEGOTIATE message with a CHALLENGE.
///
/// # Errors
///
/// When it is none, or lacks what a sealed session needs.
pub fn challenge(negotiate: &[u8], secrets: ServerSecrets) -> Result<(Challenged, Vec<u8>), NtlmError> {
    let flags = Negotiate::read(negotiate)?.answer()?;
    let challenge = messages::challenge(flags, secrets.challenge, secrets.file_time);
    let exchange = Challenged { negotiate: negotiate.to_vec(), challenge: challenge.clone(), secrets, flags };
    Ok((exchange, challenge))
}

impl Challenged {
    /// Checks an AUTHENTICATE message. `find` gives the NT hash for who the client claims to be.
    ///
    /// The claim comes back with every outcome, for the log and for lock-out.
    ///
    /// # Errors
    ///
    /// When the message is none, or the client does not know the password.
    pub fn authenticate(
        self,
        message: &[u8],
        find: impl FnOnce(&Claim) -> Option<NtHash>,
    ) -> (Option<Claim>, Result<Seal, NtlmError>) {
        let authenticate = match Authenticate::read(message) {
            Ok(authenticate) => authenticate,
            Err(error) => return (None, Err(error)),
        };
        let claim = authenticate.claim();
        let found = find(&claim);
        let known = found.is_some();
        let hash = found.unwrap_or_else(|| self.secrets.nobody.clone());
        let verdict = self.verify(&authenticate, message, &hash);
        let verdict = match verdict {
            Ok(_) if !known => Err(NtlmError::LogonDenied),
            other => other,
        };
        (Some(claim), verdict)
    }

    /// MS-NLMP 3.2.5.1.2 and 3.3.2: proof, keys and message integrity code.
    fn verify(&self, message: &Authenticate<'_>, raw: &[u8], hash: &NtHash) -> Result<Seal, NtlmError> {
        let response_key = Zeroizing::new(crypto::ntowf_v2(hash.as_bytes(), message.user, message.domain));
        let (proof, rest) = message.response()?;
        let expected = crypto::hmac_md5(&*response_key, &[&self.secrets.challenge, rest]);
        let base_key = Zeroizing::new(crypto::hmac_md5(&*response_key, &[proof]));
        let negotiated = message.negotiated(self.flags);
        let session_key = Zeroizing::new(message.session_key(negotiated, &base_key)?);
        let unaltered = match message.integrity(raw)? {
            Some(integrity) => {
                let parts: [&[u8]; 3] = [&self.negotiate, &self.challenge, &integrity.without];
                crypto::equal(&crypto::hmac_md5(&*session_key, &parts), &integrity.code)
            }
            None => true,
        };
        // Both checks always run, so that the time taken does not tell them apart.
        if crypto::equal(&expected, proof) & unaltered {
            Ok(Seal::server(&session_key, negotiated))
        } else {
            Err(NtlmError::LogonDenied)
        }
    }
}
