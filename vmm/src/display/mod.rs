//! The screens, keyboard and pointer of a VM.
//!
//! A [`Display`] belongs to a VM and outlives each of its QEMUs; a `link` connects it to one of them over D-Bus.
//!
//! * `link`: attaching to QEMU, and the tasks that live as long as the connection,
//! * `listener`: pictures and cursors from QEMU → `monitor`: what is shown, and what each [`Viewer`] missed,
//! * `surface`, `pixel`, `mapping`, `cursor`: pictures mapped or sent, in any of QEMU's formats,
//! * `input`: keys and pointers to QEMU.

mod cursor;
mod dbus;
mod input;
mod link;
mod listener;
mod mapping;
mod monitor;
mod pixel;
mod surface;

#[cfg(test)]
mod fake_qemu;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use console::{KeyEvent, LockKeys, PointerEvent, Scanout, Size};

use input::{InputState, SharedQueue};
use monitor::Monitor;
use surface::MAX_SIDE;

pub use input::InputFull;
pub(crate) use link::Link;
pub use monitor::Viewer;

/// All screens of a VM with its keyboard and pointer.
#[derive(Debug)]
pub(crate) struct Display {
    /// At least one.
    monitors: Mutex<Vec<Arc<Monitor>>>,
    queue: Arc<SharedQueue>,
    input_state: Arc<InputState>,
}

/// One screen of a VM, with the VM's keyboard and pointer. Cheap to clone; survives stops and starts of the VM.
///
/// Nothing here waits for QEMU. Input goes through a short queue in order: when it is full, which a QEMU that lives
/// never lets happen for long, [`send_key`](Self::send_key) and [`send_pointer`](Self::send_pointer) say
/// [`InputFull`], and the caller stops taking input from its own client until [`input_room`](Self::input_room)
/// returns. Moves of the pointer join the one before and are always taken. While the VM is off, input is taken and
/// forgotten.
#[derive(Debug, Clone)]
pub struct Console {
    display: Arc<Display>,
    monitor: Arc<Monitor>,
}

impl Display {
    pub(crate) fn new(monitors: u8) -> Arc<Self> {
        Arc::new(Self {
            monitors: Mutex::new((0..monitors.max(1)).map(|_| Arc::new(Monitor::new())).collect()),
            queue: Arc::default(),
            input_state: Arc::default(),
        })
    }

    /// The screen of that number, from 0.
    pub(crate) fn console(self: &Arc<Self>, index: usize) -> Option<Console> {
        let monitor = self.monitors().get(index)?.clone();
        Some(Console { display: self.clone(), monitor })
    }

    /// Has that many screens from the next QEMU on. Who looks at one that is no more sees that it stays dark.
    pub(crate) fn set_monitors(&self, monitors: u8) {
        self.monitors().resize_with(usize::from(monitors.max(1)), || Arc::new(Monitor::new()));
    }

    fn monitors(&self) -> MutexGuard<'_, Vec<Arc<Monitor>>> {
        self.monitors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go_dark(&self) {
        self.queue.open(false);
        self.monitors().iter().for_each(|monitor| monitor.go_dark());
    }
}

impl Console {
    /// A new viewer of this screen; any number may look, each at its own pace.
    #[must_use]
    pub fn viewer(&self) -> Viewer {
        self.monitor.viewer()
    }

    /// What this screen shows now; none while it is off.
    #[must_use]
    pub fn scanout(&self) -> Option<Arc<dyn Scanout>> {
        self.monitor.scanout()
    }

    /// Something happened on the keyboard. [`KeyEvent::ReleaseAll`] lets go of the pointer's buttons, too.
    ///
    /// # Errors
    ///
    /// [`InputFull`]: nothing was taken; wait for [`input_room`](Self::input_room) and send it again.
    pub fn send_key(&self, event: KeyEvent) -> Result<(), InputFull> {
        self.display.queue.send_key(event)
    }

    /// Something happened on the pointer, of which a VM has one; positions are pixels of its first screen.
    ///
    /// # Errors
    ///
    /// [`InputFull`] as for [`send_key`](Self::send_key); never for moves.
    pub fn send_pointer(&self, event: PointerEvent) -> Result<(), InputFull> {
        self.display.queue.send_pointer(event)
    }

    /// Waits until there is room for input. Cancel safe.
    pub async fn input_room(&self) {
        self.display.queue.room().await;
    }

    /// Whether the guest's devices have all input that was sent.
    #[must_use]
    pub fn is_input_drained(&self) -> bool {
        self.display.queue.is_drained()
    }

    /// Waits until the guest's devices have all input that was sent: for who goes on by another way that must not
    /// overtake this one. Cancel safe.
    pub async fn input_drained(&self) {
        self.display.queue.drained().await;
    }

    /// Tells the guest that this screen has `size` now, as if a monitor of 96 pixels to the inch were plugged in.
    ///
    /// The newest wish counts; it is told again after each start. The guest decides whether it follows; when it does, a
    /// new scanout comes. An empty size unplugs the monitor.
    pub fn request_size(&self, size: Size) {
        let size = Size::new(size.width.min(MAX_SIDE), size.height.min(MAX_SIDE));
        let size = if size.is_empty() { Size::default() } else { size };
        self.monitor.wanted_size().send_if_modified(|wanted| wanted.replace(size) != Some(size));
    }

    /// The lights of the guest's keyboard.
    #[must_use]
    pub fn lock_keys(&self) -> LockKeys {
        self.display.input_state.lights()
    }
}
