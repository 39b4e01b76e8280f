//! A cursor's picture in the form of pointer updates.

use console::{CursorShape, Point, Size};

use crate::graphics::shadow::{PIXEL, to_usize};

/// Alpha from which a pixel is visible to clients that know no alpha.
const VISIBLE: u8 = 128;

/// Pixels with straight alpha, rows from the top.
pub(super) struct Picture {
    pub(super) size: Size,
    pub(super) hotspot: Point,
    pixels: Vec<[u8; 4]>,
}

impl Picture {
    /// The picture of a shape that has all its pixels, made smaller when a side is longer than `max_side`.
    pub(super) fn new(shape: &CursorShape, max_side: u32) -> Self {
        let pixels: Vec<[u8; 4]> = shape.bgra.chunks_exact(PIXEL).map(|p| [p[0], p[1], p[2], p[3]]).collect();
        let whole = Self { size: shape.size, hotspot: shape.hotspot, pixels };
        let longest = shape.size.width.max(shape.size.height);
        let mut picture = if longest > max_side { whole.scaled(max_side, longest) } else { whole };
        picture.hotspot.x = picture.hotspot.x.min(picture.size.width - 1);
        picture.hotspot.y = picture.hotspot.y.min(picture.size.height - 1);
        picture
    }

    /// One bit a pixel, set where it is invisible; rows from the bottom, of whole 16-bit words.
    pub(super) fn and_mask(&self) -> Vec<u8> {
        let row_bytes = to_usize(self.size.width).div_ceil(16) * 2;
        let mut mask = Vec::with_capacity(row_bytes * to_usize(self.size.height));
        for row in self.rows_from_bottom() {
            let end = mask.len() + row_bytes;
            for pixels in row.chunks(8) {
                let bits = pixels.iter().enumerate();
                mask.push(bits.fold(0, |byte, (at, pixel)| byte | u8::from(pixel[3] == 0) << (7 - at)));
            }
            mask.resize(end, 0);
        }
        mask
    }

    /// Four bytes a pixel; rows from the bottom.
    pub(super) fn xor_mask_32(&self) -> Vec<u8> {
        // What is invisible has to be black: inverted pixels are made of the rest.
        let shown = |pixel: &[u8; 4]| if pixel[3] == 0 { [0; 4] } else { *pixel };
        self.rows_from_bottom().flat_map(|row| row.iter().flat_map(shown)).collect()
    }

    /// Three bytes a pixel; rows from the bottom, of whole 16-bit words.
    pub(super) fn xor_mask_24(&self) -> Vec<u8> {
        let mut mask = Vec::new();
        for row in self.rows_from_bottom() {
            let shown = |pixel: &[u8; 4]| if pixel[3] == 0 { [0; 3] } else { [pixel[0], pixel[1], pixel[2]] };
            mask.extend(row.iter().flat_map(shown));
            if row.len() % 2 == 1 {
                mask.push(0);
            }
        }
        mask
    }

    /// With every pixel either opaque or invisible.
    pub(super) fn without_alpha(mut self) -> Self {
        for pixel in &mut self.pixels {
            pixel[3] = if pixel[3] < VISIBLE { 0 } else { 0xff };
        }
        self
    }

    fn rows_from_bottom(&self) -> impl Iterator<Item = &[[u8; 4]]> {
        self.pixels.chunks_exact(to_usize(self.size.width)).rev()
    }

    /// `numerator`/`denominator` of its size: each pixel is the mean of those it covers.
    fn scaled(&self, numerator: u32, denominator: u32) -> Self {
        let shrink = |length: u32| (length * numerator / denominator).max(1);
        let size = Size::new(shrink(self.size.width), shrink(self.size.height));
        let span = |at: u32, of: u32, source: u32| {
            let start = at * source / of;
            start..((at + 1) * source / of).max(start + 1)
        };
        let mut pixels = Vec::with_capacity(to_usize(size.width) * to_usize(size.height));
        for y in 0..size.height {
            for x in 0..size.width {
                let columns = span(x, size.width, self.size.width);
                let rows = span(y, size.height, self.size.height);
                let covered = rows.flat_map(|row| columns.clone().map(move |column| (column, row)));
                pixels.push(self.mean(covered));
            }
        }
        let hotspot = Point {
            x: self.hotspot.x * size.width / self.size.width,
            y: self.hotspot.y * size.height / self.size.height,
        };
        Self { size, hotspot, pixels }
    }

    /// The mean of some pixels, in which colours count by their alpha.
    fn mean(&self, points: impl Iterator<Item = (u32, u32)>) -> [u8; 4] {
        let (mut colors, mut alpha, mut count) = ([0_u32; 3], 0, 0);
        for (x, y) in points {
            let [b, g, r, a] = self.pixels[to_usize(y) * to_usize(self.size.width) + to_usize(x)].map(u32::from);
            for (sum, color) in colors.iter_mut().zip([b, g, r]) {
                *sum += color * a;
            }
            alpha += a;
            count += 1;
        }
        let [b, g, r] = colors.map(|sum| sum.checked_div(alpha).unwrap_or(0).to_le_bytes()[0]);
        [b, g, r, alpha.checked_div(count).unwrap_or(0).to_le_bytes()[0]]
    }
}
