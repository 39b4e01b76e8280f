//! The gateway's HTTP API on its unix socket, as far as tests need it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// A request that takes longer hangs: guests start within seconds.
const DEADLINE: Duration = Duration::from_secs(60);

/// The API of the gateway on one state folder. Cheap to clone; connects for each request.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
}

impl Api {
    pub(crate) fn new(state: &Path) -> Self {
        Self { socket: state.join("api.sock") }
    }

    /// Gets a value.
    ///
    /// # Errors
    ///
    /// What the gateway says, or that there is none.
    pub fn get(&self, path: &str) -> Result<Value> {
        decode(&self.request("GET", path, "")?)
    }

    /// Gets bytes.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn get_bytes(&self, path: &str) -> Result<Vec<u8>> {
        self.request("GET", path, "")
    }

    /// Sends a value and gets another.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        decode(&self.request("POST", path, &body.to_string())?)
    }

    /// Deletes something.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn delete(&self, path: &str) -> Result<()> {
        self.request("DELETE", path, "").map(drop)
    }

    fn request(&self, method: &str, path: &str, body: &str) -> Result<Vec<u8>> {
        let what = || format!("{method} {path}");
        let mut stream = UnixStream::connect(&self.socket).with_context(what)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: fanlight\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        // In one piece: a server that answers before it has read a body resets the connection.
        stream.write_all(request.as_bytes()).with_context(what)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).with_context(what)?;
        body_of(&answer).with_context(what)
    }
}

/// The body of a response, when it tells of success.
fn body_of(answer: &[u8]) -> Result<Vec<u8>> {
    let end =
        answer.windows(4).position(|window| window == b"\r\n\r\n").context("an answer without an end of its head")?;
    let head = std::str::from_utf8(&answer[..end])?.to_ascii_lowercase();
    let body = &answer[end + 4..];
    ensure!(!head.contains("transfer-encoding"), "an answer in pieces");
    match head.split(' ').nth(1) {
        Some(status) if status.starts_with('2') => Ok(body.to_vec()),
        Some(status) => bail!("{status}: {}", String::from_utf8_lossy(body)),
        None => bail!("no status in {head:?}"),
    }
}

fn decode(body: &[u8]) -> Result<Value> {
    if body.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(body)?) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_success_has_a_body() {
        assert_eq!(body_of(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap(), b"{}");
        let error = body_of(b"HTTP/1.1 404 Not Found\r\n\r\nno such VM").unwrap_err().to_string();
        assert_eq!(error, "404: no such VM");
        assert!(body_of(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").is_err());
        assert!(body_of(b"").is_err());
    }
}
