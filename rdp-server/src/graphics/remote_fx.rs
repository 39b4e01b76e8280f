//! RemoteFX encoder, image mode: for clients without the graphics pipeline.
//!
//! MS-RDPRFX 2.2.2 (messages) and 3.1.8 (the codec).
//! <https://learn.microsoft.com/openspecs/windows_protocols/ms-rdprfx/edd6c368-4f39-420a-bf14-a0e83c654ab7>
//!
//! Every message stands for itself: it begins with the headers and holds one frame of tiles. Quantities are rounded,
//! not cut off, which is what keeps letters sharp at the same size.

mod entropy;
mod tile;
mod wavelet;

use console::Rect;
use ironrdp_core::{Encode as _, WriteCursor};
use ironrdp_pdu::codecs::rfx::{
    Block, ChannelsPdu, CodecChannel, CodecVersionsPdu, ContextPdu, EntropyAlgorithm, FrameBeginPdu, FrameEndPdu,
    OperatingMode, Quant, RegionPdu, RfxChannel, RfxRectangle, SyncPdu, Tile, TileSetPdu,
};
use ironrdp_pdu::rdp::capability_sets::EntropyBits;

use super::shadow::{Shadow, TILE};
use tile::TileCoder;

/// Bytes of a message beside its tiles and rectangles: headers, frame, region, tile set and two quantisations.
const MESSAGE_OVERHEAD: usize = 160;

/// Bytes of a tile beside its data, and of its rectangle.
const TILE_OVERHEAD: usize = 19 + 8;

/// Most tiles of a message: they and the rectangles are counted with 16 bits.
const MAX_TILES: usize = 4_096;

/// How coarse brightness becomes: hardly, so that the edges of letters stay.
const LUMA: Quant = Quant { ll3: 6, lh3: 6, hl3: 6, hh3: 6, lh2: 6, hl2: 6, hh2: 7, lh1: 7, hl1: 7, hh1: 8 };

/// How coarse colour becomes.
const CHROMA: Quant = Quant { ll3: 6, lh3: 6, hl3: 6, hh3: 6, lh2: 7, hl2: 7, hh2: 8, lh1: 8, hl1: 8, hh1: 9 };

/// Encodes tiles for one client.
pub(super) struct RemoteFx {
    entropy: EntropyAlgorithm,
    /// Longest message.
    limit: usize,
    frame_index: u32,
    coder: TileCoder,
    /// Data of the tiles of a message.
    data: Vec<u8>,
    tiles: Vec<CodedTile>,
}

/// A tile of the message being made, and the part of it that counts.
struct CodedTile {
    rect: Rect,
    /// Where the data of each component ends.
    ends: [usize; 3],
}

impl RemoteFx {
    /// An encoder of messages that are no longer than `limit` bytes, if a tile allows.
    pub(super) fn new(entropy: EntropyBits, limit: usize) -> Self {
        let entropy = match entropy {
            EntropyBits::Rlgr1 => EntropyAlgorithm::Rlgr1,
            EntropyBits::Rlgr3 => EntropyAlgorithm::Rlgr3,
        };
        Self { entropy, limit, frame_index: 0, coder: TileCoder::new(), data: Vec::new(), tiles: Vec::new() }
    }

    /// Hands out messages with the rectangles, each of which lies inside one tile and inside `bounds`.
    pub(super) fn encode(&mut self, shadow: &Shadow, bounds: Rect, boxes: &[Rect], mut message: impl FnMut(&[u8])) {
        for rect in boxes {
            let start = self.data.len();
            let ends = self.coder.encode(shadow, *rect, self.entropy, &mut self.data);
            let length = MESSAGE_OVERHEAD + self.data.len() + TILE_OVERHEAD * (self.tiles.len() + 1);
            if !self.tiles.is_empty() && (length > self.limit || self.tiles.len() == MAX_TILES) {
                let next = self.data.split_off(start);
                message(&self.finish(bounds));
                self.data = next;
                self.tiles.push(CodedTile { rect: *rect, ends: ends.map(|end| end - start) });
            } else {
                self.tiles.push(CodedTile { rect: *rect, ends });
            }
        }
        if !self.tiles.is_empty() {
            message(&self.finish(bounds));
        }
    }

    /// The message with the tiles so far; leaves none.
    fn finish(&mut self, bounds: Rect) -> Vec<u8> {
        let blocks = [
            Block::Sync(SyncPdu),
            Block::CodecVersions(CodecVersionsPdu),
            Block::Channels(ChannelsPdu(vec![RfxChannel {
                width: to_i16(bounds.width),
                height: to_i16(bounds.height),
            }])),
            Block::CodecChannel(CodecChannel::Context(ContextPdu {
                flags: OperatingMode::IMAGE_MODE,
                entropy_algorithm: self.entropy,
            })),
            Block::CodecChannel(CodecChannel::FrameBegin(FrameBeginPdu {
                index: self.frame_index,
                number_of_regions: 1,
            })),
            Block::CodecChannel(CodecChannel::Region(RegionPdu {
                rectangles: self.tiles.iter().map(|tile| rectangle(tile.rect)).collect(),
            })),
            Block::CodecChannel(CodecChannel::TileSet(TileSetPdu {
                entropy_algorithm: self.entropy,
                quants: vec![LUMA, CHROMA],
                tiles: self.tile_pdus(),
            })),
            Block::CodecChannel(CodecChannel::FrameEnd(FrameEndPdu)),
        ];
        let mut message = vec![0; blocks.iter().map(|block| block.size()).sum()];
        let mut cursor = WriteCursor::new(&mut message);
        for block in blocks {
            block.encode(&mut cursor).expect("counts and lengths of a message fit their fields");
        }
        self.frame_index = self.frame_index.wrapping_add(1);
        self.tiles.clear();
        self.data.clear();
        message
    }

    fn tile_pdus(&self) -> Vec<Tile<'_>> {
        let mut start = 0;
        self.tiles
            .iter()
            .map(|tile| {
                let [y_end, cb_end, cr_end] = tile.ends;
                let y_start = std::mem::replace(&mut start, cr_end);
                Tile {
                    y_quant_index: 0,
                    cb_quant_index: 1,
                    cr_quant_index: 1,
                    x: to_u16(tile.rect.x / TILE),
                    y: to_u16(tile.rect.y / TILE),
                    y_data: &self.data[y_start..y_end],
                    cb_data: &self.data[y_end..cb_end],
                    cr_data: &self.data[cb_end..cr_end],
                }
            })
            .collect()
    }
}

fn rectangle(rect: Rect) -> RfxRectangle {
    RfxRectangle { x: to_u16(rect.x), y: to_u16(rect.y), width: to_u16(rect.width), height: to_u16(rect.height) }
}

/// A coordinate of the desktop, which has sides of 15 bits.
fn to_u16(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

fn to_i16(value: u32) -> i16 {
    i16::try_from(value).unwrap_or(i16::MAX)
}

#[cfg(test)]
mod tests;
