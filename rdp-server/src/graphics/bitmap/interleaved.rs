//! Interleaved run-length encoding of 15-, 16- and 24-bit bitmaps.
//!
//! MS-RDPBCGR 2.2.9.1.1.3.1.2.4 `RLE_BITMAP_STREAM`.
//! <https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpbcgr/b3b60873-16a8-4cbc-8aaa-5f0a93083280>
//!
//! Every order is taken greedily, by how many bytes it saves over plain pixels. A pixel is compared with the one
//! above it: equal is "background", different by the foreground colour is "foreground".

const BACKGROUND_RUN: Order = Order::regular(0x00, 0xf0);
const FOREGROUND_RUN: Order = Order::regular(0x20, 0xf1);
const COLOR_RUN: Order = Order::regular(0x60, 0xf3);
const COLOR_IMAGE: Order = Order::regular(0x80, 0xf4);
const SET_FOREGROUND_RUN: Order = Order { short: 0xc0, short_max: 15, long: 0xf6 };

const IMAGE: u8 = 0x40;
const LONG_IMAGE: u8 = 0xf2;

/// Background pixels in a row after which an image of bits ends: a run is shorter.
const RUN_IN_IMAGE: usize = 24;

/// Bytes an order must save to interrupt plain pixels, which start again with a header of their own.
const WORTH_AN_ORDER: usize = 2;

/// Most pixels of one order.
const MAX_LENGTH: usize = 0xffff;

/// A kind of order whose header holds its length.
struct Order {
    short: u8,
    short_max: u8,
    long: u8,
}

/// The pixels of a bitmap in the order in which they are encoded: rows from the bottom.
struct Source<'a> {
    pixels: &'a [u32],
    width: usize,
    pixel_bytes: usize,
    foreground: u32,
}

/// What could be encoded next, and how many bytes it would save.
enum Next {
    Background(usize),
    Foreground(usize),
    SetForeground(usize),
    Color(usize),
    Image(usize),
}

/// Appends the encoding of `pixels`, rows of `width` from the bottom, each of the depth's bytes.
pub(super) fn encode(pixels: &[u32], width: usize, pixel_bytes: usize, white: u32, out: &mut Vec<u8>) {
    let mut source = Source { pixels, width, pixel_bytes, foreground: white };
    let (mut at, mut plain) = (0, 0);
    while at < pixels.len() {
        // The decoder looks once for the end of the first row: no order may cross it.
        if at == width {
            source.write_plain(plain, at, out);
            plain = at;
        }
        let end = (if at < width { width } else { pixels.len() }).min(at + MAX_LENGTH);
        let interrupts = if plain == at { 1 } else { WORTH_AN_ORDER };
        match source.best(at, end).filter(|(saved, _)| *saved >= interrupts) {
            None => at += 1,
            Some((_, next)) => {
                source.write_plain(plain, at, out);
                at += source.write(at, &next, out);
                plain = at;
            }
        }
    }
    source.write_plain(plain, at, out);
}

impl Source<'_> {
    /// The order that saves the most bytes, if any saves some.
    fn best(&self, at: usize, end: usize) -> Option<(usize, Next)> {
        let background = self.count(at, end, |at| self.difference(at) == 0);
        if background >= RUN_IN_IMAGE {
            return Some((background * self.pixel_bytes - 3, Next::Background(background)));
        }
        let foreground = self.count(at, end, |at| self.difference(at) == self.foreground);
        let difference = self.difference(at);
        let set_foreground = self.count(at, end, |at| self.difference(at) == difference);
        let color = self.count(at, end, |next| self.pixels[next] == self.pixels[at]);
        let image = self.image(at, end);
        let candidates = [
            (background, run_bytes(background, 31), Next::Background(background)),
            (foreground, run_bytes(foreground, 31), Next::Foreground(foreground)),
            (color, run_bytes(color, 31) + self.pixel_bytes, Next::Color(color)),
            (set_foreground, run_bytes(set_foreground, 15) + self.pixel_bytes, Next::SetForeground(set_foreground)),
            (image, 3 + image.div_ceil(8), Next::Image(image)),
        ];
        candidates
            .into_iter()
            .filter_map(|(length, cost, next)| Some(((length * self.pixel_bytes).checked_sub(cost)?, next)))
            .max_by_key(|(saved, _)| *saved)
    }

    /// How many pixels are background or foreground, up to a long run of background.
    fn image(&self, start: usize, end: usize) -> usize {
        let mut background = 0;
        for at in start..end {
            match self.difference(at) {
                0 => background += 1,
                difference if difference == self.foreground => background = 0,
                _ => return at - start,
            }
            if background == RUN_IN_IMAGE {
                return at + 1 - start - background;
            }
        }
        end - start
    }

    fn count(&self, start: usize, end: usize, is: impl Fn(usize) -> bool) -> usize {
        (start..end).take_while(|at| is(*at)).count()
    }

    /// A pixel's difference to the one above it; above the first row all is black.
    fn difference(&self, at: usize) -> u32 {
        self.pixels[at] ^ at.checked_sub(self.width).map_or(0, |above| self.pixels[above])
    }

    /// Writes an order; returns its length.
    fn write(&mut self, at: usize, next: &Next, out: &mut Vec<u8>) -> usize {
        match *next {
            Next::Background(length) => {
                BACKGROUND_RUN.write(length, out);
                length
            }
            Next::Foreground(length) => {
                FOREGROUND_RUN.write(length, out);
                length
            }
            Next::SetForeground(length) => {
                SET_FOREGROUND_RUN.write(length, out);
                self.foreground = self.difference(at);
                self.write_pixel(self.foreground, out);
                length
            }
            Next::Color(length) => {
                COLOR_RUN.write(length, out);
                self.write_pixel(self.pixels[at], out);
                length
            }
            Next::Image(length) => {
                self.write_image(at, length, out);
                length
            }
        }
    }

    /// One bit a pixel, set for the foreground.
    fn write_image(&self, at: usize, length: usize, out: &mut Vec<u8>) {
        let [low, high, ..] = length.to_le_bytes();
        match length {
            // Counted in bytes of bits, or less one.
            8..=248 if length.is_multiple_of(8) => out.push(IMAGE | (low / 8)),
            1..=256 => out.extend_from_slice(&[IMAGE, low.wrapping_sub(1)]),
            _ => out.extend_from_slice(&[LONG_IMAGE, low, high]),
        }
        for start in (at..at + length).step_by(8) {
            let bits = (start..(start + 8).min(at + length)).enumerate();
            out.push(bits.fold(0, |byte, (bit, at)| byte | u8::from(self.difference(at) != 0) << bit));
        }
    }

    /// Writes pixels as they are.
    fn write_plain(&self, start: usize, end: usize, out: &mut Vec<u8>) {
        if start < end {
            COLOR_IMAGE.write(end - start, out);
            self.pixels[start..end].iter().for_each(|pixel| self.write_pixel(*pixel, out));
        }
    }

    fn write_pixel(&self, pixel: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&pixel.to_le_bytes()[..self.pixel_bytes]);
    }
}

impl Order {
    const fn regular(short: u8, long: u8) -> Self {
        Self { short, short_max: 31, long }
    }

    /// The header: the length in its low bits, or in the next byte less what would have fitted, or in two bytes.
    fn write(&self, length: usize, out: &mut Vec<u8>) {
        let beyond = usize::from(self.short_max) + 1;
        let [low, high, ..] = length.to_le_bytes();
        match length.checked_sub(beyond).map(u8::try_from) {
            None => out.push(self.short | low),
            Some(Ok(more)) => out.extend_from_slice(&[self.short, more]),
            Some(Err(_)) => out.extend_from_slice(&[self.long, low, high]),
        }
    }
}

/// Bytes of a run's header.
const fn run_bytes(length: usize, short_max: usize) -> usize {
    if length <= short_max { 1 } else { 3 }
}
