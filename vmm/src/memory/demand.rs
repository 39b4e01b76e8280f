//! How much memory a guest needs, told from what it reports.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{MemoryReport, Sample};

/// How much of a rise the estimate takes over at once: a guest that needs memory does not wait for an average.
const RISE: f64 = 0.7;
/// How much of a fall: what was needed a moment ago may be needed again.
const FALL: f64 = 0.05;
/// Part of its use, and least amount, that a guest needs free to live; with less than that its use says little of its
/// need, because it cannot use what it does not have.
const MARGIN_PART: f64 = 16.0;
const MARGIN_LEAST: f64 = 16.0 * 1024.0 * 1024.0;
/// A need that rises will have risen further before memory for it is there: by so many times what it rose.
const LEAD: f64 = 2.0;
/// A fall by less than this part, and amount, is only a sway.
const SWAY_PART: f64 = 32.0;
const SWAY_LEAST: f64 = 8.0 * 1024.0 * 1024.0;
/// Longest past of which it is known how much memory the guest had.
const HISTORY: Duration = Duration::from_secs(10);
/// A guest suffers that reads more than this from swap in a second, in bytes; less are leftovers of an earlier time.
const SWAP_IN: u64 = 1 << 20;
/// And one of which some task waited for memory in more than so much of the time, in percent.
const STALLED: f32 = 10.0;

/// What is known of one guest's need.
#[derive(Debug, Default)]
pub(super) struct Demand {
    demand: Option<f64>,
    need: Option<f64>,
    steady_demand: f64,
    steady_need: f64,
    /// How much memory the guest had, the oldest first.
    assigned: VecDeque<(Instant, u64)>,
    last: Option<Sample>,
    hardship: Option<Hardship>,
}

/// What a guest says of itself that lets nobody take memory away without need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hardship {
    /// It reads back what it had to swap out.
    Swapping,
    /// Its tasks wait for memory.
    Stalling,
}

impl Demand {
    /// Takes in what the guest has now and what it reported last.
    ///
    /// A report is a little older than what the guest has now, and while memory moves nobody knows which of the two it
    /// saw: taken at its word, memory that was just given would look like memory that is needed, and more would follow.
    /// So a report tells a range, and the estimate moves no further than to its nearer end.
    pub(super) fn observe(&mut self, now: Instant, assigned: u64, maximum: u64, growth: u64, sample: Option<Sample>) {
        self.assigned.push_back((now, assigned));
        while self.assigned.front().is_some_and(|(at, _)| now.duration_since(*at) > HISTORY) {
            self.assigned.pop_front();
        }
        let Some(sample) = sample else { return };
        if self.last.is_some_and(|last| last.taken >= sample.taken) {
            return;
        }
        self.hardship = self.hardship_of(&sample);
        let (least, most) = self.range(&sample, maximum);
        let margin = self.margin(least, &sample, growth);
        self.demand = Some(follow(self.demand, least, most));
        self.need = Some(follow(self.need, least + margin, most + margin));
        (self.steady_demand, self.steady_need) =
            (steady(self.steady_demand, self.demand), steady(self.steady_need, self.need));
        self.last = Some(sample);
    }

    /// How much the guest uses, in bytes; none before its first report.
    pub(super) fn demand(&self) -> Option<u64> {
        self.demand.map(whole)
    }

    /// The same, without small falls: what follows from it need not follow every sway.
    pub(super) fn steady_demand(&self) -> Option<u64> {
        self.demand.map(|_| whole(self.steady_demand))
    }

    /// How much it must have, in bytes: what it uses, room to live, and what it will use before memory that it is given
    /// now is there; without small falls.
    pub(super) fn need(&self) -> Option<u64> {
        self.need.map(|_| whole(self.steady_need))
    }

    /// Why the guest should be left alone, as of its last report.
    pub(super) fn hardship(&self) -> Option<Hardship> {
        self.hardship
    }

    /// Between which needs the truth is. A guest can say what it likes: more than its maximum it never needs.
    #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
    fn range(&self, sample: &Sample, maximum: u64) -> (f64, f64) {
        let (least, most) = self.assigned_around(sample.taken);
        let used = |assigned: u64| {
            sample.report.committed.unwrap_or(assigned.saturating_sub(sample.report.available)).min(maximum) as f64
        };
        let need = |used: f64| (used + self.missed(used, sample)).min(maximum as f64);
        (need(used(least)), need(used(most)))
    }

    /// How much of what it swapped out a guest that uses `used` needs: all while it suffers or has no room to read it
    /// back, and nothing that it has room for and leaves where it is.
    #[expect(clippy::cast_precision_loss, reason = "below 2^53, or more than any maximum")]
    fn missed(&self, used: f64, sample: &Sample) -> f64 {
        let swapped = sample.report.swapped_out.unwrap_or(0) as f64;
        let part = if self.hardship.is_some() { 1.0 } else { squeezed(used, sample) };
        swapped * part
    }

    /// What a guest needs beside what it uses.
    #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
    fn margin(&self, used: f64, sample: &Sample, growth: u64) -> f64 {
        let growth = growth as f64;
        let rise = self.demand.map_or(0.0, |old| (used - old).max(0.0));
        // A guest that comes close to its limit needs more, nobody knows how much.
        let more = growth * squeezed(used, sample);
        room_to_live(used) + (rise * LEAD).max(more).min(growth)
    }

    /// The least and the most the guest had between the last tick before `taken` and now.
    fn assigned_around(&self, taken: Instant) -> (u64, u64) {
        let before = self.assigned.iter().rposition(|(at, _)| *at <= taken).unwrap_or(0);
        let values = || self.assigned.iter().skip(before).map(|(_, assigned)| *assigned);
        (values().min().unwrap_or(0), values().max().unwrap_or(0))
    }

    fn hardship_of(&self, sample: &Sample) -> Option<Hardship> {
        let swapped_in = |report: &MemoryReport| report.swapped_in;
        let before = self.last.and_then(|last| Some((last.taken, swapped_in(&last.report)?)));
        if let (Some((then, before)), Some(after)) = (before, swapped_in(&sample.report)) {
            let seconds = sample.taken.duration_since(then).as_secs().max(1);
            if after.saturating_sub(before) / seconds > SWAP_IN {
                return Some(Hardship::Swapping);
            }
        }
        if sample.report.swap_in_rate.is_some_and(|rate| rate > SWAP_IN) {
            return Some(Hardship::Swapping);
        }
        sample.report.stalled.is_some_and(|percent| percent > STALLED).then_some(Hardship::Stalling)
    }
}

fn room_to_live(used: f64) -> f64 {
    (used / MARGIN_PART).max(MARGIN_LEAST)
}

/// How close a guest that uses `used` is to its limit: from 0, with room to live, to 1. Gradually, or it would swing.
#[expect(clippy::cast_precision_loss, reason = "below 2^53, or more than any room")]
fn squeezed(used: f64, sample: &Sample) -> f64 {
    (1.0 - sample.report.available as f64 / room_to_live(used)).max(0.0)
}

/// Moves an estimate towards a range.
fn follow(old: Option<f64>, least: f64, most: f64) -> f64 {
    match old {
        None => most,
        Some(old) if old < least => old + (least - old) * RISE,
        Some(old) if old > most => old + (most - old) * FALL,
        Some(old) => old,
    }
}

/// Stays on the crests of an estimate.
fn steady(before: f64, estimate: Option<f64>) -> f64 {
    let estimate = estimate.unwrap_or(0.0);
    let sway = (before / SWAY_PART).max(SWAY_LEAST);
    if (before - sway..=before).contains(&estimate) { before } else { estimate }
}

#[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "between 0 and a few times the maximum")]
fn whole(bytes: f64) -> u64 {
    bytes as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SECOND: Duration = Duration::from_secs(1);

    fn sample(taken: Instant, available: u64) -> Option<Sample> {
        Some(Sample { taken, report: MemoryReport { available: available * MIB, ..MemoryReport::default() } })
    }

    fn mib(demand: &Demand) -> u64 {
        demand.demand().expect("reported") / MIB
    }

    #[test]
    fn need_is_what_is_not_available() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        demand.observe(now, 512 * MIB, 1024 * MIB, 64 * MIB, None);
        assert_eq!(demand.demand(), None);
        demand.observe(now + SECOND, 512 * MIB, 1024 * MIB, 64 * MIB, sample(now + SECOND, 400));
        assert_eq!(mib(&demand), 112);
    }

    #[test]
    fn a_rise_counts_at_once_and_a_fall_slowly() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        for (second, available) in [(0, 400), (1, 100), (2, 100)] {
            let at = now + second * SECOND;
            demand.observe(at, 500 * MIB, 1024 * MIB, 64 * MIB, sample(at, available));
        }
        assert_eq!(mib(&demand), 373);
        let at = now + 3 * SECOND;
        demand.observe(at, 500 * MIB, 1024 * MIB, 64 * MIB, sample(at, 400));
        assert_eq!(mib(&demand), 359);
    }

    #[test]
    fn memory_on_its_way_is_neither_needed_nor_spare() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        demand.observe(now, 500 * MIB, 2048 * MIB, 64 * MIB, sample(now, 100));
        assert_eq!(mib(&demand), 400);
        // 200 MiB more are there, and the report may be from before they came.
        demand.observe(now + SECOND, 700 * MIB, 2048 * MIB, 64 * MIB, sample(now + SECOND / 2, 100));
        assert_eq!(mib(&demand), 400);
        // They are taken away again, and the report may still count them.
        demand.observe(now + 2 * SECOND, 500 * MIB, 2048 * MIB, 64 * MIB, sample(now + SECOND * 3 / 2, 300));
        assert_eq!(mib(&demand), 400);
        // Whatever it saw, this is more.
        demand.observe(now + 3 * SECOND, 700 * MIB, 2048 * MIB, 64 * MIB, sample(now + SECOND * 5 / 2, 50));
        assert_eq!(mib(&demand), 435);
    }

    #[test]
    fn the_same_report_counts_once() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        demand.observe(now, 500 * MIB, 1024 * MIB, 64 * MIB, sample(now, 400));
        let second = sample(now + SECOND, 100);
        for tick in 1..9 {
            demand.observe(now + tick * SECOND, 500 * MIB, 1024 * MIB, 64 * MIB, second);
        }
        assert_eq!(mib(&demand), 310);
    }

    #[test]
    fn what_was_swapped_out_is_needed_by_a_guest_that_suffers_or_has_no_room() {
        let now = Instant::now();
        let need = |available, stalled| {
            let mut demand = Demand::default();
            let swapped_out = Some(200 * MIB);
            let report = MemoryReport { available: available * MIB, swapped_out, stalled, ..MemoryReport::default() };
            demand.observe(now, 500 * MIB, 1024 * MIB, 64 * MIB, Some(Sample { taken: now, report }));
            mib(&demand)
        };
        assert_eq!((need(100, None), need(100, Some(50.0))), (400, 600));
        assert_eq!((need(0, None), need(15, None)), (700, 586), "half of the room to live");
    }

    #[test]
    fn a_guest_that_lies_needs_no_more_than_its_maximum() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        let report = MemoryReport {
            committed: Some(u64::MAX),
            swapped_out: Some(u64::MAX),
            stalled: Some(100.0),
            ..MemoryReport::default()
        };
        demand.observe(now, 500 * MIB, 1024 * MIB, 64 * MIB, Some(Sample { taken: now, report }));
        assert_eq!(mib(&demand), 1024);
        let (mut demand, report) = (Demand::default(), MemoryReport { available: u64::MAX, ..report });
        let report = MemoryReport { committed: None, swapped_out: None, ..report };
        demand.observe(now, 500 * MIB, 1024 * MIB, 64 * MIB, Some(Sample { taken: now, report }));
        assert_eq!(mib(&demand), 0);
    }

    #[test]
    fn swapping_and_stalling_are_hardship() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        let report = |swapped_in, stalled| MemoryReport {
            available: 100 * MIB,
            swapped_in: Some(swapped_in),
            stalled: Some(stalled),
            ..MemoryReport::default()
        };
        let mut told = |second: u32, report| {
            let taken = now + second * SECOND;
            demand.observe(taken, 500 * MIB, 1024 * MIB, 64 * MIB, Some(Sample { taken, report }));
            demand.hardship()
        };
        assert_eq!(told(0, report(900 * MIB, 0.0)), None, "what was swapped in before is history");
        assert_eq!(told(1, report(910 * MIB, 0.0)), Some(Hardship::Swapping));
        assert_eq!(told(2, report(910 * MIB, 0.0)), None);
        assert_eq!(told(3, report(910 * MIB, 12.5)), Some(Hardship::Stalling));
        assert_eq!(told(4, report(0, 0.0)), None, "a guest that started over counts from 0");
        let fast = MemoryReport { swap_in_rate: Some(5 * MIB), ..report(0, 0.0) };
        assert_eq!(told(5, fast), Some(Hardship::Swapping));
    }
}
