//! Fewer and larger rectangles.

use console::Rect;

use super::TILE;

/// What one more rectangle costs, in pixels of the same rectangle: headers, palette, and its own start.
const RECT_COST: u64 = 160;

/// Pixels up to which rectangles are merged. A palette serves 127 colours, so larger is not better.
const MAX_MERGED: u64 = 16_384;

/// Merges rectangles where one larger is cheaper to send than two.
///
/// Each lies inside one tile, and they come by rows of tiles from the top, tiles from the left.
pub(in crate::graphics) fn merge(boxes: &mut Vec<Rect>) {
    merge_neighbours(boxes, |last, next| last.y / TILE == next.y / TILE && last.right() <= next.x);
    boxes.sort_unstable_by_key(|rect| (rect.x / TILE, rect.y));
    merge_neighbours(boxes, |last, next| last.x / TILE == next.x / TILE && last.bottom() <= next.y);
    boxes.sort_unstable_by_key(|rect| (rect.y, rect.x));
}

fn merge_neighbours(boxes: &mut Vec<Rect>, neighbours: impl Fn(Rect, Rect) -> bool) {
    boxes.dedup_by(|next, last| {
        let both = last.union(*next);
        let merge = neighbours(*last, *next)
            && both.area() <= MAX_MERGED
            && both.area() <= last.area() + next.area() + RECT_COST;
        if merge {
            *last = both;
        }
        merge
    });
}
