//! A host for trying an agent by hand: connects to the socket that QEMU has for the port, offers the classes that the
//! agent serves, and prints what comes.
//!
//! ```text
//! qemu-system-x86_64 … -device virtio-serial \
//!     -chardev socket,id=bus0,path=/tmp/bus,server=on,wait=off \
//!     -device virtserialport,chardev=bus0,name=org.fanlight.bus.0 \
//!     -object memory-backend-file,id=region,mem-path=/dev/shm/bus,size=64M,share=on \
//!     -device ivshmem-plain,memdev=region
//! cargo run -p guest-agent --example host -- /tmp/bus /dev/shm/bus
//! ```
//!
//! Then, a line each: `type TEXT`, `click X Y`, `touch`, `time`, `pools`, `poweroff`, `reboot`, `all` (offers every class,
//! for fanlight-bus-exercise), `stats`, `quit`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use console::us_layout::{self, Stroke};
use console::{
    ContactPhase, ContactSize, FinePoint, KeyState, PointerButton, Rect, Scancode, TouchContact, TouchFrame,
};
use enhanced_session::class::guest_info::{Pool, Value};
use enhanced_session::class::input::{Event as InputEvent, ToGuest as Input};
use enhanced_session::class::time_sync::{Action as TimeAction, FileTime, Leap};
use enhanced_session::class::{Class, List, Text, guest_info, heartbeat, input, memory, shutdown, time_sync};
use enhanced_session::control::OfferFlags;
use enhanced_session::endpoint::{ChannelId, Event, Host, HostConfig};
use enhanced_session::message::Message;
use enhanced_session::region::{Mapping, SharedMemory as _};
use uuid::Uuid;

const PROVIDED: [Class; 6] =
    [Class::Heartbeat, Class::TimeSync, Class::Shutdown, Class::GuestInfo, Class::Memory, Class::Input];

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().context("usage: host SOCKET [MEMORY]")?;
    let memory = arguments.next().map(|path| map(&path)).transpose()?;
    let socket = UnixStream::connect(&socket).with_context(|| format!("cannot connect to {socket}"))?;
    socket.set_read_timeout(Some(Duration::from_millis(5)))?;

    let (lines, commands) = channel();
    std::thread::spawn(move || {
        std::io::stdin().lock().lines().map_while(Result::ok).try_for_each(|line| lines.send(line))
    });
    let random = || u64::from_le_bytes(Uuid::new_v4().into_bytes()[8..].try_into().expect("8 of 16 bytes"));
    let mut host = Host::new(HostConfig::new(Uuid::new_v4()), memory, Box::new(random), Instant::now());
    for class in PROVIDED {
        host.offer(class, 0, OfferFlags::default())?;
    }
    host.handle_port_opened(Instant::now());
    Session {
        host,
        socket,
        open: BTreeMap::new(),
        serial: 0,
        started: Instant::now(),
        beat: 0,
        next_beat: Instant::now(),
    }
    .run(&commands)
}

fn map(path: &str) -> anyhow::Result<Arc<Mapping>> {
    let file = File::options().read(true).write(true).open(path).with_context(|| format!("cannot open {path}"))?;
    let size = usize::try_from(file.metadata()?.len())?;
    let memory = Mapping::new(file, size)?;
    println!("sharing {} MiB", memory.size() >> 20);
    Ok(Arc::new(memory))
}

struct Session {
    host: Host<Mapping>,
    socket: UnixStream,
    open: BTreeMap<ChannelId, Class>,
    serial: u32,
    started: Instant,
    beat: u64,
    next_beat: Instant,
}

impl Session {
    fn run(mut self, commands: &Receiver<String>) -> anyhow::Result<()> {
        let mut buffer = [0; 64 * 1024];
        loop {
            let now = Instant::now();
            if self.host.poll_timeout().is_some_and(|timeout| timeout <= now) {
                self.host.handle_timeout(now);
            }
            while let Some(event) = self.host.poll_event() {
                self.event(event);
            }
            for id in self.open.keys().copied().collect::<Vec<_>>() {
                while let Some(message) = self.host.receive(id) {
                    self.message(id, &message);
                }
            }
            if now >= self.next_beat {
                self.next_beat = now + heartbeat::INTERVAL;
                self.beat += 2;
                self.send(Class::Heartbeat, heartbeat::ToGuest::Beat { sequence: self.beat }.encode());
            }
            while let Ok(line) = commands.try_recv() {
                if line == "quit" {
                    return Ok(());
                }
                self.command(&line);
            }
            let mut out = Vec::new();
            while self.host.poll_transmit(now, &mut out) {}
            self.socket.write_all(&out)?;
            match self.socket.read(&mut buffer) {
                Ok(0) => anyhow::bail!("QEMU closed the socket"),
                Ok(count) => self.host.handle_bytes(Instant::now(), buffer.get(..count).unwrap_or_default()),
                Err(_) => {}
            }
        }
    }

    fn event(&mut self, event: Event) {
        match &event {
            Event::Opened { id, transport } => {
                let statistics = self.host.statistics();
                let class = statistics.channels.iter().find(|channel| channel.id == *id).map(|channel| channel.class);
                self.open.extend(class.map(|class| (*id, class)));
                self.say(&format!("{} is open, {transport:?}", class.map_or("?", Class::name)));
                match class {
                    Some(Class::Input) => {
                        let desktop = Rect { x: 0, y: 0, width: 1280, height: 800 };
                        self.send(Class::Input, Input::Layout { monitors: List::from([desktop]) }.encode());
                    }
                    Some(Class::TimeSync) => self.time(TimeAction::Step),
                    _ => {}
                }
            }
            Event::Closed { id, .. } => {
                self.open.remove(id);
                self.say(&format!("{event:?}"));
            }
            Event::Readable(_) | Event::Writable(_) => {}
            _ => self.say(&format!("{event:?}")),
        }
    }

    fn message(&self, id: ChannelId, message: &Message) {
        let Some(class) = self.open.get(&id) else { return };
        let text = match (class, message) {
            (Class::Heartbeat, Message::Data(bytes)) => format!("{:?}", heartbeat::ToHost::decode(bytes)),
            (Class::TimeSync, Message::Data(bytes)) => format!("{:?}", time_sync::ToHost::decode(bytes)),
            (Class::Shutdown, Message::Data(bytes)) => format!("{:?}", shutdown::ToHost::decode(bytes)),
            (Class::Shutdown, Message::Completion(_, bytes)) => format!("{:?}", shutdown::Response::decode(bytes)),
            (Class::GuestInfo, Message::Data(bytes)) => format!("{:#?}", guest_info::ToHost::decode(bytes)),
            (Class::GuestInfo, Message::Completion(_, bytes)) => format!("{:?}", guest_info::Response::decode(bytes)),
            (Class::Memory, Message::Data(bytes)) => format!("{:?}", memory::ToHost::decode(bytes)),
            (Class::Input, Message::Data(bytes)) => format!("{:?}", input::ToHost::decode(bytes)),
            (_, message) => format!("{message:?}"),
        };
        self.say(&format!("{class}: {text}"));
    }

    fn command(&mut self, line: &str) {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "type" => rest.chars().chain(['\n']).for_each(|character| self.type_character(character)),
            "click" => {
                let mut numbers = rest.split(' ').map(|number| number.parse().unwrap_or(0) * 100);
                let position = FinePoint { x: numbers.next().unwrap_or(0), y: numbers.next().unwrap_or(0) };
                let button = |state| InputEvent::Button { button: PointerButton::Left, state };
                let moved = InputEvent::MoveTo { monitor: 0, position };
                self.input_events(&[moved, button(KeyState::Pressed), button(KeyState::Released)]);
            }
            "touch" => self.touch(),
            "time" => self.time(TimeAction::Sample),
            "pools" => {
                let text = Text::new("from the host").unwrap_or_default();
                let (pool, key) = (Pool::External, Text::new("greeting").unwrap_or_default());
                let set = guest_info::Request::Set { pool, key: key.clone(), value: Value::Text { text } };
                self.request(Class::GuestInfo, set.encode());
                self.request(Class::GuestInfo, guest_info::Request::Get { pool, key }.encode());
                for index in 0..11 {
                    let next = guest_info::Request::Enumerate { pool: Pool::Auto, index };
                    self.request(Class::GuestInfo, next.encode());
                }
            }
            "poweroff" => self.down(shutdown::Action::PowerOff),
            "reboot" => self.down(shutdown::Action::Reboot),
            "all" => {
                for class in Class::ALL.into_iter().filter(|class| !PROVIDED.contains(class)) {
                    let offered = self.host.offer(class, 0, OfferFlags::default());
                    self.say(&format!("{class}: {offered:?}"));
                }
            }
            "stats" => println!("{:#?}", self.host.statistics()),
            _ => println!("type TEXT, click X Y, touch, time, pools, poweroff, reboot, all, stats, quit"),
        }
    }

    fn type_character(&mut self, character: char) {
        let Some(Stroke { code, shift }) = us_layout::stroke(character) else { return };
        let key = |code, state| InputEvent::Key { scancode: Scancode::plain(code), state };
        let strike = [key(code, KeyState::Pressed), key(code, KeyState::Released)];
        let shift_key = |state| key(0x2a, state);
        if shift {
            self.input_events(&[shift_key(KeyState::Pressed), strike[0], strike[1], shift_key(KeyState::Released)]);
        } else {
            self.input_events(&strike);
        }
    }

    /// Ten fingers, down together, moving together, up together.
    fn touch(&mut self) {
        for (step, phase) in [ContactPhase::Down, ContactPhase::Move, ContactPhase::Up].into_iter().enumerate() {
            let step = i32::try_from(step).unwrap_or(0);
            let contact = |id: u16| TouchContact {
                id,
                phase,
                position: FinePoint { x: i32::from(id) * 10_000 + step * 500, y: 40_000 },
                pressure: Some(1000 * (id + 1)),
                size: Some(ContactSize { width: 1000, height: 2000 }),
                orientation: Some(30),
            };
            let frame = TouchFrame { contacts: (0..10).map(contact).collect(), since_previous: Duration::ZERO };
            self.serial += 1;
            if let Ok(message) = Input::touch(self.serial, 0, frame) {
                self.send(Class::Input, message.encode());
            }
        }
    }

    fn input_events(&mut self, events: &[InputEvent]) {
        self.serial += 1;
        self.send(Class::Input, Input::Events { serial: self.serial, events: List::first(events.to_vec()) }.encode());
    }

    fn time(&mut self, action: TimeAction) {
        let time = FileTime::from(SystemTime::now());
        self.serial += 1;
        let (sequence, delay) = (self.serial.into(), Duration::ZERO);
        let message = time_sync::ToGuest::Time { sequence, time, delay, action, leap: Leap::None, stratum: 3 };
        self.send(Class::TimeSync, message.encode());
    }

    fn down(&mut self, action: shutdown::Action) {
        let message = Text::new("the host says good bye").unwrap_or_default();
        let down = shutdown::Request::Down { action, force: false, timeout: Duration::ZERO, message };
        self.request(Class::Shutdown, down.encode());
    }

    /// Waits for room: a person types slowly, a line of text does not.
    fn send(&mut self, class: Class, bytes: Vec<u8>) {
        let Some(id) = self.id(class) else { return };
        while self.host.send(id, bytes.clone()) == Err(enhanced_session::endpoint::SendError::Full) {
            let mut out = Vec::new();
            while self.host.poll_transmit(Instant::now(), &mut out) {}
            let _ = self.socket.write_all(&out);
        }
    }

    fn request(&mut self, class: Class, bytes: Vec<u8>) {
        let Some(id) = self.id(class) else { return };
        while self.host.request(id, bytes.clone()) == Err(enhanced_session::endpoint::SendError::Full) {
            let mut out = Vec::new();
            while self.host.poll_transmit(Instant::now(), &mut out) {}
            let _ = self.socket.write_all(&out);
        }
    }

    fn id(&self, class: Class) -> Option<ChannelId> {
        self.open.iter().find(|(_, each)| **each == class).map(|(id, _)| *id)
    }

    fn say(&self, text: &str) {
        println!("{:8.3} {text}", self.started.elapsed().as_secs_f64());
    }
}
