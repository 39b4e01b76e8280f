//! Guests and hosts made up, second by second: what tests and benchmarks show the policy.
//!
//! A guest here takes and gives memory no faster than a real one, reports once a second and a moment late, swaps what
//! does not fit, and takes from its balloon what its programs would otherwise be killed for.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Decision, MemoryReport, MemorySettings, Observation, Phase, Plan, Policy, Sample, Tuning};

const MIB: u64 = 1 << 20;
/// How much memory a guest takes in within a second.
const TAKES: u64 = 512 * MIB;
/// How much it gives.
const GIVES: u64 = 256 * MIB;
/// How long a guest says nothing after its start, in seconds.
const BOOT: u32 = 5;
/// What no guest can give: its kernel needs some free pages to live.
const WATERMARK: u64 = 4 * MIB;

/// How much memory the programs of a guest use over time.
#[derive(Debug, Clone)]
pub struct Load {
    /// From which second on how many MiB; the first from the beginning.
    pub steps: Vec<(u32, u64)>,
    /// How fast it changes from one to the next, in MiB per second.
    pub slope: u64,
    /// By how much it goes up and down at random, in percent.
    pub noise: u64,
}

/// How a guest behaves.
#[derive(Debug, Clone)]
pub struct Guest {
    /// What its owner wants.
    pub settings: MemorySettings,
    /// What its programs use.
    pub load: Load,
    /// Its swap file, in MiB.
    pub swap: u64,
    /// Between which seconds it says nothing.
    pub silent: Option<(u32, u32)>,
    /// Whether it says that it needs everything.
    pub lies: bool,
    /// When it is started, in seconds.
    pub starts: u32,
}

/// A host with guests.
#[derive(Debug)]
pub struct Simulation {
    /// What the guests share, in MiB; may be changed at any time.
    pub pool: u64,
    policy: Policy,
    began: Instant,
    second: u32,
    guests: Vec<Running>,
    random: u64,
}

/// One second of a simulation.
#[derive(Debug, Clone)]
pub struct Second {
    /// Which, from 0.
    pub second: u32,
    /// The policy's plan.
    pub plan: Plan,
    /// Each guest that is on.
    pub guests: Vec<GuestSecond>,
}

/// One guest in one second. Amounts in MiB.
#[derive(Debug, Clone, Copy)]
pub struct GuestSecond {
    /// Which guest, from 0.
    pub index: usize,
    /// What its programs use.
    pub used: u64,
    /// What it has.
    pub assigned: u64,
    /// What it had to swap out.
    pub swapped: u64,
    /// What its programs were refused: here some would have been killed.
    pub missing: u64,
    /// What was decided for it.
    pub decision: Decision,
}

#[derive(Debug)]
struct Running {
    guest: Guest,
    /// In bytes, as all below.
    assigned: u64,
    level: u64,
    used: u64,
    swapped: u64,
    swapped_in: u64,
    missing: u64,
    sample: Option<Sample>,
}

impl Load {
    /// Always the same.
    #[must_use]
    pub fn constant(mib: u64) -> Self {
        Self::steps(&[(0, mib)])
    }

    /// From which second on how many MiB.
    #[must_use]
    pub fn steps(steps: &[(u32, u64)]) -> Self {
        Self { steps: steps.to_vec(), slope: 32, noise: 0 }
    }

    /// The same, going up and down by so many percent.
    #[must_use]
    pub fn with_noise(self, noise: u64) -> Self {
        Self { noise, ..self }
    }

    fn at(&self, second: u32) -> u64 {
        self.steps.iter().rfind(|(from, _)| *from <= second).map_or(0, |(_, mib)| mib * MIB)
    }
}

impl Guest {
    /// A guest with the usual buffer and weight and no swap. Amounts in MiB.
    #[must_use]
    pub fn new(minimum: u64, startup: u64, maximum: u64, load: Load) -> Self {
        let settings = MemorySettings {
            minimum: minimum * MIB,
            startup: startup * MIB,
            maximum: maximum * MIB,
            buffer: 20,
            weight: 5000,
        };
        Self { settings, load, swap: 0, silent: None, lies: false, starts: 0 }
    }
}

impl Simulation {
    /// Guests that share `pool` MiB.
    #[must_use]
    pub fn new(pool: u64, tuning: Tuning, guests: Vec<Guest>) -> Self {
        let guests = guests.into_iter().map(Running::new).collect();
        Self {
            pool,
            policy: Policy::new(tuning),
            began: Instant::now(),
            second: 0,
            guests,
            random: 0x2545_F491_4F6C_DD1D,
        }
    }

    /// Lets a second pass.
    pub fn step(&mut self) -> Second {
        let (second, now) = (self.second, self.began + Duration::from_secs(u64::from(self.second)));
        self.second += 1;
        let mut on = Vec::new();
        let mut observations = Vec::new();
        for (index, running) in self.guests.iter_mut().enumerate().filter(|(_, running)| running.guest.starts <= second)
        {
            // The report is of a moment between the last tick and this one: here, after the programs and before memory.
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            running.run_programs(second, self.random);
            running.report(second, now);
            running.move_memory();
            on.push(index);
            observations.push(running.observation(index));
        }
        let plan = self.policy.step(now, self.pool * MIB, &observations);
        let guests = on.iter().zip(&plan.decisions).map(|(index, decision)| {
            let running = &mut self.guests[*index];
            running.level = decision.level;
            running.second(*index, *decision)
        });
        Second { second, guests: guests.collect(), plan }
    }

    /// Lets seconds pass.
    pub fn run(&mut self, seconds: u32) -> Vec<Second> {
        (0..seconds).map(|_| self.step()).collect()
    }
}

impl Running {
    fn new(guest: Guest) -> Self {
        let startup = guest.settings.startup;
        Self { guest, assigned: startup, level: startup, used: 0, swapped: 0, swapped_in: 0, missing: 0, sample: None }
    }

    fn run_programs(&mut self, second: u32, random: u64) {
        let load = &self.guest.load;
        let (goal, slope, swing) = (load.at(second), load.slope * MIB, load.at(second) * load.noise / 100);
        let steady = goal.clamp(self.used.saturating_sub(slope), self.used + slope);
        self.used = if swing == 0 { steady } else { goal - swing + random % (2 * swing) };
        self.find_room();
    }

    /// What does not fit is swapped out; then the balloon gives way; then programs go without.
    fn find_room(&mut self) {
        let room = self.assigned.saturating_sub(WATERMARK);
        let lacking = self.used.saturating_sub(room);
        let before = self.swapped;
        self.swapped = lacking.min(self.guest.swap * MIB);
        self.swapped_in += before.saturating_sub(self.swapped);
        let balloon = self.guest.settings.startup.saturating_sub(self.assigned);
        let deflated = (lacking - self.swapped).min(balloon);
        self.assigned += deflated;
        self.missing = lacking - self.swapped - deflated;
    }

    fn report(&mut self, second: u32, now: Instant) {
        let silent = self.guest.silent.is_some_and(|(from, until)| (from..until).contains(&second));
        if silent || second < self.guest.starts + BOOT {
            return;
        }
        let resident = self.used - self.swapped - self.missing;
        let honest = self.assigned.saturating_sub(resident + WATERMARK);
        let report = MemoryReport {
            available: if self.guest.lies { 0 } else { honest },
            committed: self.guest.lies.then_some(u64::MAX),
            swapped_out: Some(self.swapped),
            swapped_in: Some(self.swapped_in),
            swap_in_rate: None,
            killed: None,
            stalled: Some(if self.guest.lies { 100.0 } else { 0.0 }),
        };
        let taken = now.checked_sub(Duration::from_millis(500)).unwrap_or(now);
        self.sample = Some(Sample { taken, report });
    }

    fn move_memory(&mut self) {
        if self.assigned < self.level {
            self.assigned = self.level.min(self.assigned + TAKES);
        } else {
            let resident = self.used - self.swapped - self.missing;
            let swappable = (self.guest.swap * MIB).saturating_sub(self.swapped);
            let floor = (resident + WATERMARK).saturating_sub(swappable);
            self.assigned = self.level.max(self.assigned.saturating_sub(GIVES)).max(floor.min(self.assigned));
        }
        self.find_room();
    }

    fn observation(&self, index: usize) -> Observation {
        Observation {
            id: Uuid::from_u128(index as u128),
            settings: self.guest.settings,
            run: 0,
            assigned: self.assigned,
            phase: Phase::Running,
            grows: true,
            sample: self.sample,
        }
    }

    fn second(&self, index: usize, decision: Decision) -> GuestSecond {
        GuestSecond {
            index,
            used: self.used / MIB,
            assigned: self.assigned / MIB,
            swapped: self.swapped / MIB,
            missing: self.missing / MIB,
            decision,
        }
    }
}
