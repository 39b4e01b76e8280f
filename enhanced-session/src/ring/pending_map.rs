//! Which channels have to be looked at (`docs/bus.md`, section 7.4): a bit for each, pending while the sender's word
//! and the receiver's differ.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::region::{ARENA, Direction, MAX_CHANNELS, SharedMemory};

const BITS: u32 = u64::BITS;

/// The sender's end.
#[derive(Debug)]
pub struct Raiser<M> {
    memory: M,
    direction: Direction,
    channels: u32,
    /// What our words say.
    raised: Box<[u64]>,
}

/// The receiver's end.
#[derive(Debug)]
pub struct Watcher<M> {
    memory: M,
    direction: Direction,
    channels: u32,
    /// What our words say.
    seen: Box<[u64]>,
}

impl<M: SharedMemory> Raiser<M> {
    /// Takes this end, for channel numbers below `channels`, and clears the words that are ours.
    ///
    /// # Panics
    ///
    /// When the map has no room for so many, or the memory none for the map.
    #[must_use]
    pub fn attach(memory: M, direction: Direction, channels: u32) -> Self {
        let raised = clear(&memory, direction.raised(), channels);
        Self { memory, direction, channels, raised }
    }

    /// Makes `channel` pending. Returns whether a KICK frame must follow; otherwise an earlier one has not been looked at
    /// yet, and serves this too.
    ///
    /// Call it for a [`Kick::Needed`](super::Kick): the fence that the peer's look is paired with was part of finding out.
    ///
    /// # Panics
    ///
    /// When the channel's number is too high.
    #[must_use = "without the frame nobody looks"]
    pub fn raise(&mut self, channel: u32) -> bool {
        assert!(channel < self.channels, "channel {channel} has no place in the pending map");
        let (index, bit) = ((channel / BITS) as usize, 1 << (channel % BITS));
        let at = index * size_of::<u64>();
        let seen = self.memory.load_u64(self.direction.seen() + at, Relaxed);
        let raised = &mut self.raised[index];
        if (*raised ^ seen) & bit != 0 {
            return false;
        }
        *raised ^= bit;
        self.memory.store_u64(self.direction.raised() + at, *raised, Release);
        true
    }
}

impl<M: SharedMemory> Watcher<M> {
    /// Takes this end, for channel numbers below `channels`, and clears the words that are ours.
    ///
    /// # Panics
    ///
    /// When the map has no room for so many, or the memory none for the map.
    #[must_use]
    pub fn attach(memory: M, direction: Direction, channels: u32) -> Self {
        let seen = clear(&memory, direction.seen(), channels);
        Self { memory, direction, channels, seen }
    }

    /// Adds the pending channels to `pending`, and marks them as seen. They must be looked at after that, not before.
    ///
    /// All numbers added are below the limit, whatever the peer wrote.
    pub fn take(&mut self, pending: &mut Vec<u32>) {
        for (word, seen) in (0..).zip(&mut self.seen) {
            let first = word * BITS;
            let at = word as usize * size_of::<u64>();
            let raised = self.memory.load_u64(self.direction.raised() + at, Acquire) & known(self.channels - first);
            let mut different = raised ^ *seen;
            if different == 0 {
                continue;
            }
            *seen = raised;
            self.memory.store_u64(self.direction.seen() + at, raised, Release);
            while different != 0 {
                pending.push(first + different.trailing_zeros());
                different &= different - 1;
            }
        }
        // A sender that sees its bit pending still will not kick: what it published before is seen from here on.
        self.memory.fence();
    }
}

/// The bits of a word whose first channel has `channels - 1` more behind it.
const fn known(channels: u32) -> u64 {
    if channels >= BITS { u64::MAX } else { (1 << channels) - 1 }
}

/// Clears an end's words; returns the private copy of them.
fn clear(memory: &impl SharedMemory, at: usize, channels: u32) -> Box<[u64]> {
    assert!(channels <= MAX_CHANNELS, "the pending map ends before channel {channels}");
    assert!(memory.size() >= ARENA, "the memory ends before the pending map does");
    let words = channels.div_ceil(BITS) as usize;
    for word in 0..words {
        memory.store_u64(at + word * size_of::<u64>(), 0, Relaxed);
    }
    vec![0; words].into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::region::HeapMemory;

    const DIRECTION: Direction = Direction::HostToGuest;

    fn map(channels: u32) -> (Raiser<Arc<HeapMemory>>, Watcher<Arc<HeapMemory>>, Arc<HeapMemory>) {
        let memory = Arc::new(HeapMemory::new(ARENA));
        let raiser = Raiser::attach(Arc::clone(&memory), DIRECTION, channels);
        let watcher = Watcher::attach(Arc::clone(&memory), DIRECTION, channels);
        (raiser, watcher, memory)
    }

    fn taken(watcher: &mut Watcher<Arc<HeapMemory>>) -> Vec<u32> {
        let mut pending = Vec::new();
        watcher.take(&mut pending);
        pending
    }

    #[test]
    fn a_channel_is_kicked_once_until_it_is_seen() {
        let (mut raiser, mut watcher, _) = map(130);
        assert!(raiser.raise(1));
        assert!(!raiser.raise(1));
        assert!(raiser.raise(129));
        assert_eq!(taken(&mut watcher), [1, 129]);
        assert!(taken(&mut watcher).is_empty());
        assert!(raiser.raise(1));
        assert_eq!(taken(&mut watcher), [1]);
    }

    #[test]
    fn the_words_lie_where_the_specification_says() {
        let (mut raiser, mut watcher, memory) = map(130);
        assert!(raiser.raise(65));
        taken(&mut watcher);
        assert_eq!((memory.load_u64(0x2008, Relaxed), memory.load_u64(0x3808, Relaxed)), (2, 2));
        let mut raiser = Raiser::attach(Arc::clone(&memory), Direction::GuestToHost, 1);
        let mut watcher = Watcher::attach(Arc::clone(&memory), Direction::GuestToHost, 1);
        assert!(raiser.raise(0));
        taken(&mut watcher);
        assert_eq!((memory.load_u64(0x3000, Relaxed), memory.load_u64(0x2800, Relaxed)), (1, 1));
    }

    #[test]
    fn bits_of_no_channel_are_not_seen() {
        let (_, mut watcher, memory) = map(66);
        for word in 0..4 {
            memory.store_u64(DIRECTION.raised() + 8 * word, u64::MAX, Relaxed);
        }
        assert_eq!(taken(&mut watcher), (0..66).collect::<Vec<_>>());
        assert_eq!(memory.load_u64(DIRECTION.seen() + 8, Relaxed), 3);
    }

    #[test]
    fn all_of_the_map_can_be_used() {
        let (mut raiser, mut watcher, _) = map(MAX_CHANNELS);
        assert!(raiser.raise(MAX_CHANNELS - 1));
        assert_eq!(taken(&mut watcher), [MAX_CHANNELS - 1]);
    }

    #[test]
    #[should_panic(expected = "channel 66 has no place in the pending map")]
    fn a_channel_behind_the_limit_cannot_be_raised() {
        let _ = map(66).0.raise(66);
    }

    proptest! {
        #[test]
        fn what_was_raised_is_taken_once(ops in proptest::collection::vec(proptest::option::of(0u32..200), 0..200)) {
            let (mut raiser, mut watcher, _) = map(200);
            let mut expected = BTreeSet::new();
            for op in ops {
                match op {
                    Some(channel) => prop_assert_eq!(raiser.raise(channel), expected.insert(channel)),
                    None => {
                        prop_assert_eq!(taken(&mut watcher), expected.iter().copied().collect::<Vec<_>>());
                        expected.clear();
                    }
                }
            }
        }

        #[test]
        fn no_word_of_the_peer_does_more_than_wake(
            words in proptest::collection::vec((0usize..8, any::<u64>()), 0..40),
            channels in 0u32..300,
        ) {
            let (mut raiser, mut watcher, memory) = map(channels);
            for (word, value) in words {
                memory.store_u64(DIRECTION.raised() + 8 * word, value, Relaxed);
                memory.store_u64(DIRECTION.seen() + 8 * word, value, Relaxed);
                let pending = taken(&mut watcher);
                prop_assert!(pending.iter().all(|channel| *channel < channels));
                prop_assert!(pending.is_sorted_by(|one, next| one < next));
                if channels > 0 {
                    let _ = raiser.raise(channels - 1);
                }
            }
        }
    }
}
