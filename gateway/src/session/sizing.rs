//! Whose size counts: the client's wish, or what the guest shows.
//!
//! The guest decides in the end, but takes its time, and passes other sizes on the way (a driver lists old modes
//! until it has read the new ones). And a client whose window follows the desktop answers each size that we show
//! with a wish for that size, which would take back the wish before it. It may do so late, when it has been sent
//! another size long since.

use std::time::{Duration, Instant};

use console::{DamageSet, DisplayUpdate, Size};

/// How long a guest may take to follow a wish before another size of its own is shown.
const SETTLE: Duration = Duration::from_millis(1500);
/// How long after such a size a wish for just this size is taken for the client's echo.
const ECHO: Duration = Duration::from_secs(3);

/// The sizes of one session.
pub(super) struct Sizing {
    wish: Size,
    /// Whether the client has seen anything yet.
    started: bool,
    /// Until when other sizes than the wish wait.
    settles: Option<Instant>,
    /// A size shown against the wish, and when.
    imposed: Option<(Size, Instant)>,
    /// What waits.
    held: Option<DisplayUpdate>,
}

impl Sizing {
    /// A client that wants `wish` from the start; what the guest shows at that moment is shown at once.
    pub(super) fn new(wish: Size) -> Self {
        Self { wish, started: false, settles: None, imposed: None, held: None }
    }

    /// The client wants another size: what to tell the guest, if anything.
    pub(super) fn wanted(&mut self, size: Size, now: Instant) -> Option<Size> {
        if self.imposed.is_some_and(|(imposed, at)| imposed == size && now < at + ECHO) {
            return None;
        }
        self.wish = size;
        self.settles = Some(now + SETTLE);
        Some(size)
    }

    /// Takes a change of the picture and gives it back, unless it is to wait.
    pub(super) fn pass(&mut self, update: DisplayUpdate, now: Instant) -> Option<DisplayUpdate> {
        let held = self.held.take();
        let Some(size) = update.scanout.as_ref().map(|scanout| scanout.size()) else { return Some(update) };
        let update = match held {
            Some(held) => join(held, update, size),
            None => update,
        };
        if size == self.wish {
            self.started = true;
            self.settles = None;
            return Some(update);
        }
        if !update.scanout_changed {
            return Some(update);
        }
        if !std::mem::replace(&mut self.started, true) {
            self.settles = Some(now + SETTLE);
        } else if self.settles.is_some_and(|settles| now < settles) {
            self.held = Some(update);
            return None;
        }
        self.imposed = Some((size, now));
        Some(update)
    }

    /// When to ask [`overdue`](Self::overdue).
    pub(super) fn timeout(&self) -> Option<Instant> {
        self.held.as_ref().and(self.settles)
    }

    /// What has waited long enough.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<DisplayUpdate> {
        if self.timeout().is_none_or(|timeout| now < timeout) {
            return None;
        }
        self.settles = None;
        let held = self.held.take()?;
        self.pass(held, now)
    }
}

/// A picture that waited and what came after it: all of the newest one is new to the client.
fn join(held: DisplayUpdate, update: DisplayUpdate, size: Size) -> DisplayUpdate {
    DisplayUpdate {
        scanout_changed: true,
        damage: DamageSet::full(size),
        cursor: update.cursor.or(held.cursor),
        since: held.since.or(update.since),
        scanout: update.scanout,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::notice::Notice;
    use super::*;

    const SMALL: Size = Size::new(64, 48);
    const OTHER: Size = Size::new(100, 48);
    const LARGE: Size = Size::new(120, 90);

    fn picture(size: Size) -> DisplayUpdate {
        DisplayUpdate {
            scanout: Some(Arc::new(Notice::new(size, "", &[]))),
            scanout_changed: true,
            damage: DamageSet::full(size),
            ..DisplayUpdate::default()
        }
    }

    fn size_of(update: Option<DisplayUpdate>) -> Option<Size> {
        update.and_then(|update| update.scanout).map(|scanout| scanout.size())
    }

    #[test]
    fn at_the_start_the_guests_size_is_shown_at_once_and_not_echoed() {
        let now = Instant::now();
        let mut sizing = Sizing::new(LARGE);
        assert_eq!(size_of(sizing.pass(picture(SMALL), now)), Some(SMALL));
        assert_eq!(sizing.wanted(SMALL, now + ECHO / 2), None);
        assert_eq!(size_of(sizing.pass(picture(OTHER), now + SETTLE / 2)), None);
        assert_eq!(size_of(sizing.pass(picture(LARGE), now + ECHO / 2)), Some(LARGE));
        assert_eq!(sizing.wanted(SMALL, now + ECHO / 2), None, "a client that is slow to answer");
        assert_eq!(sizing.wanted(SMALL, now + ECHO), Some(SMALL));
    }

    #[test]
    fn sizes_on_the_way_to_the_wish_are_not_shown() {
        let now = Instant::now();
        let mut sizing = Sizing::new(SMALL);
        sizing.pass(picture(SMALL), now);
        assert_eq!(sizing.wanted(LARGE, now), Some(LARGE));
        assert_eq!(size_of(sizing.pass(picture(OTHER), now)), None);
        let arrived = sizing.pass(picture(LARGE), now + SETTLE / 2).unwrap();
        assert!(arrived.scanout_changed && sizing.timeout().is_none());
        assert_eq!(arrived.damage, DamageSet::full(LARGE));
    }

    #[test]
    fn a_guest_that_does_not_follow_is_shown_after_a_while() {
        let now = Instant::now();
        let mut sizing = Sizing::new(SMALL);
        sizing.pass(picture(SMALL), now);
        sizing.wanted(LARGE, now);
        assert_eq!(size_of(sizing.pass(picture(OTHER), now)), None);
        assert_eq!(size_of(sizing.overdue(now)), None);
        assert_eq!(sizing.timeout(), Some(now + SETTLE));
        assert_eq!(size_of(sizing.overdue(now + SETTLE)), Some(OTHER));
        assert_eq!(sizing.wanted(OTHER, now + SETTLE), None);
    }

    #[test]
    fn damage_of_a_picture_that_is_shown_passes() {
        let now = Instant::now();
        let mut sizing = Sizing::new(SMALL);
        sizing.wanted(LARGE, now);
        let drawn = DisplayUpdate { scanout_changed: false, ..picture(SMALL) };
        assert_eq!(size_of(sizing.pass(drawn, now)), Some(SMALL));
    }
}
