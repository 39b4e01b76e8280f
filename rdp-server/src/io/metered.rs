//! The socket as the login sees it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A socket that gives back what was read too far, and stops when a stranger sends too much.
#[derive(Debug)]
pub struct Metered<S> {
    inner: S,
    unread: Vec<u8>,
    at: usize,
    budget: Option<usize>,
}

/// The budget of [`Metered`] is used up.
#[derive(Debug, thiserror::Error)]
#[error("byte budget exceeded")]
pub(super) struct OverBudget;

impl<S> Metered<S> {
    pub(super) const fn new(inner: S, budget: usize) -> Self {
        Self { inner, unread: Vec::new(), at: 0, budget: Some(budget) }
    }

    /// The socket itself.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    pub(super) fn unread(&mut self, bytes: Vec<u8>) {
        self.unread = bytes;
        self.at = 0;
    }

    pub(super) const fn lift_budget(&mut self) {
        self.budget = None;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(left) = this.unread.get(this.at..).filter(|left| !left.is_empty()) {
            let count = left.len().min(buffer.remaining());
            buffer.put_slice(left.get(..count).unwrap_or_default());
            this.at += count;
            if this.at == this.unread.len() {
                this.unread(Vec::new());
            }
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
        if let Some(budget) = &mut this.budget {
            let count = buffer.filled().len() - before;
            match budget.checked_sub(count) {
                Some(rest) => *budget = rest,
                None => return Poll::Ready(Err(io::Error::other(OverBudget))),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
