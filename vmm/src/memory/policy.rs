//! The decision.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::decision::{Plan, Reason};
use super::demand::Demand;
use super::pace;
use super::standing::{Standing, grow, is_urgent, targets};
use super::{MemorySettings, Sample};

/// A guest that has said nothing for so long is left as it is.
const SILENT_AFTER: Duration = Duration::from_secs(20);
/// A guest that has never said anything may still be starting for so long.
const START_WITHIN: Duration = Duration::from_secs(60);
/// A guest has too much from this percentage of what it wants.
const SURPLUS: u64 = 125;
/// Longest time between two ticks that counts: after a pause nothing is made up for.
const MAX_ELAPSED: Duration = Duration::from_secs(5);

/// One VM as it is at a tick.
#[derive(Debug, Clone, Copy)]
pub struct Observation {
    /// Which.
    pub id: Uuid,
    /// What its owner wants.
    pub settings: MemorySettings,
    /// Which start of its guest this is; in another one nothing is left of what was known.
    pub run: u64,
    /// What it has now, in bytes.
    pub assigned: u64,
    /// Whether it can change that.
    pub phase: Phase,
    /// Whether its guest takes more than its start-up memory.
    pub grows: bool,
    /// What it said last in this run.
    pub sample: Option<Sample>,
}

/// What a VM's guest can do about its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It runs.
    Running,
    /// It does not: nothing moves.
    Still,
}

/// What can be changed of the policy.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// How long a guest keeps memory that it does not use and nobody else asks for.
    pub reclaim_after: Duration,
}

/// Decides how much memory each VM of a host has.
#[derive(Debug, Default)]
pub struct Policy {
    tuning: Tuning,
    tracks: BTreeMap<Uuid, Track>,
    last_tick: Option<Instant>,
}

/// What is remembered of a VM.
#[derive(Debug)]
struct Track {
    run: u64,
    since: Instant,
    demand: Demand,
    /// What it was told to have.
    level: u64,
    surplus_since: Option<Instant>,
    reclaiming: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { reclaim_after: Duration::from_secs(300) }
    }
}

impl Policy {
    /// A policy that knows nothing yet.
    #[must_use]
    pub fn new(tuning: Tuning) -> Self {
        Self { tuning, ..Self::default() }
    }

    /// Decides for all VMs with dynamic memory that are on; `pool` is what they share, in bytes.
    pub fn step(&mut self, now: Instant, pool: u64, vms: &[Observation]) -> Plan {
        let elapsed =
            self.last_tick.map_or(Duration::ZERO, |last| now.saturating_duration_since(last)).min(MAX_ELAPSED);
        self.last_tick = Some(now);
        self.tracks.retain(|id, track| vms.iter().any(|vm| vm.id == *id && vm.run == track.run));
        let standings: Vec<Standing> = vms.iter().map(|vm| self.stand(now, elapsed, vm)).collect();
        let targets = targets(pool, &standings);
        let urgent = is_urgent(pool, &standings, &targets);
        let mut levels: Vec<u64> = standings
            .iter()
            .zip(&targets)
            .map(|(standing, target)| standing.level_before_growth(*target, urgent, elapsed))
            .collect();
        grow(pool, &standings, &targets, &mut levels);
        let decisions = standings.iter().zip(targets.iter().zip(&levels)).map(|(standing, (target, level))| {
            self.note_level(standing.id, *level);
            standing.decision(*target, *level, urgent)
        });
        Plan { pool, least: standings.iter().map(|standing| standing.minimum).sum(), decisions: decisions.collect() }
    }

    fn stand(&mut self, now: Instant, elapsed: Duration, vm: &Observation) -> Standing {
        let reclaim_after = self.tuning.reclaim_after;
        let track = self.tracks.entry(vm.id).or_insert_with(|| Track::new(now, vm));
        track.demand.observe(now, vm.assigned, vm.settings.maximum, pace::growth(vm.assigned), vm.sample);
        match track.frozen(now, vm) {
            Some(reason) => track.frozen_standing(vm, reason),
            None => track.standing(now, elapsed, vm, reclaim_after),
        }
    }

    fn note_level(&mut self, id: Uuid, level: u64) {
        if let Some(track) = self.tracks.get_mut(&id) {
            track.level = level;
        }
    }
}

impl Track {
    fn new(now: Instant, vm: &Observation) -> Self {
        Self {
            run: vm.run,
            since: now,
            demand: Demand::default(),
            level: vm.assigned,
            surplus_since: None,
            reclaiming: false,
        }
    }

    fn frozen(&self, now: Instant, vm: &Observation) -> Option<Reason> {
        if vm.phase == Phase::Still {
            return Some(Reason::Paused);
        }
        match vm.sample {
            None if now.saturating_duration_since(self.since) < START_WITHIN => Some(Reason::Starting),
            None => Some(Reason::NeverReported),
            Some(sample) if now.saturating_duration_since(sample.taken) > SILENT_AFTER => Some(Reason::Silent),
            Some(_) => None,
        }
    }

    /// Nobody knows when, or whether, a guest that says nothing does as it was told: all it may have counts as had.
    fn frozen_standing(&mut self, vm: &Observation, reason: Reason) -> Standing {
        (self.surplus_since, self.reclaiming) = (None, false);
        let held = vm.assigned.max(self.level).clamp(vm.settings.least(), vm.settings.maximum);
        Standing { minimum: held, need: held, want: held, keep: held, frozen: Some(reason), ..self.bare(vm) }
    }

    fn standing(&mut self, now: Instant, elapsed: Duration, vm: &Observation, reclaim_after: Duration) -> Standing {
        let least = vm.settings.least();
        let most = if vm.grows { vm.settings.maximum } else { vm.settings.startup.max(least).min(vm.settings.maximum) };
        let demand = self.demand.steady_demand().unwrap_or(vm.assigned);
        let need = self.demand.need().unwrap_or(vm.assigned);
        let want = demand.saturating_add(demand.saturating_mul(u64::from(vm.settings.buffer)) / 100).max(need);
        let ceiling = (want > most).then_some(if vm.grows { Reason::AtMaximum } else { Reason::CannotGrow });
        let (need, want) = (need.clamp(least, most), want.clamp(least, most));
        let has = self.level.min(vm.assigned);
        self.note_surplus(now, has, want, reclaim_after);
        let given_back = if self.reclaiming { pace::idle(has, elapsed) } else { 0 };
        let keep = has.saturating_sub(given_back).clamp(want, most);
        Standing { minimum: least, need, want, keep, ceiling, ..self.bare(vm) }
    }

    fn bare(&self, vm: &Observation) -> Standing {
        Standing {
            id: vm.id,
            weight: vm.settings.weight,
            assigned: vm.assigned,
            level: self.level,
            minimum: 0,
            need: 0,
            want: 0,
            keep: 0,
            demand: self.demand.demand(),
            hardship: self.demand.hardship(),
            reclaiming: self.reclaiming,
            maximum: vm.settings.maximum,
            ceiling: None,
            frozen: None,
        }
    }

    /// Reclaiming begins when there has been too much for long, and goes on until there is not.
    fn note_surplus(&mut self, now: Instant, has: u64, want: u64, reclaim_after: Duration) {
        let suffers = self.demand.hardship().is_some();
        if suffers || has <= want {
            (self.surplus_since, self.reclaiming) = (None, false);
        } else if has > want.saturating_mul(SURPLUS) / 100 {
            let since = *self.surplus_since.get_or_insert(now);
            self.reclaiming |= now.saturating_duration_since(since) >= reclaim_after;
        } else {
            self.surplus_since = None;
        }
    }
}
