use console::Size;
use ironrdp_core::{Decode as _, ReadCursor};
use ironrdp_graphics::pointer::{DecodedPointer, PointerBitmapTarget};
use ironrdp_pdu::fast_path::{FastPathHeader, FastPathUpdate, FastPathUpdatePdu};
use ironrdp_pdu::pointer::PointerUpdateData;
use proptest::prelude::*;

use super::*;

const SUPPORT: PointerSupport = PointerSupport { cache_size: 3, color_cache_size: 3, max_side: 96 };

/// What a client made of an update: red, green, blue, alpha, rows from the top.
#[derive(Debug, PartialEq)]
enum Seen {
    Hidden,
    Default,
    Cached(u16),
    Position(u16, u16),
    Shape { index: u16, size: (u16, u16), hotspot: (u16, u16), rgba: Vec<u8> },
}

fn shape(size: Size, seed: u8) -> Arc<CursorShape> {
    let bgra = (0..size.rect().area()).flat_map(|at| {
        let shade = u8::try_from(at % 251).unwrap().wrapping_mul(7).wrapping_add(seed);
        [shade, shade.wrapping_add(50), shade.wrapping_mul(3), if at % 3 == 0 { 0 } else { shade | 1 }]
    });
    Arc::new(CursorShape { size, hotspot: Point { x: 2, y: 1 }, bgra: bgra.collect() })
}

fn cursor(shape: &Arc<CursorShape>) -> CursorState {
    CursorState { shape: Some(shape.clone()), position: None, hidden: false }
}

/// What a client sees of some fast-path PDUs.
fn seen(mut bytes: &[u8]) -> Vec<Seen> {
    let (mut all, mut update) = (Vec::new(), Vec::new());
    while !bytes.is_empty() {
        let mut cursor = ReadCursor::new(bytes);
        let header = FastPathHeader::decode(&mut cursor).unwrap();
        let end = cursor.pos() + header.data_length;
        let pdu = FastPathUpdatePdu::decode(&mut cursor).unwrap();
        update.extend_from_slice(pdu.data);
        bytes = &bytes[end..];
        use ironrdp_pdu::fast_path::Fragmentation::{Last, Single};
        if matches!(pdu.fragmentation, Single | Last) {
            let whole = std::mem::take(&mut update);
            all.push(read(&FastPathUpdate::decode_with_code(&whole, pdu.update_code).unwrap()));
        }
    }
    all
}

fn read(update: &FastPathUpdate<'_>) -> Seen {
    let FastPathUpdate::Pointer(pointer) = update else { panic!("{update:?}") };
    let (index, decoded) = match pointer {
        PointerUpdateData::SetHidden => return Seen::Hidden,
        PointerUpdateData::SetDefault => return Seen::Default,
        PointerUpdateData::SetPosition(at) => return Seen::Position(at.x, at.y),
        PointerUpdateData::Cached(cached) => return Seen::Cached(cached.cache_index),
        PointerUpdateData::Color(color) => {
            (color.cache_index, DecodedPointer::decode_color_pointer_attribute(color, PointerBitmapTarget::Accelerated))
        }
        PointerUpdateData::New(new) => (
            new.color_pointer.cache_index,
            DecodedPointer::decode_pointer_attribute(new, PointerBitmapTarget::Accelerated),
        ),
        PointerUpdateData::Large(large) => {
            (large.cache_index, DecodedPointer::decode_large_pointer_attribute(large, PointerBitmapTarget::Accelerated))
        }
    };
    let decoded = decoded.unwrap();
    Seen::Shape {
        index,
        size: (decoded.width, decoded.height),
        hotspot: (decoded.hotspot_x, decoded.hotspot_y),
        rgba: decoded.bitmap_data,
    }
}

fn expected_rgba(shape: &CursorShape) -> Vec<u8> {
    let rgba = |p: &[u8]| if p[3] == 0 { [0; 4] } else { [p[2], p[1], p[0], p[3]] };
    shape.bgra.chunks_exact(4).flat_map(rgba).collect()
}

fn poll(pointer: &mut Pointer, cursor: CursorState) -> Vec<Seen> {
    pointer.update(cursor);
    pointer.poll(Instant::now()).map(|bytes| seen(&bytes)).unwrap_or_default()
}

#[test]
fn the_client_starts_with_its_own_arrow() {
    let mut pointer = Pointer::new(SUPPORT, 1 << 20);
    assert_eq!(poll(&mut pointer, CursorState::default()), []);
    let hidden = CursorState { hidden: true, ..CursorState::default() };
    assert_eq!(poll(&mut pointer, hidden.clone()), [Seen::Hidden]);
    assert_eq!(poll(&mut pointer, hidden), []);
    assert_eq!(poll(&mut pointer, CursorState::default()), [Seen::Default]);
}

#[test]
fn a_shape_is_sent_once_and_then_by_its_slot() {
    let mut pointer = Pointer::new(SUPPORT, 1 << 20);
    let shapes: Vec<_> = (0..5).map(|seed| shape(Size::new(32, 32), seed * 40)).collect();
    let index = |seen: &[Seen]| match seen {
        [Seen::Shape { index, .. }] => Some(*index),
        _ => None,
    };
    assert_eq!(index(&poll(&mut pointer, cursor(&shapes[0]))), Some(0));
    assert_eq!(poll(&mut pointer, cursor(&shapes[0])), []);
    assert_eq!(index(&poll(&mut pointer, cursor(&shapes[1]))), Some(1));
    assert_eq!(index(&poll(&mut pointer, cursor(&shapes[2]))), Some(2));
    assert_eq!(poll(&mut pointer, cursor(&shapes[0])), [Seen::Cached(0)]);
    // The one that was not shown for the longest time makes room.
    assert_eq!(index(&poll(&mut pointer, cursor(&shapes[3]))), Some(1));
    assert_eq!(poll(&mut pointer, cursor(&shapes[2])), [Seen::Cached(2)]);
    assert_eq!(index(&poll(&mut pointer, cursor(&shapes[1]))), Some(0));
    pointer.restart();
    assert_eq!(index(&seen(&pointer.poll(Instant::now()).unwrap())), Some(0));
}

#[test]
fn a_large_shape_is_scaled_down_for_clients_that_take_small_ones() {
    let whole = shape(Size::new(200, 100), 3);
    for (support, request, expected) in [
        (PointerSupport { max_side: 384, ..SUPPORT }, 1 << 20, (200, 100)),
        (SUPPORT, 1 << 20, (96, 48)),
        (PointerSupport { max_side: 32, ..SUPPORT }, 1 << 20, (32, 16)),
        (SUPPORT, 16_383, (62, 31)),
        (PointerSupport { cache_size: 0, ..SUPPORT }, 1 << 20, (32, 16)),
    ] {
        let mut pointer = Pointer::new(support, request);
        let seen = poll(&mut pointer, cursor(&whole));
        let [Seen::Shape { size, .. }] = seen.as_slice() else { panic!("{seen:?}") };
        assert_eq!(*size, expected);
    }
}

#[test]
fn clients_without_alpha_get_opaque_pixels_and_holes() {
    let mut pointer = Pointer::new(PointerSupport { cache_size: 0, ..SUPPORT }, 1 << 20);
    let bgra = vec![1, 2, 3, 255, 4, 5, 6, 100, 7, 8, 9, 128];
    let shape = CursorShape { size: Size::new(3, 1), hotspot: Point { x: 9, y: 9 }, bgra };
    let seen = poll(&mut pointer, cursor(&Arc::new(shape)));
    let rgba = vec![3, 2, 1, 255, 0, 0, 0, 0, 9, 8, 7, 255];
    assert_eq!(seen, [Seen::Shape { index: 0, size: (3, 1), hotspot: (2, 0), rgba }]);
}

#[test]
fn a_shape_without_its_pixels_is_not_shown() {
    let mut pointer = Pointer::new(SUPPORT, 1 << 20);
    let shape = CursorShape { size: Size::new(3, 3), hotspot: Point::default(), bgra: vec![1; 35] };
    assert_eq!(poll(&mut pointer, cursor(&Arc::new(shape))), []);
}

#[test]
fn clients_without_any_pointer_cache_keep_their_arrow() {
    let mut pointer = Pointer::new(PointerSupport { cache_size: 0, color_cache_size: 0, max_side: 32 }, 1 << 20);
    assert_eq!(poll(&mut pointer, cursor(&shape(Size::new(8, 8), 0))), []);
}

#[test]
fn only_a_guest_that_moves_its_cursor_by_itself_moves_the_clients() {
    let mut pointer = Pointer::new(SUPPORT, 1 << 20);
    let start = Instant::now();
    let at = |x, y| CursorState { position: Some(Point { x, y }), ..CursorState::default() };
    let poll_at = |pointer: &mut Pointer, now, cursor| {
        pointer.update(cursor);
        pointer.poll(now).map(|bytes| seen(&bytes))
    };
    assert_eq!(poll_at(&mut pointer, start, at(5, 5)), None);
    pointer.client_pointer(start, Point { x: 100, y: 100 });
    assert_eq!(poll_at(&mut pointer, start + ECHO / 2, at(90, 90)), None);
    assert_eq!(poll_at(&mut pointer, start + ECHO, at(101, 99)), None);
    assert_eq!(poll_at(&mut pointer, start + ECHO, at(400, 300)), Some(vec![Seen::Position(400, 300)]));
}

proptest! {
    #[test]
    fn a_shape_arrives_with_its_alpha(width in 1_u32..=384, height in 1_u32..=384, seed in any::<u8>()) {
        let mut pointer = Pointer::new(PointerSupport { max_side: 384, ..SUPPORT }, 1 << 20);
        let shape = shape(Size::new(width, height), seed);
        let hotspot = (2.min(to_u16(width - 1)), 1.min(to_u16(height - 1)));
        let seen = poll(&mut pointer, cursor(&shape));
        let expected = Seen::Shape { index: 0, size: (to_u16(width), to_u16(height)), hotspot, rgba: expected_rgba(&shape) };
        prop_assert!(seen == [expected]);
    }

    #[test]
    fn every_limit_is_kept(width in 1_u32..=384, height in 1_u32..=384, request in 16_383_usize..700_000) {
        let mut pointer = Pointer::new(PointerSupport { max_side: 384, ..SUPPORT }, request);
        pointer.update(cursor(&shape(Size::new(width, height), 1)));
        let bytes = pointer.poll(Instant::now()).unwrap();
        prop_assert!(bytes.len() <= request + bytes.len().div_ceil(16_000) * 6);
    }
}
