//! Rings between this process and another, over one memfd.
//!
//! The other process is this program again. Every round does each case once, so that a slow moment hits all of them;
//! medians are over the rounds, and ratios are of the same round. A measurement is short, since other work on the machine
//! takes whole time slices: most rounds are undisturbed.

use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use enhanced_session::region::Mapping;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::fcntl_setpipe_size;
use serde_json::json;

use super::way::{Pipe, REGION, RING, Receiver, RingReceiver, RingSender, Sender, Seqpacket};
use crate::machine::Span;
use crate::report::{Report, median};

/// Set in the other process: which way it receives by.
const PEER: &str = "FANLIGHT_BENCH_PEER";
const ROUNDS: usize = 31;
const COLD_BYTES: usize = 128 << 20;

const LARGE: Load = Load { messages: 1024, length: 64 << 10, burst: 1 };
const SMALL: Load = Load { messages: 400_000, length: 64, burst: 64 };
/// What takes a system call for each message gets fewer of them.
const SMALL_CALLS: Load = Load { messages: 20_000, ..SMALL };

/// What is sent in one measurement.
#[derive(Debug, Clone, Copy)]
struct Load {
    messages: u32,
    length: u32,
    /// Messages that are published together.
    burst: u32,
}

/// Runs the comparison and adds it to the report.
pub(super) fn measure(report: &mut Report) -> Result<()> {
    let span = Span::start(&[])?;
    let mut ways = [Way::ring()?, Way::seqpacket()?, Way::pipe()?];
    let mut copies = Copies::new();
    for _ in 0..ROUNDS {
        copies.round();
        for way in &mut ways {
            way.round()?;
        }
    }
    add_results(report, &copies, &ways, span.foreign()?);
    Ok(())
}

/// Receives, when this process is the other one.
pub(crate) fn serve_if_peer() -> Option<ExitCode> {
    let way = std::env::var(PEER).ok()?;
    Some(match serve(&way) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fanlight-bench: the receiving process: {error:#}");
            ExitCode::FAILURE
        }
    })
}

fn serve(way: &str) -> Result<()> {
    let data = std::io::stdin().as_fd().try_clone_to_owned()?;
    match way.split_once(':') {
        Some(("ring", path)) => {
            let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
            let memory = Arc::new(Mapping::new(&file, REGION)?);
            receive_loads(RingReceiver::new(&memory, UnixStream::from(data))?)
        }
        _ if way == "seqpacket" => receive_loads(Seqpacket::new(data)),
        _ if way == "pipe" => receive_loads(Pipe::new(data)),
        _ => bail!("there is no way `{way}`"),
    }
}

fn receive_loads(mut receiver: impl Receiver) -> Result<()> {
    let mut control = UnixStream::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    control.write_all(&[1])?;
    let mut message = Vec::new();
    while let Some(load) = Load::read_from(&mut control)? {
        for number in 0..load.messages {
            receiver.receive(load.length as usize, &mut message)?;
            ensure!(message.starts_with(&number.to_le_bytes()), "message {number} is another");
            black_box(&message);
        }
        control.write_all(&receiver.end()?.to_le_bytes())?;
    }
    Ok(())
}

/// A way, and what it took.
struct Way {
    name: &'static str,
    sender: Box<dyn Sender>,
    peer: Peer,
    small: Load,
    /// Bytes per second with large messages.
    bandwidth: Vec<f64>,
    /// Messages per second with small ones.
    rate: Vec<f64>,
    /// Signals per burst, of both ends, with large messages and with small ones.
    signals: [Vec<f64>; 2],
}

impl Way {
    fn ring() -> Result<Self> {
        let (memory, memfd) = Mapping::create("fanlight-bench", REGION)?;
        let memory = Arc::new(memory);
        let (ours, theirs) = UnixStream::pair()?;
        let sender = RingSender::new(&memory, ours)?;
        let path = format!("ring:/proc/{}/fd/{}", std::process::id(), memfd.as_raw_fd());
        Self::new("ring", SMALL, Box::new(sender), &path, theirs.into())
    }

    fn seqpacket() -> Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Self::new("seqpacket", SMALL_CALLS, Box::new(Seqpacket::new(ours)), "seqpacket", theirs)
    }

    fn pipe() -> Result<Self> {
        let (theirs, ours) = std::io::pipe()?;
        fcntl_setpipe_size(&ours, RING as usize)?;
        Self::new("pipe", SMALL_CALLS, Box::new(Pipe::new(ours.into())), "pipe", theirs.into())
    }

    fn new(name: &'static str, small: Load, sender: Box<dyn Sender>, role: &str, data: OwnedFd) -> Result<Self> {
        let peer = Peer::start(role, data)?;
        Ok(Self { name, sender, peer, small, bandwidth: Vec::new(), rate: Vec::new(), signals: Default::default() })
    }

    fn round(&mut self) -> Result<()> {
        let (seconds, signals) = self.send(LARGE)?;
        self.bandwidth.push(LARGE.bytes() / seconds);
        self.signals[0].push(signals);
        let (seconds, signals) = self.send(self.small)?;
        self.rate.push(f64::from(self.small.messages) / seconds);
        self.signals[1].push(signals);
        Ok(())
    }

    /// Sends a load; returns the time until the other end had it all, and the signals per burst.
    fn send(&mut self, load: Load) -> Result<(f64, f64)> {
        let mut message = vec![0x5A; load.length as usize];
        let signals = self.sender.signals() + self.peer.signals;
        self.peer.announce(load)?;
        let started = Instant::now();
        for number in 0..load.messages {
            message[..4].copy_from_slice(&number.to_le_bytes());
            self.sender.send(&message)?;
            if (number + 1).is_multiple_of(load.burst) {
                self.sender.end_burst()?;
            }
        }
        self.sender.end_burst()?;
        self.peer.finish()?;
        let seconds = started.elapsed().as_secs_f64();
        let signals = self.sender.signals() + self.peer.signals - signals;
        Ok((seconds, signals as f64 / f64::from(load.messages.div_ceil(load.burst))))
    }
}

/// The other process: its data come by standard input, and this by standard output.
struct Peer {
    process: Child,
    control: UnixStream,
    signals: u64,
}

impl Peer {
    fn start(role: &str, data: OwnedFd) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let process = Command::new(std::env::current_exe()?)
            .env(PEER, role)
            .stdin(Stdio::from(data))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .spawn()?;
        let mut peer = Self { process, control: ours, signals: 0 };
        peer.control.read_exact(&mut [0]).context("the receiving process did not start")?;
        Ok(peer)
    }

    fn announce(&mut self, load: Load) -> Result<()> {
        Ok(self.control.write_all(&load.encode())?)
    }

    fn finish(&mut self) -> Result<()> {
        let mut signals = [0; 8];
        self.control.read_exact(&mut signals).context("the receiving process is gone")?;
        self.signals = u64::from_le_bytes(signals);
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Load {
    fn bytes(self) -> f64 {
        f64::from(self.messages) * f64::from(self.length)
    }

    fn encode(self) -> [u8; 8] {
        (u64::from(self.messages) << 32 | u64::from(self.length)).to_le_bytes()
    }

    /// None at the end of the stream.
    fn read_from(control: &mut UnixStream) -> Result<Option<Self>> {
        let mut bytes = [0; 8];
        match control.read_exact(&mut bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let both = u64::from_le_bytes(bytes);
        Ok(Some(Self { messages: u32::try_from(both >> 32)?, length: (both & 0xffff_ffff) as u32, burst: 1 }))
    }
}

/// What `memcpy` does with large messages.
struct Copies {
    /// Larger than any cache.
    source: Vec<u8>,
    /// As large as the ring.
    target: Vec<u8>,
    /// Bytes per second from memory: where the messages of another process come from.
    cold: Vec<f64>,
    /// Bytes per second of the same message again and again, out of the cache, for information.
    hot: Vec<f64>,
}

impl Copies {
    fn new() -> Self {
        Self { source: vec![0x5A; COLD_BYTES], target: vec![1; RING as usize], cold: Vec::new(), hot: Vec::new() }
    }

    fn round(&mut self) {
        let cold = self.seconds(LARGE.length as usize);
        self.cold.push(LARGE.bytes() / cold);
        let hot = self.seconds(0);
        self.hot.push(LARGE.bytes() / hot);
    }

    /// The time of a load whose messages lie `stride` bytes apart.
    fn seconds(&mut self, stride: usize) -> f64 {
        let length = LARGE.length as usize;
        let started = Instant::now();
        for number in 0..LARGE.messages as usize {
            let (from, to) = (number * stride % COLD_BYTES, number * length % RING as usize);
            self.target[to..to + length].copy_from_slice(black_box(&self.source[from..from + length]));
            black_box(&mut self.target);
        }
        started.elapsed().as_secs_f64()
    }
}

fn add_results(report: &mut Report, copies: &Copies, [ring, others @ ..]: &[Way; 3], foreign: f64) {
    let rows = [ring].into_iter().chain(others).map(|way| {
        vec![
            ("way", json!(way.name)),
            ("64 KiB: GB/s", json!(median(&way.bandwidth) / 1e9)),
            ("% of memcpy", json!(100.0 * median(&ratios(&way.bandwidth, &copies.cold)))),
            ("signals per message", json!(median(&way.signals[0]))),
            ("64 B: million/s", json!(median(&way.rate) / 1e6)),
            ("signals per burst of 64", json!(median(&way.signals[1]))),
        ]
    });
    let title = format!(
        "Between two processes, median of {ROUNDS} rounds; memcpy {:.1} GB/s from memory and {:.1} GB/s in the cache; \
         foreign load {foreign} cores",
        median(&copies.cold) / 1e9,
        median(&copies.hot) / 1e9
    );
    report.table(title, rows.collect());
    report.at_least("64 KiB messages", 100.0 * median(&ratios(&ring.bandwidth, &copies.cold)), 60.0, "% of memcpy");
    report.at_least("64 B messages", median(&ring.rate) / 1e6, 1.0, "million/s");
    report.at_most("64 B messages, signals", median(&ring.signals[1]), 1.0, "per burst");
    for other in others {
        let bandwidth = median(&ratios(&ring.bandwidth, &other.bandwidth));
        report.at_least(format!("64 KiB messages, against a {}", other.name), bandwidth, 2.0, "×");
        let rate = median(&ratios(&ring.rate, &other.rate));
        report.at_least(format!("64 B messages, against a {}", other.name), rate, 3.0, "×");
    }
}

fn ratios(these: &[f64], to: &[f64]) -> Vec<f64> {
    these.iter().zip(to).map(|(this, to)| this / to).collect()
}
