//! Sets of ranges of a disk.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges that neither overlap nor touch, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges {
    /// From where each begins to where it ends.
    ends: BTreeMap<u64, u64>,
}

impl Ranges {
    /// The whole of a disk.
    pub(super) fn whole(size: u64) -> Self {
        let mut ranges = Self::default();
        ranges.insert(0..size);
        ranges
    }

    pub(super) fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        // Those that begin at or before the end and do not end before the start become one with it.
        while let Some((first, last)) = self.ends.range(..=end).next_back().map(|(first, last)| (*first, *last))
            && last >= start
        {
            self.ends.remove(&first);
            (start, end) = (start.min(first), end.max(last));
        }
        self.ends.insert(start, end);
    }

    pub(super) fn extend(&mut self, other: &Self) {
        other.iter().for_each(|range| self.insert(range));
    }

    /// What is in both.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        let mut both = Self::default();
        for range in self.iter() {
            let before = other.ends.range(..=range.start).next_back();
            for (start, end) in before.into_iter().chain(other.ends.range(range.start + 1..range.end)) {
                both.insert(range.start.max(*start)..range.end.min(*end));
            }
        }
        both
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.ends.iter().map(|(start, end)| *start..*end)
    }

    /// All of it in pieces that are `most` bytes long at most and cross no multiple of it.
    pub(super) fn pieces(&self, most: u64) -> impl Iterator<Item = Range<u64>> {
        self.iter().flat_map(move |range| {
            let mut at = range.start;
            std::iter::from_fn(move || {
                let end = range.end.min((at / most + 1).saturating_mul(most));
                let piece = at..end;
                at = end;
                (!piece.is_empty()).then_some(piece)
            })
        })
    }

    /// Bytes in all.
    pub(super) fn length(&self) -> u64 {
        self.iter().map(|range| range.end - range.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn of(ranges: &[(u64, u64)]) -> (Ranges, BTreeSet<u64>) {
        let (mut set, mut model) = (Ranges::default(), BTreeSet::new());
        for (start, length) in ranges {
            set.insert(*start..start + length);
            model.extend(*start..start + length);
        }
        (set, model)
    }

    fn ranges() -> impl Strategy<Value = Vec<(u64, u64)>> {
        proptest::collection::vec((0_u64..100, 0_u64..20), 0..20)
    }

    proptest! {
        #[test]
        fn ranges_are_sets(a in ranges(), b in ranges(), most in 1_u64..30) {
            let ((a, in_a), (b, in_b)) = (of(&a), of(&b));
            let bytes = |ranges: &Ranges| ranges.iter().flatten().collect::<Vec<_>>();
            prop_assert_eq!(bytes(&a), in_a.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(a.length(), in_a.len() as u64);
            prop_assert!(a.iter().zip(a.iter().skip(1)).all(|(one, next)| one.end < next.start), "they do not touch");
            let both = a.intersection(&b);
            prop_assert_eq!(bytes(&both), in_a.intersection(&in_b).copied().collect::<Vec<_>>());
            let mut all = a.clone();
            all.extend(&b);
            prop_assert_eq!(bytes(&all), in_a.union(&in_b).copied().collect::<Vec<_>>());
            prop_assert_eq!(a.pieces(most).flatten().collect::<Vec<_>>(), bytes(&a));
            prop_assert!(a.pieces(most).all(|piece| piece.start / most == (piece.end - 1) / most));
        }
    }
}
