//! The bytes between the port of one QEMU and the host's core.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use enhanced_session::control::PciSlot;
use enhanced_session::endpoint::{Host, HostConfig};
use enhanced_session::region::Mapping;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use vmm::BusMemory;

/// Read from the port at a time.
const READ: usize = 64 * 1024;

/// A connection to the port of one QEMU, and the core that knows what was said on it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) generation: u64,
    pub(super) host: Host<Mapping>,
    /// None while it is to be made anew.
    stream: Option<Stream>,
    /// What the core has given out and the port has not taken.
    out: Vec<u8>,
    input: Box<[u8]>,
}

/// The port's stream, which wakes who waits for it no more than it must.
///
/// A socket tells that it can be written to whenever the other end has read something, and each time that would wake. So
/// a second descriptor waits for room, and only while there is none.
#[derive(Debug)]
pub(super) struct Stream {
    input: AsyncFd<UnixStream>,
    room: Option<AsyncFd<UnixStream>>,
}

impl Link {
    /// A core for the QEMU of this generation, at the other end of `stream`.
    pub(super) fn new(
        generation: u64,
        stream: Stream,
        memory: Option<&BusMemory>,
        uuid: uuid::Uuid,
        now: Instant,
    ) -> Self {
        let pci_slot = memory.and_then(|memory| PciSlot::from_wire(memory.pci_slot()));
        let config = HostConfig { pci_slot, ..HostConfig::new(uuid) };
        let host = Host::new(config, memory.and_then(map), Box::new(random), now);
        Self { generation, host, stream: Some(stream), out: Vec::new(), input: vec![0; READ].into_boxed_slice() }
    }

    /// Goes on with another connection to the same QEMU.
    pub(super) fn reconnected(&mut self, stream: Stream) {
        self.out.clear();
        self.stream = Some(stream);
    }

    pub(super) const fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Waits until bytes can be read, or written when some wait. Cancel safe.
    pub(super) async fn ready(&self) {
        let Some(stream) = &self.stream else { return std::future::pending().await };
        stream.ready(self.host.wants_bytes()).await;
    }

    /// Reads once what is there and writes what can be written. `false`: the connection has ended.
    pub(super) fn turn(&mut self, now: Instant) -> bool {
        let alive = self.read(now) && self.write(now);
        if !alive {
            self.stream = None;
            self.out.clear();
            self.host.handle_port_closed(now);
        }
        alive
    }

    fn read(&mut self, now: Instant) -> bool {
        let Some(stream) = self.stream.as_ref().filter(|_| self.host.wants_bytes()) else { return self.is_connected() };
        match stream.read(&mut self.input) {
            Ok(0) => false,
            Ok(count) => {
                self.host.handle_bytes(now, self.input.get(..count).unwrap_or_default());
                true
            }
            Err(error) => would_block(&error),
        }
    }

    /// Gives the port what there is, most urgent first. The core is asked again only when all of the last is gone: what
    /// has left it cannot be overtaken.
    pub(super) fn write(&mut self, now: Instant) -> bool {
        let Some(stream) = &mut self.stream else { return true };
        loop {
            if self.out.is_empty() && !self.host.poll_transmit(now, &mut self.out) {
                stream.room = None;
                return true;
            }
            match stream.write(&self.out) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) => return would_block(&error),
            }
        }
    }
}

impl Stream {
    /// Must be called on a runtime.
    ///
    /// # Errors
    ///
    /// When the system does not watch it.
    pub(super) fn new(stream: tokio::net::UnixStream) -> io::Result<Self> {
        Ok(Self { input: watch(stream.into_std()?, Interest::READABLE)?, room: None })
    }

    /// Waits until there is something to read, if that is wanted, or room again for what found none. An error shows again
    /// when it is read or written. Cancel safe.
    async fn ready(&self, wants_bytes: bool) {
        let input = async {
            match wants_bytes {
                true => drop(self.input.readable().await),
                false => std::future::pending().await,
            }
        };
        let room = async {
            match &self.room {
                Some(room) => drop(room.writable().await),
                None => std::future::pending().await,
            }
        };
        // Whoever loses finds the same the next time.
        tokio::select! {
            () = input => {}
            () = room => {}
        }
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.try_io(Interest::READABLE, |mut stream| stream.read(buffer))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(room) = &self.room {
            return room.try_io(Interest::WRITABLE, |mut stream| stream.write(bytes));
        }
        let written = self.input.get_ref().write(bytes);
        if written.as_ref().is_err_and(would_block) {
            self.room = Some(watch(self.input.get_ref().try_clone()?, Interest::WRITABLE)?);
        }
        written
    }
}

#[expect(deprecated, reason = "its successor is `unsafe` for types that may not own what they name; this one does")]
pub(super) fn watch<T: AsRawFd>(file: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(file, interest)
}

fn map(memory: &BusMemory) -> Option<Arc<Mapping>> {
    let size = usize::try_from(memory.size()).ok()?;
    match Mapping::new(memory, size) {
        Ok(mapping) => Some(Arc::new(mapping)),
        Err(error) => {
            tracing::warn!(%error, "the bus's memory cannot be mapped; its port carries everything");
            None
        }
    }
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Epochs and nonces that a guest cannot guess.
fn random() -> u64 {
    let mut bytes = [0; 8];
    // The system's source does not fail once it has been seeded, which is before the first process.
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn is_ready(stream: &Stream, wants_bytes: bool) -> bool {
        let ready = pin!(stream.ready(wants_bytes));
        ready.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[tokio::test]
    async fn a_stream_waits_for_room_only_while_there_is_none() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("it can");
        let mut stream = Stream::new(tokio::net::UnixStream::from_std(ours).expect("a stream")).expect("a stream");
        assert_eq!(stream.write(b"hello").expect("room"), 5);
        theirs.read_exact(&mut [0; 5]).expect("hello");
        tokio::task::yield_now().await;
        assert!(!is_ready(&stream, true), "there is nothing to do");
        let chunk = vec![0; 64 * 1024];
        let mut sent = 0;
        while let Ok(count) = stream.write(&chunk) {
            sent += count;
        }
        theirs.read_exact(&mut vec![0; sent]).expect("all of it");
        stream.ready(true).await;
        assert_eq!(stream.write(b"again").expect("room"), 5);
        theirs.write_all(b"answer").expect("room");
        stream.room = None;
        stream.ready(true).await;
        assert_eq!(stream.read(&mut [0; 64]).expect("the answer"), 6);
        assert!(!is_ready(&stream, false), "nobody wants to read");
    }
}
