//! What an earlier gateway left unfinished.
//!
//! QEMU goes on with what it was told and answers when it has done it; then the images tell how that went (`book`).

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use super::book::{Change, Pending};
use super::work::{finish_revert, settle};
use super::{CheckpointError, Keeper, merged};
use crate::host::WeakHost;
use crate::jobs::{JobHandle, JobKind, Jobs, Unfinished};
use crate::lifecycle::VmState;
use crate::vm::{Vm, WeakVm};

/// How long a VM that says nothing of its images is left alone, unless its state changes.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Goes on with what was under way, beside everything else, and with the job that did it.
pub(crate) fn take_over(vm: &Vm, jobs: &Jobs, host: &WeakHost) {
    let Ok(Some(pending)) = vm.checkpoint_keeper().book().map(|book| book.pending) else { return };
    let (what, weak) = (pending.what.clone(), vm.downgrade());
    let adopted = pending.job.and_then(|id| {
        let automatic = jobs.get(id).is_some_and(|job| job.kind == JobKind::CheckpointAutomatic);
        let (pending, weak, host) = (pending.clone(), weak.clone(), host.clone());
        jobs.adopt(id, |job: JobHandle| async move {
            let name = name(&pending);
            go_on(weak.clone(), &pending.what).await?;
            if automatic && matches!(pending.what, Change::Delete(_)) {
                // What it made is there already, and needs the overlays.
                return Ok(None);
            }
            if let (Change::Delete(_), Some(host), Some(vm)) = (&pending.what, host.upgrade(), weak.upgrade()) {
                return Ok(Some(merged(&name, &host.disks().merge_overlays(&vm, &job).await?)));
            }
            Ok(Some(json!({ "checkpoint": name })))
        })
    });
    if adopted.is_none() {
        tokio::spawn(async move {
            if let Err(error) = go_on(weak, &what).await {
                tracing::warn!(?error, "a change of checkpoints that was cut off");
            }
        });
    }
}

/// Does the rest of what was under way, as soon as the VM can be asked.
async fn go_on(vm: WeakVm, what: &Change) -> Result<(), Unfinished> {
    loop {
        let stopped = || Unfinished::Stopped;
        let strong = vm.upgrade().ok_or_else(stopped)?;
        match try_to_go_on(&strong, what).await {
            Err(CheckpointError::Unseen(reason)) => tracing::debug!(reason, "the images cannot be looked at yet"),
            done => return done.map_err(Unfinished::from),
        }
        let mut watch = strong.watch();
        drop(strong);
        // Whether something changed, or nothing for long: it is tried again. A VM that is gone is noticed there.
        let _ = timeout(TRY_AGAIN, watch.changed()).await;
    }
}

async fn try_to_go_on(vm: &Vm, what: &Change) -> Result<(), CheckpointError> {
    let keeper = vm.checkpoint_keeper();
    let _turn = keeper.turn().await;
    // Somebody may have been faster.
    if keeper.book()?.pending.is_none_or(|pending| pending.what != *what) {
        return was_done(keeper, what);
    }
    let found = settle(vm, keeper).await?;
    let Some((_, resume)) = keeper.book()?.cut_off_revert() else { return was_done(keeper, what) };
    tracing::debug!(snapshots = found.len(), "a revert was cut off");
    if matches!(vm.status().state, VmState::Created | VmState::Stopped) {
        let reason = "the gateway ended while it ran; the next start of the VM goes on with it";
        return Err(CheckpointError::Impossible(reason.into()));
    }
    finish_revert(vm, keeper).await?;
    if resume && vm.status().state == VmState::Paused {
        vm.resume().await?;
    }
    Ok(())
}

/// Whether what was under way was done after all.
fn was_done(keeper: &Keeper, what: &Change) -> Result<(), CheckpointError> {
    let book = keeper.book()?;
    let done = match what {
        Change::Create(entry) => book.tagged(&entry.tag).is_some(),
        Change::Delete(tag) => book.tagged(tag).is_none(),
        Change::Revert { tag, .. } => book.here.as_ref() == Some(tag),
    };
    if done { Ok(()) } else { Err(CheckpointError::Stopped) }
}

fn name(pending: &Pending) -> String {
    match &pending.what {
        Change::Create(entry) => entry.name.clone(),
        Change::Revert { tag, .. } | Change::Delete(tag) => tag.to_string(),
    }
}
