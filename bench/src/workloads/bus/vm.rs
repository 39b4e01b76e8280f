//! A guest that does what it is told, and this process as the host of its bus.
//!
//! The guest is the console guest with `fanlight-bus-exercise` in the agent's place, in a QEMU with the devices that the
//! bus has in a VM of `fanlight`, and with a second port whose bytes come back as they are. Whether the guest finds
//! memory to share is up to the host: so rings and stream are compared in one guest, in turns.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use enhanced_session::class::Class;
use enhanced_session::control::OfferFlags;
use enhanced_session::endpoint::{ChannelId, Event, Host, HostConfig, Transport};
use enhanced_session::message::Message;
use enhanced_session::region::Mapping;
use fanlight_tests::environment::environment;
use fanlight_tests::process::Process;
use fanlight_tests::wait::{Look, wait_until};
use fanlight_tests::{guest, scratch};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::rand::{GetRandomFlags, getrandom};
use uuid::Uuid;

/// Bytes that host and guest share: what a VM has that says nothing of it.
const MEMORY: usize = 64 << 20;
/// What `vmm` asks the kernel to hold of what is sent.
const SEND_BUFFER: usize = 8 * 1024;
/// What `fanlight` reads from the port at a time.
const READ: usize = 64 * 1024;
/// What can take so long is broken.
const PATIENCE: Duration = Duration::from_secs(60);
const VM: Uuid = Uuid::from_u128(0x6fa9_d1d2_0a37_4d7b_8f6e_0c6c_3f5b_2a11);
/// What is offered: one class that is urgent, and one that is not.
const CLASSES: [Class; 2] = [Class::Input, Class::Folder];

/// What `fanlight-bus-exercise` takes for an order, and what it takes and does not answer.
const ORDER: u16 = 0x7e01;
const FILLER: u16 = 0x7e02;
/// Its shortest answer.
pub(super) const SHORTEST: usize = 8;
/// An order without anything behind it.
const ORDER_BYTES: usize = 12;

/// The guest. Dropping it ends it.
pub(super) struct Vm {
    process: Process,
    memory: Arc<Mapping>,
    _memfd: OwnedFd,
    port: UnixStream,
    echo: UnixStream,
}

impl Vm {
    /// Starts it; it has booted when it is first connected to.
    pub(super) fn start() -> Result<Self> {
        let folder = scratch::folder("bus")?;
        let (memory, memfd) = Mapping::create("fanlight-bench-bus", MEMORY)?;
        let process = Process::start(qemu(&folder, &memfd)?, &folder.join("qemu.log"))?;
        let port = connect(&folder.join("bus"))?;
        port.set_nonblocking(true)?;
        set_socket_send_buffer_size(&port, SEND_BUFFER)?;
        let echo = connect(&folder.join("echo"))?;
        echo.set_read_timeout(Some(guest::BOOT))?;
        let mut vm = Self { process, memory: Arc::new(memory), _memfd: memfd, port, echo };
        vm.echo(ORDER_BYTES).context("the guest does not come up")?;
        vm.echo.set_read_timeout(Some(PATIENCE))?;
        Ok(vm)
    }

    /// QEMU's process.
    pub(super) fn pid(&self) -> Result<u32> {
        Ok(u32::try_from(self.process.pid().as_raw_nonzero().get())?)
    }

    /// Sends bytes over the port without a bus, and waits until all are back.
    pub(super) fn echo(&mut self, bytes: usize) -> Result<Duration> {
        let mut buffer = vec![0x5A; bytes];
        let started = Instant::now();
        self.echo.write_all(&buffer)?;
        self.echo.read_exact(&mut buffer)?;
        Ok(started.elapsed())
    }

    /// Becomes the host of its bus, as a gateway that starts.
    pub(super) fn host(&mut self, transport: Transport) -> Result<Session<'_>> {
        let now = Instant::now();
        let memory = (transport == Transport::Ring).then(|| Arc::clone(&self.memory));
        let mut host = Host::new(HostConfig::new(VM), memory, Box::new(random), now);
        for class in CLASSES {
            host.offer(class, 0, OfferFlags::ONE_INSTANCE)?;
        }
        host.handle_port_opened(now);
        let mut session = Session {
            vm: self,
            host,
            open: BTreeMap::new(),
            came: BTreeMap::new(),
            out: Vec::new(),
            input: vec![0; READ].into_boxed_slice(),
        };
        session.wait("the guest to open its channels", |session| session.open.len() == CLASSES.len())?;
        let opened = session.open.values().find(|(_, opened)| *opened != transport);
        ensure!(opened.is_none(), "the guest opened {:?}", session.open);
        Ok(session)
    }
}

/// Input that was sent while a channel had more to send than can be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Behind {
    /// Until it was answered.
    pub(super) input: Duration,
    /// How long the channel was busy, and the bytes that it took meanwhile.
    pub(super) flooding: Duration,
    pub(super) sent: usize,
}

/// A bus whose channels are open.
pub(super) struct Session<'a> {
    vm: &'a mut Vm,
    host: Host<Mapping>,
    open: BTreeMap<Class, (ChannelId, Transport)>,
    /// Lengths of the messages that came and were not waited for.
    came: BTreeMap<ChannelId, VecDeque<usize>>,
    /// What the host has given out and the port has not taken.
    out: Vec<u8>,
    input: Box<[u8]>,
}

impl Session<'_> {
    /// Bytes over the port without a bus, as [`Vm::echo`].
    pub(super) fn echo(&mut self, bytes: usize) -> Result<Duration> {
        self.vm.echo(bytes)
    }

    /// Has the guest send `count` messages; returns the time until all are there.
    pub(super) fn fetch(&mut self, class: Class, count: u32, length: usize) -> Result<Duration> {
        let started = Instant::now();
        self.send(class, order(count, length, ORDER_BYTES)?)?;
        for _ in 0..count {
            let came = self.next(class)?;
            ensure!(came == length, "a message of {came} bytes instead of {length}");
        }
        Ok(started.elapsed())
    }

    /// Sends `count` messages to the guest; returns the time until it has taken all.
    pub(super) fn give(&mut self, class: Class, count: u32, length: usize) -> Result<Duration> {
        let message = filler(length);
        let started = Instant::now();
        for _ in 0..count {
            self.send(class, message.clone())?;
        }
        self.ping(class, ORDER_BYTES)?;
        Ok(started.elapsed())
    }

    /// Sends a message of `length` bytes, and waits for the shortest answer that there is.
    pub(super) fn ping(&mut self, class: Class, length: usize) -> Result<Duration> {
        let started = Instant::now();
        self.send(class, order(1, SHORTEST, length)?)?;
        self.next(class)?;
        Ok(started.elapsed())
    }

    /// The same with input while the channel of class `flooded` has more to send than can be sent; `pause` passes before.
    pub(super) fn ping_behind(&mut self, flooded: Class, pause: Duration, length: usize) -> Result<Behind> {
        let (flood, id, filler) = (self.id(flooded)?, self.id(Class::Input)?, filler(length));
        let flooding = Instant::now();
        let begin = flooding + pause;
        let (mut started, mut sent) = (None, 0);
        loop {
            while self.host.has_room(flood) {
                self.host.send(flood, filler.clone())?;
                sent += length;
            }
            let now = Instant::now();
            if started.is_none() && now >= begin {
                self.host.send(id, order(1, SHORTEST, ORDER_BYTES)?)?;
                started = Some(now);
            }
            self.pump()?;
            if let Some(started) = started
                && self.came.get_mut(&id).is_some_and(|came| came.pop_front().is_some())
            {
                return Ok(Behind { input: started.elapsed(), flooding: flooding.elapsed(), sent });
            }
            let due = if started.is_none() { begin } else { begin + PATIENCE };
            ensure!(now < begin + PATIENCE, "input is not answered");
            self.turn(due)?;
        }
    }

    /// Waits until what was sent has been taken.
    pub(super) fn settle(&mut self, class: Class) -> Result<()> {
        self.ping(class, ORDER_BYTES).map(drop)
    }

    fn send(&mut self, class: Class, message: Vec<u8>) -> Result<()> {
        let id = self.id(class)?;
        self.wait("room on the channel", |session| session.host.has_room(id))?;
        self.host.send(id, message)?;
        self.pump()
    }

    /// The length of the next message.
    fn next(&mut self, class: Class) -> Result<usize> {
        let id = self.id(class)?;
        self.wait("a message", |session| session.came.get(&id).is_some_and(|came| !came.is_empty()))?;
        self.came.get_mut(&id).and_then(VecDeque::pop_front).context("it was there")
    }

    fn id(&self, class: Class) -> Result<ChannelId> {
        self.open.get(&class).map(|(id, _)| *id).with_context(|| format!("{class} is not open"))
    }

    fn wait(&mut self, what: &str, enough: impl Fn(&mut Self) -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            self.pump()?;
            if enough(self) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
            self.turn(end)?;
        }
    }

    /// Takes what happened, and gives the port what there is, as the gateway's task does.
    fn pump(&mut self) -> Result<()> {
        while let Some(event) = self.host.poll_event() {
            match event {
                Event::Opened { id, transport } => {
                    let class = self.host.class(id).context("a channel that is offered")?;
                    self.open.insert(class, (id, transport));
                }
                Event::Readable(id) => {
                    while let Some(message) = self.host.receive(id) {
                        let Message::Data(bytes) = message else { bail!("{message:?} came") };
                        self.came.entry(id).or_default().push_back(bytes.len());
                    }
                }
                Event::Closed { .. } | Event::Disconnected(_) | Event::Faulted { .. } => bail!("{event:?}"),
                _ => {}
            }
        }
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        loop {
            if self.out.is_empty() && !self.host.poll_transmit(Instant::now(), &mut self.out) {
                return Ok(());
            }
            match self.vm.port.write(&self.out) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sleeps until the port can be used, or it is time for something, `due` at the latest.
    fn turn(&mut self, due: Instant) -> Result<()> {
        let timeout = self.host.poll_timeout().map_or(due, |timeout| timeout.min(due));
        let timeout = Timespec::try_from(timeout.saturating_duration_since(Instant::now()))?;
        let room = if self.out.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let mut port = [PollFd::new(&self.vm.port, PollFlags::IN | room)];
        poll(&mut port, Some(&timeout))?;
        let is_readable = port[0].revents().contains(PollFlags::IN);
        let now = Instant::now();
        if is_readable && self.host.wants_bytes() {
            let count = self.vm.port.read(&mut self.input)?;
            ensure!(count > 0, "QEMU is gone");
            self.host.handle_bytes(now, self.input.get(..count).unwrap_or_default());
        }
        if self.host.poll_timeout().is_some_and(|timeout| timeout <= now) {
            self.host.handle_timeout(now);
        }
        Ok(())
    }
}

/// As `vmm` starts it, without a screen, and with a second port.
fn qemu(folder: &Path, memfd: &OwnedFd) -> Result<Command> {
    let under_test = environment()?;
    let initrd = std::env::var("FANLIGHT_EXERCISE_INITRD").context("FANLIGHT_EXERCISE_INITRD is not set")?;
    let shared = format!("/proc/{}/fd/{}", std::process::id(), memfd.as_raw_fd());
    let socket = |name: &str| format!("socket,id={name},path={},server=on,wait=off", folder.join(name).display());
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "qemu64", "-m", "256M", "-smp", "1"]);
    command.args(["-device", "virtio-vga", "-device", "virtio-serial-pci,id=serial0"]);
    for (name, port) in [("bus", "org.fanlight.bus.0"), ("echo", "org.fanlight.echo.0")] {
        command.args(["-chardev", &socket(name)]);
        command.args(["-device", &format!("virtserialport,bus=serial0.0,chardev={name},name={port}")]);
    }
    let object = format!("memory-backend-file,id=memory,share=on,mem-path={shared},size={MEMORY}");
    command.args(["-object", &object, "-device", "ivshmem-plain,memdev=memory,master=on"]);
    command.arg("-kernel").arg(&under_test.kernel).args(["-initrd", &initrd]);
    command.args(["-append", &format!("{} fanlight.agent=/bin/fanlight-bus-exercise", under_test.cmdline)]);
    Ok(command)
}

fn connect(path: &Path) -> Result<UnixStream> {
    wait_until(PATIENCE, format_args!("QEMU at {}", path.display()), || match UnixStream::connect(path) {
        Ok(stream) => Ok(Look::Found(stream)),
        Err(error) => Ok(Look::NotYet(error.to_string())),
    })
}

/// An order in a message of `length` bytes.
fn order(count: u32, item: usize, length: usize) -> Result<Vec<u8>> {
    let item = u32::try_from(item)?;
    let mut order = [&ORDER.to_le_bytes()[..], &[0; 2], &count.to_le_bytes(), &item.to_le_bytes()].concat();
    order.resize(length, 0);
    Ok(order)
}

fn filler(length: usize) -> Vec<u8> {
    let mut filler = FILLER.to_le_bytes().to_vec();
    filler.resize(length, 0x5A);
    filler
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    let filled = getrandom(&mut bytes, GetRandomFlags::empty());
    assert!(filled.is_ok_and(|count| count == bytes.len()), "the system has random numbers");
    u64::from_le_bytes(bytes)
}
