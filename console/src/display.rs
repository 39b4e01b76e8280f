//! A monitor's picture and its cursor.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::damage::DamageSet;
use crate::geometry::{Point, Rect, Size};

/// Longest side of a cursor, in pixels: the limit of RDP's large pointers (MS-RDPBCGR 2.2.9.1.2.1.11).
pub const MAX_CURSOR_SIDE: u32 = 384;

/// The live picture of one monitor, as the guest draws it.
///
/// Pixels are 32 bits, bytes in memory order blue, green, red, unused. The guest may write while a rectangle
/// is being copied, so two copies of one place can differ: compare and encode what was copied, never twice
/// from here. The size is fixed for the lifetime of a value; another size is another `Scanout`.
pub trait Scanout: Send + Sync {
    /// Width and height in pixels.
    fn size(&self) -> Size;

    /// Copies the pixels of `rect` to `into`, whose rows lie `stride` bytes apart.
    ///
    /// # Panics
    ///
    /// When `rect` is not inside [`size`](Self::size), or `into` is too short for it.
    fn copy_rect(&self, rect: Rect, into: &mut [u8], stride: usize);
}

/// A cursor's picture.
#[derive(Clone, PartialEq, Eq)]
pub struct CursorShape {
    /// Width and height in pixels, each 1 to [`MAX_CURSOR_SIDE`].
    pub size: Size,
    /// The pixel of the picture that points.
    pub hotspot: Point,
    /// Rows from the top, 4 bytes a pixel: blue, green, red, alpha (straight, not premultiplied).
    pub bgra: Vec<u8>,
}

impl fmt::Debug for CursorShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CursorShape").field("size", &self.size).field("hotspot", &self.hotspot).finish_non_exhaustive()
    }
}

/// The cursor as the guest has it now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CursorState {
    /// The picture; none when the guest never defined one (the client then shows its own).
    pub shape: Option<Arc<CursorShape>>,
    /// Where the guest put it, when it says so.
    pub position: Option<Point>,
    /// Whether the guest hides it.
    pub hidden: bool,
}

/// What a viewer of a monitor has missed since it last asked.
#[derive(Clone, Default)]
pub struct DisplayUpdate {
    /// The picture; none while the monitor is off.
    pub scanout: Option<Arc<dyn Scanout>>,
    /// Whether `scanout` is another one than last time: nothing that was sent before holds.
    pub scanout_changed: bool,
    /// What changed, inside the scanout.
    pub damage: DamageSet,
    /// The cursor, when it changed.
    pub cursor: Option<CursorState>,
    /// When the oldest of these changes was reported; latency is measured from here.
    pub since: Option<Instant>,
}

impl fmt::Debug for DisplayUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DisplayUpdate")
            .field("size", &self.scanout.as_ref().map(|scanout| scanout.size()))
            .field("scanout_changed", &self.scanout_changed)
            .field("damage", &self.damage)
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}
