//! A client of fast-path pictures, with other people's decoders.

use console::{Rect, Size};
use ironrdp_core::{Decode as _, ReadCursor};
use ironrdp_graphics::rdp6::BitmapStreamDecoder;
use ironrdp_graphics::rfx::{MessageDecoder, TileDecoder};
use ironrdp_graphics::{color_conversion, rle};
use ironrdp_pdu::bitmap::{BitmapData, Compression};
use ironrdp_pdu::fast_path::{FastPathHeader, FastPathUpdate, FastPathUpdatePdu, Fragmentation};
use ironrdp_pdu::surface_commands::{FrameAction, SurfaceBitsPdu, SurfaceCommand};

use crate::graphics::shadow::{TILE, to_usize};

/// What a client of fast-path updates holds.
pub(in crate::graphics) struct FastPathClient {
    pub(in crate::graphics) size: Size,
    /// Red, green, blue; rows from the top.
    pub(in crate::graphics) colors: Vec<[u8; 3]>,
    /// Frames shown and not yet acknowledged.
    pub(in crate::graphics) shown: Vec<u32>,
    /// Length of the longest update so far.
    pub(in crate::graphics) longest: usize,
    frame: Option<u32>,
    remote_fx: MessageDecoder,
    tiles: TileDecoder,
}

impl FastPathClient {
    pub(in crate::graphics) fn new(size: Size) -> Self {
        Self {
            size,
            colors: vec![[9, 8, 7]; to_usize(size.width) * to_usize(size.height)],
            shown: Vec::new(),
            longest: 0,
            frame: None,
            remote_fx: MessageDecoder::new(),
            tiles: TileDecoder::new(),
        }
    }

    /// Some fast-path PDUs.
    pub(in crate::graphics) fn receive(&mut self, mut bytes: &[u8]) {
        let mut update = Vec::new();
        while !bytes.is_empty() {
            let mut cursor = ReadCursor::new(bytes);
            let header = FastPathHeader::decode(&mut cursor).unwrap();
            let end = cursor.pos() + header.data_length;
            let pdu = FastPathUpdatePdu::decode(&mut cursor).unwrap();
            assert_eq!(cursor.pos(), end);
            update.extend_from_slice(pdu.data);
            self.longest = self.longest.max(update.len());
            bytes = &bytes[end..];
            if matches!(pdu.fragmentation, Fragmentation::Single | Fragmentation::Last) {
                let whole = std::mem::take(&mut update);
                self.apply(FastPathUpdate::decode_with_code(&whole, pdu.update_code).unwrap());
            }
        }
        assert!(update.is_empty(), "an update without its end");
        assert_eq!(self.frame, None, "a frame without its end");
    }

    fn apply(&mut self, update: FastPathUpdate<'_>) {
        match update {
            FastPathUpdate::Bitmap(bitmaps) => bitmaps.rectangles.iter().for_each(|bitmap| self.bitmap(bitmap)),
            FastPathUpdate::SurfaceCommands(commands) => commands.into_iter().for_each(|command| match command {
                SurfaceCommand::SetSurfaceBits(bits) => self.surface_bits(&bits),
                SurfaceCommand::FrameMarker(marker) => {
                    let id = marker.frame_id.unwrap();
                    if marker.frame_action == FrameAction::Begin {
                        assert_eq!(self.frame.replace(id), None);
                    } else {
                        assert_eq!(self.frame.take(), Some(id));
                        self.shown.push(id);
                    }
                }
                SurfaceCommand::StreamSurfaceBits(_) => panic!("not expected"),
            }),
            other => panic!("not expected: {other:?}"),
        }
    }

    fn bitmap(&mut self, bitmap: &BitmapData<'_>) {
        let (width, height) = (usize::from(bitmap.width), usize::from(bitmap.height));
        assert!(width.is_multiple_of(4) && width <= 64 && height <= 64);
        let colors = decode_bitmap(bitmap, width, height);
        let rect = &bitmap.rectangle;
        for (row, y) in colors.chunks_exact(width).rev().zip(rect.top..=rect.bottom) {
            for (color, x) in row.iter().zip(rect.left..=rect.right) {
                self.put(x.into(), y.into(), *color);
            }
        }
    }

    fn surface_bits(&mut self, bits: &SurfaceBitsPdu<'_>) {
        let data = &bits.extended_bitmap_data;
        assert_eq!((data.bpp, data.codec_id), (32, 3));
        let (left, top) = (u32::from(bits.destination.left), u32::from(bits.destination.top));
        let message = self.remote_fx.parse(data.data).unwrap();
        for frame in &message.frames {
            for tile in &frame.tile_set.tiles {
                let set = &frame.tile_set;
                let pixels = self.tiles.decode(tile, &set.quants, set.entropy_algorithm).unwrap().to_vec();
                let place = Rect::new(u32::from(tile.x) * TILE, u32::from(tile.y) * TILE, TILE, TILE);
                for rect in &frame.rectangles {
                    let rect = Rect::new(rect.x.into(), rect.y.into(), rect.width.into(), rect.height.into());
                    assert!(Size::new(data.width.into(), data.height.into()).rect().contains(rect));
                    let part = place.intersect(rect);
                    for y in part.y..part.bottom() {
                        for x in part.x..part.right() {
                            let at = to_usize((y - place.y) * TILE + x - place.x) * 4;
                            self.put(left + x, top + y, [pixels[at], pixels[at + 1], pixels[at + 2]]);
                        }
                    }
                }
            }
        }
    }

    fn put(&mut self, x: u32, y: u32, color: [u8; 3]) {
        assert!(x < self.size.width && y < self.size.height, "outside of the desktop");
        self.colors[to_usize(y) * to_usize(self.size.width) + to_usize(x)] = color;
    }
}

/// The colours of a bitmap, rows from the bottom.
fn decode_bitmap(bitmap: &BitmapData<'_>, width: usize, height: usize) -> Vec<[u8; 3]> {
    let mut pixels = bitmap.bitmap_data.to_vec();
    let compressed = bitmap.compression_flags.contains(Compression::BITMAP_COMPRESSION);
    if let Some(header) = &bitmap.compressed_data_header {
        assert_eq!(usize::from(header.main_body_size), bitmap.bitmap_data.len());
    }
    if bitmap.bits_per_pixel == 32 {
        assert!(compressed);
        pixels.clear();
        BitmapStreamDecoder::default()
            .decode_bitmap_stream_to_rgb24(bitmap.bitmap_data, &mut pixels, width, height)
            .unwrap();
        return pixels.chunks_exact(3).map(|p| [p[0], p[1], p[2]]).collect();
    }
    if compressed {
        pixels.clear();
        rle::decompress(bitmap.bitmap_data, &mut pixels, width, height, usize::from(bitmap.bits_per_pixel)).unwrap();
    }
    match bitmap.bits_per_pixel {
        24 => pixels.chunks_exact(3).map(|p| [p[2], p[1], p[0]]).collect(),
        16 => pixels
            .chunks_exact(2)
            .map(|p| color_conversion::rdp_16bit_to_rgb(u16::from_le_bytes([p[0], p[1]])))
            .collect(),
        15 => pixels
            .chunks_exact(2)
            .map(|p| color_conversion::rdp_15bit_to_rgb(u16::from_le_bytes([p[0], p[1]])))
            .collect(),
        other => panic!("{other} bits a pixel"),
    }
}
