//! Checkpoints taken by the clock: every so many minutes while the VM runs, the last few kept.

use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::work::{create, delete_tagged, draft, settle};
use super::{CheckpointError, NewCheckpoint};
use crate::definition::CheckpointSchedule;
use crate::jobs::{JobHandle, JobKind, Jobs, NewJob, WeakJobs};
use crate::lifecycle::VmState;
use crate::vm::{Vm, WeakVm};

/// How often the clock is looked at; the schedule counts minutes.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Takes checkpoints of a VM when its definition says so, as long as anybody has a handle of it. Each is a job.
pub(crate) fn keep_time(vm: &Vm, jobs: WeakJobs) {
    tokio::spawn(run(vm.downgrade(), jobs));
}

async fn run(vm: WeakVm, jobs: WeakJobs) {
    let mut tried = 0;
    loop {
        sleep(LOOK_EVERY).await;
        let (Some(vm), Some(jobs)) = (vm.upgrade(), jobs.upgrade()) else { return };
        let now = now();
        let Some(schedule) = due(&vm, tried, now) else { continue };
        tried = now;
        if let Err(error) = begin(vm.clone(), &jobs, schedule, now).await {
            tracing::warn!(vm = vm.name(), %error, "a checkpoint was due and could not be begun");
        }
    }
}

/// The schedule of a VM, when a checkpoint is due.
fn due(vm: &Vm, tried: u64, now: u64) -> Option<CheckpointSchedule> {
    let (schedule, status) = (vm.definition().checkpoints?, vm.status());
    if status.state != VmState::Running {
        return None;
    }
    let book = vm.checkpoint_keeper().book().ok()?;
    let last = book.entries.iter().filter(|entry| entry.automatic).map(|entry| entry.taken).max();
    let runs_since = status.since.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    is_due(schedule, [last.unwrap_or(0), runs_since, tried], now).then_some(schedule)
}

/// Whether it is long enough since each of these.
fn is_due(schedule: CheckpointSchedule, since: [u64; 3], now: u64) -> bool {
    let latest = since.into_iter().max().unwrap_or(0);
    // A clock that was set back makes nothing due.
    now.saturating_sub(latest) >= u64::from(schedule.every) * 60
}

/// Begins the job, and waits for its end: the next is not due before.
async fn begin(vm: Vm, jobs: &Jobs, schedule: CheckpointSchedule, now: u64) -> Result<(), CheckpointError> {
    let name = vm.checkpoint_keeper().book()?.free_name(&moment(now));
    let target = format!("{name} of {}", vm.name());
    let new = NewJob { kind: JobKind::CheckpointAutomatic, target, vm: Some(vm.name().into()), again: None };
    let (works, ended) = oneshot::channel::<()>();
    let job = jobs.spawn(new, |job: JobHandle| async move {
        let _works = works;
        job.step("waiting");
        let taken = take(&vm, schedule, &name, &job).await;
        match &taken {
            Ok(()) => tracing::info!(vm = vm.name(), checkpoint = name, "checkpoint made by the clock"),
            Err(CheckpointError::Stopped) => {}
            Err(error) => tracing::warn!(vm = vm.name(), %error, "a checkpoint was due and could not be made"),
        }
        Ok(taken.map(|()| Some(json!({ "checkpoint": name })))?)
    });
    job.await?;
    // Nothing is sent: it ends when its sender is gone.
    let _ = ended.await;
    Ok(())
}

async fn take(vm: &Vm, schedule: CheckpointSchedule, name: &str, job: &JobHandle) -> Result<(), CheckpointError> {
    let keeper = vm.checkpoint_keeper();
    let new = NewCheckpoint { name: name.into(), notes: String::new() };
    create(vm, draft(vm, new, true), Some(job)).await?;
    let _turn = keeper.turn().await;
    settle(vm, keeper).await?;
    while let Some(tag) = keeper.book()?.surplus(schedule.keep.into()).map(|entry| entry.tag.clone()) {
        job.step("deleting");
        delete_tagged(vm, keeper, &tag, Some(job.id())).await?;
    }
    Ok(())
}

/// Seconds since 1970, as a date that sorts.
fn moment(unix: u64) -> String {
    let (days, seconds) = (unix / 86_400, unix % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60)
}

/// Days since 1970 in the Gregorian calendar, in years that begin with March: leap days come last then.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day_of_month)
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dates() {
        for (unix, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_709_251_140, "2024-02-29 23:59 UTC"),
            (1_795_656_878, "2026-11-26 01:34 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(moment(unix), text);
        }
    }

    #[test]
    fn one_is_due_when_the_last_is_old_enough_and_the_vm_has_run_so_long() {
        let schedule = CheckpointSchedule { every: 10, keep: 2 };
        assert!(is_due(schedule, [0, 1000, 0], 1600));
        assert!(!is_due(schedule, [0, 1001, 0], 1600));
        assert!(!is_due(schedule, [1001, 0, 0], 1600) && !is_due(schedule, [0, 0, 1001], 1600));
        assert!(!is_due(schedule, [2000, 0, 0], 1600), "the clock was set back");
    }
}
