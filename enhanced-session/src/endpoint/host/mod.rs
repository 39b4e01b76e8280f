//! The gateway's end: it offers channels, and owns the shared memory.

mod control;
mod offers;
mod region;
mod surfaces;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use crate::class::Class;
use crate::control::{Contact, ControlMessage, Features, OfferFlags, PciSlot, Reason};
use crate::message::{Message, Txid};
use crate::region::{Grant, SharedMemory};
use crate::stream::{MIN_WINDOW, Role};
use crate::wire::Malformed;

use super::end::End;
use super::event::{Disconnect, Event, Fault, PeerInfo, SendError};
use super::link::{Heard, Random};
use super::statistics::{ChannelStatistics, Statistics};
use super::{ChannelId, DEFAULT_WINDOW, MAX_CHANNELS, QUIESCE_TIME, QUIET_LOOK};
use offers::{Channel, Resting};
use region::Region;

/// What a host is told once.
#[derive(Debug, Clone, Copy)]
pub struct HostConfig {
    /// The VM: instances are named after it.
    pub vm: Uuid,
    /// Bytes per channel of the stream that the other end may send ahead. At least 1024.
    pub window: u32,
    /// Where the guest will probably find the shared memory.
    pub pci_slot: Option<PciSlot>,
}

impl HostConfig {
    /// For this VM, with what is usual.
    #[must_use]
    pub const fn new(vm: Uuid) -> Self {
        Self { vm, window: DEFAULT_WINDOW, pci_slot: None }
    }
}

/// What is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offering {
    /// The class.
    pub class: Class,
    /// Which of the VM's instances of it.
    pub index: u16,
    /// What kind of channel it is.
    pub flags: OfferFlags,
}

/// The gateway's end of one VM's bus.
///
/// ```text
///   apart ──SYNC──▶ in step ──CONTACT──▶ contacted ──REQUEST_OFFERS──▶ listed
///     ▲                                                                  │
///     └───── port closed, rubbish, silence, SYNC, reset; UNLOAD ◀────────┘
/// ```
///
/// What is offered stays offered while nobody is there.
#[derive(Debug)]
pub struct Host<M> {
    config: HostConfig,
    end: End<M>,
    region: Option<Region<M>>,
    guest: Option<Contacted>,
    channels: BTreeMap<u32, Channel>,
    /// Numbers of withdrawn channels that the guest has not released, and the memory that it may still use.
    unreleased: BTreeMap<u32, Vec<Grant>>,
    resting: Vec<Resting>,
    quiescing: Option<Quiescing>,
    /// The guest has said that it goes: it is away when what it said before has been taken.
    farewell: bool,
}

/// A checkpoint waits for what is under way.
#[derive(Debug, Clone, Copy)]
struct Quiescing {
    until: Instant,
    /// Whether the guest has said that it sends no more, and when to look for the rest.
    next_look: Option<Instant>,
}

/// The guest that is there.
#[derive(Debug)]
struct Contacted {
    contact: Contact,
    info: PeerInfo,
    /// Whether it has asked for offers.
    listed: bool,
}

impl<M: SharedMemory> Host<M> {
    /// A host whose port is closed. `memory` is what the guest sees as an ivshmem device.
    ///
    /// # Panics
    ///
    /// When the size of `memory` is not a power of two from 1 MiB to 1 GiB.
    #[must_use]
    pub fn new(mut config: HostConfig, memory: Option<Arc<M>>, random: Random, now: Instant) -> Self {
        config.window = config.window.max(MIN_WINDOW);
        Self {
            config,
            end: End::new(Role::Host, random, now),
            region: memory.map(Region::new),
            guest: None,
            channels: BTreeMap::new(),
            unreleased: BTreeMap::new(),
            resting: Vec::new(),
            quiescing: None,
            farewell: false,
        }
    }

    /// The port was opened, here or in the guest: what was known does not count.
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
        self.check_quiet();
        self.offer_rested();
        self.settle();
    }

    /// The VM's processors stand still: its silence means nothing.
    pub fn handle_paused(&mut self, now: Instant) {
        self.end.set_now(now);
        self.end.link.stop_clock(now, true);
    }

    /// They go on.
    pub fn handle_resumed(&mut self, now: Instant) {
        self.end.set_now(now);
        self.end.link.stop_clock(now, false);
    }

    /// The VM was reset, or a checkpoint was restored: a new epoch begins.
    pub fn handle_reset(&mut self, now: Instant) {
        self.end.set_now(now);
        self.disconnect(Disconnect::Reset);
        self.end.link.restart(now);
    }

    /// Writes what goes to the port next to the end of `out`, and returns whether there was anything.
    ///
    /// Call it when the port has taken everything written before, and not earlier: what is asked for is in order, and
    /// nothing more urgent can overtake it.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        self.end.set_now(now);
        self.end.poll_transmit(out)
    }

    /// What happened next. Take the messages of a channel that is readable before you ask again.
    pub fn poll_event(&mut self) -> Option<Event> {
        if self.end.events.is_empty() && self.farewell {
            self.disconnect(Disconnect::Unloaded);
        }
        self.end.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let rested = self.resting.iter().map(|resting| resting.until).min();
        let quiescing = self.quiescing.map(|quiescing| quiescing.next_look.unwrap_or(quiescing.until));
        [self.end.poll_timeout(), quiescing, rested].into_iter().flatten().min()
    }

    /// Asks the guest to stop sending, and stops too, for a checkpoint: [`Event::Quiesced`] follows, after 2 s at the
    /// latest.
    pub fn quiesce(&mut self, now: Instant) {
        self.end.set_now(now);
        self.end.hold(true);
        match &self.guest {
            Some(guest) if guest.info.features.has(Features::PAUSE) => {
                self.end.link.send(&ControlMessage::Pause);
                self.quiescing = Some(Quiescing { until: now + QUIESCE_TIME, next_look: None });
            }
            // There is nothing to wait for: nobody sends, or will not stop.
            guest => {
                let clean = guest.is_none();
                self.end.events.push_back(Event::Quiesced { clean });
            }
        }
    }

    /// Lets both ends go on after [`quiesce`](Self::quiesce).
    pub fn unquiesce(&mut self, now: Instant) {
        self.end.set_now(now);
        self.quiescing = None;
        self.end.hold(false);
        if self.guest.as_ref().is_some_and(|guest| guest.info.features.has(Features::PAUSE)) {
            self.end.link.send(&ControlMessage::Resume);
        }
        self.settle();
    }

    /// Closes a channel that is open; [`Event::Closed`] follows. The guest may open it again.
    pub fn close(&mut self, id: ChannelId, reason: Reason) {
        self.begin_close(id.0, reason);
    }

    /// A message of a channel that is open cannot be read: it is taken for the broken rule that it is. [`Event::Faulted`] and
    /// [`Event::Closed`] follow.
    pub fn fault(&mut self, id: ChannelId, what: Malformed) {
        if self.end.traffic(id.0).is_some() {
            self.end.fault(id.0, Fault::Class(what));
            self.settle();
        }
    }

    /// The class of a channel that is offered.
    #[must_use]
    pub fn class(&self, id: ChannelId) -> Option<Class> {
        self.channels.get(&id.0).map(|channel| channel.offering.class)
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

    /// The next message of a channel. The guest may send more only as messages are taken.
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
        self.guest.as_ref().map(|guest| &guest.info)
    }

    /// What it has done and how it stands.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let channels = self.channels.iter().map(|(number, channel)| {
            let traffic = self.end.traffic(*number);
            let (received, sent) = traffic.map(|(_, received, sent)| (received, sent)).unwrap_or_default();
            ChannelStatistics {
                id: ChannelId(*number),
                class: channel.offering.class,
                index: channel.offering.index,
                sub_index: channel.sub_index,
                transport: traffic.map(|(transport, ..)| transport),
                received,
                sent,
                faults: channel.faults.count(),
            }
        });
        Statistics { peer: self.peer().cloned(), channels: channels.collect(), ..self.end.statistics() }
    }

    fn handle_heard(&mut self, heard: Heard) {
        // Whoever speaks now is its successor.
        if self.farewell {
            self.disconnect(Disconnect::Unloaded);
        }
        match heard {
            Heard::Lost(why) => self.disconnect(why),
            Heard::Control(txid, message) => {
                // Faults of packets that came before.
                self.settle();
                self.handle_control(txid, message);
            }
            // The guest says who it is next. The rest is dealt with below.
            Heard::InStep | Heard::Data { .. } | Heard::Window { .. } | Heard::Kick | Heard::Alive => {}
        }
    }

    /// Acts on the faults that were found.
    fn settle(&mut self) {
        while let Some((channel, fault)) = self.end.next_fault() {
            self.handle_fault(channel, fault);
        }
    }

    /// The guest is not there any more, if it was.
    fn disconnect(&mut self, why: Disconnect) {
        let why = if std::mem::take(&mut self.farewell) { Disconnect::Unloaded } else { why };
        self.end.close_all();
        self.quiesced(false);
        self.forget_guest();
        if self.guest.take().is_some() {
            self.end.events.push_back(Event::Disconnected(why));
        }
    }

    /// PAUSED: what the guest sent has come. It may still wait for its service.
    fn handle_paused_guest(&mut self) {
        if let Some(quiescing) = &mut self.quiescing {
            quiescing.next_look = Some(self.end.now);
            self.check_quiet();
        }
    }

    fn check_quiet(&mut self) {
        let now = self.end.now;
        let Some(Quiescing { until, next_look }) = self.quiescing else { return };
        if next_look.is_some_and(|look| look <= now) {
            if self.end.is_quiet() {
                return self.quiesced(true);
            }
            self.quiescing = Some(Quiescing { until, next_look: Some((now + QUIET_LOOK).min(until)) });
        }
        if until <= now {
            self.quiesced(false);
        }
    }

    fn quiesced(&mut self, clean: bool) {
        if self.quiescing.take().is_some() {
            self.end.events.push_back(Event::Quiesced { clean });
        }
    }
}

/// Numbers that a guest does not release: with more it is taken for broken, and everything starts over.
const MAX_UNRELEASED: usize = MAX_CHANNELS;
