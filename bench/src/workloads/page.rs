//! Pictures in memory that stand for what guests show.

use console::{Rect, Scanout, Size};
use embedded_graphics::geometry::Point;
use embedded_graphics::mono_font::ascii::FONT_9X18;
use embedded_graphics::mono_font::{MonoTextStyle, MonoTextStyleBuilder};
use embedded_graphics::pixelcolor::{Rgb888, RgbColor as _};
use embedded_graphics::prelude::{DrawTarget, OriginDimensions, Pixel};
use embedded_graphics::text::{Baseline, Text};
use embedded_graphics::{Drawable as _, geometry};

/// Bytes of a pixel.
pub(super) const PIXEL: usize = 4;
/// Width and height of a character.
const CELL: (u32, u32) = (9, 18);

const BACKGROUND: Rgb888 = Rgb888::new(0x1e, 0x1e, 0x2e);
const COLORS: [Rgb888; 6] = [
    Rgb888::new(0xcd, 0xd6, 0xf4),
    Rgb888::new(0x89, 0xb4, 0xfa),
    Rgb888::new(0xa6, 0xe3, 0xa1),
    Rgb888::new(0xf9, 0xe2, 0xaf),
    Rgb888::new(0xcb, 0xa6, 0xf7),
    Rgb888::new(0x6c, 0x70, 0x86),
];

/// A picture whose memory is its own.
pub(super) struct Page {
    size: Size,
    bgrx: Vec<u8>,
}

impl Page {
    /// Source code in an editor: `text` from line `first`, words in different colours.
    pub(super) fn text(size: Size, text: &str, first: usize) -> Self {
        let pixels = usize::try_from(size.rect().area()).unwrap_or(0);
        let dark = [BACKGROUND.b(), BACKGROUND.g(), BACKGROUND.r(), 0];
        let mut page = Self { size, bgrx: dark.repeat(pixels) };
        let lines = text.lines().cycle().skip(first).take((size.height / CELL.1) as usize);
        for (row, line) in lines.enumerate() {
            let number = format!("{:5} ", first + row);
            let two_columns = format!("{number}{line:<98.98} {number}{line}");
            for (column, word) in words(&two_columns) {
                page.write(word, column, row);
            }
        }
        page
    }

    /// A photograph, as far as codecs can tell: soft shapes with noise on them.
    pub(super) fn photo(size: Size, seed: usize) -> Self {
        let mut noise = Noise(7 + u32::try_from(seed).unwrap_or(0));
        let mut bgrx = Vec::new();
        for y in 0..size.height {
            for x in 0..size.width {
                let (fx, fy) = (f64::from(x) / 97.0 + seed as f64, f64::from(y) / 61.0);
                let wave = [(fx + fy).sin(), (fx * 0.7 - fy).cos(), (fx * fy * 0.2).sin()];
                for value in wave {
                    let grain = f64::from(noise.next() % 9) - 4.0;
                    bgrx.push((128.0 + 90.0 * value + grain).clamp(0.0, 255.0) as u8);
                }
                bgrx.push(0);
            }
        }
        Self { size, bgrx }
    }

    /// Types one character at a column and row; returns the rectangle that changed.
    pub(super) fn type_character(&mut self, character: char, column: u32, row: u32) -> Rect {
        self.write(&character.to_string(), column as usize, row as usize);
        Rect::new(column * CELL.0, row * CELL.1, CELL.0, CELL.1)
    }

    /// The pixels, rows from the top.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bgrx
    }

    fn write(&mut self, word: &str, column: usize, row: usize) {
        let color = COLORS[word.bytes().map(usize::from).sum::<usize>() % COLORS.len()];
        let style: MonoTextStyle<'_, Rgb888> =
            MonoTextStyleBuilder::new().font(&FONT_9X18).text_color(color).background_color(BACKGROUND).build();
        let at = |cells: usize, size: u32| i32::try_from(cells).unwrap_or(0) * i32::try_from(size).unwrap_or(0);
        let place = Point::new(at(column, CELL.0), at(row, CELL.1));
        let Ok(_) = Text::with_baseline(word, place, style, Baseline::Top).draw(self);
    }
}

impl Scanout for Page {
    fn size(&self) -> Size {
        self.size
    }

    fn copy_rect(&self, rect: Rect, into: &mut [u8], stride: usize) {
        let row = self.size.width as usize * PIXEL;
        let (left, bytes) = (rect.x as usize * PIXEL, rect.width as usize * PIXEL);
        for (into, y) in into.chunks_mut(stride).zip(rect.y as usize..rect.bottom() as usize) {
            into[..bytes].copy_from_slice(&self.bgrx[y * row + left..][..bytes]);
        }
    }
}

impl OriginDimensions for Page {
    fn size(&self) -> geometry::Size {
        geometry::Size::new(self.size.width, self.size.height)
    }
}

impl DrawTarget for Page {
    type Color = Rgb888;
    type Error = std::convert::Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Self::Error> {
        for Pixel(at, color) in pixels {
            let (Ok(x), Ok(y)) = (u32::try_from(at.x), u32::try_from(at.y)) else { continue };
            if x < self.size.width && y < self.size.height {
                let at = (y as usize * self.size.width as usize + x as usize) * PIXEL;
                self.bgrx[at..at + 3].copy_from_slice(&[color.b(), color.g(), color.r()]);
            }
        }
        Ok(())
    }
}

/// Words and their columns.
fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let start = line.as_ptr() as usize;
    line.split_ascii_whitespace().map(move |word| (word.as_ptr() as usize - start, word))
}

/// A number after a number (xorshift): the same in every run.
struct Noise(u32);

impl Noise {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }
}
