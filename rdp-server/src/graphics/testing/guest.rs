//! A guest's picture that tests draw on.

use std::sync::{Mutex, PoisonError};

use console::{Rect, Scanout, Size};
use proptest::prelude::*;

use crate::graphics::shadow::{PIXEL, to_usize};

/// A scanout in memory.
pub(in crate::graphics) struct Picture {
    size: Size,
    pixels: Mutex<Vec<u8>>,
}

/// Something a guest draws.
#[derive(Debug, Clone, Copy)]
pub(in crate::graphics) enum Write {
    /// One colour.
    Fill { rect: Rect, color: u32 },
    /// Letters: two colours, and shades between them.
    Text { rect: Rect, seed: u32 },
    /// All different.
    Noise { rect: Rect, seed: u32 },
    /// The rows of a rectangle move up (or down), as a console scrolls; what is uncovered stays.
    Scroll { rect: Rect, by: i32 },
}

impl Write {
    pub(in crate::graphics) fn rect(self) -> Rect {
        match self {
            Self::Fill { rect, .. }
            | Self::Text { rect, .. }
            | Self::Noise { rect, .. }
            | Self::Scroll { rect, .. } => rect,
        }
    }
}

impl Picture {
    pub(in crate::graphics) fn new(size: Size) -> Self {
        Self { size, pixels: Mutex::new(vec![0; to_usize(size.width) * to_usize(size.height) * PIXEL]) }
    }

    pub(in crate::graphics) fn draw(&self, write: Write) {
        let mut pixels = self.pixels.lock().unwrap_or_else(PoisonError::into_inner);
        let rect = write.rect().intersect(self.size.rect());
        let at = |x: u32, y: u32| (to_usize(y) * to_usize(self.size.width) + to_usize(x)) * PIXEL;
        let mut put = |x: u32, y: u32, color: u32| {
            pixels[at(x, y)..at(x, y) + PIXEL].copy_from_slice(&color.to_le_bytes());
        };
        let points = (rect.y..rect.bottom()).flat_map(|y| (rect.x..rect.right()).map(move |x| (x, y)));
        match write {
            Write::Fill { color, .. } => points.for_each(|(x, y)| put(x, y, color)),
            Write::Text { seed, .. } => points.for_each(|(x, y)| put(x, y, letter(x, y, seed))),
            Write::Noise { seed, .. } => points.for_each(|(x, y)| put(x, y, hash(x, y, seed))),
            Write::Scroll { by, .. } => {
                let before = pixels.clone();
                for y in rect.y..rect.bottom() {
                    let Some(from) = y.checked_add_signed(by).filter(|from| (rect.y..rect.bottom()).contains(from))
                    else {
                        continue;
                    };
                    let bytes = to_usize(rect.width) * PIXEL;
                    let source = at(rect.x, from);
                    pixels[at(rect.x, y)..][..bytes].copy_from_slice(&before[source..source + bytes]);
                }
            }
        }
    }

    /// The colours, rows from the top.
    pub(in crate::graphics) fn colors(&self) -> Vec<u32> {
        let pixels = self.pixels.lock().unwrap_or_else(PoisonError::into_inner);
        pixels.chunks_exact(PIXEL).map(|p| u32::from_le_bytes([p[0], p[1], p[2], 0])).collect()
    }
}

impl Scanout for Picture {
    fn size(&self) -> Size {
        self.size
    }

    fn copy_rect(&self, rect: Rect, into: &mut [u8], stride: usize) {
        let pixels = self.pixels.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = to_usize(rect.width) * PIXEL;
        for row in 0..rect.height {
            let start = (to_usize(rect.y + row) * to_usize(self.size.width) + to_usize(rect.x)) * PIXEL;
            into[to_usize(row) * stride..][..bytes].copy_from_slice(&pixels[start..start + bytes]);
        }
    }
}

/// Drawings inside of a size.
pub(in crate::graphics) fn writes(size: Size) -> impl Strategy<Value = Write> {
    let rects = (0..size.width, 0..size.height).prop_flat_map(move |(x, y)| {
        (1..=size.width - x, 1..=size.height - y).prop_map(move |(width, height)| Rect::new(x, y, width, height))
    });
    prop_oneof![
        (rects.clone(), any::<u32>()).prop_map(|(rect, color)| Write::Fill { rect, color }),
        (rects.clone(), any::<u32>()).prop_map(|(rect, seed)| Write::Text { rect, seed }),
        (rects.clone(), any::<u32>()).prop_map(|(rect, seed)| Write::Noise { rect, seed }),
        (rects, -60..60_i32).prop_map(|(rect, by)| Write::Scroll { rect, by }),
    ]
}

/// Cells of 8 by 16 with strokes of a few shades.
fn letter(x: u32, y: u32, seed: u32) -> u32 {
    let glyph = hash(x / 8, y / 16, seed);
    let stroke = hash(x % 8 / 2, y % 16 / 3, glyph % 40);
    match stroke % 5 {
        0 => 0x00ff_ffff,
        1 => [0x00c0_c0c0, 0x0080_8080, 0x0040_4040][to_usize(stroke / 7 % 3)],
        _ => 0,
    }
}

fn hash(x: u32, y: u32, seed: u32) -> u32 {
    let mut value = x.wrapping_mul(0x9e37_79b1) ^ y.wrapping_mul(0x85eb_ca77) ^ seed.wrapping_mul(0xc2b2_ae3d);
    value ^= value >> 15;
    value = value.wrapping_mul(0x2c1b_3c6d);
    value ^ value >> 13
}
