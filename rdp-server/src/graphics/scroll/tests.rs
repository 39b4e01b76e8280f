use console::{DamageSet, Size};
use proptest::prelude::*;

use super::*;
use crate::graphics::testing::{Picture, Write};

const SIZE: Size = Size::new(640, 400);

/// A shadow of a page of text, and the picture it is of.
fn page(size: Size) -> (Picture, Shadow) {
    let picture = Picture::new(size);
    picture.draw(Write::Text { rect: size.rect(), seed: 7 });
    let mut shadow = Shadow::new(size);
    shadow.take_from(&picture, &DamageSet::full(size));
    (picture, shadow)
}

#[test]
fn a_console_that_scrolls_is_one_copy() {
    let (picture, mut shadow) = page(SIZE);
    picture.draw(Write::Scroll { rect: SIZE.rect(), by: 16 });
    picture.draw(Write::Text { rect: Rect::new(0, 384, 640, 16), seed: 99 });
    shadow.look(&picture, &DamageSet::full(SIZE));
    assert_eq!(find(&shadow), [Move { from: Rect::new(0, 16, 640, 384), to_y: 0 }]);
}

#[test]
fn a_page_that_moves_down_is_found_too() {
    let (picture, mut shadow) = page(SIZE);
    picture.draw(Write::Scroll { rect: SIZE.rect(), by: -48 });
    shadow.look(&picture, &DamageSet::full(SIZE));
    let moves = find(&shadow);
    assert_eq!(moves, [Move { from: Rect::new(0, 0, 640, 352), to_y: 48 }]);
}

#[test]
fn a_window_that_scrolls_is_found_to_the_tile() {
    let (picture, mut shadow) = page(SIZE);
    picture.draw(Write::Scroll { rect: Rect::new(100, 60, 400, 300), by: 32 });
    shadow.look(&picture, &DamageSet::full(SIZE));
    let moves = find(&shadow);
    let covered: u64 = moves.iter().map(|found| found.from.area()).sum();
    assert!(covered > 300 * 250, "{moves:?}");
}

#[test]
fn other_text_is_no_scrolling() {
    let (picture, mut shadow) = page(SIZE);
    picture.draw(Write::Noise { rect: SIZE.rect(), seed: 5 });
    shadow.look(&picture, &DamageSet::full(SIZE));
    assert_eq!(find(&shadow), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn copies_only_ever_bring_the_old_picture_nearer_to_the_new(
        x in 0_u32..300,
        y in 0_u32..200,
        by in -150_i32..150,
        fill in proptest::option::of((0_u32..600, 0_u32..380)),
    ) {
        let size = Size::new(650, 410);
        let (picture, mut shadow) = page(size);
        picture.draw(Write::Scroll { rect: Rect::new(x, y, size.width - x, size.height - y), by });
        if let Some((x, y)) = fill {
            picture.draw(Write::Fill { rect: Rect::new(x, y, 30, 30), color: 0x77 });
        }
        shadow.look(&picture, &DamageSet::full(size));
        let new = picture.colors();
        for found in find(&shadow) {
            prop_assert!(size.rect().contains(found.from) && size.rect().contains(found.target()));
            shadow.copy_rows(found.from, found.to_y);
            // The target is the new picture now, if it is not a later move's source.
            let target = found.target();
            for y in target.y..target.bottom() {
                let row = shadow.pixels_from(Rect { y, height: 1, ..target });
                let expected = &new[to_usize(y * size.width + target.x)..][..to_usize(target.width)];
                let seen = row.chunks_exact(4).map(|p| u32::from_le_bytes([p[0], p[1], p[2], 0]));
                prop_assert!(seen.take(expected.len()).eq(expected.iter().copied()));
            }
        }
    }
}
