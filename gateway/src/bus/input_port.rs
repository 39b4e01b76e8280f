//! Where sessions put what their clients type, point at and touch, for the agent in the guest.
//!
//! ```text
//! session ─▶ InputPort ─▶ (bounded queue) ─▶ services::Input ─▶ the bus
//! ```
//! The port is open while an agent takes input. It never waits and never drops a key: when the guest does not keep up the
//! queue is full, and the session stops reading its client.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use console::{KeyEvent, PenEvent, PointerEvent, Rect, TouchFrame};
use enhanced_session::class::input::Kinds;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

/// Input that waits for the guest. More than a person does in a tenth of a second.
const MAX_WAITING: usize = 128;

/// What a guest's agent takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputCapabilities {
    /// Fingers at a time; 0: no touch.
    pub max_contacts: u16,
    /// Keys.
    pub keyboard: bool,
    /// Characters.
    pub unicode: bool,
    /// The pointer, by position.
    pub pointer: bool,
    /// The pointer, by distance.
    pub relative_pointer: bool,
    /// A pen.
    pub pen: bool,
}

impl InputCapabilities {
    pub(crate) const fn new(max_contacts: u16, kinds: Kinds) -> Self {
        Self {
            max_contacts,
            keyboard: kinds.keyboard,
            unicode: kinds.unicode,
            pointer: kinds.pointer,
            relative_pointer: kinds.relative_pointer,
            pen: kinds.pen,
        }
    }
}

/// Why the port did not take something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputRefused {
    /// The guest is behind; there is room again after [`InputPort::room`].
    Full,
    /// No agent takes input.
    Closed,
}

/// Something for the guest.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Input {
    Layout(Vec<Rect>),
    Key(KeyEvent),
    Pointer(PointerEvent),
    Touch(TouchFrame),
    Pen(PenEvent),
}

/// A VM's port. Cheap to clone.
#[derive(Debug, Clone)]
pub struct InputPort {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// What the agent takes; none while the port is closed.
    capabilities: watch::Sender<Option<InputCapabilities>>,
    filled: Notify,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    open: bool,
    waiting: VecDeque<Input>,
    layout: Vec<Rect>,
}

impl InputPort {
    pub(super) fn new() -> Self {
        let (capabilities, _) = watch::channel(None);
        let (filled, emptied) = (Notify::new(), Notify::new());
        Self { shared: Arc::new(Shared { queue: Mutex::default(), capabilities, filled, emptied }) }
    }

    /// Follows what the guest's agent takes; none while there is no agent that takes input.
    #[must_use]
    pub fn capabilities(&self) -> watch::Receiver<Option<InputCapabilities>> {
        self.shared.capabilities.subscribe()
    }

    /// Says what the monitors are that positions are told in, in pixels.
    pub fn set_layout(&self, monitors: &[Rect]) {
        let mut queue = self.queue();
        if queue.layout != monitors {
            queue.layout = monitors.to_vec();
            if queue.open {
                // Not counted: it comes with a new size, which a guest is not asked for more often than it can follow.
                queue.waiting.retain(|input| !matches!(input, Input::Layout(_)));
                queue.waiting.push_back(Input::Layout(monitors.to_vec()));
                self.shared.filled.notify_one();
            }
        }
    }

    /// Passes a key on.
    ///
    /// # Errors
    ///
    /// When it was not taken.
    pub fn send_key(&self, event: KeyEvent) -> Result<(), InputRefused> {
        self.put(Input::Key(event))
    }

    /// Passes what the pointer did on.
    ///
    /// # Errors
    ///
    /// When it was not taken.
    pub fn send_pointer(&self, event: PointerEvent) -> Result<(), InputRefused> {
        self.put(Input::Pointer(event))
    }

    /// Passes what the fingers did on, as a whole.
    ///
    /// # Errors
    ///
    /// When it was not taken.
    pub fn send_touch(&self, frame: TouchFrame) -> Result<(), InputRefused> {
        self.put(Input::Touch(frame))
    }

    /// Passes what a pen did on.
    ///
    /// # Errors
    ///
    /// When it was not taken.
    pub fn send_pen(&self, event: PenEvent) -> Result<(), InputRefused> {
        self.put(Input::Pen(event))
    }

    /// Waits until something can be sent again, or the port has closed. Cancel safe.
    pub async fn room(&self) {
        loop {
            let emptied = self.shared.emptied.notified();
            {
                let queue = self.queue();
                if !queue.open || queue.waiting.len() < MAX_WAITING {
                    return;
                }
            }
            emptied.await;
        }
    }

    fn put(&self, input: Input) -> Result<(), InputRefused> {
        let mut queue = self.queue();
        if !queue.open {
            return Err(InputRefused::Closed);
        }
        // Where the pointer was on its way to where it is matters to nobody who has not seen it yet.
        if let (Input::Pointer(PointerEvent::MoveTo { .. }), Some(last)) = (&input, queue.waiting.back_mut())
            && matches!(last, Input::Pointer(PointerEvent::MoveTo { .. }))
        {
            *last = input;
            return Ok(());
        }
        if queue.waiting.len() >= MAX_WAITING {
            return Err(InputRefused::Full);
        }
        queue.waiting.push_back(input);
        self.shared.filled.notify_one();
        Ok(())
    }

    /// Opens the port: what is sent from now on is for this agent, which is told the monitors first.
    pub(super) fn open(&self, capabilities: InputCapabilities) {
        {
            let mut queue = self.queue();
            if !queue.open {
                queue.waiting.clear();
                if !queue.layout.is_empty() {
                    let layout = Input::Layout(queue.layout.clone());
                    queue.waiting.push_back(layout);
                }
                queue.open = true;
            }
        }
        self.shared.capabilities.send_if_modified(|now| now.replace(capabilities) != Some(capabilities));
        self.shared.filled.notify_one();
    }

    /// Closes the port. What waited is forgotten: the agent lets go of what is pressed, and who is told of the closing
    /// begins anew elsewhere.
    pub(super) fn close(&self) {
        // First: who is refused has to find out why.
        self.shared.capabilities.send_if_modified(|now| now.take().is_some());
        {
            let mut queue = self.queue();
            queue.open = false;
            queue.waiting.clear();
        }
        self.shared.emptied.notify_waiters();
    }

    /// Waits until there is something to take. Cancel safe.
    pub(super) async fn filled(&self) {
        self.shared.filled.notified().await;
    }

    /// Gives what waits to `take`, from the front; what that does not take stays.
    pub(super) fn take(&self, take: impl FnOnce(&mut VecDeque<Input>)) {
        let mut queue = self.queue();
        let before = queue.waiting.len();
        take(&mut queue.waiting);
        if queue.waiting.len() < before {
            self.shared.emptied.notify_waiters();
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For tests of who uses a port: the agent's end of it.
#[cfg(test)]
impl InputPort {
    pub(crate) fn for_tests() -> Self {
        Self::new()
    }

    pub(crate) fn open_for_tests(&self, capabilities: InputCapabilities) {
        self.open(capabilities);
    }

    pub(crate) fn close_for_tests(&self) {
        self.close();
    }

    pub(crate) fn keys_for_tests(&self) -> Vec<KeyEvent> {
        let mut keys = Vec::new();
        self.take(|waiting| {
            keys.extend(waiting.iter().filter_map(|input| if let Input::Key(key) = input { Some(*key) } else { None }));
            waiting.retain(|input| !matches!(input, Input::Key(_)));
        });
        keys
    }

    pub(crate) fn touches_for_tests(&self) -> Vec<TouchFrame> {
        let frame = |input| if let Input::Touch(frame) = input { Some(frame) } else { None };
        let mut frames = Vec::new();
        self.take(|waiting| frames.extend(waiting.drain(..).filter_map(frame)));
        frames
    }
}

#[cfg(test)]
mod tests {
    use console::{KeyState, Scancode};

    use super::*;

    const KEY: KeyEvent = KeyEvent::Key { scancode: Scancode::plain(0x1e), state: KeyState::Pressed };

    fn capabilities() -> InputCapabilities {
        InputCapabilities::new(10, Kinds { keyboard: true, ..Kinds::default() })
    }

    fn waiting(port: &InputPort) -> Vec<Input> {
        let mut all = Vec::new();
        port.take(|waiting| all.extend(waiting.drain(..)));
        all
    }

    #[test]
    fn nothing_is_taken_without_an_agent_and_nothing_old_reaches_a_new_one() {
        let port = InputPort::new();
        assert_eq!(port.send_key(KEY), Err(InputRefused::Closed));
        port.open(capabilities());
        assert_eq!(port.send_key(KEY), Ok(()));
        port.close();
        assert_eq!(*port.capabilities().borrow(), None);
        port.open(capabilities());
        assert_eq!(waiting(&port), []);
    }

    #[test]
    fn an_agent_is_told_the_monitors_before_anything_else() {
        let port = InputPort::new();
        port.set_layout(&[Rect::new(0, 0, 800, 600)]);
        port.open(capabilities());
        port.send_key(KEY).expect("room");
        port.set_layout(&[Rect::new(0, 0, 1024, 768)]);
        let inputs = waiting(&port);
        assert_eq!(inputs, [Input::Key(KEY), Input::Layout(vec![Rect::new(0, 0, 1024, 768)])]);
    }

    #[test]
    fn a_pointer_on_its_way_takes_one_place() {
        let port = InputPort::new();
        port.open(capabilities());
        for x in 0..1000 {
            port.send_pointer(PointerEvent::MoveTo { x, y: 0 }).expect("room");
        }
        assert_eq!(waiting(&port), [Input::Pointer(PointerEvent::MoveTo { x: 999, y: 0 })]);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_says_when_there_is_room() {
        let port = InputPort::new();
        port.open(capabilities());
        while port.send_key(KEY).is_ok() {}
        assert_eq!(port.send_key(KEY), Err(InputRefused::Full));
        let waits = tokio::spawn({
            let port = port.clone();
            async move { port.room().await }
        });
        port.take(|waiting| drop(waiting.pop_front()));
        waits.await.expect("woken");
        assert_eq!(port.send_key(KEY), Ok(()));
    }
}
