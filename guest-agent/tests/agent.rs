//! The agent's loop against the bus's other endpoint, over a socket pair that stands for the port; a file stands for
//! the memory of an ivshmem device.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use enhanced_session::class::{Class, guest_info, heartbeat, memory, shutdown};
use enhanced_session::control::{OfferFlags, Reason};
use enhanced_session::endpoint::{ChannelId, Disconnect, Event, Host, HostConfig, Transport};
use enhanced_session::message::Message;
use enhanced_session::region::Mapping;
use guest_agent::agent::Agent;
use guest_agent::bus::{Bus, BusConfig};
use guest_agent::options::TransportChoice;
use guest_agent::poller::{Signals, Stopper};
use guest_agent::port::{Port, PortError};
use uuid::Uuid;

/// A machine under load is slow; it is not dead before this.
const PATIENCE: Duration = Duration::from_secs(120);
const REGION: usize = 16 << 20;
const VM: Uuid = Uuid::from_u128(0x5eed);

/// An agent in its thread.
struct RunningAgent {
    stopper: Stopper,
    thread: Option<JoinHandle<io::Result<()>>>,
    devices: PathBuf,
}

impl RunningAgent {
    fn start(name: &str, transport: TransportChoice) -> (Self, HostSide) {
        Self::try_start(name, transport).expect("an agent and a host")
    }

    /// With one end of a socket pair for a port, and a folder of PCI devices with one ivshmem device.
    fn try_start(name: &str, transport: TransportChoice) -> io::Result<(Self, HostSide)> {
        let devices = std::env::temp_dir().join(format!("fanlight-agent-{}-{name}", std::process::id()));
        let device = devices.join("0000:00:05.0");
        fs::create_dir_all(&device)?;
        for (file, text) in [("vendor", "0x1af4\n"), ("device", "0x1110\n"), ("enable", "0\n")] {
            fs::write(device.join(file), text)?;
        }
        let bar = File::options().read(true).write(true).create_new(true).open(device.join("resource2"))?;
        bar.set_len(REGION as u64)?;
        let memory = Arc::new(Mapping::new(bar, REGION)?);

        let (guest, host) = UnixStream::pair()?;
        guest.set_nonblocking(true)?;
        host.set_nonblocking(true)?;
        let (signals, stopper) = Signals::without_signals()?;
        let folder = devices.clone();
        let thread = std::thread::spawn(move || {
            let mut guest = Some(guest);
            let port = move || guest.take().map(|guest| Port::from_device(guest.into())).ok_or(PortError::Absent);
            let config = BusConfig { name: "agent under test", transport, port: Box::new(port), devices: folder };
            Bus::new(config)?.run(&signals, &mut Agent::new(transport))
        });
        Ok((Self { stopper, thread: Some(thread), devices }, HostSide::new(host, memory)))
    }

    /// Ends the agent, as SIGTERM does, while the host goes on.
    fn end(mut self, host: &mut HostSide) {
        self.stopper.stop();
        let thread = self.thread.take().expect("it is ended once");
        host.wait_for("end of the agent", |_| thread.is_finished().then_some(()));
        thread.join().expect("the agent does not panic").expect("the agent ends well");
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        self.stopper.stop();
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = fs::remove_dir_all(&self.devices);
    }
}

/// The gateway's end.
struct HostSide {
    host: Host<Mapping>,
    memory: Arc<Mapping>,
    socket: UnixStream,
    out: Vec<u8>,
    events: Vec<Event>,
}

impl HostSide {
    fn new(socket: UnixStream, memory: Arc<Mapping>) -> Self {
        let mut side = Self { host: new_host(&memory), memory, socket, out: Vec::new(), events: Vec::new() };
        side.host.handle_port_opened(Instant::now());
        side
    }

    /// As after a restart of the gateway, in the middle of everything.
    fn restart(&mut self) {
        self.host = new_host(&self.memory);
        self.events.clear();
        self.host.handle_port_opened(Instant::now());
    }

    fn offer(&mut self, class: Class) -> ChannelId {
        self.host.offer(class, 0, OfferFlags::default()).expect("few channels are offered")
    }

    /// Lets the bus work until `wanted` finds something.
    fn wait_for<T>(&mut self, what: &str, mut wanted: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.work();
            if let Some(found) = wanted(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "no {what}; so far: {:?}", self.events);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn work(&mut self) {
        let now = Instant::now();
        if self.host.poll_timeout().is_some_and(|timeout| timeout <= now) {
            self.host.handle_timeout(now);
        }
        while self.out.is_empty() && self.host.poll_transmit(now, &mut self.out) {
            // What the agent has no room for waits.
            if let Ok(count) = self.socket.write(&self.out) {
                self.out.drain(..count);
            }
        }
        let mut buffer = [0; 64 * 1024];
        while let Ok(count @ 1..) = self.socket.read(&mut buffer) {
            self.host.handle_bytes(now, &buffer[..count]);
        }
        while let Some(event) = self.host.poll_event() {
            self.events.push(event);
        }
    }

    fn opened(&mut self, id: ChannelId) -> Transport {
        self.wait_for(&format!("opening of channel {id}"), |side| {
            let at = side.events.iter().position(|event| matches!(event, Event::Opened { id: it, .. } if *it == id))?;
            match side.events.remove(at) {
                Event::Opened { transport, .. } => Some(transport),
                _ => None,
            }
        })
    }

    fn message(&mut self, id: ChannelId) -> Message {
        self.wait_for(&format!("message on channel {id}"), |side| side.host.receive(id))
    }

    fn data(&mut self, id: ChannelId) -> Vec<u8> {
        match self.message(id) {
            Message::Data(bytes) => bytes,
            other => panic!("{other:?} instead of data"),
        }
    }

    fn beat(&mut self, id: ChannelId, sequence: u64) {
        self.host.send(id, heartbeat::ToGuest::Beat { sequence }.encode()).expect("the channel is open");
        match heartbeat::ToHost::decode(&self.data(id)) {
            Ok(heartbeat::ToHost::Beat { sequence: answer, .. }) => assert_eq!(answer, sequence + 1),
            other => panic!("{other:?} is no beat"),
        }
    }
}

fn new_host(memory: &Arc<Mapping>) -> Host<Mapping> {
    let random = || u64::from_le_bytes(Uuid::new_v4().into_bytes()[..8].try_into().expect("8 of 16 bytes"));
    Host::new(HostConfig::new(VM), Some(Arc::clone(memory)), Box::new(random), Instant::now())
}

#[test]
fn channels_are_opened_on_rings_and_answered_there() {
    let (agent, mut host) = RunningAgent::start("rings", TransportChoice::Auto);
    let id = host.offer(Class::Heartbeat);
    assert_eq!(host.opened(id), Transport::Ring);
    (0..50).for_each(|beat| host.beat(id, 2 * beat));
    agent.end(&mut host);
}

#[test]
fn the_port_alone_does_when_rings_are_not_wanted() {
    let (agent, mut host) = RunningAgent::start("stream", TransportChoice::Stream);
    let id = host.offer(Class::Heartbeat);
    assert_eq!(host.opened(id), Transport::Stream);
    (0..50).for_each(|beat| host.beat(id, 2 * beat));
    agent.end(&mut host);
}

#[test]
fn every_service_says_first_what_it_has_to() {
    let (agent, mut host) = RunningAgent::start("first", TransportChoice::Auto);
    let late = host.offer(Class::Memory);
    let info = host.offer(Class::GuestInfo);
    let down = host.offer(Class::Shutdown);
    host.opened(info);
    let first = host.data(info);
    assert!(matches!(guest_info::ToHost::decode(&first), Ok(guest_info::ToHost::Snapshot { .. })));
    host.opened(down);
    let first = host.data(down);
    assert!(matches!(shutdown::ToHost::decode(&first), Ok(shutdown::ToHost::Capabilities { .. })));
    host.opened(late);
    for expected in 1..=2 {
        let report = host.data(late);
        match memory::ToHost::decode(&report) {
            Ok(memory::ToHost::Report { sequence, .. }) => assert_eq!(sequence, expected),
            other => panic!("{other:?} is no report"),
        }
    }
    agent.end(&mut host);
}

#[test]
fn a_class_without_a_service_stays_closed_and_an_offer_may_come_late() {
    let (agent, mut host) = RunningAgent::start("late", TransportChoice::Auto);
    let usb = host.offer(Class::Usb);
    let first = host.offer(Class::Heartbeat);
    host.opened(first);
    let late = host.offer(Class::GuestInfo);
    host.opened(late);
    host.beat(first, 0);
    let is_open = |event: &Event| matches!(event, Event::Opened { id, .. } if *id == usb);
    assert!(!host.events.iter().any(is_open), "{:?}", host.events);
    host.host.rescind(late, Reason::Policy);
    host.wait_for("closing", |side| {
        side.events.iter().any(|event| matches!(event, Event::Closed { id, .. } if *id == late)).then_some(())
    });
    host.beat(first, 2);
    agent.end(&mut host);
}

#[test]
fn requests_are_answered_even_when_nobody_knows_them() {
    let (agent, mut host) = RunningAgent::start("requests", TransportChoice::Auto);
    let id = host.offer(Class::Shutdown);
    host.opened(id);
    host.data(id);
    let txid = host.host.request(id, vec![0x77, 0x01, 0, 0]).unwrap();
    match host.message(id) {
        Message::Completion(answered, bytes) => {
            assert_eq!(answered, txid);
            assert_eq!(shutdown::Response::decode(&bytes), Ok(shutdown::Response::Unsupported));
        }
        other => panic!("{other:?} is no answer"),
    }
    agent.end(&mut host);
}

#[test]
fn a_channel_on_which_the_host_misbehaves_is_closed_and_opened_again() {
    let (agent, mut host) = RunningAgent::start("fault", TransportChoice::Auto);
    let id = host.offer(Class::Heartbeat);
    host.opened(id);
    host.host.send(id, vec![1, 0, 0, 0]).unwrap();
    host.wait_for("closing", |side| {
        let is_closing = |event: &Event| matches!(event, Event::Closed { reason: Reason::Fault, .. });
        side.events.iter().any(is_closing).then_some(())
    });
    host.opened(id);
    host.beat(id, 8);
    agent.end(&mut host);
}

#[test]
fn a_gateway_that_starts_anew_finds_the_agent_again() {
    let (agent, mut host) = RunningAgent::start("anew", TransportChoice::Auto);
    let id = host.offer(Class::Heartbeat);
    host.opened(id);
    host.beat(id, 0);
    for _ in 0..3 {
        host.restart();
        let id = host.offer(Class::Heartbeat);
        assert_eq!(host.opened(id), Transport::Ring);
        host.beat(id, 0);
    }
    agent.end(&mut host);
}

#[test]
fn an_agent_that_is_ended_says_so() {
    let (agent, mut host) = RunningAgent::start("end", TransportChoice::Auto);
    let id = host.offer(Class::Heartbeat);
    host.opened(id);
    host.beat(id, 0);
    agent.stopper.stop();
    host.wait_for("farewell", |side| {
        let is_farewell = |event: &Event| matches!(event, Event::Disconnected(Disconnect::Unloaded));
        side.events.iter().any(is_farewell).then_some(())
    });
    agent.end(&mut host);
}

#[test]
fn an_agent_without_a_host_can_be_ended() {
    let (mut agent, host) = RunningAgent::start("alone", TransportChoice::Auto);
    drop(host);
    agent.stopper.stop();
    let ended = agent.thread.take().expect("it is ended once").join();
    assert!(matches!(ended, Ok(Ok(()))), "{ended:?}");
}
