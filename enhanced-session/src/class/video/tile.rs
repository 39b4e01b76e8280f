//! A rectangle of pixels on the channel.

use std::fmt;

use console::Rect;
#[cfg(test)]
use proptest::prelude::*;

use crate::class::bounded;
use crate::class::define::codes;
use crate::class::field::Field;
use crate::wire::{Malformed, Reader, Writer};

/// Most pixels of a tile: 256 × 256, so that nothing more urgent waits long behind one.
pub const MAX_TILE_PIXELS: usize = 65_536;

/// Bytes of a pixel as it is: blue, green, red, unused.
const PIXEL: usize = 4;
/// Bytes of a pixel in runs: blue, green, red.
const RUN_PIXEL: usize = 3;
const MAX_BYTES: usize = MAX_TILE_PIXELS * PIXEL;

/// In a run's head: what follows is one pixel, to be repeated.
const REPEATED: u16 = 0x8000;
/// Most pixels of a run.
const MAX_RUN: usize = 0x8000;
/// Fewer equal pixels than this are shorter among others than as a run of their own.
const WORTH_A_RUN: usize = 3;

/// A rectangle of a head with its pixels, as they are or in runs, whichever is shorter.
///
/// On the wire: the rectangle, u8 encoding, u32 length, data. Data of encoding 0 are the pixels in rows from the top,
/// 4 bytes each: blue, green, red, unused. Data of encoding 1 are runs that go on from row to row: u16 `head`, then 3
/// bytes (blue, green, red) for one pixel that is to be repeated (`head & 0x7fff`) + 1 times if `head & 0x8000` is
/// set, else for each of so many pixels. Runs must give as many pixels as the rectangle has.
#[derive(Clone, PartialEq, Eq)]
pub struct Tile {
    rect: Rect,
    encoding: Encoding,
    /// As on the wire; always a valid encoding of the rectangle's pixels.
    data: Vec<u8>,
}

codes! {
    /// How the pixels of a tile are written.
    enum Encoding: u8 {
        /// One after the other.
        Raw = 0,
        /// In runs.
        Runs = 1,
    }
}

impl Tile {
    /// The tile of these pixels: rows from the top without a gap, 4 bytes each.
    ///
    /// # Errors
    ///
    /// When the rectangle is empty or has more than [`MAX_TILE_PIXELS`], or `bgrx` has not as many.
    pub fn new(rect: Rect, bgrx: &[u8]) -> Result<Self, Malformed> {
        let pixels = pixels_of(rect)?;
        if bgrx.len() != pixels * PIXEL {
            return Err(Malformed::TooLong { what: "tile data", length: bgrx.len(), limit: pixels * PIXEL });
        }
        let runs = runs_of(bgrx);
        let (encoding, data) =
            if runs.len() < bgrx.len() { (Encoding::Runs, runs) } else { (Encoding::Raw, bgrx.to_vec()) };
        Ok(Self { rect, encoding, data })
    }

    /// Where it is on the head. That it is inside is the receiver's to check.
    #[must_use]
    pub const fn rect(&self) -> Rect {
        self.rect
    }

    /// Its pixels: rows from the top without a gap, 4 bytes each: blue, green, red, unused.
    #[must_use]
    pub fn pixels(&self) -> Vec<u8> {
        match self.encoding {
            Encoding::Raw => self.data.clone(),
            Encoding::Runs => {
                let mut pixels = Vec::with_capacity(pixels_of(self.rect).unwrap_or(0) * PIXEL);
                let mut push = |bgr: &[u8]| {
                    pixels.extend_from_slice(bgr);
                    pixels.push(0);
                };
                let checked = each_run(&self.data, |count, bgr| match bgr.len() {
                    RUN_PIXEL => (0..count).for_each(|_| push(bgr)),
                    _ => bgr.chunks_exact(RUN_PIXEL).for_each(&mut push),
                });
                assert!(checked.is_ok(), "a tile is checked before it is built");
                pixels
            }
        }
    }

    /// Whether the data give the rectangle's pixels.
    fn check(&self) -> Result<(), Malformed> {
        let wanted = pixels_of(self.rect)?;
        let mut pixels = 0;
        match self.encoding {
            Encoding::Raw if self.data.len().is_multiple_of(PIXEL) => pixels = self.data.len() / PIXEL,
            Encoding::Raw => {}
            Encoding::Runs => each_run(&self.data, |count, _| pixels += count)?,
        }
        if pixels == wanted {
            Ok(())
        } else {
            Err(Malformed::Value { what: "pixels of a tile", value: u64::try_from(pixels).unwrap_or(u64::MAX) })
        }
    }
}

/// How many there are, if a tile may have so many.
fn pixels_of(rect: Rect) -> Result<usize, Malformed> {
    match usize::try_from(rect.area()) {
        Ok(pixels @ 1..=MAX_TILE_PIXELS) => Ok(pixels),
        _ => Err(Malformed::Value { what: "area of a tile", value: rect.area() }),
    }
}

fn runs_of(bgrx: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new();
    let (pixels, _) = bgrx.as_chunks::<PIXEL>();
    // Pixels before `at` that are not written yet: none of them begins a run that is worth one.
    let (mut pending, mut at) = (0, 0);
    while let Some(first) = pixels.get(at) {
        let equal = pixels[at..].iter().take(MAX_RUN).take_while(|pixel| pixel[..RUN_PIXEL] == first[..RUN_PIXEL]);
        let equal = equal.count();
        if equal >= WORTH_A_RUN {
            literals(&mut writer, &pixels[pending..at]);
            writer.u16(REPEATED | head(equal)).bytes(&first[..RUN_PIXEL]);
            pending = at + equal;
        }
        at += equal;
    }
    literals(&mut writer, &pixels[pending..]);
    writer.into_bytes()
}

fn literals(writer: &mut Writer, pixels: &[[u8; PIXEL]]) {
    for run in pixels.chunks(MAX_RUN) {
        writer.u16(head(run.len()));
        for pixel in run {
            writer.bytes(&pixel[..RUN_PIXEL]);
        }
    }
}

fn head(count: usize) -> u16 {
    u16::try_from(count - 1).unwrap_or(u16::MAX) & !REPEATED
}

/// Gives each run's number of pixels and its bytes: those of one pixel if it is repeated.
fn each_run(data: &[u8], mut each: impl FnMut(usize, &[u8])) -> Result<(), Malformed> {
    let mut reader = Reader::new(data);
    while reader.remaining() > 0 {
        let head = reader.u16("run")?;
        let count = usize::from(head & !REPEATED) + 1;
        let stored = if head & REPEATED == 0 { count } else { 1 };
        each(count, reader.bytes(stored * RUN_PIXEL, "pixels of a run")?);
    }
    Ok(())
}

impl Field for Tile {
    const MAX_BYTES: usize = Rect::MAX_BYTES + Encoding::MAX_BYTES + 4 + MAX_BYTES;

    fn write(&self, writer: &mut Writer) {
        self.rect.write(writer);
        self.encoding.write(writer);
        writer.u32(u32::try_from(self.data.len()).unwrap_or(u32::MAX)).bytes(&self.data);
    }

    fn read(reader: &mut Reader<'_>, _: &'static str) -> Result<Self, Malformed> {
        let rect = Rect::read(reader, "rectangle of a tile")?;
        let encoding = Encoding::read(reader, "encoding of a tile")?;
        let length = usize::try_from(reader.u32("tile data")?).unwrap_or(usize::MAX);
        bounded::check("tile data", length, MAX_BYTES)?;
        let tile = Self { rect, encoding, data: reader.bytes(length, "tile data")?.to_vec() };
        tile.check().map(|()| tile)
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        let pixels =
            |area: usize| proptest::collection::vec(proptest::sample::select(vec![0u32, 1, 0x0030_2010]), area);
        let any = (1..20u32, 1..20u32, any::<(u32, u32)>()).prop_flat_map(move |(width, height, (x, y))| {
            (Just(Rect::new(x, y, width, height)), pixels(usize::try_from(width * height).expect("small")))
        });
        any.prop_map(|(rect, pixels)| {
            let bgrx: Vec<_> = pixels.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
            Self::new(rect, &bgrx).expect("as many as there are to be")
        })
        .boxed()
    }
}

impl fmt::Debug for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tile").field("rect", &self.rect).field("encoding", &self.encoding).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RED: [u8; 4] = [0, 0, 255, 0];
    const BLUE: [u8; 4] = [255, 0, 0, 0];

    #[test]
    fn equal_pixels_are_a_run_and_read_as_specified() {
        let pixels = [[RED; 4].concat(), [BLUE; 1].concat(), [RED; 1].concat()].concat();
        let tile = Tile::new(Rect::new(1, 2, 3, 2), &pixels).expect("6 pixels");
        let mut writer = Writer::new();
        tile.write(&mut writer);
        let bytes = [
            [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0].as_slice(),
            &[1, 13, 0, 0, 0],
            &[0x03, 0x80, 0, 0, 255],
            &[0x01, 0x00, 255, 0, 0, 0, 0, 255],
        ]
        .concat();
        assert_eq!(writer.into_bytes(), bytes);
        assert_eq!(tile.pixels(), pixels);
    }

    #[test]
    fn the_largest_tiles_come_back() {
        let rect = Rect::new(0, 0, 256, 256);
        let flat = Tile::new(rect, &RED.repeat(MAX_TILE_PIXELS)).expect("it fits");
        assert_eq!(flat.data.len(), 10);
        assert_eq!(flat.pixels(), RED.repeat(MAX_TILE_PIXELS));
        let noise: Vec<u8> = (0..65_536u32).flat_map(|at| [at.to_le_bytes()[0], at.to_le_bytes()[1], 7, 0]).collect();
        let tile = Tile::new(rect, &noise).expect("it fits");
        assert!(tile.data.len() < noise.len());
        assert_eq!(tile.pixels(), noise);
        assert!(Tile::new(Rect::new(0, 0, 257, 256), &RED.repeat(257 * 256)).is_err());
    }

    #[test]
    fn data_that_give_other_pixels_are_refused() {
        let read = |width: u8, encoding: u8, data: &[u8]| {
            let length = u8::try_from(data.len()).expect("short");
            let head = [0, 0, 0, 0, 0, 0, 0, 0, width, 0, 0, 0, 1, 0, 0, 0, encoding, length, 0, 0, 0];
            Tile::read(&mut Reader::new(&[&head, data].concat()), "tile")
        };
        assert!(read(2, 1, &[1, 0x80, 1, 2, 3]).is_ok());
        assert!(read(3, 1, &[1, 0x80, 1, 2, 3]).is_err(), "too few");
        assert!(read(1, 1, &[1, 0x80, 1, 2, 3]).is_err(), "too many");
        assert!(read(2, 1, &[1, 0x00, 1, 2, 3]).is_err(), "cut");
        assert!(read(0, 0, &[]).is_err(), "empty");
        assert!(read(1, 0, &[1, 2, 3, 4]).is_ok());
        assert!(read(1, 0, &[1, 2, 3]).is_err());
        assert!(read(1, 2, &[1, 2, 3, 4]).is_err());
    }

    proptest! {
        #[test]
        fn pixels_come_back(values in proptest::collection::vec(0..4u32, 1..400)) {
            let bgrx: Vec<_> = values.iter().flat_map(|value| (value * 0x01_0203).to_le_bytes()).collect();
            let rect = Rect::new(0, 0, u32::try_from(values.len()).expect("small"), 1);
            let tile = Tile::new(rect, &bgrx).expect("it fits");
            prop_assert_eq!(tile.pixels(), bgrx);
        }
    }
}
