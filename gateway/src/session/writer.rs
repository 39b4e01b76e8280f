//! The one task that writes to a client: answers before pictures, never more than one picture ahead.

use std::time::{Duration, Instant};

use rdp_server::io::FrameWriter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::stats::SessionStats;

/// Answers and control PDUs that may wait for the socket. The session stops reading its client at this many.
const CONTROL_QUEUE: usize = 32;
/// Pictures that may wait for the socket: one is being written, the next is not encoded before there is room.
const GRAPHICS_QUEUE: usize = 1;
/// A client that takes no byte for this long is gone.
const STALL_LIMIT: Duration = Duration::from_secs(60);

/// The session's end of the writer.
#[derive(Debug, Clone)]
pub(super) struct Outbox {
    /// For answers and control PDUs.
    pub(super) control: mpsc::Sender<Vec<u8>>,
    /// For pictures and pointers: room here is what an encoder waits for.
    pub(super) graphics: mpsc::Sender<Picture>,
}

/// Encoded pictures or pointers.
#[derive(Debug)]
pub(super) struct Picture {
    /// Whole PDUs.
    pub(super) pdus: Vec<u8>,
    /// When the oldest change in it was reported.
    pub(super) since: Option<Instant>,
}

/// The writer's end.
pub(super) struct Writer<S> {
    stream: FrameWriter<S>,
    control: mpsc::Receiver<Vec<u8>>,
    graphics: mpsc::Receiver<Picture>,
    stats: SessionStats,
}

/// Why the writer ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The client takes nothing.
    #[error("client took no data for {} s", STALL_LIMIT.as_secs())]
    Stalled,
    /// The socket failed.
    #[error("cannot write to the client: {0}")]
    Io(#[from] std::io::Error),
}

/// A writer on `stream`, and the queues that lead to it.
pub(super) fn writer<S: AsyncRead + AsyncWrite>(stream: FrameWriter<S>, stats: SessionStats) -> (Outbox, Writer<S>) {
    let (control_in, control) = mpsc::channel(CONTROL_QUEUE);
    let (graphics_in, graphics) = mpsc::channel(GRAPHICS_QUEUE);
    (Outbox { control: control_in, graphics: graphics_in }, Writer { stream, control, graphics, stats })
}

impl<S: AsyncRead + AsyncWrite + Unpin> Writer<S> {
    /// Writes until every [`Outbox`] is dropped and the queues are empty, then closes the stream.
    pub(super) async fn run(mut self) -> Result<(), WriteError> {
        loop {
            // Race semantics: a message that loses stays in its queue.
            tokio::select! {
                biased;
                Some(pdus) = self.control.recv() => self.write(&pdus).await?,
                Some(picture) = self.graphics.recv() => {
                    self.write(&picture.pdus).await?;
                    self.stats.sent(picture.pdus.len(), picture.since.map(|since| since.elapsed()));
                }
                else => break,
            }
        }
        timeout(STALL_LIMIT, self.stream.shutdown()).await.map_err(|_| WriteError::Stalled)??;
        Ok(())
    }

    async fn write(&mut self, pdus: &[u8]) -> Result<(), WriteError> {
        Ok(timeout(STALL_LIMIT, self.stream.write(pdus)).await.map_err(|_| WriteError::Stalled)??)
    }
}
