//! Input: the host's keys, pointer, fingers and pen become input devices of the guest.
//!
//! The devices are there as long as the channel is open; whatever is down then comes up with them.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use console::{KeyEvent, LockKeys};
use enhanced_session::class::input::{Event as HostEvent, Kinds, ToGuest, ToHost};
use tracing::{debug, info, warn};

use super::{Completions, Failure, Health, Incoming, Outgoing, Service, ServiceError};

mod desktop;
mod evdev;
mod keyboard;
mod pen;
mod pointer;
mod scancode;
mod touch;
mod uinput;

use desktop::Desktop;
use evdev::{Device, Event};
use keyboard::Keyboard;
use pen::Tablet;
use pointer::Pointer;
use touch::TouchScreen;

/// How often is tried again to make the devices where that failed: a driver may come late.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Of the characters, the keyboard can type those of one layout only, as virtual hardware can. All the same they go this
/// way: on another than the keys around them they would come in another order.
const KINDS: Kinds = Kinds { keyboard: true, unicode: true, pointer: true, relative_pointer: true, pen: true };
const NO_KINDS: Kinds = Kinds { keyboard: false, unicode: false, pointer: false, relative_pointer: false, pen: false };

/// The guest's input devices that are ours.
trait Devices {
    /// Puts events into the system, all of one device.
    fn emit(&mut self, device: Device, events: &[Event]) -> io::Result<()>;
    /// What becomes readable when lights change.
    fn lights_changes(&self) -> BorrowedFd<'_>;
    /// The lights of the keyboard, if they changed since the last call.
    fn poll_lights(&mut self) -> Option<LockKeys>;
}

type Opener = Box<dyn Fn() -> io::Result<Box<dyn Devices>>>;

/// The service of one channel.
pub(super) struct Input {
    opener: Opener,
    devices: Result<Box<dyn Devices>, Missing>,
    desktop: Desktop,
    keyboard: Keyboard,
    pointer: Pointer,
    touch_screen: TouchScreen,
    tablet: Tablet,
    capabilities_due: bool,
    leds_due: Option<LockKeys>,
    ack_due: Option<(u32, Duration)>,
    completions: Completions,
}

/// There are no devices.
struct Missing {
    retry_at: Instant,
    _failure: Failure,
}

impl Input {
    /// Makes devices of this system.
    pub(super) fn of_system(now: Instant, health: &Health) -> Self {
        Self::new(Box::new(|| Ok(Box::new(uinput::UinputDevices::create()?))), now, health)
    }

    fn new(opener: Opener, now: Instant, health: &Health) -> Self {
        let devices = opener().map_err(|error| {
            warn!(%error, "cannot make input devices; is the module uinput there?");
            Missing { retry_at: now + RETRY_INTERVAL, _failure: health.failure() }
        });
        Self {
            opener,
            devices,
            desktop: Desktop::default(),
            keyboard: Keyboard::default(),
            pointer: Pointer::default(),
            touch_screen: TouchScreen::default(),
            tablet: Tablet::default(),
            capabilities_due: true,
            leds_due: Some(LockKeys::default()),
            ack_due: None,
            completions: Completions::default(),
        }
    }

    fn message(&mut self, arrival: Instant, message: ToGuest) {
        let (serial, events) = match message {
            ToGuest::Layout { monitors } => {
                self.desktop = Desktop::new(monitors.into_vec());
                return;
            }
            ToGuest::Events { serial, events } => {
                let mut all = Vec::new();
                events.iter().for_each(|event| self.event(*event, &mut all));
                (serial, all)
            }
            ToGuest::Touch { serial, monitor, contacts, since_previous: _ } => {
                let events = self.touch_screen.handle(&self.desktop, monitor, &contacts);
                (serial, on(Device::TouchScreen, events).collect())
            }
            ToGuest::Pen { serial, monitor, event } => {
                let events = self.tablet.handle(&self.desktop, monitor, &event);
                (serial, on(Device::Pen, events).collect())
            }
            ToGuest::Unknown(_) => return,
        };
        self.emit(&events);
        self.ack_due = Some((serial, arrival.elapsed()));
    }

    fn event(&mut self, event: HostEvent, all: &mut Vec<(Device, Event)>) {
        match event {
            HostEvent::MoveTo { monitor, position } => self.pointer.move_to(&self.desktop, monitor, position, all),
            HostEvent::MoveBy { dx, dy } => self.pointer.move_by(dx, dy, all),
            HostEvent::Button { button, state } => self.pointer.button(button, state, all),
            HostEvent::Wheel { axis, units } => self.pointer.wheel(axis, units, all),
            HostEvent::ReleaseAll => self.release_all(all),
            HostEvent::Key { .. } | HostEvent::Unicode { .. } | HostEvent::Locks { .. } => {
                if let Some(event) = event.key_event() {
                    self.key(event, all);
                }
            }
        }
    }

    fn key(&mut self, event: KeyEvent, all: &mut Vec<(Device, Event)>) {
        let mut events = Vec::new();
        self.keyboard.handle(event, &mut events);
        all.extend(on(Device::Keyboard, events));
    }

    fn release_all(&mut self, all: &mut Vec<(Device, Event)>) {
        self.key(KeyEvent::ReleaseAll, all);
        self.pointer.release_all(all);
        all.extend(on(Device::TouchScreen, self.touch_screen.release_all()));
        all.extend(on(Device::Pen, self.tablet.release_all()));
    }

    /// One write for all that follow each other on a device.
    fn emit(&mut self, events: &[(Device, Event)]) {
        let Ok(devices) = &mut self.devices else { return };
        for run in events.chunk_by(|(one, _), (other, _)| one == other) {
            let Some((device, _)) = run.first() else { continue };
            let events: Vec<Event> = run.iter().map(|(_, event)| *event).collect();
            if let Err(error) = devices.emit(*device, &events) {
                debug!(%error, ?device, "an input device does not take events");
            }
        }
    }
}

fn on(device: Device, events: Vec<Event>) -> impl Iterator<Item = (Device, Event)> {
    events.into_iter().map(move |event| (device, event))
}

impl Service for Input {
    fn handle(&mut self, now: Instant, incoming: Incoming<'_>) -> Result<(), ServiceError> {
        match incoming {
            Incoming::Message(bytes) => {
                let message = ToGuest::decode(bytes)?;
                self.message(now, message);
            }
            Incoming::Request(txid, _) => self.completions.push_unsupported(txid)?,
        }
        Ok(())
    }

    fn poll_output(&mut self) -> Option<Outgoing> {
        let message = if std::mem::take(&mut self.capabilities_due) {
            match self.devices {
                Ok(_) => ToHost::Capabilities { max_contacts: touch::SLOTS, kinds: KINDS },
                Err(_) => ToHost::Capabilities { max_contacts: 0, kinds: NO_KINDS },
            }
        } else if let Some(leds) = self.leds_due.take() {
            ToHost::Leds { leds }
        } else if let Some((serial, spent)) = self.ack_due.take() {
            ToHost::Ack { serial, spent }
        } else {
            return self.completions.pop();
        };
        Some(Outgoing::Message(message.encode()))
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.devices.as_ref().err().map(|missing| missing.retry_at)
    }

    fn handle_timeout(&mut self, now: Instant) {
        if let Err(missing) = &mut self.devices
            && now >= missing.retry_at
        {
            missing.retry_at = now + RETRY_INTERVAL;
            if let Ok(devices) = (self.opener)() {
                info!("made input devices after all");
                self.devices = Ok(devices);
                self.capabilities_due = true;
            }
        }
    }

    fn watched(&self) -> Option<BorrowedFd<'_>> {
        self.devices.as_ref().ok().map(|devices| devices.lights_changes())
    }

    fn handle_readable(&mut self, _: Instant) {
        if let Ok(devices) = &mut self.devices
            && let Some(lights) = devices.poll_lights()
        {
            self.keyboard.set_lights(lights);
            self.leds_due = Some(lights);
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let mut all = Vec::new();
        self.release_all(&mut all);
        self.emit(&all);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::os::fd::{AsFd, OwnedFd};
    use std::rc::Rc;

    use console::{ContactPhase, FinePoint, KeyState, PointerButton, Rect, Scancode, TouchContact};
    use enhanced_session::class::List;
    use enhanced_session::class::heartbeat::State;
    use enhanced_session::class::input::Contacts;
    use input_linux::Key;

    use super::*;

    #[derive(Default)]
    struct Fake {
        emitted: Vec<(Device, Vec<Event>)>,
        lights: Option<LockKeys>,
    }

    struct FakeDevices(Rc<RefCell<Fake>>, OwnedFd);

    impl Devices for FakeDevices {
        fn emit(&mut self, device: Device, events: &[Event]) -> io::Result<()> {
            self.0.borrow_mut().emitted.push((device, events.to_vec()));
            Ok(())
        }
        fn lights_changes(&self) -> BorrowedFd<'_> {
            self.1.as_fd()
        }
        fn poll_lights(&mut self) -> Option<LockKeys> {
            self.0.borrow_mut().lights.take()
        }
    }

    fn open() -> (Rc<RefCell<Fake>>, Input) {
        let fake = Rc::new(RefCell::new(Fake::default()));
        let devices = Rc::clone(&fake);
        let nothing = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let opener =
            move || -> io::Result<Box<dyn Devices>> { Ok(Box::new(FakeDevices(Rc::clone(&devices), nothing()))) };
        let mut input = Input::new(Box::new(opener), Instant::now(), &Health::default());
        assert_eq!(sent(&mut input).len(), 2, "capabilities and lights come first");
        (fake, input)
    }

    fn sent(input: &mut Input) -> Vec<ToHost> {
        let sent = std::iter::from_fn(|| input.poll_output()).map(|outgoing| match outgoing {
            Outgoing::Message(bytes) => ToHost::decode(&bytes).unwrap(),
            Outgoing::Completion(..) => panic!("nothing was asked"),
        });
        sent.collect()
    }

    fn tell(input: &mut Input, message: &ToGuest) {
        input.handle(Instant::now(), Incoming::Message(&message.encode())).unwrap();
    }

    fn layout() -> ToGuest {
        ToGuest::Layout { monitors: List::from([Rect { x: 0, y: 0, width: 200, height: 100 }]) }
    }

    fn press(scancode: Scancode) -> HostEvent {
        HostEvent::Key { scancode, state: KeyState::Pressed }
    }

    const CLICK: HostEvent = HostEvent::Button { button: PointerButton::Left, state: KeyState::Pressed };

    #[test]
    fn events_of_a_message_keep_their_order_and_go_out_in_one_write_per_run() {
        let (fake, mut input) = open();
        tell(&mut input, &layout());
        let events = [
            press(Scancode::plain(0x1d)),
            press(Scancode::plain(0x2a)),
            HostEvent::MoveTo { monitor: 0, position: FinePoint { x: 0, y: 0 } },
            CLICK,
            press(Scancode::plain(0x1e)),
        ];
        tell(&mut input, &ToGuest::Events { serial: 4, events: List::from(events) });
        let emitted = fake.borrow();
        let runs: Vec<_> = emitted.emitted.iter().map(|(device, events)| (*device, events.len())).collect();
        assert_eq!(runs, [(Device::Keyboard, 4), (Device::Pointer, 5), (Device::Keyboard, 2)]);
        assert!(matches!(sent(&mut input).as_slice(), [ToHost::Ack { serial: 4, .. }]));
    }

    #[test]
    fn messages_that_came_together_are_acknowledged_once() {
        let (_, mut input) = open();
        for serial in 1..=3 {
            tell(&mut input, &ToGuest::Events { serial, events: List::default() });
        }
        assert!(matches!(sent(&mut input).as_slice(), [ToHost::Ack { serial: 3, .. }]));
    }

    #[test]
    fn everything_comes_up_when_the_host_says_so_and_when_the_channel_closes() {
        for by_closing in [false, true] {
            let (fake, mut input) = open();
            tell(&mut input, &layout());
            tell(&mut input, &ToGuest::Events { serial: 1, events: List::from([press(Scancode::plain(0x1e)), CLICK]) });
            let finger = TouchContact {
                id: 1,
                phase: ContactPhase::Down,
                position: FinePoint::default(),
                pressure: None,
                size: None,
                orientation: None,
            };
            let contacts = Contacts::new(vec![finger]).unwrap();
            tell(&mut input, &ToGuest::Touch { serial: 2, monitor: 0, contacts, since_previous: Duration::ZERO });
            fake.borrow_mut().emitted.clear();
            if by_closing {
                drop(input);
            } else {
                tell(&mut input, &ToGuest::Events { serial: 3, events: List::from([HostEvent::ReleaseAll]) });
            }
            let emitted = &fake.borrow().emitted;
            let devices: Vec<_> = emitted.iter().map(|(device, _)| *device).collect();
            assert_eq!(devices, [Device::Keyboard, Device::Pointer, Device::TouchScreen]);
            assert_eq!(emitted[0].1, [Event::key(Key::A, evdev::UP), Event::SYN]);
        }
    }

    #[test]
    fn lights_are_told_and_lock_keys_follow_them() {
        let (fake, mut input) = open();
        let lights = LockKeys { num: true, ..LockKeys::default() };
        fake.borrow_mut().lights = Some(lights);
        input.handle_readable(Instant::now());
        assert_eq!(sent(&mut input), [ToHost::Leds { leds: lights }]);
        let locks = HostEvent::Locks { locks: lights };
        tell(&mut input, &ToGuest::Events { serial: 1, events: List::from([locks]) });
        assert_eq!(fake.borrow().emitted, []);
    }

    #[test]
    fn without_devices_nothing_is_promised_until_they_can_be_made() {
        let attempts = Rc::new(RefCell::new(0));
        let count = Rc::clone(&attempts);
        let opener = move || -> io::Result<Box<dyn Devices>> {
            *count.borrow_mut() += 1;
            if *count.borrow() < 3 {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(Box::new(FakeDevices(Rc::default(), std::fs::File::open("/dev/null")?.into())))
        };
        let health = Health::default();
        let mut input = Input::new(Box::new(opener), Instant::now(), &health);
        let none = ToHost::Capabilities { max_contacts: 0, kinds: NO_KINDS };
        assert_eq!(sent(&mut input).first(), Some(&none));
        assert_eq!(health.state(), State::Critical);
        tell(&mut input, &ToGuest::Events { serial: 1, events: List::from([CLICK]) });
        sent(&mut input);
        for _ in 0..2 {
            let retry_at = input.poll_timeout().expect("another attempt");
            input.handle_timeout(retry_at);
        }
        assert_eq!(sent(&mut input), [ToHost::Capabilities { max_contacts: touch::SLOTS, kinds: KINDS }]);
        assert_eq!((input.poll_timeout(), health.state()), (None, State::Healthy));
    }
}
