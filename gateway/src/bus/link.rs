//! The bytes between the port of one QEMU and the host's core.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use enhanced_session::control::PciSlot;
use enhanced_session::endpoint::{Host, HostConfig};
use enhanced_session::region::Mapping;
use tokio::io::Interest;
use tokio::net::UnixStream;
use vmm::{BusConnection, BusMemory};

/// Read from the port at a time.
const READ: usize = 64 * 1024;

/// A connection to the port of one QEMU, and the core that knows what was said on it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) generation: u64,
    pub(super) host: Host<Mapping>,
    /// None while it is to be made anew.
    stream: Option<UnixStream>,
    /// What the core has given out and the port has not taken.
    out: Vec<u8>,
    input: Box<[u8]>,
}

impl Link {
    /// A core for the QEMU at the other end of `connection`.
    pub(super) fn new(connection: BusConnection, uuid: uuid::Uuid, now: Instant) -> Self {
        let BusConnection { generation, stream, memory } = connection;
        let pci_slot = memory.as_ref().and_then(|memory| PciSlot::from_wire(memory.pci_slot()));
        let config = HostConfig { pci_slot, ..HostConfig::new(uuid) };
        let host = Host::new(config, memory.as_ref().and_then(map), Box::new(random), now);
        Self { generation, host, stream: Some(stream), out: Vec::new(), input: vec![0; READ].into_boxed_slice() }
    }

    /// Goes on with another connection to the same QEMU.
    pub(super) fn reconnected(&mut self, stream: UnixStream) {
        self.out.clear();
        self.stream = Some(stream);
    }

    pub(super) const fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Waits until bytes can be read, or written when some wait. Cancel safe.
    pub(super) async fn ready(&self) {
        let Some(stream) = &self.stream else { return std::future::pending().await };
        let interest = match (self.host.wants_bytes(), self.out.is_empty()) {
            (true, true) => Interest::READABLE,
            (true, false) => Interest::READABLE | Interest::WRITABLE,
            (false, _) => Interest::WRITABLE,
        };
        // An error shows again when it is read or written.
        let _ = stream.ready(interest).await;
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
        match stream.try_read(&mut self.input) {
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
        let Some(stream) = &self.stream else { return true };
        loop {
            if self.out.is_empty() && !self.host.poll_transmit(now, &mut self.out) {
                return true;
            }
            match stream.try_write(&self.out) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) => return would_block(&error),
            }
        }
    }
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
