//! The end that empties a ring.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::grant::{RingGrant, Word, packet_size};
use super::{Kick, RingFault, check_counter};
use crate::packet::{PACKET_HEADER, PacketHeader};
use crate::region::SharedMemory;

/// Takes packets out of a ring.
///
/// ```text
/// on a kick: loop { pop, until there is nothing or it is enough for now }, publish, kick if needed
/// ```
///
/// A consumer that stops before [`pop`](Self::pop) said that there is nothing must come back by itself: the peer takes it
/// for awake, and will not kick.
#[derive(Debug)]
pub struct Consumer<M> {
    memory: M,
    grant: RingGrant,
    tag: u32,
    /// Bytes consumed, published or not.
    consumed: u32,
    /// Of them, those published: what `out` says.
    published: u32,
    /// Bytes produced: the last `in` that could be.
    produced: u32,
    /// Whether `mask` is 1.
    masked: bool,
    /// A kick that the next [`publish`](Self::publish) must report.
    kick: Kick,
}

impl<M: SharedMemory> Consumer<M> {
    /// Takes this end of a ring, and says so in the words that are ours. The peer must do the same before it is used.
    ///
    /// # Panics
    ///
    /// When the memory ends before the ring.
    #[must_use]
    pub fn attach(memory: M, grant: RingGrant, tag: u32) -> Self {
        assert!(grant.end() <= memory.size(), "a ring must lie in its memory");
        memory.store_u32(grant.word(Word::Out), 0, Relaxed);
        memory.store_u32(grant.word(Word::Mask), 0, Relaxed);
        memory.store_u32(grant.word(Word::ConsumerTag), tag, Release);
        Self { memory, grant, tag, consumed: 0, published: 0, produced: 0, masked: false, kick: Kick::NotNeeded }
    }

    /// Whether the other end has attached to the same opening of the channel.
    #[must_use]
    pub fn peer_tag_matches(&self) -> bool {
        self.memory.load_u32(self.grant.word(Word::ProducerTag), Acquire) == self.tag
    }

    /// Takes the next packet, and puts its payload at the end of `payload`: pieces of one message come together there.
    ///
    /// None: there is nothing. The peer kicks when there is something again.
    ///
    /// The header is copied once, the copy is checked, and the payload is copied as the copy says. At most the ring's
    /// longest payload is added.
    ///
    /// # Errors
    ///
    /// When the peer broke the ring.
    pub fn pop(&mut self, payload: &mut Vec<u8>) -> Result<Option<PacketHeader>, RingFault> {
        if self.produced == self.consumed && !self.look()? {
            return Ok(None);
        }
        let header = self.copy_packet(payload)?;
        if self.consumed.wrapping_sub(self.published) >= self.grant.data_size() / 2 {
            self.give_back()?;
        }
        Ok(Some(header))
    }

    /// Gives the peer the room of what was taken, and says whether it must be kicked, now or because of what
    /// [`pop`](Self::pop) gave back meanwhile.
    ///
    /// # Errors
    ///
    /// When the peer broke the ring.
    pub fn publish(&mut self) -> Result<Kick, RingFault> {
        if self.published != self.consumed {
            self.give_back()?;
        }
        Ok(std::mem::replace(&mut self.kick, Kick::NotNeeded))
    }

    /// Lets the counters of an empty ring go on from `count`.
    #[cfg(test)]
    pub(super) fn set_count(&mut self, count: u32) {
        (self.produced, self.consumed, self.published) = (count, count, count);
        self.memory.store_u32(self.grant.word(Word::Out), count, Release);
    }

    /// Looks for packets. When there are none it gives back all room, unmasks, and looks once more: a producer either
    /// sees that we sleep, or we see what it published.
    fn look(&mut self) -> Result<bool, RingFault> {
        self.observe_in()?;
        if self.produced != self.consumed {
            if !self.masked {
                self.set_mask(true);
            }
            return Ok(true);
        }
        if !self.masked {
            return Ok(false);
        }
        self.set_mask(false);
        // Has the fence that stands between the mask and the second look.
        self.give_back()?;
        if self.produced == self.consumed {
            return Ok(false);
        }
        self.set_mask(true);
        Ok(true)
    }

    /// Stores `out`, and looks whether that makes the room that the producer waits for. It sees our word, or we see its.
    fn give_back(&mut self) -> Result<(), RingFault> {
        self.memory.store_u32(self.grant.word(Word::Out), self.consumed, Release);
        let published_before = std::mem::replace(&mut self.published, self.consumed);
        self.memory.fence();
        let wanted = self.memory.load_u32(self.grant.word(Word::PendingSend), Relaxed);
        self.observe_in()?;
        // Both from the same `in`. From an older one, the room before could seem to have been enough, and nobody kicks.
        let room = |out| self.grant.data_size().saturating_sub(self.produced.wrapping_sub(out));
        if wanted != 0 && room(published_before) < wanted && wanted <= room(self.published) {
            self.kick = Kick::Needed;
        }
        Ok(())
    }

    /// Takes over the peer's `in`. What it adds may be read: the peer's writes were before its release.
    fn observe_in(&mut self) -> Result<(), RingFault> {
        let produced = self.memory.load_u32(self.grant.word(Word::In), Acquire);
        let limit = self.grant.data_size() - self.produced.wrapping_sub(self.published);
        check_counter("in", produced, self.produced, limit)?;
        self.produced = produced;
        Ok(())
    }

    fn set_mask(&mut self, masked: bool) {
        self.memory.store_u32(self.grant.word(Word::Mask), masked.into(), Relaxed);
        self.masked = masked;
    }

    /// Copies the packet at `consumed` out. There is something.
    fn copy_packet(&mut self, payload: &mut Vec<u8>) -> Result<PacketHeader, RingFault> {
        let available = self.produced.wrapping_sub(self.consumed);
        let cut = |length| if length <= available { Ok(()) } else { Err(RingFault::Cut { length, available }) };
        cut(packet_size(0))?;
        let header = PacketHeader::decode(&self.copy_header())?;
        if header.length > self.grant.max_payload() {
            return Err(RingFault::TooLong { length: header.length, limit: self.grant.max_payload() });
        }
        let size = packet_size(header.length);
        cut(size)?;
        self.copy_payload(header.length as usize, payload);
        self.consumed = self.consumed.wrapping_add(size);
        Ok(header)
    }

    fn copy_header(&self) -> [u8; PACKET_HEADER] {
        let mut header = [0; PACKET_HEADER];
        let (at, until_end) = self.grant.place(self.consumed);
        let (here, at_start) = header.split_at_mut(PACKET_HEADER.min(until_end));
        self.memory.read(at, here);
        if !at_start.is_empty() {
            self.memory.read(self.grant.place(0).0, at_start);
        }
        header
    }

    fn copy_payload(&self, length: usize, payload: &mut Vec<u8>) {
        let (at, until_end) = self.grant.place(self.consumed.wrapping_add(packet_size(0)));
        let here = length.min(until_end);
        self.memory.append(at, here, payload);
        if length > here {
            self.memory.append(self.grant.place(0).0, length - here, payload);
        }
    }
}
