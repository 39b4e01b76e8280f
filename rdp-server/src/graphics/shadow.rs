//! What the client shows, and what a damaged scanout changed about it.
//!
//! ```text
//!             ┌─ Small ─────────────────────────────▶ take_kept ──┐
//!  look ──────┤                                                   ├─▶ boxes
//!             └─ Large ─▶ scroll::find, copy_rows ──▶ take_from ──┘
//! ```
//!
//! `pixels` holds what the client has been told, and everything is encoded from it and never from the guest's
//! live memory: what the client decodes is always equal to it. A small change is kept as it was seen and then
//! taken over. A large one would need as much memory as the screen: of it only hashes are kept, by which the search
//! for scrolling compares the old picture with the new, and then the scanout is read a second time, against what the
//! search made of `pixels`. Whatever was guessed wrong, or drawn in between, is simply a difference then.

mod merge;

use console::{DamageSet, Rect, Scanout, Size};

pub(super) use merge::merge;

/// Side of the squares in which changes are looked for.
pub(super) const TILE: u32 = 64;

/// Bytes of a pixel.
pub(super) const PIXEL: usize = 4;

/// Bytes of a row of a tile.
const TILE_ROW: usize = 64 * PIXEL;

/// Bytes copied from the scanout before they are compared: they stay in the first-level cache.
const CHUNK: usize = 16 * 1024;

/// Bytes of changed rows that make a change large.
const MAX_KEPT: usize = 512 * 1024;

/// Spans whose memory is kept from one look to the next.
const KEPT_SPANS: usize = MAX_KEPT / TILE_ROW;

/// The last copied picture of a monitor: 4 bytes a pixel, rows without gaps.
pub(super) struct Shadow {
    size: Size,
    pixels: Vec<u8>,
    /// What `look` found changed.
    spans: Vec<Span>,
    /// The new pixels of `spans`, one after the other; of a large change, of the first ones.
    kept: Vec<u8>,
    /// Changed part of each tile; tiles by rows.
    extents: Vec<Extent>,
    chunk: Vec<u8>,
}

/// Part of a row inside one tile that changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    x: u32,
    pub(super) y: u32,
    width: u32,
    /// Of the tile's whole row as it is to become.
    pub(super) hash: u64,
}

/// How much [`Shadow::look`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// All of it was kept: [`Shadow::take_kept`].
    Small,
    /// It has to be read again: [`Shadow::take_from`].
    Large,
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
        let tiles = to_usize(size.width.div_ceil(TILE)) * to_usize(size.height.div_ceil(TILE));
        Self {
            size,
            pixels: vec![0; row_bytes(size.width) * to_usize(size.height)],
            spans: Vec::new(),
            kept: Vec::new(),
            extents: vec![Extent::NONE; tiles],
            chunk: Vec::new(),
        }
    }

    /// Makes it a black picture of another size, or of the same.
    pub(super) fn blacken(&mut self, size: Size) {
        if size == self.size {
            self.pixels.fill(0);
            return;
        }
        // The old picture goes first: there is never memory for both.
        *self = Self::new(Size::default());
        *self = Self::new(size);
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

    /// Compares what `damage` covers.
    pub(super) fn look(&mut self, scanout: &dyn Scanout, damage: &DamageSet) -> Change {
        self.spans.clear();
        self.kept.clear();
        for rect in damage.rects() {
            self.read(scanout, rect.intersect(self.size.rect()), Self::keep_row);
        }
        if self.kept.len() <= MAX_KEPT { Change::Small } else { Change::Large }
    }

    /// Takes over what the last [`look`](Self::look) kept.
    pub(super) fn take_kept(&mut self) {
        let (kept, spans) = (std::mem::take(&mut self.kept), std::mem::take(&mut self.spans));
        let mut rest = kept.as_slice();
        for span in &spans {
            let (new, after) = rest.split_at(row_bytes(span.width));
            rest = after;
            self.take_span(span.x, span.y, new);
        }
        (self.kept, self.spans) = (kept, spans);
        self.forget();
    }

    /// Reads what `damage` covers, and takes over what differs.
    pub(super) fn take_from(&mut self, scanout: &dyn Scanout, damage: &DamageSet) {
        self.forget();
        for rect in damage.rects() {
            self.read(scanout, rect.intersect(self.size.rect()), Self::take_row);
        }
    }

    /// Reads `rect`, and will report all of it whether it changed or not.
    pub(super) fn reload(&mut self, scanout: &dyn Scanout, rect: Rect) {
        let rect = rect.intersect(self.size.rect());
        self.read(scanout, rect, Self::take_row);
        for (y, height) in cuts(rect.y, rect.bottom()) {
            for (x, width) in cuts(rect.x, rect.right()) {
                let tile = self.tile_at(x, y);
                self.extents[tile].add(Extent { left: x, right: x + width, top: y, bottom: y + height });
            }
        }
    }

    /// Adds to `boxes` the rectangles that were taken over since the last time: at most one for each tile, as small
    /// as its changed pixels allow, by rows of tiles from the top.
    pub(super) fn report(&mut self, boxes: &mut Vec<Rect>) {
        for extent in &mut self.extents {
            if extent.left < extent.right {
                let size = Size::new(extent.right - extent.left, extent.bottom - extent.top);
                boxes.push(Rect::new(extent.left, extent.top, size.width, size.height));
                *extent = Extent::NONE;
            }
        }
    }

    /// What the last [`look`](Self::look) found changed, tile by tile and row by row.
    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The hash of one row of one tile, by its column, as the client has it.
    pub(super) fn row_hash(&self, column: usize, y: u32) -> u64 {
        let row = to_usize(y) * self.stride();
        hash(&self.pixels[row + column * TILE_ROW..row + ((column + 1) * TILE_ROW).min(self.stride())])
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

    /// Copies `rect` from the scanout, and hands out the rows that differ.
    fn read(&mut self, scanout: &dyn Scanout, rect: Rect, differs: fn(&mut Self, u32, u32, &[u8])) {
        assert_eq!(scanout.size(), self.size, "a shadow belongs to scanouts of its size");
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
                    differs(self, rect.x, y, row);
                }
            }
        }
        self.chunk = chunk;
    }

    /// Keeps the parts of a row that differ.
    fn keep_row(&mut self, x: u32, y: u32, row: &[u8]) {
        for (span_x, width) in cuts(x, x + pixel_count(row)) {
            let new = &row[row_bytes(span_x - x)..][..row_bytes(width)];
            let at = self.at(span_x, y);
            if self.pixels[at..at + new.len()] != *new {
                self.spans.push(Span { x: span_x, y, width, hash: self.hash_with(span_x, y, new) });
                // One more than fits says that it did not.
                if self.kept.len() <= MAX_KEPT {
                    self.kept.extend_from_slice(new);
                }
            }
        }
    }

    /// Takes over the parts of a row that differ.
    fn take_row(&mut self, x: u32, y: u32, row: &[u8]) {
        for (span_x, width) in cuts(x, x + pixel_count(row)) {
            self.take_span(span_x, y, &row[row_bytes(span_x - x)..][..row_bytes(width)]);
        }
    }

    /// Takes over part of a row, inside one tile.
    fn take_span(&mut self, x: u32, y: u32, new: &[u8]) {
        let (at, tile) = (self.at(x, y), self.tile_at(x, y));
        let old = &mut self.pixels[at..at + new.len()];
        if *new != *old {
            self.extents[tile].add_difference(x, y, new, old);
            old.copy_from_slice(new);
        }
    }

    /// The hash of a tile's row of which a part is new.
    fn hash_with(&self, x: u32, y: u32, new: &[u8]) -> u64 {
        let left = x / TILE * TILE;
        let width = TILE.min(self.size.width - left);
        if new.len() == row_bytes(width) {
            return hash(new);
        }
        let (at, mut row) = (self.at(left, y), [0; TILE_ROW]);
        let row = &mut row[..row_bytes(width)];
        row.copy_from_slice(&self.pixels[at..at + row_bytes(width)]);
        row[row_bytes(x - left)..][..new.len()].copy_from_slice(new);
        hash(row)
    }

    /// Forgets what was kept, and gives back what a large change took.
    fn forget(&mut self) {
        self.kept.clear();
        self.spans.clear();
        self.spans.shrink_to(KEPT_SPANS);
    }

    fn at(&self, x: u32, y: u32) -> usize {
        to_usize(y) * self.stride() + to_usize(x) * PIXEL
    }

    fn tile_at(&self, x: u32, y: u32) -> usize {
        to_usize(y / TILE) * to_usize(self.size.width.div_ceil(TILE)) + to_usize(x / TILE)
    }
}

impl Span {
    /// The column of tiles it is in.
    pub(super) fn column(self) -> usize {
        to_usize(self.x / TILE)
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

    /// Grows to hold what differs between two versions of a part of row `y`, which do differ.
    fn add_difference(&mut self, x: u32, y: u32, new: &[u8], old: &[u8]) {
        self.top = self.top.min(y);
        self.bottom = self.bottom.max(y + 1);
        // Only what lies outside of the extent so far can make it wider.
        let end = x + pixel_count(new);
        let outside_left = row_bytes(self.left.clamp(x, end) - x);
        if let Some(first) = first_difference(&new[..outside_left], &old[..outside_left]) {
            self.left = x + first;
        }
        let inside = self.right.clamp(x, end);
        let outside_right = row_bytes(inside - x);
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

/// A hash of a row's bytes, in four lanes that do not wait for each other.
fn hash(row: &[u8]) -> u64 {
    const LANES: usize = 4;
    let mut lanes = [0x9e37_79b1_85eb_ca87_u64; LANES];
    let mut mix = |lane: usize, value: u64| {
        lanes[lane] = (lanes[lane] ^ value).wrapping_mul(0xc2b2_ae3d_27d4_eb4f).rotate_left(29);
    };
    let (blocks, rest) = row.as_chunks::<{ 8 * LANES }>();
    for block in blocks {
        for (lane, word) in block.as_chunks().0.iter().enumerate() {
            mix(lane, u64::from_le_bytes(*word));
        }
    }
    for pixel in rest.as_chunks().0 {
        mix(0, u64::from(u32::from_le_bytes(*pixel)));
    }
    let mixed = lanes.iter().fold(0_u64, |all, lane| (all ^ lane).wrapping_mul(0x9fb2_1c65_1e98_df25));
    mixed ^ mixed >> 32
}

fn pixel_count(row: &[u8]) -> u32 {
    u32::try_from(row.len() / PIXEL).unwrap_or(u32::MAX)
}

fn row_bytes(width: u32) -> usize {
    to_usize(width) * PIXEL
}

/// A coordinate as an index; `usize` has at least 32 bits wherever this runs.
pub(super) fn to_usize(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
