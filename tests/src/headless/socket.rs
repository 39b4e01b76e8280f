//! A TCP stream that counts, and the splitting of what TLS carries into PDUs.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use ironrdp_pdu::PduHint;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// One read from the socket: larger than any TLS record.
const READ_SIZE: usize = 64 * 1024;

/// Counts the bytes that come out of a TCP stream.
pub(super) struct Counted {
    stream: TcpStream,
    received: Arc<AtomicU64>,
}

impl Counted {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, received: Arc::default() }
    }

    /// The counter, which goes on counting when the stream is wrapped in TLS.
    pub(super) fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, into);
        self.received.fetch_add((into.filled().len() - before) as u64, Ordering::Relaxed);
        result
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A stream and what was read from it beyond the last PDU.
pub(super) struct Framed<S> {
    stream: S,
    buffer: Vec<u8>,
    /// When the newest bytes of the buffer came.
    pub(super) arrived: Instant,
    /// All bytes that came out of `stream`.
    pub(super) received: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Framed<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new(), arrived: Instant::now(), received: 0 }
    }

    /// The stream, for TLS to wrap. Fails when the server has sent more than it should have.
    pub(super) fn into_stream(self) -> Result<S> {
        ensure!(self.buffer.is_empty(), "the server sent {} bytes too early", self.buffer.len());
        Ok(self.stream)
    }

    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    /// The next PDU as `hint` measures it. Cancel safe.
    pub(super) async fn read_by_hint(&mut self, hint: &dyn PduHint) -> Result<Vec<u8>> {
        loop {
            match hint.find_size(&self.buffer).context("cannot tell the size of a PDU")? {
                Some((_, size)) if self.buffer.len() >= size => return Ok(self.take(size)),
                _ => self.fill().await?,
            }
        }
    }

    /// The next TPKT or fast-path PDU. Cancel safe.
    pub(super) async fn read_pdu(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(pdu) = self.buffered_pdu()? {
                return Ok(pdu);
            }
            self.fill().await?;
        }
    }

    /// The next PDU when it is here already.
    fn buffered_pdu(&mut self) -> Result<Option<Vec<u8>>> {
        match ironrdp_pdu::find_size(&self.buffer).context("cannot tell the size of a PDU")? {
            Some(info) if self.buffer.len() >= info.length => Ok(Some(self.take(info.length))),
            _ => Ok(None),
        }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    async fn fill(&mut self) -> Result<()> {
        self.buffer.reserve(READ_SIZE);
        let read = self.stream.read_buf(&mut self.buffer).await?;
        if read == 0 {
            bail!("the server closed the connection");
        }
        self.arrived = Instant::now();
        self.received += read as u64;
        Ok(())
    }

    fn take(&mut self, size: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(size);
        std::mem::replace(&mut self.buffer, rest)
    }
}
