//! Pixels, and how alike two pictures are.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufWriter, Cursor};
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// A picture without transparency.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    /// Row by row, red first.
    pixels: Vec<[u8; 3]>,
}

/// How a client's picture may differ from the guest's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Likeness {
    /// Not at all.
    Exact,
    /// By what a pixel of five, six and five bits cannot hold.
    HighColor,
    /// By what a lossy codec loses: at least so many decibels of peak signal to noise.
    Decibels(f64),
}

impl Picture {
    /// A picture of rows of pixels of four bytes: blue, green, red, nothing.
    ///
    /// # Errors
    ///
    /// When there are too few or too many bytes.
    pub fn from_bgrx(width: usize, height: usize, bytes: &[u8]) -> Result<Self> {
        ensure!(bytes.len() == width * height * 4, "{} bytes are no picture of {width}x{height}", bytes.len());
        let pixels = bytes.chunks_exact(4).map(|pixel| [pixel[2], pixel[1], pixel[0]]).collect();
        Ok(Self { width, height, pixels })
    }

    /// A picture of one colour.
    #[must_use]
    pub fn plain(width: usize, height: usize, color: [u8; 3]) -> Self {
        Self { width, height, pixels: vec![color; width * height] }
    }

    /// Reads a PNG of eight bits per colour.
    ///
    /// # Errors
    ///
    /// When the file is not one.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::decode(&bytes).with_context(|| format!("{} is no picture", path.display()))
    }

    /// Reads the bytes of a PNG of eight bits per colour.
    ///
    /// # Errors
    ///
    /// When they are not one.
    pub fn decode(png: &[u8]) -> Result<Self> {
        let mut reader = png::Decoder::new(Cursor::new(png)).read_info()?;
        let mut bytes = vec![0; reader.output_buffer_size().context("too large")?];
        let info = reader.next_frame(&mut bytes)?;
        ensure!(info.bit_depth == png::BitDepth::Eight, "{:?} bits per colour", info.bit_depth);
        let samples = info.color_type.samples();
        ensure!(samples >= 3, "{:?} pixels", info.color_type);
        let (width, height) = (usize::try_from(info.width)?, usize::try_from(info.height)?);
        let bytes = &bytes[..info.buffer_size()];
        let pixels = bytes.chunks_exact(samples).map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
        Ok(Self { width, height, pixels })
    }

    /// Writes a PNG.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut encoder =
            png::Encoder::new(BufWriter::new(file), u32::try_from(self.width)?, u32::try_from(self.height)?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header()?.write_image_data(self.pixels.as_flattened())?;
        Ok(())
    }

    /// Width and height.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// The pixel in column `x` of row `y`.
    #[must_use]
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        self.pixels[y * self.width + x]
    }

    /// Whether every pixel has the same colour.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.pixels.windows(2).all(|pair| pair[0] == pair[1])
    }

    /// Whether this, a client's picture, shows `guest` as far as `likeness` asks.
    #[must_use]
    pub fn shows(&self, guest: &Self, likeness: Likeness) -> bool {
        self.size() == guest.size()
            && match likeness {
                Likeness::Exact => self.pixels == guest.pixels,
                Likeness::HighColor => self.pairs(guest).all(|(own, other)| same_in_high_color(own, other)),
                Likeness::Decibels(least) => self.decibels(guest) >= least,
            }
    }

    /// In how many pixels, and where first, this differs from `other`; for errors.
    #[must_use]
    pub fn difference(&self, other: &Self) -> String {
        if self.size() != other.size() {
            return format!("one picture is {self:?}, the other {other:?}");
        }
        let different: Vec<_> = self.pairs(other).enumerate().filter(|(_, (own, other))| own != other).collect();
        match different.first() {
            None => "they are equal".to_owned(),
            Some((at, (own, theirs))) => format!(
                "{} pixels differ, first {}:{} with {own:?} against {theirs:?}; {:.1} dB",
                different.len(),
                at % self.width,
                at / self.width,
                self.decibels(other)
            ),
        }
    }

    /// Peak signal to noise ratio.
    fn decibels(&self, other: &Self) -> f64 {
        let squares: u64 = self
            .pairs(other)
            .flat_map(|(own, other)| own.into_iter().zip(other))
            .map(|(own, other)| u64::from(own.abs_diff(other)).pow(2))
            .sum();
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        let mean = squares as f64 / (self.pixels.len() * 3) as f64;
        10.0 * (255.0 * 255.0 / mean).log10()
    }

    fn pairs<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = ([u8; 3], [u8; 3])> + 'a {
        self.pixels.iter().copied().zip(other.pixels.iter().copied())
    }
}

impl fmt::Debug for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// Servers round or cut off, clients fill the missing bits in one way or another: a step of the coarser scale is
/// what may be between the two.
fn same_in_high_color(own: [u8; 3], other: [u8; 3]) -> bool {
    let steps = [8, 4, 8];
    own.into_iter().zip(other).zip(steps).all(|((own, other), step)| own.abs_diff(other) <= step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch;

    #[test]
    fn a_picture_survives_its_file() {
        let bytes: Vec<u8> = (0..6u8).flat_map(|n| [n, n + 50, n + 100, 0]).collect();
        let picture = Picture::from_bgrx(3, 2, &bytes).unwrap();
        assert_eq!(picture.pixel(2, 1), [105, 55, 5]);
        let file = scratch::folder("picture").unwrap().join("a.png");
        picture.save(&file).unwrap();
        assert!(Picture::load(&file).unwrap() == picture);
        assert!(Picture::from_bgrx(3, 3, &bytes).is_err());
    }

    #[test]
    fn likeness_has_degrees() {
        let guest = Picture::plain(4, 4, [170, 170, 170]);
        let near = Picture::plain(4, 4, [173, 170, 165]);
        let far = Picture::plain(4, 4, [100, 170, 165]);
        assert!(guest.shows(&guest, Likeness::Exact) && !near.shows(&guest, Likeness::Exact));
        assert!(near.shows(&guest, Likeness::HighColor) && !far.shows(&guest, Likeness::HighColor));
        assert!(near.shows(&guest, Likeness::Decibels(30.0)) && !far.shows(&guest, Likeness::Decibels(30.0)));
        assert!(guest.shows(&guest, Likeness::Decibels(1000.0)));
        assert!(!Picture::plain(4, 5, [0; 3]).shows(&guest, Likeness::Decibels(0.0)));
        assert_eq!(
            near.difference(&guest),
            "16 pixels differ, first 0:0 with [173, 170, 165] against [170, 170, 170]; 37.6 dB"
        );
    }
}
