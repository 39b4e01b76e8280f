//! What the guest may say when, and what follows (`docs/bus.md`, section 5).

use crate::control::{
    Contact, ContactAck, ContactStatus, ControlMessage, ErrorCode, Features, MAJOR, MINOR, Reason, RegionHint,
    TransportCode,
};
use crate::region::SharedMemory;
use crate::ring::ring_tag;

use super::super::event::{Agent, Event, PeerInfo};
use super::super::pipe::RingPipe;
use super::super::{CLASS_MINOR, ChannelId, Complaint, MAX_OPEN, MAX_SUBCHANNELS};
use super::offers::{Channel, Standing};
use super::{Contacted, Host};

const UNKNOWN: Complaint = Complaint(ErrorCode::UnknownChannel, "no such channel");
const NOT_NOW: Complaint = Complaint(ErrorCode::WrongState, "not in this state");

impl<M: SharedMemory> Host<M> {
    /// Acts on a message, or complains about it.
    pub(super) fn handle_control(&mut self, txid: u64, message: ControlMessage) {
        let outcome = match message {
            ControlMessage::Error { code, text, .. } => {
                self.end.events.push_back(Event::PeerError { code, text });
                Ok(())
            }
            ControlMessage::Contact(contact) => self.handle_contact(txid, contact),
            message if self.guest.is_some() => self.handle_in_contact(txid, message),
            _ => Err(Complaint(ErrorCode::WrongState, "contact comes first")),
        };
        let Err(Complaint(code, text)) = outcome else { return };
        if let Some(why) = self.end.link.complain(self.end.now, txid, code, text.into()) {
            self.disconnect(why);
        }
    }

    fn handle_in_contact(&mut self, txid: u64, message: ControlMessage) -> Result<(), Complaint> {
        match message {
            ControlMessage::RequestOffers => self.handle_request_offers(txid),
            ControlMessage::Open { channel, open_id, transport, class_minor } => {
                self.handle_open(txid, channel, open_id, transport, class_minor);
                Ok(())
            }
            ControlMessage::Close { channel, open_id, reason } => self.handle_close(txid, channel, open_id, reason),
            ControlMessage::Closed { channel, open_id } => self.handle_closed(channel, open_id),
            ControlMessage::Released { channel } => self.handle_released(channel),
            ControlMessage::Unload => {
                self.end.link.answer(txid, &ControlMessage::Unloaded);
                // What it said before is in the channels yet.
                self.farewell = true;
                Ok(())
            }
            ControlMessage::Subchannel { channel, count } => self.handle_subchannel(channel, count),
            ControlMessage::SurfaceRevoked { channel, surface } => self.handle_surface_revoked(channel, surface),
            ControlMessage::Attach { region_nonce, guest_nonce } => self.handle_attach(txid, region_nonce, guest_nonce),
            ControlMessage::Paused => {
                self.handle_paused_guest();
                Ok(())
            }
            _ => Err(Complaint(ErrorCode::WrongState, "only a host says that")),
        }
    }

    fn handle_contact(&mut self, txid: u64, contact: Contact) -> Result<(), Complaint> {
        if self.guest.is_some() {
            return Err(NOT_NOW);
        }
        if self.end.link.peer_epoch() != Some(contact.guest_epoch) {
            return Err(Complaint(ErrorCode::Malformed, "not the epoch of its sync"));
        }
        let other_version = contact.major != MAJOR;
        let (status, own) = match (&self.region, other_version) {
            (_, true) => (ContactStatus::OtherVersion, Features::default()),
            (Some(_), false) => (ContactStatus::Welcome, Features::ALL),
            (None, false) => (ContactStatus::Welcome, Features::SUBCHANNELS.or(Features::PAUSE)),
        };
        #[expect(clippy::unnecessary_min_or_max, reason = "ours is the lowest only as long as it is 0")]
        let minor = contact.minor.min(MINOR);
        let info = PeerInfo {
            epoch: contact.guest_epoch,
            minor,
            features: contact.features.and(own),
            agent: Some(Agent { name: contact.name.clone(), version: contact.agent_version, os: contact.os }),
        };
        let region = if other_version { None } else { self.prepare_region(info.features) };
        let ack = ContactAck {
            status,
            minor: info.minor,
            features: info.features,
            host_epoch: self.end.link.epoch(),
            window: self.config.window,
            region,
        };
        self.end.link.answer(txid, &ControlMessage::ContactAck(ack));
        if !other_version {
            self.guest = Some(Contacted { contact, info: info.clone(), listed: false });
            self.end.events.push_back(Event::Connected(info));
        }
        Ok(())
    }

    /// Writes the HOST page for a guest that has come.
    fn prepare_region(&mut self, features: Features) -> Option<RegionHint> {
        let (epoch, nonce) = (self.end.link.epoch(), self.end.link.random());
        let region = self.region.as_mut()?;
        region.prepare(epoch, features, nonce);
        Some(RegionHint { nonce, size: region.size(), pci_slot: self.config.pci_slot })
    }

    fn handle_attach(&mut self, txid: u64, region_nonce: u64, guest_nonce: u64) -> Result<(), Complaint> {
        let Some(guest) = self.guest.as_ref().filter(|_| !self.end.has_signals()) else {
            return Err(NOT_NOW);
        };
        let epoch = guest.contact.guest_epoch;
        let proved = |region: &&super::Region<M>| region.is_proved(region_nonce, guest_nonce, epoch);
        let Some(region) = self.region.as_ref().filter(proved) else {
            let status = Err(ErrorCode::RegionNotProved);
            self.end.link.answer(txid, &ControlMessage::AttachResult { status });
            return Ok(());
        };
        let (raiser, watcher) = region.signals();
        self.end.attach_signals(raiser, watcher);
        self.end.link.answer(txid, &ControlMessage::AttachResult { status: Ok(()) });
        self.end.events.push_back(Event::RegionAttached);
        Ok(())
    }

    fn handle_request_offers(&mut self, txid: u64) -> Result<(), Complaint> {
        let guest = self.guest.as_mut().filter(|guest| !guest.listed).ok_or(NOT_NOW)?;
        guest.listed = true;
        let count = self.announce_all();
        self.end.link.answer(txid, &ControlMessage::OffersDone { count });
        Ok(())
    }

    fn handle_open(&mut self, txid: u64, channel: u32, open_id: u32, transport: TransportCode, class_minor: u16) {
        if self.unreleased.contains_key(&channel) {
            // RESCIND is on its way, and says more than a result.
            return;
        }
        let opened = self.try_open(channel, open_id, transport, class_minor);
        let status = opened.as_ref().map(|_| ()).map_err(|code| *code);
        self.end.link.answer(txid, &ControlMessage::OpenResult { channel, open_id, status });
        let Ok(pipe) = opened else { return };
        let Some(known) = self.channels.get_mut(&channel) else { return };
        known.standing = Standing::Open { open_id };
        match pipe {
            None => self.end.open_stream(channel, known.offering.class, self.config.window),
            Some(pipe) => self.end.open_ring(channel, known.offering.class, pipe),
        }
    }

    /// The rings to open the channel on; none: the stream.
    fn try_open(
        &self,
        channel: u32,
        open_id: u32,
        transport: TransportCode,
        class_minor: u16,
    ) -> Result<Option<RingPipe<M>>, ErrorCode> {
        let channel = self.channels.get(&channel).ok_or(ErrorCode::UnknownChannel)?;
        if channel.standing != Standing::Offered {
            return Err(ErrorCode::WrongState);
        }
        if class_minor > CLASS_MINOR {
            return Err(ErrorCode::Unsupported);
        }
        if self.end.open_count() >= MAX_OPEN {
            return Err(ErrorCode::NoRoom);
        }
        match transport {
            TransportCode::Stream => Ok(None),
            TransportCode::Ring => self.ring_pipe(channel, open_id).map(Some),
            TransportCode::Other(_) => Err(ErrorCode::Unsupported),
        }
    }

    fn ring_pipe(&self, channel: &Channel, open_id: u32) -> Result<RingPipe<M>, ErrorCode> {
        let (Some(region), Some(guest), true) = (&self.region, &self.guest, self.end.has_signals()) else {
            return Err(ErrorCode::RegionNotProved);
        };
        let rings = channel.rings.as_ref().ok_or(ErrorCode::Unsupported)?;
        let tag = ring_tag(self.end.link.epoch(), guest.contact.guest_epoch, open_id);
        let pipe = RingPipe::attach(&region.memory, rings.h2g, rings.g2h, tag);
        if pipe.peer_tags_match() { Ok(pipe) } else { Err(ErrorCode::WrongState) }
    }

    fn handle_close(&mut self, txid: u64, number: u32, open_id: u32, reason: Reason) -> Result<(), Complaint> {
        match self.standing(number)? {
            Some(Standing::Open { open_id: present }) if present == open_id => self.finish_close(number, reason),
            // Both close at once: the guest's CLOSED is still to come.
            Some(Standing::Closing { open_id: present, .. }) if present == open_id => {}
            _ => return Ok(()),
        }
        self.end.link.answer(txid, &ControlMessage::Closed { channel: number, open_id });
        Ok(())
    }

    fn handle_closed(&mut self, number: u32, open_id: u32) -> Result<(), Complaint> {
        match self.standing(number)? {
            Some(Standing::Closing { open_id: present, reason }) if present == open_id => {
                self.finish_close(number, reason);
            }
            _ => {}
        }
        Ok(())
    }

    /// How a channel stands; none when it is withdrawn and the guest may not have heard.
    fn standing(&self, number: u32) -> Result<Option<Standing>, Complaint> {
        match self.channels.get(&number) {
            Some(channel) => Ok(Some(channel.standing)),
            None if self.unreleased.contains_key(&number) => Ok(None),
            None => Err(UNKNOWN),
        }
    }

    fn handle_released(&mut self, number: u32) -> Result<(), Complaint> {
        let grants = self.unreleased.remove(&number).ok_or(UNKNOWN)?;
        if let Some(region) = &mut self.region {
            region.release(grants);
        }
        Ok(())
    }

    fn handle_subchannel(&mut self, number: u32, count: u16) -> Result<(), Complaint> {
        if !self.peer().is_some_and(|peer| peer.features.has(Features::SUBCHANNELS)) {
            return Err(Complaint(ErrorCode::Unsupported, "sub-channels were not agreed on"));
        }
        if count == 0 || count > MAX_SUBCHANNELS {
            return Err(Complaint(ErrorCode::Malformed, "a count of sub-channels that cannot be"));
        }
        if self.standing(number)?.is_some() {
            self.end.events.push_back(Event::SubchannelsWanted { id: ChannelId(number), count });
        }
        Ok(())
    }
}
