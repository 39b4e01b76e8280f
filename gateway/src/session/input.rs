//! Which way a client's input takes to the guest: the VM's virtual hardware, or the agent at the far end of the bus.
//!
//! The agent is taken when it is there, unless the VM's definition says otherwise: it takes keys as fast as they come,
//! fingers and pens. It comes and goes while sessions run. At each change everything is let go of on the old way, and the
//! modifiers that the client still holds are pressed on the new one, so that no key is stuck and none is lost. The bus is
//! the faster way: nothing goes there before the guest's devices have what the hardware was given.
//!
//! A guest has one touch screen for all its clients: fingers and pens get numbers that no other session uses now.

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;

use console::{KeyEvent, KeyState, MAX_CONTACTS, PenEvent, PointerEvent, Scancode, Size};
use rdp_server::channels::touch::{GuestTouch, MAX_PENS};
use rdp_server::input::InputEvent;
use tokio::sync::watch;
use vmm::Provider;

use crate::bus::{InputCapabilities, InputPort, InputRefused};
use crate::sessions::SessionId;

use super::stats::SessionStats;

/// Keys that mean something while they are held: Ctrl, Shift, Alt and the logo keys, left and right.
const MODIFIERS: [Scancode; 8] = [
    Scancode::plain(0x1d),
    Scancode::plain(0x2a),
    Scancode::plain(0x36),
    Scancode::plain(0x38),
    Scancode::extended(0x1d),
    Scancode::extended(0x38),
    Scancode::extended(0x5b),
    Scancode::extended(0x5c),
];

/// The VM's keyboard and pointer.
pub(super) trait Hardware {
    /// Passes a key on.
    fn send_key(&self, event: KeyEvent) -> Result<(), Full>;
    /// Passes what the pointer did on.
    fn send_pointer(&self, event: PointerEvent) -> Result<(), Full>;
    /// Waits until there is room again. Cancel safe.
    fn room(&self) -> impl Future<Output = ()> + Send;
    /// Whether the guest's devices have all that was passed on.
    fn is_drained(&self) -> bool;
    /// Waits until they have. Cancel safe.
    fn drained(&self) -> impl Future<Output = ()> + Send;
}

impl Hardware for vmm::Console {
    fn send_key(&self, event: KeyEvent) -> Result<(), Full> {
        Self::send_key(self, event).map_err(|_| Full)
    }

    fn send_pointer(&self, event: PointerEvent) -> Result<(), Full> {
        Self::send_pointer(self, event).map_err(|_| Full)
    }

    async fn room(&self) {
        self.input_room().await;
    }

    fn is_drained(&self) -> bool {
        self.is_input_drained()
    }

    async fn drained(&self) {
        self.input_drained().await;
    }
}

/// The guest does not keep up: what was to be sent is to be sent again after [`GuestInput::room`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// A way to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Hardware,
    Bus,
}

/// What keeps input from being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    /// The hardware has no room.
    Hardware,
    /// The hardware has something that must not be overtaken.
    Drain,
    /// The bus has no room, or has closed.
    Bus,
}

/// A session's end of both ways.
#[derive(Debug)]
pub(super) struct GuestInput<H> {
    hardware: H,
    port: InputPort,
    provider: Provider,
    capabilities: watch::Receiver<Option<InputCapabilities>>,
    /// What of them holds for this session.
    agent: Option<InputCapabilities>,
    /// Keys that the client holds.
    held: BTreeSet<Scancode>,
    /// To be sent before anything else, after a change.
    first: VecDeque<(Way, KeyEvent)>,
    /// What kept something from being sent the last time.
    behind: Behind,
    /// Whether keys may still be on their way through the hardware.
    typed: bool,
    session: SessionId,
    stats: SessionStats,
}

impl<H: Hardware> GuestInput<H> {
    pub(super) fn new(
        hardware: H,
        port: InputPort,
        provider: Provider,
        session: SessionId,
        stats: SessionStats,
    ) -> Self {
        let mut input = Self {
            hardware,
            provider,
            capabilities: port.capabilities(),
            port,
            agent: None,
            held: BTreeSet::new(),
            first: VecDeque::new(),
            behind: Behind::Hardware,
            typed: false,
            session,
            stats,
        };
        input.choose();
        input
    }

    /// What the guest takes of touch; none while it takes nothing.
    pub(super) fn touch(&self) -> Option<GuestTouch> {
        let agent = self.agent.filter(|agent| agent.max_contacts > 0)?;
        Some(GuestTouch { max_contacts: agent.max_contacts, pens: agent.pen })
    }

    /// Says how large the desktop is that the client points at.
    pub(super) fn set_desktop(&self, size: Size) {
        self.port.set_layout(&[size.rect()]);
    }

    /// Waits until it is worth to send again. Cancel safe.
    pub(super) async fn room(&self) {
        match self.behind {
            Behind::Hardware => self.hardware.room().await,
            Behind::Drain => self.hardware.drained().await,
            Behind::Bus => self.port.room().await,
        }
    }

    /// Takes the better way from now on.
    pub(super) fn choose(&mut self) {
        // One that came right after another has gone takes the same, and knows nothing of what was pressed.
        let is_another = self.capabilities.has_changed().unwrap_or(false);
        let present = *self.capabilities.borrow_and_update();
        let agent = present.filter(|_| self.provider != Provider::Hardware);
        let before = std::mem::replace(&mut self.agent, agent);
        if before == agent && !(is_another && agent.is_some()) {
            return;
        }
        self.first.clear();
        for way in [Way::Hardware, Way::Bus] {
            self.first.push_back((way, KeyEvent::ReleaseAll));
        }
        for scancode in MODIFIERS.into_iter().filter(|key| self.held.contains(key)) {
            let press = KeyEvent::Key { scancode, state: KeyState::Pressed };
            self.first.extend(self.way_of_keys().map(|way| (way, press)));
        }
    }

    /// Passes input on.
    ///
    /// # Errors
    ///
    /// When the guest is behind.
    pub(super) fn send(&mut self, event: &InputEvent) -> Result<(), Full> {
        self.catch_up()?;
        match event {
            InputEvent::Key(key) => self.send_key(*key),
            InputEvent::Pointer(pointer) => self.send_pointer(*pointer),
            InputEvent::Touch(frame) => {
                let mut frame = frame.clone();
                let first = first_of(self.session, MAX_CONTACTS);
                frame.contacts.iter_mut().for_each(|contact| contact.id = contact.id.wrapping_add(first));
                self.send_to_agent(|port| port.send_touch(frame), SessionStats::touched)
            }
            InputEvent::Pen(pen) => {
                let [low, _] = first_of(self.session, MAX_PENS).to_le_bytes();
                let pen = PenEvent { device: pen.device.wrapping_add(low), ..*pen };
                self.send_to_agent(|port| port.send_pen(pen), SessionStats::drawn)
            }
        }
    }

    /// Lets go of everything, on both ways.
    ///
    /// # Errors
    ///
    /// When the guest is behind.
    pub(super) fn release_all(&mut self) -> Result<(), Full> {
        if self.first.is_empty() {
            self.held.clear();
            self.first.extend([(Way::Bus, KeyEvent::ReleaseAll), (Way::Hardware, KeyEvent::ReleaseAll)]);
        }
        self.catch_up()
    }

    /// Whether something of the last change is still to be sent.
    pub(super) fn is_behind(&self) -> bool {
        !self.first.is_empty()
    }

    /// Sends what is still to be sent of the last change.
    ///
    /// # Errors
    ///
    /// When the guest is behind.
    pub(super) fn catch_up(&mut self) -> Result<(), Full> {
        while let Some((way, key)) = self.first.front().copied() {
            self.send_key_by(way, key)?;
            self.first.pop_front();
        }
        Ok(())
    }

    fn send_key(&mut self, key: KeyEvent) -> Result<(), Full> {
        // Who asks the agent for a character that it cannot write gets it from the keyboard that can.
        let way = match key {
            KeyEvent::Unicode { .. } if self.agent.is_some_and(|agent| !agent.unicode) => self.hardware_way(),
            _ => self.way_of_keys(),
        };
        if let Some(way) = way {
            self.send_key_by(way, key)?;
        }
        match key {
            KeyEvent::Key { scancode, state: KeyState::Pressed } => drop(self.held.insert(scancode)),
            KeyEvent::Key { scancode, state: KeyState::Released } => drop(self.held.remove(&scancode)),
            KeyEvent::ReleaseAll => self.held.clear(),
            KeyEvent::Unicode { .. } | KeyEvent::Locks(_) => {}
        }
        Ok(())
    }

    fn send_key_by(&mut self, way: Way, key: KeyEvent) -> Result<(), Full> {
        match way {
            Way::Hardware => {
                self.typed = true;
                self.by_hardware(|hardware| hardware.send_key(key))
            }
            Way::Bus => self.by_bus(|port| port.send_key(key)),
        }
    }

    fn send_pointer(&mut self, event: PointerEvent) -> Result<(), Full> {
        let by_agent = |agent: InputCapabilities| match event {
            PointerEvent::MoveBy { .. } => agent.relative_pointer,
            _ => agent.pointer,
        };
        let way = if self.agent.is_some_and(by_agent) { Some(Way::Bus) } else { self.hardware_way() };
        match way {
            Some(Way::Hardware) => self.by_hardware(|hardware| hardware.send_pointer(event)),
            Some(Way::Bus) => self.by_bus(|port| port.send_pointer(event)),
            None => Ok(()),
        }
    }

    fn send_to_agent(
        &mut self,
        send: impl FnOnce(&InputPort) -> Result<(), InputRefused>,
        count: impl FnOnce(&SessionStats),
    ) -> Result<(), Full> {
        if self.agent.is_some() {
            self.by_bus(send)?;
            count(&self.stats);
        }
        Ok(())
    }

    fn by_hardware(&mut self, send: impl FnOnce(&H) -> Result<(), Full>) -> Result<(), Full> {
        let sent = send(&self.hardware);
        if sent.is_err() {
            self.behind = Behind::Hardware;
        }
        sent
    }

    fn by_bus(&mut self, send: impl FnOnce(&InputPort) -> Result<(), InputRefused>) -> Result<(), Full> {
        if self.agent.is_none() {
            // Nothing is pressed there.
            return Ok(());
        }
        if self.typed && !self.hardware.is_drained() {
            self.behind = Behind::Drain;
            return Err(Full);
        }
        self.typed = false;
        match send(&self.port) {
            Ok(()) => Ok(()),
            Err(InputRefused::Closed) => {
                // What it did not take goes the other way.
                self.behind = Behind::Bus;
                self.choose();
                Err(Full)
            }
            Err(InputRefused::Full) => {
                self.behind = Behind::Bus;
                Err(Full)
            }
        }
    }

    fn way_of_keys(&self) -> Option<Way> {
        if self.agent.is_some_and(|agent| agent.keyboard) { Some(Way::Bus) } else { self.hardware_way() }
    }

    /// The hardware's way, unless the definition leaves it out.
    fn hardware_way(&self) -> Option<Way> {
        (self.provider != Provider::Bus).then_some(Way::Hardware)
    }
}

/// The first of the `each` numbers that are a session's among all sessions of its time; they begin anew after the last.
fn first_of(session: SessionId, each: usize) -> u16 {
    let [low, high, ..] = session.wrapping_mul(each as u64).to_le_bytes();
    u16::from_le_bytes([low, high])
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use console::{ContactPhase, FinePoint, TouchContact, TouchFrame};
    use enhanced_session::class::input::Kinds;

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Keyboard {
        typed: Arc<Mutex<Vec<KeyEvent>>>,
        full: Arc<AtomicBool>,
        slow: Arc<AtomicBool>,
    }

    impl Hardware for Keyboard {
        fn send_key(&self, event: KeyEvent) -> Result<(), Full> {
            if self.full.load(Ordering::Relaxed) {
                return Err(Full);
            }
            self.typed.lock().expect("whole").push(event);
            Ok(())
        }

        fn send_pointer(&self, _: PointerEvent) -> Result<(), Full> {
            Ok(())
        }

        async fn room(&self) {}

        fn is_drained(&self) -> bool {
            !self.slow.load(Ordering::Relaxed)
        }

        async fn drained(&self) {}
    }

    fn agent() -> InputCapabilities {
        let kinds = Kinds { keyboard: true, pointer: true, ..Kinds::default() };
        InputCapabilities::new(10, kinds)
    }

    fn key(scancode: Scancode, state: KeyState) -> KeyEvent {
        KeyEvent::Key { scancode, state }
    }

    fn typed(input: &mut GuestInput<Keyboard>, events: &[KeyEvent]) {
        for event in events {
            input.send(&InputEvent::Key(*event)).expect("room");
        }
    }

    fn take(keyboard: &Keyboard) -> Vec<KeyEvent> {
        std::mem::take(&mut *keyboard.typed.lock().expect("whole"))
    }

    const A: Scancode = Scancode::plain(0x1e);
    const CTRL: Scancode = Scancode::plain(0x1d);
    const DOWN: KeyState = KeyState::Pressed;
    const UP: KeyState = KeyState::Released;

    #[test]
    fn a_held_modifier_goes_along_and_a_held_letter_does_not() {
        let (keyboard, port) = (Keyboard::default(), InputPort::for_tests());
        let mut input = GuestInput::new(keyboard.clone(), port.clone(), Provider::Auto, 0, SessionStats::default());
        typed(&mut input, &[key(CTRL, DOWN), key(A, DOWN)]);
        assert_eq!(take(&keyboard).len(), 2);

        port.open_for_tests(agent());
        input.choose();
        input.catch_up().expect("room");
        assert_eq!(take(&keyboard), [KeyEvent::ReleaseAll]);
        assert_eq!(port.keys_for_tests(), [KeyEvent::ReleaseAll, key(CTRL, DOWN)]);
        typed(&mut input, &[key(CTRL, UP)]);
        assert_eq!(port.keys_for_tests(), [key(CTRL, UP)]);
        assert_eq!(take(&keyboard), []);

        typed(&mut input, &[key(CTRL, DOWN)]);
        port.close_for_tests();
        input.choose();
        input.catch_up().expect("room");
        assert_eq!(take(&keyboard), [KeyEvent::ReleaseAll, key(CTRL, DOWN)]);
    }

    #[test]
    fn a_definition_that_wants_one_way_gets_no_other() {
        let (keyboard, port) = (Keyboard::default(), InputPort::for_tests());
        let mut input = GuestInput::new(keyboard.clone(), port.clone(), Provider::Bus, 0, SessionStats::default());
        typed(&mut input, &[key(A, DOWN)]);
        assert_eq!(take(&keyboard), []);
        port.open_for_tests(agent());
        let mut hardware =
            GuestInput::new(keyboard.clone(), port.clone(), Provider::Hardware, 0, SessionStats::default());
        typed(&mut hardware, &[key(A, DOWN)]);
        assert_eq!(take(&keyboard), [key(A, DOWN)]);
        assert_eq!(hardware.touch(), None);
        input.choose();
        assert_eq!(input.touch().map(|touch| touch.max_contacts), Some(10));
    }

    #[test]
    fn what_the_agent_cannot_do_the_hardware_does() {
        let (keyboard, port) = (Keyboard::default(), InputPort::for_tests());
        port.open_for_tests(agent());
        let mut input = GuestInput::new(keyboard.clone(), port.clone(), Provider::Auto, 0, SessionStats::default());
        input.catch_up().expect("room");
        drop((take(&keyboard), port.keys_for_tests()));
        let letter = KeyEvent::Unicode { unit: 0xe9, state: DOWN };
        typed(&mut input, &[letter]);
        assert_eq!((take(&keyboard), port.keys_for_tests()), (vec![letter], vec![]));
    }

    #[test]
    fn a_change_that_finds_no_room_is_made_up_for_before_anything_else() {
        let (keyboard, port) = (Keyboard::default(), InputPort::for_tests());
        let mut input = GuestInput::new(keyboard.clone(), port.clone(), Provider::Auto, 0, SessionStats::default());
        keyboard.full.store(true, Ordering::Relaxed);
        port.open_for_tests(agent());
        input.choose();
        assert_eq!(input.send(&InputEvent::Key(key(A, DOWN))), Err(Full));
        assert!(input.is_behind());
        keyboard.full.store(false, Ordering::Relaxed);
        typed(&mut input, &[key(A, DOWN)]);
        assert_eq!(take(&keyboard), [KeyEvent::ReleaseAll]);
        assert_eq!(port.keys_for_tests(), [KeyEvent::ReleaseAll, key(A, DOWN)]);
    }

    #[test]
    fn what_the_hardware_still_has_is_not_overtaken() {
        let (keyboard, port) = (Keyboard::default(), InputPort::for_tests());
        let mut input = GuestInput::new(keyboard.clone(), port.clone(), Provider::Auto, 0, SessionStats::default());
        keyboard.slow.store(true, Ordering::Relaxed);
        typed(&mut input, &[key(A, DOWN), key(A, UP)]);
        port.open_for_tests(agent());
        input.choose();
        assert_eq!(input.send(&InputEvent::Key(key(CTRL, DOWN))), Err(Full));
        assert_eq!((input.behind, port.keys_for_tests()), (Behind::Drain, vec![]));
        keyboard.slow.store(false, Ordering::Relaxed);
        typed(&mut input, &[key(CTRL, DOWN)]);
        assert_eq!(port.keys_for_tests(), [KeyEvent::ReleaseAll, key(CTRL, DOWN)]);
        // The pointer's hardware is another device: it holds up no key.
        keyboard.slow.store(true, Ordering::Relaxed);
        typed(&mut input, &[key(CTRL, UP)]);
        assert_eq!(port.keys_for_tests(), [key(CTRL, UP)]);
    }

    #[test]
    fn what_a_closed_bus_does_not_take_goes_to_the_hardware() {
        let (keyboard, port) = (Keyboard::default(), InputPort::for_tests());
        port.open_for_tests(agent());
        let mut input = GuestInput::new(keyboard.clone(), port.clone(), Provider::Auto, 0, SessionStats::default());
        typed(&mut input, &[key(CTRL, DOWN)]);
        take(&keyboard);
        // The session has not heard of it when the next key comes.
        port.close_for_tests();
        assert_eq!(input.send(&InputEvent::Key(key(A, DOWN))), Err(Full));
        typed(&mut input, &[key(A, DOWN)]);
        assert_eq!(take(&keyboard), [KeyEvent::ReleaseAll, key(CTRL, DOWN), key(A, DOWN)]);
        assert_eq!(input.release_all(), Ok(()));
    }

    #[test]
    fn an_agent_that_replaces_another_in_a_moment_is_told_what_is_held() {
        let (keyboard, port) = (Keyboard::default(), InputPort::for_tests());
        port.open_for_tests(agent());
        let mut input = GuestInput::new(keyboard.clone(), port.clone(), Provider::Auto, 0, SessionStats::default());
        typed(&mut input, &[key(CTRL, DOWN)]);
        port.close_for_tests();
        port.open_for_tests(agent());
        input.choose();
        typed(&mut input, &[key(A, DOWN)]);
        assert_eq!(port.keys_for_tests(), [KeyEvent::ReleaseAll, key(CTRL, DOWN), key(A, DOWN)]);
        input.choose();
        assert!(!input.is_behind(), "it is the same agent");
    }

    fn finger(id: u16) -> InputEvent {
        let contact = TouchContact {
            id,
            phase: ContactPhase::Down,
            position: FinePoint::default(),
            pressure: None,
            size: None,
            orientation: None,
        };
        InputEvent::Touch(TouchFrame { contacts: vec![contact], ..TouchFrame::default() })
    }

    #[test]
    fn fingers_go_to_the_agent_or_nowhere_and_are_counted() {
        let (keyboard, port, stats) = (Keyboard::default(), InputPort::for_tests(), SessionStats::default());
        let mut input = GuestInput::new(keyboard, port.clone(), Provider::Auto, 0, stats.clone());
        assert_eq!(input.send(&finger(0)), Ok(()));
        assert_eq!(stats.read().touch_frames, 0);
        port.open_for_tests(agent());
        input.choose();
        input.send(&finger(0)).expect("room");
        assert_eq!((port.touches_for_tests().len(), stats.read().touch_frames), (1, 1));
    }

    #[test]
    fn fingers_of_two_sessions_are_not_taken_for_one() {
        let port = InputPort::for_tests();
        port.open_for_tests(agent());
        for session in [7, 8, u64::MAX] {
            let (keyboard, stats) = (Keyboard::default(), SessionStats::default());
            let mut input = GuestInput::new(keyboard, port.clone(), Provider::Auto, session, stats);
            input.send(&finger(63)).expect("room");
        }
        let ids: Vec<_> = port.touches_for_tests().iter().map(|frame| frame.contacts[0].id).collect();
        assert_eq!(ids, [7 * 64 + 63, 8 * 64 + 63, u16::MAX]);
    }
}
