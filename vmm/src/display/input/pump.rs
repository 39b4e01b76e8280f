//! The task that carries input from the queue to QEMU.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use console::{KeyEvent, KeyState, LockKeys};
use tokio::time::{Instant, sleep_until};
use zbus::Connection;
use zbus::message::Message;

use super::Action;
use super::guest_room::GuestRoom;
use super::keyboard::Keyboard;
use super::pace::Pace;
use super::pointer::{Pointer, PointerMode};
use super::queue::{InputEvent, Next, SharedQueue};
use crate::display::dbus::{KEYBOARD, MOUSE, call_without_answer, console_path};
use crate::display::monitor::Monitor;

/// Calls QEMU may have before it must have answered one.
///
/// It handles calls in order, so an answer to one means that those before it are done; a wait for
/// each would cost a key press two ways through QEMU's main loop.
const CALLS_PER_ANSWER: usize = 32;

/// What QEMU says of its keyboard and pointer.
#[derive(Debug, Default)]
pub(crate) struct InputState {
    /// The lights as QEMU numbers them, with [`KNOWN`] once it has said.
    lights: AtomicU32,
    is_absolute: AtomicBool,
}

const SCROLL: u32 = 1;
const NUM: u32 = 2;
const CAPS: u32 = 4;
const KNOWN: u32 = 1 << 31;

impl InputState {
    /// The lights of the guest's keyboard.
    pub(crate) fn lights(&self) -> LockKeys {
        let mask = self.lights.load(Ordering::Relaxed);
        LockKeys { scroll: mask & SCROLL != 0, num: mask & NUM != 0, caps: mask & CAPS != 0 }
    }

    pub(crate) fn set_lights(&self, mask: u32) {
        self.lights.store(mask | KNOWN, Ordering::Relaxed);
    }

    pub(crate) fn set_absolute(&self, is_absolute: bool) {
        self.is_absolute.store(is_absolute, Ordering::Relaxed);
    }

    fn mode(&self) -> PointerMode {
        if self.is_absolute.load(Ordering::Relaxed) { PointerMode::Absolute } else { PointerMode::Relative }
    }
}

/// Passes on what waits in a queue.
pub(crate) struct Pump {
    connection: Connection,
    queue: Arc<SharedQueue>,
    state: Arc<InputState>,
    monitor: Arc<Monitor>,
    path: String,
    keyboard: Keyboard,
    pointer: Pointer,
    pace: Pace,
    /// None when there is no telling.
    guest: Option<GuestRoom>,
    last_lights: u32,
    unanswered: usize,
}

impl Pump {
    pub(crate) fn new(
        connection: Connection,
        queue: Arc<SharedQueue>,
        state: Arc<InputState>,
        monitor: Arc<Monitor>,
        guest: Option<GuestRoom>,
    ) -> Self {
        Self {
            connection,
            queue,
            state,
            monitor,
            path: console_path(0),
            keyboard: Keyboard::default(),
            pointer: Pointer::default(),
            pace: Pace::new(Instant::now()),
            guest,
            last_lights: 0,
            unanswered: 0,
        }
    }

    /// Runs until the connection ends.
    pub(crate) async fn run(mut self) -> zbus::Result<()> {
        let mut actions = Vec::new();
        loop {
            let event = match self.queue.next().await {
                Next::Event(event) => event,
                Next::Drain => {
                    self.wait_for_qemu().await?;
                    self.unanswered = 0;
                    self.queue.set_drained();
                    continue;
                }
            };
            self.wait_for_drivers().await;
            self.note_lights();
            self.translate(event, &mut actions);
            while actions.len() < self.allowed()
                && let Some(event) = self.queue.try_take()
            {
                self.translate(event, &mut actions);
            }
            self.send(&actions).await?;
            self.pace.spend(u32::try_from(actions.len()).unwrap_or(u32::MAX), Instant::now());
            actions.clear();
            // What comes while the pace is kept can still join what waits.
            self.keep_pace().await;
        }
    }

    fn allowed(&self) -> usize {
        self.pace.allowed(Instant::now()) as usize
    }

    async fn wait_for_drivers(&mut self) {
        let has_tablet = self.state.mode() == PointerMode::Absolute;
        if let Some(guest) = &mut self.guest {
            guest.wait_for_drivers(has_tablet).await;
        }
    }

    async fn keep_pace(&mut self) {
        // A person never spends a whole burst; whoever does is not in a hurry. But a key that is down comes up in time,
        // or the guest repeats it.
        if self.allowed() == 0
            && !self.keyboard.is_any_down()
            && let Some(guest) = &mut self.guest
        {
            guest.wait().await;
        }
        sleep_until(self.pace.next()).await;
    }

    fn note_lights(&mut self) {
        let lights = self.state.lights.load(Ordering::Relaxed);
        if lights != self.last_lights {
            self.last_lights = lights;
            self.keyboard.set_lights(self.state.lights());
        }
    }

    fn translate(&mut self, event: InputEvent, actions: &mut Vec<Action>) {
        match event {
            InputEvent::Key(event) => {
                self.keyboard.handle(event, actions);
                if event == KeyEvent::ReleaseAll {
                    self.pointer.release_all(actions);
                }
            }
            InputEvent::Pointer(event) => {
                let size = self.monitor.size().unwrap_or_default();
                self.pointer.handle(event, self.state.mode(), size, actions);
            }
        }
    }

    /// Tells QEMU, in few writes, waiting for it now and then.
    async fn send(&mut self, mut actions: &[Action]) -> zbus::Result<()> {
        while !actions.is_empty() {
            let until_answer = CALLS_PER_ANSWER - self.unanswered;
            if actions.len() < until_answer {
                self.unanswered += actions.len();
                return self.connection.send_all(&self.messages(actions)?).await;
            }
            let (now, later) = actions.split_at(until_answer);
            self.connection.send_all(&self.messages(now)?).await?;
            self.wait_for_qemu().await?;
            self.unanswered = 0;
            actions = later;
        }
        Ok(())
    }

    fn messages(&self, actions: &[Action]) -> zbus::Result<Vec<Message>> {
        actions.iter().map(|action| self.message(*action)).collect()
    }

    fn message(&self, action: Action) -> zbus::Result<Message> {
        let press = |state| if state == KeyState::Pressed { "Press" } else { "Release" };
        match action {
            Action::Key(key, state) => call_without_answer(&self.path, KEYBOARD, press(state), &key),
            Action::Button(button, state) => call_without_answer(&self.path, MOUSE, press(state), &button),
            Action::MoveTo(x, y) => call_without_answer(&self.path, MOUSE, "SetAbsPosition", &(x, y)),
            Action::MoveBy(dx, dy) => call_without_answer(&self.path, MOUSE, "RelMotion", &(dx, dy)),
        }
    }

    /// Any call that QEMU answers from its main loop will do: those before it have been handled then.
    async fn wait_for_qemu(&self) -> zbus::Result<()> {
        let path = self.path.as_str();
        let interface = Some(super::super::dbus::PROPERTIES);
        let call = self.connection.call_method(None::<&str>, path, interface, "Get", &(MOUSE, "IsAbsolute"));
        call.await.map(drop)
    }
}
