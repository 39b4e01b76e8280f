//! What the client shows, and what a damaged scanout changed about it.
//!
//! ```text
//!  scanout ──look──▶ fresh (changed spans) ──[copies: SurfaceToSurface]──▶ take ──▶ pixels, boxes
//! ```
//!
//! `pixels` holds what the client has been told, and everything is encoded from it and never from the guest's
//! live memory: what the client decodes is always equal to it. Between [`Shadow::look`] and [`Shadow::take`] both
//! the old and the new picture are known, which is what the search for scrolling needs.

mod merge;

use console::{DamageSet, Rect, Scanout, Size};

pub(super) use merge::merge;

/// Side of the squares in which changes are looked for.
pub(super) const TILE: u32 = 64;

/// Bytes of a pixel.
pub(super) const PIXEL: usize = 4;

/// Bytes copied from the scanout before they are compared: they stay in the first-level cache.
const CHUNK: usize = 16 * 1024;

/// Bytes of `fresh` and `spans` that are kept from one picture to the next.
const KEPT: usize = 1 << 20;

/// The last copied picture of a monitor: 4 bytes a pixel, rows without gaps.
pub(super) struct Shadow {
    size: Size,
    pixels: Vec<u8>,
    /// The new pixels of `spans`, at the same places as in `pixels`. Pages never written cost nothing.
    fresh: Vec<u8>,
    fresh_written: usize,
    /// What `look` found changed: parts of rows inside one tile, as byte ranges.
    spans: Vec<Span>,
    /// One bit for each row of a tile that `spans` has something of, by row, then by column of tiles.
    changed: Vec<u64>,
    /// Changed part of each tile; tiles by rows.
    extents: Vec<Extent>,
    chunk: Vec<u8>,
}

/// Part of a row.
#[derive(Debug, Clone, Copy)]
struct Span {
    x: u32,
    y: u32,
    width: u32,
}

/// A rectangle by its edges; empty while `left >= right`.
#[derive(Debug, Clone, Copy)]
struct Extent {
    left: u32,
    right: u32,
    top: u32,
    bottom: u32,
}

impl Shadow {
    /// A black picture.
    pub(super) fn new(size: Size) -> Self {
        let bytes = row_bytes(size.width) * to_usize(size.height);
        let mut shadow = Self {
            size,
            pixels: vec![0; bytes],
            fresh: vec![0; bytes],
            fresh_written: 0,
            spans: Vec::new(),
            changed: Vec::new(),
            extents: Vec::new(),
            chunk: Vec::new(),
        };
        shadow.changed.resize(shadow.changed_words() * to_usize(size.height), 0);
        shadow.extents.resize(shadow.columns() * to_usize(size.height.div_ceil(TILE)), Extent::NONE);
        shadow
    }

    pub(super) fn size(&self) -> Size {
        self.size
    }

    /// Bytes from one row to the next.
    pub(super) fn stride(&self) -> usize {
        row_bytes(self.size.width)
    }

    /// The pixels from the top left corner of `rect` on, in rows of [`stride`](Self::stride).
    pub(super) fn pixels_from(&self, rect: Rect) -> &[u8] {
        &self.pixels[self.at(rect.x, rect.y)..]
    }

    /// Copies what `damage` covers, and keeps what differs.
    pub(super) fn look(&mut self, scanout: &dyn Scanout, damage: &DamageSet) {
        assert_eq!(scanout.size(), self.size, "a shadow belongs to scanouts of its size");
        for rect in damage.rects() {
            self.look_at(scanout, rect.intersect(self.size.rect()));
        }
    }

    /// Copies `rect`, and will report all of it whether it changed or not.
    pub(super) fn reload(&mut self, scanout: &dyn Scanout, rect: Rect) {
        let rect = rect.intersect(self.size.rect());
        self.look_at(scanout, rect);
        for (y, height) in cuts(rect.y, rect.bottom()) {
            for (x, width) in cuts(rect.x, rect.right()) {
                let tile = self.tile_at(x, y);
                self.extents[tile].add(Extent { left: x, right: x + width, top: y, bottom: y + height });
            }
        }
    }

    /// Takes over what [`look`](Self::look) kept, and adds to `boxes` the rectangles that changed: at most one
    /// for each tile, as small as its changed pixels allow, by rows of tiles from the top.
    pub(super) fn take(&mut self, boxes: &mut Vec<Rect>) {
        for at in 0..self.spans.len() {
            self.take_span(self.spans[at]);
        }
        self.clear_fresh();
        for extent in &mut self.extents {
            if extent.left < extent.right {
                boxes.push(Rect::new(extent.left, extent.top, extent.right - extent.left, extent.bottom - extent.top));
                *extent = Extent::NONE;
            }
        }
    }

    /// How many rows of tiles differ.
    pub(super) fn changed_rows(&self) -> usize {
        self.spans.len()
    }

    /// One row of one tile (by its column) as the client has it.
    pub(super) fn old_row(&self, column: usize, y: u32) -> &[u8] {
        &self.pixels[self.tile_row(column, y)]
    }

    /// One row of one tile as it is to become.
    pub(super) fn new_row(&self, column: usize, y: u32) -> &[u8] {
        let from = if self.has_changed(column, y) { &self.fresh } else { &self.pixels };
        &from[self.tile_row(column, y)]
    }

    /// Whether a row of a tile will change.
    pub(super) fn has_changed(&self, column: usize, y: u32) -> bool {
        self.changed[self.changed_words() * to_usize(y) + column / 64] >> (column % 64) & 1 == 1
    }

    /// Number of columns of tiles.
    pub(super) fn columns(&self) -> usize {
        to_usize(self.size.width.div_ceil(TILE))
    }

    /// Moves a rectangle up or down, as the client's copy does.
    pub(super) fn copy_rows(&mut self, from: Rect, to_y: u32) {
        let bytes = row_bytes(from.width);
        let mut copy = |row: u32| {
            let source = self.at(from.x, from.y + row);
            let target = self.at(from.x, to_y + row);
            self.pixels.copy_within(source..source + bytes, target);
        };
        // The order in which no row is overwritten before it was read.
        if to_y > from.y {
            (0..from.height).rev().for_each(&mut copy);
        } else {
            (0..from.height).for_each(&mut copy);
        }
    }

    fn look_at(&mut self, scanout: &dyn Scanout, rect: Rect) {
        if rect.is_empty() {
            return;
        }
        let bytes = row_bytes(rect.width);
        let rows_at_once = u32::try_from(CHUNK / bytes).unwrap_or(u32::MAX).clamp(1, rect.height);
        let mut chunk = std::mem::take(&mut self.chunk);
        chunk.resize(chunk.len().max(bytes * to_usize(rows_at_once)), 0);
        for y in (rect.y..rect.bottom()).step_by(to_usize(rows_at_once)) {
            let rows = rows_at_once.min(rect.bottom() - y);
            scanout.copy_rect(Rect::new(rect.x, y, rect.width, rows), &mut chunk, bytes);
            for (y, row) in (y..y + rows).zip(chunk.chunks_exact(bytes)) {
                let start = self.at(rect.x, y);
                if self.pixels[start..start + bytes] != *row {
                    self.keep_row(rect.x, y, row);
                }
            }
        }
        self.chunk = chunk;
    }

    /// Keeps the parts of a row that differ.
    fn keep_row(&mut self, x: u32, y: u32, row: &[u8]) {
        let right = x + u32::try_from(row.len() / PIXEL).unwrap_or(0);
        let words = self.changed_words() * to_usize(y);
        for (span_x, width) in cuts(x, right) {
            let new = &row[row_bytes(span_x - x)..row_bytes(span_x - x + width)];
            let at = self.at(span_x, y);
            if self.pixels[at..at + new.len()] != *new {
                self.fresh[at..at + new.len()].copy_from_slice(new);
                self.fresh_written += new.len();
                self.spans.push(Span { x: span_x, y, width });
                let column = to_usize(span_x / TILE);
                self.changed[words + column / 64] |= 1 << (column % 64);
            }
        }
    }

    fn take_span(&mut self, span: Span) {
        let at = self.at(span.x, span.y);
        let bytes = at..at + row_bytes(span.width);
        let (new, old) = (&self.fresh[bytes.clone()], &mut self.pixels[bytes]);
        let tile = to_usize(span.y / TILE) * to_usize(self.size.width.div_ceil(TILE)) + to_usize(span.x / TILE);
        if new != old {
            self.extents[tile].add_difference(span, new, old);
            old.copy_from_slice(new);
        }
        let words = to_usize(self.size.width.div_ceil(TILE)).div_ceil(64);
        let column = to_usize(span.x / TILE);
        self.changed[words * to_usize(span.y) + column / 64] &= !(1 << (column % 64));
    }

    /// Forgets what was kept, and gives back what a large change took.
    fn clear_fresh(&mut self) {
        if self.fresh_written > KEPT {
            self.fresh = Vec::new();
            self.fresh = vec![0; self.pixels.len()];
            self.fresh_written = 0;
        }
        self.spans.clear();
        self.spans.shrink_to(KEPT / size_of::<Span>() / 16);
    }

    fn at(&self, x: u32, y: u32) -> usize {
        to_usize(y) * self.stride() + to_usize(x) * PIXEL
    }

    fn tile_at(&self, x: u32, y: u32) -> usize {
        to_usize(y / TILE) * self.columns() + to_usize(x / TILE)
    }

    /// Where a row of a tile stands.
    fn tile_row(&self, column: usize, y: u32) -> std::ops::Range<usize> {
        let row = to_usize(y) * self.stride();
        let tile = row_bytes(TILE);
        row + column * tile..row + ((column + 1) * tile).min(self.stride())
    }

    /// Words of `changed` for a row.
    fn changed_words(&self) -> usize {
        self.columns().div_ceil(64)
    }
}

impl Extent {
    const NONE: Self = Self { left: u32::MAX, right: 0, top: u32::MAX, bottom: 0 };

    fn add(&mut self, other: Self) {
        self.left = self.left.min(other.left);
        self.right = self.right.max(other.right);
        self.top = self.top.min(other.top);
        self.bottom = self.bottom.max(other.bottom);
    }

    /// Grows to hold what differs between two versions of a span, which do differ.
    fn add_difference(&mut self, span: Span, new: &[u8], old: &[u8]) {
        self.top = self.top.min(span.y);
        self.bottom = self.bottom.max(span.y + 1);
        // Only what lies outside of the extent so far can make it wider.
        let outside_left = row_bytes(self.left.clamp(span.x, span.x + span.width) - span.x);
        if let Some(first) = first_difference(&new[..outside_left], &old[..outside_left]) {
            self.left = span.x + first;
        }
        let inside = self.right.clamp(span.x, span.x + span.width);
        let outside_right = row_bytes(inside - span.x);
        if let Some(last) = last_difference(&new[outside_right..], &old[outside_right..]) {
            self.right = inside + last + 1;
        }
    }
}

/// Index of the first pixel that differs.
fn first_difference(a: &[u8], b: &[u8]) -> Option<u32> {
    let (pixels_a, pixels_b) = (a.chunks_exact(PIXEL), b.chunks_exact(PIXEL));
    (0..).zip(pixels_a.zip(pixels_b)).find(|(_, (a, b))| a != b).map(|(at, _)| at)
}

/// Index of the last pixel that differs.
fn last_difference(a: &[u8], b: &[u8]) -> Option<u32> {
    let (pixels_a, pixels_b) = (a.chunks_exact(PIXEL), b.chunks_exact(PIXEL));
    pixels_a.zip(pixels_b).rposition(|(a, b)| a != b).and_then(|at| u32::try_from(at).ok())
}

/// A side of a rectangle cut where tiles begin: where each piece starts, and its length.
fn cuts(from: u32, to: u32) -> impl Iterator<Item = (u32, u32)> {
    let next = move |at: u32| ((at / TILE + 1) * TILE).min(to);
    std::iter::successors((from < to).then_some(from), move |at| Some(next(*at)).filter(|at| *at < to))
        .map(move |at| (at, next(at) - at))
}

fn row_bytes(width: u32) -> usize {
    to_usize(width) * PIXEL
}

/// A coordinate as an index; `usize` has at least 32 bits wherever this runs.
pub(super) fn to_usize(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
impl Shadow {
    /// The pixels of a rectangle, which is a row or part of one, as they are to become.
    pub(super) fn new_pixels(&self, row: Rect) -> Vec<u8> {
        let tiles = cuts(row.x, row.right()).flat_map(|(x, width)| {
            let tile = self.new_row(to_usize(x / TILE), row.y);
            tile[row_bytes(x % TILE)..][..row_bytes(width)].to_vec()
        });
        tiles.collect()
    }
}

#[cfg(test)]
mod tests;
