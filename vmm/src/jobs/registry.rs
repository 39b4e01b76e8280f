//! The book of all jobs: pure, with the time told by the caller, in seconds since 1970.
//!
//! ```text
//!            ┌─────────▶ Done | Failed | Interrupted
//! Running ───┤               ▲
//!            └▶ Cancelling ──┴▶ Cancelled
//! ```
//!
//! A job that was found on disk is in the book, but nobody works on it until it is adopted; what nobody adopts is
//! interrupted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::job::{Job, JobId, JobKind, JobState, NewJob, Progress, Record};
use super::leftover::Leftover;
use super::meter::Meter;

/// Most jobs at a time: each is a program that reads and writes as fast as it can.
const MAX_RUNNING: usize = 32;
/// Most ended jobs that are remembered.
const MAX_ENDED: usize = 200;
/// How long they are.
const REMEMBERED: Duration = Duration::from_secs(14 * 24 * 3600);
/// Of those that a VM's clock begins, the last one that was done is enough, and so many that were not.
const MAX_AUTOMATIC_FAILURES: usize = 5;
/// Progress is shown this often at most; whoever looks on is woken each time.
const SHOWN_EVERY: Duration = Duration::from_millis(100);

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    Done(Option<Value>),
    Failed(String),
    /// It stopped because it was told to: cancelled, unless nobody had asked for that.
    Stopped(String),
    Interrupted(String),
}

/// The answer to a cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cancel {
    Asked,
    /// It has ended already.
    Ended(JobState),
    /// It has gone too far to stop.
    TooLate,
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    entries: BTreeMap<JobId, Entry>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    meter: Meter,
    shown: Option<Instant>,
    owned: bool,
    sealed: bool,
}

impl Registry {
    /// The book as it was left: `next` is greater than every number ever given.
    pub(super) fn restore(records: Vec<Record>, next: u64) -> Self {
        let mut registry = Self { entries: BTreeMap::new(), next };
        for record in records {
            registry.next = registry.next.max(record.job.id.0.saturating_add(1));
            registry.entries.insert(record.job.id, Entry::new(record, false));
        }
        registry
    }

    /// Enters a job; none when too many run.
    pub(super) fn begin(&mut self, new: NewJob, now: u64) -> Option<JobId> {
        let running = self.entries.values().filter(|entry| !entry.record.job.state.is_final()).count();
        if running >= MAX_RUNNING {
            return None;
        }
        let id = JobId(self.next.max(1));
        self.next = id.0.saturating_add(1);
        let job = Job {
            id,
            kind: new.kind,
            target: new.target,
            vm: new.vm,
            state: JobState::Running,
            step: None,
            progress: Progress::default(),
            started: now,
            ended: None,
            problem: None,
            result: None,
            revision: 1,
        };
        self.entries.insert(id, Entry::new(Record { job, leftovers: Vec::new(), again: new.again }, true));
        Some(id)
    }

    pub(super) fn get(&self, id: JobId) -> Option<&Record> {
        self.entries.get(&id).map(|entry| &entry.record)
    }

    /// All jobs, the latest first.
    pub(super) fn list(&self) -> Vec<Job> {
        self.entries.values().rev().map(|entry| entry.record.job.clone()).collect()
    }

    /// The jobs on which nobody works, though they have not ended.
    pub(super) fn orphans(&self) -> Vec<JobId> {
        let orphans = self.entries.values().filter(|entry| !entry.owned && !entry.record.job.state.is_final());
        orphans.map(|entry| entry.record.job.id).collect()
    }

    /// Takes over a job that was found on disk; fails when it has ended or somebody works on it.
    pub(super) fn adopt(&mut self, id: JobId) -> bool {
        let Some(entry) = self.running(id).filter(|entry| !entry.owned) else { return false };
        entry.owned = true;
        true
    }

    /// Leaves a job to the next gateway.
    pub(super) fn release(&mut self, id: JobId) {
        if let Some(entry) = self.running(id) {
            entry.owned = false;
        }
    }

    /// Whether nobody works on anything.
    pub(super) fn is_idle(&self) -> bool {
        self.entries.values().all(|entry| !entry.owned || entry.record.job.state.is_final())
    }

    /// Notes what is of no use unless the job ends well.
    pub(super) fn leave(&mut self, id: JobId, leftovers: &[Leftover]) {
        if let Some(entry) = self.running(id) {
            entry.record.leftovers = leftovers.to_vec();
        }
    }

    /// The job begins another step.
    pub(super) fn step(&mut self, id: JobId, step: &str) {
        if let Some(entry) = self.running(id) {
            entry.meter = Meter::default();
            entry.record.job.step = Some(step.into());
            entry.record.job.progress = Progress::default();
            entry.record.job.revision += 1;
        }
    }

    /// The step has come so far. Says whether that is worth being shown now.
    pub(super) fn advance(&mut self, id: JobId, done: u64, total: u64, now: Instant) -> bool {
        let Some(entry) = self.running(id) else { return false };
        entry.record.job.progress = entry.meter.measure(now, done, total);
        let due = entry.shown.is_none_or(|shown| now.saturating_duration_since(shown) >= SHOWN_EVERY);
        if due || done >= total {
            entry.shown = Some(now);
            entry.record.job.revision += 1;
        }
        due || done >= total
    }

    /// From here on it cannot be cancelled. Fails when that has been asked already.
    pub(super) fn seal(&mut self, id: JobId) -> bool {
        let Some(entry) = self.running(id) else { return false };
        entry.sealed = entry.record.job.state == JobState::Running;
        entry.sealed
    }

    /// What follows can be cancelled again.
    pub(super) fn unseal(&mut self, id: JobId) {
        if let Some(entry) = self.running(id) {
            entry.sealed = false;
        }
    }

    pub(super) fn cancel(&mut self, id: JobId) -> Option<Cancel> {
        let entry = self.entries.get_mut(&id)?;
        let job = &mut entry.record.job;
        Some(match job.state {
            JobState::Cancelling => Cancel::Asked,
            JobState::Running if entry.sealed => Cancel::TooLate,
            JobState::Running => {
                job.state = JobState::Cancelling;
                job.revision += 1;
                Cancel::Asked
            }
            ended => Cancel::Ended(ended),
        })
    }

    /// The job has ended. A second end changes nothing.
    pub(super) fn finish(&mut self, id: JobId, outcome: Outcome, now: u64) {
        let Some(entry) = self.running(id) else { return };
        let job = &mut entry.record.job;
        let cancelled = job.state == JobState::Cancelling;
        (job.state, job.problem, job.result) = match outcome {
            Outcome::Done(result) => (JobState::Done, None, result),
            Outcome::Failed(reason) => (JobState::Failed, Some(reason), None),
            Outcome::Stopped(_) if cancelled => (JobState::Cancelled, Some("cancelled".into()), None),
            Outcome::Stopped(reason) | Outcome::Interrupted(reason) => (JobState::Interrupted, Some(reason), None),
        };
        if job.state == JobState::Done {
            (job.progress.done, job.progress.percent) = (job.progress.total, 100.0);
        }
        job.ended = Some(now);
        job.step = None;
        job.progress.left = None;
        job.revision += 1;
        entry.record.leftovers.clear();
        entry.record.again = None;
    }

    /// Forgets what ended long ago or is too much, and names it. The greatest number is kept, so that it is not given
    /// again.
    pub(super) fn forget(&mut self, now: u64) -> Vec<JobId> {
        let mut forgotten = self.surplus_automatic();
        self.entries.retain(|id, _| !forgotten.contains(id));
        let ended = |entry: &&Entry| entry.record.job.state.is_final();
        let count = self.entries.values().filter(ended).count();
        let surplus = count.saturating_sub(MAX_ENDED);
        let last = self.entries.keys().next_back().copied();
        let old = |job: &Job| now.saturating_sub(job.ended.unwrap_or(now)) > REMEMBERED.as_secs();
        let candidates = self.entries.values().filter(ended).enumerate();
        let candidates = candidates.filter(|(index, entry)| *index < surplus || old(&entry.record.job));
        forgotten.extend(candidates.map(|(_, entry)| entry.record.job.id).filter(|id| Some(*id) != last));
        self.entries.retain(|id, _| !forgotten.contains(id));
        forgotten
    }

    /// What a clock begins by the hour would push out all that people began.
    fn surplus_automatic(&self) -> Vec<JobId> {
        let mut counts: BTreeMap<(Option<&str>, bool), usize> = BTreeMap::new();
        let jobs = self.entries.values().rev().map(|entry| &entry.record.job);
        let ended = jobs.filter(|job| job.kind == JobKind::CheckpointAutomatic && job.state.is_final());
        let surplus = ended.filter(|job| {
            let is_done = job.state == JobState::Done;
            let count = counts.entry((job.vm.as_deref(), is_done)).or_default();
            *count += 1;
            *count > if is_done { 1 } else { MAX_AUTOMATIC_FAILURES }
        });
        surplus.map(|job| job.id).collect()
    }

    fn running(&mut self, id: JobId) -> Option<&mut Entry> {
        self.entries.get_mut(&id).filter(|entry| !entry.record.job.state.is_final())
    }
}

impl Entry {
    fn new(record: Record, owned: bool) -> Self {
        Self { record, meter: Meter::default(), shown: None, owned, sealed: false }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn new(target: &str) -> NewJob {
        NewJob { kind: JobKind::DiskConvert, target: target.into(), vm: None, again: None }
    }

    fn job(registry: &Registry, id: JobId) -> Job {
        registry.get(id).expect("there").job.clone()
    }

    #[test]
    fn a_job_that_stops_is_cancelled_only_when_somebody_asked() {
        let mut registry = Registry::default();
        let (asked, ended) = (registry.begin(new("a"), 1), registry.begin(new("b"), 1));
        let (asked, ended) = (asked.expect("room"), ended.expect("room"));
        assert_eq!(registry.cancel(asked), Some(Cancel::Asked));
        for id in [asked, ended] {
            registry.finish(id, Outcome::Stopped("the gateway stopped".into()), 2);
        }
        assert_eq!(job(&registry, asked).state, JobState::Cancelled);
        assert_eq!(job(&registry, ended).state, JobState::Interrupted);
        assert_eq!(job(&registry, ended).problem.as_deref(), Some("the gateway stopped"));
        assert_eq!(registry.cancel(ended), Some(Cancel::Ended(JobState::Interrupted)));
        assert_eq!(registry.cancel(JobId(99)), None);
    }

    #[test]
    fn a_job_that_has_gone_too_far_is_not_cancelled_and_one_that_is_cancelled_goes_no_further() {
        let mut registry = Registry::default();
        let first = registry.begin(new("a"), 1).expect("room");
        assert!(registry.seal(first));
        assert_eq!(registry.cancel(first), Some(Cancel::TooLate));
        let second = registry.begin(new("b"), 1).expect("room");
        registry.cancel(second);
        assert!(!registry.seal(second));
        registry.unseal(first);
        assert_eq!(registry.cancel(first), Some(Cancel::Asked), "its next part can be");
    }

    #[test]
    fn what_is_found_on_disk_belongs_to_nobody_until_it_has_ended() {
        let mut before = Registry::default();
        let (left, done) = (before.begin(new("a"), 1).expect("room"), before.begin(new("b"), 1).expect("room"));
        before.finish(done, Outcome::Done(None), 2);
        let records = [left, done].map(|id| before.get(id).expect("there").clone());
        let mut registry = Registry::restore(records.into(), 9);
        assert_eq!(registry.orphans(), [left]);
        let mut other = Registry::restore([left, done].map(|id| before.get(id).expect("there").clone()).into(), 9);
        assert!(other.adopt(left) && !other.adopt(left) && !other.adopt(done) && !other.adopt(JobId(99)));
        assert!(other.orphans().is_empty());
        registry.finish(left, Outcome::Interrupted("gone".into()), 3);
        assert!(registry.orphans().is_empty());
        assert_eq!(registry.begin(new("c"), 3), Some(JobId(9)), "no number is given twice");
    }

    #[test]
    fn old_jobs_are_forgotten_but_not_the_last() {
        let mut registry = Registry::default();
        let ids: Vec<_> = (0..3).map(|_| registry.begin(new("a"), 1).expect("room")).collect();
        for id in &ids {
            registry.finish(*id, Outcome::Done(None), 1);
        }
        assert!(registry.forget(2).is_empty());
        assert_eq!(registry.forget(2 + REMEMBERED.as_secs()), ids[..2]);
        assert_eq!(registry.list().len(), 1);
    }

    #[test]
    fn a_clock_pushes_out_nothing_but_what_it_began() {
        let mut registry = Registry::default();
        let asked = registry.begin(new("asked"), 1).expect("room");
        registry.finish(asked, Outcome::Done(None), 1);
        let mut tick = |vm: &str, outcome: Outcome| {
            let automatic = NewJob { kind: JobKind::CheckpointAutomatic, vm: Some(vm.into()), ..new(vm) };
            let id = registry.begin(automatic, 2).expect("room");
            registry.forget(2);
            registry.finish(id, outcome, 2);
            id
        };
        let other = tick("b", Outcome::Done(None));
        let failures: Vec<_> = (0..7).map(|_| tick("a", Outcome::Failed("no room".into()))).collect();
        let done: Vec<_> = (0..300).map(|_| tick("a", Outcome::Done(None))).collect();
        registry.forget(2);
        let left: Vec<_> = registry.list().iter().rev().map(|job| job.id).collect();
        assert_eq!(left, [&[asked, other], &failures[2..], &done[299..]].concat());
    }

    #[derive(Debug, Clone)]
    enum Op {
        Begin,
        Step(u64),
        Advance(u64, u64, u64),
        Seal(u64),
        Unseal(u64),
        Cancel(u64),
        Finish(u64, u8),
        Forget(u64),
        Restart,
    }

    fn op() -> impl Strategy<Value = Op> {
        let id = || 0_u64..12;
        prop_oneof![
            3 => Just(Op::Begin),
            1 => id().prop_map(Op::Step),
            4 => (id(), any::<u64>(), any::<u64>()).prop_map(|(id, done, total)| Op::Advance(id, done, total)),
            1 => id().prop_map(Op::Seal),
            1 => id().prop_map(Op::Unseal),
            2 => id().prop_map(Op::Cancel),
            3 => (id(), 0_u8..4).prop_map(|(id, how)| Op::Finish(id, how)),
            1 => (0_u64..3_000_000).prop_map(Op::Forget),
            1 => Just(Op::Restart),
        ]
    }

    fn outcome(how: u8) -> Outcome {
        match how {
            0 => Outcome::Done(Some(Value::Null)),
            1 => Outcome::Failed("failed".into()),
            2 => Outcome::Stopped("stopped".into()),
            _ => Outcome::Interrupted("interrupted".into()),
        }
    }

    #[test]
    fn a_job_is_adopted_once_and_left_to_the_next_gateway() {
        let mut registry = Registry::default();
        let id = registry.begin(new("a"), 5).expect("room");
        assert!(!registry.adopt(id) && !registry.is_idle(), "it is ours");
        registry.release(id);
        assert!(registry.is_idle());
        let mut next = Registry::restore(vec![registry.get(id).expect("there").clone()], 2);
        assert!(next.adopt(id) && !next.adopt(id));
        assert_eq!(next.orphans(), []);
        next.finish(id, Outcome::Done(None), 6);
        assert!(next.is_idle() && !next.adopt(id));
    }

    proptest! {
        #[test]
        fn what_has_ended_stays_so_and_every_change_can_be_seen(ops in proptest::collection::vec(op(), 0..120)) {
            let mut registry = Registry::default();
            let mut seen: BTreeMap<JobId, Job> = BTreeMap::new();
            let (mut greatest, mut unix) = (0, 1);
            for op in ops {
                unix += 1;
                match op {
                    Op::Begin => if let Some(id) = registry.begin(new("x"), unix) {
                        prop_assert!(id.0 > greatest, "a number was given twice");
                        greatest = id.0;
                    },
                    Op::Step(id) => registry.step(JobId(id), "copying"),
                    Op::Advance(id, done, total) => drop(registry.advance(JobId(id), done, total, Instant::now())),
                    Op::Seal(id) => drop(registry.seal(JobId(id))),
                    Op::Unseal(id) => registry.unseal(JobId(id)),
                    Op::Cancel(id) => drop(registry.cancel(JobId(id))),
                    Op::Finish(id, how) => registry.finish(JobId(id), outcome(how), unix),
                    Op::Forget(later) => {
                        unix += later;
                        for id in registry.forget(unix) {
                            let forgotten = seen.remove(&id);
                            prop_assert!(forgotten.is_none_or(|job| job.state.is_final()), "a running job was forgotten");
                        }
                    }
                    Op::Restart => {
                        let records = registry.entries.values().map(|entry| entry.record.clone()).collect();
                        registry = Registry::restore(records, 0);
                    }
                }
                let running = registry.entries.values().filter(|entry| !entry.record.job.state.is_final()).count();
                prop_assert!(running <= MAX_RUNNING);
                for job in registry.list() {
                    prop_assert!(job.progress.done <= job.progress.total);
                    prop_assert!((0.0..=100.0).contains(&job.progress.percent));
                    prop_assert_eq!(job.ended.is_some(), job.state.is_final());
                    prop_assert_eq!(job.problem.is_some(), job.state.is_final() && job.state != JobState::Done);
                    if let Some(before) = seen.insert(job.id, job.clone()) {
                        prop_assert!(!before.state.is_final() || before == job, "an ended job changed");
                        prop_assert!(job.revision >= before.revision);
                        let unseen = Job { revision: before.revision, progress: before.progress, ..job.clone() };
                        prop_assert!(job.revision > before.revision || unseen == before, "a change that nobody sees");
                    }
                }
            }
        }
    }
}
