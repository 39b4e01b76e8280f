//! Keys and pointers on their way into the guest.
//!
//! * `queue`: what callers have sent and QEMU has not been told yet; bounded, in order,
//! * `keyboard`, `pointer`: events → what QEMU's keyboard and mouse understand, pure,
//! * `pace`: not faster than a guest can take them,
//! * `guest_room`: and not more than it has room for,
//! * `pump`: the task that carries the one to the other.

mod guest_room;
mod keyboard;
mod pace;
mod pointer;
mod pump;
mod queue;

pub(super) use guest_room::GuestRoom;
pub(super) use pump::{InputState, Pump};
pub use queue::InputFull;
pub(super) use queue::SharedQueue;

/// What QEMU is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// A key by QEMU's number for it.
    Key(u32, console::KeyState),
    /// A button by QEMU's number for it.
    Button(u32, console::KeyState),
    /// The pointer, to a pixel.
    MoveTo(u32, u32),
    /// The pointer, by a distance.
    MoveBy(i32, i32),
}
