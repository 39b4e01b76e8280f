//! What the handshake asks the rest of the program.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::front::Target;

/// Knows the users, their secrets and their rights. The gateway implements it.
pub trait Gatekeeper: Send + Sync + 'static {
    /// The NT hash of an account that may log on with NLA. Quick: it is called on the async thread.
    ///
    /// None for an unknown account, one without a hash, and one that is locked: the client sees no difference.
    fn nt_hash(&self, user: &str) -> Option<NtHash>;

    /// Whether `password` is the account's password. Slow on purpose, and as slow for an unknown account:
    /// it is called on a blocking thread.
    fn verify_password(&self, user: &str, password: &str) -> bool;

    /// The name of the machine that `user`, who has proved to be that, reaches by asking for `target`.
    ///
    /// None both when there is no such machine and when the user may not see it. [`Target::Default`] is the
    /// only machine there is for this user, or the one set as default.
    fn authorise(&self, user: &str, target: &Target) -> Option<String>;
}

/// MD4 of a password in UTF-16LE: all that NTLM needs, and as good as the password to a thief.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct NtHash([u8; 16]);

impl NtHash {
    /// Wraps 16 bytes of MD4.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for NtHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NtHash(..)")
    }
}
