//! The nouns between a virtual machine and a remote desktop.
//!
//! `vmm` speaks them on one side, `rdp-server` on the other, and `gateway` carries them across.
//! Data only: nothing here does I/O, waits, or knows QEMU or RDP.

#![forbid(unsafe_code)]

mod damage;
mod display;
mod geometry;
mod input;
pub mod us_layout;

pub use damage::{DamageSet, MAX_DAMAGE_RECTS};
pub use display::{CursorShape, CursorState, DisplayUpdate, MAX_CURSOR_SIDE, Scanout};
pub use geometry::{Point, Rect, Size};
pub use input::{
    ContactPhase, ContactSize, FinePoint, KeyEvent, KeyState, LockKeys, MAX_CONTACTS, PenButtons, PenEvent, PenTilt,
    PointerButton, PointerEvent, Scancode, ScancodePrefix, TouchContact, TouchFrame, WheelAxis,
};
