//! One monitor of the guest: its newest picture, and what of it the client has not seen.

use std::sync::Arc;

use console::{DamageSet, DisplayUpdate, Rect, Scanout, Size};

use super::scroll::{self, Move};
use super::shadow::{Change, PIXEL, Shadow, to_usize};

/// Longest side of a desktop.
const MAX_SIDE: u32 = 32_766;

/// A monitor, as far as a client has been told about it.
pub(super) struct Monitor {
    scanout: Arc<dyn Scanout>,
    /// Whether anything was heard of the guest's monitor.
    known: bool,
    shadow: Shadow,
    /// May have changed since it was last looked at.
    damage: DamageSet,
    /// Is sent again whether it changed or not.
    refresh: DamageSet,
}

impl Monitor {
    /// A monitor that is off: black.
    pub(super) fn new(size: Size) -> Self {
        Self {
            scanout: off(size),
            known: false,
            shadow: Shadow::new(size),
            damage: DamageSet::new(),
            refresh: DamageSet::new(),
        }
    }

    /// Whether there is a picture to show, if only a black one.
    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    /// The size of the newest picture.
    pub(super) fn size(&self) -> Size {
        self.scanout.size()
    }

    /// Takes in what changed. A monitor that is switched off keeps its size.
    pub(super) fn update(&mut self, update: DisplayUpdate) {
        self.known = true;
        let another = update.scanout.as_ref().is_some_and(|scanout| !Arc::ptr_eq(scanout, &self.scanout));
        if update.scanout_changed || another {
            let size = self.size();
            self.scanout = update.scanout.filter(|scanout| is_showable(scanout.size())).unwrap_or_else(|| off(size));
            self.damage = DamageSet::full(self.size());
        } else {
            self.damage.merge(&update.damage);
            self.damage.clip(self.size());
        }
    }

    /// The client wants a part again.
    pub(super) fn refresh(&mut self, rect: Rect) {
        self.refresh.add(rect.intersect(self.size().rect()));
    }

    /// Whether there may be something to send.
    pub(super) fn is_dirty(&self) -> bool {
        !self.damage.is_empty() || !self.refresh.is_empty()
    }

    /// Whether the newest picture has another size than what was sent, so that the monitor must be restarted.
    pub(super) fn has_another_size(&self) -> bool {
        self.shadow.size() != self.size()
    }

    /// The client was shown a black picture of the monitor's size instead of what it had.
    pub(super) fn restart_black(&mut self) {
        self.shadow.blacken(self.size());
        self.damage = DamageSet::full(self.size());
        self.refresh = DamageSet::new();
    }

    /// The client may show anything.
    pub(super) fn restart_unknown(&mut self) {
        self.restart_black();
        self.refresh = DamageSet::full(self.size());
    }

    /// Takes the newest picture into the shadow, which it returns, and adds to `boxes` what is to be sent of it after
    /// the moves. After the size changed, the monitor must have been restarted first.
    pub(super) fn take(&mut self, scrolling: Scrolling, moves: &mut Vec<Move>, boxes: &mut Vec<Rect>) -> &Shadow {
        let mut damage = std::mem::take(&mut self.damage);
        match scrolling {
            Scrolling::Ignore => self.shadow.take_from(&*self.scanout, &damage),
            Scrolling::Search => match self.shadow.look(&*self.scanout, &damage) {
                Change::Small => self.shadow.take_kept(),
                Change::Large => {
                    moves.extend(scroll::find(&self.shadow));
                    for found in moves.iter() {
                        self.shadow.copy_rows(found.from, found.to_y);
                        damage.add(found.target());
                    }
                    self.shadow.take_from(&*self.scanout, &damage);
                }
            },
        }
        for rect in std::mem::take(&mut self.refresh).rects() {
            self.shadow.reload(&*self.scanout, *rect);
        }
        self.shadow.report(boxes);
        &self.shadow
    }
}

/// Whether the client can be told that something only moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scrolling {
    Search,
    Ignore,
}

/// Whether a client can have a desktop of this size (MS-RDPEGFX 2.2.2.14).
fn is_showable(size: Size) -> bool {
    !size.is_empty() && size.width <= MAX_SIDE && size.height <= MAX_SIDE
}

fn off(size: Size) -> Arc<dyn Scanout> {
    Arc::new(Off { size })
}

/// A monitor without a picture.
struct Off {
    size: Size,
}

impl Scanout for Off {
    fn size(&self) -> Size {
        self.size
    }

    fn copy_rect(&self, rect: Rect, into: &mut [u8], stride: usize) {
        let bytes = to_usize(rect.width) * PIXEL;
        into.chunks_mut(stride).take(to_usize(rect.height)).for_each(|row| row[..bytes].fill(0));
    }
}
