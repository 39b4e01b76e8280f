//! Whose size counts: the client's wish, or what the guest shows.
//!
//! The guest decides in the end, but takes its time, and passes other sizes on the way (a driver lists old modes
//! until it has read the new ones). And a client whose window follows the desktop answers each size that we show
//! with a wish for that size, which would take back the wish before it; it may do so late, when the guest has long
//! followed. So the client's desktop keeps the size it wished for until the guest had its time: what the guest shows
//! at the start is shown at once, framed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use console::{DamageSet, DisplayUpdate, Size};

use super::framed::Framed;

/// How long a guest may take to follow a wish before another size of its own is shown.
const SETTLE: Duration = Duration::from_millis(1500);
/// The same at the start, where the client has its picture meanwhile.
const FIRST_SETTLE: Duration = Duration::from_secs(3);
/// How long after such a size a wish for just this size is taken for the client's echo.
const ECHO: Duration = Duration::from_millis(1500);

/// The sizes of one session.
pub(super) struct Sizing {
    wish: Size,
    /// Whether the client has seen anything yet.
    started: bool,
    /// The desktop that pictures of other sizes are put on.
    frame: Option<Size>,
    /// Until when other sizes than the wish wait.
    settles: Option<Instant>,
    /// A size shown against the wish, and when.
    imposed: Option<(Size, Instant)>,
    /// What waits.
    held: Option<DisplayUpdate>,
}

impl Sizing {
    /// A client that wants `wish` from the start.
    pub(super) fn new(wish: Size) -> Self {
        Self { wish, started: false, frame: None, settles: None, imposed: None, held: None }
    }

    /// The client wants another size: what to tell the guest, if anything.
    pub(super) fn wanted(&mut self, size: Size, now: Instant) -> Option<Size> {
        if self.imposed.is_some_and(|(imposed, at)| imposed == size && now < at + ECHO) {
            return None;
        }
        self.wish = size;
        self.settles = self.settles.max(Some(now + SETTLE));
        Some(size)
    }

    /// Takes a change of the picture and gives back what to show of it, unless it is to wait.
    pub(super) fn pass(&mut self, update: DisplayUpdate, now: Instant) -> Option<DisplayUpdate> {
        let held = self.held.take();
        let Some(size) = update.scanout.as_ref().map(|scanout| scanout.size()) else { return Some(update) };
        if size == self.wish {
            self.started = true;
            self.frame = None;
            self.settles = None;
            return Some(joined(held, update, size));
        }
        if !std::mem::replace(&mut self.started, true) {
            self.frame = Some(self.wish);
            self.settles = self.settles.max(Some(now + FIRST_SETTLE));
        }
        let waits = self.settles.is_some_and(|settles| now < settles);
        if let Some(frame) = self.frame.filter(|_| waits) {
            let shown = framed(&update, frame);
            self.held = Some(joined(held, update, size));
            return Some(shown);
        }
        let update = joined(held, update, size);
        if !update.scanout_changed {
            return Some(update);
        }
        if waits {
            self.held = Some(update);
            return None;
        }
        self.frame = None;
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

/// A picture that may have waited and what came after it: then all of the newest one is new to the client.
fn joined(held: Option<DisplayUpdate>, update: DisplayUpdate, size: Size) -> DisplayUpdate {
    let Some(held) = held else { return update };
    DisplayUpdate {
        scanout_changed: true,
        damage: DamageSet::full(size),
        cursor: update.cursor.or(held.cursor),
        since: held.since.or(update.since),
        scanout: update.scanout,
    }
}

/// What a change of a picture changes on a desktop of `size`.
fn framed(update: &DisplayUpdate, size: Size) -> DisplayUpdate {
    let mut update = update.clone();
    update.scanout = update.scanout.map(|inside| Arc::new(Framed::new(inside, size)) as _);
    if update.scanout_changed {
        update.damage = DamageSet::full(size);
    } else {
        update.damage.clip(size);
    }
    update
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
    fn at_the_start_the_guests_picture_is_shown_on_the_desktop_the_client_wants() {
        let now = Instant::now();
        let mut sizing = Sizing::new(LARGE);
        let first = sizing.pass(picture(SMALL), now).unwrap();
        assert_eq!((first.damage.clone(), size_of(Some(first))), (DamageSet::full(LARGE), Some(LARGE)));
        let drawn = DisplayUpdate { scanout_changed: false, ..picture(SMALL) };
        let drawn = sizing.pass(drawn, now).unwrap();
        assert_eq!((drawn.scanout_changed, drawn.damage), (false, DamageSet::full(SMALL)));
        assert_eq!(size_of(sizing.pass(picture(OTHER), now + FIRST_SETTLE / 2)), Some(LARGE));
        // A client that at once says what it has said before does not shorten the time.
        assert_eq!(sizing.wanted(LARGE, now), Some(LARGE));
        assert_eq!(sizing.timeout(), Some(now + FIRST_SETTLE));
        let arrived = sizing.pass(picture(LARGE), now + FIRST_SETTLE / 2).unwrap();
        assert!(arrived.scanout_changed && sizing.timeout().is_none());
        assert_eq!(size_of(Some(arrived)), Some(LARGE));
        assert_eq!(sizing.wanted(SMALL, now + FIRST_SETTLE / 2), Some(SMALL), "no client had that size to answer it");
    }

    #[test]
    fn a_guest_that_does_not_follow_at_the_start_is_shown_as_it_is_and_not_echoed() {
        let now = Instant::now();
        let mut sizing = Sizing::new(LARGE);
        sizing.pass(picture(SMALL), now);
        assert_eq!(size_of(sizing.overdue(now + SETTLE)), None);
        let late = now + FIRST_SETTLE;
        let shown = sizing.overdue(late).unwrap();
        assert!(shown.scanout_changed && sizing.timeout().is_none());
        assert_eq!((shown.damage.clone(), size_of(Some(shown))), (DamageSet::full(SMALL), Some(SMALL)));
        assert_eq!(sizing.wanted(SMALL, late + ECHO / 2), None);
        assert_eq!(size_of(sizing.pass(picture(LARGE), late + ECHO / 2)), Some(LARGE));
        assert_eq!(sizing.wanted(SMALL, late + ECHO / 2), None, "a client that is slow to answer");
        assert_eq!(sizing.wanted(SMALL, late + ECHO), Some(SMALL));
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
        sizing.pass(picture(SMALL), now);
        sizing.wanted(LARGE, now);
        let drawn = DisplayUpdate { scanout_changed: false, ..picture(SMALL) };
        assert_eq!(size_of(sizing.pass(drawn, now)), Some(SMALL));
    }
}
