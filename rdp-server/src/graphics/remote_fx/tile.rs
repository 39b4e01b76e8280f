//! One tile: colours, wavelets, quantisation, entropy.

use console::Rect;
use ironrdp_graphics::color_conversion::to_64x64_ycbcr_tile;
use ironrdp_graphics::image_processing::PixelFormat;
use ironrdp_graphics::subband_reconstruction;
use ironrdp_pdu::codecs::rfx::{EntropyAlgorithm, Quant};

use super::super::shadow::{PIXEL, Shadow, TILE, to_usize};
use super::{CHROMA, LUMA, entropy, wavelet};

/// Pixels of a tile, and coefficients of each of its components.
pub(super) const PIXELS: usize = 64 * 64;

/// Where the coarsest sub-band begins, which is sent as differences.
const LL3: usize = PIXELS - 64;

/// Encodes tiles one by one.
pub(super) struct TileCoder {
    pixels: Vec<u8>,
    components: Box<[[i16; PIXELS]; 3]>,
    scratch: Box<[i16; PIXELS]>,
}

impl TileCoder {
    pub(super) fn new() -> Self {
        Self { pixels: vec![0; PIXELS * PIXEL], components: Box::new([[0; PIXELS]; 3]), scratch: Box::new([0; PIXELS]) }
    }

    /// Appends the tile that holds `rect`; returns where its brightness and its two colours end.
    pub(super) fn encode(
        &mut self,
        shadow: &Shadow,
        rect: Rect,
        mode: EntropyAlgorithm,
        out: &mut Vec<u8>,
    ) -> [usize; 3] {
        self.read(shadow, rect);
        let stride = TILE * 4;
        let [y, cb, cr] = &mut *self.components;
        to_64x64_ycbcr_tile(&self.pixels, TILE, TILE, stride, PixelFormat::BgrX32, y, cb, cr)
            .expect("the buffers have the size of a tile");
        let mut ends = [0; 3];
        for ((component, quant), end) in self.components.iter_mut().zip([LUMA, CHROMA, CHROMA]).zip(&mut ends) {
            wavelet::transform(component, &mut self.scratch);
            quantise(component, &quant);
            subband_reconstruction::encode(&mut component[LL3..]);
            entropy::encode(mode, component, out);
            *end = out.len();
        }
        ends
    }

    /// Takes the tile's pixels; beyond the edge of the desktop the last ones are repeated, which costs nothing.
    fn read(&mut self, shadow: &Shadow, rect: Rect) {
        let tile = Rect::new(rect.x / TILE * TILE, rect.y / TILE * TILE, TILE, TILE).intersect(shadow.size().rect());
        let (pixels, stride) = (shadow.pixels_from(tile), shadow.stride());
        let (width, height) = (to_usize(tile.width) * PIXEL, to_usize(tile.height));
        let row_bytes = to_usize(TILE) * PIXEL;
        for (y, row) in self.pixels.chunks_exact_mut(row_bytes).enumerate() {
            let source = &pixels[y.min(height - 1) * stride..][..width];
            row[..width].copy_from_slice(source);
            for beyond in row[width..].chunks_exact_mut(PIXEL) {
                beyond.copy_from_slice(&source[width - PIXEL..]);
            }
        }
    }
}

/// Divides each sub-band by its power of two, rounding to the nearest.
fn quantise(component: &mut [i16; PIXELS], quant: &Quant) {
    let bands = [
        (1024, quant.hl1),
        (1024, quant.lh1),
        (1024, quant.hh1),
        (256, quant.hl2),
        (256, quant.lh2),
        (256, quant.hh2),
        (64, quant.hl3),
        (64, quant.lh3),
        (64, quant.hh3),
        (64, quant.ll3),
    ];
    let mut rest = component.as_mut_slice();
    for (length, factor) in bands {
        let (band, after) = rest.split_at_mut(length);
        // The fixed point of the colours is five bits, and 6 is the finest factor.
        let shift = factor - 1;
        let half = 1 << (shift - 1);
        for value in band {
            *value = value.saturating_add(half) >> shift;
        }
        rest = after;
    }
}
