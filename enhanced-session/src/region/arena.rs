//! Who has which piece of the arena. The host's book-keeping: nothing of it is in the shared memory.

use std::collections::BTreeMap;

use super::layout::PAGE;

/// Every grant begins at a page, and has whole pages.
const ALIGN: u64 = PAGE as u64;

/// Divides a range of the region into grants that do not overlap. Offsets and lengths are in bytes.
#[derive(Debug)]
pub struct Arena {
    /// Free pieces, by offset. None is empty, and no two touch.
    free: BTreeMap<u64, u64>,
}

/// A piece of the region that is taken. It cannot be copied, so it is given back once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a grant that is dropped is never free again"]
pub struct Grant {
    offset: u64,
    length: u64,
}

impl Arena {
    /// An arena of `length` bytes at `offset`, all free. What does not make whole pages is left out.
    #[must_use]
    pub fn new(offset: u64, length: u64) -> Self {
        let start = offset.next_multiple_of(ALIGN);
        let end = (offset + length) / ALIGN * ALIGN;
        let mut free = BTreeMap::new();
        if start < end {
            free.insert(start, end - start);
        }
        Self { free }
    }

    /// Takes the first piece that has room for `length` bytes. None when there is none.
    pub fn allocate(&mut self, length: u64) -> Option<Grant> {
        let length = length.max(1).checked_next_multiple_of(ALIGN)?;
        let (offset, free) = self.free.iter().map(|(at, free)| (*at, *free)).find(|(_, free)| *free >= length)?;
        self.free.remove(&offset);
        if free > length {
            self.free.insert(offset + length, free - length);
        }
        Some(Grant { offset, length })
    }

    /// Takes a grant back, which must be of this arena.
    pub fn release(&mut self, grant: Grant) {
        let Grant { mut offset, mut length } = grant;
        if let Some((&after, &free)) = self.free.range(offset..).next() {
            assert!(offset + length <= after, "a grant of another arena");
            if offset + length == after {
                self.free.remove(&after);
                length += free;
            }
        }
        if let Some((&before, &free)) = self.free.range(..offset).next_back() {
            assert!(before + free <= offset, "a grant of another arena");
            if before + free == offset {
                offset = before;
                length += free;
            }
        }
        self.free.insert(offset, length);
    }

    /// Bytes that are free, in pieces that may each be small.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.free.values().sum()
    }
}

impl Grant {
    /// Where it begins in the region.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// How long it is: what was asked for, in whole pages.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_arena_gives_nothing_until_something_comes_back() {
        let mut arena = Arena::new(0x4000, 4 * ALIGN);
        let first = arena.allocate(1).expect("room");
        let second = arena.allocate(2 * ALIGN).expect("room");
        assert_eq!((first.offset(), first.length()), (0x4000, ALIGN));
        assert_eq!((second.offset(), second.length()), (0x5000, 2 * ALIGN));
        assert_eq!(arena.allocate(2 * ALIGN), None);
        arena.release(first);
        assert_eq!(arena.allocate(2 * ALIGN), None, "there are two pages, but apart");
        arena.release(second);
        assert_eq!(arena.allocate(4 * ALIGN).map(|grant| grant.offset()), Some(0x4000));
        assert_eq!(arena.free(), 0);
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let mut arena = Arena::new(100, 3 * ALIGN);
        assert_eq!(arena.free(), 2 * ALIGN, "only whole pages");
        assert_eq!(arena.allocate(u64::MAX), None);
        assert_eq!(Arena::new(1, 100).allocate(1), None);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Allocate(u64),
        Release(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![(0..6 * ALIGN).prop_map(Op::Allocate), any::<usize>().prop_map(Op::Release)]
    }

    proptest! {
        #[test]
        fn grants_never_overlap_and_all_comes_back(ops in proptest::collection::vec(op(), 0..200)) {
            let (start, length) = (0x4000, 32 * ALIGN);
            let mut arena = Arena::new(start, length);
            let mut grants: Vec<Grant> = Vec::new();
            for op in ops {
                match op {
                    Op::Allocate(length) => grants.extend(arena.allocate(length)),
                    Op::Release(which) => if !grants.is_empty() {
                        arena.release(grants.swap_remove(which % grants.len()));
                    },
                }
                let mut taken: Vec<_> = grants.iter().map(|grant| (grant.offset(), grant.length())).collect();
                taken.extend(arena.free.iter().map(|(at, length)| (*at, *length)));
                taken.sort_unstable();
                let mut at = start;
                for (offset, length) in taken {
                    prop_assert_eq!(offset, at, "a gap or an overlap");
                    prop_assert!(length > 0 && offset.is_multiple_of(ALIGN));
                    at += length;
                }
                prop_assert_eq!(at, start + length);
            }
            grants.into_iter().for_each(|grant| arena.release(grant));
            prop_assert_eq!(arena.free, BTreeMap::from([(start, length)]));
        }
    }
}
