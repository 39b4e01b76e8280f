//! When a session has the channel of touch, and what becomes of it.
//!
//! ```text
//!  unopened ──somebody takes touch──▶ opening ──client accepts──▶ open
//!                                        └──refused, closed, misused──┴──▶ gone
//! ```
//! The client is offered the channel once. After that it is silenced and listened to again, but not asked again.

use console::Size;

use super::{Connection, Event};
use crate::channels::dynamic::DynamicChannelId;
use crate::channels::touch::{CHANNEL_NAME, GuestTouch, TouchChannel, TouchError, TouchOutput};
use crate::input::InputEvent;

/// Touch in one session.
#[derive(Debug)]
pub(super) struct Touch {
    guest: Option<GuestTouch>,
    desktop: Size,
    state: State,
}

#[derive(Debug)]
enum State {
    Unopened,
    Opening(DynamicChannelId),
    Open(DynamicChannelId, Box<TouchChannel>),
    Gone,
}

impl Touch {
    pub(super) const fn new(desktop: Size) -> Self {
        Self { guest: None, desktop, state: State::Unopened }
    }

    /// Whether that is its channel.
    pub(super) fn is(&self, id: DynamicChannelId) -> bool {
        matches!(&self.state, State::Opening(own) | State::Open(own, _) if *own == id)
    }
}

impl Connection {
    /// Says what the guest takes of touch from now on; none while it takes nothing, as at the beginning.
    ///
    /// What the fingers are doing ends for the one before: events that cancel it come first.
    pub fn set_touch(&mut self, guest: Option<GuestTouch>) {
        self.touch.guest = guest;
        if let State::Open(_, channel) = &mut self.touch.state {
            channel.set_guest(guest);
        }
        self.pass_touch();
        self.offer_touch();
    }

    /// The client's desktop has this size from now on: its fingers and pens are inside.
    pub fn set_desktop(&mut self, desktop: Size) {
        self.touch.desktop = desktop;
        if let State::Open(_, channel) = &mut self.touch.state {
            channel.set_desktop(desktop);
        }
    }

    /// Cancels what fingers and pens are doing, by events.
    pub fn cancel_touch(&mut self) {
        if let State::Open(_, channel) = &mut self.touch.state {
            channel.cancel_all();
        }
        self.pass_touch();
    }

    /// Asks the client for the channel, when there is a reason and it was not asked before.
    pub(super) fn offer_touch(&mut self) {
        if matches!(self.touch.state, State::Unopened) && self.touch.guest.is_some() && self.dynamic.is_ready() {
            let (id, request) = self.dynamic.open(CHANNEL_NAME);
            self.touch.state = State::Opening(id);
            self.send_dynamic(&request);
        }
    }

    pub(super) fn touch_opened(&mut self) {
        if let State::Opening(id) = self.touch.state {
            let channel = TouchChannel::new(self.touch.desktop, self.touch.guest);
            self.touch.state = State::Open(id, Box::new(channel));
            self.pass_touch();
        }
    }

    pub(super) fn handle_touch(&mut self, message: &[u8]) -> Result<(), TouchError> {
        let State::Open(_, channel) = &mut self.touch.state else { return Ok(()) };
        let result = channel.handle_message(message);
        self.pass_touch();
        result
    }

    /// The channel is gone, and with it the fingers.
    pub(super) fn touch_closed(&mut self) {
        self.cancel_touch();
        self.touch.state = State::Gone;
    }

    fn pass_touch(&mut self) {
        let State::Open(id, channel) = &mut self.touch.state else { return };
        let id = *id;
        let outputs: Vec<_> = std::iter::from_fn(|| channel.poll_output()).collect();
        for output in outputs {
            match output {
                TouchOutput::Send(message) => self.send_dynamic_data(id, &message),
                TouchOutput::Touch(frame) => self.events.push_back(Event::Input(InputEvent::Touch(frame))),
                TouchOutput::Pen(event) => self.events.push_back(Event::Input(InputEvent::Pen(event))),
            }
        }
    }
}
