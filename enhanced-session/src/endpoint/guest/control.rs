//! What the host may say when, and what follows (`docs/bus.md`, section 5).

use crate::control::{ContactAck, ContactStatus, ControlMessage, ErrorCode};
use crate::region::SharedMemory;
use crate::stream::MIN_WINDOW;

use super::super::event::{Disconnect, Event, PeerInfo};
use super::super::{BUSY_TIME, Complaint};
use super::{Contacted, Guest, Phase};

const NOT_NOW: Complaint = Complaint(ErrorCode::WrongState, "not in this state");

impl<M: SharedMemory> Guest<M> {
    /// Acts on a message, or complains about it.
    pub(super) fn handle_control(&mut self, txid: u64, message: ControlMessage) {
        let outcome = match message {
            ControlMessage::Error { code, text, .. } => {
                self.end.events.push_back(Event::PeerError { code, text });
                Ok(())
            }
            ControlMessage::ContactAck(ack) => self.handle_contact_ack(ack),
            message if matches!(self.phase, Phase::Unloading) => self.handle_while_unloading(&message),
            message if self.host.is_some() => self.handle_in_contact(txid, message),
            _ => Err(NOT_NOW),
        };
        let Err(Complaint(code, text)) = outcome else { return };
        if let Some(why) = self.end.link.complain(self.end.now, txid, code, text.into()) {
            self.disconnect(why);
        }
    }

    fn handle_in_contact(&mut self, txid: u64, message: ControlMessage) -> Result<(), Complaint> {
        match message {
            ControlMessage::AttachResult { status } => self.handle_attach_result(status),
            ControlMessage::Offer(offer) => self.handle_offer(offer),
            ControlMessage::OffersDone { .. } => {
                self.end.events.push_back(Event::OffersDone);
                Ok(())
            }
            ControlMessage::OpenResult { channel, open_id, status } => {
                self.handle_open_result(channel, open_id, status);
                Ok(())
            }
            ControlMessage::Close { channel, open_id, reason } => {
                self.handle_close(txid, channel, open_id, reason);
                Ok(())
            }
            ControlMessage::Closed { channel, open_id } => {
                self.handle_closed(channel, open_id);
                Ok(())
            }
            ControlMessage::Rescind { channel, reason } => self.handle_rescind(channel, reason),
            ControlMessage::SurfaceGrant(grant) => self.handle_surface_grant(grant),
            ControlMessage::SurfaceRevoke { channel, surface } => self.handle_surface_revoke(channel, surface),
            ControlMessage::Pause => {
                self.end.hold(true);
                self.pausing = Some(self.end.now);
                self.say_paused();
                Ok(())
            }
            ControlMessage::Resume => {
                self.pausing = None;
                self.end.hold(false);
                Ok(())
            }
            _ => Err(Complaint(ErrorCode::WrongState, "only a guest says that")),
        }
    }

    /// What was under way when the guest stopped does not matter any more.
    fn handle_while_unloading(&mut self, message: &ControlMessage) -> Result<(), Complaint> {
        if let ControlMessage::Unloaded = message {
            self.phase = Phase::Refused { again: None };
            self.end.events.push_back(Event::Unloaded);
        }
        Ok(())
    }

    fn handle_contact_ack(&mut self, ack: ContactAck) -> Result<(), Complaint> {
        if !matches!(self.phase, Phase::Apart) {
            return Err(NOT_NOW);
        }
        if self.end.link.peer_epoch() != Some(ack.host_epoch) {
            return Err(Complaint(ErrorCode::Malformed, "not the epoch of its sync"));
        }
        if ack.status != ContactStatus::Welcome {
            let again = (ack.status == ContactStatus::Busy).then(|| self.end.now + BUSY_TIME);
            self.phase = Phase::Refused { again };
            self.end.events.push_back(Event::Disconnected(Disconnect::Refused(ack.status)));
            return Ok(());
        }
        if ack.window < MIN_WINDOW {
            self.end.link.look(self.end.now);
            return Ok(());
        }
        let info = PeerInfo { epoch: ack.host_epoch, minor: ack.minor, features: ack.features, agent: None };
        self.host = Some(Contacted { info: info.clone(), window: ack.window });
        self.end.events.push_back(Event::Connected(info));
        match ack.region {
            None => self.listen(None),
            Some(hint) => {
                self.phase = Phase::Choosing { hint };
                self.end.events.push_back(Event::RegionOffered(hint));
            }
        }
        Ok(())
    }

    fn handle_attach_result(&mut self, status: Result<(), ErrorCode>) -> Result<(), Complaint> {
        match (std::mem::replace(&mut self.phase, Phase::Apart), status) {
            (Phase::Attaching { region }, Ok(())) => {
                let (raiser, watcher) = region.signals();
                self.end.attach_signals(raiser, watcher);
                self.end.events.push_back(Event::RegionAttached);
                self.listen(Some(region));
            }
            (Phase::Attaching { .. }, Err(code)) => {
                self.end.events.push_back(Event::RegionRefused(code));
                self.listen(None);
            }
            (phase, _) => {
                self.phase = phase;
                return Err(NOT_NOW);
            }
        }
        Ok(())
    }
}
