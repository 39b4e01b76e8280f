//! Keys, pointers, fingers and pens for the guest's agent, in the order in which the sessions sent them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use enhanced_session::class::List;
use enhanced_session::class::input::{Event, MAX_EVENTS, ToGuest, ToHost};
use enhanced_session::message::Message;
use enhanced_session::wire::Malformed;

use super::{Channel, Full, Moment, Service};
use crate::bus::input_port::{Input as Item, InputCapabilities, InputPort};

/// Messages whose acknowledgement is waited for, to tell how long input takes.
const MAX_UNACKNOWLEDGED: usize = 64;
/// The monitor of all input that a client of one monitor sends.
const FIRST_MONITOR: u16 = 0;

/// The host's side of the class.
#[derive(Debug)]
pub(in crate::bus) struct Input {
    port: InputPort,
    serial: u32,
    sent: VecDeque<(u32, Instant)>,
    latency: Option<Duration>,
}

impl Input {
    pub(in crate::bus) const fn new(port: InputPort) -> Self {
        Self { port, serial: 0, sent: VecDeque::new(), latency: None }
    }

    /// From sending the last acknowledged message to its acknowledgement: the way there and back, and the guest's work.
    pub(in crate::bus) const fn latency(&self) -> Option<Duration> {
        self.latency
    }

    /// What the agent takes, while it is there.
    pub(in crate::bus) fn capabilities(&self) -> Option<InputCapabilities> {
        *self.port.capabilities().borrow()
    }

    /// Sends what is at the front of the queue, and takes it off when it was sent.
    fn send_front(&mut self, at: Moment, waiting: &mut VecDeque<Item>, channel: &mut dyn Channel) -> Result<(), Full> {
        let serial = self.serial.wrapping_add(1);
        let (message, items) = message(serial, waiting);
        if let Some(message) = message {
            let counts = !matches!(message, ToGuest::Layout { .. });
            channel.send(message.encode())?;
            if counts {
                self.serial = serial;
                if self.sent.len() == MAX_UNACKNOWLEDGED {
                    self.sent.pop_front();
                }
                self.sent.push_back((serial, at.now));
            }
        }
        waiting.drain(..items);
        Ok(())
    }
}

impl Service for Input {
    fn opened(&mut self, _: Moment) {
        (self.serial, self.latency) = (0, None);
        self.sent.clear();
    }

    fn closed(&mut self) {
        self.port.close();
        self.sent.clear();
    }

    fn handle(&mut self, at: Moment, message: Message) -> Result<(), Malformed> {
        let Message::Data(bytes) = message else { return Ok(()) };
        match ToHost::decode(&bytes)? {
            ToHost::Capabilities { max_contacts, kinds } => {
                self.port.open(InputCapabilities::new(max_contacts, kinds));
            }
            ToHost::Ack { serial, .. } => {
                while let Some((_, sent)) =
                    self.sent.pop_front_if(|(sent, _)| serial.wrapping_sub(*sent) < u32::MAX / 2)
                {
                    self.latency = Some(at.now.saturating_duration_since(sent));
                }
            }
            ToHost::Leds { .. } | ToHost::Unknown(_) => {}
        }
        Ok(())
    }

    fn drive(&mut self, at: Moment, channel: &mut dyn Channel) -> Result<(), Full> {
        let port = self.port.clone();
        let mut driven = Ok(());
        port.take(|waiting| {
            while driven.is_ok() && !waiting.is_empty() {
                driven = self.send_front(at, waiting, channel);
            }
        });
        driven
    }

    fn timeout(&self) -> Option<Instant> {
        None
    }
}

/// The message for as much of the queue's front as fits into one, and how much that is. No message: it cannot be said.
fn message(serial: u32, waiting: &VecDeque<Item>) -> (Option<ToGuest>, usize) {
    let events: Vec<Event> = waiting.iter().map_while(event).take(MAX_EVENTS).collect();
    if !events.is_empty() {
        let count = events.len();
        return (Some(ToGuest::Events { serial, events: List::first(events) }), count);
    }
    let message = match waiting.front() {
        Some(Item::Layout(monitors)) => Some(ToGuest::Layout { monitors: List::first(monitors.clone()) }),
        // A frame with more fingers than the wire has room for was refused where it came in.
        Some(Item::Touch(frame)) => ToGuest::touch(serial, FIRST_MONITOR, frame.clone()).ok(),
        Some(Item::Pen(event)) => Some(ToGuest::Pen { serial, monitor: FIRST_MONITOR, event: *event }),
        Some(Item::Key(_) | Item::Pointer(_)) | None => None,
    };
    (message, waiting.len().min(1))
}

fn event(item: &Item) -> Option<Event> {
    match item {
        Item::Key(event) => Some(Event::from(*event)),
        Item::Pointer(event) => Some(Event::pointer(FIRST_MONITOR, *event)),
        Item::Layout(_) | Item::Touch(_) | Item::Pen(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use console::{
        ContactPhase, FinePoint, KeyEvent, KeyState, PointerEvent, Rect, Scancode, TouchContact, TouchFrame,
    };
    use enhanced_session::class::input::Kinds;

    use super::super::testing::{Clock, Sent};
    use super::*;

    fn open(clock: &Clock) -> (Input, InputPort) {
        let port = InputPort::new();
        let mut input = Input::new(port.clone());
        input.opened(clock.at());
        let kinds = Kinds { keyboard: true, pointer: true, ..Kinds::default() };
        let capabilities = ToHost::Capabilities { max_contacts: 10, kinds };
        input.handle(clock.at(), Message::Data(capabilities.encode())).expect("read");
        (input, port)
    }

    fn key(code: u8) -> KeyEvent {
        KeyEvent::Key { scancode: Scancode::plain(code), state: KeyState::Pressed }
    }

    fn touch() -> TouchFrame {
        let contact = TouchContact {
            id: 3,
            phase: ContactPhase::Down,
            position: FinePoint { x: 5, y: 6 },
            pressure: None,
            size: None,
            orientation: None,
        };
        TouchFrame { contacts: vec![contact], since_previous: Duration::ZERO }
    }

    #[test]
    fn everything_arrives_in_the_order_in_which_it_happened() {
        let (clock, mut channel) = (Clock::new(), Sent::new());
        let (mut input, port) = open(&clock);
        port.set_layout(&[Rect::new(0, 0, 640, 480)]);
        port.send_key(key(1)).expect("room");
        port.send_pointer(PointerEvent::MoveBy { dx: 1, dy: 2 }).expect("room");
        port.send_touch(touch()).expect("room");
        port.send_key(key(2)).expect("room");
        input.drive(clock.at(), &mut channel).expect("room");
        let sent: Vec<_> = channel.messages.iter().map(|bytes| ToGuest::decode(bytes).expect("read")).collect();
        let [
            ToGuest::Layout { .. },
            ToGuest::Events { serial: 1, events },
            ToGuest::Touch { serial: 2, .. },
            ToGuest::Events { serial: 3, .. },
        ] = sent.as_slice()
        else {
            panic!("{sent:?}")
        };
        assert_eq!(events[..], [Event::from(key(1)), Event::MoveBy { dx: 1, dy: 2 }]);
    }

    #[test]
    fn what_finds_no_room_stays_and_is_sent_later() {
        let (clock, mut channel) = (Clock::new(), Sent::new());
        let (mut input, port) = open(&clock);
        port.send_touch(touch()).expect("room");
        port.send_key(key(1)).expect("room");
        channel.room = 1;
        assert_eq!(input.drive(clock.at(), &mut channel), Err(Full));
        channel.room = 1;
        input.drive(clock.at(), &mut channel).expect("room");
        assert!(matches!(ToGuest::decode(&channel.messages[1]), Ok(ToGuest::Events { serial: 2, .. })));
    }

    #[test]
    fn an_acknowledgement_counts_for_all_before_it() {
        let (mut clock, mut channel) = (Clock::new(), Sent::new());
        let (mut input, port) = open(&clock);
        port.send_touch(touch()).expect("room");
        port.send_touch(touch()).expect("room");
        input.drive(clock.at(), &mut channel).expect("room");
        let ack = ToHost::Ack { serial: 2, spent: Duration::ZERO };
        input.handle(clock.pass(Duration::from_millis(4)), Message::Data(ack.encode())).expect("read");
        assert_eq!((input.latency(), input.sent.len()), (Some(Duration::from_millis(4)), 0));
    }

    #[test]
    fn the_port_closes_with_the_channel() {
        let clock = Clock::new();
        let (mut input, port) = open(&clock);
        assert!(port.capabilities().borrow().is_some());
        input.closed();
        assert!(port.send_key(key(1)).is_err());
    }
}
