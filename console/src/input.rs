//! Keys and pointers.

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
