//! The VMs beside each other at one tick: who has what part of the pool, and how far each goes towards it.

use std::cmp::Ordering;
use std::time::Duration;

use uuid::Uuid;

use super::decision::{Decision, Reason};
use super::demand::Hardship;
use super::pace::{self, Giver};
use super::share::{Wish, water_fill};

/// A VM among the others at one tick: what it would have if each layer ended with it. Amounts in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    pub(super) id: Uuid,
    pub(super) weight: u16,
    pub(super) assigned: u64,
    /// What it was told to have.
    pub(super) level: u64,
    pub(super) minimum: u64,
    pub(super) need: u64,
    pub(super) want: u64,
    pub(super) keep: u64,
    pub(super) demand: Option<u64>,
    pub(super) hardship: Option<Hardship>,
    pub(super) reclaiming: bool,
    /// More it may not have; it may have more when its owner has changed that.
    pub(super) maximum: u64,
    /// Why it can have no more, when it wants more.
    pub(super) ceiling: Option<Reason>,
    /// Why it is left as it is.
    pub(super) frozen: Option<Reason>,
}

/// Gives out the pool, layer by layer.
pub(super) fn targets(pool: u64, standings: &[Standing]) -> Vec<u64> {
    let mut targets: Vec<u64> = standings.iter().map(|standing| standing.minimum).collect();
    let mut rest = pool.saturating_sub(targets.iter().sum());
    let layers: [fn(&Standing) -> u64; 3] = [
        |standing| standing.need - standing.minimum,
        |standing| standing.want - standing.need,
        |standing| standing.keep - standing.want,
    ];
    for layer in layers {
        let wishes: Vec<Wish> = standings.iter().map(|standing| standing.wish(layer(standing))).collect();
        for (target, share) in targets.iter_mut().zip(water_fill(rest, &wishes)) {
            *target += share;
            rest -= share;
        }
    }
    targets
}

/// Whether somebody needs memory that others still have, or more is given out than there is.
pub(super) fn is_urgent(pool: u64, standings: &[Standing], targets: &[u64]) -> bool {
    let held: u64 = standings.iter().map(Standing::held).sum();
    let lacks = |(standing, target): (&Standing, &u64)| standing.need.min(*target).saturating_sub(standing.held());
    let lacking: u64 = standings.iter().zip(targets).map(lacks).sum();
    held.saturating_add(lacking) > pool
}

/// Raises levels as far as there is memory that nobody has: needs first.
pub(super) fn grow(pool: u64, standings: &[Standing], targets: &[u64], levels: &mut [u64]) {
    let held = |(standing, level): (&Standing, &u64)| standing.assigned.max(*level);
    let mut free = pool.saturating_sub(standings.iter().zip(levels.iter()).map(held).sum());
    for only_need in [true, false] {
        let wishes: Vec<Wish> = standings
            .iter()
            .zip(targets)
            .zip(levels.iter())
            .map(|((standing, target), level)| standing.wish(standing.growth(*target, *level, only_need)))
            .collect();
        for (level, share) in levels.iter_mut().zip(water_fill(free, &wishes)) {
            *level += share;
            free -= share;
        }
    }
}

impl Standing {
    /// What it has or may come to have by what it was told.
    fn held(&self) -> u64 {
        self.assigned.max(self.level)
    }

    fn wish(&self, amount: u64) -> Wish {
        Wish { amount, weight: self.weight }
    }

    /// Its level when nothing is given to anybody.
    pub(super) fn level_before_growth(&self, target: u64, urgent: bool, elapsed: Duration) -> u64 {
        if self.frozen.is_some() {
            return self.level;
        }
        let urgent = urgent || self.level > self.maximum;
        let trifle = pace::is_trifle(self.level, target) && !urgent && !self.reclaiming;
        if target < self.level && !trifle {
            let (level, hardship) = (self.level.min(self.assigned.max(target)), self.hardship.is_some());
            let demand = self.demand.unwrap_or(self.need);
            return Giver { level, target, demand, need: self.need, hardship, urgent }.next_level(elapsed);
        }
        // What it took by itself (its balloon gives way when programs would be killed) it may have.
        self.level.max(self.assigned.min(target))
    }

    /// How much it would take now, beyond `level`.
    fn growth(&self, target: u64, level: u64, only_need: bool) -> u64 {
        if self.frozen.is_some() || level >= target {
            return 0;
        }
        let most = target.min(self.assigned + pace::growth(self.assigned));
        if only_need {
            return most.min(self.need).saturating_sub(level);
        }
        if level >= self.need && pace::is_trifle(level, target) { 0 } else { most.saturating_sub(level) }
    }

    pub(super) fn decision(&self, target: u64, level: u64, urgent: bool) -> Decision {
        Decision {
            id: self.id,
            demand: self.demand,
            least: self.minimum,
            target,
            level,
            reason: self.reason(target, level, urgent),
        }
    }

    fn reason(&self, target: u64, level: u64, urgent: bool) -> Reason {
        if let Some(reason) = self.frozen {
            return reason;
        }
        let settled = pace::is_trifle(level, target);
        let is_taking = self.assigned < level && !pace::is_trifle(self.assigned, level);
        if level > self.level || is_taking {
            return if self.level < self.need { Reason::NeedGrows } else { Reason::BufferGrows };
        }
        if level < self.level {
            return match (urgent, self.reclaiming) {
                (true, _) => Reason::GivesForNeed,
                (false, true) => Reason::Reclaimed,
                (false, false) => Reason::GivesForBuffer,
            };
        }
        match (level.cmp(&target), self.hardship) {
            (Ordering::Greater, Some(Hardship::Swapping)) if !settled => Reason::KeptSwapping,
            (Ordering::Greater, Some(Hardship::Stalling)) if !settled => Reason::KeptStalling,
            (Ordering::Greater, None) if !settled => Reason::KeptShort,
            (Ordering::Less, _) if !settled => Reason::Waits,
            _ if level < self.want && !pace::is_trifle(level, self.want) => Reason::Short,
            _ => self.ceiling.unwrap_or(Reason::Content),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn standing() -> impl Strategy<Value = Standing> {
        let layers = (16_u64..600, 0_u64..900, 0_u64..500, 0_u64..500);
        (layers, 0_u64..2000, 0_u64..2000, 0_u16..=10_000).prop_map(
            |((minimum, need, buffer, keep), assigned, level, weight)| Standing {
                id: Uuid::nil(),
                weight,
                assigned: assigned * MIB,
                level: level * MIB,
                minimum: minimum * MIB,
                need: (minimum + need) * MIB,
                want: (minimum + need + buffer) * MIB,
                keep: (minimum + need + buffer + keep) * MIB,
                demand: Some(need * MIB),
                hardship: None,
                reclaiming: false,
                maximum: u64::MAX,
                ceiling: None,
                frozen: None,
            },
        )
    }

    fn standings() -> impl Strategy<Value = Vec<Standing>> {
        proptest::collection::vec(standing(), 1..8)
    }

    proptest! {
        #[test]
        fn no_layer_is_begun_before_the_one_above_is_full(pool in 0_u64..8000, standings in standings()) {
            let targets = targets(pool * MIB, &standings);
            let all = || standings.iter().zip(&targets);
            // Shares are rounded down to bytes.
            let byte = standings.len() as u64;
            if all().any(|(standing, target)| target + byte < standing.need) {
                prop_assert!(all().all(|(standing, target)| *target <= standing.need + byte));
            }
            if all().any(|(standing, target)| target + byte < standing.want) {
                prop_assert!(all().all(|(standing, target)| *target <= standing.want + byte));
            }
            prop_assert!(all().all(|(standing, target)| (standing.minimum..=standing.keep).contains(target)));
        }

        #[test]
        fn more_weight_is_never_a_lower_target(
            pool in 0_u64..8000, standings in standings(), who in any::<prop::sample::Index>(), more in 1_u16..5000,
        ) {
            let who = who.index(standings.len());
            let before = targets(pool * MIB, &standings)[who];
            let mut heavier = standings.clone();
            heavier[who].weight += more;
            prop_assert!(targets(pool * MIB, &heavier)[who] + 4 * standings.len() as u64 >= before);
        }

        #[test]
        fn who_needs_memory_gets_it_before_any_buffer_grows(pool in 0_u64..8000, standings in standings()) {
            let pool = pool * MIB;
            let targets = targets(pool, &standings);
            let before: Vec<u64> = standings.iter().map(|standing| standing.level.min(standing.keep)).collect();
            let mut levels = before.clone();
            grow(pool, &standings, &targets, &mut levels);
            let lacks = standings.iter().zip(&targets).zip(&levels).any(|((standing, target), level)| {
                standing.growth(*target, *level, true) > standings.len() as u64
            });
            let mut grown = standings.iter().zip(before.iter().zip(&levels));
            if lacks {
                // But for the bytes that dividing leaves over.
                let byte = standings.len() as u64;
                let only_need = grown.all(|(standing, (before, level))| *level <= (*before).max(standing.need) + byte);
                prop_assert!(only_need, "{before:?} became {levels:?}");
            }
        }

        #[test]
        fn what_is_given_is_there(pool in 0_u64..8000, standings in standings(), urgent in any::<bool>()) {
            let pool = pool * MIB;
            let targets = targets(pool, &standings);
            let held = |levels: &[u64]| {
                standings.iter().zip(levels).map(|(standing, level)| standing.assigned.max(*level)).sum::<u64>()
            };
            let mut levels: Vec<u64> = standings.iter().zip(&targets)
                .map(|(standing, target)| standing.level_before_growth(*target, urgent, Duration::from_secs(1)))
                .collect();
            let before = held(&levels);
            grow(pool, &standings, &targets, &mut levels);
            prop_assert!(held(&levels) <= pool.max(before));
        }
    }
}
