//! The guest's cursor as QEMU hands it over.

use std::sync::Arc;

use console::{CursorShape, MAX_CURSOR_SIDE, Point, Size};

/// Reads a cursor of `width` × `height` pixels, blue, green, red, alpha; `None` when it is none that can be shown.
pub(super) fn shape(width: i32, height: i32, hot_x: i32, hot_y: i32, data: &[u8]) -> Option<Arc<CursorShape>> {
    let side = |value: i32| u32::try_from(value).ok().filter(|side| (1..=MAX_CURSOR_SIDE).contains(side));
    let size = Size::new(side(width)?, side(height)?);
    let mut bgra = data.get(..size.width as usize * size.height as usize * 4)?.to_vec();
    straighten(&mut bgra);
    let clamp = |value: i32, side: u32| u32::try_from(value).unwrap_or(0).min(side - 1);
    let hotspot = Point { x: clamp(hot_x, size.width), y: clamp(hot_y, size.height) };
    Some(Arc::new(CursorShape { size, hotspot, bgra }))
}

/// Undoes the multiplication by alpha.
///
/// Guests differ and nobody says which kind a cursor is of: Linux has its colours multiplied, others not.
/// In a multiplied cursor no colour exceeds its alpha, and one that is not multiplied almost always
/// has a translucent pixel that does; where it has none, it looks the same or nearly so.
fn straighten(bgra: &mut [u8]) {
    let (pixels, _) = bgra.as_chunks_mut::<4>();
    if pixels.iter().any(|[b, g, r, a]| b.max(g).max(r) > a) {
        return;
    }
    for [b, g, r, a] in pixels {
        if (1..=254).contains(a) {
            for colour in [b, g, r] {
                let (value, alpha) = (u16::from(*colour), u16::from(*a));
                *colour = u8::try_from((value * 255 + alpha / 2) / alpha).unwrap_or(255);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hotspot_outside_is_moved_to_the_edge() {
        let shape = shape(2, 1, 7, -3, &[0; 8]).expect("possible");
        assert_eq!((shape.size, shape.hotspot), (Size::new(2, 1), Point { x: 1, y: 0 }));
    }

    #[test]
    fn impossible_cursors_are_none() {
        assert!(shape(0, 1, 0, 0, &[]).is_none());
        assert!(shape(-1, -1, 0, 0, &[0; 4]).is_none());
        assert!(shape(i32::MAX, i32::MAX, 0, 0, &[0; 4]).is_none());
        assert!(shape(385, 1, 0, 0, &[0; 385 * 4]).is_none());
        assert!(shape(2, 2, 0, 0, &[0; 15]).is_none());
    }

    #[test]
    fn multiplied_colours_become_straight_and_straight_ones_stay() {
        let multiplied = [100, 50, 0, 128, 255, 255, 255, 255, 0, 0, 0, 0];
        assert_eq!(
            shape(3, 1, 0, 0, &multiplied).expect("ok").bgra,
            [199, 100, 0, 128, 255, 255, 255, 255, 0, 0, 0, 0]
        );
        let straight = [200, 50, 0, 128, 255, 255, 255, 255];
        assert_eq!(shape(2, 1, 0, 0, &straight).expect("ok").bgra, straight);
    }
}
