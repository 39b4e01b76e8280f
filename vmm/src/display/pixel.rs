//! The pixel formats of QEMU's surfaces, and their way to the one of [`console::Scanout`].

/// How the pixels of a surface lie in memory (pixman's names, which are of the value, highest bits first).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PixelFormat {
    /// `x8r8g8b8`, `a8r8g8b8`: ours.
    Bgrx,
    /// `x8b8g8r8`, `a8b8g8r8`.
    Rgbx,
    /// `b8g8r8x8`, `b8g8r8a8`.
    Xrgb,
    /// `r8g8b8x8`, `r8g8b8a8`.
    Xbgr,
    /// `r8g8b8`.
    Bgr,
    /// `b8g8r8`.
    Rgb,
    /// `r5g6b5`.
    R5g6b5,
    /// `x1r5g5b5`, `a1r5g5b5`.
    X1r5g5b5,
}

impl PixelFormat {
    /// The format that pixman gives this number (`PIXMAN_FORMAT` in pixman.h, on a little-endian machine).
    pub(super) fn from_pixman(code: u32) -> Option<Self> {
        Some(match code {
            0x2002_0888 | 0x2002_8888 => Self::Bgrx,
            0x2003_0888 | 0x2003_8888 => Self::Rgbx,
            0x2008_0888 | 0x2008_8888 => Self::Xrgb,
            0x2009_0888 | 0x2009_8888 => Self::Xbgr,
            0x1802_0888 => Self::Bgr,
            0x1803_0888 => Self::Rgb,
            0x1002_0565 => Self::R5g6b5,
            0x1002_0555 | 0x1002_1555 => Self::X1r5g5b5,
            _ => return None,
        })
    }

    /// Bytes of a pixel.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Bgrx | Self::Rgbx | Self::Xrgb | Self::Xbgr => 4,
            Self::Bgr | Self::Rgb => 3,
            Self::R5g6b5 | Self::X1r5g5b5 => 2,
        }
    }

    /// Turns a row of pixels into `bgrx`, four bytes each; as many as both have.
    pub(super) fn convert(self, row: &[u8], bgrx: &mut [u8]) {
        let pixels = row.chunks_exact(self.bytes()).zip(bgrx.chunks_exact_mut(4));
        match self {
            Self::Bgrx => pixels.for_each(|(from, to)| to.copy_from_slice(from)),
            Self::Rgbx => each(pixels, |[r, g, b, _]: [u8; 4]| [b, g, r, 0xff]),
            Self::Xrgb => each(pixels, |[_, r, g, b]: [u8; 4]| [b, g, r, 0xff]),
            Self::Xbgr => each(pixels, |[_, b, g, r]: [u8; 4]| [b, g, r, 0xff]),
            Self::Bgr => each(pixels, |[b, g, r]: [u8; 3]| [b, g, r, 0xff]),
            Self::Rgb => each(pixels, |[r, g, b]: [u8; 3]| [b, g, r, 0xff]),
            Self::R5g6b5 => each(pixels, |bytes: [u8; 2]| {
                let value = u16::from_le_bytes(bytes);
                [widen(value, 0, 5), widen(value, 5, 6), widen(value, 11, 5), 0xff]
            }),
            Self::X1r5g5b5 => each(pixels, |bytes: [u8; 2]| {
                let value = u16::from_le_bytes(bytes);
                [widen(value, 0, 5), widen(value, 5, 5), widen(value, 10, 5), 0xff]
            }),
        }
    }
}

fn each<'a, const N: usize>(
    pixels: impl Iterator<Item = (&'a [u8], &'a mut [u8])>,
    convert: impl Fn([u8; N]) -> [u8; 4],
) {
    for (from, to) in pixels {
        if let Ok(from) = from.try_into() {
            to.copy_from_slice(&convert(from));
        }
    }
}

/// The `bits` bits of `value` from `shift` on as a full byte: the highest repeated below, so that white is white.
fn widen(value: u16, shift: u32, bits: u32) -> u8 {
    let value = (value >> shift) & ((1 << bits) - 1);
    let wide = (value << (8 - bits)) | (value >> (2 * bits - 8));
    wide.to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(code: u32, pixel: &[u8]) -> [u8; 3] {
        let mut bgrx = [0; 4];
        PixelFormat::from_pixman(code).expect("known").convert(pixel, &mut bgrx);
        [bgrx[2], bgrx[1], bgrx[0]]
    }

    #[test]
    fn every_format_finds_red_green_and_blue() {
        // Each value as a little-endian machine stores it.
        assert_eq!(convert(0x2002_0888, &0x00_11_22_33_u32.to_le_bytes()), [0x11, 0x22, 0x33]);
        assert_eq!(convert(0x2002_8888, &0x99_11_22_33_u32.to_le_bytes()), [0x11, 0x22, 0x33]);
        assert_eq!(convert(0x2003_0888, &0x00_33_22_11_u32.to_le_bytes()), [0x11, 0x22, 0x33]);
        assert_eq!(convert(0x2008_0888, &0x33_22_11_00_u32.to_le_bytes()), [0x11, 0x22, 0x33]);
        assert_eq!(convert(0x2009_0888, &0x11_22_33_00_u32.to_le_bytes()), [0x11, 0x22, 0x33]);
        assert_eq!(convert(0x1802_0888, &[0x33, 0x22, 0x11]), [0x11, 0x22, 0x33]);
        assert_eq!(convert(0x1803_0888, &[0x11, 0x22, 0x33]), [0x11, 0x22, 0x33]);
        assert_eq!(convert(0x1002_0565, &0xffff_u16.to_le_bytes()), [255, 255, 255]);
        assert_eq!(convert(0x1002_0565, &0xf800_u16.to_le_bytes()), [255, 0, 0]);
        assert_eq!(convert(0x1002_0565, &0x0410_u16.to_le_bytes()), [0, 130, 132]);
        assert_eq!(convert(0x1002_0555, &0x7c00_u16.to_le_bytes()), [255, 0, 0]);
        assert_eq!(convert(0x1002_0555, &0x03e0_u16.to_le_bytes()), [0, 255, 0]);
    }

    #[test]
    fn what_pixman_has_and_qemu_never_shows_is_refused() {
        assert_eq!(PixelFormat::from_pixman(0x0801_8000), None);
        assert_eq!(PixelFormat::from_pixman(0), None);
    }
}
