//! The oracle for touch: what a guest is shown of any client.

use std::collections::BTreeMap;

use console::{ContactPhase, FinePoint, MAX_CONTACTS, PenEvent, Size, TouchFrame};

use super::session::Pieces;
use crate::channels::touch::{GuestTouch, MAX_PENS, TouchChannel, TouchOutput};

const DESKTOP: Size = Size::new(1920, 1080);

/// Pieces, each after two bytes with its length: messages of a client that is ready, or (the first byte says) the
/// server's turn. The guest sees contacts that live as contacts do, on its desktop, and none outlives the last piece.
///
/// # Panics
///
/// When it sees others.
pub fn fuzz_touch(bytes: &[u8]) {
    let guest = GuestTouch { max_contacts: 10, pens: true };
    let mut channel = TouchChannel::new(DESKTOP, Some(guest));
    let mut shown = Guest::default();
    for piece in Pieces(bytes) {
        let Some((kind, body)) = piece.split_first() else { continue };
        match kind % 8 {
            6 => channel.cancel_all(),
            7 => channel.set_guest((body.len() % 2 == 0).then_some(guest)),
            _ if channel.handle_message(body).is_err() => break,
            _ => {}
        }
        shown.look(&mut channel);
    }
    channel.cancel_all();
    shown.look(&mut channel);
    assert!(shown.fingers.is_empty() && shown.pens.is_empty(), "contacts are left: {shown:?}");
}

/// What the guest has been shown and not been told the end of.
#[derive(Debug, Default)]
struct Guest {
    fingers: BTreeMap<u16, ContactPhase>,
    pens: BTreeMap<u8, ContactPhase>,
}

impl Guest {
    fn look(&mut self, channel: &mut TouchChannel) {
        while let Some(output) = channel.poll_output() {
            match output {
                TouchOutput::Send(message) => assert!(message.len() >= 6, "a message without a header"),
                TouchOutput::Touch(frame) => self.touch(&frame),
                TouchOutput::Pen(event) => self.pen(&event),
            }
        }
    }

    fn touch(&mut self, frame: &TouchFrame) {
        assert!(!frame.contacts.is_empty(), "a frame without news");
        let mut ids: Vec<_> = frame.contacts.iter().map(|contact| contact.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), frame.contacts.len(), "a contact is twice in {frame:?}");
        for contact in &frame.contacts {
            assert!(usize::from(contact.id) < MAX_CONTACTS, "contact {}", contact.id);
            assert!(contact.orientation.is_none_or(|degrees| degrees < 360), "{:?}", contact.orientation);
            check_place(contact.position);
            follow(&mut self.fingers, contact.id, contact.phase);
        }
    }

    fn pen(&mut self, event: &PenEvent) {
        assert!(usize::from(event.device) < MAX_PENS, "pen {}", event.device);
        assert!(event.rotation.is_none_or(|degrees| degrees < 360), "{:?}", event.rotation);
        assert!(event.tilt.is_none_or(|tilt| tilt.x.abs() <= 90 && tilt.y.abs() <= 90), "{:?}", event.tilt);
        check_place(event.position);
        follow(&mut self.pens, event.device, event.phase);
    }
}

/// One step through the figure of MS-RDPEI 3.1.1.1.
fn follow<Id: Ord>(contacts: &mut BTreeMap<Id, ContactPhase>, id: Id, phase: ContactPhase) {
    use ContactPhase::{Down, Hover, Leave, LeaveCanceled, Lift, Move, Up, UpCanceled};
    let before = contacts.remove(&id);
    let allowed = match before.map(ContactPhase::is_touching) {
        None => matches!(phase, Down | Hover),
        Some(true) => matches!(phase, Move | Lift | Up | UpCanceled),
        Some(false) => matches!(phase, Down | Hover | Leave | LeaveCanceled),
    };
    assert!(allowed, "{phase:?} after {before:?}");
    if phase.is_in_range() {
        contacts.insert(id, phase);
    }
}

fn check_place(at: FinePoint) {
    let inside = |place: i32, side: u32| u32::try_from(place).is_ok_and(|place| place < side * 100);
    assert!(inside(at.x, DESKTOP.width) && inside(at.y, DESKTOP.height), "a contact at {at:?}");
}
