//! Why a connection was not accepted.

use std::time::Duration;

use crate::front::Target;

/// A step of the connection sequence, in wire order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Nothing has told yet what the client speaks.
    FirstBytes,
    /// The pre-connection blob, and what follows it.
    Preconnection,
    /// The X.224 connection request.
    ConnectionRequest,
    /// The TLS handshake.
    Tls,
    /// CredSSP: the client proves that it knows the password.
    CredSsp,
    /// MCS connect, channel joins and Client Info; with TLS only, up to the verdict about the password.
    Settings,
    /// Licence, capability exchange and finalization.
    Activation,
}

impl Step {
    /// Name for logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FirstBytes => "first bytes",
            Self::Preconnection => "pre-connection blob",
            Self::ConnectionRequest => "connection request",
            Self::Tls => "tls handshake",
            Self::CredSsp => "credssp",
            Self::Settings => "settings exchange",
            Self::Activation => "activation",
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a connection was not accepted. Each is worth one line of log, written by the caller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The client was too slow.
    #[error("client too slow: {step} took longer than {} s", limit.as_secs())]
    TooSlow {
        /// What it was doing.
        step: Step,
        /// The deadline it missed.
        limit: Duration,
    },
    /// The client sent too much before it had proved who it is.
    #[error("client sent more than {limit} bytes before authentication, during {step}")]
    TooMuch {
        /// What it was doing.
        step: Step,
        /// The budget it used up.
        limit: usize,
    },
    /// The client broke the protocol.
    #[error("client misbehaved during {step}: {reason}")]
    PeerMisbehaved {
        /// What it was doing.
        step: Step,
        /// What was wrong.
        reason: String,
    },
    /// The client wants something that this server does not do.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The user name or the password is wrong.
    #[error("authentication of {user:?} failed")]
    WrongCredentials {
        /// The account, as it would be looked up.
        user: String,
    },
    /// The user is who it says, but there is no such machine, or not for this user.
    #[error("{user:?} may not use {target}, or there is no such machine")]
    NotAllowed {
        /// The account.
        user: String,
        /// What it asked for.
        target: Target,
    },
    /// The client went away.
    #[error("client closed the connection during {step}")]
    Closed {
        /// What it was doing.
        step: Step,
    },
    /// The socket or TLS failed.
    #[error("connection failed during {step}: {error}")]
    Io {
        /// What was going on.
        step: Step,
        /// What the system or the TLS library says.
        #[source]
        error: std::io::Error,
    },
}

impl AcceptError {
    /// The account whose password was wrong: what a lock-out counts.
    #[must_use]
    pub fn failed_user(&self) -> Option<&str> {
        match self {
            Self::WrongCredentials { user } => Some(user),
            _ => None,
        }
    }
}
