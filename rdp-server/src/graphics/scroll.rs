//! Finds what only moved up or down, as the text of a console does.
//!
//! Rows of some columns of tiles are looked up, by their hash, among the old rows; the distance that most of them
//! agree on is tried everywhere, and what is equal becomes a copy on the client's side. Only hashes are compared:
//! the scanout is read again after the copies, so a wrong one costs bytes and never a wrong picture.

use console::{Rect, Size};

use super::shadow::{Shadow, TILE, to_usize};

/// Columns of tiles in which rows are looked up.
const SAMPLED_COLUMNS: usize = 8;

/// Rows that have to agree on a distance.
const MIN_VOTES: u32 = 24;

/// Changed rows of tiles that a copy has to make right.
const MIN_GAIN: usize = 64;

/// Rows beyond the changes that may be the source of a copy.
const MARGIN: u32 = 128;

/// Rows of a copy.
const MIN_HEIGHT: u32 = 8;

/// A rectangle of the old picture that is found again higher or lower in the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) from: Rect,
    pub(super) to_y: u32,
}

impl Move {
    /// What becomes right.
    pub(super) fn target(self) -> Rect {
        Rect { y: self.to_y, ..self.from }
    }
}

/// The moves between the picture that a shadow has and the one it last looked at, in the order in which none
/// overwrites what a later one reads.
pub(super) fn find(shadow: &Shadow) -> Vec<Move> {
    let mut columns = columns(shadow);
    let (sampled, others) = sample(&columns);
    hash_rows(shadow, &mut columns, &sampled);
    let Some(distance) = vote(shadow, sampled.iter().map(|at| &columns[*at])) else { return Vec::new() };
    hash_rows(shadow, &mut columns, &others);

    let mut areas: Vec<Area> = Vec::new();
    let mut open: Vec<Area> = Vec::new();
    for column in &columns {
        let joined: Vec<Area> = column.runs(distance).into_iter().map(|run| run.join(&mut open)).collect();
        areas.append(&mut open);
        open = joined;
    }
    areas.append(&mut open);
    areas.retain(|area| area.gain >= MIN_GAIN);
    areas.sort_unstable_by_key(|area| area.top);
    if distance < 0 {
        areas.reverse();
    }
    areas.iter().filter_map(|area| area.to_move(shadow, distance)).collect()
}

/// A column of tiles, and the hashes of its rows around what changed.
struct Column {
    at: usize,
    /// Number of changed rows.
    changed: usize,
    /// The first row that is hashed, and the one after the last.
    top: u32,
    bottom: u32,
    old: Vec<u64>,
    new: Vec<u64>,
}

/// All columns, not hashed yet.
fn columns(shadow: &Shadow) -> Vec<Column> {
    let Size { width, height } = shadow.size();
    let empty = |at| Column { at, changed: 0, top: height, bottom: 0, old: Vec::new(), new: Vec::new() };
    let mut columns: Vec<Column> = (0..to_usize(width.div_ceil(TILE))).map(empty).collect();
    for span in shadow.spans() {
        let column = &mut columns[span.column()];
        column.changed += 1;
        // What appears from outside of the changes came from just beyond them.
        column.top = column.top.min(span.y.saturating_sub(MARGIN));
        column.bottom = column.bottom.max(span.y + MARGIN).min(height);
    }
    columns
}

/// The columns with the most changes, and the other ones with any.
fn sample(columns: &[Column]) -> (Vec<usize>, Vec<usize>) {
    let mut by_change: Vec<&Column> = columns.iter().filter(|column| column.changed > 0).collect();
    by_change.sort_unstable_by_key(|column| std::cmp::Reverse(column.changed));
    let (sampled, others) = by_change.split_at(by_change.len().min(SAMPLED_COLUMNS));
    let places = |columns: &[&Column]| columns.iter().map(|column| column.at).collect();
    (places(sampled), places(others))
}

/// Hashes the rows of some columns, old and new.
fn hash_rows(shadow: &Shadow, columns: &mut [Column], which: &[usize]) {
    for column in which {
        let column = &mut columns[*column];
        column.old = (column.top..column.bottom).map(|y| shadow.row_hash(column.at, y)).collect();
        column.new.clone_from(&column.old);
    }
    for span in shadow.spans() {
        let column = &mut columns[span.column()];
        if let Some(hash) = column.new.get_mut(to_usize(span.y - column.top)) {
            *hash = span.hash;
        }
    }
}

impl Column {
    /// The longest stretches of new rows that are equal to old ones `distance` below.
    fn runs(&self, distance: i32) -> Vec<Area> {
        let mut runs = Vec::new();
        let mut run: Option<Area> = None;
        for (y, new) in (self.top..).zip(&self.new) {
            let source = (y - self.top).checked_add_signed(distance).and_then(|from| self.old.get(to_usize(from)));
            if source == Some(new) {
                let run = run.get_or_insert(Area { first: self.at, last: self.at, top: y, bottom: y, gain: 0 });
                run.bottom = y + 1;
                run.gain += usize::from(*new != self.old[to_usize(y - self.top)]);
            } else {
                runs.extend(run.take());
            }
        }
        runs.extend(run);
        runs.retain(|run| run.bottom - run.top >= MIN_HEIGHT);
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
    /// About how many changed rows of tiles become right.
    gain: usize,
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
        Self { first: before.first, last: self.last, top, bottom, gain: before.gain + self.gain }
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

/// The distance that most rows of some columns moved by: positive when the text moved up.
fn vote<'c>(shadow: &Shadow, columns: impl Iterator<Item = &'c Column>) -> Option<i32> {
    let height = shadow.size().height;
    let mut votes = vec![0_u32; to_usize(height) * 2];
    let mut rows = RowTable::new();
    for column in columns {
        rows.clear();
        for (y, hash) in (0..).zip(&column.old) {
            rows.add(*hash, y);
        }
        for (y, (new, old)) in (0..).zip(column.new.iter().zip(&column.old)) {
            if let Some(from) = rows.find(*new).filter(|_| new != old) {
                votes[to_usize(from + height - y)] += 1;
            }
        }
    }
    let (at, most) = (0..).zip(votes).max_by_key(|(_, votes)| *votes)?;
    let distance = i32::checked_sub(at, i32::try_from(height).ok()?)?;
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

#[cfg(test)]
mod tests;
