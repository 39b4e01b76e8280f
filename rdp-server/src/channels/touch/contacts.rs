//! The lives of contacts, fingers or pens (MS-RDPEI 3.1.1.1).
//!
//! What comes out is always a path through the specification's figure, whatever the client says. A contact that
//! leaves the figure is cancelled, once, and from then on refused until it begins anew.

use std::collections::BTreeMap;
use std::time::Duration;

use console::{ContactPhase, FinePoint};

/// A set of contacts that the guest may be shown at the same time, with the small numbers it knows them by.
#[derive(Debug)]
pub(super) struct Contacts {
    known: BTreeMap<u8, Known>,
    /// One bit for each number that cannot be given to a contact that begins in this frame.
    used: u64,
    /// Bits of the numbers that exist.
    numbers: u64,
}

/// What happened to a contact, as the guest is to see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// From 0, below the limit; the same from the contact's beginning to its end.
    pub(super) number: u8,
    pub(super) phase: ContactPhase,
    pub(super) position: FinePoint,
    /// How long after the step before; zero for the first.
    pub(super) since_previous: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Known {
    /// The guest has it.
    Shown(Shown),
    /// The client has it, the guest has not, or no longer.
    Refused,
}

#[derive(Debug, Clone, Copy)]
struct Shown {
    number: u8,
    touching: bool,
    position: FinePoint,
    at: Duration,
}

/// Where a contact is, for the guest. (For the client it may be elsewhere: it is refused then.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Away,
    Near,
    Touching,
    Refused,
}

impl Contacts {
    /// No contact yet, and never more than `limit` at the same time.
    pub(super) fn new(limit: usize) -> Self {
        let mut contacts = Self { known: BTreeMap::new(), used: 0, numbers: 0 };
        contacts.set_limit(limit);
        contacts
    }

    /// No more than `limit` from now on: 1 to 64. Those that are there stay.
    pub(super) fn set_limit(&mut self, limit: usize) {
        let limit = u32::try_from(limit).unwrap_or(u64::BITS).clamp(1, u64::BITS);
        self.numbers = u64::MAX >> (u64::BITS - limit);
    }

    /// A frame begins: numbers of contacts that ended before it are free. Within a frame no number is given twice.
    pub(super) fn begin_frame(&mut self) {
        let shown = self.known.values().filter_map(|known| match known {
            Known::Shown(shown) => Some(1 << shown.number),
            Known::Refused => None,
        });
        self.used = shown.fold(0, |used, bit| used | bit);
    }

    /// The client says what a contact did (none: something impossible), where, and when: what the guest is to see.
    pub(super) fn step(&mut self, id: u8, said: Option<ContactPhase>, to: FinePoint, now: Duration) -> Option<Step> {
        let (state, phase) = next(self.state(id), said);
        let shown = match self.known.get(&id) {
            Some(Known::Shown(shown)) => Some(*shown),
            _ => None,
        };
        let number = match (shown, state) {
            (Some(shown), _) => Some(shown.number),
            (None, State::Near | State::Touching) => self.free_number(),
            (None, State::Away | State::Refused) => None,
        };
        // 3.1.1.1: where it stops to touch is where it was.
        let position = match (shown, phase) {
            (Some(shown), Some(ContactPhase::Lift)) => shown.position,
            (Some(shown), Some(phase)) if !phase.is_in_range() => shown.position,
            _ => to,
        };
        match (state, number) {
            (State::Away, _) => drop(self.known.remove(&id)),
            (State::Near | State::Touching, Some(number)) => {
                self.used |= 1 << number;
                let shown = Shown { number, touching: state == State::Touching, position, at: now };
                self.known.insert(id, Known::Shown(shown));
            }
            // More of them than the guest can be shown, or one that left the figure.
            _ => drop(self.known.insert(id, Known::Refused)),
        }
        let since_previous = shown.map_or(Duration::ZERO, |shown| now.saturating_sub(shown.at));
        Some(Step { number: number?, phase: phase?, position, since_previous })
    }

    /// The client says what a contact did while nobody takes it: it is refused as long as it is in range.
    pub(super) fn refuse(&mut self, id: u8, said: Option<ContactPhase>) {
        if said.is_none_or(ContactPhase::is_in_range) {
            self.known.insert(id, Known::Refused);
        } else {
            self.known.remove(&id);
        }
    }

    /// A contact that is near is away; one that touches, or that is not known, is left as it is (3.2.5.6).
    pub(super) fn dismiss(&mut self, id: u8, now: Duration) -> Option<Step> {
        match self.state(id) {
            State::Near => self.step(id, Some(ContactPhase::Leave), FinePoint::default(), now),
            State::Away | State::Touching | State::Refused => None,
        }
    }

    /// Whether nothing is known of a contact: the client has not begun it.
    pub(super) fn is_away(&self, id: u8) -> bool {
        self.state(id) == State::Away
    }

    /// Cancels every contact that the guest has, and refuses it from then on.
    pub(super) fn cancel_all(&mut self) -> Vec<Step> {
        let cancel = |known: &mut Known| {
            let Known::Shown(shown) = *known else { return None };
            *known = Known::Refused;
            let phase = if shown.touching { ContactPhase::UpCanceled } else { ContactPhase::LeaveCanceled };
            Some(Step { number: shown.number, phase, position: shown.position, since_previous: Duration::ZERO })
        };
        self.known.values_mut().filter_map(cancel).collect()
    }

    fn state(&self, id: u8) -> State {
        match self.known.get(&id) {
            None => State::Away,
            Some(Known::Shown(shown)) if shown.touching => State::Touching,
            Some(Known::Shown(_)) => State::Near,
            Some(Known::Refused) => State::Refused,
        }
    }

    fn free_number(&self) -> Option<u8> {
        let free = self.numbers & !self.used;
        // Below 64: there is a bit.
        (free != 0).then(|| u8::try_from(free.trailing_zeros()).unwrap_or(u8::MAX))
    }
}

/// Where a contact is after the client said something, and what the guest is told.
fn next(state: State, said: Option<ContactPhase>) -> (State, Option<ContactPhase>) {
    use ContactPhase::{Down, Hover, Leave, LeaveCanceled, Lift, Move, Up, UpCanceled};
    use State::{Away, Near, Refused, Touching};
    match (state, said) {
        // The figure.
        (Away | Near | Refused, Some(Down)) => (Touching, Some(Down)),
        (Away | Near | Refused, Some(Hover)) => (Near, Some(Hover)),
        (Near, Some(Leave | LeaveCanceled)) => (Away, said),
        (Touching, Some(Move)) => (Touching, said),
        (Touching, Some(Lift)) => (Near, said),
        (Touching, Some(Up | UpCanceled)) => (Away, said),
        // FreeRDP tells every 20 ms what a contact did last, so that what it did before is missing: a finger that
        // moves at once never goes down, and a pen that moves on is never lifted.
        (Away | Near, Some(Move)) => (Touching, Some(Down)),
        (Touching, Some(Hover)) => (Near, Some(Lift)),
        // And it repeats what a pen did last.
        (Near, Some(Lift)) => (Near, Some(Hover)),
        // A contact that the guest does not have can end at any time.
        (Away | Refused, Some(Up | UpCanceled | Leave | LeaveCanceled)) => (Away, None),
        // Everything else is outside the figure. What it was about is over for the guest.
        (Away | Refused, _) => (Refused, None),
        (Near, Some(Up | UpCanceled)) => (Away, Some(LeaveCanceled)),
        (Near, None) => (Refused, Some(LeaveCanceled)),
        (Touching, Some(Leave | LeaveCanceled)) => (Away, Some(UpCanceled)),
        (Touching, Some(Down) | None) => (Refused, Some(UpCanceled)),
    }
}

#[cfg(test)]
mod tests;
