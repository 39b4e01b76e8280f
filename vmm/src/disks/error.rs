//! What cannot be done with an image.

use std::io;
use std::path::{Path, PathBuf};

use crate::jobs::JobsError;
use crate::lifecycle::Cause;

/// A disk image cannot be made, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The request says what cannot be.
    #[error("{0}")]
    Invalid(String),
    /// Nobody has said which format it is.
    #[error("the format of {} has to be named: {what}", path.display())]
    UnclearFormat {
        /// The image.
        path: PathBuf,
        /// What is known.
        what: String,
    },
    /// Something has the name.
    #[error("{} is there already, and nothing is overwritten", .0.display())]
    Exists(PathBuf),
    /// Something is at work on it.
    #[error("{} is in use: {by}", path.display())]
    InUse {
        /// The image or device.
        path: PathBuf,
        /// Who, and how.
        by: String,
    },
    /// Something else would be lost with it.
    #[error("{} is needed: {by}", path.display())]
    Needed {
        /// The image.
        path: PathBuf,
        /// By what.
        by: String,
    },
    /// Something else may be lost with it; it is deleted by force only.
    #[error("{} may be needed: {reason}", path.display())]
    Doubted {
        /// The image.
        path: PathBuf,
        /// By what.
        reason: String,
    },
    /// There is not enough space.
    #[error("{} needs about {needed} bytes, and {free} are free", folder.display())]
    NoSpace {
        /// The folder.
        folder: PathBuf,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// It is not there, or may not be read.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// The image.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write {}: {error}", path.display())]
    Unwritable {
        /// The image.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// `qemu-img` is not there.
    #[error("cannot run {}: {error}", program.display())]
    NoProgram {
        /// What was run.
        program: PathBuf,
        /// Why it could not be.
        error: io::Error,
    },
    /// `qemu-img` says no.
    #[error("{0}")]
    Refused(String),
    /// There is no room for a job.
    #[error(transparent)]
    Jobs(#[from] JobsError),
}

impl DiskError {
    /// What kind of reason it is.
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Self::Invalid(_) | Self::UnclearFormat { .. } => Cause::Invalid,
            Self::Exists(_) | Self::InUse { .. } | Self::Needed { .. } | Self::Doubted { .. } => Cause::InUse,
            Self::Unreadable { error, .. } if error.kind() == io::ErrorKind::NotFound => Cause::Missing,
            _ => Cause::Failure,
        }
    }

    pub(crate) fn unreadable(path: &Path, error: io::Error) -> Self {
        Self::Unreadable { path: path.into(), error }
    }

    pub(crate) fn unwritable(path: &Path, error: io::Error) -> Self {
        Self::Unwritable { path: path.into(), error }
    }

    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid(reason.into())
    }
}
