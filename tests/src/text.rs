//! Reads what is written on a text console from its pixels.
//!
//! The console guest draws with the font that is in its kernel, and the kernel is there uncompressed: so the
//! shapes of the letters are taken from it.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::picture::Picture;

/// Rows of a glyph; it is 8 pixels wide, a byte per row, the leftmost pixel in the highest bit.
const ROWS: usize = 16;
/// From here to 255 a colour counts as ink: the console's darkest ink has 85, its usual one 170.
const INK: u8 = 70;
/// `A` and `B` as every font of this family draws them: with these the font is found.
const A: Glyph = [0, 0, 0x10, 0x38, 0x6c, 0xc6, 0xc6, 0xfe, 0xc6, 0xc6, 0xc6, 0xc6, 0, 0, 0, 0];
const B: Glyph = [0, 0, 0xfc, 0x66, 0x66, 0x66, 0x7c, 0x66, 0x66, 0x66, 0x66, 0xfc, 0, 0, 0, 0];

type Glyph = [u8; ROWS];

/// The shapes of a console's letters.
#[derive(Debug)]
pub struct Font {
    letters: HashMap<Glyph, char>,
}

/// The text on a console; what is no letter is `\u{fffd}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Screen {
    lines: Vec<String>,
}

impl Font {
    /// Finds the console's font in an uncompressed kernel.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or has no such font.
    pub fn from_kernel(kernel: &Path) -> Result<Self> {
        let bytes = fs::read(kernel).with_context(|| format!("cannot read {}", kernel.display()))?;
        Self::find(&bytes).with_context(|| format!("there is no 8x16 font in {}", kernel.display()))
    }

    /// The text in `picture`, which begins at its upper left corner.
    #[must_use]
    pub fn read(&self, picture: &Picture) -> Screen {
        let (width, height) = picture.size();
        // The text mode of a PC has a ninth column of nothing beside each letter.
        let cell = if (width, height) == (720, 400) { 9 } else { 8 };
        let lines = (0..height / ROWS).map(|row| {
            let line: String =
                (0..width / cell).map(|column| self.letter(picture, column * cell, row * ROWS)).collect();
            line.trim_end().to_owned()
        });
        Screen { lines: lines.collect() }
    }

    fn find(kernel: &[u8]) -> Option<Self> {
        let pair = [A, B].concat();
        let start =
            kernel.windows(pair.len()).position(|window| window == pair)?.checked_sub(usize::from(b'A') * ROWS)?;
        let glyphs = kernel.get(start..start + 128 * ROWS)?.as_chunks::<ROWS>().0;
        let printable = (b' '..=b'~').map(|code| (glyphs[usize::from(code)], char::from(code)));
        Some(Self { letters: printable.collect() })
    }

    fn letter(&self, picture: &Picture, left: usize, top: usize) -> char {
        let glyph: Glyph = std::array::from_fn(|y| {
            (0..8).fold(0, |row, x| row << 1 | u8::from(picture.pixel(left + x, top + y).iter().any(|c| *c >= INK)))
        });
        self.letters.get(&glyph).or_else(|| self.letters.get(&without_cursor(glyph))).copied().unwrap_or('\u{fffd}')
    }
}

/// The console's cursor is a line or two across the lowest rows of a cell.
fn without_cursor(mut glyph: Glyph) -> Glyph {
    for row in &mut glyph[ROWS - 3..] {
        if *row == 0xff {
            *row = 0;
        }
    }
    glyph
}

impl Screen {
    /// Whether `text` is in one of the lines.
    #[must_use]
    pub fn has(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.contains(text))
    }

    /// Whether one of the lines is `text`.
    #[must_use]
    pub fn has_line(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line == text)
    }

    /// All lines from the top.
    pub fn lines(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    /// The last line that is not empty.
    #[must_use]
    pub fn last(&self) -> &str {
        self.lines().rev().find(|line| !line.is_empty()).unwrap_or_default()
    }
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written: Vec<_> = self.lines().filter(|line| !line.is_empty()).collect();
        f.write_str(&written.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel with nothing but a font: `A` and `B` are right, every other letter is its code in all rows.
    fn font() -> Font {
        let mut kernel = vec![7; 1000];
        let glyphs = (0..=255u8).map(|code| match code {
            b' ' => [0; ROWS],
            b'A' => A,
            b'B' => B,
            code => [code; ROWS],
        });
        kernel.extend(glyphs.flatten());
        Font::find(&kernel).unwrap()
    }

    fn draw(lines: &[&[Glyph]], cell: usize) -> Picture {
        let (width, height) = if cell == 9 { (720, 400) } else { (80, 48) };
        let mut bytes = vec![0; width * height * 4];
        for (row, line) in lines.iter().enumerate() {
            for (column, glyph) in line.iter().enumerate() {
                for (x, y) in (0..ROWS).flat_map(|y| (0..8).map(move |x| (x, y))) {
                    let at = ((row * ROWS + y) * width + column * cell + x) * 4;
                    bytes[at..at + 3].fill(if glyph[y] & 0x80 >> x == 0 { 0 } else { 170 });
                }
            }
        }
        Picture::from_bgrx(width, height, &bytes).unwrap()
    }

    #[test]
    fn letters_are_read_with_and_without_the_ninth_column() {
        let mut cursor = B;
        cursor[14..].fill(0xff);
        let mut heart = [0; ROWS];
        heart[3] = 0x66;
        for cell in [8, 9] {
            let screen = font().read(&draw(&[&[B, A, [b'd'; ROWS], cursor], &[], &[[0; ROWS], heart]], cell));
            assert_eq!(format!("{screen:?}"), "BAdB\n \u{fffd}");
            assert!(screen.has("Ad") && screen.has_line("BAdB") && !screen.has_line("BA"));
            assert_eq!(screen.last(), " \u{fffd}");
        }
    }

    #[test]
    fn a_file_without_a_font_is_refused() {
        assert!(Font::find(&[0; 10_000]).is_none());
    }
}
