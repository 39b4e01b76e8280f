//! The pictures QEMU shows: mapped, or sent.

use std::io;
use std::os::fd::AsFd;
use std::sync::{PoisonError, RwLock};

use console::{Rect, Scanout, Size};

use super::mapping::Mapping;
use super::pixel::PixelFormat;

/// Longest side of a picture, in pixels: virtio-gpu's limit.
pub(super) const MAX_SIDE: u32 = 16_384;
/// Bytes of a row that are converted at a time.
const CHUNK: usize = 4096;

/// How a picture lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    size: Size,
    format: PixelFormat,
    offset: usize,
    stride: usize,
}

impl Layout {
    /// Checks what QEMU says of a picture.
    pub(super) fn new(size: Size, offset: u32, stride: u32, pixman_format: u32) -> Result<Self, io::Error> {
        let refuse = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        if size.is_empty() || size.width > MAX_SIDE || size.height > MAX_SIDE {
            return refuse(format!("a picture of {size} pixels"));
        }
        let Some(format) = PixelFormat::from_pixman(pixman_format) else {
            return refuse(format!("a picture of unknown format {pixman_format:#x}"));
        };
        let layout = Self { size, format, offset: offset as usize, stride: stride as usize };
        if layout.stride < layout.row_bytes() {
            return refuse(format!("rows of {stride} bytes in a picture of {size} pixels"));
        }
        Ok(layout)
    }

    /// Width and height.
    pub(super) fn size(&self) -> Size {
        self.size
    }

    /// Bytes from the beginning of the memory to the picture's end.
    fn length(&self) -> usize {
        self.offset + self.stride * (self.size.height as usize - 1) + self.row_bytes()
    }

    fn row_bytes(&self) -> usize {
        self.size.width as usize * self.format.bytes()
    }

    fn at(&self, x: u32, y: u32) -> usize {
        self.offset + y as usize * self.stride + x as usize * self.format.bytes()
    }

    /// Copies `rect` out of memory that `read` reads.
    fn copy(&self, rect: Rect, into: &mut [u8], stride: usize, read: impl Fn(usize, &mut [u8])) {
        assert!(self.size.rect().contains(rect), "a copied rectangle must be inside its picture");
        let width = rect.width as usize * 4;
        for (index, y) in (rect.y..rect.bottom()).enumerate() {
            let row = &mut into[index * stride..][..width];
            if self.format == PixelFormat::Bgrx {
                read(self.at(rect.x, y), row);
            } else {
                self.copy_converted(self.at(rect.x, y), row, &read);
            }
        }
    }

    fn copy_converted(&self, mut at: usize, row: &mut [u8], read: &impl Fn(usize, &mut [u8])) {
        let mut chunk = [0; CHUNK];
        let pixels_at_a_time = CHUNK / self.format.bytes();
        for part in row.chunks_mut(pixels_at_a_time * 4) {
            let bytes = &mut chunk[..part.len() / 4 * self.format.bytes()];
            read(at, bytes);
            self.format.convert(bytes, part);
            at += bytes.len();
        }
    }
}

/// A picture in memory that QEMU shares.
#[derive(Debug)]
pub(super) struct MappedScanout {
    layout: Layout,
    mapping: Mapping,
}

impl MappedScanout {
    pub(super) fn new(memfd: impl AsFd, layout: Layout) -> io::Result<Self> {
        Ok(Self { layout, mapping: Mapping::new(memfd, layout.length())? })
    }
}

impl Scanout for MappedScanout {
    fn size(&self) -> Size {
        self.layout.size
    }

    fn copy_rect(&self, rect: Rect, into: &mut [u8], stride: usize) {
        self.layout.copy(rect, into, stride, |at, bytes| self.mapping.read(at, bytes));
    }
}

/// A picture that QEMU sent, and keeps up to date by sending parts of it.
#[derive(Debug)]
pub(super) struct SentScanout {
    size: Size,
    /// Already in our own format, rows without gaps.
    bgrx: RwLock<Vec<u8>>,
}

impl SentScanout {
    pub(super) fn new(layout: Layout, data: &[u8]) -> io::Result<Self> {
        let size = layout.size;
        let picture = Self { size, bgrx: RwLock::new(vec![0; size.area_bytes()]) };
        picture.update(size.rect(), layout, data)?;
        Ok(picture)
    }

    /// Takes in new pixels for `rect`, which lie in `data` as `layout` says.
    pub(super) fn update(&self, rect: Rect, layout: Layout, data: &[u8]) -> io::Result<()> {
        if !self.size.rect().contains(rect) || layout.size != Size::new(rect.width, rect.height) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an update outside its picture"));
        }
        if data.len() < layout.length() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an update without all of its pixels"));
        }
        let stride = self.size.width as usize * 4;
        let mut bgrx = self.bgrx.write().unwrap_or_else(PoisonError::into_inner);
        let into = &mut bgrx[rect.y as usize * stride + rect.x as usize * 4..];
        layout.copy(layout.size.rect(), into, stride, |at, bytes| bytes.copy_from_slice(&data[at..][..bytes.len()]));
        Ok(())
    }
}

impl Scanout for SentScanout {
    fn size(&self) -> Size {
        self.size
    }

    fn copy_rect(&self, rect: Rect, into: &mut [u8], stride: usize) {
        let stride_here = self.size.width as usize * 4;
        let ours = Layout { size: self.size, format: PixelFormat::Bgrx, offset: 0, stride: stride_here };
        let bgrx = self.bgrx.read().unwrap_or_else(PoisonError::into_inner);
        ours.copy(rect, into, stride, |at, bytes| bytes.copy_from_slice(&bgrx[at..][..bytes.len()]));
    }
}

trait AreaBytes {
    fn area_bytes(self) -> usize;
}

impl AreaBytes for Size {
    fn area_bytes(self) -> usize {
        self.width as usize * self.height as usize * 4
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    const X8R8G8B8: u32 = 0x2002_0888;
    const R5G6B5: u32 = 0x1002_0565;

    fn memfd(bytes: &[u8]) -> File {
        let mut file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).expect("memfd"));
        file.write_all(bytes).expect("written");
        file
    }

    fn copy(scanout: &dyn Scanout, rect: Rect) -> Vec<u8> {
        let stride = rect.width as usize * 4;
        let mut bytes = vec![0; stride * rect.height as usize];
        scanout.copy_rect(rect, &mut bytes, stride);
        bytes
    }

    #[test]
    fn the_second_head_of_a_shared_framebuffer_is_found_by_offset_and_stride() {
        // Two heads of 2x2 pixels side by side in rows of 4 pixels; each byte says where it is.
        let bytes: Vec<u8> = (0..32).collect();
        let layout = Layout::new(Size::new(2, 2), 8, 16, X8R8G8B8).expect("possible");
        let scanout = MappedScanout::new(memfd(&bytes), layout).expect("mapped");
        assert_eq!(copy(&scanout, Rect::new(0, 0, 2, 1)), [8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(copy(&scanout, Rect::new(1, 1, 1, 1)), [28, 29, 30, 31]);
    }

    #[test]
    fn the_caller_chooses_the_distance_of_its_rows() {
        let bytes: Vec<u8> = (0..16).collect();
        let layout = Layout::new(Size::new(2, 2), 0, 8, X8R8G8B8).expect("possible");
        let scanout = MappedScanout::new(memfd(&bytes), layout).expect("mapped");
        let mut into = [0; 14];
        scanout.copy_rect(Rect::new(0, 0, 1, 2), &mut into, 10);
        assert_eq!(into, [0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 8, 9, 10, 11]);
    }

    #[test]
    fn a_converted_row_longer_than_a_chunk_is_whole() {
        let width = 5000;
        let bytes: Vec<u8> = (0..width).flat_map(|x: u16| (x & 0x1f).to_le_bytes()).collect();
        let layout = Layout::new(Size::new(5000, 1), 0, 10_000, R5G6B5).expect("possible");
        let scanout = MappedScanout::new(memfd(&bytes), layout).expect("mapped");
        let pixels = copy(&scanout, Rect::new(3, 0, 4997, 1));
        for (x, pixel) in (3_u16..).zip(pixels.chunks(4)) {
            let blue = u8::try_from(x & 0x1f).expect("five bits");
            assert_eq!(pixel, [blue << 3 | blue >> 2, 0, 0, 255]);
        }
    }

    #[test]
    fn impossible_pictures_are_refused() {
        let new = |width, height, offset, stride| Layout::new(Size::new(width, height), offset, stride, X8R8G8B8);
        assert!(new(0, 1, 0, 4).is_err());
        assert!(new(MAX_SIDE + 1, 1, 0, u32::MAX).is_err());
        assert!(new(2, 2, 0, 7).is_err());
        assert!(Layout::new(Size::new(1, 1), 0, 4, 1).is_err());
        let huge = new(MAX_SIDE, MAX_SIDE, u32::MAX, u32::MAX).expect("only the memory can tell");
        assert!(MappedScanout::new(memfd(b"tiny"), huge).is_err());
        assert!(SentScanout::new(new(2, 2, 0, 8).expect("possible"), &[0; 15]).is_err());
    }

    #[test]
    fn a_sent_picture_takes_updates_inside_it_only() {
        let whole = Layout::new(Size::new(3, 2), 0, 12, X8R8G8B8).expect("possible");
        let scanout = SentScanout::new(whole, &[1; 24]).expect("whole");
        let pixel = Layout::new(Size::new(1, 1), 0, 4, X8R8G8B8).expect("possible");
        scanout.update(Rect::new(2, 1, 1, 1), pixel, &[9; 4]).expect("inside");
        assert_eq!(copy(&scanout, Rect::new(1, 1, 2, 1)), [1, 1, 1, 1, 9, 9, 9, 9]);
        assert!(scanout.update(Rect::new(3, 1, 1, 1), pixel, &[9; 4]).is_err());
        assert!(scanout.update(Rect::new(0, 0, 2, 1), pixel, &[9; 8]).is_err());
    }
}
