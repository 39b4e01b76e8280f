//! Host and guest as two processes over one memfd, as they are in life: two rings, the pending map, and kicks on a socket.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use enhanced_session::packet::{Fragment, PacketHeader, PacketType};
use enhanced_session::region::{ARENA, Arena, Direction, GuestPage, HostPage, Mapping};
use enhanced_session::ring::{Consumer, Kick, Producer, Push, Raiser, RingGrant, Watcher, max_payload, ring_tag};
use libtest_mimic::{Arguments, Failed, Trial};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Set in the guest's process: the path of the region.
const REGION: &str = "FANLIGHT_TEST_REGION";
const REGION_SIZE: usize = 1 << 20;
const CHANNEL: u32 = 1;
const CHANNELS: u32 = 2;
const TO_GUEST: u32 = 16 << 10;
const TO_HOST: u32 = 64 << 10;
const HOST_EPOCH: u64 = 0x1111_2222_3333_4444;
const GUEST_EPOCH: u64 = 0x5555_6666_7777_8888;
const OPEN_ID: u32 = 9;
/// Messages each way: each ring is gone around a thousand times.
const MESSAGES: u32 = 20_000;
const DEADLINE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    if let Ok(path) = std::env::var(REGION) {
        guest(&path).expect("the guest's end");
        return ExitCode::SUCCESS;
    }
    let stream = Trial::test("messages_cross_both_ways_between_two_processes", || {
        host().map_err(|error| Failed::from(error.to_string()))
    });
    libtest_mimic::run(&Arguments::from_args(), vec![stream]).exit_code()
}

fn host() -> Result<()> {
    let (memory, memfd) = Mapping::create("fanlight-test", REGION_SIZE)?;
    let memory = Arc::new(memory);
    let page = HostPage {
        minor: 0,
        region_size: REGION_SIZE as u64,
        features: 0,
        host_epoch: HOST_EPOCH,
        region_nonce: 7,
        arena_offset: ARENA as u64,
        arena_size: (REGION_SIZE - ARENA) as u64,
        channel_limit: CHANNELS,
    };
    let (to_guest, to_host) = grants(&page)?;
    let mut end = End::new(&memory, (to_guest, Direction::HostToGuest), (to_host, Direction::GuestToHost))?;
    page.write_to(&memory);
    let mut guest = Guest::start(&memfd)?;
    end.open(guest.socket.try_clone()?)?;
    let seen = GuestPage::read_from(&memory)?;
    assert_eq!((seen.guest_epoch, seen.host_epoch), (GUEST_EPOCH, HOST_EPOCH));
    end.run()?;
    let status = guest.process.wait()?;
    if status.success() { Ok(()) } else { Err(format!("the guest ended with {status}").into()) }
}

fn guest(path: &str) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let memory = Arc::new(Mapping::new(&file, REGION_SIZE)?);
    let page = HostPage::read_from(&memory)?;
    let (to_guest, to_host) = grants(&page)?;
    let mut end = End::new(&memory, (to_host, Direction::GuestToHost), (to_guest, Direction::HostToGuest))?;
    let (guest_epoch, host_epoch) = (GUEST_EPOCH, page.host_epoch);
    GuestPage { minor: 0, features: 0, guest_epoch, host_epoch, guest_nonce: 8 }.write_to(&memory);
    end.open(UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?))?;
    end.run()
}

/// Where the rings are. The host tells the guest in life; here both know how an arena is divided.
fn grants(page: &HostPage) -> Result<(RingGrant, RingGrant)> {
    let mut arena = Arena::new(page.arena_offset, page.arena_size);
    let mut ring = |data_size| -> Result<RingGrant> {
        let grant = arena.allocate(RingGrant::bytes(data_size)).ok_or("the region is too small")?;
        Ok(RingGrant::new(grant.offset(), data_size, max_payload(TO_GUEST), REGION_SIZE)?)
    };
    Ok((ring(TO_GUEST)?, ring(TO_HOST)?))
}

/// The guest's process. It does not outlive the test.
struct Guest {
    process: Child,
    socket: UnixStream,
}

impl Guest {
    fn start(memfd: &OwnedFd) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let process = Command::new(std::env::current_exe()?)
            .env(REGION, format!("/proc/{}/fd/{}", std::process::id(), memfd.as_raw_fd()))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()?;
        Ok(Self { process, socket: ours })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One end of the channel, which sends and receives at the same time.
struct End {
    producer: Producer<Arc<Mapping>>,
    consumer: Consumer<Arc<Mapping>>,
    raiser: Raiser<Arc<Mapping>>,
    watcher: Watcher<Arc<Mapping>>,
    socket: Option<UnixStream>,
    sent: u32,
    received: u32,
    started: Instant,
}

impl End {
    fn new(memory: &Arc<Mapping>, out: (RingGrant, Direction), into: (RingGrant, Direction)) -> Result<Self> {
        let tag = ring_tag(HOST_EPOCH, GUEST_EPOCH, OPEN_ID);
        Ok(Self {
            producer: Producer::attach(Arc::clone(memory), out.0, tag),
            consumer: Consumer::attach(Arc::clone(memory), into.0, tag),
            raiser: Raiser::attach(Arc::clone(memory), out.1, CHANNELS),
            watcher: Watcher::attach(Arc::clone(memory), into.1, CHANNELS),
            socket: None,
            sent: 0,
            received: 0,
            started: Instant::now(),
        })
    }

    /// Waits until the peer has attached too.
    fn open(&mut self, socket: UnixStream) -> Result<()> {
        self.socket = Some(socket);
        self.send_kick()?;
        assert_eq!(self.read_kicks()?, Heard::Kick);
        assert!(self.producer.peer_tag_matches() && self.consumer.peer_tag_matches());
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        loop {
            self.produce()?;
            self.consume()?;
            if self.sent == MESSAGES && self.received == MESSAGES {
                break;
            }
            self.wait()?;
        }
        self.socket()?.shutdown(std::net::Shutdown::Write)?;
        while self.read_kicks()? == Heard::Kick {}
        Ok(())
    }

    fn produce(&mut self) -> Result<()> {
        while self.sent < MESSAGES {
            let payload = payload(self.sent);
            let (header, middle) = (header(&payload)?, payload.len() / 3);
            let parts = payload.split_at(middle);
            if self.producer.push(&header, &[parts.0, parts.1])? == Push::Full {
                break;
            }
            self.sent += 1;
            // Bursts of different lengths.
            if self.sent.is_multiple_of(1 + self.sent % 7) {
                let kick = self.producer.publish()?;
                self.kick(kick)?;
            }
        }
        let kick = self.producer.publish()?;
        self.kick(kick)
    }

    fn consume(&mut self) -> Result<()> {
        let mut found = Vec::new();
        while let Some(header) = self.consumer.pop(&mut found)? {
            assert_eq!(found, payload(self.received), "message {}", self.received);
            assert_eq!(header, self::header(&found)?);
            found.clear();
            self.received += 1;
            if self.received.is_multiple_of(5) {
                let kick = self.consumer.publish()?;
                self.kick(kick)?;
            }
        }
        let kick = self.consumer.publish()?;
        self.kick(kick)
    }

    fn kick(&mut self, kick: Kick) -> Result<()> {
        if kick == Kick::Needed && self.raiser.raise(CHANNEL) { self.send_kick() } else { Ok(()) }
    }

    /// Sleeps until the channel is pending.
    fn wait(&mut self) -> Result<()> {
        let mut pending = Vec::new();
        loop {
            self.watcher.take(&mut pending);
            if !pending.is_empty() {
                assert_eq!(pending, [CHANNEL]);
                return Ok(());
            }
            if self.read_kicks()? == Heard::End {
                return Err(format!("the peer ended; {} sent, {} received", self.sent, self.received).into());
            }
        }
    }

    fn send_kick(&self) -> Result<()> {
        match self.socket()?.write(&[1]) {
            // A peer that has everything goes without waiting for the last kick.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            sent => sent.map(drop).map_err(Into::into),
        }
    }

    fn read_kicks(&self) -> Result<Heard> {
        let left = DEADLINE.checked_sub(self.started.elapsed()).ok_or("the deadline has passed")?;
        self.socket()?.set_read_timeout(Some(left))?;
        let heard = self.socket()?.read(&mut [0; 64]);
        match heard {
            Ok(0) => Ok(Heard::End),
            Ok(_) => Ok(Heard::Kick),
            Err(error) => Err(format!("{} sent, {} received: {error}", self.sent, self.received).into()),
        }
    }

    fn socket(&self) -> Result<&UnixStream> {
        self.socket.as_ref().ok_or_else(|| "not open".into())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Kick,
    End,
}

/// Message `number`: every length comes by, and no two neighbours are alike.
fn payload(number: u32) -> Vec<u8> {
    let length = number.wrapping_mul(2_654_435_761) >> 8;
    let length = if number.is_multiple_of(3) { length % (max_payload(TO_GUEST) + 1) } else { length % 200 };
    (0..length).map(|at| (number.wrapping_mul(97).wrapping_add(at * 3) & 0xff) as u8).collect()
}

fn header(payload: &[u8]) -> Result<PacketHeader> {
    let length = u32::try_from(payload.len())?;
    Ok(PacketHeader { length, packet_type: PacketType::Data, fragment: Fragment::Whole, txid: 0 })
}
