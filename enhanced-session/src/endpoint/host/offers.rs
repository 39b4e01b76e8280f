//! Channels from the offer to its withdrawal.
//!
//! ```text
//!                  guest asks              OPEN              CLOSE sent
//!   unannounced ───────────────▶ offered ────────▶ open ───────────────▶ closing
//!        ▲                          ▲               │ guest's CLOSE         │ CLOSED
//!        │ disconnected             └───────────────┴───────────────────────┘
//!        │
//!   any ─┴─ RESCIND ──▶ gone; the number waits for RELEASED
//!                └ after faults: resting, then offered under another number
//! ```

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::class::Class;
use crate::control::{ControlMessage, Offer, Reason};
use crate::region::{Grant, SharedMemory};

use super::super::event::{Disconnect, Event, Fault, OfferError};
use super::super::recent::FaultHistory;
use super::super::{CHANNEL_LIMIT, CLASS_MAJOR, CLASS_MINOR, ChannelId, MAX_CHANNELS, MAX_SUBCHANNELS};
use super::region::RingPair;
use super::surfaces::Surfaces;
use super::{Host, MAX_UNRELEASED, Offering};

/// A channel that is, or will be, offered.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) offering: Offering,
    /// The channel that this is a sub-channel of, with the number among them.
    pub(super) parent: Option<u32>,
    pub(super) sub_index: u16,
    pub(super) standing: Standing,
    pub(super) rings: Option<RingPair>,
    pub(super) surfaces: Surfaces,
    pub(super) faults: FaultHistory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// No guest has heard of it.
    Unannounced,
    Offered,
    Open {
        open_id: u32,
    },
    /// CLOSE was sent.
    Closing {
        open_id: u32,
        reason: Reason,
    },
}

/// A channel that faulted again and again.
#[derive(Debug)]
pub(super) struct Resting {
    was: ChannelId,
    channel: Channel,
    pub(super) until: Instant,
}

impl Channel {
    fn new(offering: Offering, parent: Option<u32>, sub_index: u16) -> Self {
        Self {
            offering,
            parent,
            sub_index,
            standing: Standing::Unannounced,
            rings: None,
            surfaces: Surfaces::new(),
            faults: FaultHistory::new(),
        }
    }

    /// What the guest may still use.
    fn into_grants(self) -> (Vec<Grant>, Self) {
        let mut grants = self.surfaces.into_grants();
        grants.extend(self.rings.into_iter().flat_map(RingPair::into_grants));
        let rest = Self { standing: Standing::Unannounced, rings: None, surfaces: Surfaces::new(), ..self };
        (grants, rest)
    }
}

impl<M: SharedMemory> Host<M> {
    /// Offers a channel, to the guest that is there and to those that come.
    ///
    /// # Errors
    ///
    /// When too many are offered, or this one is.
    pub fn offer(
        &mut self,
        class: Class,
        index: u16,
        flags: crate::control::OfferFlags,
    ) -> Result<ChannelId, OfferError> {
        let offering = Offering { class, index, flags };
        let resting = self.resting.iter().map(|resting| &resting.channel);
        let same = |channel: &Channel| (channel.offering.class, channel.offering.index) == (class, index);
        if self.channels.values().chain(resting).any(same) {
            return Err(OfferError::Twice);
        }
        self.add(Channel::new(offering, None, 0))
    }

    /// Offers one more channel of the same instance, which is offered until that is withdrawn or the guest leaves.
    ///
    /// # Errors
    ///
    /// When too many are offered, or `parent` is none that can have more.
    pub fn offer_subchannel(&mut self, parent: ChannelId) -> Result<ChannelId, OfferError> {
        let channel = self.channels.get(&parent.0).filter(|channel| channel.parent.is_none());
        let offering = channel.ok_or(OfferError::NoParent)?.offering;
        let taken: Vec<u16> = self.subchannels(parent.0).map(|(_, channel)| channel.sub_index).collect();
        let sub_index = (1..=MAX_SUBCHANNELS).find(|index| !taken.contains(index));
        let sub_index = sub_index.ok_or(OfferError::TooMany { limit: MAX_SUBCHANNELS.into() })?;
        self.add(Channel::new(offering, Some(parent.0), sub_index))
    }

    /// Withdraws an offer, and its sub-channels'. If the channel was open, [`Event::Closed`] follows.
    pub fn rescind(&mut self, id: ChannelId, reason: Reason) {
        self.resting.retain(|resting| resting.was != id);
        self.withdraw(id.0, reason);
        self.check_unreleased();
    }

    fn add(&mut self, channel: Channel) -> Result<ChannelId, OfferError> {
        if self.channels.len() + self.resting.len() >= MAX_CHANNELS {
            return Err(OfferError::TooMany { limit: MAX_CHANNELS });
        }
        Ok(ChannelId(self.insert(channel)))
    }

    /// Gives a channel a number, and tells the guest.
    fn insert(&mut self, channel: Channel) -> u32 {
        let is_free = |number: &u32| !self.channels.contains_key(number) && !self.unreleased.contains_key(number);
        const { assert!(MAX_CHANNELS + MAX_UNRELEASED + 1 < CHANNEL_LIMIT as usize, "there is always a number") };
        let number = (1..CHANNEL_LIMIT).find(is_free).unwrap_or(CHANNEL_LIMIT - 1);
        self.channels.insert(number, channel);
        if self.guest.as_ref().is_some_and(|guest| guest.listed) {
            self.announce(number);
        }
        number
    }

    /// Answers REQUEST_OFFERS.
    pub(super) fn announce_all(&mut self) -> u32 {
        let numbers: Vec<u32> = self.channels.keys().copied().collect();
        let count = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        numbers.into_iter().for_each(|number| self.announce(number));
        count
    }

    fn announce(&mut self, number: u32) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        channel.standing = Standing::Offered;
        channel.rings = self.region.as_mut().and_then(|region| region.allocate_rings(channel.offering.class));
        let offer = channel.offer(number, self.config.vm);
        self.end.link.send(&ControlMessage::Offer(offer));
    }

    fn subchannels(&self, parent: u32) -> impl Iterator<Item = (u32, &Channel)> {
        let of_parent = move |(_, channel): &(&u32, &Channel)| channel.parent == Some(parent);
        self.channels.iter().filter(of_parent).map(|(number, channel)| (*number, channel))
    }

    /// Takes a channel and its sub-channels away from the guest. Returns what is left of it.
    fn withdraw(&mut self, number: u32, reason: Reason) -> Option<Channel> {
        let subchannels: Vec<u32> = self.subchannels(number).map(|(number, _)| number).collect();
        for number in subchannels {
            self.withdraw(number, reason);
        }
        let channel = self.channels.remove(&number)?;
        self.end.close(number);
        match channel.standing {
            Standing::Unannounced => return Some(channel),
            Standing::Offered => {}
            Standing::Open { .. } | Standing::Closing { .. } => {
                self.end.events.push_back(Event::Closed { id: ChannelId(number), reason });
            }
        }
        self.end.link.send(&ControlMessage::Rescind { channel: number, reason });
        let (grants, channel) = channel.into_grants();
        self.unreleased.insert(number, grants);
        Some(channel)
    }

    /// A guest that releases nothing gets a new beginning.
    fn check_unreleased(&mut self) {
        if self.unreleased.len() > MAX_UNRELEASED {
            self.end.link.look(self.end.now);
            self.disconnect(Disconnect::Misbehaving);
        }
    }

    /// Closes a channel if it is open.
    pub(super) fn begin_close(&mut self, number: u32, reason: Reason) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let Standing::Open { open_id } = channel.standing else { return };
        channel.standing = Standing::Closing { open_id, reason };
        self.end.close(number);
        self.end.link.send(&ControlMessage::Close { channel: number, open_id, reason });
        self.revoke_all(number);
    }

    /// A channel that was open or closing is neither any more.
    pub(super) fn finish_close(&mut self, number: u32, reason: Reason) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        channel.standing = Standing::Offered;
        self.end.close(number);
        self.end.events.push_back(Event::Closed { id: ChannelId(number), reason });
        self.revoke_all(number);
    }

    /// The guest broke a rule of an open channel.
    pub(super) fn handle_fault(&mut self, number: u32, what: Fault) {
        let now = self.end.now;
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let rest = channel.faults.add(now);
        self.end.events.push_back(Event::Faulted { id: ChannelId(number), what });
        match rest {
            None => self.begin_close(number, Reason::Fault),
            Some(rest) => self.rest(number, rest),
        }
    }

    fn rest(&mut self, number: u32, rest: Duration) {
        let (was, until) = (ChannelId(number), self.end.now + rest);
        if let Some(channel) = self.withdraw(number, Reason::Misbehaving) {
            self.resting.push(Resting { was, channel, until });
            self.end.events.push_back(Event::Withdrawn { id: was, until });
        }
        self.check_unreleased();
    }

    /// Offers what has rested long enough.
    pub(super) fn offer_rested(&mut self) {
        let now = self.end.now;
        let rested = |resting: &mut Resting| resting.until <= now;
        let rested: Vec<Resting> = self.resting.extract_if(.., rested).collect();
        for Resting { was, channel, .. } in rested {
            if channel.parent.is_some_and(|parent| !self.channels.contains_key(&parent)) {
                continue;
            }
            let id = ChannelId(self.insert(channel));
            self.end.events.push_back(Event::Reoffered { was, id });
        }
    }

    /// Nothing that the guest knew counts any more; what is offered stays so, except for sub-channels.
    pub(super) fn forget_guest(&mut self) {
        self.unreleased.clear();
        if let Some(region) = &mut self.region {
            region.detach();
        }
        for (number, channel) in &mut self.channels {
            if let Standing::Open { .. } | Standing::Closing { .. } = channel.standing {
                self.end.events.push_back(Event::Closed { id: ChannelId(*number), reason: Reason::ServiceGone });
            }
            channel.standing = Standing::Unannounced;
            channel.rings = None;
            channel.surfaces = Surfaces::new();
        }
        self.channels.retain(|_, channel| channel.parent.is_none());
        self.resting.retain(|resting| resting.channel.parent.is_none());
    }
}

impl Channel {
    fn offer(&self, number: u32, vm: Uuid) -> Offer {
        let Offering { class, index, flags } = self.offering;
        Offer {
            channel: number,
            class: class.guid(),
            instance: class.instance(vm, index),
            flags,
            sub_index: self.sub_index,
            class_major: CLASS_MAJOR,
            class_minor: CLASS_MINOR,
            rings: self.rings.as_ref().map(RingPair::offered),
            surface_offset: 0,
            surface_size: 0,
        }
    }
}
