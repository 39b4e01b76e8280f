//! What was sent to the guest's keyboard and pointer and has not been passed on yet.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use console::{KeyEvent, PointerEvent};
use tokio::sync::Notify;

/// Most events that wait; a full queue means that QEMU has stopped taking them.
const CAPACITY: usize = 64;

/// The queue of input is full: the caller waits with [`input_room`](crate::Console::input_room) and sends again,
/// and takes nothing from its own client meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest takes no input at the moment")]
pub struct InputFull;

/// One thing that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InputEvent {
    Key(KeyEvent),
    Pointer(PointerEvent),
}

/// What the task that passes on has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Pass this on.
    Event(InputEvent),
    /// Say, by [`set_drained`](SharedQueue::set_drained), when the guest's devices have all that was passed on.
    Drain,
}

/// The queue between all who send and the one task that passes on.
#[derive(Debug, Default)]
pub(crate) struct SharedQueue {
    queue: Mutex<Queue>,
    filled: Notify,
    emptied: Notify,
}

/// Events in order. Moves of the pointer that follow each other are one, so they always find room; everything else
/// is refused when there is none.
#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<InputEvent>,
    /// Without a guest nothing waits: what is sent is forgotten.
    is_open: bool,
    /// Something was taken, and it is not known whether the guest's devices have it.
    is_passing: bool,
    is_drain_awaited: bool,
}

impl SharedQueue {
    pub(crate) fn send_key(&self, event: KeyEvent) -> Result<(), InputFull> {
        self.send(InputEvent::Key(event))
    }

    pub(crate) fn send_pointer(&self, event: PointerEvent) -> Result<(), InputFull> {
        self.send(InputEvent::Pointer(event))
    }

    /// Waits until there is room. Cancel safe.
    pub(crate) async fn room(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            // Every waiter is told, so it must be among them before it looks.
            emptied.as_mut().enable();
            if self.lock().has_room() {
                return;
            }
            emptied.await;
        }
    }

    /// Whether the guest's devices have all that was sent.
    pub(crate) fn is_drained(&self) -> bool {
        self.lock().is_drained()
    }

    /// Waits until the guest's devices have all that was sent. Cancel safe.
    pub(crate) async fn drained(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            {
                let mut queue = self.lock();
                if queue.is_drained() {
                    return;
                }
                queue.is_drain_awaited = true;
            }
            self.filled.notify_one();
            emptied.await;
        }
    }

    /// The guest's devices have all that was taken before.
    pub(super) fn set_drained(&self) {
        let mut queue = self.lock();
        (queue.is_passing, queue.is_drain_awaited) = (false, false);
        self.emptied.notify_waiters();
    }

    /// A guest is there, or has gone; either way nothing is left of what was sent before.
    pub(crate) fn open(&self, is_open: bool) {
        *self.lock() = Queue { is_open, ..Queue::default() };
        self.emptied.notify_waiters();
    }

    /// Takes the first that waits, if one does.
    pub(super) fn try_take(&self) -> Option<InputEvent> {
        let mut queue = self.lock();
        let event = queue.events.pop_front()?;
        queue.is_passing = true;
        self.emptied.notify_waiters();
        Some(event)
    }

    /// Takes the first that waits, and waits for it. Cancel safe.
    pub(super) async fn next(&self) -> Next {
        loop {
            if let Some(event) = self.try_take() {
                return Next::Event(event);
            }
            if self.lock().wants_drain() {
                return Next::Drain;
            }
            self.filled.notified().await;
        }
    }

    fn send(&self, event: InputEvent) -> Result<(), InputFull> {
        self.lock().push(event)?;
        self.filled.notify_one();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn has_room(&self) -> bool {
        !self.is_open || self.events.len() < CAPACITY
    }

    fn is_drained(&self) -> bool {
        !self.is_open || !self.is_passing && self.events.is_empty()
    }

    fn wants_drain(&self) -> bool {
        self.is_passing && self.is_drain_awaited
    }

    fn push(&mut self, event: InputEvent) -> Result<(), InputFull> {
        if !self.is_open {
            return Ok(());
        }
        if let Some(last) = self.events.back_mut()
            && let Some(both) = merge(*last, event)
        {
            *last = both;
            return Ok(());
        }
        // One move more than the capacity: the next ones join it.
        let is_move = matches!(event, InputEvent::Pointer(PointerEvent::MoveTo { .. } | PointerEvent::MoveBy { .. }));
        if self.events.len() >= CAPACITY + usize::from(is_move) {
            return if is_move { Ok(()) } else { Err(InputFull) };
        }
        self.events.push_back(event);
        Ok(())
    }
}

/// What two events that follow each other amount to, when that is one event.
fn merge(first: InputEvent, second: InputEvent) -> Option<InputEvent> {
    use PointerEvent::{MoveBy, MoveTo, Wheel};

    let (InputEvent::Pointer(first), InputEvent::Pointer(second)) = (first, second) else { return None };
    let both = match (first, second) {
        (MoveTo { .. } | MoveBy { .. }, MoveTo { x, y }) => MoveTo { x, y },
        (MoveTo { x, y }, MoveBy { dx, dy }) => {
            MoveTo { x: x.saturating_add_signed(dx), y: y.saturating_add_signed(dy) }
        }
        (MoveBy { dx, dy }, MoveBy { dx: more_x, dy: more_y }) => {
            MoveBy { dx: dx.saturating_add(more_x), dy: dy.saturating_add(more_y) }
        }
        (Wheel { axis, units }, Wheel { axis: same, units: more }) if axis == same => {
            Wheel { axis, units: units.checked_add(more)? }
        }
        _ => return None,
    };
    Some(InputEvent::Pointer(both))
}

#[cfg(test)]
mod tests {
    use console::{KeyState, Scancode};
    use proptest::prelude::*;

    use super::*;

    fn key(code: u8) -> InputEvent {
        InputEvent::Key(KeyEvent::Key { scancode: Scancode::plain(code), state: KeyState::Pressed })
    }

    fn move_to(x: u32) -> InputEvent {
        InputEvent::Pointer(PointerEvent::MoveTo { x, y: 0 })
    }

    fn open() -> Queue {
        Queue { is_open: true, ..Queue::default() }
    }

    #[test]
    fn moves_join_but_not_across_a_key() {
        let mut queue = open();
        for event in [move_to(1), move_to(2), key(5), move_to(3), move_to(4)] {
            queue.push(event).expect("room");
        }
        assert_eq!(queue.events, [move_to(2), key(5), move_to(4)]);
    }

    #[test]
    fn a_full_queue_refuses_keys_and_takes_the_newest_move() {
        let mut queue = open();
        for _ in 0..CAPACITY {
            queue.push(key(1)).expect("room");
        }
        assert_eq!(queue.push(key(2)), Err(InputFull));
        for x in 0..10 {
            queue.push(move_to(x)).expect("moves always find room");
        }
        assert_eq!(queue.push(key(2)), Err(InputFull));
        assert_eq!(queue.events.back(), Some(&move_to(9)));
        assert_eq!(queue.events.len(), CAPACITY + 1);
    }

    #[tokio::test]
    async fn who_waits_for_room_goes_on_when_the_guest_takes_some_or_leaves() {
        let queue = SharedQueue::default();
        queue.room().await;
        for leaves in [false, true] {
            queue.open(true);
            while queue.send(key(1)).is_ok() {}
            let (waits, ()) = tokio::join!(
                async { tokio::time::timeout(std::time::Duration::from_secs(5), queue.room()).await },
                async {
                    tokio::task::yield_now().await;
                    if leaves {
                        queue.open(false);
                    } else {
                        assert_eq!(queue.next().await, Next::Event(key(1)));
                    }
                }
            );
            waits.expect("there is room");
        }
        queue.send(key(1)).expect("without a guest everything is taken, and forgotten");
    }

    #[tokio::test]
    async fn who_waits_until_all_has_arrived_is_told_when_it_has_or_the_guest_leaves() {
        let queue = SharedQueue::default();
        queue.drained().await;
        for leaves in [false, true] {
            queue.open(true);
            queue.send(key(1)).expect("room");
            let (waits, ()) = tokio::join!(
                async { tokio::time::timeout(std::time::Duration::from_secs(5), queue.drained()).await },
                async {
                    tokio::task::yield_now().await;
                    assert_eq!(queue.next().await, Next::Event(key(1)));
                    assert!(!queue.is_drained(), "it is on its way");
                    if leaves {
                        return queue.open(false);
                    }
                    queue.send(key(2)).expect("room");
                    assert_eq!(queue.next().await, Next::Event(key(2)));
                    assert_eq!(queue.next().await, Next::Drain);
                    queue.set_drained();
                }
            );
            waits.expect("it has arrived");
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        Send(InputEvent),
        Take,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            5 => (0..9_u8).prop_map(|code| Op::Send(key(code))),
            5 => (0..9_u32).prop_map(|x| Op::Send(move_to(x))),
            1 => Just(Op::Take),
        ]
    }

    proptest! {
        #[test]
        fn accepted_keys_come_out_in_order_and_the_last_move_survives(ops in proptest::collection::vec(op(), 0..200)) {
            let mut queue = open();
            let (mut sent, mut out, mut last_move) = (Vec::new(), Vec::new(), None);
            for op in ops {
                match op {
                    Op::Send(event) => {
                        let taken = queue.push(event).is_ok();
                        match event {
                            InputEvent::Key(_) if taken => sent.push(event),
                            InputEvent::Key(_) => {}
                            InputEvent::Pointer(_) => {
                                prop_assert!(taken);
                                last_move = Some(event);
                            }
                        }
                    }
                    Op::Take => out.extend(std::mem::take(&mut queue.events)),
                }
                prop_assert!(queue.events.len() <= CAPACITY + 1);
            }
            out.extend(queue.events);
            let is_move = |event: &&InputEvent| matches!(event, InputEvent::Pointer(_));
            prop_assert_eq!(out.iter().rfind(is_move).copied(), last_move);
            out.retain(|event| matches!(event, InputEvent::Key(_)));
            prop_assert_eq!(out, sent);
        }
    }
}
