//! A client of the graphics pipeline: strict, and with other people's decoders.

use std::collections::HashMap;

use console::{Rect, Size};
use ironrdp_core::{Decode as _, ReadCursor, encode_vec};
use ironrdp_egfx::pdu::{
    CapabilitiesAdvertisePdu, CapabilitiesV8Flags, CapabilitySet, Codec1Type, FrameAcknowledgePdu, GfxPdu, QueueDepth,
};
use ironrdp_graphics::clearcodec::ClearCodecDecoder;
use ironrdp_graphics::zgfx::Decompressor;
use ironrdp_pdu::geometry::ExclusiveRectangle;

use crate::graphics::shadow::to_usize;

/// What a client of the graphics channel holds.
pub(in crate::graphics) struct GfxClient {
    decompressor: Decompressor,
    clear_codec: ClearCodecDecoder,
    clear_sequence: u8,
    surfaces: HashMap<u16, Surface>,
    output: Option<(u16, Size)>,
    frame: Option<u32>,
    /// Frames shown and not yet acknowledged.
    pub(in crate::graphics) shown: Vec<u32>,
    /// Commands of the last message, by name.
    pub(in crate::graphics) commands: Vec<&'static str>,
}

struct Surface {
    size: Size,
    colors: Vec<u32>,
}

impl GfxClient {
    pub(in crate::graphics) fn new() -> Self {
        Self {
            decompressor: Decompressor::new(),
            clear_codec: ClearCodecDecoder::new(),
            clear_sequence: 0,
            surfaces: HashMap::new(),
            output: None,
            frame: None,
            shown: Vec::new(),
            commands: Vec::new(),
        }
    }

    /// The first message of a client that has version 8 only.
    pub(in crate::graphics) fn advertise() -> Vec<u8> {
        let caps = CapabilitySet::V8 { flags: CapabilitiesV8Flags::empty() };
        encode_vec(&GfxPdu::CapabilitiesAdvertise(CapabilitiesAdvertisePdu::from_typed(&[caps]))).unwrap()
    }

    /// Acknowledges a frame.
    pub(in crate::graphics) fn acknowledge(frame_id: u32) -> Vec<u8> {
        Self::acknowledge_with(frame_id, QueueDepth::Unavailable)
    }

    pub(in crate::graphics) fn acknowledge_with(frame_id: u32, queue_depth: QueueDepth) -> Vec<u8> {
        let ack = FrameAcknowledgePdu { queue_depth, frame_id, total_frames_decoded: 0 };
        encode_vec(&GfxPdu::FrameAcknowledge(ack)).unwrap()
    }

    /// What the user sees.
    pub(in crate::graphics) fn picture(&self) -> (Size, &[u32]) {
        assert_eq!(self.frame, None, "a frame is not finished");
        let (surface, size) = self.output.unwrap();
        assert_eq!(self.surfaces[&surface].size, size);
        (size, &self.surfaces[&surface].colors)
    }

    /// A message of the server.
    pub(in crate::graphics) fn receive(&mut self, message: &[u8]) {
        let mut bytes = Vec::new();
        self.decompressor.decompress(message, &mut bytes).unwrap();
        self.commands.clear();
        let mut cursor = ReadCursor::new(&bytes);
        while !cursor.is_empty() {
            self.apply(GfxPdu::decode(&mut cursor).unwrap());
        }
    }

    fn apply(&mut self, pdu: GfxPdu) {
        let name = match pdu {
            GfxPdu::CapabilitiesConfirm(_) => "confirm",
            GfxPdu::CacheImportReply(reply) => {
                assert!(reply.cache_slots.is_empty());
                "import none"
            }
            GfxPdu::ResetGraphics(reset) => {
                assert_eq!(self.frame, None);
                assert!(self.surfaces.is_empty(), "surfaces outlive a reset");
                let size = Size::new(reset.width, reset.height);
                assert_eq!(reset.monitors.len(), 1);
                assert_eq!(reset.monitors[0].right, size.width.cast_signed() - 1);
                self.output = Some((0, size));
                "reset"
            }
            GfxPdu::CreateSurface(create) => {
                let size = Size::new(create.width.into(), create.height.into());
                // Nothing may be expected of a new surface.
                let colors = vec![0x00ab_cdef; to_usize(size.width) * to_usize(size.height)];
                assert!(self.surfaces.insert(create.surface_id, Surface { size, colors }).is_none());
                "create"
            }
            GfxPdu::DeleteSurface(delete) => {
                assert!(self.surfaces.remove(&delete.surface_id).is_some());
                "delete"
            }
            GfxPdu::MapSurfaceToOutput(map) => {
                self.output.as_mut().unwrap().0 = map.surface_id;
                "map"
            }
            GfxPdu::StartFrame(start) => {
                assert_eq!(self.frame.replace(start.frame_id), None);
                "start"
            }
            GfxPdu::EndFrame(end) => {
                assert_eq!(self.frame.take(), Some(end.frame_id));
                self.shown.push(end.frame_id);
                "end"
            }
            drawing => {
                assert!(self.frame.is_some(), "drawing outside of a frame");
                self.draw(drawing)
            }
        };
        self.commands.push(name);
    }

    fn draw(&mut self, pdu: GfxPdu) -> &'static str {
        match pdu {
            GfxPdu::WireToSurface1(wire) => {
                assert_eq!(wire.codec_id, Codec1Type::ClearCodec);
                assert_eq!(wire.bitmap_data[1], self.clear_sequence);
                self.clear_sequence = self.clear_sequence.wrapping_add(1);
                let rect = inclusive(&wire.destination_rectangle);
                let (width, height) = (u16::try_from(rect.width).unwrap(), u16::try_from(rect.height).unwrap());
                let pixels = self.clear_codec.decode(&wire.bitmap_data, width, height).unwrap();
                let colors: Vec<u32> =
                    pixels.chunks_exact(4).map(|p| u32::from_le_bytes([p[0], p[1], p[2], 0])).collect();
                self.surface(wire.surface_id).put(rect, &colors);
                "bitmap"
            }
            GfxPdu::SolidFill(fill) => {
                let color = fill.fill_pixel;
                let color = u32::from_le_bytes([color.b, color.g, color.r, 0]);
                for rect in fill.rectangles.iter().map(inclusive) {
                    let colors = vec![color; to_usize(rect.width) * to_usize(rect.height)];
                    self.surface(fill.surface_id).put(rect, &colors);
                }
                "fill"
            }
            GfxPdu::SurfaceToSurface(copy) => {
                let rect = inclusive(&copy.source_rectangle);
                let colors = self.surface(copy.source_surface_id).get(rect);
                for point in copy.destination_points {
                    let target = Rect::new(point.x.into(), point.y.into(), rect.width, rect.height);
                    self.surface(copy.destination_surface_id).put(target, &colors);
                }
                "copy"
            }
            other => panic!("not expected: {other:?}"),
        }
    }

    fn surface(&mut self, id: u16) -> &mut Surface {
        self.surfaces.get_mut(&id).unwrap()
    }
}

impl Surface {
    fn put(&mut self, rect: Rect, colors: &[u32]) {
        for (row, y) in colors.chunks_exact(to_usize(rect.width)).zip(rect.y..) {
            let start = self.at(rect, y);
            self.colors[start..start + row.len()].copy_from_slice(row);
        }
    }

    fn get(&self, rect: Rect) -> Vec<u32> {
        (rect.y..rect.bottom())
            .flat_map(|y| &self.colors[self.at(rect, y)..][..to_usize(rect.width)])
            .copied()
            .collect()
    }

    fn at(&self, rect: Rect, y: u32) -> usize {
        assert!(self.size.rect().contains(rect) && !rect.is_empty(), "{rect:?} on a surface of {}", self.size);
        to_usize(y) * to_usize(self.size.width) + to_usize(rect.x)
    }
}

fn inclusive(rect: &ExclusiveRectangle) -> Rect {
    Rect::new(
        rect.left.into(),
        rect.top.into(),
        u32::from(rect.right).checked_sub(rect.left.into()).unwrap(),
        u32::from(rect.bottom).checked_sub(rect.top.into()).unwrap(),
    )
}
