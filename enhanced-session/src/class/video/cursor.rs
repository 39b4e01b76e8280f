//! What a cursor looks like, on the channel.

use console::{CursorShape, MAX_CURSOR_SIDE, Point, Size};
#[cfg(test)]
use proptest::prelude::*;

use crate::class::field::Field;
use crate::wire::{Malformed, Reader, Writer};

/// A cursor's picture that has as many pixels as it should, and points with one of them.
///
/// On the wire: u16 width, u16 height (1 to 384), u16 x, u16 y of the pixel that points, then rows from the top, 4
/// bytes a pixel: blue, green, red, alpha (straight).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(Box<CursorShape>);

const MAX_SIDE: usize = 384;
const _: () = assert!(MAX_SIDE == MAX_CURSOR_SIDE as usize);
const PIXEL: usize = 4;

impl Cursor {
    /// The picture.
    ///
    /// # Errors
    ///
    /// When a side is 0 or too long, the pixel that points lies outside, or there are not as many bytes as pixels need.
    pub fn new(shape: CursorShape) -> Result<Self, Malformed> {
        let (Size { width, height }, Point { x, y }) = (shape.size, shape.hotspot);
        for (what, value, allowed) in [
            ("cursor width", width, 1..=MAX_CURSOR_SIDE),
            ("cursor height", height, 1..=MAX_CURSOR_SIDE),
            ("cursor hot spot", x, 0..=width.saturating_sub(1)),
            ("cursor hot spot", y, 0..=height.saturating_sub(1)),
        ] {
            if !allowed.contains(&value) {
                return Err(Malformed::Value { what, value: value.into() });
            }
        }
        let limit = bytes_of(shape.size);
        if shape.bgra.len() != limit {
            return Err(Malformed::TooLong { what: "cursor", length: shape.bgra.len(), limit });
        }
        Ok(Self(Box::new(shape)))
    }

    /// The picture.
    #[must_use]
    pub const fn shape(&self) -> &CursorShape {
        &self.0
    }

    /// The picture.
    #[must_use]
    pub fn into_shape(self) -> CursorShape {
        *self.0
    }
}

fn bytes_of(size: Size) -> usize {
    usize::try_from(size.rect().area()).unwrap_or(usize::MAX).saturating_mul(PIXEL)
}

impl Field for Cursor {
    const MAX_BYTES: usize = 8 + MAX_SIDE * MAX_SIDE * PIXEL;

    fn write(&self, writer: &mut Writer) {
        let CursorShape { size, hotspot, bgra } = &*self.0;
        for value in [size.width, size.height, hotspot.x, hotspot.y] {
            writer.u16(u16::try_from(value).unwrap_or(u16::MAX));
        }
        writer.bytes(bgra);
    }

    fn read(reader: &mut Reader<'_>, _: &'static str) -> Result<Self, Malformed> {
        let mut side = |what| match reader.u16(what).map(u32::from)? {
            side @ 1..=MAX_CURSOR_SIDE => Ok(side),
            side => Err(Malformed::Value { what, value: side.into() }),
        };
        let size = Size::new(side("cursor width")?, side("cursor height")?);
        let x = reader.u16("cursor hot spot")?.into();
        let y = reader.u16("cursor hot spot")?.into();
        let bgra = reader.bytes(bytes_of(size), "cursor")?.to_vec();
        Self::new(CursorShape { size, hotspot: Point { x, y }, bgra })
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        let any = (1..9u32, 1..9u32).prop_flat_map(|(width, height)| {
            let size = Size::new(width, height);
            (Just(size), 0..width, 0..height, proptest::collection::vec(any::<u8>(), bytes_of(size)))
        });
        any.prop_map(|(size, x, y, bgra)| {
            Self::new(CursorShape { size, hotspot: Point { x, y }, bgra }).expect("it is as it should be")
        })
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(width: u32, height: u32, x: u32, bytes: usize) -> Result<Cursor, Malformed> {
        Cursor::new(CursorShape { size: Size::new(width, height), hotspot: Point { x, y: 0 }, bgra: vec![9; bytes] })
    }

    #[test]
    fn a_cursor_reads_as_it_is_specified() {
        let cursor = shape(2, 1, 1, 8).expect("a cursor");
        let mut writer = Writer::new();
        cursor.write(&mut writer);
        let bytes = writer.into_bytes();
        assert_eq!(bytes, [2, 0, 1, 0, 1, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9]);
        assert_eq!(Cursor::read(&mut Reader::new(&bytes), "cursor"), Ok(cursor));
    }

    #[test]
    fn a_cursor_that_cannot_be_is_refused() {
        assert!(shape(384, 384, 383, 384 * 384 * 4).is_ok());
        assert!(shape(385, 1, 0, 385 * 4).is_err());
        assert!(shape(0, 1, 0, 0).is_err());
        assert!(shape(2, 1, 2, 8).is_err());
        assert!(shape(2, 1, 0, 7).is_err());
        let huge = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 2, 3];
        assert!(Cursor::read(&mut Reader::new(&huge), "cursor").is_err());
    }
}
