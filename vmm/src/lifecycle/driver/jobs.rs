//! Requests that take long: they go on beside the driver, which hears everything else meanwhile.
//!
//! ```text
//!        the VM is on                          the VM is off
//! load ──▶ stop, load into its QEMU      load ──▶ start a QEMU that waits ──▶ load into it ──▶ cont
//!             │ went wrong: what it holds is no VM any more     ▲                │ went wrong, again
//!             └──────────── end it ─────────────────────────────┘                └──▶ Failed
//! ```
//!
//! The saved state stays in the disks whatever happens: what cannot be loaded now can be loaded later. While the VM is off
//! the same is done with the images of its disks, which no QEMU has open then.

use std::sync::Arc;

use serde_json::json;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::{Driver, RequestId, Trouble, VmState};
use crate::bus::{BusShared, QuiesceReason};
use crate::disks::require_disks_writable;
use crate::disks::{DiskError, QemuImg};
use crate::engine::QmpError;
use crate::lifecycle::snapshot::{self, Images, Jobs, OverlayError, Overlays, Snapshot, SnapshotTag};
use crate::lifecycle::state::Request;

/// A request that is being carried out.
#[derive(Debug)]
pub(super) struct Job {
    id: RequestId,
    request: Request,
    stage: Stage,
    /// One task, which ends when this is dropped.
    work: JoinSet<Result<(), Trouble>>,
}

/// What a job works on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stage {
    /// The VM as it was found.
    Found,
    /// A QEMU that was started for it; the state from before.
    Started { before: VmState },
}

impl Job {
    pub(super) fn new(
        id: RequestId,
        request: Request,
        stage: Stage,
        work: impl Future<Output = Result<(), Trouble>> + Send + 'static,
    ) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(work.in_current_span());
        Self { id, request, stage, work: tasks }
    }

    /// Waits for its end. Cancel safe.
    pub(super) async fn ended(&mut self) -> Result<(), Trouble> {
        let ended = self.work.join_next().await.unwrap_or(Ok(Ok(())));
        ended.unwrap_or_else(|error| Err(Trouble::Failed(format!("a task broke: {error}"))))
    }
}

impl Driver {
    /// Begins to save the state; [`end_job`](Self::end_job) goes on when it is done. An error: it did not even begin.
    pub(super) fn begin_save(&mut self, id: RequestId, tag: SnapshotTag) -> Result<(), Trouble> {
        let running = self.status.borrow().state == VmState::Running;
        let request = Request::SaveSnapshot { tag: tag.clone() };
        self.job = Some(if self.machine.is_some() {
            let work = save(self.jobs()?, self.overlays()?, self.connections.bus.clone(), tag, running);
            Job::new(id, request, Stage::Found, work)
        } else {
            Job::new(id, request, Stage::Found, save_images(self.images()?, self.overlays()?, tag))
        });
        Ok(())
    }

    /// Begins to forget a state, as for [`begin_save`](Self::begin_save).
    pub(super) fn begin_delete(&mut self, id: RequestId, tag: SnapshotTag) -> Result<(), Trouble> {
        let request = Request::DeleteSnapshot { tag: tag.clone() };
        self.job = Some(if self.machine.is_some() {
            Job::new(id, request, Stage::Found, delete(self.jobs()?, tag))
        } else {
            Job::new(id, request, Stage::Found, delete_images(self.images()?, tag))
        });
        Ok(())
    }

    /// Begins to make the disks what they were, as for [`begin_save`](Self::begin_save). Ends QEMU first.
    pub(super) async fn begin_restore(&mut self, id: RequestId, tag: SnapshotTag) -> Result<(), Trouble> {
        // Before anything is ended for it.
        let images = self.images()?;
        require_on(&images, &tag).await?;
        let writable = require_disks_writable(&self.host, &self.definition.current().disks).await;
        writable.map_err(|error| Trouble::Refused(error.to_string()))?;
        self.power_off(None).await?;
        let work = restore(images, tag.clone());
        self.job = Some(Job::new(id, Request::RestoreDisks { tag }, Stage::Found, work));
        Ok(())
    }

    /// Begins to go back to a state, as for [`begin_save`](Self::begin_save).
    pub(super) async fn begin_load(&mut self, id: RequestId, tag: SnapshotTag) -> Result<(), Trouble> {
        let state = self.status.borrow().state;
        if matches!(state, VmState::Running | VmState::Paused) {
            self.load_into(id, tag, Stage::Found, state == VmState::Running)
        } else {
            self.load_into_new(id, tag, state, true).await
        }
    }

    /// What came of a job.
    pub(super) async fn end_job(&mut self, done: Result<(), Trouble>) {
        let Some(Job { id, request, stage, .. }) = self.job.take() else { return };
        let done = match (done, stage, &request) {
            (Err(Trouble::Lost(reason)), Stage::Found, Request::LoadSnapshot { tag }) => {
                tracing::warn!(reason, "what QEMU holds is no VM any more; the state is loaded into another");
                let resume = self.status.borrow().state == VmState::Running;
                match self.load_into_new(id, tag.clone(), VmState::Failed, resume).await {
                    Ok(()) => return,
                    Err(trouble) => Err(trouble),
                }
            }
            (Err(trouble), Stage::Started { before }, _) => Err(self.end_started(trouble, before).await),
            (done, ..) => {
                if matches!(request, Request::LoadSnapshot { .. }) {
                    self.connections.memory.begin_run();
                }
                self.look().await;
                self.look_at_port().await;
                done
            }
        };
        self.finish(id, request, done);
    }

    /// Gives up what goes on.
    pub(super) fn abandon_job(&mut self, trouble: Trouble) {
        if let Some(Job { id, request, .. }) = self.job.take() {
            self.finish(id, request, Err(trouble));
        }
    }

    /// The snapshots of a VM; `settled`: once QEMU has ended what an earlier gateway began. Its driver need not wait for
    /// the answer.
    pub(super) fn list_snapshots(
        &self,
        settled: bool,
    ) -> Result<impl Future<Output = Result<Vec<Snapshot>, String>> + use<>, String> {
        let images = self.images().map_err(Trouble::reason)?;
        let jobs = self.machine.as_ref().map(|_| self.jobs()).transpose().map_err(Trouble::reason)?;
        Ok(async move {
            match jobs {
                Some(jobs) if settled => jobs.list_settled().await.map_err(|error| error.to_string()),
                Some(jobs) => jobs.list().await.map_err(|error| error.to_string()),
                None => images.list().await.map_err(|error| error.to_string()),
            }
        })
    }

    /// Starts a QEMU, in place of the one there may be, and loads a state into it.
    async fn load_into_new(
        &mut self,
        id: RequestId,
        tag: SnapshotTag,
        before: VmState,
        resume: bool,
    ) -> Result<(), Trouble> {
        // Before anything is ended or started for it.
        snapshot::disks(&self.definition.current()).map_err(Trouble::Refused)?;
        self.boot().await?;
        self.load_into(id, tag, Stage::Started { before }, resume)
    }

    fn load_into(&mut self, id: RequestId, tag: SnapshotTag, stage: Stage, resume: bool) -> Result<(), Trouble> {
        let work = load(self.jobs()?, self.connections.bus.clone(), tag.clone(), resume);
        self.job = Some(Job::new(id, Request::LoadSnapshot { tag }, stage, work));
        Ok(())
    }

    /// A QEMU that was started to load a state could not.
    async fn end_started(&mut self, trouble: Trouble, before: VmState) -> Trouble {
        if let Some(machine) = self.machine.take()
            && let Err(reason) = machine.end_by_force().await
        {
            return Trouble::Failed(reason);
        }
        if let Trouble::Refused(_) = &trouble {
            self.enter(before, None);
        }
        trouble
    }

    fn jobs(&self) -> Result<Jobs, Trouble> {
        let definition = self.definition.current();
        let disks = snapshot::disks(&definition).map_err(Trouble::Refused)?;
        let machine = self.machine.as_ref().ok_or_else(|| Trouble::Refused("it is off".into()))?;
        let qmp = machine.qmp().ok_or_else(|| Trouble::Failed("QEMU's monitor is closed".into()))?;
        Ok(Jobs { qmp, disks, definition, deadline: self.host.config.deadlines.snapshot })
    }

    pub(super) fn overlays(&self) -> Result<Overlays, Trouble> {
        let closed = || Trouble::Failed("QEMU's monitor is closed".into());
        let qmp = self.machine.as_ref().map(|machine| machine.qmp().ok_or_else(closed)).transpose()?;
        Ok(Overlays {
            program: QemuImg::beside(&self.host.qemu),
            definition: self.definition.clone(),
            qmp,
            deadline: self.host.config.deadlines.snapshot,
        })
    }

    fn images(&self) -> Result<Images, Trouble> {
        let disks = snapshot::disks(&self.definition.current()).map_err(Trouble::Refused)?;
        let program = QemuImg::beside(&self.host.qemu);
        Ok(Images { program, disks, deadline: self.host.config.deadlines.snapshot })
    }
}

async fn save(
    mut jobs: Jobs,
    overlays: Overlays,
    bus: Arc<BusShared>,
    tag: SnapshotTag,
    running: bool,
) -> Result<(), Trouble> {
    if find(&jobs, &tag).await?.is_some() {
        return Err(is_there(&tag));
    }
    lay(&overlays).await?;
    // Some are other files now.
    jobs.definition = overlays.definition.current();
    // A guest that stands still has nothing under way that could come to an end.
    let _at_rest = if running { Some(bus.quiesce(QuiesceReason::Save).await) } else { None };
    unless_closed(jobs.save(&tag)).await
}

async fn delete(jobs: Jobs, tag: SnapshotTag) -> Result<(), Trouble> {
    find(&jobs, &tag).await?.ok_or_else(|| is_not_there(&tag))?;
    unless_closed(jobs.delete(&tag)).await
}

async fn save_images(mut images: Images, overlays: Overlays, tag: SnapshotTag) -> Result<(), Trouble> {
    if find_on(&images, &tag).await?.is_some() {
        return Err(is_there(&tag));
    }
    lay(&overlays).await?;
    // Some are other files now.
    images.disks = snapshot::disks(&overlays.definition.current()).map_err(Trouble::Refused)?;
    images.save(&tag).await.map_err(refused)
}

async fn lay(overlays: &Overlays) -> Result<(), Trouble> {
    match overlays.lay().await {
        Ok(()) => Ok(()),
        Err(OverlayError::Qmp(error)) => unless_closed(async { Err::<(), _>(error) }).await,
        Err(error) => Err(Trouble::Refused(error.to_string())),
    }
}

async fn delete_images(images: Images, tag: SnapshotTag) -> Result<(), Trouble> {
    find_on(&images, &tag).await?.ok_or_else(|| is_not_there(&tag))?;
    images.delete(&tag).await.map_err(refused)
}

async fn restore(images: Images, tag: SnapshotTag) -> Result<(), Trouble> {
    images.restore(&tag).await.map_err(refused)
}

/// Loads a state into processors that run or stand still, and lets them `resume` or not.
async fn load(jobs: Jobs, bus: Arc<BusShared>, tag: SnapshotTag, resume: bool) -> Result<(), Trouble> {
    let found = find(&jobs, &tag).await?.filter(Snapshot::is_whole).ok_or_else(|| is_not_there(&tag))?;
    if found.size == 0 {
        return Err(Trouble::Refused(format!("the snapshot `{tag}` has no memory, only disks")));
    }
    // QEMU would stop and resume them by itself; but what concerns the older state shall be known before it runs.
    unless_closed(jobs.qmp.execute("stop", json!({}))).await?;
    let _at_rest = bus.quiesce(QuiesceReason::Load).await;
    // Whether QEMU refused or was silent: what it holds after this is not what it was.
    unless_closed(jobs.load(&tag)).await.map_err(|trouble| Trouble::Lost(trouble.reason()))?;
    bus.count_reset();
    if resume { unless_closed(jobs.qmp.execute("cont", json!({}))).await } else { Ok(()) }
}

async fn find(jobs: &Jobs, tag: &SnapshotTag) -> Result<Option<Snapshot>, Trouble> {
    let mut found = None;
    unless_closed(async {
        found = jobs.list().await?.into_iter().find(|snapshot| snapshot.tag == *tag);
        Ok(())
    })
    .await?;
    Ok(found)
}

async fn find_on(images: &Images, tag: &SnapshotTag) -> Result<Option<Snapshot>, Trouble> {
    let found = images.list().await.map_err(refused)?;
    Ok(found.into_iter().find(|snapshot| snapshot.tag == *tag))
}

async fn require_on(images: &Images, tag: &SnapshotTag) -> Result<(), Trouble> {
    let found = find_on(images, tag).await?.filter(Snapshot::is_whole);
    found.map(drop).ok_or_else(|| is_not_there(tag))
}

fn is_there(tag: &SnapshotTag) -> Trouble {
    Trouble::Refused(format!("there is a snapshot `{tag}` already"))
}

fn is_not_there(tag: &SnapshotTag) -> Trouble {
    Trouble::Refused(format!("there is no snapshot `{tag}`"))
}

fn refused(error: DiskError) -> Trouble {
    Trouble::Refused(error.to_string())
}

/// What QEMU says to a step. When it says nothing because it has gone, neither does this: the driver hears how it ended,
/// which is the better answer.
async fn unless_closed<T>(step: impl Future<Output = Result<T, QmpError>>) -> Result<(), Trouble> {
    match step.await {
        Ok(_) => Ok(()),
        Err(QmpError::Closed) => std::future::pending().await,
        Err(error @ QmpError::Refused { .. }) => Err(Trouble::Refused(error.to_string())),
        Err(error) => Err(Trouble::Failed(error.to_string())),
    }
}
