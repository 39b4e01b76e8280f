//! Keys, pointers, touch and pens.

use std::time::Duration;

/// Most contacts in a [`TouchFrame`].
pub const MAX_CONTACTS: usize = 64;

/// Whether a key or button went down or came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyState {
    /// It went down, or repeats.
    Pressed,
    /// It came up.
    Released,
}

/// The byte that a PC keyboard sends before the code of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScancodePrefix {
    /// None.
    None,
    /// `E0`: the keys added by the enhanced keyboard.
    E0,
    /// `E1`: Pause.
    E1,
}

/// A key of a PC keyboard, by its scancode of set 1 (the make code, without the release bit).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scancode {
    /// The byte before.
    pub prefix: ScancodePrefix,
    /// The make code, 0x01 to 0x7f.
    pub code: u8,
}

impl Scancode {
    /// A key without prefix.
    #[must_use]
    pub const fn plain(code: u8) -> Self {
        Self { prefix: ScancodePrefix::None, code }
    }

    /// A key with prefix `E0`.
    #[must_use]
    pub const fn extended(code: u8) -> Self {
        Self { prefix: ScancodePrefix::E0, code }
    }
}

/// Something happened on the keyboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyEvent {
    /// A physical key.
    Key {
        /// Which.
        scancode: Scancode,
        /// Down or up.
        state: KeyState,
    },
    /// A UTF-16 code unit from an on-screen keyboard or an input method.
    Unicode {
        /// The code unit; characters outside the basic plane come as two events.
        unit: u16,
        /// Down or up.
        state: KeyState,
    },
    /// The lock keys of the client's keyboard; the guest's are to follow.
    Locks(LockKeys),
    /// Every key that is down comes up (the client lost focus or left).
    ReleaseAll,
}

/// The lights of a keyboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LockKeys {
    /// Scroll Lock.
    pub scroll: bool,
    /// Num Lock.
    pub num: bool,
    /// Caps Lock.
    pub caps: bool,
}

/// A button of a pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PointerButton {
    /// The first.
    Left,
    /// The wheel's, or the one between.
    Middle,
    /// The second.
    Right,
    /// The fourth: back.
    Back,
    /// The fifth: forward.
    Forward,
}

/// Which way a wheel turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WheelAxis {
    /// Up (positive) and down.
    Vertical,
    /// Right (positive) and left.
    Horizontal,
}

/// Something happened on the pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointerEvent {
    /// It moved to a pixel of the monitor.
    MoveTo {
        /// Pixels from the left.
        x: u32,
        /// Pixels from the top.
        y: u32,
    },
    /// It moved by a distance, in the client's counts.
    MoveBy {
        /// To the right.
        dx: i32,
        /// Down.
        dy: i32,
    },
    /// A button.
    Button {
        /// Which.
        button: PointerButton,
        /// Down or up.
        state: KeyState,
    },
    /// A wheel turned; 120 units are one notch, smaller steps come from fine wheels and touchpads.
    Wheel {
        /// Which wheel.
        axis: WheelAxis,
        /// How far, in 1/120 of a notch.
        units: i16,
    },
}

/// What a finger or a pen did. It touches, is near without touching, or is away.
///
/// | | before | after |
/// | --- | --- | --- |
/// | [`Down`](Self::Down) | away, near | touches |
/// | [`Move`](Self::Move) | touches | touches |
/// | [`Hover`](Self::Hover) | away, near | near |
/// | [`Lift`](Self::Lift) | touches | near |
/// | [`Up`](Self::Up), [`UpCanceled`](Self::UpCanceled) | touches | away |
/// | [`Leave`](Self::Leave), [`LeaveCanceled`](Self::LeaveCanceled) | near | away |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContactPhase {
    /// It begins to touch.
    Down,
    /// It touches, and moved or changed.
    Move,
    /// It is near without touching.
    Hover,
    /// It ends to touch and stays near.
    Lift,
    /// It ends to touch and is away.
    Up,
    /// It was near and is away.
    Leave,
    /// Like [`Up`](Self::Up), and what the contact did is not meant (a palm).
    UpCanceled,
    /// Like [`Leave`](Self::Leave), and what the contact did is not meant.
    LeaveCanceled,
}

impl ContactPhase {
    /// Whether it touches after this.
    #[must_use]
    pub const fn is_touching(self) -> bool {
        matches!(self, Self::Down | Self::Move)
    }

    /// Whether it touches or is near after this. When it is not, its id is free.
    #[must_use]
    pub const fn is_in_range(self) -> bool {
        matches!(self, Self::Down | Self::Move | Self::Hover | Self::Lift)
    }

    /// Whether what the contact did is to be taken back.
    #[must_use]
    pub const fn is_canceled(self) -> bool {
        matches!(self, Self::UpCanceled | Self::LeaveCanceled)
    }
}

/// A place that is finer than a pixel, in 1/100 pixel from the top left of the monitor. It may lie outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FinePoint {
    /// 1/100 pixels from the left edge.
    pub x: i32,
    /// 1/100 pixels from the top edge.
    pub y: i32,
}

/// How large the area is that a contact touches, in 1/100 pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ContactSize {
    /// Width, before it is turned by the orientation.
    pub width: u32,
    /// Height, before it is turned by the orientation.
    pub height: u32,
}

/// One finger of a [`TouchFrame`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TouchContact {
    /// Which finger: the same from the first event to the one that takes it away, then free for another.
    pub id: u16,
    /// What it did.
    pub phase: ContactPhase,
    /// Where it is.
    pub position: FinePoint,
    /// How hard it touches, 0 to 65535; none when the client cannot tell.
    pub pressure: Option<u16>,
    /// How large it is; none when the client cannot tell.
    pub size: Option<ContactSize>,
    /// How far it is turned, clockwise, in degrees, 0 to 359; none when the client cannot tell.
    pub orientation: Option<u16>,
}

/// What all fingers did at one moment. Those that did nothing may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TouchFrame {
    /// The fingers, at most [`MAX_CONTACTS`], no id twice.
    pub contacts: Vec<TouchContact>,
    /// How long after the frame before it happened; zero for the first.
    pub since_previous: Duration,
}

/// Which way a pen leans, in degrees, −90 to 90; zero is upright.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PenTilt {
    /// To the right.
    pub x: i8,
    /// Towards the user.
    pub y: i8,
}

/// What of a pen is pressed and which end points down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PenButtons {
    /// The button on its side.
    pub barrel: bool,
    /// The eraser touches.
    pub eraser: bool,
    /// The eraser's end points down.
    pub inverted: bool,
}

/// A pen did something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PenEvent {
    /// Which pen.
    pub device: u8,
    /// What it did.
    pub phase: ContactPhase,
    /// Where it is.
    pub position: FinePoint,
    /// What is pressed.
    pub buttons: PenButtons,
    /// How hard it touches, 0 to 65535; none when the client cannot tell.
    pub pressure: Option<u16>,
    /// How far it is turned around its axis, clockwise, in degrees, 0 to 359; none when the client cannot tell.
    pub rotation: Option<u16>,
    /// How it leans; none when the client cannot tell.
    pub tilt: Option<PenTilt>,
    /// How long after the pen's event before it happened; zero for the first.
    pub since_previous: Duration,
}
