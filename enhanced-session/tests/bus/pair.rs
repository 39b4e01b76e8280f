//! Both ends in one place: a clock that only the test moves, and two wires with a latency and a piece size.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use enhanced_session::class::Class;
use enhanced_session::control::{AgentVersion, OfferFlags, Os};
use enhanced_session::endpoint::{
    ChannelId, DEFAULT_WINDOW, Event, Guest, GuestConfig, Host, HostConfig, OfferInfo, Preference, Random, Transport,
};
use enhanced_session::message::Message;
use enhanced_session::region::HeapMemory;
use uuid::Uuid;

/// Steps after which two ends that still talk are taken to do so for ever.
const MAX_STEPS: usize = 200_000;
/// Room for all rings, and some surfaces.
pub(crate) const REGION: usize = 16 << 20;

pub(crate) const TRANSPORTS: [Transport; 2] = [Transport::Stream, Transport::Ring];

/// Numbers that are the same each time.
pub(crate) fn random(seed: u64) -> Random {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    Box::new(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
}

/// What the guest's owner does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Habit {
    /// Answers for the shared memory, and opens all that is offered.
    Opens(Preference),
    /// Opens also what was closed.
    Reopens(Preference),
    /// Answers for the shared memory only.
    Attaches,
    /// Nothing.
    Nothing,
}

/// Bytes on their way in one direction.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    bytes: VecDeque<(Instant, Vec<u8>)>,
}

impl Wire {
    fn push(&mut self, due: Instant, bytes: Vec<u8>) {
        self.bytes.push_back((due, bytes));
    }

    /// What has arrived, at most `piece` bytes.
    fn pop(&mut self, now: Instant, piece: usize) -> Option<Vec<u8>> {
        let (_, bytes) = self.bytes.front_mut().filter(|(due, _)| *due <= now)?;
        if bytes.len() > piece {
            return Some(bytes.drain(..piece).collect());
        }
        self.bytes.pop_front().map(|(_, bytes)| bytes)
    }

    /// Changes a byte that is on its way, if there are any. Returns whether there were.
    pub(crate) fn damage(&mut self, place: usize, value: u8) -> bool {
        let length: usize = self.bytes.iter().map(|(_, bytes)| bytes.len()).sum();
        let byte = self.bytes.iter_mut().flat_map(|(_, bytes)| bytes).nth(place.checked_rem(length).unwrap_or(0));
        byte.map(|byte| *byte ^= value).is_some()
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Keeps only so many bytes of all that are on their way.
    pub(crate) fn cut(&mut self, mut keep: usize) {
        self.bytes.retain_mut(|(_, bytes)| {
            bytes.truncate(keep);
            keep -= bytes.len();
            !bytes.is_empty()
        });
    }
}

pub(crate) struct Pair {
    pub(crate) host: Host<HeapMemory>,
    pub(crate) guest: Guest<HeapMemory>,
    pub(crate) memory: Option<Arc<HeapMemory>>,
    pub(crate) now: Instant,
    pub(crate) latency: Duration,
    pub(crate) piece: usize,
    pub(crate) habit: Habit,
    pub(crate) to_guest: Wire,
    pub(crate) to_host: Wire,
    pub(crate) host_events: Vec<Event>,
    pub(crate) guest_events: Vec<Event>,
    /// Of the latest start of an end.
    seed: u64,
}

impl Pair {
    /// Two ends whose ports are closed.
    pub(crate) fn new(memory: Option<Arc<HeapMemory>>, habit: Habit) -> Self {
        let now = Instant::now();
        Self {
            host: new_host(memory.clone(), DEFAULT_WINDOW, 1, now),
            guest: new_guest(2, now),
            memory,
            now,
            latency: Duration::ZERO,
            piece: usize::MAX,
            habit,
            to_guest: Wire::default(),
            to_host: Wire::default(),
            host_events: Vec::new(),
            guest_events: Vec::new(),
            seed: 2,
        }
    }

    /// On the stream only.
    pub(crate) fn stream() -> Self {
        Self::new(None, Habit::Opens(Preference::Stream))
    }

    /// With shared memory.
    pub(crate) fn rings() -> Self {
        Self::new(Some(Arc::new(HeapMemory::new(REGION))), Habit::Opens(Preference::Ring))
    }

    /// Of one of the two kinds.
    pub(crate) fn on(transport: Transport) -> Self {
        match transport {
            Transport::Stream => Self::stream(),
            Transport::Ring => Self::rings(),
        }
    }

    /// With a host that gives so much credit.
    pub(crate) fn with_window(mut self, window: u32) -> Self {
        self.host = new_host(self.memory.clone(), window, 1, self.now);
        self
    }

    /// Opens both ports and lets the ends find each other.
    pub(crate) fn connect(mut self) -> Self {
        self.host.handle_port_opened(self.now);
        self.guest.handle_port_opened(self.now);
        self.run();
        self
    }

    /// Connected, with these channels open.
    pub(crate) fn with(mut self, classes: &[Class]) -> (Self, Vec<ChannelId>) {
        let ids: Vec<ChannelId> = classes.iter().map(|class| self.offer(*class)).collect();
        let pair = self.connect();
        (pair, ids)
    }

    pub(crate) fn offer(&mut self, class: Class) -> ChannelId {
        self.host.offer(class, 0, OfferFlags::SURFACES).expect("there is room")
    }

    /// Another start of the gateway, with the same memory.
    pub(crate) fn restart_host(&mut self) {
        self.seed += 1;
        self.host = new_host(self.memory.clone(), DEFAULT_WINDOW, self.seed, self.now);
        self.host.handle_port_opened(self.now);
    }

    /// Another start of the agent.
    pub(crate) fn restart_guest(&mut self) {
        self.seed += 1;
        self.guest = new_guest(self.seed, self.now);
        self.guest.handle_port_opened(self.now);
    }

    /// Lets everything happen that can happen now, and takes the latency that it needs.
    pub(crate) fn run(&mut self) {
        for _ in 0..MAX_STEPS {
            if !self.step() {
                return;
            }
        }
        panic!("two ends that talk for ever");
    }

    /// One thing each. Returns whether anything happened.
    pub(crate) fn step(&mut self) -> bool {
        let mut busy = self.transmit();
        busy |= self.deliver();
        busy |= self.time_out();
        self.collect();
        let due =
            [&self.to_guest, &self.to_host].into_iter().filter_map(|wire| wire.bytes.front()).map(|(due, _)| *due);
        if let Some(due) = due.min().filter(|_| !busy) {
            self.now = self.now.max(due);
            busy = true;
        }
        busy
    }

    pub(crate) fn transmit(&mut self) -> bool {
        let (mut to_guest, mut to_host) = (Vec::new(), Vec::new());
        let busy = self.host.poll_transmit(self.now, &mut to_guest) | self.guest.poll_transmit(self.now, &mut to_host);
        for (wire, bytes) in [(&mut self.to_guest, to_guest), (&mut self.to_host, to_host)] {
            if !bytes.is_empty() {
                wire.push(self.now + self.latency, bytes);
            }
        }
        busy
    }

    pub(crate) fn deliver(&mut self) -> bool {
        let to_guest = self.to_guest.pop(self.now, self.piece);
        let to_host = self.to_host.pop(self.now, self.piece);
        if let Some(bytes) = &to_guest {
            self.guest.handle_bytes(self.now, bytes);
        }
        if let Some(bytes) = &to_host {
            self.host.handle_bytes(self.now, bytes);
        }
        to_guest.is_some() || to_host.is_some()
    }

    fn time_out(&mut self) -> bool {
        let (host, guest) = (self.host.poll_timeout(), self.guest.poll_timeout());
        let due = |timeout: Option<Instant>| timeout.is_some_and(|timeout| timeout <= self.now);
        if due(host) {
            self.host.handle_timeout(self.now);
        }
        if due(guest) {
            self.guest.handle_timeout(self.now);
        }
        due(host) || due(guest)
    }

    /// Takes events, and does what the guest's owner does by itself.
    pub(crate) fn collect(&mut self) {
        while let Some(event) = self.host.poll_event() {
            self.host_events.push(event);
        }
        while let Some(event) = self.guest.poll_event() {
            match (&event, self.habit) {
                (Event::RegionOffered(_), Habit::Opens(_) | Habit::Reopens(_) | Habit::Attaches) => {
                    let memory = self.memory.clone().expect("there is shared memory");
                    // A host that died since has left it as it was, or its successor has taken it.
                    if self.guest.attach(memory).is_err() {
                        self.guest.decline();
                    }
                }
                (Event::Offered(info), Habit::Opens(preference)) => {
                    self.guest.open(info.id, preference).expect("it can be opened");
                }
                // It may be withdrawn meanwhile, or rest.
                (Event::Offered(OfferInfo { id, .. }) | Event::Closed { id, .. }, Habit::Reopens(preference)) => {
                    self.guest.open(*id, preference).ok();
                }
                _ => {}
            }
            self.guest_events.push(event);
        }
    }

    /// Lets this much time pass, and everything happen in it.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.run();
            let next = [self.host.poll_timeout(), self.guest.poll_timeout()].into_iter().flatten().min();
            match next.filter(|next| *next <= end) {
                Some(next) => self.now = self.now.max(next),
                None => break,
            }
        }
        self.now = end;
        self.run();
    }

    /// Sends from the host and returns what the guest takes.
    pub(crate) fn send_down(&mut self, id: ChannelId, payload: &[u8]) -> Option<Message> {
        self.host.send(id, payload.to_vec()).expect("it is open and free");
        self.run();
        self.guest.receive(id)
    }

    /// Sends from the guest and returns what the host takes.
    pub(crate) fn send_up(&mut self, id: ChannelId, payload: &[u8]) -> Option<Message> {
        self.guest.send(id, payload.to_vec()).expect("it is open and free");
        self.run();
        self.host.receive(id)
    }

    /// The next message at the guest, as soon as its channel has its turn.
    pub(crate) fn take_down(&mut self, id: ChannelId) -> Option<Message> {
        self.guest.receive(id).or_else(|| {
            self.run();
            self.guest.receive(id)
        })
    }

    /// Whether a channel carries messages in both directions.
    pub(crate) fn talks(&mut self, id: ChannelId) -> bool {
        let message = |payload: &[u8]| Some(Message::Data(payload.to_vec()));
        self.send_down(id, b"down") == message(b"down") && self.send_up(id, b"up") == message(b"up")
    }

    pub(crate) fn take_host_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.host_events)
    }

    pub(crate) fn take_guest_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.guest_events)
    }
}

fn new_host(memory: Option<Arc<HeapMemory>>, window: u32, seed: u64, now: Instant) -> Host<HeapMemory> {
    let config = HostConfig { window, ..HostConfig::new(Uuid::from_u128(1)) };
    Host::new(config, memory, random(seed), now)
}

fn new_guest(seed: u64, now: Instant) -> Guest<HeapMemory> {
    let config = GuestConfig { name: "test agent".into(), version: AgentVersion(1, 2, 3), os: Os::Linux };
    Guest::new(config, random(seed), now)
}
