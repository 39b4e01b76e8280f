//! Bitmap updates, for clients that have nothing better.
//!
//! MS-RDPBCGR 2.2.9.1.1.3.1.2.1 `TS_UPDATE_BITMAP_DATA`, in its fast-path form 2.2.9.1.2.1.2.
//! <https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpbcgr/d681bb11-f3b5-4add-b092-19fe7075f9e3>

mod interleaved;

use console::Rect;
use ironrdp_core::{Encode as _, WriteCursor};
use ironrdp_graphics::rdp6::BitmapStreamEncoder;
use ironrdp_pdu::bitmap::{BitmapData, CompressedDataHeader, Compression};
use ironrdp_pdu::fast_path::UpdateCode;
use ironrdp_pdu::geometry::InclusiveRectangle;

use super::client::{BitmapHeader, ColorDepth};
use super::shadow::{PIXEL, Shadow, to_usize};
use crate::fast_path::{MAX_FRAGMENT, write_update};

/// Kind and number of rectangles, before them.
const UPDATE_HEADER: usize = 4;

/// `UPDATETYPE_BITMAP`.
const UPDATE_TYPE: u16 = 1;

/// Encodes bitmaps for one client.
pub(super) struct BitmapEncoder {
    depth: ColorDepth,
    header: BitmapHeader,
    /// Pixels of a bitmap, rows from the bottom.
    pixels: Vec<u32>,
    data: Vec<u8>,
    update: Vec<u8>,
    count: u16,
}

impl BitmapEncoder {
    pub(super) fn new(depth: ColorDepth, header: BitmapHeader) -> Self {
        Self { depth, header, pixels: Vec::new(), data: Vec::new(), update: Vec::new(), count: 0 }
    }

    /// Fast-path PDUs with the rectangles, each of which lies inside one tile and inside `bounds`.
    pub(super) fn encode(&mut self, shadow: &Shadow, bounds: Rect, boxes: &[Rect]) -> Vec<u8> {
        let mut out = Vec::new();
        self.begin_update();
        for rect in boxes {
            self.add(shadow, bounds, *rect, &mut out);
        }
        self.end_update(&mut out);
        out
    }

    fn add(&mut self, shadow: &Shadow, bounds: Rect, rect: Rect, out: &mut Vec<u8>) {
        // Widths are multiples of four pixels; what lies beyond the desktop is cut off by the client.
        let left = rect.x / 4 * 4;
        let rect = Rect::new(left, rect.y, (rect.right() - left).next_multiple_of(4), rect.height);
        let visible = rect.intersect(bounds);
        self.read(shadow, visible, rect.width);
        let compression = self.compress(rect);

        let compressed_data_header = (compression == Compression::BITMAP_COMPRESSION).then(|| CompressedDataHeader {
            main_body_size: to_u16(self.data.len()),
            scan_width: to_u16(to_usize(rect.width)),
            uncompressed_size: to_u16(self.pixels.len() * self.pixel_bytes()),
        });
        let bitmap = BitmapData {
            rectangle: InclusiveRectangle {
                left: to_u16(to_usize(visible.x)),
                top: to_u16(to_usize(visible.y)),
                right: to_u16(to_usize(visible.right() - 1)),
                bottom: to_u16(to_usize(visible.bottom() - 1)),
            },
            width: to_u16(to_usize(rect.width)),
            height: to_u16(to_usize(rect.height)),
            bits_per_pixel: self.depth.bits(),
            compression_flags: compression,
            compressed_data_header,
            bitmap_data: &self.data,
        };
        let size = bitmap.size();
        if self.update.len() + size > MAX_FRAGMENT && self.count > 0 {
            let full = std::mem::take(&mut self.count);
            finish_update(&mut self.update, full, out);
            self.update.resize(UPDATE_HEADER, 0);
        }
        let start = self.update.len();
        self.update.resize(start + size, 0);
        bitmap.encode(&mut WriteCursor::new(&mut self.update[start..])).expect("widths are multiples of four");
        self.count += 1;
    }

    /// Takes the pixels of a rectangle in the client's depth, rows from the bottom; the last one of each row is
    /// repeated up to `width`.
    fn read(&mut self, shadow: &Shadow, rect: Rect, width: u32) {
        self.pixels.clear();
        let (pixels, stride) = (shadow.pixels_from(rect), shadow.stride());
        for y in (0..to_usize(rect.height)).rev() {
            let row = &pixels[y * stride..][..to_usize(rect.width) * PIXEL];
            self.pixels.extend(row.chunks_exact(PIXEL).map(|pixel| reduce(self.depth, pixel)));
            let last = self.pixels.last().copied().unwrap_or(0);
            self.pixels.resize(self.pixels.len() + to_usize(width - rect.width), last);
        }
    }

    /// Fills `data`, and says in which form.
    fn compress(&mut self, rect: Rect) -> Compression {
        self.data.clear();
        if self.depth == ColorDepth::Bpp32 {
            self.compress_planes(rect);
        } else {
            let white = reduce(self.depth, &[0xff; PIXEL]);
            interleaved::encode(&self.pixels, to_usize(rect.width), self.pixel_bytes(), white, &mut self.data);
            if self.data.len() >= self.pixels.len() * self.pixel_bytes() {
                self.write_plain();
                return Compression::empty();
            }
        }
        match self.header {
            BitmapHeader::Present => Compression::BITMAP_COMPRESSION,
            BitmapHeader::Omitted => Compression::BITMAP_COMPRESSION | Compression::NO_BITMAP_COMPRESSION_HDR,
        }
    }

    fn write_plain(&mut self) {
        let bytes = self.pixel_bytes();
        self.data.clear();
        for pixel in &self.pixels {
            self.data.extend_from_slice(&pixel.to_le_bytes()[..bytes]);
        }
    }

    /// RDP 6.0 planar: each colour by itself, run-length encoded unless that is larger.
    fn compress_planes(&mut self, rect: Rect) {
        let plain = 2 + self.pixels.len() * 3;
        // Runs of noise are a little longer than the noise.
        self.data.resize(plain * 2, 0);
        let mut encoder = BitmapStreamEncoder::new(to_usize(rect.width), to_usize(rect.height));
        let plane = |at: usize| self.pixels.iter().map(move |pixel| pixel.to_le_bytes()[at]);
        let runs = encoder.encode_channels_stream((plane(2), plane(1), plane(0)), &mut self.data, true);
        let length = match runs {
            Ok(length) if length < plain => length,
            _ => encoder
                .encode_channels_stream((plane(2), plane(1), plane(0)), &mut self.data, false)
                .expect("there is room for all pixels"),
        };
        self.data.truncate(length);
    }

    fn pixel_bytes(&self) -> usize {
        usize::from(self.depth.bits().div_ceil(8))
    }

    fn begin_update(&mut self) {
        self.update.clear();
        self.update.resize(UPDATE_HEADER, 0);
        self.count = 0;
    }

    fn end_update(&mut self, out: &mut Vec<u8>) {
        let count = std::mem::take(&mut self.count);
        if count > 0 {
            finish_update(&mut self.update, count, out);
        }
    }
}

/// Writes the header of an update, and the update; leaves nothing.
fn finish_update(update: &mut Vec<u8>, count: u16, out: &mut Vec<u8>) {
    update[..2].copy_from_slice(&UPDATE_TYPE.to_le_bytes());
    update[2..UPDATE_HEADER].copy_from_slice(&count.to_le_bytes());
    write_update(UpdateCode::Bitmap, update, out);
    update.clear();
}

/// A pixel in fewer bits.
fn reduce(depth: ColorDepth, pixel: &[u8]) -> u32 {
    let [blue, green, red] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
    match depth {
        ColorDepth::Bpp15 => red >> 3 << 10 | green >> 3 << 5 | blue >> 3,
        ColorDepth::Bpp16 => red >> 3 << 11 | green >> 2 << 5 | blue >> 3,
        ColorDepth::Bpp24 | ColorDepth::Bpp32 => red << 16 | green << 8 | blue,
    }
}

/// A coordinate of the desktop or a length in a tile: both have 16 bits.
fn to_u16(value: usize) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
