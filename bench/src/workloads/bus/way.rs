//! Ways from one process to another, message by message: a ring of the bus, a SOCK_SEQPACKET pair, a pipe.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use enhanced_session::packet::{Fragment, PacketHeader, PacketType};
use enhanced_session::region::{ARENA, Direction, Mapping};
use enhanced_session::ring::{Consumer, Kick, Producer, Push, Raiser, RingGrant, Watcher, max_payload};
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// The end that sends.
pub(super) trait Sender {
    /// Sends a message; others may wait for [`end_burst`](Self::end_burst).
    fn send(&mut self, message: &[u8]) -> Result<()>;

    /// Sends what waits.
    fn end_burst(&mut self) -> Result<()>;

    /// Calls of the system by which it reached the other end: kicks, or one for each message.
    fn signals(&self) -> u64;
}

/// The end that receives.
pub(super) trait Receiver {
    /// Waits for a message of `length` bytes, which replaces what `message` held.
    fn receive(&mut self, length: usize, message: &mut Vec<u8>) -> Result<()>;

    /// Gives back what the last messages took. Returns how often the other end was kicked.
    fn end(&mut self) -> Result<u64>;
}

/// Bytes of the ring's data.
pub(super) const RING: u32 = 1 << 20;
/// Bytes of the region that it lies in.
pub(super) const REGION: usize = 2 << 20;

const CHANNEL: u32 = 1;
const CHANNELS: u32 = 64;
const TAG: u32 = 1;

/// How an end of the ring wakes the other, and is woken: the pending map, and one byte on a socket for a KICK frame.
struct Kicks {
    raiser: Raiser<Arc<Mapping>>,
    watcher: Watcher<Arc<Mapping>>,
    socket: UnixStream,
    sent: u64,
}

impl Kicks {
    fn new(memory: &Arc<Mapping>, to: Direction, from: Direction, socket: UnixStream) -> Self {
        let raiser = Raiser::attach(Arc::clone(memory), to, CHANNELS);
        let watcher = Watcher::attach(Arc::clone(memory), from, CHANNELS);
        Self { raiser, watcher, socket, sent: 0 }
    }

    fn send(&mut self, kick: Kick) -> Result<()> {
        if kick == Kick::Needed && self.raiser.raise(CHANNEL) {
            self.sent += 1;
            self.socket.write_all(&[1])?;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        let mut pending = Vec::new();
        while pending.is_empty() {
            ensure!(self.socket.read(&mut [0; 64])? > 0, "the other process is gone");
            self.watcher.take(&mut pending);
        }
        Ok(())
    }
}

/// The end of a ring that fills it.
pub(super) struct RingSender {
    producer: Producer<Arc<Mapping>>,
    kicks: Kicks,
}

impl RingSender {
    /// Attaches to the ring in `memory`.
    pub(super) fn new(memory: &Arc<Mapping>, socket: UnixStream) -> Result<Self> {
        let producer = Producer::attach(Arc::clone(memory), grant()?, TAG);
        let kicks = Kicks::new(memory, Direction::HostToGuest, Direction::GuestToHost, socket);
        Ok(Self { producer, kicks })
    }
}

impl Sender for RingSender {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        let length = u32::try_from(message.len())?;
        let header = PacketHeader { length, packet_type: PacketType::Data, fragment: Fragment::Whole, txid: 0 };
        while self.producer.push(&header, &[message])? == Push::Full {
            self.end_burst()?;
            self.kicks.wait()?;
        }
        Ok(())
    }

    fn end_burst(&mut self) -> Result<()> {
        let kick = self.producer.publish()?;
        self.kicks.send(kick)
    }

    fn signals(&self) -> u64 {
        self.kicks.sent
    }
}

/// The end of a ring that empties it.
pub(super) struct RingReceiver {
    consumer: Consumer<Arc<Mapping>>,
    kicks: Kicks,
}

impl RingReceiver {
    /// Attaches to the ring in `memory`.
    pub(super) fn new(memory: &Arc<Mapping>, socket: UnixStream) -> Result<Self> {
        let consumer = Consumer::attach(Arc::clone(memory), grant()?, TAG);
        let kicks = Kicks::new(memory, Direction::GuestToHost, Direction::HostToGuest, socket);
        Ok(Self { consumer, kicks })
    }

    fn publish(&mut self) -> Result<()> {
        let kick = self.consumer.publish()?;
        self.kicks.send(kick)
    }
}

impl Receiver for RingReceiver {
    fn receive(&mut self, length: usize, message: &mut Vec<u8>) -> Result<()> {
        message.clear();
        while self.consumer.pop(message)?.is_none() {
            self.publish()?;
            self.kicks.wait()?;
        }
        ensure!(message.len() == length, "a message of {} bytes", message.len());
        // A large message is worth giving its room back at once; small ones are given back in bulk by the consumer.
        if length >= 4096 { self.publish() } else { Ok(()) }
    }

    fn end(&mut self) -> Result<u64> {
        self.publish()?;
        Ok(self.kicks.sent)
    }
}

fn grant() -> Result<RingGrant> {
    Ok(RingGrant::new(ARENA as u64, RING, max_payload(RING), REGION)?)
}

/// Either end of a SOCK_SEQPACKET pair, one message per call.
pub(super) struct Seqpacket {
    socket: OwnedFd,
    calls: u64,
}

impl Seqpacket {
    pub(super) const fn new(socket: OwnedFd) -> Self {
        Self { socket, calls: 0 }
    }
}

impl Sender for Seqpacket {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        self.calls += 1;
        let sent = send(&self.socket, message, SendFlags::NOSIGNAL)?;
        if sent == message.len() { Ok(()) } else { bail!("{sent} bytes were sent") }
    }

    fn end_burst(&mut self) -> Result<()> {
        Ok(())
    }

    fn signals(&self) -> u64 {
        self.calls
    }
}

impl Receiver for Seqpacket {
    fn receive(&mut self, length: usize, message: &mut Vec<u8>) -> Result<()> {
        message.resize(length, 0);
        let (_, received) = recv(&self.socket, &mut message[..], RecvFlags::empty())?;
        ensure!(received == length, "a message of {received} bytes");
        Ok(())
    }

    fn end(&mut self) -> Result<u64> {
        Ok(0)
    }
}

/// Either end of a pipe, one message per call where it fits.
pub(super) struct Pipe {
    pipe: File,
    calls: u64,
}

impl Pipe {
    pub(super) fn new(pipe: OwnedFd) -> Self {
        Self { pipe: File::from(pipe), calls: 0 }
    }
}

impl Sender for Pipe {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        self.calls += 1;
        self.pipe.write_all(message).context("the other process is gone")
    }

    fn end_burst(&mut self) -> Result<()> {
        Ok(())
    }

    fn signals(&self) -> u64 {
        self.calls
    }
}

impl Receiver for Pipe {
    fn receive(&mut self, length: usize, message: &mut Vec<u8>) -> Result<()> {
        message.resize(length, 0);
        Ok(self.pipe.read_exact(message)?)
    }

    fn end(&mut self) -> Result<u64> {
        Ok(0)
    }
}
