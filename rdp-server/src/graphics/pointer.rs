//! The guest's cursor as the client's pointer.
//!
//! MS-RDPBCGR 2.2.9.1.1.4 (pointer updates) and 2.2.9.1.2.1.5 to 2.2.9.1.2.1.11 (their fast-path forms).
//! <https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpbcgr/f68241f5-79bc-4c60-95d6-79ff47e2a302>

mod picture;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use console::{CursorShape, CursorState, Point};
use ironrdp_core::{Encode, encode_vec};
use ironrdp_pdu::fast_path::UpdateCode;
use ironrdp_pdu::pointer::{
    CachedPointerAttribute, ColorPointerAttribute, LargePointerAttribute, Point16, PointerAttribute,
};

use super::client::PointerSupport;
use crate::fast_path::write_update;
use picture::Picture;

/// Slots used of those the client has: more shapes than that are rarely alive.
const MAX_SLOTS: u16 = 64;

/// Longest side of a pointer that is not sent as a large one.
const MAX_NEW_SIDE: u32 = 96;

/// Headers of the largest kind of pointer update.
const HEADERS: usize = 24;

/// For so long after the client's last move the guest's position is taken for its echo.
const ECHO: Duration = Duration::from_millis(500);

/// A position this near to where the client has its pointer is the same.
const SAME_PLACE: u32 = 3;

/// What the client's pointer shows, and what it should.
pub(super) struct Pointer {
    support: PointerSupport,
    max_request_size: usize,
    shown: Shown,
    slots: Vec<Slot>,
    uses: u64,
    wanted: CursorState,
    news: News,
    client: Option<(Instant, Point)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// The client's own arrow: what it has before it is told anything.
    Default,
    Hidden,
    Slot(u16),
}

/// Whether the guest's cursor was looked at since it changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    None,
    Cursor,
}

/// A shape the client remembers, known by its hash.
struct Slot {
    shape: u64,
    last_use: u64,
}

impl Pointer {
    pub(super) fn new(support: PointerSupport, max_request_size: usize) -> Self {
        Self {
            support,
            max_request_size,
            shown: Shown::Default,
            slots: Vec::new(),
            uses: 0,
            wanted: CursorState::default(),
            news: News::None,
            client: None,
        }
    }

    /// The guest changed its cursor.
    pub(super) fn update(&mut self, cursor: CursorState) {
        self.wanted = cursor;
        self.news = News::Cursor;
    }

    /// The client has its pointer at `at`.
    pub(super) fn client_pointer(&mut self, now: Instant, at: Point) {
        self.client = Some((now, at));
    }

    /// The client may have forgotten its pointers, as in a reactivation.
    pub(super) fn restart(&mut self) {
        self.shown = Shown::Default;
        self.slots.clear();
        self.wanted.position = None;
        self.news = News::Cursor;
    }

    /// The fast-path updates that make the client's pointer what the guest wants.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Vec<u8>> {
        if std::mem::replace(&mut self.news, News::None) == News::None {
            return None;
        }
        let wanted = self.wanted.clone();
        let mut out = Vec::new();
        match &wanted.shape {
            _ if wanted.hidden => self.show_system(Shown::Hidden, UpdateCode::HiddenPointer, &mut out),
            Some(shape) if self.slot_count() > 0 && is_whole(shape) => self.show_shape(shape, &mut out),
            _ => self.show_system(Shown::Default, UpdateCode::DefaultPointer, &mut out),
        }
        if let Some(position) = wanted.position.filter(|position| self.is_news(now, *position)) {
            write(UpdateCode::PositionPointer, &point16(position), &mut out);
        }
        Some(out).filter(|out| !out.is_empty())
    }

    fn show_system(&mut self, system: Shown, code: UpdateCode, out: &mut Vec<u8>) {
        if self.shown != system {
            self.shown = system;
            write_update(code, &[], out);
        }
    }

    fn show_shape(&mut self, shape: &Arc<CursorShape>, out: &mut Vec<u8>) {
        let hash = hash(shape);
        self.uses += 1;
        let known = self.slots.iter().position(|slot| slot.shape == hash);
        let at = known.unwrap_or_else(|| self.free_slot());
        let slot = Slot { shape: hash, last_use: self.uses };
        match self.slots.get_mut(at) {
            Some(old) => *old = slot,
            None => self.slots.push(slot),
        }
        let index = u16::try_from(at).unwrap_or(0);
        let same = self.shown == Shown::Slot(index);
        self.shown = Shown::Slot(index);
        if known.is_none() {
            self.write_shape(index, shape, out);
        } else if !same {
            write(UpdateCode::CachedPointer, &CachedPointerAttribute { cache_index: index }, out);
        }
    }

    /// The slot after the last, or the one that was not used for the longest time.
    fn free_slot(&self) -> usize {
        if self.slots.len() < usize::from(self.slot_count()) {
            return self.slots.len();
        }
        let oldest = self.slots.iter().enumerate().min_by_key(|(_, slot)| slot.last_use);
        oldest.map_or(0, |(at, _)| at)
    }

    fn slot_count(&self) -> u16 {
        let support = &self.support;
        let slots = if support.cache_size > 0 { support.cache_size } else { support.color_cache_size };
        slots.min(MAX_SLOTS)
    }

    fn write_shape(&self, cache_index: u16, shape: &CursorShape, out: &mut Vec<u8>) {
        let mut picture = Picture::new(shape, self.max_side());
        if self.support.cache_size == 0 {
            picture = picture.without_alpha();
        }
        let hot_spot = point16(picture.hotspot);
        let [width, height] = [picture.size.width, picture.size.height].map(to_u16);
        let and_mask = &picture.and_mask();
        if self.support.cache_size == 0 {
            let xor_mask = &picture.xor_mask_24();
            let color = ColorPointerAttribute { cache_index, hot_spot, width, height, xor_mask, and_mask };
            write(UpdateCode::ColorPointer, &color, out);
            return;
        }
        let (xor_bpp, xor_mask) = (32, &picture.xor_mask_32());
        if picture.size.width.max(picture.size.height) <= MAX_NEW_SIDE {
            let color_pointer = ColorPointerAttribute { cache_index, hot_spot, width, height, xor_mask, and_mask };
            write(UpdateCode::NewPointer, &PointerAttribute { xor_bpp, color_pointer }, out);
        } else {
            let large = LargePointerAttribute { xor_bpp, cache_index, hot_spot, width, height, xor_mask, and_mask };
            write(UpdateCode::LargePointer, &large, out);
        }
    }

    /// The longest side that the client takes, by its capabilities and by the size of its updates.
    fn max_side(&self) -> u32 {
        let fits = |side: u32| {
            let (row, rows) = (side.div_ceil(16) * 2 + side * 4, side);
            u64::from(row) * u64::from(rows) + (HEADERS as u64) <= self.max_request_size as u64
        };
        let most = if self.support.cache_size == 0 { 32 } else { self.support.max_side };
        (32..=most).rev().find(|side| fits(*side)).unwrap_or(32)
    }

    /// Whether the guest moved its cursor by itself. While the user moves the pointer, and wherever the user left
    /// it, the guest only follows.
    fn is_news(&self, now: Instant, position: Point) -> bool {
        self.client.is_some_and(|(moved, at)| {
            now.saturating_duration_since(moved) >= ECHO
                && (at.x.abs_diff(position.x) > SAME_PLACE || at.y.abs_diff(position.y) > SAME_PLACE)
        })
    }
}

/// Whether a shape has as many pixels as its size says.
fn is_whole(shape: &CursorShape) -> bool {
    !shape.size.is_empty() && u64::try_from(shape.bgra.len()) == Ok(shape.size.rect().area() * 4)
}

fn write(code: UpdateCode, attribute: &impl Encode, out: &mut Vec<u8>) {
    // Only masks of a wrong size are refused, and `Picture` makes them right.
    let bytes = encode_vec(attribute).expect("a pointer within its limits has an encoding");
    write_update(code, &bytes, out);
}

fn point16(point: Point) -> Point16 {
    Point16 { x: to_u16(point.x), y: to_u16(point.y) }
}

fn to_u16(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

fn hash(shape: &CursorShape) -> u64 {
    let mut hasher = DefaultHasher::new();
    (shape.size, shape.hotspot, &shape.bgra).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
