//! What a monitor shows now, and what each of its viewers has missed.
//!
//! A monitor outlives QEMU: it belongs to the VM, and shows nothing while there is no QEMU. Telling
//! viewers is a few assignments under a lock: how slow a viewer is, nobody else notices.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use console::{CursorState, DamageSet, DisplayUpdate, Rect, Scanout, Size};
use tokio::sync::{Notify, watch};

/// One monitor of a VM.
pub(super) struct Monitor {
    state: Mutex<State>,
    /// What the guest is to be told of its size; none until somebody wished for one.
    wanted_size: watch::Sender<Option<Size>>,
}

/// Looks at one monitor.
///
/// It survives stops and starts of the VM; while there is no QEMU, its picture is none.
pub struct Viewer {
    monitor: Arc<Monitor>,
    seat: u64,
    wake: Arc<Notify>,
}

#[derive(Default)]
struct State {
    scanout: Option<Arc<dyn Scanout>>,
    cursor: CursorState,
    seats: HashMap<u64, Seat>,
    next_seat: u64,
}

/// A viewer, and what it has missed since it looked last.
struct Seat {
    wake: Arc<Notify>,
    scanout_changed: bool,
    cursor_changed: bool,
    damage: DamageSet,
    /// When the oldest of it happened.
    since: Option<Instant>,
}

impl Monitor {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default(), wanted_size: watch::Sender::new(None) }
    }

    /// A new viewer, who has missed everything.
    pub(super) fn viewer(self: &Arc<Self>) -> Viewer {
        let wake = Arc::new(Notify::new());
        let mut state = self.lock();
        let seat = state.next_seat;
        state.next_seat += 1;
        let mut missed = Seat {
            wake: wake.clone(),
            scanout_changed: true,
            cursor_changed: true,
            damage: DamageSet::new(),
            since: Some(Instant::now()),
        };
        missed.miss_scanout(state.scanout.as_deref());
        state.seats.insert(seat, missed);
        Viewer { monitor: self.clone(), seat, wake }
    }

    /// What it shows.
    pub(super) fn scanout(&self) -> Option<Arc<dyn Scanout>> {
        self.lock().scanout.clone()
    }

    /// How large it is, when it is on.
    pub(super) fn size(&self) -> Option<Size> {
        self.lock().scanout.as_ref().map(|scanout| scanout.size())
    }

    /// It shows something else from now on.
    pub(super) fn show(&self, scanout: Option<Arc<dyn Scanout>>) {
        let mut state = self.lock();
        if scanout.is_none() && state.scanout.is_none() {
            return;
        }
        state.scanout = scanout;
        let State { scanout, seats, .. } = &mut *state;
        let now = Instant::now();
        for seat in seats.values_mut() {
            seat.miss_scanout(scanout.as_deref());
            seat.tell(now);
        }
    }

    /// The guest drew in `rect`.
    pub(super) fn damage(&self, rect: Rect) {
        let mut state = self.lock();
        let Some(size) = state.scanout.as_ref().map(|scanout| scanout.size()) else { return };
        let rect = rect.intersect(size.rect());
        if rect.is_empty() {
            return;
        }
        let now = Instant::now();
        for seat in state.seats.values_mut() {
            seat.damage.add(rect);
            seat.tell(now);
        }
    }

    /// The cursor changes.
    pub(super) fn change_cursor(&self, change: impl FnOnce(&mut CursorState)) {
        let mut state = self.lock();
        let before = state.cursor.clone();
        change(&mut state.cursor);
        if state.cursor == before {
            return;
        }
        let now = Instant::now();
        for seat in state.seats.values_mut() {
            seat.cursor_changed = true;
            seat.tell(now);
        }
    }

    /// There is no QEMU any more.
    pub(super) fn go_dark(&self) {
        self.show(None);
        self.change_cursor(|cursor| *cursor = CursorState::default());
    }

    /// Where the wish for a size is kept.
    pub(super) fn wanted_size(&self) -> &watch::Sender<Option<Size>> {
        &self.wanted_size
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    fn miss_scanout(&mut self, scanout: Option<&dyn Scanout>) {
        self.scanout_changed = true;
        self.damage = scanout.map_or_else(DamageSet::new, |scanout| DamageSet::full(scanout.size()));
    }

    fn tell(&mut self, now: Instant) {
        // Whoever has been told and has not looked yet need not be told again.
        if self.since.is_none() {
            self.since = Some(now);
            self.wake.notify_one();
        }
    }

    fn has_news(&self) -> bool {
        self.scanout_changed || self.cursor_changed || !self.damage.is_empty()
    }
}

impl Viewer {
    /// Waits until there is something to [`take`](Self::take); at once the first time. Cancel safe.
    pub async fn changed(&mut self) {
        while !self.has_news() {
            // News between the question and the wait leave a permit behind.
            self.wake.notified().await;
        }
    }

    /// What it has missed since the last time; everything, the first time.
    pub fn take(&mut self) -> DisplayUpdate {
        let mut state = self.monitor.lock();
        let State { scanout, cursor, seats, .. } = &mut *state;
        let Some(seat) = seats.get_mut(&self.seat) else { return DisplayUpdate::default() };
        DisplayUpdate {
            scanout: scanout.clone(),
            scanout_changed: std::mem::take(&mut seat.scanout_changed),
            damage: std::mem::take(&mut seat.damage),
            cursor: std::mem::take(&mut seat.cursor_changed).then(|| cursor.clone()),
            since: seat.since.take(),
        }
    }

    fn has_news(&self) -> bool {
        self.monitor.lock().seats.get(&self.seat).is_some_and(Seat::has_news)
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.monitor.lock().seats.remove(&self.seat);
    }
}

impl fmt::Debug for Viewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Viewer").field("seat", &self.seat).finish_non_exhaustive()
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("size", &self.size()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use console::MAX_DAMAGE_RECTS;

    use super::*;

    struct Black(Size);

    impl Scanout for Black {
        fn size(&self) -> Size {
            self.0
        }

        fn copy_rect(&self, _: Rect, into: &mut [u8], _: usize) {
            into.fill(0);
        }
    }

    fn monitor(width: u32, height: u32) -> Arc<Monitor> {
        let monitor = Arc::new(Monitor::new());
        monitor.show(Some(Arc::new(Black(Size::new(width, height)))));
        monitor
    }

    fn is_changed(viewer: &mut Viewer) -> bool {
        pin!(viewer.changed()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_new_viewer_gets_everything_and_then_only_news() {
        let monitor = monitor(100, 50);
        let mut viewer = monitor.viewer();
        assert!(is_changed(&mut viewer));
        let update = viewer.take();
        assert!(update.scanout_changed && update.scanout.is_some() && update.cursor.is_some());
        assert_eq!(update.damage.rects(), [Rect::new(0, 0, 100, 50)]);
        assert!(!is_changed(&mut viewer));
        monitor.damage(Rect::new(90, 40, 20, 20));
        assert!(is_changed(&mut viewer));
        let update = viewer.take();
        assert!(!update.scanout_changed && update.cursor.is_none());
        assert_eq!(update.damage.rects(), [Rect::new(90, 40, 10, 10)], "cut to the picture");
    }

    #[test]
    fn a_viewer_that_never_looks_costs_no_more_than_one_damage_set() {
        let monitor = monitor(1000, 1000);
        let (mut slow, mut quick) = (monitor.viewer(), monitor.viewer());
        for i in 0..1000 {
            monitor.damage(Rect::new(i * 37 % 990, i * 91 % 990, 5, 5));
            quick.take();
        }
        assert!(slow.take().damage.rects().len() <= MAX_DAMAGE_RECTS);
        assert!(quick.take().damage.is_empty());
    }

    #[test]
    fn another_picture_replaces_damage_of_the_one_before() {
        let monitor = monitor(1000, 1000);
        let mut viewer = monitor.viewer();
        viewer.take();
        monitor.damage(Rect::new(900, 900, 50, 50));
        monitor.show(Some(Arc::new(Black(Size::new(640, 480)))));
        let update = viewer.take();
        assert!(update.scanout_changed);
        assert_eq!(update.damage.rects(), [Rect::new(0, 0, 640, 480)]);
        monitor.go_dark();
        assert!(is_changed(&mut viewer));
        let update = viewer.take();
        assert!(update.scanout_changed && update.scanout.is_none() && update.damage.is_empty());
        monitor.go_dark();
        assert!(!is_changed(&mut viewer));
    }

    #[test]
    fn a_cursor_that_stays_as_it_is_wakes_nobody() {
        let monitor = monitor(10, 10);
        let mut viewer = monitor.viewer();
        viewer.take();
        monitor.change_cursor(|cursor| cursor.hidden = false);
        assert!(!is_changed(&mut viewer));
        monitor.change_cursor(|cursor| cursor.hidden = true);
        assert!(is_changed(&mut viewer));
        assert!(viewer.take().cursor.is_some_and(|cursor| cursor.hidden));
    }

    #[test]
    fn a_viewer_that_leaves_is_forgotten() {
        let monitor = monitor(10, 10);
        drop(monitor.viewer());
        assert!(monitor.lock().seats.is_empty());
    }
}
