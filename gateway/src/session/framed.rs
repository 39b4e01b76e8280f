//! A picture of one size on a desktop of another.

use std::sync::Arc;

use console::{Rect, Scanout, Size};

/// The upper left of a picture, with black where it ends: every pixel stays where the pointer would hit it.
pub(super) struct Framed {
    size: Size,
    inside: Arc<dyn Scanout>,
}

impl Framed {
    /// `inside` as a picture of `size`.
    pub(super) fn new(inside: Arc<dyn Scanout>, size: Size) -> Self {
        Self { size, inside }
    }
}

impl Scanout for Framed {
    fn size(&self) -> Size {
        self.size
    }

    fn copy_rect(&self, rect: Rect, into: &mut [u8], stride: usize) {
        let there = rect.intersect(self.inside.size().rect());
        if there != rect {
            for row in into.chunks_mut(stride.max(1)).take(rect.height as usize) {
                row[..rect.width as usize * 4].fill(0);
            }
        }
        if !there.is_empty() {
            // Cut off at the right and below only, so it begins where `rect` does.
            self.inside.copy_rect(there, into, stride);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture whose pixels are all the same.
    struct Plain(Size);

    impl Scanout for Plain {
        fn size(&self) -> Size {
            self.0
        }

        fn copy_rect(&self, rect: Rect, into: &mut [u8], stride: usize) {
            assert!(self.0.rect().contains(rect));
            for row in into.chunks_mut(stride).take(rect.height as usize) {
                row[..rect.width as usize * 4].fill(7);
            }
        }
    }

    fn copied(inside: Size, size: Size, rect: Rect) -> Vec<u8> {
        let mut pixels = vec![9; rect.area() as usize * 4];
        Framed::new(Arc::new(Plain(inside)), size).copy_rect(rect, &mut pixels, rect.width as usize * 4);
        pixels.chunks(4).map(|pixel| pixel[0]).collect()
    }

    #[test]
    fn where_the_picture_ends_it_is_black() {
        let (small, large) = (Size::new(3, 2), Size::new(4, 3));
        assert_eq!(copied(small, large, large.rect()), [7, 7, 7, 0, 7, 7, 7, 0, 0, 0, 0, 0]);
        assert_eq!(copied(small, large, Rect::new(2, 1, 2, 2)), [7, 0, 0, 0]);
        assert_eq!(copied(small, large, Rect::new(0, 2, 2, 1)), [0, 0]);
        assert_eq!(copied(large, small, small.rect()), [7; 6]);
    }
}
