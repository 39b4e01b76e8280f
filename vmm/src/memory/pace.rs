//! How fast memory comes and goes.
//!
//! Memory is given at once. It is taken with care, because a guest that has to give what it uses swaps or stalls: spare
//! memory goes quickly, memory in use slowly and only when another guest needs it.

use std::time::Duration;

const MIB: u64 = 1 << 20;
/// A guest grows by at most this part of what it has in a tick,
const GROW_PART: u64 = 4;
/// but never by less than this when it wants more,
const GROW_LEAST: u64 = 64 * MIB;
/// and never by more than this, which a guest can take in within a tick or two.
const GROW_MOST: u64 = 1024 * MIB;
/// Of its spare memory a guest gives at most this part in a second,
const SPARE_PART: f64 = 1.0 / 4.0;
/// and this when another guest is in need.
const URGENT_PART: f64 = 1.0 / 2.0;
/// Of memory that it uses: 5 % in 10 seconds.
const USED_PART: f64 = 0.05 / 10.0;
/// Of memory that nobody else asks for: 5 % in a minute.
const IDLE_PART: f64 = 0.05 / 60.0;
/// While nobody is in need, a guest's use stays below this percentage of what it has.
const PRESSURE: u64 = 90;
/// A change of less than this, or of less than this part, is not worth the trouble unless somebody is in need.
const BAND: u64 = 8 * MIB;
const BAND_PART: u64 = 64;

/// A guest that has to give.
#[derive(Debug, Clone, Copy)]
pub(super) struct Giver {
    /// What it has.
    pub(super) level: u64,
    /// What it should have.
    pub(super) target: u64,
    /// What it uses.
    pub(super) demand: u64,
    /// What it needs.
    pub(super) need: u64,
    /// Whether it suffers.
    pub(super) hardship: bool,
    /// Whether another guest is in need, so that no regard can be had of that.
    pub(super) urgent: bool,
}

impl Giver {
    /// Its level after `elapsed`.
    pub(super) fn next_level(&self, elapsed: Duration) -> u64 {
        if self.hardship && !self.urgent {
            return self.level;
        }
        let hold = if self.urgent { self.target } else { self.target.max(at_pressure(self.demand)) };
        let spare = self.level.saturating_sub(hold.max(self.need));
        let used = part(self.level, USED_PART, elapsed);
        let spare_part = if self.urgent { URGENT_PART } else { SPARE_PART };
        let step = if spare > 0 { part(spare, spare_part, elapsed).max(used).min(spare) } else { used };
        self.level.min(hold.max(self.level - step.min(self.level)))
    }
}

/// How much a guest that has `assigned` may grow in one tick.
pub(super) fn growth(assigned: u64) -> u64 {
    (assigned / GROW_PART).clamp(GROW_LEAST, GROW_MOST)
}

/// How much a guest gives of memory that nobody asks for.
pub(super) fn idle(level: u64, elapsed: Duration) -> u64 {
    part(level, IDLE_PART, elapsed)
}

/// Whether the way from `level` to `target` is too short to go.
pub(super) fn is_trifle(level: u64, target: u64) -> bool {
    level.abs_diff(target) < BAND.max(level / BAND_PART)
}

/// How much a guest must have for its use to be no more than it can stand.
fn at_pressure(demand: u64) -> u64 {
    demand.saturating_mul(100) / PRESSURE
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a part of an amount of memory needs no more than 53 bits"
)]
fn part(amount: u64, of_it: f64, elapsed: Duration) -> u64 {
    (amount as f64 * (of_it * elapsed.as_secs_f64()).min(1.0)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn giver(level: u64, target: u64, need: u64) -> Giver {
        Giver {
            level: level * MIB,
            target: target * MIB,
            demand: need * MIB,
            need: need * MIB,
            hardship: false,
            urgent: false,
        }
    }

    #[test]
    fn spare_memory_goes_by_quarters() {
        let next = giver(1000, 400, 300).next_level(SECOND);
        assert_eq!(next / MIB, 850);
    }

    #[test]
    fn without_need_of_others_a_guest_keeps_a_tenth_above_its_own() {
        assert_eq!(giver(334, 300, 300).next_level(100 * SECOND) / MIB, 333);
        assert_eq!(giver(320, 300, 300).next_level(SECOND) / MIB, 320);
    }

    #[test]
    fn memory_in_use_goes_slowly_and_only_for_another_guests_need() {
        let giver = giver(400, 200, 400);
        assert_eq!(giver.next_level(SECOND), giver.level);
        assert_eq!(Giver { urgent: true, ..giver }.next_level(SECOND) / MIB, 398);
        assert_eq!(Giver { urgent: true, hardship: true, ..giver }.next_level(10 * SECOND) / MIB, 380);
    }

    #[test]
    fn who_suffers_gives_nothing_without_need() {
        let giver = Giver { hardship: true, ..giver(1000, 400, 300) };
        assert_eq!(giver.next_level(SECOND), giver.level);
        assert!(Giver { urgent: true, ..giver }.next_level(SECOND) < giver.level);
    }

    #[test]
    fn nobody_gives_more_than_asked() {
        assert_eq!(giver(1000, 990, 1).next_level(1000 * SECOND) / MIB, 990);
        assert_eq!(Giver { urgent: true, ..giver(1000, 900, 999) }.next_level(1000 * SECOND) / MIB, 999);
    }
}
