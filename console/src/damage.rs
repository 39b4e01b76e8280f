//! What has changed on a monitor since it was last looked at.

use crate::geometry::{Rect, Size};

/// Rectangles a set keeps apart before it merges; a guest that reports more only makes the boxes larger.
pub const MAX_DAMAGE_RECTS: usize = 16;

/// A bounded set of changed rectangles.
///
/// Adding never fails and never grows past [`MAX_DAMAGE_RECTS`]: a rectangle that finds no room is merged
/// with the one that grows least. The set covers everything added, and possibly more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DamageSet {
    rects: Vec<Rect>,
}

impl DamageSet {
    /// A set with nothing in it.
    #[must_use]
    pub const fn new() -> Self {
        Self { rects: Vec::new() }
    }

    /// A set that holds the whole of a monitor.
    #[must_use]
    pub fn full(size: Size) -> Self {
        let mut set = Self::new();
        set.add(size.rect());
        set
    }

    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rects.is_empty()
    }

    /// The rectangles; they may overlap.
    #[must_use]
    pub fn rects(&self) -> &[Rect] {
        &self.rects
    }

    /// The smallest rectangle that holds all of it.
    #[must_use]
    pub fn bounds(&self) -> Rect {
        self.rects.iter().fold(Rect::default(), |all, rect| all.union(*rect))
    }

    /// Adds one changed rectangle.
    pub fn add(&mut self, rect: Rect) {
        if rect.is_empty() || self.rects.iter().any(|have| have.contains(rect)) {
            return;
        }
        self.rects.retain(|have| !rect.contains(*have));
        // A merge that adds no pixels (a neighbour in the same row or column) is always worth it.
        let nearest = self.rects.iter().enumerate().map(|(at, have)| (growth(*have, rect), at)).min();
        match nearest {
            Some((extra, at)) if extra == 0 || self.rects.len() == MAX_DAMAGE_RECTS => {
                let merged = self.rects.swap_remove(at).union(rect);
                self.rects.retain(|have| !merged.contains(*have));
                self.rects.push(merged);
            }
            _ => self.rects.push(rect),
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for rect in &other.rects {
            self.add(*rect);
        }
    }

    /// Cuts everything to a monitor of `size`.
    pub fn clip(&mut self, size: Size) {
        for rect in &mut self.rects {
            *rect = rect.intersect(size.rect());
        }
        self.rects.retain(|rect| !rect.is_empty());
    }
}

/// Pixels that a merge of the two would add to what they cover already.
fn growth(a: Rect, b: Rect) -> u64 {
    (a.union(b).area() + a.intersect(b).area()).saturating_sub(a.area() + b.area())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_a_row_become_one() {
        let mut set = DamageSet::new();
        set.add(Rect::new(0, 0, 8, 16));
        set.add(Rect::new(8, 0, 8, 16));
        assert_eq!(set.rects(), [Rect::new(0, 0, 16, 16)]);
    }

    #[test]
    fn the_set_is_bounded_and_covers_everything_added() {
        let mut set = DamageSet::new();
        let added: Vec<_> = (0..200).map(|i| Rect::new(i * 37 % 1900, i * 91 % 1000, 5, 7)).collect();
        for rect in &added {
            set.add(*rect);
            assert!(set.rects().len() <= MAX_DAMAGE_RECTS);
        }
        for rect in added {
            assert!((0..rect.width).all(|dx| {
                let pixel = Rect::new(rect.x + dx, rect.y, 1, 1);
                set.rects().iter().any(|have| have.contains(pixel))
            }));
        }
    }

    #[test]
    fn clipping_drops_what_lies_outside() {
        let mut set = DamageSet::new();
        set.add(Rect::new(90, 90, 100, 100));
        set.add(Rect::new(500, 0, 1, 1));
        set.clip(Size::new(100, 100));
        assert_eq!(set.rects(), [Rect::new(90, 90, 10, 10)]);
    }
}
