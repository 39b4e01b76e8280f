//! A picture of text: what a client sees while there is no guest to look at.

use std::convert::Infallible;

use console::{Rect, Scanout, Size};
use embedded_graphics::mono_font::iso_8859_1::{FONT_9X18_BOLD, FONT_10X20};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::text::{Alignment, Text};

/// Distance of two lines, in pixels.
const LINE_HEIGHT: i32 = 28;
const BACKGROUND: Rgb888 = Rgb888::new(0x10, 0x18, 0x20);
const TITLE: Rgb888 = Rgb888::new(0xff, 0xff, 0xff);
const TEXT: Rgb888 = Rgb888::new(0xa8, 0xb4, 0xc0);

/// A still picture of a title and some lines, in the middle of a monitor.
pub(super) struct Notice {
    size: Size,
    bgrx: Vec<u8>,
}

impl Notice {
    /// Draws `title` over `lines` on a monitor of `size`.
    pub(super) fn new(size: Size, title: &str, lines: &[String]) -> Self {
        let pixels = size.rect().area() as usize;
        let mut notice = Self { size, bgrx: vec![0; pixels * 4] };
        let Ok(()) = notice.clear(BACKGROUND);
        let left = i32::try_from(size.width / 2).unwrap_or(0);
        let middle = i32::try_from(size.height / 2).unwrap_or(0);
        let height = LINE_HEIGHT * i32::try_from(lines.len()).unwrap_or(0);
        notice.write(title, Point::new(left, middle - height), &FONT_10X20, TITLE);
        for (line, at) in lines.iter().zip(1..) {
            notice.write(line, Point::new(left, middle - height + at * LINE_HEIGHT), &FONT_9X18_BOLD, TEXT);
        }
        notice
    }

    fn write(&mut self, text: &str, at: Point, font: &MonoFont<'_>, color: Rgb888) {
        let style = MonoTextStyle::new(font, color);
        let Ok(_) = Text::with_alignment(text, at, style, Alignment::Center).draw(self);
    }
}

impl OriginDimensions for Notice {
    fn size(&self) -> embedded_graphics::geometry::Size {
        embedded_graphics::geometry::Size::new(self.size.width, self.size.height)
    }
}

impl DrawTarget for Notice {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(at, color) in pixels {
            let (Ok(x), Ok(y)) = (u32::try_from(at.x), u32::try_from(at.y)) else { continue };
            if x >= self.size.width || y >= self.size.height {
                continue;
            }
            let at = (y as usize * self.size.width as usize + x as usize) * 4;
            self.bgrx[at..at + 4].copy_from_slice(&[color.b(), color.g(), color.r(), 0]);
        }
        Ok(())
    }
}

impl Scanout for Notice {
    fn size(&self) -> Size {
        self.size
    }

    fn copy_rect(&self, rect: Rect, into: &mut [u8], stride: usize) {
        let bytes = rect.width as usize * 4;
        for (row, y) in (rect.y..rect.bottom()).enumerate() {
            let from = (y as usize * self.size.width as usize + rect.x as usize) * 4;
            into[row * stride..row * stride + bytes].copy_from_slice(&self.bgrx[from..from + bytes]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_in_the_middle_and_the_rest_is_background() {
        let notice = Notice::new(Size::new(320, 200), "off", &["start it".to_owned()]);
        let mut middle = vec![0; 160 * 60 * 4];
        notice.copy_rect(Rect::new(80, 70, 160, 60), &mut middle, 160 * 4);
        assert!(middle.chunks(4).any(|pixel| pixel == [0xff, 0xff, 0xff, 0]));
        let mut corner = vec![0; 4];
        notice.copy_rect(Rect::new(319, 199, 1, 1), &mut corner, 4);
        assert_eq!(corner, [0x20, 0x18, 0x10, 0]);
    }

    #[test]
    fn a_tiny_monitor_cuts_the_text_off() {
        let notice = Notice::new(Size::new(3, 2), "a long title", &[]);
        assert_eq!(console::Scanout::size(&notice), Size::new(3, 2));
    }
}
