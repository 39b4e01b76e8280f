//! Memory for pictures, granted to a channel piece by piece (`docs/bus.md`, section 7.5).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::control::{ControlMessage, ErrorCode, Features, OfferFlags, Picture, SurfaceGrant};
use crate::region::{Grant, SharedMemory};

use super::super::event::{Event, SurfaceError, SurfacePlace};
use super::super::{ChannelId, Complaint, MAX_SURFACES, SurfaceId};
use super::Host;
use super::offers::Standing;

/// The surfaces of a channel.
#[derive(Debug)]
pub(super) struct Surfaces {
    granted: BTreeMap<u32, Surface>,
    next: u32,
}

#[derive(Debug)]
struct Surface {
    grant: Grant,
    picture: Picture,
    is_revoked: bool,
}

impl Surfaces {
    pub(super) const fn new() -> Self {
        Self { granted: BTreeMap::new(), next: 1 }
    }

    pub(super) fn into_grants(self) -> Vec<Grant> {
        self.granted.into_values().map(|surface| surface.grant).collect()
    }
}

impl<M: SharedMemory> Host<M> {
    /// Gives an open channel memory for a picture.
    ///
    /// # Errors
    ///
    /// When the channel takes none, or there is no memory.
    pub fn grant_surface(&mut self, id: ChannelId, picture: Picture) -> Result<SurfaceId, SurfaceError> {
        let has_surfaces = self.peer().is_some_and(|peer| peer.features.has(Features::SURFACES));
        let attached = self.end.has_signals();
        let count: usize = self.channels.values().map(|channel| channel.surfaces.granted.len()).sum();
        let channel = self.channels.get_mut(&id.0).ok_or(SurfaceError::NotOpen)?;
        let is_open = matches!(channel.standing, Standing::Open { .. });
        if !is_open || !channel.offering.flags.has(OfferFlags::SURFACES) {
            return Err(SurfaceError::NotOpen);
        }
        let region = self.region.as_mut().filter(|_| has_surfaces && attached).ok_or(SurfaceError::Unsupported)?;
        let length = u64::from(picture.stride) * u64::from(picture.height);
        if length == 0 || picture.width == 0 || picture.stride < picture.width {
            return Err(SurfaceError::Picture);
        }
        let room = if count < MAX_SURFACES { region.allocate(length) } else { None };
        let grant = room.ok_or(SurfaceError::NoRoom)?;
        let surface = channel.surfaces.next;
        channel.surfaces.next = surface.wrapping_add(1);
        let offset = grant.offset();
        let message = SurfaceGrant { channel: id.0, surface, offset, length, picture };
        channel.surfaces.granted.insert(surface, Surface { grant, picture, is_revoked: false });
        self.end.link.send(&ControlMessage::SurfaceGrant(message));
        Ok(SurfaceId(surface))
    }

    /// Asks for a surface back: [`Event::SurfaceReturned`] follows.
    pub fn revoke_surface(&mut self, id: ChannelId, surface: SurfaceId) {
        let channel = self.channels.get_mut(&id.0);
        let granted = channel.and_then(|channel| channel.surfaces.granted.get_mut(&surface.0));
        let Some(granted) = granted.filter(|granted| !granted.is_revoked) else { return };
        granted.is_revoked = true;
        self.end.link.send(&ControlMessage::SurfaceRevoke { channel: id.0, surface: surface.0 });
    }

    /// Where a surface is that is the guest's to write. What is there may change at any time: copy, then look.
    #[must_use]
    pub fn surface(&self, id: ChannelId, surface: SurfaceId) -> Option<SurfacePlace> {
        let granted =
            self.channels.get(&id.0)?.surfaces.granted.get(&surface.0).filter(|granted| !granted.is_revoked)?;
        let (offset, length) = (granted.grant.offset(), granted.grant.length());
        Some(SurfacePlace {
            offset: usize::try_from(offset).ok()?,
            length: usize::try_from(length).ok()?,
            picture: granted.picture,
        })
    }

    /// The shared memory, if there is any.
    #[must_use]
    pub fn memory(&self) -> Option<&Arc<M>> {
        self.region.as_ref().map(|region| &region.memory)
    }

    /// A channel that is not open has no use for surfaces.
    pub(super) fn revoke_all(&mut self, number: u32) {
        let Some(channel) = self.channels.get(&number) else { return };
        let surfaces: Vec<u32> = channel.surfaces.granted.keys().copied().collect();
        surfaces.into_iter().for_each(|surface| self.revoke_surface(ChannelId(number), SurfaceId(surface)));
    }

    /// SURFACE_REVOKED.
    pub(super) fn handle_surface_revoked(&mut self, number: u32, surface: u32) -> Result<(), Complaint> {
        let Some(channel) = self.channels.get_mut(&number) else {
            // That of a channel whose RELEASED follows.
            let known = self.unreleased.contains_key(&number);
            return if known { Ok(()) } else { Err(Complaint(ErrorCode::UnknownChannel, "no such channel")) };
        };
        let granted = &mut channel.surfaces.granted;
        if !granted.get(&surface).is_some_and(|surface| surface.is_revoked) {
            return Err(Complaint(ErrorCode::WrongState, "that surface was not revoked"));
        }
        let grant = granted.remove(&surface).map(|surface| surface.grant);
        if let Some(region) = &mut self.region {
            region.release(grant);
        }
        self.end.events.push_back(Event::SurfaceReturned { id: ChannelId(number), surface: SurfaceId(surface) });
        Ok(())
    }
}
