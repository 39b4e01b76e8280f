//! Events as the kernel takes them, and the devices that they are for.

use input_linux::{AbsoluteAxis, EventKind, Key, RelativeAxis, SynchronizeKind};

/// One of the agent's input devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Device {
    /// Keys, and the lights of the lock keys.
    Keyboard,
    /// Places on the desktop, buttons, wheels.
    Pointer,
    /// Distances.
    RelativePointer,
    /// Fingers on the desktop.
    TouchScreen,
    /// A pen on the desktop.
    Pen,
}

/// One event (`struct input_event` without its time, which is the kernel's).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) kind: EventKind,
    pub(super) code: u16,
    /// The new value, or the change.
    pub(super) value: i32,
}

/// A key or a button goes up.
pub(super) const UP: i32 = 0;
/// A key or a button goes down.
pub(super) const DOWN: i32 = 1;
/// A key that is down repeats.
pub(super) const REPEAT: i32 = 2;

/// Highest value of a place on an axis, of a pressure.
pub(super) const AXIS_MAX: i32 = 0xffff;

impl Event {
    /// The end of what happened at one moment.
    pub(super) const SYN: Self = Self { kind: EventKind::Synchronize, code: SynchronizeKind::Report as u16, value: 0 };

    /// A key or button.
    pub(super) const fn key(key: Key, value: i32) -> Self {
        Self { kind: EventKind::Key, code: key.code(), value }
    }

    /// A place, a pressure, an angle.
    pub(super) const fn absolute(axis: AbsoluteAxis, value: i32) -> Self {
        Self { kind: EventKind::Absolute, code: axis.code(), value }
    }

    /// A distance.
    pub(super) const fn relative(axis: RelativeAxis, value: i32) -> Self {
        Self { kind: EventKind::Relative, code: axis.code(), value }
    }
}

/// With names, because tests compare sequences of them.
impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, code, value } = *self;
        match kind {
            EventKind::Synchronize => f.write_str("SYN"),
            EventKind::Key => write!(f, "{:?}={value}", Key::from_code(code)),
            EventKind::Absolute => write!(f, "{:?}={value}", AbsoluteAxis::from_code(code)),
            EventKind::Relative => write!(f, "{:?}={value}", RelativeAxis::from_code(code)),
            kind => write!(f, "{kind:?} {code}={value}"),
        }
    }
}
