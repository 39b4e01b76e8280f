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
    shadow.look(&picture, &DamageSet::full(size));
    shadow.take(&mut Vec::new());
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

#[test]
fn small_changes_are_not_searched() {
    let (picture, mut shadow) = page(SIZE);
    picture.draw(Write::Scroll { rect: Rect::new(0, 0, 128, 128), by: 16 });
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
        for found in find(&shadow) {
            // What a move reads is still what it was verified against, and its target becomes the new picture.
            let expected: Vec<Vec<u8>> = (0..found.from.height)
                .map(|row| shadow.new_pixels(Rect { y: found.to_y + row, height: 1, ..found.from }))
                .collect();
            shadow.copy_rows(found.from, found.to_y);
            for (row, expected) in (0..).zip(expected) {
                let target = Rect { y: found.to_y + row, height: 1, ..found.from };
                prop_assert_eq!(&shadow.pixels_from(target)[..expected.len()], expected.as_slice());
            }
        }
        shadow.take(&mut Vec::new());
        let seen: Vec<u32> = shadow
            .pixels_from(size.rect())
            .chunks_exact(4)
            .map(|p| u32::from_le_bytes([p[0], p[1], p[2], 0]))
            .collect();
        prop_assert!(seen == picture.colors());
    }
}
