//! The one loop: the port, the bus's endpoint, and whoever uses it.
//!
//! ```text
//!            no port, or not for us        nobody at the host's end
//!   Absent ◀──────────────────────── open ─────────────────────────▶ Away
//!     │                               ▲                              ▲  │ an edge, and
//!     └───── every few seconds ───────┘                      hung up │  ▼ somebody is there
//!                                                               Connected
//! ```
//!
//! Nothing happens in turns of time: the loop sleeps until an edge, a signal, or somebody's timeout.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use enhanced_session::control::{AgentVersion, Os, RegionHint};
use enhanced_session::endpoint::{Event, Guest, GuestConfig};
use enhanced_session::region::Mapping;
use rustix::rand::{GetRandomFlags, getrandom};
use tracing::{debug, info, warn};

use crate::options::TransportChoice;
use crate::poller::{Poller, Signals, Token};
use crate::port::{Port, PortError, Transfer};
use crate::region;

/// How often is looked for a port that is not there, or that another process has.
const PORT_RETRY: Duration = Duration::from_secs(5);
/// Most bytes that are read from the port at a time.
const READ_BYTES: usize = 64 * 1024;
/// How long the agent waits, when it is to end, until what it still has to say is sent.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long it then waits for the host to know that it stops.
const UNLOAD_PATIENCE: Duration = Duration::from_secs(1);

/// The endpoint, on memory that the host shares.
pub type Endpoint = Guest<Mapping>;

/// Who uses the bus: what is done with its channels.
pub trait Tenant {
    /// Something happened. What is about the shared memory has been dealt with.
    fn handle_event(&mut self, now: Instant, event: Event, endpoint: &mut Endpoint, poller: &Poller);

    /// Sends what there is to send, as far as there is room.
    fn flush(&mut self, endpoint: &mut Endpoint);

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    fn poll_timeout(&self) -> Option<Instant>;

    /// Does what has become due. Called at other times, too, whenever the loop is awake: what may be done a little
    /// early then saves a wake of its own.
    fn handle_timeout(&mut self, now: Instant, endpoint: &mut Endpoint, poller: &Poller);

    /// What is watched for this channel is readable.
    fn handle_readable(&mut self, now: Instant, channel: u32);

    /// A child process ended.
    fn handle_child(&mut self, now: Instant);

    /// The program is asked to end: what the host has to know is sent before.
    fn handle_ending(&mut self, now: Instant);
}

/// What a bus is told once.
pub struct BusConfig {
    /// What the program calls itself.
    pub name: &'static str,
    /// How channels are opened.
    pub transport: TransportChoice,
    /// How the port is opened; it is called again and again as long as that fails.
    pub port: PortOpener,
    /// Where the system lists its PCI devices: [`region::PCI_DEVICES`].
    pub devices: PathBuf,
}

/// Opens the port.
pub type PortOpener = Box<dyn FnMut() -> Result<Port, PortError>>;

/// The bus, from the guest's side.
pub struct Bus {
    poller: Poller,
    endpoint: Endpoint,
    config: BusConfig,
    link: Link,
    buffer: Vec<u8>,
    ending: Ending,
}

#[derive(Debug)]
enum Link {
    /// There is no port, or it cannot be had; why was told.
    Absent { retry_at: Instant, told: Option<String> },
    /// Nobody is at the host's end.
    Away(Port),
    /// Somebody is.
    Connected(Connection),
}

#[derive(Debug)]
struct Connection {
    port: Port,
    /// What an edge allowed and no call has refused since.
    readable: bool,
    writable: bool,
    /// Whether being writable makes an edge.
    waits_for_room: bool,
    /// Bytes for the port, and how many of them it has taken.
    out: Vec<u8>,
    taken: usize,
}

/// Why a connection is none any more.
#[derive(Debug)]
enum Gone {
    Host,
    Port(io::Error),
}

/// What is left to do before the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// It does not end.
    No,
    /// What is to be said is sent, until then.
    Farewell(Instant),
    /// The host may say that it knows, until then.
    Unloading(Instant),
    /// Nothing.
    Done,
}

impl BusConfig {
    /// For this system; `node` is the port's device, or it is found by its name.
    #[must_use]
    pub fn of_system(name: &'static str, transport: TransportChoice, node: Option<PathBuf>) -> Self {
        let port: PortOpener = match node {
            Some(node) => Box::new(move || Port::open(&node)),
            None => Box::new(Port::find),
        };
        Self { name, transport, port, devices: PathBuf::from(region::PCI_DEVICES) }
    }
}

impl Bus {
    /// A bus whose port has not been looked for.
    ///
    /// # Errors
    ///
    /// When the system gives no file to wait with.
    pub fn new(config: BusConfig) -> io::Result<Self> {
        let now = Instant::now();
        let guest = GuestConfig { name: config.name.to_owned(), version: version(), os: Os::Linux };
        Ok(Self {
            poller: Poller::new()?,
            endpoint: Endpoint::new(guest, Box::new(random), now),
            config,
            link: Link::Absent { retry_at: now, told: None },
            buffer: vec![0; READ_BYTES],
            ending: Ending::No,
        })
    }

    /// Works until a signal ends it.
    ///
    /// # Errors
    ///
    /// When waiting itself fails.
    pub fn run(mut self, signals: &Signals, tenant: &mut dyn Tenant) -> io::Result<()> {
        self.poller.watch(signals, Token::Signal)?;
        loop {
            self.advance(tenant);
            if self.ending == Ending::Done {
                return Ok(());
            }
            let timeout = self.poll_timeout(tenant).map(|timeout| timeout.saturating_duration_since(Instant::now()));
            for token in self.poller.wait(timeout)? {
                match token {
                    Token::Port => self.handle_port_edge(Instant::now()),
                    Token::Signal => signals.drain(),
                    Token::Channel(channel) => tenant.handle_readable(Instant::now(), channel),
                }
            }
            if signals.take_child() {
                tenant.handle_child(Instant::now());
            }
            if signals.must_stop() && self.ending == Ending::No {
                info!("asked to end");
                let now = Instant::now();
                tenant.handle_ending(now);
                self.ending = Ending::Farewell(now + FAREWELL);
            }
        }
    }

    /// Does all that can be done without waiting.
    fn advance(&mut self, tenant: &mut dyn Tenant) {
        tenant.handle_timeout(Instant::now(), &mut self.endpoint, &self.poller);
        loop {
            let now = Instant::now();
            self.connect(now);
            if tenant.poll_timeout().is_some_and(|timeout| timeout <= now) {
                tenant.handle_timeout(now, &mut self.endpoint, &self.poller);
            }
            if self.endpoint.poll_timeout().is_some_and(|timeout| timeout <= now) {
                self.endpoint.handle_timeout(now);
            }
            let mut moved = self.handle_events(now, tenant);
            tenant.flush(&mut self.endpoint);
            moved |= self.exchange(now);
            moved |= self.handle_events(now, tenant);
            if !moved && !self.end(now) {
                return;
            }
        }
    }

    fn poll_timeout(&self, tenant: &dyn Tenant) -> Option<Instant> {
        let retry_at = match &self.link {
            Link::Absent { retry_at, .. } => Some(*retry_at),
            Link::Away(_) | Link::Connected(_) => None,
        };
        let ending = match self.ending {
            Ending::Farewell(until) | Ending::Unloading(until) => Some(until),
            Ending::No | Ending::Done => None,
        };
        [retry_at, ending, self.endpoint.poll_timeout(), tenant.poll_timeout()].into_iter().flatten().min()
    }

    /// Looks for the port when it is time.
    fn connect(&mut self, now: Instant) {
        let Link::Absent { retry_at, told } = &mut self.link else { return };
        if now < *retry_at {
            return;
        }
        let watched = (self.config.port)().and_then(|port| {
            self.poller.watch(&port, Token::Port).map_err(PortError::Watch)?;
            Ok(port)
        });
        match watched {
            Ok(port) => {
                debug!("the port is open");
                self.link = Link::Away(port);
                self.handle_port_edge(now);
            }
            Err(error) => {
                *retry_at = now + PORT_RETRY;
                tell_once(told, &error);
            }
        }
    }

    /// Somebody came to the host's end or left it, or the port can be read or written again.
    fn handle_port_edge(&mut self, now: Instant) {
        match &mut self.link {
            Link::Connected(connection) => (connection.readable, connection.writable) = (true, true),
            Link::Away(port) if port.is_host_there() => {
                if let Link::Away(port) = self.link.take(now) {
                    self.link = Link::Connected(Connection::new(port));
                    self.endpoint.handle_port_opened(now);
                }
            }
            Link::Away(_) | Link::Absent { .. } => {}
        }
    }

    /// Gives bytes to the port and takes some from it. Whether there were any, or the connection went.
    fn exchange(&mut self, now: Instant) -> bool {
        let Link::Connected(connection) = &mut self.link else { return false };
        let written = connection.write(now, &mut self.endpoint, &self.poller);
        let read = connection.read(now, &mut self.endpoint, &mut self.buffer);
        // What was read counts, even when nobody is there any more to be written to.
        match read.and_then(|read| written.map(|written| read | written)) {
            Ok(moved) => moved,
            Err(gone) => {
                self.endpoint.handle_port_closed(now);
                match (gone, self.link.take(now)) {
                    (Gone::Host, Link::Connected(connection)) => self.link = Link::Away(connection.close(&self.poller)),
                    (Gone::Host, _) => {}
                    (Gone::Port(error), _) => warn!(%error, "the port is gone"),
                }
                true
            }
        }
    }

    /// Whether something happened.
    fn handle_events(&mut self, now: Instant, tenant: &mut dyn Tenant) -> bool {
        let mut happened = false;
        while let Some(event) = self.endpoint.poll_event() {
            happened = true;
            match event {
                Event::RegionOffered(hint) => self.attach(hint),
                Event::RegionAttached => info!("sharing memory with the host"),
                Event::RegionRefused(code) => warn!(?code, "the host refuses the shared memory; using the port alone"),
                Event::Unloaded if self.ending != Ending::No => self.ending = Ending::Done,
                event => tenant.handle_event(now, event, &mut self.endpoint, &self.poller),
            }
        }
        happened
    }

    /// Maps the shared memory, unless it is not wanted or not to be had.
    fn attach(&mut self, hint: RegionHint) {
        if self.config.transport != TransportChoice::Stream {
            for device in region::candidates(&self.config.devices, hint.pci_slot, hint.size) {
                let memory = region::map(&device, hint.size).map(Arc::new);
                match memory.and_then(|memory| self.endpoint.attach(memory).map_err(io::Error::other)) {
                    Ok(()) => return,
                    Err(error) => info!(%error, ?device, "not the host's shared memory"),
                }
            }
        }
        self.endpoint.decline();
    }

    /// Takes the next step to the end, when nothing else moves. Whether there was one.
    fn end(&mut self, now: Instant) -> bool {
        let is_pending = match &self.link {
            Link::Connected(connection) => !connection.is_idle(),
            Link::Away(_) | Link::Absent { .. } => false,
        };
        let is_connected = matches!(self.link, Link::Connected(_));
        match self.ending {
            Ending::Farewell(until) if is_pending && now < until => false,
            Ending::Farewell(_) if is_connected && self.endpoint.peer().is_some() => {
                self.endpoint.unload();
                self.ending = Ending::Unloading(now + UNLOAD_PATIENCE);
                true
            }
            Ending::Unloading(until) if is_connected && now < until => false,
            Ending::Farewell(_) | Ending::Unloading(_) => {
                self.ending = Ending::Done;
                false
            }
            Ending::No | Ending::Done => false,
        }
    }
}

impl Link {
    /// What it is; afterwards it is none, and the port looked for after a while.
    fn take(&mut self, now: Instant) -> Self {
        std::mem::replace(self, Self::Absent { retry_at: now + PORT_RETRY, told: None })
    }
}

impl Connection {
    const fn new(port: Port) -> Self {
        Self { port, readable: true, writable: true, waits_for_room: false, out: Vec::new(), taken: 0 }
    }

    /// Nobody is there any more.
    fn close(self, poller: &Poller) -> Port {
        if self.waits_for_room {
            // A port that cannot be watched shows as gone when it is next used.
            let _ = poller.watch_for_room(&self.port, Token::Port, false);
        }
        self.port
    }

    /// Whether the port has taken everything.
    const fn is_idle(&self) -> bool {
        self.taken == self.out.len()
    }

    /// Writes what is most urgent, as much as the port takes, and not endlessly.
    fn write(&mut self, now: Instant, endpoint: &mut Endpoint, poller: &Poller) -> Result<bool, Gone> {
        if self.is_idle() {
            self.out.clear();
            self.taken = 0;
            endpoint.poll_transmit(now, &mut self.out);
        }
        let rest = self.out.get(self.taken..).unwrap_or_default();
        if rest.is_empty() || !self.writable {
            return Ok(false);
        }
        match self.port.write(rest).map_err(Gone::Port)? {
            Transfer::Bytes(count) => self.taken += count,
            Transfer::Later => self.writable = false,
            Transfer::HostAway => return Err(Gone::Host),
        }
        if self.waits_for_room == self.writable {
            self.waits_for_room = !self.writable;
            poller.watch_for_room(&self.port, Token::Port, self.waits_for_room).map_err(Gone::Port)?;
        }
        Ok(self.writable)
    }

    fn read(&mut self, now: Instant, endpoint: &mut Endpoint, buffer: &mut [u8]) -> Result<bool, Gone> {
        if !self.readable || !endpoint.wants_bytes() {
            return Ok(false);
        }
        match self.port.read(buffer).map_err(Gone::Port)? {
            Transfer::Bytes(count) => endpoint.handle_bytes(now, buffer.get(..count).unwrap_or_default()),
            Transfer::Later => self.readable = false,
            Transfer::HostAway => return Err(Gone::Host),
        }
        Ok(self.readable)
    }
}

/// Once for each reason: where a guest has no port, the agent waits for ever.
fn tell_once(told: &mut Option<String>, error: &PortError) {
    let text = error.to_string();
    if told.as_ref() != Some(&text) {
        match error {
            PortError::Absent => info!("{text}; waiting for one"),
            _ => warn!("{text}; trying again"),
        }
        *told = Some(text);
    }
}

/// The agent's version, out of its manifest.
fn version() -> AgentVersion {
    let mut numbers = env!("CARGO_PKG_VERSION").split('.').map(|number| number.parse().unwrap_or(0));
    let mut number = || numbers.next().unwrap_or(0);
    let (major, minor, patch) = (number(), number(), number());
    AgentVersion(u8::try_from(major).unwrap_or(u8::MAX), u8::try_from(minor).unwrap_or(u8::MAX), patch)
}

/// Nonces tell incarnations apart; early in a boot they are as good as the kernel has them, without waiting.
fn random() -> u64 {
    let mut bytes = [0; 8];
    // INSECURE: Linux 5.6.
    for flags in [GetRandomFlags::INSECURE, GetRandomFlags::empty()] {
        if getrandom(&mut bytes, flags).is_ok_and(|count| count == bytes.len()) {
            break;
        }
    }
    u64::from_le_bytes(bytes)
}
