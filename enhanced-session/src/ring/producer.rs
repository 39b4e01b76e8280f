//! The end that fills a ring.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::grant::{RingGrant, Word, packet_size};
use super::{ALIGN, Kick, RingFault, check_counter};
use crate::packet::PacketHeader;
use crate::region::SharedMemory;

/// Fills a ring with packets.
///
/// ```text
/// loop { push, until there is nothing to send or it is full }, publish, kick if needed
/// ```
#[derive(Debug)]
pub struct Producer<M> {
    memory: M,
    grant: RingGrant,
    tag: u32,
    /// Bytes produced, published or not.
    produced: u32,
    /// Of them, those published: what `in` says.
    published: u32,
    /// Bytes consumed: the last `out` that could be.
    consumed: u32,
    /// What `pending_send` says.
    waits_for: u32,
    /// A kick that the next [`publish`](Self::publish) must report.
    kick: Kick,
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a packet that found no room has to be pushed again"]
pub enum Push {
    /// It is behind the others, and goes out with the next [`publish`](Producer::publish).
    Done,
    /// There is no room. Publish, wait for a kick, and push the same packet again.
    Full,
}

impl<M: SharedMemory> Producer<M> {
    /// Takes this end of a ring, and says so in the words that are ours. The peer must do the same before it is used.
    ///
    /// # Panics
    ///
    /// When the memory ends before the ring.
    #[must_use]
    pub fn attach(memory: M, grant: RingGrant, tag: u32) -> Self {
        assert!(grant.end() <= memory.size(), "a ring must lie in its memory");
        memory.store_u32(grant.word(Word::In), 0, Relaxed);
        memory.store_u32(grant.word(Word::PendingSend), 0, Relaxed);
        memory.store_u32(grant.word(Word::ProducerTag), tag, Release);
        Self { memory, grant, tag, produced: 0, published: 0, consumed: 0, waits_for: 0, kick: Kick::NotNeeded }
    }

    /// Whether the other end has attached to the same opening of the channel.
    #[must_use]
    pub fn peer_tag_matches(&self) -> bool {
        self.memory.load_u32(self.grant.word(Word::ConsumerTag), Acquire) == self.tag
    }

    /// Longest payload of a packet.
    #[must_use]
    pub const fn max_payload(&self) -> u32 {
        self.grant.max_payload()
    }

    /// Copies a packet behind the others. The payload's parts are put together in the ring.
    ///
    /// [`Push::Full`] asks the peer for a kick as soon as there is room for this packet. Another packet that goes in
    /// meanwhile withdraws that.
    ///
    /// # Errors
    ///
    /// When the peer broke the ring.
    ///
    /// # Panics
    ///
    /// When the header has another length than the payload, or that is above [`max_payload`](Self::max_payload).
    pub fn push(&mut self, header: &PacketHeader, payload: &[&[u8]]) -> Result<Push, RingFault> {
        let length: usize = payload.iter().map(|part| part.len()).sum();
        assert_eq!(usize::try_from(header.length), Ok(length), "a packet's length is that of its payload");
        assert!(header.length <= self.max_payload(), "a packet of {length} bytes is cut before it is pushed");
        let size = packet_size(header.length);
        if self.room() < size && !self.wait_for(size)? {
            return Ok(Push::Full);
        }
        if self.waits_for != 0 {
            self.set_waits_for(0);
        }
        let start = self.produced;
        self.copy_in(&header.encode());
        payload.iter().for_each(|part| self.copy_in(part));
        let padding = (start.wrapping_add(size)).wrapping_sub(self.produced);
        self.copy_in(&[0; ALIGN as usize - 1][..padding as usize]);
        Ok(Push::Done)
    }

    /// Shows the peer everything that was pushed, and says whether it must be kicked for that.
    ///
    /// # Errors
    ///
    /// When the peer broke the ring.
    pub fn publish(&mut self) -> Result<Kick, RingFault> {
        if self.published != self.produced {
            let before = self.set_published();
            self.meet_consumer(before)?;
        }
        Ok(std::mem::replace(&mut self.kick, Kick::NotNeeded))
    }

    /// Whether the peer has taken everything that was published.
    ///
    /// # Errors
    ///
    /// When the peer broke the ring.
    pub fn is_taken(&mut self) -> Result<bool, RingFault> {
        self.observe_out()?;
        Ok(self.consumed == self.published)
    }

    /// Lets the counters of an empty ring go on from `count`.
    #[cfg(test)]
    pub(super) fn set_count(&mut self, count: u32) {
        (self.produced, self.consumed) = (count, count);
        self.set_published();
    }

    /// Room for more, as far as is known.
    const fn room(&self) -> u32 {
        self.grant.data_size() - self.produced.wrapping_sub(self.consumed)
    }

    /// Looks for room; when there is not enough, asks for a kick and looks once more. Returns whether there is.
    fn wait_for(&mut self, size: u32) -> Result<bool, RingFault> {
        self.observe_out()?;
        if self.room() >= size {
            return Ok(true);
        }
        // The consumer counts the room from `in`: with packets that are not published it would see more of it than there
        // is, and never see it grow beyond `size`.
        let before = self.set_published();
        self.set_waits_for(size);
        self.meet_consumer(before)?;
        Ok(self.room() >= size)
    }

    /// After our words were stored: looks at the consumer's. It sees ours, or we see its; never neither.
    fn meet_consumer(&mut self, published_before: u32) -> Result<(), RingFault> {
        self.memory.fence();
        let mask = self.memory.load_u32(self.grant.word(Word::Mask), Relaxed);
        self.observe_out()?;
        // A consumer that had not taken everything is awake, or has a kick on its way.
        let slept = mask == 0 && self.consumed == published_before;
        if slept && self.published != published_before {
            self.kick = Kick::Needed;
        }
        Ok(())
    }

    /// Takes over the peer's `out`. What it frees may be overwritten: the peer's reads were before its release.
    fn observe_out(&mut self) -> Result<(), RingFault> {
        let out = self.memory.load_u32(self.grant.word(Word::Out), Acquire);
        let limit = self.published.wrapping_sub(self.consumed);
        check_counter("out", out, self.consumed, limit)?;
        self.consumed = out;
        Ok(())
    }

    /// Stores `in`; returns what it was.
    fn set_published(&mut self) -> u32 {
        self.memory.store_u32(self.grant.word(Word::In), self.produced, Release);
        std::mem::replace(&mut self.published, self.produced)
    }

    fn set_waits_for(&mut self, size: u32) {
        self.memory.store_u32(self.grant.word(Word::PendingSend), size, Relaxed);
        self.waits_for = size;
    }

    /// Copies behind what was produced. There is room.
    fn copy_in(&mut self, bytes: &[u8]) {
        let (at, until_end) = self.grant.place(self.produced);
        let (here, at_start) = bytes.split_at(bytes.len().min(until_end));
        self.memory.write(at, here);
        if !at_start.is_empty() {
            self.memory.write(self.grant.place(0).0, at_start);
        }
        // No more than a quarter of the ring, which is less than 2³².
        self.produced = self.produced.wrapping_add(bytes.len() as u32);
    }
}
