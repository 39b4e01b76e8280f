//! Touch and pens (MS-RDPEI): the client's fingers become [`console`] nouns. Server side, without the dynamic channel
//! below it.
//!
//! ```text
//!             SC_READY sent                   CS_READY
//!  new ───────────────────▶ await ready ───────────────────▶ ready ◀─────────┐
//!                                │                             │ SUSPEND      │ RESUME
//!                                └── CS_READY, nobody takes ─┐ ▼              │
//!                                                            └▶ suspended ────┘
//! ```
//! | file | what |
//! | --- | --- |
//! | `wire`, `pdu` | bytes ⇄ messages |
//! | `contacts` | what the figure of section 3.1.1.1 allows |
//!
//! A message that is malformed costs the client the channel; a contact that does what a contact cannot do is
//! cancelled; a message that nobody expects is ignored (3.1.5.1).

mod contacts;
mod pdu;
mod wire;

use std::collections::VecDeque;
use std::time::Duration;

use console::{
    ContactPhase, ContactSize, FinePoint, MAX_CONTACTS, PenButtons, PenEvent, PenTilt, Size, TouchContact, TouchFrame,
};
use thiserror::Error;

use contacts::{Contacts, Step};
use pdu::{ClientPdu, Common, CsReady, Frame};

/// Name of the dynamic channel (MS-RDPEI 2.1).
pub const CHANNEL_NAME: &str = "Microsoft::Windows::RDS::Input";
/// Pens of one client at the same time (MS-RDPEI 2.2.3.1).
pub const MAX_PENS: usize = 4;

/// Hundredths of a pixel in a pixel.
const FINE: u32 = 100;
/// The hardest touch that the client can tell of.
const MAX_PRESSURE: u32 = 1024;

/// A message that does not follow MS-RDPEI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TouchError {
    /// The message is not as long as its header says.
    #[error("touch message announces {announced} bytes and has {real}")]
    Length {
        /// What the header says.
        announced: u32,
        /// What came.
        real: usize,
    },
    /// It ends inside a field, or before the last of the items it announced.
    #[error("touch message ends too early")]
    Truncated,
    /// Something follows its last field.
    #[error("touch message has {0} bytes too many")]
    TooLong(usize),
    /// More frames than a client can have had time for.
    #[error("touch message has {0} frames, more than {max}", max = pdu::MAX_FRAMES)]
    TooManyFrames(usize),
    /// A contact has fields whose length is not known.
    #[error("contact has unknown fields: {0:#06x}")]
    UnknownFields(u16),
}

/// What a guest takes of touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestTouch {
    /// Fingers at the same time, at least one.
    pub max_contacts: u16,
    /// Pens, too.
    pub pens: bool,
}

/// What the caller is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TouchOutput {
    /// Send this message to the client.
    Send(Vec<u8>),
    /// The client's fingers did something. Ids are below [`MAX_CONTACTS`].
    Touch(TouchFrame),
    /// A pen of the client did something. Devices are below [`MAX_PENS`].
    Pen(PenEvent),
}

/// The channel of one session.
#[derive(Debug)]
pub struct TouchChannel {
    /// What the client can do; none before it has said so.
    client: Option<CsReady>,
    /// What the guest takes at the moment; none while it takes nothing.
    guest: Option<GuestTouch>,
    /// Whether the client was told to be silent.
    suspended: bool,
    desktop: Size,
    fingers: Contacts,
    /// Time of the client's fingers: the sum of their frames' offsets.
    finger_time: Duration,
    /// When they last did something that was passed on.
    last_frame: Duration,
    pens: Contacts,
    pen_time: Duration,
    output: VecDeque<TouchOutput>,
}

impl TouchChannel {
    /// The channel after the client accepted it, on a desktop of that size. Its first output starts the exchange.
    ///
    /// A client is told of pens only when the guest has them: otherwise it makes fingers or a pointer of its own.
    #[must_use]
    pub fn new(desktop: Size, guest: Option<GuestTouch>) -> Self {
        Self {
            client: None,
            guest,
            suspended: false,
            desktop,
            fingers: Contacts::new(MAX_CONTACTS),
            finger_time: Duration::ZERO,
            last_frame: Duration::ZERO,
            pens: Contacts::new(MAX_PENS),
            pen_time: Duration::ZERO,
            output: VecDeque::from([TouchOutput::Send(pdu::sc_ready(guest.is_none_or(|guest| guest.pens)))]),
        }
    }

    /// Takes one message of the client.
    ///
    /// # Errors
    ///
    /// When it is malformed: [`cancel_all`](Self::cancel_all), then close the channel.
    pub fn handle_message(&mut self, message: &[u8]) -> Result<(), TouchError> {
        match (pdu::decode(message)?, self.client) {
            (ClientPdu::Ready(ready), None) => {
                tracing::debug!(?ready, "client has touch");
                self.client = Some(ready);
                self.follow_guest();
            }
            (ClientPdu::Touch(frames), Some(client)) => {
                frames.iter().for_each(|frame| self.handle_touch(frame, client));
            }
            (ClientPdu::DismissHovering(id), Some(_)) => {
                self.fingers.begin_frame();
                let step = self.fingers.dismiss(id, self.finger_time);
                let contact = step.map(|step| touch_contact(&step, None));
                self.push_frame(contact.into_iter().collect(), Duration::ZERO);
            }
            (ClientPdu::Pen(frames), Some(client)) if client.version >= pdu::VERSION_2_0 => {
                frames.iter().for_each(|frame| self.handle_pen(frame, client));
            }
            (ClientPdu::Unexpected(id), _) => tracing::debug!(id, "touch message ignored"),
            _ => tracing::debug!("touch message out of sequence ignored"),
        }
        Ok(())
    }

    /// What the caller is to do, oldest first.
    pub fn poll_output(&mut self) -> Option<TouchOutput> {
        self.output.pop_front()
    }

    /// Another guest, or another part of it, takes touch from now on, or none does: what the one before had is
    /// cancelled. While none does, the client is told to be silent, and what it sends all the same is dropped.
    pub fn set_guest(&mut self, guest: Option<GuestTouch>) {
        self.cancel_all();
        self.guest = guest;
        self.follow_guest();
    }

    /// The client's desktop has this size: no contact is outside.
    pub fn set_desktop(&mut self, desktop: Size) {
        self.desktop = desktop;
    }

    /// Cancels every contact, each once. What they do until they begin anew is dropped.
    pub fn cancel_all(&mut self) {
        let contacts = self.fingers.cancel_all();
        self.push_frame(contacts.iter().map(|step| touch_contact(step, None)).collect(), Duration::ZERO);
        let pens = self.pens.cancel_all();
        self.output.extend(pens.iter().map(|step| TouchOutput::Pen(pen_event(step, None))));
    }

    /// What both sides can do counts. A client that has said what it can do is told whether it is listened to.
    fn follow_guest(&mut self) {
        let Some(client) = self.client else { return };
        if let Some(guest) = self.guest {
            self.fingers.set_limit(MAX_CONTACTS.min(client.max_contacts.min(guest.max_contacts).into()));
        }
        if self.suspended == self.guest.is_none() {
            return;
        }
        self.suspended = self.guest.is_none();
        let message = if self.suspended { pdu::suspend_input() } else { pdu::resume_input() };
        self.output.push_back(TouchOutput::Send(message));
    }

    fn handle_touch(&mut self, frame: &Frame<pdu::Contact>, client: CsReady) {
        self.finger_time = self.finger_time.saturating_add(offset(frame, client));
        let contacts = once_each(&frame.contacts, |contact| contact.common);
        if self.guest.is_none() {
            return contacts.iter().for_each(|(_, common)| self.fingers.refuse(common.id, common.phase));
        }
        // FreeRDP tells every 20 ms what a finger did last: of a short tap, only its end.
        let is_tap =
            |fingers: &Contacts, common: Common| common.phase == Some(ContactPhase::Up) && fingers.is_away(common.id);
        let taps = contacts.iter().filter(|(_, common)| is_tap(&self.fingers, *common));
        let taps: Vec<_> = taps.map(|(contact, common)| (*contact, common.with(ContactPhase::Down))).collect();
        self.pass_frame(&taps);
        self.pass_frame(&contacts);
    }

    /// Passes on what the figure allows of a frame's contacts.
    fn pass_frame(&mut self, contacts: &[(&pdu::Contact, Common)]) {
        self.fingers.begin_frame();
        let mut shown = Vec::new();
        for (contact, common) in contacts {
            let to = place(*common, self.desktop);
            let step = self.fingers.step(common.id, common.phase, to, self.finger_time);
            shown.extend(step.map(|step| touch_contact(&step, Some(contact))));
        }
        self.push_frame(shown, self.finger_time.saturating_sub(self.last_frame));
    }

    fn handle_pen(&mut self, frame: &Frame<pdu::Pen>, client: CsReady) {
        self.pen_time = self.pen_time.saturating_add(offset(frame, client));
        self.pens.begin_frame();
        let pens = self.guest.is_some_and(|guest| guest.pens);
        for (pen, common) in once_each(&frame.contacts, |pen| pen.common) {
            // 2.2.3.7.1.1: there is one pen, and its id is 0, unless the client wants several.
            if !pens || (common.id != 0 && !client.multipen) {
                self.pens.refuse(common.id, common.phase);
                continue;
            }
            let to = place(common, self.desktop);
            let step = self.pens.step(common.id, common.phase, to, self.pen_time);
            self.output.extend(step.map(|step| TouchOutput::Pen(pen_event(&step, Some(pen)))));
        }
    }

    fn push_frame(&mut self, contacts: Vec<TouchContact>, since_previous: Duration) {
        if !contacts.is_empty() {
            self.last_frame = self.finger_time;
            self.output.push_back(TouchOutput::Touch(TouchFrame { contacts, since_previous }));
        }
    }
}

/// The contacts of a frame. One that is there twice does the impossible, once.
fn once_each<T>(contacts: &[T], common: impl Fn(&T) -> Common) -> Vec<(&T, Common)> {
    let mut times = [0_usize; 256];
    contacts.iter().for_each(|contact| times[usize::from(common(contact).id)] += 1);
    let mut once = Vec::with_capacity(contacts.len().min(times.len()));
    for contact in contacts {
        let mut common = common(contact);
        match std::mem::take(&mut times[usize::from(common.id)]) {
            0 => continue,
            1 => {}
            _ => common.phase = None,
        }
        once.push((contact, common));
    }
    once
}

fn offset<T>(frame: &Frame<T>, client: CsReady) -> Duration {
    if client.timestamps { Duration::from_micros(frame.offset) } else { Duration::ZERO }
}

/// The middle of the pixel: what a guest rounds in any way is that pixel again.
fn place(common: Common, desktop: Size) -> FinePoint {
    let inside = |pixel: i32, side: u32| {
        let pixel = u32::try_from(pixel).unwrap_or(0).min(side.saturating_sub(1));
        i32::try_from(u64::from(pixel) * u64::from(FINE) + u64::from(FINE / 2)).unwrap_or(i32::MAX)
    };
    FinePoint { x: inside(common.x, desktop.width), y: inside(common.y, desktop.height) }
}

fn touch_contact(step: &Step, said: Option<&pdu::Contact>) -> TouchContact {
    TouchContact {
        id: step.number.into(),
        phase: step.phase,
        position: step.position,
        pressure: said.and_then(|said| said.pressure).map(pressure),
        size: said.and_then(|said| said.rect).and_then(size),
        orientation: said.and_then(|said| said.orientation).and_then(clockwise),
    }
}

fn pen_event(step: &Step, said: Option<&pdu::Pen>) -> PenEvent {
    let tilt = said.and_then(|said| match (said.tilt_x, said.tilt_y) {
        (None, None) => None,
        (x, y) => Some(PenTilt { x: degrees(x), y: degrees(y) }),
    });
    PenEvent {
        device: step.number,
        phase: step.phase,
        position: step.position,
        buttons: said.and_then(|said| said.flags).map(buttons).unwrap_or_default(),
        pressure: said.and_then(|said| said.pressure).map(pressure),
        rotation: said.and_then(|said| said.rotation).filter(|degrees| *degrees < 360),
        tilt,
        since_previous: step.since_previous,
    }
}

fn pressure(said: u32) -> u16 {
    let full = u64::from(u16::MAX);
    let scaled = u64::from(said.min(MAX_PRESSURE)) * full / u64::from(MAX_PRESSURE);
    u16::try_from(scaled).unwrap_or(u16::MAX)
}

/// Only the size counts: FreeRDP gives the rectangle's place on the desktop, the specification the one around the
/// contact.
fn size([left, top, right, bottom]: [i16; 4]) -> Option<ContactSize> {
    let side = |from: i16, to: i16| u32::try_from(i32::from(to) - i32::from(from)).ok().map(|side| side * FINE);
    Some(ContactSize { width: side(left, right)?, height: side(top, bottom)? })
}

/// The client counts the other way round.
fn clockwise(counter_clockwise: u32) -> Option<u16> {
    let degrees = u16::try_from(counter_clockwise).ok().filter(|degrees| *degrees < 360)?;
    Some((360 - degrees) % 360)
}

fn degrees(tilt: Option<i16>) -> i8 {
    i8::try_from(tilt.unwrap_or(0).clamp(-90, 90)).unwrap_or(0)
}

fn buttons(flags: u32) -> PenButtons {
    const BARREL: u32 = 0x1;
    const ERASER: u32 = 0x2;
    const INVERTED: u32 = 0x4;
    PenButtons { barrel: flags & BARREL != 0, eraser: flags & ERASER != 0, inverted: flags & INVERTED != 0 }
}

#[cfg(test)]
mod tests;
