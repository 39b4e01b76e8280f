//! ClearCodec encoder: lossless, made for text.
//!
//! MS-RDPEGFX 2.2.4.1 `CLEARCODEC_BITMAP_STREAM`.
//! <https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpegfx/f6c8a114-eaba-489f-9626-f41ad27a19b1>
//!
//! A bitmap is sent in the one of three ways that is the smallest: as runs of colours (the residual layer), as
//! runs and suites of palette indices (the RLEX subcodec), or raw (noise). The layer of cached bands and the
//! glyph cache are not used, so nothing but the sequence number outlives a bitmap.

use console::Rect;

use super::shadow::{PIXEL, to_usize};

/// Most colours of a palette (2.2.4.1.1.3.1.1 `CLEARCODEC_SUBCODEC_RLEX`).
const MAX_PALETTE: usize = 127;

/// Slots of the table that finds a colour's index: a power of two, never more than half full.
const PALETTE_SLOTS: usize = 256;

/// Place, size, length and codec of a subcodec's region.
const SUBCODEC_HEADER: usize = 13;

/// Pixels compared at once.
const BLOCK: usize = 16;
const BLOCK_LENGTH: u32 = 16;

const SUBCODEC_RAW: u8 = 0;
const SUBCODEC_RLEX: u8 = 2;

/// The three colour bytes of a pixel read as a little-endian number.
const COLOR_MASK: u32 = 0x00ff_ffff;

/// Encodes bitmaps for one client, in the order in which it decodes them.
pub(super) struct ClearCodec {
    sequence: u8,
    runs: Vec<Run>,
    palette: Palette,
    rlex: Vec<u8>,
}

/// Pixels of one colour, in reading order, across the ends of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    color: u32,
    length: u32,
}

/// What a bitmap is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// One colour: blue, green, red.
    Solid([u8; 3]),
    /// Anything else; [`ClearCodec::encode`] it.
    Mixed,
}

impl ClearCodec {
    pub(super) fn new() -> Self {
        Self { sequence: 0, runs: Vec::new(), palette: Palette::new(), rlex: Vec::new() }
    }

    /// Reads the bitmap of `rect`, which starts at `pixels` and has rows `stride` bytes apart.
    pub(super) fn read(&mut self, pixels: &[u8], stride: usize, rect: Rect) -> Content {
        let width = to_usize(rect.width) * PIXEL;
        self.runs.clear();
        let mut run = Run { color: color_at(pixels), length: 0 };
        for row in pixels.chunks(stride).take(to_usize(rect.height)) {
            run = self.read_row(&row[..width], run);
        }
        self.runs.push(run);
        match self.runs.as_slice() {
            [only] => Content::Solid(only.bgr()),
            _ => Content::Mixed,
        }
    }

    /// Appends the bitmap that was [`read`](Self::read) last, of the size of `rect`.
    pub(super) fn encode(&mut self, pixels: &[u8], stride: usize, rect: Rect, out: &mut Vec<u8>) {
        out.extend_from_slice(&[0, self.sequence]);
        self.sequence = self.sequence.wrapping_add(1);

        let residual: usize = self.runs.iter().map(|run| 3 + length_size(run.length)).sum();
        let raw = SUBCODEC_HEADER + to_usize(rect.width) * to_usize(rect.height) * 3;
        // A segment takes two bytes and holds at least one run; the suites are what makes it worth trying.
        let rlex = if self.encode_rlex() { SUBCODEC_HEADER + self.rlex.len() } else { usize::MAX };

        if rlex < residual.min(raw) {
            write_layers(0, rlex, out);
            write_subcodec(rect, SUBCODEC_RLEX, self.rlex.len(), out);
            out.extend_from_slice(&self.rlex);
        } else if residual <= raw {
            write_layers(residual, 0, out);
            self.write_residual(residual, out);
        } else {
            write_layers(0, raw, out);
            write_subcodec(rect, SUBCODEC_RAW, raw - SUBCODEC_HEADER, out);
            write_raw(pixels, stride, rect, out);
        }
    }

    /// Adds a row to the runs, of which `run` is the last; returns the new last one.
    fn read_row(&mut self, row: &[u8], mut run: Run) -> Run {
        let mut blocks = row.chunks_exact(BLOCK * PIXEL);
        for block in &mut blocks {
            // Most of a desktop is of one colour for long stretches: many pixels at once.
            let differing = block.chunks_exact(PIXEL).fold(0, |all, pixel| all | (color_at(pixel) ^ run.color));
            if differing == 0 {
                run.length += BLOCK_LENGTH;
            } else {
                run = self.read_pixels(block, run);
            }
        }
        self.read_pixels(blocks.remainder(), run)
    }

    fn read_pixels(&mut self, pixels: &[u8], mut run: Run) -> Run {
        for pixel in pixels.chunks_exact(PIXEL) {
            let color = color_at(pixel);
            if color == run.color {
                run.length += 1;
            } else {
                self.runs.push(run);
                run = Run { color, length: 1 };
            }
        }
        run
    }

    /// 2.2.4.1.1.1 `CLEARCODEC_RESIDUAL_DATA`.
    fn write_residual(&self, size: usize, out: &mut Vec<u8>) {
        out.reserve(size);
        for run in &self.runs {
            out.extend_from_slice(&run.bgr());
            write_length(run.length, out);
        }
    }

    /// Encodes the runs with a palette; `false` when there are too many colours.
    fn encode_rlex(&mut self) -> bool {
        self.palette.clear();
        if self.runs.iter().any(|run| self.palette.index_of(run.color).is_none()) {
            return false;
        }
        let Ok(count) = u8::try_from(self.palette.colors.len()) else { return false };

        self.rlex.clear();
        self.rlex.push(count);
        for color in &self.palette.colors {
            self.rlex.extend_from_slice(&bgr(*color));
        }
        let index_bits = (u8::BITS - count.saturating_sub(1).leading_zeros()).max(1);
        let deepest = u8::MAX >> index_bits;

        let mut runs = self.runs.iter().map(|run| (self.palette.known(run.color), run.length)).peekable();
        while let Some((start, length)) = runs.next() {
            // The last pixel of the run begins the suite; runs of one pixel with the next indices go on with it.
            let mut depth = 0;
            while depth < deepest && runs.next_if_eq(&(start + depth + 1, 1)).is_some() {
                depth += 1;
            }
            self.rlex.push((start + depth) | depth << index_bits);
            write_length(length - 1, &mut self.rlex);
        }
        true
    }
}

impl Run {
    fn bgr(self) -> [u8; 3] {
        bgr(self.color)
    }
}

/// Colours in order of appearance, and a table to find them.
struct Palette {
    colors: Vec<u32>,
    slots: [Slot; PALETTE_SLOTS],
}

#[derive(Clone, Copy)]
struct Slot {
    color: u32,
    index: u8,
}

impl Slot {
    /// No colour has a fourth byte.
    const EMPTY: Self = Self { color: u32::MAX, index: 0 };
}

impl Palette {
    fn new() -> Self {
        Self { colors: Vec::with_capacity(MAX_PALETTE), slots: [Slot::EMPTY; PALETTE_SLOTS] }
    }

    fn clear(&mut self) {
        self.colors.clear();
        self.slots = [Slot::EMPTY; PALETTE_SLOTS];
    }

    /// The index of a colour, new if need be; none when the palette is full.
    fn index_of(&mut self, color: u32) -> Option<u8> {
        let at = self.slot_of(color);
        if self.slots[at].color == color {
            return Some(self.slots[at].index);
        }
        if self.colors.len() == MAX_PALETTE {
            return None;
        }
        let index = u8::try_from(self.colors.len()).ok()?;
        self.slots[at] = Slot { color, index };
        self.colors.push(color);
        Some(index)
    }

    /// The index of a colour that is in the palette.
    fn known(&self, color: u32) -> u8 {
        self.slots[self.slot_of(color)].index
    }

    /// The slot with the colour, or the empty one where it belongs.
    fn slot_of(&self, color: u32) -> usize {
        let hash = color.wrapping_mul(0x9e37_79b1) >> 24;
        let mut at = to_usize(hash) % PALETTE_SLOTS;
        while self.slots[at].color != color && self.slots[at].color != u32::MAX {
            at = (at + 1) % PALETTE_SLOTS;
        }
        at
    }
}

/// 2.2.4.1.1 `CLEARCODEC_COMPOSITE_PAYLOAD`: the lengths of the three layers.
fn write_layers(residual: usize, subcodecs: usize, out: &mut Vec<u8>) {
    for layer in [residual, 0, subcodecs] {
        out.extend_from_slice(&to_u32(layer).to_le_bytes());
    }
}

/// 2.2.4.1.1.3.1 `CLEARCODEC_SUBCODEC`: a region as large as the bitmap.
fn write_subcodec(rect: Rect, id: u8, length: usize, out: &mut Vec<u8>) {
    for side in [0, 0, rect.width, rect.height] {
        let [low, high, ..] = side.to_le_bytes();
        out.extend_from_slice(&[low, high]);
    }
    out.extend_from_slice(&to_u32(length).to_le_bytes());
    out.push(id);
}

fn write_raw(pixels: &[u8], stride: usize, rect: Rect, out: &mut Vec<u8>) {
    for row in pixels.chunks(stride).take(to_usize(rect.height)) {
        let row = &row[..to_usize(rect.width) * PIXEL];
        out.extend(row.chunks_exact(PIXEL).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]));
    }
}

/// A run's length in one byte, or an escape and two, or both escapes and four.
fn write_length(length: u32, out: &mut Vec<u8>) {
    let bytes = length.to_le_bytes();
    match length {
        ..0xff => out.push(bytes[0]),
        0xff..0xffff => out.extend_from_slice(&[0xff, bytes[0], bytes[1]]),
        _ => {
            out.extend_from_slice(&[0xff; 3]);
            out.extend_from_slice(&bytes);
        }
    }
}

const fn length_size(length: u32) -> usize {
    match length {
        ..0xff => 1,
        0xff..0xffff => 3,
        _ => 7,
    }
}

fn color_at(pixel: &[u8]) -> u32 {
    u32::from_le_bytes([pixel[0], pixel[1], pixel[2], pixel[3]]) & COLOR_MASK
}

const fn bgr(color: u32) -> [u8; 3] {
    let [blue, green, red, _] = color.to_le_bytes();
    [blue, green, red]
}

/// A length in a bitmap; none comes near 4 GiB, as surfaces have sides of 16 bits and rectangles are small.
fn to_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use ironrdp_graphics::clearcodec::ClearCodecDecoder;
    use proptest::prelude::*;

    use super::*;

    /// What a bitmap's pixels are drawn from.
    #[derive(Debug, Clone, Copy)]
    enum Style {
        /// Runs of few colours.
        Text { colors: u32, longest: u32 },
        /// All different.
        Noise,
        /// Neighbouring colours: suites.
        Ramp,
    }

    fn styles() -> impl Strategy<Value = Style> {
        prop_oneof![
            (1_u32..300, 1_u32..2_000).prop_map(|(colors, longest)| Style::Text { colors, longest }),
            Just(Style::Noise),
            Just(Style::Ramp),
        ]
    }

    fn draw(style: Style, pixels: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u32::from_le_bytes(*state.to_le_bytes().first_chunk().unwrap())
        };
        let mut out = Vec::with_capacity(pixels * PIXEL);
        while out.len() < pixels * PIXEL {
            let (color, length) = match style {
                Style::Text { colors, longest } => ((next() % colors).wrapping_mul(0x00b5_ad4f), 1 + next() % longest),
                Style::Noise => (next(), 1),
                Style::Ramp => ((to_u32(out.len()) / 4 % 90) * 0x0001_0203, 1 + next() % 7 / 6),
            };
            // The fourth byte means nothing.
            let color = color & COLOR_MASK | next() << 24;
            (0..length).for_each(|_| out.extend_from_slice(&color.to_le_bytes()));
        }
        out.truncate(pixels * PIXEL);
        out
    }

    /// Encodes `rect` of a surface, and checks that it decodes to the same colours; returns the size.
    fn check(
        codec: &mut ClearCodec,
        decoder: &mut ClearCodecDecoder,
        surface: &[u8],
        stride: usize,
        rect: Rect,
    ) -> usize {
        let pixels = &surface[to_usize(rect.y) * stride + to_usize(rect.x) * PIXEL..];
        codec.read(pixels, stride, rect);
        let mut wire = Vec::new();
        codec.encode(pixels, stride, rect, &mut wire);
        let (width, height) = (u16::try_from(rect.width).unwrap(), u16::try_from(rect.height).unwrap());
        let decoded = decoder.decode(&wire, width, height).unwrap();
        let rows = pixels.chunks(stride).take(to_usize(rect.height));
        let sent = rows.flat_map(|row| row[..to_usize(rect.width) * PIXEL].chunks_exact(PIXEL));
        assert!(sent.map(color_at).eq(decoded.chunks_exact(PIXEL).map(color_at)));
        wire.len()
    }

    #[test]
    fn one_colour_is_told_apart_whatever_the_unused_byte_says() {
        let pixels = [1, 2, 3, 0, 1, 2, 3, 255];
        assert_eq!(ClearCodec::new().read(&pixels, 8, Rect::new(0, 0, 2, 1)), Content::Solid([1, 2, 3]));
        assert_eq!(ClearCodec::new().read(&pixels, 4, Rect::new(0, 0, 1, 2)), Content::Solid([1, 2, 3]));
    }

    #[test]
    fn noise_is_never_larger_than_raw() {
        let surface = draw(Style::Noise, 64 * 64, 3);
        let size = check(&mut ClearCodec::new(), &mut ClearCodecDecoder::new(), &surface, 256, Rect::new(0, 0, 64, 64));
        assert!(size <= 64 * 64 * 3 + 14 + SUBCODEC_HEADER);
    }

    #[test]
    fn a_glyph_takes_little_more_than_its_headers() {
        let letter = [0_u8, 0, 0x18, 0x3c, 0x66, 0x66, 0x66, 0x7e, 0x66, 0x66, 0x66, 0x66, 0, 0, 0, 0];
        let lit = letter.iter().flat_map(|row| (0..8).map(move |x| row >> (7 - x) & 1 == 1));
        let surface: Vec<u8> = lit.flat_map(|lit| if lit { [0xaa; 4] } else { [0; 4] }).collect();
        let size = check(&mut ClearCodec::new(), &mut ClearCodecDecoder::new(), &surface, 32, Rect::new(0, 0, 8, 16));
        assert!(size < 110, "{size} bytes");
    }

    proptest! {
        #[test]
        fn every_bitmap_decodes_to_its_colours(
            style in styles(),
            seed in any::<u64>(),
            (x, y, width, height) in (0_u32..5, 0_u32..5, 1_u32..200, 1_u32..90),
        ) {
            let stride = to_usize(x + width + 3) * PIXEL;
            let surface = draw(style, stride / PIXEL * to_usize(y + height), seed);
            let (mut codec, mut decoder) = (ClearCodec::new(), ClearCodecDecoder::new());
            for _ in 0..3 {
                check(&mut codec, &mut decoder, &surface, stride, Rect::new(x, y, width, height));
            }
        }

        #[test]
        fn runs_of_every_length_decode(
            length in prop_oneof![200_u32..300, 65_500_u32..65_600, 1_u32..90_000],
            color in any::<[u8; 3]>(),
        ) {
            let (width, height) = (1_000, length / 1_000 + 1);
            let run = (0..length).flat_map(|_| [color[0], color[1], color[2], 0]);
            let rest = (length..width * height).flat_map(|_| [color[0] ^ 1, 0, 0, 0]);
            let surface: Vec<u8> = run.chain(rest).collect();
            let rect = Rect::new(0, 0, width, height);
            check(&mut ClearCodec::new(), &mut ClearCodecDecoder::new(), &surface, to_usize(width) * PIXEL, rect);
        }
    }
}
