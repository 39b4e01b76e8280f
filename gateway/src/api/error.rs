//! Problems as answers.

use std::io;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use vmm::{Cause, CheckpointError, DiskError, EditError, HostError, JobsError, LibraryError, RequestError};

use crate::problem::{Code, ErrorBody, Problem};

/// What a handler returns.
pub(super) type Answer<T> = Result<T, Problem>;

/// A JSON body; a bad one is answered as every other problem is.
pub(super) struct Body<T>(pub(super) T);

/// A part of the path; likewise.
pub(super) struct Part<T>(pub(super) T);

/// What follows the `?`; likewise.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let Json(value) = Json::from_request(request, state).await?;
        Ok(Self(value))
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Part<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(value) = Path::from_request_parts(parts, state).await?;
        Ok(Self(value))
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let axum::extract::Query(value) = axum::extract::Query::from_request_parts(parts, state).await?;
        Ok(Self(value))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorBody { error: self })).into_response()
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(Code::Invalid, rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(Code::Invalid, rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(Code::Invalid, rejection.body_text())
    }
}

impl From<RequestError> for Problem {
    fn from(error: RequestError) -> Self {
        let code = match &error {
            RequestError::Refused(_) => Code::Conflict,
            RequestError::Failed { cause: Cause::Invalid, .. } => Code::Invalid,
            RequestError::Failed { cause: Cause::Missing, .. } => Code::NotFound,
            RequestError::Failed { cause: Cause::InUse, .. } => Code::Conflict,
            RequestError::Failed { cause: Cause::Failure, .. } | RequestError::HostEnded { .. } => Code::Internal,
        };
        Self::new(code, error)
    }
}

impl From<HostError> for Problem {
    fn from(error: HostError) -> Self {
        let code = match error {
            HostError::Request(error) => return error.into(),
            HostError::Jobs(error) => return error.into(),
            HostError::Io { .. } => Code::Internal,
            HostError::Invalid(_) => Code::Invalid,
            HostError::Taken { .. } => Code::Conflict,
            HostError::Unknown(_) => Code::NotFound,
        };
        Self::new(code, error)
    }
}

impl From<EditError> for Problem {
    fn from(error: EditError) -> Self {
        let (code, hint) = match error {
            EditError::Definition(_) => (Code::Invalid, None),
            EditError::Changed(_) => (Code::Conflict, Some("begin again with what is in it now")),
            EditError::Refused(_) => (Code::Conflict, None),
            EditError::Io { .. } => (Code::Internal, None),
        };
        Self { hint: hint.map(Into::into), ..Self::new(code, error) }
    }
}

impl From<LibraryError> for Problem {
    fn from(error: LibraryError) -> Self {
        let code = match error {
            LibraryError::Disk(error) => return error.into(),
            LibraryError::Host(error) => return error.into(),
            LibraryError::Jobs(error) => return error.into(),
            LibraryError::NoEntry { .. } => Code::Invalid,
            LibraryError::InUse { .. } | LibraryError::Unfit { .. } => Code::Conflict,
            LibraryError::Io { ref error, .. } => match error.kind() {
                io::ErrorKind::NotFound => Code::NotFound,
                io::ErrorKind::AlreadyExists => Code::Conflict,
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Code::Forbidden,
                _ => Code::Internal,
            },
        };
        Self::new(code, error)
    }
}

impl From<JobsError> for Problem {
    fn from(error: JobsError) -> Self {
        let (code, hint) = match &error {
            JobsError::Io { .. } => (Code::Internal, None),
            JobsError::Unknown(_) => (Code::NotFound, Some("`fanlight job list` names them")),
            JobsError::TooMany | JobsError::NotCancelled { .. } => (Code::Conflict, None),
        };
        Self { hint: hint.map(Into::into), ..Self::new(code, error) }
    }
}

impl From<DiskError> for Problem {
    fn from(error: DiskError) -> Self {
        let (code, hint) = match error {
            DiskError::Jobs(error) => return error.into(),
            DiskError::Invalid(_) => (Code::Invalid, None),
            DiskError::UnclearFormat { .. } => (Code::Invalid, Some("say it with --format or --source-format")),
            DiskError::Exists(_) => (Code::Conflict, Some("choose another name")),
            DiskError::InUse { .. } | DiskError::Needed { .. } => (Code::Conflict, None),
            DiskError::Doubted { .. } => (Code::Conflict, Some("`--force` deletes it all the same")),
            DiskError::Unreadable { ref error, .. } => match error.kind() {
                io::ErrorKind::NotFound => (Code::NotFound, None),
                io::ErrorKind::PermissionDenied => (Code::Forbidden, None),
                _ => (Code::Internal, None),
            },
            DiskError::NoProgram { .. } => (Code::Internal, Some("`apt-get install qemu-utils`")),
            DiskError::NoSpace { .. } | DiskError::Unwritable { .. } | DiskError::Refused(_) => (Code::Internal, None),
        };
        Self { hint: hint.map(Into::into), ..Self::new(code, error) }
    }
}

impl From<CheckpointError> for Problem {
    fn from(error: CheckpointError) -> Self {
        let (code, hint) = match error {
            CheckpointError::Request(error) => return error.into(),
            CheckpointError::Jobs(error) => return error.into(),
            CheckpointError::Unknown(_) => (Code::NotFound, Some("`fanlight checkpoint list VM` names them")),
            CheckpointError::Exists(_) => (Code::Conflict, Some("choose another name")),
            CheckpointError::Invalid(_) => (Code::Invalid, None),
            CheckpointError::Disks(_) => (
                Code::Conflict,
                Some("`fanlight disk move VM DISK FILE.qcow2` brings a disk to where it can, also while the VM runs"),
            ),
            CheckpointError::Impossible(_) | CheckpointError::Stopped => (Code::Conflict, None),
            CheckpointError::Book { .. } | CheckpointError::Unseen(_) | CheckpointError::CutOff(_) => {
                (Code::Internal, None)
            }
        };
        Self { hint: hint.map(Into::into), ..Self::new(code, error) }
    }
}

pub(super) async fn no_such_path() -> Problem {
    Problem::new(Code::NotFound, "there is no such path").hint("the paths start with /v1/")
}

pub(super) async fn no_such_method() -> Response {
    let problem = Problem::new(Code::Invalid, "this path does not take that method");
    (StatusCode::METHOD_NOT_ALLOWED, Json(ErrorBody { error: problem })).into_response()
}
