//! Memory for pictures that the host lends to a channel (`docs/bus.md`, section 7.5).

use std::collections::BTreeMap;

use crate::control::{ControlMessage, ErrorCode, SurfaceGrant};
use crate::region::SharedMemory;

use super::super::event::{Event, SurfacePlace};
use super::super::{ChannelId, Complaint, MAX_SURFACES, SurfaceId};
use super::{Guest, Phase};

/// The surfaces of a channel, and whether the host wants them back.
#[derive(Debug)]
pub(super) struct Lent(BTreeMap<u32, Wanted>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    No,
    Back,
}

impl Lent {
    pub(super) const fn new() -> Self {
        Self(BTreeMap::new())
    }
}

impl<M: SharedMemory> Guest<M> {
    /// Says that nothing writes to a surface any more, after [`Event::SurfaceRevoked`].
    pub fn return_surface(&mut self, id: ChannelId, surface: SurfaceId) {
        if let Some(left) = self.releasing.get_mut(&id.0) {
            left.retain(|other| *other != surface.0);
            if left.is_empty() {
                self.releasing.remove(&id.0);
                self.end.link.send(&ControlMessage::Released { channel: id.0 });
            }
            return;
        }
        let Some(channel) = self.channels.get_mut(&id.0) else { return };
        if channel.lent.0.get(&surface.0) == Some(&Wanted::Back) {
            channel.lent.0.remove(&surface.0);
            self.end.link.send(&ControlMessage::SurfaceRevoked { channel: id.0, surface: surface.0 });
        }
    }

    /// SURFACE_GRANT.
    pub(super) fn handle_surface_grant(&mut self, grant: SurfaceGrant) -> Result<(), Complaint> {
        let Phase::Listening { region: Some(region) } = &self.phase else {
            return Err(Complaint(ErrorCode::WrongState, "there is no shared memory"));
        };
        let place = place(&grant, region.page.arena_offset, region.page.region_size);
        let place = place.ok_or(Complaint(ErrorCode::Malformed, "a surface that cannot be"))?;
        let count: usize = self.channels.values().map(|channel| channel.lent.0.len()).sum();
        let Some(channel) = self.channels.get_mut(&grant.channel) else {
            return Err(Complaint(ErrorCode::UnknownChannel, "no such channel"));
        };
        if count >= MAX_SURFACES {
            return Err(Complaint(ErrorCode::NoRoom, "too many surfaces"));
        }
        if channel.lent.0.contains_key(&grant.surface) {
            return Err(Complaint(ErrorCode::WrongState, "that surface is granted already"));
        }
        channel.lent.0.insert(grant.surface, Wanted::No);
        let (id, surface) = (ChannelId(grant.channel), SurfaceId(grant.surface));
        self.end.events.push_back(Event::SurfaceGranted { id, surface, place });
        Ok(())
    }

    /// SURFACE_REVOKE.
    pub(super) fn handle_surface_revoke(&mut self, number: u32, surface: u32) -> Result<(), Complaint> {
        let wanted = self.channels.get_mut(&number).and_then(|channel| channel.lent.0.get_mut(&surface));
        let Some(wanted) = wanted.filter(|wanted| **wanted == Wanted::No) else {
            return Err(Complaint(ErrorCode::WrongState, "no such surface is granted"));
        };
        *wanted = Wanted::Back;
        self.end.events.push_back(Event::SurfaceRevoked { id: ChannelId(number), surface: SurfaceId(surface) });
        Ok(())
    }

    /// Asks the owner for all surfaces of a rescinded channel; when there are none, all of it is released.
    pub(super) fn release(&mut self, number: u32, lent: Lent) {
        if lent.0.is_empty() {
            self.end.link.send(&ControlMessage::Released { channel: number });
            return;
        }
        for (surface, _) in lent.0.iter().filter(|(_, wanted)| **wanted == Wanted::No) {
            self.end.events.push_back(Event::SurfaceRevoked { id: ChannelId(number), surface: SurfaceId(*surface) });
        }
        self.releasing.insert(number, lent.0.into_keys().collect());
    }
}

/// Where a surface is, when all of its lines lie in the arena.
fn place(grant: &SurfaceGrant, arena_offset: u64, region_size: u64) -> Option<SurfacePlace> {
    let end = grant.offset.checked_add(grant.length)?;
    let picture = grant.picture;
    let needed = u64::from(picture.stride) * u64::from(picture.height);
    let fits = grant.offset >= arena_offset && end <= region_size && needed <= grant.length;
    let is_picture = picture.width > 0 && picture.height > 0 && picture.stride >= picture.width;
    if !fits || !is_picture {
        return None;
    }
    Some(SurfacePlace {
        offset: usize::try_from(grant.offset).ok()?,
        length: usize::try_from(grant.length).ok()?,
        picture,
    })
}
