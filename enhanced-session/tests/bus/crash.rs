//! Either end dies at every single step of a conversation, also within a frame, and is started anew.
//!
//! Both must find each other again, open all channels, and hear nothing that was said to or by another incarnation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use enhanced_session::class::Class;
use enhanced_session::control::Reason;
use enhanced_session::endpoint::{ChannelId, Event, Guest, Host, PeerInfo, Preference, SendError, Transport};
use enhanced_session::message::{Message, Txid};
use enhanced_session::region::HeapMemory;

use crate::pair::{Habit, Pair, TRANSPORTS};

/// Rounds of the conversation before and after.
const ROUNDS: usize = 45;
/// What happens in a round: somebody does something, and something goes a little further on the wires.
const STEPS: usize = 6;
/// Bytes that arrive at once: less than a frame of bulk, more than a control message.
const PIECE: usize = 6000;
const CLASSES: [Class; 2] = [Class::Input, Class::Clipboard];

#[test]
fn an_agent_may_die_at_any_step() {
    die_at_every_step(Side::Guest);
}

#[test]
fn a_gateway_may_die_at_any_step() {
    die_at_every_step(Side::Host);
}

#[test]
fn nobody_dies() {
    for transport in TRANSPORTS {
        let mut world = World::new(transport, memory());
        (0..2 * ROUNDS * STEPS).for_each(|step| world.step(step));
        world.check_talks("nobody died");
        assert!(world.pair.host_events.iter().all(|event| !matches!(event, Event::Disconnected(_))));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Host,
    Guest,
}

fn die_at_every_step(victim: Side) {
    for transport in TRANSPORTS {
        // The same for all: each finds what the one before left there.
        let memory = memory();
        for step in 0..ROUNDS * STEPS {
            let mut world = World::new(transport, Arc::clone(&memory));
            (0..step).for_each(|step| world.step(step));
            world.kill(victim, step);
            world.pair.pass(Duration::from_secs(11));
            // Long enough for all that the conversation does by itself, as it goes on from here.
            (step..step + ROUNDS * STEPS).for_each(|step| world.step(step));
            world.check_talks(&format!("{victim:?} died in step {step} on {transport:?}"));
        }
    }
}

/// Room also for a channel that is offered again before its memory was released.
fn memory() -> Arc<HeapMemory> {
    Arc::new(HeapMemory::new(2 << 20))
}

/// Both ends and what their owners do.
struct World {
    pair: Pair,
    transport: Transport,
    preference: Preference,
    host: Owner,
    guest: Owner,
}

/// What an owner remembers of its open channels.
#[derive(Default)]
struct Owner {
    channels: BTreeMap<ChannelId, Talk>,
    seen: usize,
}

#[derive(Default)]
struct Talk {
    sent: u32,
    received: u32,
    to_answer: Option<(Txid, Vec<u8>)>,
}

impl World {
    fn new(transport: Transport, memory: Arc<HeapMemory>) -> Self {
        let preference = match transport {
            Transport::Ring => Preference::Ring,
            Transport::Stream => Preference::Stream,
        };
        let mut pair = Pair::new(Some(memory), Habit::Opens(preference));
        pair.piece = PIECE;
        CLASSES.iter().for_each(|class| assert!(pair.offer(*class).0 > 0));
        pair.host.handle_port_opened(pair.now);
        pair.guest.handle_port_opened(pair.now);
        Self { pair, transport, preference, host: Owner::default(), guest: Owner::default() }
    }

    /// One thing happens.
    fn step(&mut self, step: usize) {
        let (round, step) = (step / STEPS, step % STEPS);
        match step {
            0 => self.interfere(round),
            1 => self.host.work(&mut self.pair.host),
            2 => self.guest.work(&mut self.pair.guest),
            3 => drop(self.pair.transmit()),
            _ => drop(self.pair.deliver()),
        }
        self.pair.collect();
        self.host.hear(&self.pair.host_events);
        let closed = self.guest.hear(&self.pair.guest_events);
        for id in closed {
            // It may be withdrawn as well, or rest.
            self.pair.guest.open(id, self.preference).ok();
        }
        self.pair.now += Duration::from_millis(1);
    }

    /// What owners do besides talking.
    fn interfere(&mut self, round: usize) {
        let first = self.host.channels.keys().next().copied();
        let last = self.host.channels.keys().next_back().copied();
        match (round, first, last) {
            (9, Some(id), _) => self.pair.guest.close(id, Reason::Done),
            (15, _, Some(id)) => self.pair.host.close(id, Reason::Policy),
            (20, _, Some(id)) if self.pair.guest.reset(id).is_ok() => {
                self.guest.channels.insert(id, Talk::default());
            }
            (25, ..) => self.pair.host.quiesce(self.pair.now),
            (30, ..) => self.pair.host.unquiesce(self.pair.now),
            (34, _, Some(id)) => {
                let class =
                    self.pair.host.statistics().channels.iter().find(|channel| channel.id == id).map(|c| c.class);
                self.pair.host.rescind(id, Reason::DeviceRemoved);
                self.pair.offer(class.expect("it was offered"));
            }
            _ => {}
        }
    }

    fn kill(&mut self, victim: Side, step: usize) {
        // What the dead had said arrives, or only half of it; what it had not read is lost, or read by its successor.
        let keep = [0, 5, 1000, usize::MAX][step % 4];
        let (said, unread) = match victim {
            Side::Host => (&mut self.pair.to_guest, &mut self.pair.to_host),
            Side::Guest => (&mut self.pair.to_host, &mut self.pair.to_guest),
        };
        said.cut(keep);
        if step.is_multiple_of(3) {
            unread.clear();
        }
        match victim {
            Side::Host => {
                self.pair.restart_host();
                self.host = Owner::default();
                CLASSES.iter().for_each(|class| assert!(self.pair.offer(*class).0 > 0));
                self.pair.take_host_events();
            }
            Side::Guest => {
                self.pair.restart_guest();
                self.guest = Owner::default();
                self.pair.take_guest_events();
            }
        }
    }

    /// Whether all channels are open at both ends and carry messages.
    fn check_talks(&mut self, what: &str) {
        self.pair.host.unquiesce(self.pair.now);
        let transports: Vec<_> = self.pair.host.statistics().channels.iter().map(|channel| channel.transport).collect();
        assert_eq!(transports, [Some(self.transport); CLASSES.len()], "{what}");
        let before = self.received();
        (0..30 * STEPS).filter(|step| step % STEPS != 0).for_each(|step| self.step(step));
        let after = self.received();
        assert_eq!((before.len(), after.len()), (2 * CLASSES.len(), 2 * CLASSES.len()), "{what}: channels");
        assert!(before.iter().zip(&after).all(|(before, after)| before < after), "{what}: {before:?} {after:?}");
    }

    /// How many messages came in each direction of each channel.
    fn received(&self) -> Vec<u32> {
        let talks = self.host.channels.values().chain(self.guest.channels.values());
        talks.map(|talk| talk.received).collect()
    }
}

/// What both ends can do.
trait End {
    fn peer(&self) -> Option<&PeerInfo>;
    fn epoch(&self) -> u64;
    fn send(&mut self, id: ChannelId, payload: Vec<u8>) -> Result<(), SendError>;
    fn request(&mut self, id: ChannelId, payload: Vec<u8>) -> Result<Txid, SendError>;
    fn complete(&mut self, id: ChannelId, txid: Txid, payload: Vec<u8>) -> Result<(), SendError>;
    fn receive(&mut self, id: ChannelId) -> Option<Message>;
}

macro_rules! end {
    ($end:ident) => {
        impl End for $end<HeapMemory> {
            fn peer(&self) -> Option<&PeerInfo> {
                self.peer()
            }

            fn epoch(&self) -> u64 {
                self.statistics().epoch
            }

            fn send(&mut self, id: ChannelId, payload: Vec<u8>) -> Result<(), SendError> {
                self.send(id, payload)
            }

            fn request(&mut self, id: ChannelId, payload: Vec<u8>) -> Result<Txid, SendError> {
                self.request(id, payload)
            }

            fn complete(&mut self, id: ChannelId, txid: Txid, payload: Vec<u8>) -> Result<(), SendError> {
                self.complete(id, txid, payload)
            }

            fn receive(&mut self, id: ChannelId) -> Option<Message> {
                self.receive(id)
            }
        }
    };
}

end!(Host);
end!(Guest);

impl Owner {
    /// Takes note of what happened. Returns the channels that were closed.
    fn hear(&mut self, events: &[Event]) -> Vec<ChannelId> {
        let mut closed = Vec::new();
        for event in &events[self.seen.min(events.len())..] {
            match event {
                Event::Opened { id, .. } => drop(self.channels.insert(*id, Talk::default())),
                Event::Closed { id, .. } => {
                    self.channels.remove(id);
                    closed.push(*id);
                }
                Event::Faulted { what, .. } => panic!("an honest end was found guilty: {what}"),
                _ => {}
            }
        }
        self.seen = events.len();
        closed
    }

    /// Takes what came and says something on every channel.
    fn work(&mut self, end: &mut dyn End) {
        for (id, talk) in &mut self.channels {
            while let Some(message) = end.receive(*id) {
                talk.take(end, message);
            }
            talk.say(end, *id);
        }
    }
}

impl Talk {
    /// Everything that comes was said by the end that is there, to this start of this end, and in order.
    fn take(&mut self, end: &dyn End, message: Message) {
        let peer = end.peer().expect("somebody said it").epoch;
        let payload = match &message {
            Message::Data(payload) | Message::Request(_, payload) => payload,
            Message::Completion(txid, payload) => {
                assert_eq!(payload[..], address(peer, end.epoch()), "the answer to {txid:?}");
                return;
            }
            Message::Reset => return *self = Self::default(),
            Message::Fin => panic!("nobody finishes"),
        };
        let (told, rest) = payload.split_at(16);
        assert_eq!(told, address(peer, end.epoch()), "of another incarnation");
        let number = u32::from_le_bytes(rest[..4].try_into().expect("four bytes"));
        // After a reset both count anew, one a little later than the other.
        assert!(number == self.received || number == 0 || self.received == 0, "{number} after {}", self.received);
        self.received = number + 1;
        if let Message::Request(txid, _) = message {
            self.to_answer = Some((txid, address(end.epoch(), peer).to_vec()));
        }
    }

    fn say(&mut self, end: &mut dyn End, id: ChannelId) {
        let Some(peer) = end.peer().map(|peer| peer.epoch) else { return };
        if let Some((txid, payload)) = self.to_answer.take() {
            match end.complete(id, txid, payload.clone()) {
                // Not open: its owner closed it, and it is not closed yet.
                Ok(()) | Err(SendError::NoSuchRequest | SendError::NotOpen) => {}
                Err(SendError::Full) => self.to_answer = Some((txid, payload)),
                Err(error) => panic!("{error}"),
            }
            return;
        }
        let mut payload = address(end.epoch(), peer).to_vec();
        payload.extend(self.sent.to_le_bytes());
        payload.resize(if self.sent.is_multiple_of(2) { 20 } else { 4000 }, 7);
        let sent = if self.sent % 3 == 2 { end.request(id, payload).map(drop) } else { end.send(id, payload) };
        match sent {
            Ok(()) => self.sent += 1,
            Err(SendError::Full | SendError::TooManyRequests | SendError::NotOpen) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Who says it, and to whom.
fn address(from: u64, to: u64) -> [u8; 16] {
    let mut address = [0; 16];
    address[..8].copy_from_slice(&from.to_le_bytes());
    address[8..].copy_from_slice(&to.to_le_bytes());
    address
}
