//! Surfaces and what is drawn on them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use ironrdp_egfx::pdu::{Codec1Type, GfxPdu, WireToSurface1Pdu};
use ironrdp_graphics::clearcodec::ClearCodecDecoder;
use ironrdp_pdu::geometry::{ExclusiveRectangle, Rectangle as _};

const PIXEL: usize = 4;

/// How much a client does with what it receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decode {
    /// It looks at rectangles only: the least work beside the server that is measured.
    Rectangles,
    /// It decodes every pixel.
    Pixels,
}

/// The surfaces of the graphics channel and the one that is on the output.
pub struct Picture {
    decode: Decode,
    surfaces: BTreeMap<u16, Surface>,
    cache: BTreeMap<u16, CacheEntry>,
    clear_codec: ClearCodecDecoder,
    output: Option<u16>,
}

struct Surface {
    width: usize,
    height: usize,
    /// Blue, green, red, unused; empty unless pixels are decoded.
    pixels: Vec<u8>,
}

struct CacheEntry {
    width: u16,
    height: u16,
    pixels: Vec<u8>,
}

impl Picture {
    pub(super) fn new(decode: Decode) -> Self {
        Self {
            decode,
            surfaces: BTreeMap::new(),
            cache: BTreeMap::new(),
            clear_codec: ClearCodecDecoder::new(),
            output: None,
        }
    }

    /// Width and height of what is on the output.
    pub fn size(&self) -> Option<(usize, usize)> {
        self.on_output().map(|surface| (surface.width, surface.height))
    }

    /// One row of decoded pixels of the output: blue, green, red, unused.
    pub fn row(&self, y: usize) -> Option<&[u8]> {
        let surface = self.on_output()?;
        surface.pixels.chunks_exact(surface.width * PIXEL).nth(y)
    }

    fn on_output(&self) -> Option<&Surface> {
        self.surfaces.get(&self.output?)
    }

    pub(super) fn apply(&mut self, pdu: &GfxPdu) -> Result<()> {
        match pdu {
            GfxPdu::CreateSurface(create) => {
                let surface = Surface::new(create.width, create.height, self.decode);
                self.surfaces.insert(create.surface_id, surface);
            }
            GfxPdu::DeleteSurface(delete) => {
                self.surfaces.remove(&delete.surface_id);
            }
            GfxPdu::ResetGraphics(_) => {
                self.surfaces.clear();
                self.output = None;
            }
            GfxPdu::MapSurfaceToOutput(map) => self.output = Some(map.surface_id),
            GfxPdu::WireToSurface1(wire) => self.draw(wire)?,
            GfxPdu::SolidFill(fill) => {
                let color = &fill.fill_pixel;
                let pixel = [color.b, color.g, color.r, color.xa];
                for rectangle in &fill.rectangles {
                    self.surface(fill.surface_id)?.fill(rectangle, pixel)?;
                }
            }
            GfxPdu::SurfaceToSurface(copy) => {
                let from = self.surface(copy.source_surface_id)?.copy(&copy.source_rectangle)?;
                for point in &copy.destination_points {
                    self.surface(copy.destination_surface_id)?.put((point.x, point.y), &from)?;
                }
            }
            GfxPdu::SurfaceToCache(store) => {
                let entry = self.surface(store.surface_id)?.copy(&store.source_rectangle)?;
                self.cache.insert(store.cache_slot, entry);
            }
            GfxPdu::CacheToSurface(load) => {
                let entry = self.cache.get(&load.cache_slot).context("an empty cache slot is used")?;
                let surface = self.surfaces.get_mut(&load.surface_id).context("no such surface")?;
                for point in &load.destination_points {
                    surface.put((point.x, point.y), entry)?;
                }
            }
            GfxPdu::EvictCacheEntry(evict) => {
                self.cache.remove(&evict.cache_slot);
            }
            GfxPdu::CapabilitiesConfirm(_) | GfxPdu::StartFrame(_) | GfxPdu::EndFrame(_) => {}
            other => bail!("the server sent {other:?}"),
        }
        Ok(())
    }

    fn draw(&mut self, wire: &WireToSurface1Pdu) -> Result<()> {
        let rectangle = &wire.destination_rectangle;
        ensure!(rectangle.left < rectangle.right && rectangle.top < rectangle.bottom, "an empty rectangle is drawn");
        let (width, height) = (rectangle.width(), rectangle.height());
        let pixels = match (self.decode, wire.codec_id) {
            (Decode::Rectangles, _) => Vec::new(),
            (Decode::Pixels, Codec1Type::Uncompressed) => wire.bitmap_data.clone(),
            (Decode::Pixels, Codec1Type::ClearCodec) => self
                .clear_codec
                .decode(&wire.bitmap_data, width, height)
                .context("a ClearCodec bitmap does not decode")?,
            (Decode::Pixels, other) => bail!("codec {other:?} is not decoded here"),
        };
        let entry = CacheEntry { width, height, pixels };
        self.surface(wire.surface_id)?.put((rectangle.left, rectangle.top), &entry)?;
        Ok(())
    }

    fn surface(&mut self, id: u16) -> Result<&mut Surface> {
        self.surfaces.get_mut(&id).with_context(|| format!("there is no surface {id}"))
    }
}

impl Surface {
    fn new(width: u16, height: u16, decode: Decode) -> Self {
        let (width, height) = (usize::from(width), usize::from(height));
        let pixels = match decode {
            Decode::Rectangles => Vec::new(),
            Decode::Pixels => vec![0; width * height * PIXEL],
        };
        Self { width, height, pixels }
    }

    /// Draws `entry` at a point; returns the number of pixels.
    fn put(&mut self, (left, top): (u16, u16), entry: &CacheEntry) -> Result<u64> {
        let (width, height) = (usize::from(entry.width), usize::from(entry.height));
        let (left, top) = (usize::from(left), usize::from(top));
        ensure!(left + width <= self.width && top + height <= self.height, "a rectangle leaves its surface");
        if !self.pixels.is_empty() {
            ensure!(entry.pixels.len() >= width * height * PIXEL, "a bitmap is too short");
            for (row, from) in entry.pixels.chunks_exact(width * PIXEL).take(height).enumerate() {
                let at = ((top + row) * self.width + left) * PIXEL;
                self.pixels[at..at + width * PIXEL].copy_from_slice(from);
            }
        }
        Ok((width * height) as u64)
    }

    fn fill(&mut self, rectangle: &ExclusiveRectangle, pixel: [u8; PIXEL]) -> Result<u64> {
        let (width, height) = (rectangle.width(), rectangle.height());
        let pixels =
            if self.pixels.is_empty() { Vec::new() } else { pixel.repeat(usize::from(width) * usize::from(height)) };
        self.put((rectangle.left, rectangle.top), &CacheEntry { width, height, pixels })
    }

    fn copy(&self, rectangle: &ExclusiveRectangle) -> Result<CacheEntry> {
        let (width, height) = (rectangle.width(), rectangle.height());
        let (left, right) = (usize::from(rectangle.left), usize::from(rectangle.right));
        ensure!(right <= self.width && usize::from(rectangle.bottom) <= self.height, "a copy from outside a surface");
        let mut pixels = Vec::new();
        if !self.pixels.is_empty() {
            for y in usize::from(rectangle.top)..usize::from(rectangle.bottom) {
                let row = y * self.width;
                pixels.extend_from_slice(&self.pixels[(row + left) * PIXEL..(row + right) * PIXEL]);
            }
        }
        Ok(CacheEntry { width, height, pixels })
    }
}
