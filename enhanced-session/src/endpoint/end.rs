//! What both ends are made of: the link, the channels that are open on it, and what happened.
//!
//! It knows neither offers nor who may open what: `Host` and `Guest` decide that, and hand it channels that are open.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::class::{Class, Priority};
use crate::message::{Message, Outgoing, Txid};
use crate::packet::PACKET_HEADER;
use crate::region::SharedMemory;
use crate::ring::{Raiser, Watcher};
use crate::stream::{Emitted, MAX_BULK_PAYLOAD, Role};

use super::conversation::{Conversation, Reply};
use super::event::{Event, Fault, SendError};
use super::kicks::KickMeter;
use super::link::{Heard, Link, Random};
use super::pipe::{Pipe, RingPipe, StreamPipe};
use super::statistics::{Bytes, Statistics, Traffic};
use super::{ChannelId, Transport};

/// Bytes of small frames that are handed out at once.
const TRANSMIT_BYTES: usize = MAX_BULK_PAYLOAD;
/// Bytes of a ring that are taken at once: more have their turn with the next timeout, which comes at once too. A peer
/// can write faster than it is read, and others wait meanwhile.
const SERVE_BYTES: usize = 256 << 10;
/// Bytes of messages that the owner is given of one channel; then all others have their turn, the most urgent first.
const TURN_BYTES: usize = MAX_BULK_PAYLOAD;
/// How long a ring is not looked at that nobody kicks for. Whoever is awake then looks at all of them: a kick that was
/// lost, whoever lost it, costs seconds and never a channel.
const LOOK_AT_ALL_AFTER: Duration = Duration::from_millis(2500);

#[derive(Debug)]
pub(super) struct End<M> {
    pub(super) link: Link,
    open: BTreeMap<u32, OpenChannel<M>>,
    signals: Option<Signals<M>>,
    kicks: KickMeter,
    /// The map is to be looked at.
    kicked: bool,
    /// When all channels were last looked at.
    looked_at_all: Instant,
    /// Channels that are to be served again: they have had their turn, and may have more.
    again: BTreeSet<u32>,
    /// Channels whose rule was broken, for `Host` and `Guest` to close.
    faults: VecDeque<(u32, Fault)>,
    pub(super) events: VecDeque<Event>,
    /// Nothing is to be sent on channels (PAUSE).
    held: bool,
    /// The time of the last input.
    pub(super) now: Instant,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    connections: u64,
    port: Bytes,
    kicks_sent: u64,
    kicks_received: u64,
    faults: u64,
}

#[derive(Debug)]
struct OpenChannel<M> {
    conversation: Conversation,
    pipe: Pipe<M>,
    /// The owner was told that the channel is full.
    wants_room: bool,
    /// Bytes that the owner was given in this turn.
    given: usize,
}

/// Both halves of the pending map.
#[derive(Debug)]
struct Signals<M> {
    raiser: Raiser<Arc<M>>,
    watcher: Watcher<Arc<M>>,
}

impl<M: SharedMemory> End<M> {
    pub(super) fn new(role: Role, random: Random, now: Instant) -> Self {
        Self {
            link: Link::new(role, random, now),
            open: BTreeMap::new(),
            signals: None,
            kicks: KickMeter::new(now),
            kicked: false,
            looked_at_all: now,
            again: BTreeSet::new(),
            faults: VecDeque::new(),
            events: VecDeque::new(),
            held: false,
            now,
            counters: Counters::default(),
        }
    }

    /// Takes note of the time; it never goes back.
    pub(super) fn set_now(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// The next thing in `input` that `Host` or `Guest` decides about; the rest is dealt with.
    pub(super) fn hear(&mut self, input: &mut &[u8]) -> Option<Heard> {
        let before = input.len();
        let heard = loop {
            match self.link.hear(self.now, input) {
                Some(Heard::Data { channel, body }) => self.accept(channel, body),
                Some(Heard::Window { channel, credit }) => self.link.scheduler.add_credit(channel, credit),
                Some(Heard::Kick) => {
                    self.counters.kicks_received += 1;
                    self.kicked |= self.kicks.kick(self.now);
                }
                Some(Heard::Alive) => self.serve_all(),
                heard => break heard,
            }
        };
        self.counters.port.received += before.saturating_sub(input.len()) as u64;
        self.counters.connections += u64::from(matches!(heard, Some(Heard::InStep)));
        heard
    }

    /// After all input was heard: looks at what was kicked, and sometimes at the rest.
    pub(super) fn look_where_kicked(&mut self) {
        if !std::mem::take(&mut self.kicked) {
            return;
        }
        self.look_at_map();
        if self.now.saturating_duration_since(self.looked_at_all) >= LOOK_AT_ALL_AFTER {
            self.serve_all();
        }
    }

    fn look_at_map(&mut self) {
        let Some(signals) = &mut self.signals else { return };
        let mut pending = Vec::new();
        signals.watcher.take(&mut pending);
        pending.into_iter().for_each(|channel| self.serve(channel));
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let again = (!self.again.is_empty()).then_some(self.now);
        [self.link.poll_timeout(), self.kicks.poll_timeout(), again].into_iter().flatten().min()
    }

    /// Does what time has come for; returns what `Host` or `Guest` decides about.
    pub(super) fn handle_timeout(&mut self) -> Option<Heard> {
        // Who has more to say has waited for those who were not heard meanwhile.
        if self.kicks.handle_timeout(self.now) || !self.again.is_empty() {
            self.look_at_map();
        }
        for channel in std::mem::take(&mut self.again) {
            self.serve_again(channel);
        }
        match self.link.handle_timeout(self.now)? {
            Heard::Alive => {
                self.serve_all();
                None
            }
            heard => Some(heard),
        }
    }

    /// Writes what goes out next to the end of `out`. Returns whether there was anything.
    pub(super) fn poll_transmit(&mut self, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        while out.len() - start < TRANSMIT_BYTES {
            let Some(emitted) = self.link.next_frame(out) else { break };
            let Emitted::Packet { channel, priority, ends_message } = emitted else { continue };
            if ends_message {
                self.tell_room(channel);
            }
            if matches!(priority, Priority::Video | Priority::Bulk) {
                break;
            }
        }
        self.counters.port.sent += (out.len() - start) as u64;
        out.len() > start
    }

    fn tell_room(&mut self, channel: u32) {
        let Some(open) = self.open.get_mut(&channel) else { return };
        if std::mem::take(&mut open.wants_room) {
            self.events.push_back(Event::Writable(ChannelId(channel)));
        }
    }

    /// Rings can be used from now on.
    pub(super) fn attach_signals(&mut self, raiser: Raiser<Arc<M>>, watcher: Watcher<Arc<M>>) {
        self.signals = Some(Signals { raiser, watcher });
    }

    pub(super) const fn has_signals(&self) -> bool {
        self.signals.is_some()
    }

    /// A channel is open, on the stream.
    pub(super) fn open_stream(&mut self, channel: u32, class: Class, window: u32) {
        self.link.scheduler.open(channel, class, window);
        self.insert(channel, class, Pipe::Stream(StreamPipe::new(class, window)));
    }

    /// A channel is open, on rings. What the other end has put there before is found.
    pub(super) fn open_ring(&mut self, channel: u32, class: Class, pipe: RingPipe<M>) {
        self.insert(channel, class, Pipe::Ring(Box::new(pipe)));
        self.serve(channel);
    }

    fn insert(&mut self, channel: u32, class: Class, pipe: Pipe<M>) {
        let limit = usize::try_from(class.limits().message).unwrap_or(usize::MAX);
        let transport = pipe.transport();
        let conversation = Conversation::new(limit);
        self.open.insert(channel, OpenChannel { conversation, pipe, wants_room: false, given: 0 });
        self.events.push_back(Event::Opened { id: ChannelId(channel), transport });
    }

    /// A channel is not open any more: nothing of it is left.
    pub(super) fn close(&mut self, channel: u32) {
        self.link.scheduler.close(channel);
        self.again.remove(&channel);
        self.open.remove(&channel);
    }

    /// The two ends have lost each other: nothing of any channel is left.
    pub(super) fn close_all(&mut self) {
        self.signals = None;
        self.kicked = false;
        self.again.clear();
        self.faults.clear();
        for channel in std::mem::take(&mut self.open).into_keys() {
            self.link.scheduler.close(channel);
        }
    }

    /// Nothing more is heard of a channel whose rule was broken.
    pub(super) fn fault(&mut self, channel: u32, fault: Fault) {
        self.close(channel);
        self.faults.push_back((channel, fault));
    }

    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }

    /// The next channel that broke a rule.
    pub(super) fn next_fault(&mut self) -> Option<(u32, Fault)> {
        let (channel, fault) = self.faults.pop_front()?;
        self.counters.faults += 1;
        Some((channel, fault))
    }

    /// Nothing is sent on channels while held.
    pub(super) fn hold(&mut self, held: bool) {
        self.held = held;
        self.link.scheduler.hold(held);
        if !held {
            self.serve_all();
        }
    }

    /// Whether nothing is under way in either direction: all that was sent has been taken.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.serve_all();
        let scheduler = &self.link.scheduler;
        let quiet = |(channel, open): (&u32, &mut OpenChannel<M>)| {
            !open.conversation.is_ready()
                && match &mut open.pipe {
                    Pipe::Stream(stream) => stream.is_empty() && scheduler.is_taken(*channel),
                    // A ring that cannot be read is found out when it is served.
                    Pipe::Ring(ring) => ring.is_taken().unwrap_or(true),
                }
        };
        self.open.iter_mut().all(quiet)
    }

    /// A DATA frame came. On a channel that is not open it is late.
    fn accept(&mut self, channel: u32, body: Vec<u8>) {
        let Some(open) = self.open.get_mut(&channel) else { return };
        let Pipe::Stream(stream) = &mut open.pipe else { return };
        match stream.accept(body) {
            Ok(()) => self.serve(channel),
            Err(fault) => self.fault(channel, fault),
        }
    }

    fn serve_all(&mut self) {
        self.looked_at_all = self.now;
        let open: Vec<u32> = self.open.keys().copied().collect();
        open.into_iter().for_each(|channel| self.serve(channel));
    }

    /// Moves packets: until a message is ready, and as far as there is room for what waits.
    fn serve(&mut self, channel: u32) {
        let Some(open) = self.open.get_mut(&channel) else { return };
        let was_ready = open.conversation.is_ready();
        if let Err(fault) = self.try_serve(channel) {
            self.fault(channel, fault);
            return;
        }
        if let Some(open) = self.open.get_mut(&channel).filter(|open| !was_ready && open.conversation.is_ready()) {
            open.given = 0;
            self.events.push_back(Event::Readable(ChannelId(channel)));
        }
    }

    /// The next turn of a channel.
    fn serve_again(&mut self, channel: u32) {
        let Some(open) = self.open.get_mut(&channel) else { return };
        open.given = 0;
        if open.conversation.is_ready() {
            self.events.push_back(Event::Readable(ChannelId(channel)));
        } else {
            self.serve(channel);
        }
    }

    fn try_serve(&mut self, channel: u32) -> Result<(), Fault> {
        let Some(open) = self.open.get_mut(&channel) else { return Ok(()) };
        let mut budget = SERVE_BYTES;
        while !open.conversation.is_ready() && budget > 0 {
            let Some((header, payload)) = open.pipe.next_packet()? else { break };
            budget = budget.saturating_sub(PACKET_HEADER + payload.len());
            match open.conversation.push(header, payload)? {
                Reply::None => {}
                Reply::Reset => open.submit_reset(channel, &mut self.link),
            }
        }
        if budget == 0 && !open.conversation.is_ready() {
            self.again.insert(channel);
        }
        self.publish(channel)
    }

    /// Gives credit or room, and sends what there is room for.
    fn publish(&mut self, channel: u32) -> Result<(), Fault> {
        let Some(open) = self.open.get_mut(&channel) else { return Ok(()) };
        match &mut open.pipe {
            Pipe::Stream(stream) => {
                if let Some(credit) = stream.credit_due() {
                    self.link.scheduler.push_credit(channel, credit);
                }
            }
            Pipe::Ring(ring) => {
                if !self.held {
                    ring.pump()?;
                }
                let (is_free, must_kick) = (ring.is_free(), ring.publish()?);
                if must_kick {
                    self.kick(channel);
                }
                if is_free {
                    self.tell_room(channel);
                }
            }
        }
        Ok(())
    }

    fn kick(&mut self, channel: u32) {
        if self.signals.as_mut().is_some_and(|signals| signals.raiser.raise(channel)) {
            self.counters.kicks_sent += 1;
            self.link.scheduler.push_kick();
        }
    }

    /// The next message of a channel, which gives the other end room for more. None: there is none, or others have their
    /// turn before.
    pub(super) fn receive(&mut self, id: ChannelId) -> Option<Message> {
        let open = self.open.get_mut(&id.0)?;
        if open.given >= TURN_BYTES && open.conversation.is_ready() {
            self.again.insert(id.0);
            return None;
        }
        let message = open.conversation.take()?;
        open.given = open.given.saturating_add(PACKET_HEADER + message.payload_length());
        if let Err(fault) = self.try_serve(id.0) {
            self.fault(id.0, fault);
        }
        Some(message)
    }

    /// Whether a channel that is open takes a message now. If it does not, the owner is told when it does.
    pub(super) fn has_room(&mut self, id: ChannelId) -> bool {
        let Some(open) = self.open.get_mut(&id.0) else { return false };
        let is_free = open.is_free(id.0, &self.link);
        open.wants_room |= !is_free;
        is_free
    }

    pub(super) fn send(&mut self, id: ChannelId, payload: Vec<u8>) -> Result<(), SendError> {
        self.begin(id, |conversation| conversation.data(payload).map(|outgoing| ((), outgoing)))
    }

    pub(super) fn request(&mut self, id: ChannelId, payload: Vec<u8>) -> Result<Txid, SendError> {
        self.begin(id, |conversation| conversation.request(payload))
    }

    pub(super) fn complete(&mut self, id: ChannelId, txid: Txid, payload: Vec<u8>) -> Result<(), SendError> {
        self.begin(id, |conversation| conversation.completion(txid, payload).map(|outgoing| ((), outgoing)))
    }

    pub(super) fn finish(&mut self, id: ChannelId) -> Result<(), SendError> {
        self.begin(id, |conversation| conversation.finish().map(|outgoing| ((), outgoing)))
    }

    pub(super) fn reset(&mut self, id: ChannelId) -> Result<(), SendError> {
        let open = self.open.get_mut(&id.0).ok_or(SendError::NotOpen)?;
        open.conversation.reset();
        open.submit_reset(id.0, &mut self.link);
        self.serve(id.0);
        Ok(())
    }

    /// Begins to send what `message` makes, if the channel is free.
    fn begin<T>(
        &mut self,
        id: ChannelId,
        message: impl FnOnce(&mut Conversation) -> Result<(T, Outgoing), SendError>,
    ) -> Result<T, SendError> {
        let open = self.open.get_mut(&id.0).ok_or(SendError::NotOpen)?;
        if !open.is_free(id.0, &self.link) {
            open.wants_room = true;
            return Err(SendError::Full);
        }
        let (result, outgoing) = message(&mut open.conversation)?;
        open.submit(id.0, &mut self.link, outgoing);
        if let Err(fault) = self.publish(id.0) {
            self.fault(id.0, fault);
        }
        Ok(result)
    }

    pub(super) fn statistics(&self) -> Statistics {
        Statistics {
            epoch: self.link.epoch(),
            region_attached: self.signals.is_some(),
            connections: self.counters.connections,
            port: self.counters.port,
            kicks_sent: self.counters.kicks_sent,
            kicks_received: self.counters.kicks_received,
            faults: self.counters.faults,
            ..Statistics::default()
        }
    }

    /// How an open channel stands: what carries it, what came, what was sent.
    pub(super) fn traffic(&self, channel: u32) -> Option<(Transport, Traffic, Traffic)> {
        let open = self.open.get(&channel)?;
        Some((open.pipe.transport(), open.conversation.received, open.conversation.sent))
    }
}

impl<M: SharedMemory> OpenChannel<M> {
    fn is_free(&self, channel: u32, link: &Link) -> bool {
        match &self.pipe {
            Pipe::Stream(_) => link.scheduler.is_free(channel),
            Pipe::Ring(ring) => ring.is_free(),
        }
    }

    /// RESET waits, in the place of a message that is being sent.
    fn submit_reset(&mut self, channel: u32, link: &mut Link) {
        match &mut self.pipe {
            Pipe::Stream(_) => link.scheduler.submit_reset(channel),
            Pipe::Ring(ring) => ring.submit_reset(),
        }
    }

    /// A message waits; the channel is free.
    fn submit(&mut self, channel: u32, link: &mut Link, outgoing: Outgoing) {
        match &mut self.pipe {
            Pipe::Stream(_) => link.scheduler.submit(channel, outgoing),
            Pipe::Ring(ring) => ring.submit(outgoing),
        }
    }
}
