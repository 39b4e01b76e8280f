use std::sync::Mutex;

use proptest::prelude::*;

use super::*;

/// A guest's picture that tests write to.
struct Picture {
    size: Size,
    pixels: Mutex<Vec<u8>>,
}

impl Picture {
    fn new(size: Size) -> Self {
        Self { size, pixels: Mutex::new(vec![0; row_bytes(size.width) * to_usize(size.height)]) }
    }

    fn fill(&self, rect: Rect, value: u8) {
        let mut pixels = self.pixels.lock().unwrap();
        for y in rect.y..rect.bottom() {
            let start = (to_usize(y) * to_usize(self.size.width) + to_usize(rect.x)) * PIXEL;
            pixels[start..start + row_bytes(rect.width)].fill(value);
        }
    }
}

impl Scanout for Picture {
    fn size(&self) -> Size {
        self.size
    }

    fn copy_rect(&self, rect: Rect, into: &mut [u8], stride: usize) {
        let pixels = self.pixels.lock().unwrap();
        for row in 0..rect.height {
            let start = (to_usize(rect.y + row) * to_usize(self.size.width) + to_usize(rect.x)) * PIXEL;
            let into = &mut into[to_usize(row) * stride..];
            into[..row_bytes(rect.width)].copy_from_slice(&pixels[start..start + row_bytes(rect.width)]);
        }
    }
}

/// What the boxes should be: for each tile the bounds of the pixels that differ inside the damage.
fn naive_boxes(old: &[u8], new: &[u8], size: Size, damage: &DamageSet) -> Vec<Rect> {
    let mut boxes = Vec::new();
    for tile_y in (0..size.height).step_by(to_usize(TILE)) {
        for tile_x in (0..size.width).step_by(to_usize(TILE)) {
            let tile = Rect::new(tile_x, tile_y, TILE, TILE).intersect(size.rect());
            let mut bounds = Rect::default();
            for y in tile.y..tile.bottom() {
                for x in tile.x..tile.right() {
                    let pixel = Rect::new(x, y, 1, 1);
                    let at = (to_usize(y) * to_usize(size.width) + to_usize(x)) * PIXEL;
                    let damaged = damage.rects().iter().any(|rect| rect.contains(pixel));
                    if damaged && old[at..at + PIXEL] != new[at..at + PIXEL] {
                        bounds = bounds.union(pixel);
                    }
                }
            }
            boxes.extend(Some(bounds).filter(|bounds| !bounds.is_empty()));
        }
    }
    boxes
}

fn rects(size: Size) -> impl Strategy<Value = Rect> {
    (0..size.width, 0..size.height).prop_flat_map(move |(x, y)| {
        (1..=size.width - x, 1..=size.height - y).prop_map(move |(width, height)| Rect::new(x, y, width, height))
    })
}

#[derive(Debug, Clone)]
struct Step {
    writes: Vec<(Rect, u8)>,
    /// Damage beyond what was written.
    more: Vec<Rect>,
    how: How,
}

#[derive(Debug, Clone, Copy)]
enum How {
    Kept,
    Read,
}

fn steps(size: Size) -> impl Strategy<Value = Vec<Step>> {
    let writes = proptest::collection::vec((rects(size), 0_u8..4), 0..4);
    let more = proptest::collection::vec(rects(size), 0..3);
    let how = prop_oneof![Just(How::Kept), Just(How::Read)];
    proptest::collection::vec((writes, more, how).prop_map(|(writes, more, how)| Step { writes, more, how }), 1..6)
}

proptest! {
    #[test]
    fn boxes_are_what_a_naive_search_finds(
        (size, steps) in (1_u32..200, 1_u32..150).prop_flat_map(|(width, height)| {
            let size = Size::new(width, height);
            (Just(size), steps(size))
        })
    ) {
        let picture = Picture::new(size);
        let mut shadow = Shadow::new(size);
        for step in steps {
            let mut damage = DamageSet::new();
            for (rect, value) in &step.writes {
                picture.fill(*rect, *value);
                damage.add(*rect);
            }
            step.more.iter().for_each(|rect| damage.add(*rect));
            let new = picture.pixels.lock().unwrap().clone();
            let expected = naive_boxes(&shadow.pixels, &new, size, &damage);

            let mut boxes = Vec::new();
            match step.how {
                How::Kept => {
                    prop_assert_eq!(shadow.look(&picture, &damage), Change::Small);
                    shadow.take_kept();
                }
                How::Read => shadow.take_from(&picture, &damage),
            }
            shadow.report(&mut boxes);
            prop_assert_eq!(&boxes, &expected);
            prop_assert!(shadow.pixels == new);

            // Merging loses nothing.
            merge(&mut boxes);
            for rect in expected {
                prop_assert!(boxes.iter().any(|merged| merged.contains(rect)));
            }
        }
    }

    #[test]
    fn a_reload_reports_its_rectangle_whole(rect in rects(Size::new(150, 130))) {
        let size = Size::new(150, 130);
        let picture = Picture::new(size);
        let mut shadow = Shadow::new(size);
        picture.fill(Rect::new(70, 70, 3, 3), 9);
        shadow.reload(&picture, rect);
        let mut boxes = Vec::new();
        shadow.report(&mut boxes);
        prop_assert_eq!(boxes.iter().map(|part| part.area()).sum::<u64>(), rect.area());
        prop_assert!(boxes.iter().all(|part| rect.contains(*part)));
    }
}

#[test]
fn a_wide_line_of_text_becomes_one_rectangle() {
    let mut boxes: Vec<_> = (0..10).map(|tile| Rect::new(tile * 64, 100, 64, 16)).collect();
    merge(&mut boxes);
    assert_eq!(boxes, [Rect::new(0, 100, 640, 16)]);
}

#[test]
fn a_letter_across_a_corner_of_tiles_becomes_one_rectangle() {
    let mut boxes =
        vec![Rect::new(60, 60, 4, 4), Rect::new(64, 60, 4, 4), Rect::new(60, 64, 4, 12), Rect::new(64, 64, 4, 12)];
    merge(&mut boxes);
    assert_eq!(boxes, [Rect::new(60, 60, 8, 16)]);
}
