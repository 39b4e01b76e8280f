//! What went wrong, in the one form that the API answers and the command line prints.

use serde::{Deserialize, Serialize};

use crate::certificate::CertificateError;
use crate::config::ConfigError;
use crate::listener::ListenError;
use crate::state::StateError;
use crate::users::{PasswordError, UserNameError, UsersError};

/// The body of every answer that is not a success.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: Problem,
}

/// What went wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Problem {
    /// Which kind, for programs.
    pub code: Code,
    /// What happened, for people.
    pub message: String,
    /// What can be done about it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
}

/// The kinds of problems. Each has one HTTP status and one exit code, and keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// Something here or in the system failed.
    Internal,
    /// The request makes no sense.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// Not possible in this state, or the name is taken.
    Conflict,
    /// No service runs on this state folder. Only the client reports it.
    NoService,
    /// Not permitted.
    Forbidden,
}

impl Code {
    /// The HTTP status.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Internal => 500,
            Self::Invalid => 422,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::NoService => 503,
            Self::Forbidden => 403,
        }
    }

    /// The exit code of the command line.
    #[must_use]
    pub fn exit(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::NoService => 5,
            Self::Forbidden => 6,
        }
    }
}

impl Problem {
    /// A problem without a hint.
    #[must_use]
    pub fn new(code: Code, message: impl std::fmt::Display) -> Self {
        Self { code, message: message.to_string(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl From<UsersError> for Problem {
    fn from(error: UsersError) -> Self {
        let code = match &error {
            UsersError::Exists(_) => Code::Conflict,
            UsersError::NotFound(_) => Code::NotFound,
            UsersError::Unreadable { .. } | UsersError::Invalid(_) | UsersError::Unwritable { .. } => Code::Internal,
        };
        Self::new(code, error)
    }
}

impl From<UserNameError> for Problem {
    fn from(error: UserNameError) -> Self {
        Self::new(Code::Invalid, error)
    }
}

impl From<PasswordError> for Problem {
    fn from(error: PasswordError) -> Self {
        let code = if matches!(error, PasswordError::Hash(_)) { Code::Internal } else { Code::Invalid };
        Self::new(code, error)
    }
}

impl From<StateError> for Problem {
    fn from(error: StateError) -> Self {
        match &error {
            StateError::InUse { .. } => Self::new(Code::Conflict, error)
                .hint("stop that one first, or give this one another folder with --state"),
            StateError::Newer { .. } => Self::new(Code::Conflict, error)
                .hint("use the newer fanlight, or give this one another folder with --state; nothing was changed"),
            StateError::Unusable { .. } => {
                Self::new(Code::Internal, error).hint("choose another folder with --state or FANLIGHT_STATE")
            }
        }
    }
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        let code = if matches!(error, ConfigError::Invalid { .. }) { Code::Invalid } else { Code::Internal };
        Self::new(code, error)
    }
}

impl From<CertificateError> for Problem {
    fn from(error: CertificateError) -> Self {
        Self::new(Code::Internal, error)
    }
}

impl From<ListenError> for Problem {
    fn from(error: ListenError) -> Self {
        Self::new(Code::Internal, error)
            .hint("another program may use the port: choose one with --listen, or under [listen] in fanlight.toml")
    }
}
