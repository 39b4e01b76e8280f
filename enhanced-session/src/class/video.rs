//! Pictures of the guest's desktop. (`docs/bus.md`, section 9.2)
//!
//! The guest drives up to sixteen *heads*; the host says how they are to be arranged and what of them it needs at the
//! moment. What a head shows comes in frames. A frame lies in a surface (shared memory that the host granted by a
//! control message), or, where there is none, in tiles on the channel; either way it ends with [`ToHost::FrameReady`]
//! and is under way until the host releases it. A surface is the guest's to draw into until it is named by a frame,
//! and again after that frame's release.
//!
//! Messages about head *n* travel on sub-channel *n* if it is open, else on the channel itself; those about all heads
//! on the channel itself. The guest is silent about what is not needed, so that an unwatched desktop costs nothing.
//!
//! ```text
//! host                                                      guest
//! Hello { max_heads: 4, … }                            ──▶
//!                                                      ◀──  Hello { heads: 2, max_size: 4096×2160, … }
//! ModeSet { serial: 1, [0,0 1920×1080 100 %] }         ──▶
//!                                                      ◀──  Mode { serial: 1, result: Set, [1920×1080] }
//! SURFACE_GRANT 7, SURFACE_GRANT 8 (control)           ──▶
//! Need { head: 0, frames, cursor_shape }               ──▶
//!                                                      ◀──  FrameReady { serial: 1, surface: 7, all of it, age: 2 ms }
//!                                                      ◀──  CursorShape { … }
//! FrameRelease { head: 0, serial: 1 }                  ──▶
//!                                                      ◀──  FrameReady { serial: 2, surface: 8, [8,16 640×16], … }
//! ```

use std::time::Duration;

use console::{Rect, Size};

use super::bounded::{Data, List};
use super::define::{codes, flags, messages, ranged, record};

mod cursor;
mod tile;

pub use cursor::Cursor;
pub use tile::{MAX_TILE_PIXELS, Tile};

/// Most heads.
pub const MAX_HEADS: usize = 16;
/// Most rectangles of a frame.
pub const MAX_RECTS: usize = 255;
/// Longest EDID, in bytes: a block and seven extensions.
pub const MAX_EDID: usize = 1024;
/// Frames made of tiles that may be under way per head. Frames in surfaces are limited by the surfaces.
pub const MAX_TILE_FRAMES: usize = 2;

messages! {
    /// What the host sends.
    pub enum ToGuest {
        /// What the host can do: first.
        Hello = 0x01 {
            /// Heads that it can show.
            max_heads: HeadCount,
            /// The largest head that it can show, in pixels.
            max_size: Size,
        },
        /// How the heads are to be.
        ModeSet = 0x02 {
            /// One more with each, from 1.
            serial: u32,
            /// Head *n* at place *n*; heads that are not there are off.
            heads: List<Head, MAX_HEADS>,
        },
        /// A frame was copied: its surface is the guest's again.
        FrameRelease = 0x03 {
            /// Whose.
            head: HeadIndex,
            /// Which; frames are released in the order in which they came.
            serial: u32,
        },
        /// What the host needs of a head from now on. Nothing is needed before the first of these. When a need begins,
        /// the guest sends the whole of it: a frame with all pixels, the cursor as it is, the mode.
        Need = 0x04 {
            /// Which.
            head: HeadIndex,
            /// What.
            needs: Needs,
        },
        /// What the monitor of a head says about itself.
        Edid = 0x05 {
            /// Which.
            head: HeadIndex,
            /// Blocks of 128 bytes; none: nothing is known, or no longer.
            edid: Data<MAX_EDID>,
        },
    }
}

messages! {
    /// What the guest sends.
    pub enum ToHost {
        /// What the guest can do: first.
        Hello = 0x81 {
            /// Heads that it can drive.
            heads: HeadCount,
            /// The largest head that it can drive, in pixels.
            max_size: Size,
            /// More that it can.
            abilities: Abilities,
        },
        /// How the heads are: the answer to [`ToGuest::ModeSet`], and, where it is needed, when that changes otherwise.
        Mode = 0x82 {
            /// That of the last [`ToGuest::ModeSet`], 0 if there was none.
            serial: u32,
            /// What came of it.
            result: ModeResult,
            /// Head *n* at place *n*.
            heads: List<Head, MAX_HEADS>,
        },
        /// A frame is there. Its serial is one more than that of the head's frame before.
        FrameReady = 0x83 {
            /// Whose.
            head: HeadIndex,
            /// Which.
            serial: u32,
            /// Where its pixels are: a surface granted on this channel; none: in the tiles with this serial.
            surface: Option<u32>,
            /// What differs from the frame before, in pixels of the head. What lies outside of the head is cut off.
            rects: List<Rect, MAX_RECTS>,
            /// From the oldest of these changes to the sending of this message; zero if not known.
            age: Duration,
            /// How much of that went into copying.
            capture: Duration,
        },
        /// A piece of a frame that comes without a surface, before its [`ToHost::FrameReady`].
        Tile = 0x84 {
            /// Whose.
            head: HeadIndex,
            /// That of the frame that it belongs to.
            serial: u32,
            /// The pixels.
            tile: Tile,
        },
        /// Where the cursor is.
        CursorPosition = 0x85 {
            /// On which head.
            head: HeadIndex,
            /// Whether the guest shows it.
            visible: bool,
            /// Pixels from the left edge of the head to the pixel that points.
            x: i32,
            /// Pixels from the top edge.
            y: i32,
        },
        /// What the cursor looks like, on all heads.
        CursorShape = 0x86 {
            /// None: the guest has no opinion, the client shows its own.
            cursor: Option<Cursor>,
        },
    }
}

record! {
    /// How a head is or is to be.
    #[derive(Copy)]
    pub struct Head {
        /// Its left edge in the desktop, in pixels; the leftmost head has 0.
        pub x: u32,
        /// Its top edge.
        pub y: u32,
        /// Its width in pixels, as it is seen (after turning).
        pub width: Side,
        /// Its height in pixels, as it is seen.
        pub height: Side,
        /// How large things are to be drawn, in percent.
        pub scale: Scale,
        /// How the monitor is turned.
        pub orientation: Orientation,
        /// How large the monitor is, in millimetres; none if not known.
        pub physical: Option<Size>,
        /// Whether it is the one with the task bar. One of them is.
        pub primary: bool,
    }
}

ranged! {
    /// A head's width or height, in pixels.
    pub struct Side(u16) = 1..=16_384;
}

ranged! {
    /// Percent of the usual size.
    pub struct Scale(u16) = 100..=500;
}

ranged! {
    /// Which head.
    pub struct HeadIndex(u8) = 0..=15;
}

ranged! {
    /// How many heads.
    pub struct HeadCount(u8) = 1..=16;
}

codes! {
    /// How a monitor is turned, clockwise, in degrees.
    pub enum Orientation: u16 {
        /// Not.
        Landscape = 0,
        /// A quarter.
        Portrait = 90,
        /// Half.
        LandscapeFlipped = 180,
        /// Three quarters.
        PortraitFlipped = 270,
    }
}

codes! {
    /// What came of a mode that was asked for.
    pub enum ModeResult: u8 {
        /// It is set as asked.
        Set = 0,
        /// The nearest that the guest could is set.
        Nearest = 1,
        /// Nothing changed: the guest cannot set modes, or not this.
        Unsupported = 2,
        /// Nothing changed: its system answered with an error.
        Failed = 3,
        /// Nobody asked: the guest changed by itself.
        Unasked = 4,
    }
}

flags! {
    /// What the host needs of a head at the moment.
    pub struct Needs: u8 {
        /// [`ToHost::FrameReady`] and tiles.
        pub frames = 1,
        /// [`ToHost::CursorPosition`].
        pub cursor_position = 2,
        /// [`ToHost::CursorShape`]; needed when any head needs it.
        pub cursor_shape = 4,
        /// [`ToHost::Mode`] when nobody asked; needed when any head needs it.
        pub mode = 8,
    }
}

flags! {
    /// What a guest can do.
    pub struct Abilities: u16 {
        /// Draw into surfaces.
        pub surfaces = 1,
        /// Send tiles.
        pub tiles = 2,
        /// Set modes.
        pub mode_set = 4,
        /// Tell where the cursor is.
        pub cursor_position = 8,
        /// Tell what the cursor looks like, and leave it out of the frames.
        pub cursor_shape = 0x10,
        /// Make use of an EDID.
        pub edid = 0x20,
    }
}

impl Head {
    /// Where it is in the desktop, in pixels.
    #[must_use]
    pub const fn area(&self) -> Rect {
        Rect::new(self.x, self.y, self.width.0 as u32, self.height.0 as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_reads_as_it_is_specified() {
        let head = Head {
            x: 1920,
            y: 0,
            width: Side::clamped(1080),
            height: Side::clamped(1920),
            scale: Scale::clamped(150),
            orientation: Orientation::Portrait,
            physical: Some(Size::new(340, 190)),
            primary: true,
        };
        let message = ToGuest::ModeSet { serial: 3, heads: List::from([head]) };
        let bytes = [
            [0x02, 0, 0, 0, 3, 0, 0, 0, 1, 0].as_slice(),
            &[0x80, 0x07, 0, 0, 0, 0, 0, 0, 0x38, 0x04, 0x80, 0x07, 150, 0, 90, 0],
            &[1, 0x54, 0x01, 0, 0, 190, 0, 0, 0, 1],
        ]
        .concat();
        assert_eq!(message.encode(), bytes);
        assert_eq!(ToGuest::decode(&bytes), Ok(message));
        assert_eq!(head.area(), Rect::new(1920, 0, 1080, 1920));
    }

    #[test]
    fn a_frame_reads_as_it_is_specified() {
        let frame = ToHost::FrameReady {
            head: HeadIndex::clamped(1),
            serial: 9,
            surface: Some(7),
            rects: List::from([Rect::new(1, 2, 3, 4)]),
            age: Duration::from_nanos(5),
            capture: Duration::from_nanos(6),
        };
        let bytes = [
            [0x83, 0, 0, 0, 1, 9, 0, 0, 0, 1, 7, 0, 0, 0].as_slice(),
            &[1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0],
            &[5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(frame.encode(), bytes);
        assert_eq!(ToHost::decode(&bytes), Ok(frame));
    }

    #[test]
    fn a_head_without_pixels_or_with_too_many_is_refused() {
        let mode = |width: u16| {
            let mut bytes = vec![0x02, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            bytes.extend(width.to_le_bytes());
            bytes.extend([1, 0, 100, 0, 0, 0, 0, 1]);
            ToGuest::decode(&bytes)
        };
        assert!(mode(1).is_ok() && mode(16_384).is_ok());
        assert!(mode(0).is_err() && mode(16_385).is_err());
    }

    #[test]
    fn there_are_no_more_heads_than_heads() {
        let needs = Needs { frames: true, ..Needs::default() };
        let message = ToGuest::Need { head: HeadIndex::clamped(15), needs };
        assert_eq!(ToGuest::decode(&[0x04, 0, 0, 0, 15, 1]), Ok(message));
        assert!(ToGuest::decode(&[0x04, 0, 0, 0, 16, 1]).is_err());
    }
}
