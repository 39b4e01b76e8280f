//! Making, going back, deleting.

use std::time::SystemTime;

use serde::Serialize;

use super::book::{Draft, Entry, Verdict};
use super::keeper::Keeper;
use super::progress::{self, Flow};
use super::{CheckpointError, CheckpointTree, NewCheckpoint, hardware, view};
use crate::definition::{Definition, Disk};
use crate::disks::{backing_of, same_file};
use crate::jobs::{JobHandle, JobId};
use crate::lifecycle::{Cause, Request, RequestError, Snapshot, SnapshotTag, VmState};
use crate::vm::Vm;

/// What is to be done; checkpoints by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Work {
    Create(NewCheckpoint),
    Revert(String),
    Delete(String),
}

/// A disk that a checkpoint gave an overlay.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Overlaid {
    /// What the VM calls it.
    disk: String,
    /// The file that keeps what was written before.
    below: String,
    /// The file that takes what is written from then on.
    overlay: String,
}

/// Most often that the images are asked what became of a change: each time something is cleared away.
const MAX_JUDGEMENTS: usize = 4;

impl Work {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Create(NewCheckpoint { name, .. }) | Self::Revert(name) | Self::Delete(name) => name,
        }
    }
}

/// The tree as it is now.
pub(super) async fn list(vm: &Vm) -> Result<CheckpointTree, CheckpointError> {
    let keeper = vm.checkpoint_keeper();
    let mut book = keeper.book()?;
    // Who changes the images keeps QEMU from answering.
    let Some(_turn) = keeper.try_turn() else { return Ok(book.tree(None)) };
    match vm.snapshots().await {
        Ok(found) => {
            book.adopt(&found);
            Ok(book.tree(Some(&found)))
        }
        // Names and notes are worth something without.
        Err(_) if !book.entries.is_empty() => Ok(book.tree(None)),
        Err(reason) => Err(unseen(vm, reason)),
    }
}

/// Refuses what can be refused before anything has begun.
pub(super) async fn check(vm: &Vm, work: &Work) -> Result<(), CheckpointError> {
    if let Some(reason) = vm.checkpoint_obstacle() {
        return Err(CheckpointError::Disks(reason));
    }
    let keeper = vm.checkpoint_keeper();
    let mut book = keeper.book()?;
    if let Some(_turn) = keeper.try_turn() {
        let found = vm.snapshots().await.map_err(|reason| unseen(vm, reason))?;
        book.adopt(&found);
        if let Work::Revert(name) = work {
            fits(vm, book.find(name)?, &found)?;
        }
    }
    match work {
        Work::Create(new) => {
            // What is under way now will have ended by then.
            book.give_up();
            book.begin_create(draft(vm, new.clone(), false), &[], None).map(drop)
        }
        Work::Revert(name) | Work::Delete(name) => book.find(name).map(drop),
    }
}

/// Does it; the disks that are other files afterwards.
pub(super) async fn run(vm: &Vm, work: Work, job: Option<&JobHandle>) -> Result<Vec<Overlaid>, CheckpointError> {
    match work {
        Work::Create(new) => {
            let before = vm.definition();
            create(vm, draft(vm, new, false), job).await?;
            return Ok(overlaid(&before, &vm.definition()));
        }
        Work::Revert(name) => revert(vm, &name, job).await,
        Work::Delete(name) => delete(vm, &name, job).await,
    }
    .map(|()| Vec::new())
}

pub(super) async fn rename(vm: &Vm, name: &str, new: &str) -> Result<(), CheckpointError> {
    let keeper = vm.checkpoint_keeper();
    if keeper.book()?.find(name).is_err() {
        // It may be one that nobody entered.
        let found = vm.snapshots().await.map_err(|reason| unseen(vm, reason))?;
        return keeper.change(|book| {
            book.adopt(&found);
            book.rename(name, new)
        });
    }
    keeper.change(|book| book.rename(name, new))
}

pub(super) async fn create(vm: &Vm, draft: Draft, job: Option<&JobHandle>) -> Result<(), CheckpointError> {
    let keeper = vm.checkpoint_keeper();
    let _turn = keeper.turn().await;
    seal(job)?;
    let found = settle(vm, keeper).await?;
    let tag = keeper.change(|book| book.begin_create(draft, &found, job.map(JobHandle::id)))?;
    step(job, "saving");
    let pid = vm.status().pid;
    let total = pid.map_or(0, |pid| likely_size(&found, progress::memory_in_use(pid)));
    let saved = progress::tell(job, pid, Flow::Written, total, vm.save_snapshot(tag)).await;
    // Whatever was answered, what counts is what the images have.
    let settled = settle(vm, keeper).await;
    saved?;
    settled.map(drop)
}

async fn delete(vm: &Vm, name: &str, job: Option<&JobHandle>) -> Result<(), CheckpointError> {
    let keeper = vm.checkpoint_keeper();
    let _turn = keeper.turn().await;
    seal(job)?;
    settle(vm, keeper).await?;
    let tag = keeper.book()?.find(name)?.tag.clone();
    step(job, "deleting");
    delete_tagged(vm, keeper, &tag, job.map(JobHandle::id)).await
}

/// Deletes a checkpoint. The caller has the turn and has settled what was under way.
pub(super) async fn delete_tagged(
    vm: &Vm,
    keeper: &Keeper,
    tag: &SnapshotTag,
    job: Option<JobId>,
) -> Result<(), CheckpointError> {
    keeper.change(|book| book.begin_delete(tag, job))?;
    match settle(vm, keeper).await {
        Err(CheckpointError::Request(error @ RequestError::Refused(_))) => {
            keeper.change(|book| {
                book.give_up();
                Ok(())
            })?;
            Err(error.into())
        }
        done => done.map(drop),
    }
}

async fn revert(vm: &Vm, name: &str, job: Option<&JobHandle>) -> Result<(), CheckpointError> {
    let keeper = vm.checkpoint_keeper();
    let _turn = keeper.turn().await;
    seal(job)?;
    let found = settle(vm, keeper).await?;
    let entry = keeper.book()?.find(name)?.clone();
    fits(vm, &entry, &found)?;
    let resume = vm.status().state == VmState::Running;
    keeper.change(|book| book.begin_revert(&entry.tag, resume, job.map(JobHandle::id)))?;
    step(job, "loading");
    let size = found.iter().find(|snapshot| snapshot.tag == entry.tag).map_or(0, |snapshot| snapshot.size);
    let going_back = go_back(vm, &entry);
    let done = progress::tell(job, vm.status().pid, Flow::Read, size, going_back).await;
    conclude_revert(vm, keeper, done)
}

/// Enters how a revert went.
fn conclude_revert(vm: &Vm, keeper: &Keeper, done: Result<(), RequestError>) -> Result<(), CheckpointError> {
    let Err(error) = done else {
        return keeper.change(|book| {
            book.finish(&[]);
            Ok(())
        });
    };
    let untouched = matches!(error, RequestError::Refused(_)) || is_on(vm);
    if untouched {
        keeper.change(|book| {
            book.give_up();
            Ok(())
        })?;
    }
    // Otherwise its disks may be half what they were.
    Err(if untouched { error.into() } else { CheckpointError::CutOff(error) })
}

/// About how many bytes a state will have: those of the latest with memory, else, at most, those of the memory in use, of which
/// QEMU leaves out what is zero.
fn likely_size(found: &[Snapshot], in_use: u64) -> u64 {
    let with_memory = found.iter().filter(|snapshot| snapshot.size > 0);
    with_memory.max_by_key(|snapshot| snapshot.taken).map_or(in_use, |latest| latest.size.min(in_use))
}

fn overlaid(before: &Definition, after: &Definition) -> Vec<Overlaid> {
    let pairs = before.disks.iter().filter_map(|then| Some((then, after.disks.iter().find(|now| now.id == then.id)?)));
    let other = pairs.filter(|(then, now)| match (then.source.path(), now.source.path()) {
        (Some(then), Some(now)) => backing_of(now).ok().flatten().is_some_and(|below| same_file(&below.path, then)),
        _ => false,
    });
    let told = |(then, now): (&Disk, &Disk)| Overlaid {
        disk: now.id.clone(),
        below: then.source.to_string(),
        overlay: now.source.to_string(),
    };
    other.map(told).collect()
}

/// Makes the VM what it was in a checkpoint.
async fn go_back(vm: &Vm, entry: &Entry) -> Result<(), RequestError> {
    if entry.memory { vm.load_snapshot(entry.tag.clone()).await } else { vm.restore_disks(entry.tag.clone()).await }
}

/// Starts a VM. If it was going back to a checkpoint and that was cut off, it is started in that.
pub(crate) async fn start(vm: &Vm) -> Result<(), RequestError> {
    let keeper = vm.checkpoint_keeper();
    // A book that cannot be read says nothing of it.
    let is_cut_off = || keeper.book().is_ok_and(|book| book.cut_off_revert().is_some());
    // Who is at it now has the turn, and the VM with it.
    let Some(_turn) = keeper.try_turn().filter(|_| is_cut_off()) else { return vm.request(Request::Start).await };
    finish_revert(vm, keeper).await
}

/// Goes on with a revert that was cut off. When its memory cannot be loaded, the disks are what they were all the same.
pub(super) async fn finish_revert(vm: &Vm, keeper: &Keeper) -> Result<(), RequestError> {
    let failed = |reason: String| RequestError::Failed { request: Request::Start, reason, cause: Cause::Failure };
    let book = keeper.book().map_err(|error| failed(error.to_string()))?;
    let Some((entry, _)) = book.cut_off_revert() else { return vm.request(Request::Start).await };
    let finish = || {
        let finished = keeper.change(|book| {
            book.finish(&[]);
            Ok(())
        });
        finished.map_err(|error| failed(error.to_string()))
    };
    tracing::info!(checkpoint = entry.name, "a revert that was cut off is done again");
    let Err(error) = go_back(vm, entry).await else {
        finish()?;
        return if entry.memory { Ok(()) } else { vm.request(Request::Start).await };
    };
    if matches!(error, RequestError::Refused(_)) || is_on(vm) || !entry.memory {
        return Err(error);
    }
    vm.restore_disks(entry.tag.clone()).await?;
    finish()?;
    let name = &entry.name;
    let disks = "its disks are what they were then, and the next start boots from them";
    Err(failed(format!("the memory of checkpoint `{name}` cannot be loaded ({error}); {disks}")))
}

/// Clears up after what was cut off, and gives what the images have then. The caller has the turn. A revert stays to be
/// done.
pub(super) async fn settle(vm: &Vm, keeper: &Keeper) -> Result<Vec<Snapshot>, CheckpointError> {
    for _ in 0..MAX_JUDGEMENTS {
        let found = vm.settled_snapshots().await.map_err(|reason| unseen(vm, reason))?;
        match keeper.book()?.judge(&found) {
            Verdict::Clear(tag) => vm.delete_snapshot(tag).await?,
            verdict => {
                keeper.change(|book| {
                    match verdict {
                        Verdict::Done => book.finish(&found),
                        Verdict::Never => book.give_up(),
                        _ => {}
                    }
                    book.adopt(&found);
                    Ok(())
                })?;
                return Ok(found);
            }
        }
    }
    Err(CheckpointError::Impossible("what was cut off cannot be cleared away: it is there again each time".into()))
}

/// Waits for who changes the images, and clears up after what was cut off.
pub(super) async fn settled(vm: &Vm) -> Result<(), CheckpointError> {
    let keeper = vm.checkpoint_keeper();
    let _turn = keeper.turn().await;
    settle(vm, keeper).await.map(drop)
}

/// Refuses a checkpoint whose disks or memory are not this VM's any more.
fn fits(vm: &Vm, entry: &Entry, found: &[Snapshot]) -> Result<(), CheckpointError> {
    let name = &entry.name;
    let snapshot = found.iter().find(|snapshot| snapshot.tag == entry.tag);
    let problem = view::problem(snapshot);
    let then = entry.definition.as_ref().filter(|_| entry.memory);
    let problem = problem.or_else(|| hardware::difference(then?, &vm.definition()));
    problem.map_or(Ok(()), |problem| {
        Err(CheckpointError::Impossible(format!("this VM cannot go back to checkpoint `{name}`: {problem}")))
    })
}

pub(super) fn draft(vm: &Vm, new: NewCheckpoint, automatic: bool) -> Draft {
    let NewCheckpoint { name, notes } = new;
    let taken = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Draft { name, notes, taken, automatic, definition: Some(vm.definition().to_toml()) }
}

fn is_on(vm: &Vm) -> bool {
    matches!(vm.status().state, VmState::Running | VmState::Paused)
}

fn unseen(vm: &Vm, reason: String) -> CheckpointError {
    vm.checkpoint_obstacle().map_or(CheckpointError::Unseen(reason), CheckpointError::Disks)
}

fn seal(job: Option<&JobHandle>) -> Result<(), CheckpointError> {
    job.map_or(Ok(()), JobHandle::seal).map_err(|_| CheckpointError::Stopped)
}

fn step(job: Option<&JobHandle>, step: &str) {
    if let Some(job) = job {
        job.step(step);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_state_is_about_as_large_as_the_latest() {
        let snapshot = |taken: u64, size| Snapshot {
            tag: "a".parse().expect("a tag"),
            taken: SystemTime::UNIX_EPOCH + Duration::from_secs(taken),
            size,
            missing: Vec::new(),
        };
        assert_eq!(likely_size(&[], 323), 323, "nothing else is known");
        assert_eq!(likely_size(&[snapshot(3, 0), snapshot(2, 107), snapshot(1, 50)], 323), 107);
        assert_eq!(likely_size(&[snapshot(1, 500)], 323), 323, "there is no more to keep");
    }
}
