//! The shared memory, as its owner sees it: one guest at a time may use it, and shows that it sees it.

use std::sync::Arc;

use crate::class::Class;
use crate::control::{Features, MINOR, OfferedRings};
use crate::region::{ARENA, Arena, Direction, Grant, GuestPage, HostPage, MAX_REGION, MIN_REGION, SharedMemory};
use crate::ring::{Raiser, RingGrant, Watcher, max_payload};

use super::super::CHANNEL_LIMIT;

#[derive(Debug)]
pub(super) struct Region<M> {
    pub(super) memory: Arc<M>,
    arena: Arena,
    /// What the HOST page says, for the guest that is there.
    page: Option<HostPage>,
}

/// Memory for both rings of a channel.
#[derive(Debug)]
pub(super) struct RingPair {
    grants: [Grant; 2],
    /// From host to guest.
    pub(super) h2g: RingGrant,
    /// From guest to host.
    pub(super) g2h: RingGrant,
}

impl<M: SharedMemory> Region<M> {
    pub(super) fn new(memory: Arc<M>) -> Self {
        let size = memory.size();
        let fits = size.is_power_of_two() && (MIN_REGION..=MAX_REGION).contains(&size);
        assert!(fits, "shared memory of {size} bytes; it must be a power of two from {MIN_REGION} to {MAX_REGION}");
        Self { arena: arena(size), memory, page: None }
    }

    pub(super) fn size(&self) -> u64 {
        self.memory.size() as u64
    }

    /// Makes the memory ready for another guest: an empty arena, a HOST page with a new nonce, a pending map of zeros.
    pub(super) fn prepare(&mut self, host_epoch: u64, features: Features, nonce: u64) {
        self.arena = arena(self.memory.size());
        let page = HostPage {
            minor: MINOR,
            region_size: self.size(),
            features: features.0,
            host_epoch,
            region_nonce: nonce,
            arena_offset: ARENA as u64,
            arena_size: self.size() - ARENA as u64,
            channel_limit: CHANNEL_LIMIT,
        };
        // What a guest finds there after it has read the page.
        drop(self.signals());
        page.write_to(&self.memory);
        self.page = Some(page);
    }

    /// The guest that used it is gone.
    pub(super) fn detach(&mut self) {
        self.page = None;
        self.arena = arena(self.memory.size());
        HostPage::set_state(&self.memory, crate::region::State::Down);
    }

    /// Whether the guest with this epoch sees this memory, and we see what it writes.
    pub(super) fn is_proved(&self, region_nonce: u64, guest_nonce: u64, guest_epoch: u64) -> bool {
        let (Some(host), Ok(guest)) = (&self.page, GuestPage::read_from(&self.memory)) else {
            return false;
        };
        host.region_nonce == region_nonce
            && guest.guest_nonce == guest_nonce
            && guest.guest_epoch == guest_epoch
            && guest.host_epoch == host.host_epoch
    }

    /// Takes both halves of the pending map, and clears what is ours of it.
    pub(super) fn signals(&self) -> (Raiser<Arc<M>>, Watcher<Arc<M>>) {
        (
            Raiser::attach(Arc::clone(&self.memory), Direction::HostToGuest, CHANNEL_LIMIT),
            Watcher::attach(Arc::clone(&self.memory), Direction::GuestToHost, CHANNEL_LIMIT),
        )
    }

    /// Memory for the rings of a channel of this class. None: it goes over the stream.
    pub(super) fn allocate_rings(&mut self, class: Class) -> Option<RingPair> {
        self.page.as_ref()?;
        let limits = class.limits();
        let h2g = self.arena.allocate(RingGrant::bytes(limits.h2g_ring))?;
        let Some(g2h) = self.arena.allocate(RingGrant::bytes(limits.g2h_ring)) else {
            self.arena.release(h2g);
            return None;
        };
        let max_payload = max_payload(limits.h2g_ring.min(limits.g2h_ring));
        let ring = |grant: &Grant, size| RingGrant::new(grant.offset(), size, max_payload, self.memory.size());
        match (ring(&h2g, limits.h2g_ring), ring(&g2h, limits.g2h_ring)) {
            (Ok(to_guest), Ok(to_host)) => Some(RingPair { grants: [h2g, g2h], h2g: to_guest, g2h: to_host }),
            // No class has such rings.
            _ => {
                self.release([h2g, g2h]);
                None
            }
        }
    }

    pub(super) fn allocate(&mut self, length: u64) -> Option<Grant> {
        self.page.as_ref()?;
        self.arena.allocate(length)
    }

    /// The guest uses this memory no more.
    pub(super) fn release(&mut self, grants: impl IntoIterator<Item = Grant>) {
        grants.into_iter().for_each(|grant| self.arena.release(grant));
    }
}

impl RingPair {
    pub(super) fn into_grants(self) -> [Grant; 2] {
        self.grants
    }

    /// As OFFER says it.
    pub(super) fn offered(&self) -> OfferedRings {
        let [h2g, g2h] = &self.grants;
        OfferedRings {
            h2g_offset: h2g.offset(),
            g2h_offset: g2h.offset(),
            h2g_size: self.h2g.data_size(),
            g2h_size: self.g2h.data_size(),
            max_payload: self.h2g.max_payload(),
        }
    }
}

fn arena(size: usize) -> Arena {
    Arena::new(ARENA as u64, (size - ARENA) as u64)
}
