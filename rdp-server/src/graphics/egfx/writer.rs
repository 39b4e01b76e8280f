//! The commands of one message, one after the other.

use console::Rect;
use ironrdp_core::{Encode as _, WriteCursor};
use ironrdp_egfx::pdu::{Codec1Type, Color, GfxPdu, PixelFormat, Point, SolidFillPdu, SurfaceToSurfacePdu};
use ironrdp_pdu::geometry::ExclusiveRectangle;

/// Bytes kept from one frame to the next.
const KEPT: usize = 256 * 1024;

/// Most rectangles of one fill.
const MAX_FILLED: usize = 256;

/// `RDPGFX_CMDID_WIRETOSURFACE_1`.
const WIRE_TO_SURFACE_1: u16 = 1;

/// Writes commands; those that fill with one colour are gathered.
pub(super) struct CommandWriter {
    bytes: Vec<u8>,
    fill: Option<SolidFillPdu>,
}

impl CommandWriter {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), fill: None }
    }

    /// Any command as it is: the way for those that have no method of their own, the cache's among them.
    pub(super) fn pdu(&mut self, pdu: &GfxPdu) {
        self.end_fill();
        self.write(pdu);
    }

    /// Fills a rectangle with one colour.
    pub(super) fn solid_fill(&mut self, surface_id: u16, [b, g, r]: [u8; 3], rect: Rect) {
        let fill_pixel = Color { b, g, r, xa: 0xff };
        let joins = self.fill.as_ref().is_some_and(|fill| {
            fill.surface_id == surface_id && fill.fill_pixel == fill_pixel && fill.rectangles.len() < MAX_FILLED
        });
        if !joins {
            self.end_fill();
        }
        let fill = self.fill.get_or_insert(SolidFillPdu { surface_id, fill_pixel, rectangles: Vec::new() });
        fill.rectangles.push(exclusive(rect));
    }

    /// Copies `from` to another place on the same surface, as if everything was read before anything is written.
    pub(super) fn copy(&mut self, surface_id: u16, from: Rect, x: u32, y: u32) {
        self.pdu(&GfxPdu::SurfaceToSurface(SurfaceToSurfacePdu {
            source_surface_id: surface_id,
            destination_surface_id: surface_id,
            source_rectangle: exclusive(from),
            destination_points: vec![Point { x: to_u16(x), y: to_u16(y) }],
        }));
    }

    /// A ClearCodec bitmap, which `encode` appends (2.2.2.1 `RDPGFX_WIRE_TO_SURFACE_PDU_1`).
    pub(super) fn bitmap(&mut self, surface_id: u16, rect: Rect, encode: impl FnOnce(&mut Vec<u8>)) {
        self.end_fill();
        let start = self.bytes.len();
        let rect = exclusive(rect);
        for field in [WIRE_TO_SURFACE_1, 0, 0, 0, surface_id, Codec1Type::ClearCodec.into()] {
            self.bytes.extend_from_slice(&field.to_le_bytes());
        }
        self.bytes.push(PixelFormat::XRgb.into());
        for edge in [rect.left, rect.top, rect.right, rect.bottom] {
            self.bytes.extend_from_slice(&edge.to_le_bytes());
        }
        let length_at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        encode(&mut self.bytes);
        self.patch_length(length_at, length_at + 4);
        self.patch_length(start + 4, start);
    }

    /// All commands so far.
    pub(super) fn finish(&mut self) -> &[u8] {
        self.end_fill();
        &self.bytes
    }

    /// Starts over, and gives back what a large frame took.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
    }

    fn end_fill(&mut self) {
        if let Some(fill) = self.fill.take() {
            self.write(&GfxPdu::SolidFill(fill));
        }
    }

    fn write(&mut self, pdu: &GfxPdu) {
        let start = self.bytes.len();
        self.bytes.resize(start + pdu.size(), 0);
        pdu.encode(&mut WriteCursor::new(&mut self.bytes[start..])).expect("the buffer has the size the PDU asked for");
    }

    /// Writes at `at` how many bytes there are from `start` on.
    fn patch_length(&mut self, at: usize, start: usize) {
        let length = u32::try_from(self.bytes.len() - start).expect("a surface has far fewer bytes than 4 GiB");
        self.bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }
}

fn exclusive(rect: Rect) -> ExclusiveRectangle {
    ExclusiveRectangle {
        left: to_u16(rect.x),
        top: to_u16(rect.y),
        right: to_u16(rect.right()),
        bottom: to_u16(rect.bottom()),
    }
}

/// A coordinate of a surface, which has sides of 16 bits.
fn to_u16(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use ironrdp_core::{Decode as _, ReadCursor};

    use super::*;

    fn read(bytes: &[u8]) -> Vec<GfxPdu> {
        let mut cursor = ReadCursor::new(bytes);
        std::iter::from_fn(|| (!cursor.is_empty()).then(|| GfxPdu::decode(&mut cursor).unwrap())).collect()
    }

    #[test]
    fn a_bitmap_reads_back_as_its_pdu() {
        let mut writer = CommandWriter::new();
        writer.bitmap(7, Rect::new(1, 2, 3, 4), |out| out.extend_from_slice(b"data"));
        let pdus = read(writer.finish());
        let [GfxPdu::WireToSurface1(pdu)] = pdus.as_slice() else { panic!("{pdus:?}") };
        assert_eq!((pdu.surface_id, pdu.codec_id), (7, Codec1Type::ClearCodec));
        assert_eq!(pdu.destination_rectangle, exclusive(Rect::new(1, 2, 3, 4)));
        assert_eq!(pdu.bitmap_data, b"data");
        let length = u32::from_le_bytes(*writer.bytes[4..].first_chunk().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), writer.bytes.len());
    }

    #[test]
    fn fills_of_one_colour_are_one_command() {
        let mut writer = CommandWriter::new();
        for (x, color) in [(0, [0; 3]), (1, [0; 3]), (2, [9; 3]), (3, [0; 3])] {
            writer.solid_fill(1, color, Rect::new(x, 0, 1, 1));
        }
        let counts: Vec<_> = read(writer.finish())
            .iter()
            .map(|pdu| if let GfxPdu::SolidFill(fill) = pdu { fill.rectangles.len() } else { 0 })
            .collect();
        assert_eq!(counts, [2, 1, 1]);
    }
}
