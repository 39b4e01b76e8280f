//! Channels from the host's offer to its withdrawal.
//!
//! ```text
//!            open            OPEN_RESULT(0)          close, a fault
//!   offered ──────▶ opening ────────────────▶ open ─────────────────▶ closing
//!     ▲  ▲             │ OPEN_RESULT(≠0)        │ host's CLOSE           │ CLOSED
//!     │  └─────────────┘                        │                        │
//!     └─────────────────────────────────────────┴────────────────────────┘
//!   any ── RESCIND ──▶ gone, once its surfaces are returned
//! ```

use std::time::Instant;

use uuid::Uuid;

use crate::class::Class;
use crate::control::{ControlMessage, ErrorCode, Offer, OfferedRings, Reason, TransportCode};
use crate::region::SharedMemory;
use crate::ring::{RingGrant, max_payload, ring_tag};
use crate::wire::Malformed;

use super::super::event::{Event, Fault, OfferInfo, OpenError};
use super::super::pipe::RingPipe;
use super::super::recent::FaultHistory;
use super::super::{CLASS_MAJOR, CLASS_MINOR, ChannelId, Complaint, MAX_CHANNELS};
use super::{Guest, Lent, Phase, Region};

/// Instances whose faults are remembered.
const MAX_RECORDS: usize = 2 * MAX_CHANNELS;

/// What shall carry a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preference {
    /// Rings where there are some, else the stream.
    Ring,
    /// The stream.
    Stream,
}

/// A channel that the host offers.
#[derive(Debug)]
pub(super) struct Channel<M> {
    /// None when its class is not known, and all that can be done is to release it.
    pub(super) info: Option<OfferInfo>,
    instance: Uuid,
    pub(super) sub_index: u16,
    class_major: u16,
    class_minor: u16,
    rings: Option<Rings>,
    pub(super) standing: Standing<M>,
    pub(super) lent: Lent,
}

#[derive(Debug, Clone, Copy)]
struct Rings {
    h2g: RingGrant,
    g2h: RingGrant,
}

#[derive(Debug)]
pub(super) enum Standing<M> {
    Offered,
    /// OPEN was sent.
    Opening {
        open_id: u32,
        rings: Option<RingPipe<M>>,
    },
    Open {
        open_id: u32,
    },
    /// CLOSE was sent.
    Closing {
        open_id: u32,
        reason: Reason,
    },
}

/// What is remembered of an instance that faulted, whatever channel stands for it.
#[derive(Debug)]
pub(super) struct Record {
    history: FaultHistory,
    rests_until: Option<Instant>,
}

impl<M> Channel<M> {
    pub(super) const fn is_in_use(&self) -> bool {
        !matches!(self.standing, Standing::Offered)
    }

    const fn instance(&self) -> (Uuid, u16) {
        (self.instance, self.sub_index)
    }
}

impl<M: SharedMemory> Guest<M> {
    /// Opens a channel: [`Event::Opened`] or [`Event::OpenFailed`] follows.
    ///
    /// # Errors
    ///
    /// When it cannot be opened just then.
    pub fn open(&mut self, id: ChannelId, preference: Preference) -> Result<(), OpenError> {
        let channel = self.channels.get(&id.0).ok_or(OpenError::NotOffered)?;
        if channel.info.is_none() || channel.class_major != CLASS_MAJOR {
            return Err(OpenError::Version);
        }
        if channel.is_in_use() {
            return Err(OpenError::InUse);
        }
        if self.records.get(&channel.instance()).is_some_and(|record| record.rests_until.is_some()) {
            return Err(OpenError::Resting);
        }
        #[expect(clippy::unnecessary_min_or_max, reason = "ours is the lowest only as long as it is 0")]
        let class_minor = channel.class_minor.min(CLASS_MINOR);
        self.last_open_id = self.last_open_id.wrapping_add(1).max(1);
        let open_id = self.last_open_id;
        let rings = if preference == Preference::Ring { self.attach_rings(id.0, open_id) } else { None };
        let transport = if rings.is_some() { TransportCode::Ring } else { TransportCode::Stream };
        if let Some(channel) = self.channels.get_mut(&id.0) {
            channel.standing = Standing::Opening { open_id, rings };
        }
        self.end.link.send(&ControlMessage::Open { channel: id.0, open_id, transport, class_minor });
        Ok(())
    }

    /// Closes a channel that is open or opening: [`Event::Closed`] follows.
    pub fn close(&mut self, id: ChannelId, reason: Reason) {
        self.begin_close(id.0, reason);
    }

    /// Asks the host for so many more channels of the same instance, which it may or may not offer.
    pub fn want_subchannels(&mut self, id: ChannelId, count: u16) {
        if self.channels.contains_key(&id.0) {
            self.end.link.send(&ControlMessage::Subchannel { channel: id.0, count });
        }
    }

    fn attach_rings(&self, number: u32, open_id: u32) -> Option<RingPipe<M>> {
        let Phase::Listening { region: Some(region) } = &self.phase else { return None };
        let rings = self.channels.get(&number)?.rings?;
        let tag = ring_tag(self.host.as_ref()?.info.epoch, self.end.link.epoch(), open_id);
        Some(RingPipe::attach(&region.memory, rings.g2h, rings.h2g, tag))
    }

    /// OFFER.
    pub(super) fn handle_offer(&mut self, offer: Offer) -> Result<(), Complaint> {
        let Phase::Listening { region } = &self.phase else {
            return Err(Complaint(ErrorCode::WrongState, "offers were not asked for"));
        };
        let known = self.channels.contains_key(&offer.channel) || self.releasing.contains_key(&offer.channel);
        if offer.channel == 0 || known {
            return Err(Complaint(ErrorCode::WrongState, "that number is not free"));
        }
        if self.channels.len() >= MAX_CHANNELS || self.releasing.len() >= MAX_CHANNELS {
            return Err(Complaint(ErrorCode::NoRoom, "too many channels"));
        }
        let rings = region.as_ref().zip(offer.rings).map(|(region, offered)| rings(region, offer.channel, offered));
        let rings = rings.transpose().map_err(|_| Complaint(ErrorCode::Malformed, "rings that cannot be"))?;
        let info = Class::from_guid(offer.class).map(|class| OfferInfo {
            id: ChannelId(offer.channel),
            class,
            instance: offer.instance,
            flags: offer.flags,
            sub_index: offer.sub_index,
            has_rings: rings.is_some(),
        });
        let channel = Channel {
            info,
            instance: offer.instance,
            sub_index: offer.sub_index,
            class_major: offer.class_major,
            class_minor: offer.class_minor,
            rings,
            standing: Standing::Offered,
            lent: Lent::new(),
        };
        let rests = self.records.get(&channel.instance()).is_some_and(|record| record.rests_until.is_some());
        self.channels.insert(offer.channel, channel);
        if let Some(info) = info.filter(|_| !rests) {
            self.end.events.push_back(Event::Offered(info));
        }
        Ok(())
    }

    /// OPEN_RESULT.
    pub(super) fn handle_open_result(&mut self, number: u32, open_id: u32, status: Result<(), ErrorCode>) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        match (&mut channel.standing, status) {
            (Standing::Opening { open_id: present, rings }, Ok(())) if *present == open_id => {
                let rings = rings.take();
                channel.standing = Standing::Open { open_id };
                self.opened(number, rings);
            }
            (Standing::Opening { open_id: present, .. }, Err(code)) if *present == open_id => {
                channel.standing = Standing::Offered;
                self.end.events.push_back(Event::OpenFailed { id: ChannelId(number), code });
            }
            // It was closed before it was open: there is nothing that the host could answer CLOSE for.
            (Standing::Closing { open_id: present, reason }, Err(_)) if *present == open_id => {
                let reason = *reason;
                self.finish_close(number, reason);
            }
            _ => {}
        }
    }

    fn opened(&mut self, number: u32, rings: Option<RingPipe<M>>) {
        let info = self.channels.get(&number).and_then(|channel| channel.info);
        let (Some(info), Some(host)) = (info, &self.host) else { return };
        match rings {
            None => self.end.open_stream(number, info.class, host.window),
            Some(pipe) if pipe.peer_tags_match() => self.end.open_ring(number, info.class, pipe),
            Some(_) => self.handle_fault(number, Fault::Tag),
        }
    }

    /// Closes a channel if it is open or opening.
    pub(super) fn begin_close(&mut self, number: u32, reason: Reason) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let (Standing::Open { open_id } | Standing::Opening { open_id, .. }) = channel.standing else { return };
        channel.standing = Standing::Closing { open_id, reason };
        self.end.close(number);
        self.end.link.send(&ControlMessage::Close { channel: number, open_id, reason });
    }

    fn finish_close(&mut self, number: u32, reason: Reason) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        channel.standing = Standing::Offered;
        self.end.close(number);
        self.end.events.push_back(Event::Closed { id: ChannelId(number), reason });
    }

    /// CLOSE.
    pub(super) fn handle_close(&mut self, txid: u64, number: u32, open_id: u32, reason: Reason) {
        let Some(channel) = self.channels.get(&number) else { return };
        match channel.standing {
            Standing::Open { open_id: present } | Standing::Opening { open_id: present, .. } if present == open_id => {
                self.finish_close(number, reason);
            }
            // Both close at once: the host's CLOSED is still to come.
            Standing::Closing { open_id: present, .. } if present == open_id => {}
            _ => return,
        }
        self.end.link.answer(txid, &ControlMessage::Closed { channel: number, open_id });
    }

    /// CLOSED.
    pub(super) fn handle_closed(&mut self, number: u32, open_id: u32) {
        let standing = self.channels.get(&number).map(|channel| &channel.standing);
        let Some(Standing::Closing { open_id: present, reason }) = standing else { return };
        if *present == open_id {
            self.finish_close(number, *reason);
        }
    }

    /// RESCIND.
    pub(super) fn handle_rescind(&mut self, number: u32, reason: Reason) -> Result<(), Complaint> {
        let Some(channel) = self.channels.remove(&number) else {
            return Err(Complaint(ErrorCode::UnknownChannel, "no such channel"));
        };
        self.end.close(number);
        if channel.is_in_use() {
            self.end.events.push_back(Event::Closed { id: ChannelId(number), reason });
        }
        self.release(number, channel.lent);
        if channel.info.is_some() {
            self.end.events.push_back(Event::Rescinded { id: ChannelId(number), reason });
        }
        Ok(())
    }

    /// The host broke a rule of an open channel.
    pub(super) fn handle_fault(&mut self, number: u32, what: Fault) {
        let now = self.end.now;
        let Some(instance) = self.channels.get(&number).map(Channel::instance) else { return };
        self.make_room_for_record();
        let record = self.records.entry(instance).or_insert_with(Record::new);
        let rest = record.history.add(now);
        record.rests_until = rest.map(|rest| now + rest);
        self.end.events.push_back(Event::Faulted { id: ChannelId(number), what });
        let reason = if rest.is_some() { Reason::Misbehaving } else { Reason::Fault };
        self.begin_close(number, reason);
    }

    /// Forgets the instance whose last fault is the longest ago, when too many are remembered.
    fn make_room_for_record(&mut self) {
        let oldest = self.records.iter().min_by_key(|(_, record)| record.history.last());
        if let Some(instance) = oldest.map(|(instance, _)| *instance).filter(|_| self.records.len() >= MAX_RECORDS) {
            self.records.remove(&instance);
        }
    }

    pub(super) fn fault_count(&self, channel: &Channel<M>) -> u64 {
        self.records.get(&channel.instance()).map_or(0, |record| record.history.count())
    }

    /// When the next channel has rested long enough.
    pub(super) fn next_rested(&self) -> Option<Instant> {
        self.records.values().filter_map(|record| record.rests_until).min()
    }

    /// Tells the owner what can be opened again.
    pub(super) fn offer_rested(&mut self) {
        let now = self.end.now;
        for (instance, record) in &mut self.records {
            if record.rests_until.take_if(|until| *until <= now).is_none() {
                continue;
            }
            let same = self.channels.values().filter(|channel| channel.instance() == *instance && !channel.is_in_use());
            self.end.events.extend(same.filter_map(|channel| channel.info).map(Event::Offered));
        }
    }
}

impl Record {
    const fn new() -> Self {
        Self { history: FaultHistory::new(), rests_until: None }
    }
}

/// The rings that an offer speaks of, when there can be such.
fn rings<M: SharedMemory>(region: &Region<M>, channel: u32, offered: OfferedRings) -> Result<Rings, Malformed> {
    let expected = max_payload(offered.h2g_size.min(offered.g2h_size));
    if channel >= region.page.channel_limit || offered.max_payload != expected {
        return Err(Malformed::Value { what: "payload limit of a ring", value: offered.max_payload.into() });
    }
    let ring = |offset, size| RingGrant::new(offset, size, offered.max_payload, region.memory.size());
    Ok(Rings { h2g: ring(offered.h2g_offset, offered.h2g_size)?, g2h: ring(offered.g2h_offset, offered.g2h_size)? })
}
