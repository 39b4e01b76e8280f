//! An active session's connection, read and written in whole PDUs.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_rustls::server::TlsStream;

use super::metered::Metered;
use super::write_flushed;
use crate::accept::Handshake;
use crate::front::{Frame, FrameSplitter, FramingError};

/// Bytes read at a time.
const READ_BYTES: usize = 16 * 1024;

/// An active session on its socket.
#[derive(Debug)]
pub struct Accepted<S> {
    pub(super) stream: TlsStream<Metered<S>>,
    pub(super) splitter: FrameSplitter,
    pub(super) handshake: Handshake,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Accepted<S> {
    /// What the handshake found out.
    #[must_use]
    pub const fn handshake(&self) -> &Handshake {
        &self.handshake
    }

    /// Takes the connection apart for the session. Bytes that came behind the handshake are in the reader.
    #[must_use]
    pub fn into_split(self) -> (FrameReader<S>, FrameWriter<S>, Handshake) {
        let (read, write) = tokio::io::split(self.stream);
        let reader = FrameReader { stream: read, splitter: self.splitter, buffer: vec![0; READ_BYTES] };
        (reader, FrameWriter { stream: write }, self.handshake)
    }
}

/// Why a session's client cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It sent what is no PDU.
    #[error("client misbehaved: {0}")]
    Framing(#[from] FramingError),
    /// It went away within a PDU.
    #[error("client closed the connection within a pdu")]
    Truncated,
    /// The socket or TLS failed.
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
}

/// The reading half of a session's connection.
#[derive(Debug)]
pub struct FrameReader<S> {
    stream: ReadHalf<TlsStream<Metered<S>>>,
    splitter: FrameSplitter,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> FrameReader<S> {
    /// The next PDU; none when the client has closed the connection between two.
    ///
    /// Cancel safe: bytes are either still in the socket or kept for the next call.
    ///
    /// # Errors
    ///
    /// When there is no next PDU to be had.
    pub async fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.splitter.next_frame()? {
                return Ok(Some(frame));
            }
            let count = match self.stream.read(&mut self.buffer).await {
                Ok(count) => count,
                // Most clients leave without TLS's goodbye.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                Err(error) => return Err(error.into()),
            };
            if count == 0 {
                let whole = self.splitter.pending().is_empty();
                return if whole { Ok(None) } else { Err(FrameError::Truncated) };
            }
            self.splitter.push(self.buffer.get(..count).unwrap_or_default());
        }
    }
}

/// The writing half of a session's connection.
#[derive(Debug)]
pub struct FrameWriter<S> {
    stream: WriteHalf<TlsStream<Metered<S>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> FrameWriter<S> {
    /// Writes whole PDUs and hands them to the socket.
    ///
    /// Not cancel safe: a dropped future may have written a part.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub async fn write(&mut self, pdus: &[u8]) -> io::Result<()> {
        write_flushed(&mut self.stream, pdus).await
    }

    /// Says goodbye in TLS and closes this direction.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}
