//! The command line's end of the API.

use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::files::SocketPath;
use crate::problem::{Code, ErrorBody, Problem};
use crate::state::StateFolder;

/// Largest answer: a screenshot of the largest monitor fits.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// A service that does not even take the connection hangs.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// A connection to the service of a state folder, made for each request.
#[derive(Debug, Clone)]
pub struct Client {
    state: StateFolder,
}

impl Client {
    /// A client of the service on `state`.
    #[must_use]
    pub fn new(state: StateFolder) -> Self {
        Self { state }
    }

    /// Whether a service takes connections.
    pub async fn is_running(&self) -> bool {
        self.connect().await.is_ok()
    }

    /// Gets a value.
    ///
    /// # Errors
    ///
    /// What the service answered, or [`Code::NoService`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        decode(&self.request(Method::GET, path, Bytes::new()).await?)
    }

    /// Gets bytes.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn get_bytes(&self, path: &str) -> Result<Bytes, Problem> {
        self.request(Method::GET, path, Bytes::new()).await
    }

    /// Sends a value and gets another.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Problem> {
        let body = serde_json::to_vec(body).map_err(|error| Problem::new(Code::Internal, error))?;
        decode(&self.request(Method::POST, path, body.into()).await?)
    }

    /// Puts a value in place of another.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Problem> {
        let body = serde_json::to_vec(body).map_err(|error| Problem::new(Code::Internal, error))?;
        decode(&self.request(Method::PUT, path, body.into()).await?)
    }

    /// Deletes something.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn delete(&self, path: &str) -> Result<(), Problem> {
        self.request(Method::DELETE, path, Bytes::new()).await.map(drop)
    }

    /// Deletes something, and gets what that led to.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn delete_for<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        decode(&self.request(Method::DELETE, path, Bytes::new()).await?)
    }

    async fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, Problem> {
        let stream = self.connect().await?;
        let broken = |error: &dyn std::fmt::Display| {
            Problem::new(Code::Internal, format!("the service broke off: {error}"))
                .hint("its log says more; `fanlight status` tells whether it still runs")
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "fanlight")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| Problem::new(Code::Invalid, error))?;
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|error| broken(&error))?;
        let body = body.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        let error = serde_json::from_slice::<ErrorBody>(&body);
        Err(error
            .map_or_else(|_| Problem::new(Code::Internal, format!("the service answered {status}")), |body| body.error))
    }

    async fn connect(&self) -> Result<UnixStream, Problem> {
        let socket = self.state.socket();
        let path = SocketPath::new(&socket).map_err(|error| self.unreachable(&error))?;
        match timeout(CONNECT_DEADLINE, UnixStream::connect(path.path())).await {
            Ok(result) => result.map_err(|error| self.unreachable(&error)),
            Err(_) => Err(Problem::new(Code::Internal, "the service does not answer")),
        }
    }

    fn unreachable(&self, error: &io::Error) -> Problem {
        let folder = self.state.path().display();
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                Problem::new(Code::Forbidden, format!("not permitted to use the service on {folder}"))
                    .hint("run this as the user the service runs as, or as root")
            }
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Problem::new(Code::NoService, format!("no service runs on {folder}"))
                    .hint("start it with `fanlight serve`, or choose another folder with --state")
            }
            _ => Problem::new(Code::Internal, format!("cannot reach the service on {folder}: {error}")),
        }
    }
}

/// A name as one segment of a path.
#[must_use]
pub fn segment(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    // No body is `null`: the answer of requests that have nothing to say.
    let body = if body.is_empty() { b"null" } else { body };
    serde_json::from_slice(body)
        .map_err(|error| Problem::new(Code::Internal, format!("the answer makes no sense: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_one_segment() {
        assert_eq!(segment("web-01.a_b"), "web-01.a_b");
        assert_eq!(segment("a/b ä"), "a%2Fb%20%C3%A4");
        assert_eq!(segment(".."), "..");
    }

    #[tokio::test]
    async fn a_folder_without_a_service_is_told_apart() {
        let folder = crate::testing::TempFolder::new("client");
        let client = Client::new(StateFolder::new(folder.path()));
        assert!(!client.is_running().await);
        let error = client.get::<()>("/v1/status").await.unwrap_err();
        assert_eq!(error.code, Code::NoService);
    }
}
