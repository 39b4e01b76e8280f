//! Finds what only moved up or down, as the text of a console does.
//!
//! Rows of some columns of tiles are looked up, by their hash, among the old rows; the distance that most of them
//! agree on is tried everywhere, and what is equal byte by byte becomes a copy on the client's side. What is left
//! is encoded as usual.

use console::Rect;

use super::shadow::{Shadow, TILE, to_usize};

/// Changed rows of tiles from which a search pays: 16 tiles of text.
const WORTH_SEARCHING: usize = 16 * 32;

/// Columns of tiles in which rows are looked up.
const SAMPLED_COLUMNS: usize = 8;

/// Rows that have to agree on a distance.
const MIN_VOTES: u32 = 24;

/// Changed rows of tiles that a copy has to make right.
const MIN_GAIN: usize = 64;

/// Rows of a copy.
const MIN_HEIGHT: u32 = 8;

/// A rectangle of the old picture that is found again higher or lower in the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) from: Rect,
    pub(super) to_y: u32,
}

/// The moves between the old and the new picture that a shadow knows, in the order in which none overwrites what
/// a later one reads.
pub(super) fn find(shadow: &Shadow) -> Vec<Move> {
    if shadow.changed_rows() < WORTH_SEARCHING {
        return Vec::new();
    }
    let columns: Vec<Column> = (0..shadow.columns()).filter_map(|at| Column::new(shadow, at)).collect();
    let Some(distance) = vote(shadow, &columns) else { return Vec::new() };

    let mut areas: Vec<Area> = Vec::new();
    let mut open: Vec<Area> = Vec::new();
    for column in &columns {
        let runs = column.runs(shadow, distance);
        let joined: Vec<Area> = runs.into_iter().map(|run| run.join(&mut open)).collect();
        areas.append(&mut open);
        open = joined;
    }
    areas.extend(open);
    areas.retain(|area| area.gain(shadow) >= MIN_GAIN);
    areas.sort_unstable_by_key(|area| area.top);
    if distance < 0 {
        areas.reverse();
    }
    areas.iter().filter_map(|area| area.to_move(shadow, distance)).collect()
}

/// A column of tiles with changes, and the rows between the first and the last of them.
struct Column {
    at: usize,
    top: u32,
    bottom: u32,
    changed: usize,
}

impl Column {
    fn new(shadow: &Shadow, at: usize) -> Option<Self> {
        let mut rows = (0..shadow.size().height).filter(|y| shadow.has_changed(at, *y));
        let top = rows.next()?;
        let (mut bottom, mut changed) = (top + 1, 1);
        for y in rows {
            bottom = y + 1;
            changed += 1;
        }
        Some(Self { at, top, bottom, changed })
    }

    /// The longest stretches of new rows that are equal to old ones `distance` below.
    fn runs(&self, shadow: &Shadow, distance: i32) -> Vec<Area> {
        let mut runs = Vec::new();
        let mut start = None;
        for y in self.top..=self.bottom {
            let equal = y < self.bottom
                && source_row(shadow, y, distance)
                    .is_some_and(|from| shadow.new_row(self.at, y) == shadow.old_row(self.at, from));
            match (equal, start) {
                (true, None) => start = Some(y),
                (false, Some(top)) => {
                    start = None;
                    if y - top >= MIN_HEIGHT {
                        runs.push(Area { first: self.at, last: self.at, top, bottom: y });
                    }
                }
                _ => {}
            }
        }
        runs
    }
}

/// Columns of tiles, and rows of the new picture.
#[derive(Debug, Clone, Copy)]
struct Area {
    first: usize,
    last: usize,
    top: u32,
    bottom: u32,
}

impl Area {
    /// Joins this area, of one column, with one that ends at the column before and has nearly the same rows: what
    /// both have. Takes that one from `open`.
    fn join(self, open: &mut Vec<Self>) -> Self {
        let rows = |area: &Self| (area.top.max(self.top), area.bottom.min(self.bottom));
        let near = |area: &Self| {
            let (top, bottom) = rows(area);
            let tallest = (area.bottom - area.top).max(self.bottom - self.top);
            area.last + 1 == self.first && bottom.saturating_sub(top) * 8 >= tallest * 7
        };
        let Some(at) = open.iter().position(near) else { return self };
        let before = open.swap_remove(at);
        let (top, bottom) = rows(&before);
        Self { first: before.first, last: self.last, top, bottom }
    }

    /// How many changed rows of tiles become right.
    fn gain(&self, shadow: &Shadow) -> usize {
        (self.first..=self.last)
            .map(|column| (self.top..self.bottom).filter(|y| shadow.has_changed(column, *y)).count())
            .sum()
    }

    fn to_move(self, shadow: &Shadow, distance: i32) -> Option<Move> {
        let tile = |column: usize| u32::try_from(column).unwrap_or(u32::MAX).saturating_mul(TILE);
        let x = tile(self.first);
        let width = tile(self.last + 1).min(shadow.size().width) - x;
        let y = source_row(shadow, self.top, distance)?;
        Some(Move { from: Rect::new(x, y, width, self.bottom - self.top), to_y: self.top })
    }
}

/// The old row that is to become row `y`.
fn source_row(shadow: &Shadow, y: u32, distance: i32) -> Option<u32> {
    y.checked_add_signed(distance).filter(|from| *from < shadow.size().height)
}

/// The distance that most of the sampled rows moved by: positive when the text moved up.
fn vote(shadow: &Shadow, columns: &[Column]) -> Option<i32> {
    let mut by_change: Vec<&Column> = columns.iter().collect();
    by_change.sort_unstable_by_key(|column| std::cmp::Reverse(column.changed));
    let mut votes = vec![0_u32; to_usize(shadow.size().height) * 2];
    let mut rows = RowTable::new();
    for column in by_change.into_iter().take(SAMPLED_COLUMNS) {
        rows.clear();
        for y in column.top..column.bottom {
            rows.add(hash(shadow.old_row(column.at, y)), y);
        }
        for y in (column.top..column.bottom).filter(|y| shadow.has_changed(column.at, *y)) {
            if let Some(from) = rows.find(hash(shadow.new_row(column.at, y))) {
                votes[to_usize(from + shadow.size().height - y)] += 1;
            }
        }
    }
    let (at, most) = (0..).zip(votes).max_by_key(|(_, votes)| *votes)?;
    let distance = i32::checked_sub(at, i32::try_from(shadow.size().height).ok()?)?;
    (most >= MIN_VOTES && distance != 0).then_some(distance)
}

/// Rows by their hashes; those that are alike are worth nothing.
struct RowTable {
    slots: Vec<RowSlot>,
}

#[derive(Debug, Clone, Copy)]
enum RowSlot {
    Empty,
    One { hash: u64, y: u32 },
    Several { hash: u64 },
}

impl RowTable {
    /// A power of two, several times as many as a screen has rows.
    const SLOTS: usize = 1 << 14;

    fn new() -> Self {
        Self { slots: vec![RowSlot::Empty; Self::SLOTS] }
    }

    fn clear(&mut self) {
        self.slots.fill(RowSlot::Empty);
    }

    fn add(&mut self, hash: u64, y: u32) {
        let at = self.slot(hash);
        self.slots[at] = match self.slots[at] {
            RowSlot::Empty => RowSlot::One { hash, y },
            _ => RowSlot::Several { hash },
        };
    }

    fn find(&self, hash: u64) -> Option<u32> {
        match self.slots[self.slot(hash)] {
            RowSlot::One { hash: found, y } if found == hash => Some(y),
            _ => None,
        }
    }

    /// The slot of a hash, or the empty one where it belongs. A table that is too full answers with any.
    fn slot(&self, hash: u64) -> usize {
        let start = usize::try_from(hash % Self::SLOTS as u64).unwrap_or(0);
        (start..start + 64)
            .map(|at| at % Self::SLOTS)
            .find(|at| match self.slots[*at] {
                RowSlot::Empty => true,
                RowSlot::One { hash: found, .. } | RowSlot::Several { hash: found } => found == hash,
            })
            .unwrap_or(start)
    }
}

/// A hash of a row's bytes, in four lanes that do not wait for each other.
fn hash(row: &[u8]) -> u64 {
    const LANES: usize = 4;
    let mut lanes = [0x9e37_79b1_85eb_ca87_u64; LANES];
    for block in row.chunks(8 * LANES) {
        for (lane, word) in lanes.iter_mut().zip(block.chunks(8)) {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            *lane = (*lane ^ u64::from_le_bytes(bytes)).wrapping_mul(0xc2b2_ae3d_27d4_eb4f).rotate_left(29);
        }
    }
    let mixed = lanes.iter().fold(0_u64, |all, lane| (all ^ lane).wrapping_mul(0x9fb2_1c65_1e98_df25));
    mixed ^ mixed >> 32
}

#[cfg(test)]
mod tests;
