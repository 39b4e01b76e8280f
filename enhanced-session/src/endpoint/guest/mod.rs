//! The agent's end: it opens the channels that it can serve.

mod channels;
mod control;
mod surfaces;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use crate::control::{AgentVersion, Contact, ControlMessage, Features, MAJOR, MINOR, Os, Reason, RegionHint};
use crate::message::{Message, Txid};
use crate::region::{Direction, GuestPage, HostPage, MIN_REGION, SharedMemory};
use crate::ring::{Raiser, Watcher};
use crate::stream::Role;
use crate::wire::Malformed;

use super::end::End;
use super::event::{AttachError, Disconnect, Event, PeerInfo, SendError};
use super::link::{Heard, Random};
use super::statistics::{ChannelStatistics, Statistics};
use super::{ChannelId, QUIET_LOOK};
pub use channels::Preference;
use channels::{Channel, Record};
use surfaces::Lent;

/// What a guest says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestConfig {
    /// The agent's name, at most 64 bytes.
    pub name: String,
    /// Its version.
    pub version: AgentVersion,
    /// What it runs on.
    pub os: Os,
}

/// The agent's end of the bus.
///
/// ```text
///   apart ──SYNC, CONTACT──▶ contacting ──CONTACT_ACK──▶ choosing ──attach──▶ attaching
///     ▲                                      │              │ decline            │ ATTACH_RESULT
///     │                                      └──────────────┴──▶ listening ◀─────┘
///     │                                                       OFFER, open, …
///     └── port closed, rubbish, silence, SYNC ◀──────────────────┘
/// ```
#[derive(Debug)]
pub struct Guest<M> {
    config: GuestConfig,
    end: End<M>,
    phase: Phase<M>,
    host: Option<Contacted>,
    channels: BTreeMap<u32, Channel<M>>,
    /// Rescinded channels whose surfaces the owner has not returned.
    releasing: BTreeMap<u32, Vec<u32>>,
    /// What is known of instances that faulted.
    records: BTreeMap<(Uuid, u16), Record>,
    /// When to look again whether PAUSED can be said.
    pausing: Option<Instant>,
    last_open_id: u32,
}

/// The host that is there.
#[derive(Debug, Clone)]
struct Contacted {
    info: PeerInfo,
    window: u32,
}

#[derive(Debug)]
enum Phase<M> {
    /// There is no host, or it has not answered.
    Apart,
    /// It does not want this guest; it may later, or never.
    Refused { again: Option<Instant> },
    /// The owner looks for the shared memory.
    Choosing { hint: RegionHint },
    /// The host looks whether it is the same.
    Attaching { region: Region<M> },
    /// Channels are offered.
    Listening { region: Option<Region<M>> },
    /// Nothing is used any more; the host is to say that it knows.
    Unloading,
}

/// The shared memory, as the guest sees it.
#[derive(Debug)]
struct Region<M> {
    memory: Arc<M>,
    /// What the HOST page says.
    page: HostPage,
}

impl<M: SharedMemory> Guest<M> {
    /// A guest whose port is closed.
    #[must_use]
    pub fn new(config: GuestConfig, random: Random, now: Instant) -> Self {
        Self {
            config,
            end: End::new(Role::Guest, random, now),
            phase: Phase::Apart,
            host: None,
            channels: BTreeMap::new(),
            releasing: BTreeMap::new(),
            records: BTreeMap::new(),
            pausing: None,
            last_open_id: 0,
        }
    }

    /// The port was opened.
    pub fn handle_port_opened(&mut self, now: Instant) {
        self.end.set_now(now);
        self.disconnect(Disconnect::PortClosed);
        self.end.link.open(now);
    }

    /// The port was closed.
    pub fn handle_port_closed(&mut self, now: Instant) {
        self.end.set_now(now);
        self.disconnect(Disconnect::PortClosed);
        self.end.link.close();
    }

    /// Bytes came from the port. Read no more of them while [`wants_bytes`](Self::wants_bytes) says no.
    pub fn handle_bytes(&mut self, now: Instant, mut bytes: &[u8]) {
        self.end.set_now(now);
        while let Some(heard) = self.end.hear(&mut bytes) {
            self.handle_heard(heard);
        }
        self.end.look_where_kicked();
        self.settle();
    }

    /// Whether bytes of the port may be read: not while too many answers wait to be written.
    #[must_use]
    pub fn wants_bytes(&self) -> bool {
        self.end.link.wants_bytes()
    }

    /// The time that [`poll_timeout`](Self::poll_timeout) named has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.end.set_now(now);
        if let Some(heard) = self.end.handle_timeout() {
            self.handle_heard(heard);
        }
        if matches!(self.phase, Phase::Refused { again: Some(again) } if again <= now) {
            self.contact();
        }
        self.say_paused();
        self.offer_rested();
        self.settle();
    }

    /// Writes what goes to the port next to the end of `out`, and returns whether there was anything.
    ///
    /// Call it when the port has taken everything written before, and not earlier: what is asked for is in order, and
    /// nothing more urgent can overtake it.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        self.end.set_now(now);
        self.end.poll_transmit(out)
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.end.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let again = match self.phase {
            Phase::Refused { again } => again,
            _ => None,
        };
        [self.end.poll_timeout(), self.pausing, again, self.next_rested()].into_iter().flatten().min()
    }

    /// Takes the shared memory that [`Event::RegionOffered`] spoke of. The host's word on it, and then offers, follow.
    ///
    /// # Errors
    ///
    /// When it is not the one: try another, or [`decline`](Self::decline).
    pub fn attach(&mut self, memory: Arc<M>) -> Result<(), AttachError> {
        let (Phase::Choosing { hint }, Some(host)) = (&self.phase, &self.host) else {
            return Err(AttachError::NotOffered);
        };
        let size = memory.size() as u64;
        if size != hint.size || memory.size() < MIN_REGION {
            return Err(Malformed::Value { what: "size of the memory", value: size }.into());
        }
        let page = HostPage::read_from(&memory)?;
        if page.region_nonce != hint.nonce || page.region_size != size || page.host_epoch != host.info.epoch {
            return Err(Malformed::Value { what: "region nonce", value: page.region_nonce }.into());
        }
        let region = Region { memory, page };
        // Zeros where the host will look, before it does.
        drop(region.signals());
        let guest_nonce = self.end.link.random();
        let (guest_epoch, features) = (self.end.link.epoch(), Features::ALL.0);
        let own = GuestPage { minor: MINOR, features, guest_epoch, host_epoch: page.host_epoch, guest_nonce };
        own.write_to(&region.memory);
        self.end.link.send(&ControlMessage::Attach { region_nonce: page.region_nonce, guest_nonce });
        self.phase = Phase::Attaching { region };
        Ok(())
    }

    /// Goes without shared memory; offers follow.
    pub fn decline(&mut self) {
        if let Phase::Choosing { .. } = self.phase {
            self.listen(None);
        }
    }

    /// Stops using everything, before the program ends or is replaced: [`Event::Disconnected`] follows, and
    /// [`Event::Unloaded`] when the host knows.
    pub fn unload(&mut self) {
        if self.host.is_some() {
            self.disconnect(Disconnect::Unloaded);
            self.end.link.send(&ControlMessage::Unload);
            self.phase = Phase::Unloading;
        }
    }

    /// Whether a channel takes a message now: none that is sent is [`SendError::Full`] then. If it is open and does not,
    /// [`Event::Writable`] follows when it does.
    pub fn has_room(&mut self, id: ChannelId) -> bool {
        self.end.has_room(id)
    }

    /// Sends a message that wants no answer.
    ///
    /// # Errors
    ///
    /// When the channel cannot take it.
    pub fn send(&mut self, id: ChannelId, payload: Vec<u8>) -> Result<(), SendError> {
        let sent = self.end.send(id, payload);
        self.settle();
        sent
    }

    /// Sends a message that wants an answer: [`Message::Completion`] with the txid that is returned.
    ///
    /// # Errors
    ///
    /// When the channel cannot take it.
    pub fn request(&mut self, id: ChannelId, payload: Vec<u8>) -> Result<Txid, SendError> {
        let sent = self.end.request(id, payload);
        self.settle();
        sent
    }

    /// Answers a [`Message::Request`].
    ///
    /// # Errors
    ///
    /// When the channel cannot take it, or there is no such request.
    pub fn complete(&mut self, id: ChannelId, txid: Txid, payload: Vec<u8>) -> Result<(), SendError> {
        let sent = self.end.complete(id, txid, payload);
        self.settle();
        sent
    }

    /// Says that this end sends no more on a channel.
    ///
    /// # Errors
    ///
    /// When the channel cannot take it.
    pub fn finish(&mut self, id: ChannelId) -> Result<(), SendError> {
        let sent = self.end.finish(id);
        self.settle();
        sent
    }

    /// Starts a channel's conversation anew: half messages and open requests are forgotten by both.
    ///
    /// # Errors
    ///
    /// When the channel is not open.
    pub fn reset(&mut self, id: ChannelId) -> Result<(), SendError> {
        let sent = self.end.reset(id);
        self.settle();
        sent
    }

    /// The next message of a channel. The host may send more only as messages are taken.
    ///
    /// None: there is none, or others have their turn first: a channel that brings much is readable again
    /// ([`Event::Readable`]) after the next [`handle_timeout`](Self::handle_timeout), which is due at once then.
    pub fn receive(&mut self, id: ChannelId) -> Option<Message> {
        let message = self.end.receive(id);
        self.settle();
        message
    }

    /// Who is there.
    #[must_use]
    pub fn peer(&self) -> Option<&PeerInfo> {
        self.host.as_ref().map(|host| &host.info)
    }

    /// What it has done and how it stands.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let channels = self.channels.iter().filter_map(|(number, channel)| {
            let traffic = self.end.traffic(*number);
            let (received, sent) = traffic.map(|(_, received, sent)| (received, sent)).unwrap_or_default();
            Some(ChannelStatistics {
                id: ChannelId(*number),
                class: channel.info?.class,
                index: 0,
                sub_index: channel.sub_index,
                transport: traffic.map(|(transport, ..)| transport),
                received,
                sent,
                faults: self.fault_count(channel),
            })
        });
        Statistics { peer: self.peer().cloned(), channels: channels.collect(), ..self.end.statistics() }
    }

    fn handle_heard(&mut self, heard: Heard) {
        match heard {
            Heard::InStep => self.contact(),
            Heard::Lost(why) => self.disconnect(why),
            Heard::Control(txid, message) => {
                // Faults of packets that came before.
                self.settle();
                self.handle_control(txid, message);
            }
            Heard::Data { .. } | Heard::Window { .. } | Heard::Kick | Heard::Alive => {}
        }
    }

    /// Acts on the faults that were found.
    fn settle(&mut self) {
        while let Some((channel, fault)) = self.end.next_fault() {
            self.handle_fault(channel, fault);
        }
    }

    fn contact(&mut self) {
        self.phase = Phase::Apart;
        let contact = Contact {
            major: MAJOR,
            minor: MINOR,
            features: Features::ALL,
            guest_epoch: self.end.link.epoch(),
            os: self.config.os,
            agent_version: self.config.version,
            name: self.config.name.clone(),
        };
        self.end.link.send(&ControlMessage::Contact(contact));
    }

    /// Asks what there is to open.
    fn listen(&mut self, region: Option<Region<M>>) {
        self.phase = Phase::Listening { region };
        self.end.link.send(&ControlMessage::RequestOffers);
    }

    /// The host is not there any more, if it was.
    fn disconnect(&mut self, why: Disconnect) {
        let was_there = self.host.is_some();
        self.forget_host();
        if was_there {
            self.end.events.push_back(Event::Disconnected(why));
        }
    }

    /// Nothing of what the host offered counts any more.
    fn forget_host(&mut self) {
        self.end.close_all();
        self.end.hold(false);
        self.phase = Phase::Apart;
        self.host = None;
        self.pausing = None;
        self.releasing.clear();
        for (number, channel) in std::mem::take(&mut self.channels) {
            if channel.is_in_use() {
                self.end.events.push_back(Event::Closed { id: ChannelId(number), reason: Reason::ServiceGone });
            }
        }
    }

    /// Says PAUSED once nothing is under way.
    fn say_paused(&mut self) {
        if self.pausing.is_none_or(|look| look > self.end.now) {
            return;
        }
        if self.end.is_quiet() {
            self.pausing = None;
            self.end.link.send(&ControlMessage::Paused);
        } else {
            self.pausing = Some(self.end.now + QUIET_LOOK);
        }
    }
}

impl<M: SharedMemory> Region<M> {
    /// Takes both halves of the pending map, and clears what is ours of it.
    fn signals(&self) -> (Raiser<Arc<M>>, Watcher<Arc<M>>) {
        let limit = self.page.channel_limit;
        (
            Raiser::attach(Arc::clone(&self.memory), Direction::GuestToHost, limit),
            Watcher::attach(Arc::clone(&self.memory), Direction::HostToGuest, limit),
        )
    }
}
