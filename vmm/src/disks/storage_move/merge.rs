//! An overlay that no checkpoint needs any more goes back into the file below it: a move to a place that has most of the disk
//! already.
//!
//! Until QEMU has gone over and the definition names the file, the overlay is the disk. What is copied before hides behind what
//! the overlay has, so a merge that is cut off is harmless and is begun anew. From then on the file is the disk, and the
//! overlay goes.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::Moved;
use super::decision::Phase;
use super::moving::{Move, failed, stopped};
use super::switch::define;
use crate::definition::{Disk, DiskFormat};
use crate::disks::census::{Reach, census};
use crate::disks::convert::require_space;
use crate::disks::qemu_img::Progress;
use crate::disks::{DiskError, Disks, describe, laid_on, real, replay, same_file};
use crate::engine::Qmp;
use crate::jobs::{JobHandle, Unfinished};
use crate::lifecycle::{Drives, Hold, Monitor};
use crate::vm::Vm;

/// A merge that can begin.
#[derive(Debug)]
pub(super) struct Merge {
    pub(super) overlay: Disk,
    /// The same disk as the file that it will be again.
    pub(super) below: Disk,
    /// Bytes that the overlay takes.
    pub(super) size: u64,
    pub(super) hold: Hold,
    pub(super) monitor: Monitor,
}

/// What became of the overlays of a VM.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Merges {
    /// Disks that are one file again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    merged: Vec<Merged>,
    /// Overlays that stay.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kept: Vec<Kept>,
}

/// A disk whose overlay went into the file below.
#[derive(Debug, Serialize)]
struct Merged {
    /// What the VM calls it.
    disk: String,
    file: String,
    overlay: String,
    /// Why the overlay, which nothing needs, is still there.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// A disk that stays in two files.
#[derive(Debug, Serialize)]
struct Kept {
    disk: String,
    overlay: String,
    reason: String,
}

impl Disks {
    /// The disks of a VM that are overlays which a checkpoint made.
    pub(crate) fn overlays_of(vm: &Vm) -> Vec<Disk> {
        let disks = vm.definition().disks.clone().into_iter();
        disks.filter(|disk| !disk.readonly && disk.source.path().and_then(laid_on).is_some()).collect()
    }

    /// Merges the overlays of a VM's disks that hold no checkpoint any more, as steps of `job`.
    pub(crate) async fn merge_overlays(&self, vm: &Vm, job: &JobHandle) -> Result<Merges, Unfinished> {
        let (mut merges, mut begun) = (Merges::default(), false);
        for overlay in Self::overlays_of(vm) {
            let plan = match self.plan_merge(vm, &overlay).await {
                Ok(Some(plan)) => plan,
                Ok(None) => continue,
                Err(reason) => {
                    merges.keep(&overlay, reason.to_string());
                    continue;
                }
            };
            job.unseal();
            if !std::mem::replace(&mut begun, true) {
                self.forget_when_over(job.id(), job.id());
            }
            match Move::merge(self.clone(), vm.clone(), plan, job.id()).run_merge(job).await {
                Ok(moved) => merges.note(moved),
                Err(Unfinished::Failed(reason)) => merges.keep(&overlay, reason),
                Err(unfinished) => return Err(unfinished),
            }
        }
        Ok(merges)
    }

    /// Goes on with what an earlier gateway left, and with what it had not begun.
    pub(super) async fn go_on_merging(
        &self,
        moving: Move,
        vm: &Vm,
        job: &JobHandle,
    ) -> Result<Option<Value>, Unfinished> {
        let settled = match moving.settle(job, None).await {
            Err(Unfinished::Failed(reason)) => {
                tracing::info!(reason, "a merge that was cut off is begun anew");
                None
            }
            settled => settled?,
        };
        let mut merges = self.merge_overlays(vm, job).await?;
        merges.note(settled);
        Ok(Some(merges.to_json()))
    }

    /// What is checked before a merge begins; none when there is nothing to merge.
    async fn plan_merge(&self, vm: &Vm, overlay: &Disk) -> Result<Option<Merge>, DiskError> {
        let Some((path, (base, format))) = overlay.source.path().and_then(|path| Some((path, laid_on(path)?))) else {
            return Ok(None);
        };
        let snapshots = async || Ok::<_, DiskError>(describe(&self.program, path, overlay.format).await?.snapshots);
        if !snapshots().await?.is_empty() {
            return Ok(None);
        }
        let in_use = |by| DiskError::InUse { path: path.into(), by };
        let (hold, monitor) = vm.hold_disk(&overlay.id).await.map_err(in_use)?;
        // Only from here on no checkpoint is made, and nobody changes the disk.
        let is_it = |disk: Option<&Disk>| disk.is_some_and(|disk| disk.source == overlay.source);
        if !snapshots().await?.is_empty() || !is_it(vm.definition().disk(&overlay.id)) {
            return Ok(None);
        }
        if !is_it(vm.wanted_definition().disk(&overlay.id)) {
            return Err(in_use("the VM has another disk in its place from its next start on".into()));
        }
        self.check_below(path, &base).await?;
        let below = Disk { source: base.clone().into(), format, ..overlay.clone() };
        match &monitor {
            Monitor::Silent => return Err(DiskError::Refused("its QEMU does not answer".into())),
            Monitor::On(..) => {}
            Monitor::Off => {
                self.unused(path)?;
                self.unused(&base)?;
                replay(&self.program, &base).await?;
            }
        }
        let size = self.require_room(path, &below).await?;
        Ok(Some(Merge { overlay: overlay.clone(), below, size, hold, monitor }))
    }

    /// Nothing else may need the file as it is, or stand on what goes.
    async fn check_below(&self, overlay: &Path, base: &Path) -> Result<(), DiskError> {
        let overlay = real(overlay)?;
        let about = vec![base.to_path_buf(), overlay.clone()];
        let mut census = census(self.host.shared(), about, Reach::All).await?;
        let needed = |path: &Path, by| Err(DiskError::Needed { path: path.into(), by });
        if let Some(by) = census.need_beside(base, &overlay) {
            return needed(base, by);
        }
        census.stood_on(&overlay).map_or(Ok(()), |by| needed(&overlay, by))
    }

    /// What the overlay takes must fit, as far as the file does not have that room already.
    async fn require_room(&self, overlay: &Path, below: &Disk) -> Result<u64, DiskError> {
        let Some(base) = below.source.path() else { return Ok(0) };
        let (above, file) = (
            describe(&self.program, overlay, DiskFormat::Qcow2).await?,
            describe(&self.program, base, below.format).await?,
        );
        let taken = above.on_disk.unwrap_or(above.size).min(above.size);
        require_space(base, taken.min(above.size.saturating_sub(file.on_disk.unwrap_or(0))))?;
        Ok(taken)
    }
}

impl Merges {
    fn keep(&mut self, overlay: &Disk, reason: String) {
        tracing::warn!(disk = overlay.id, overlay = %overlay.source, reason, "an overlay stays");
        self.kept.push(Kept { disk: overlay.id.clone(), overlay: overlay.source.to_string(), reason });
    }

    /// Those of `overlays` of which nothing is told hold checkpoints. Fails, with the reasons, when not one is merged.
    pub(crate) fn of_all(mut self, overlays: &[Disk]) -> Result<Self, Unfinished> {
        for overlay in overlays {
            let told = self.merged.iter().map(|merged| &merged.disk).chain(self.kept.iter().map(|kept| &kept.disk));
            if !told.into_iter().any(|disk| *disk == overlay.id) {
                self.keep(overlay, "it holds checkpoints: delete these first".into());
            }
        }
        if self.merged.is_empty() {
            let reasons = self.kept.iter().map(|kept| format!("{} stays the disk: {}", kept.overlay, kept.reason));
            return Err(failed(reasons.collect::<Vec<_>>().join("; ")));
        }
        Ok(self)
    }

    /// Takes in what a move that was one says.
    fn note(&mut self, moved: Option<Value>) {
        if let Some(Moved { disk, target, source, problem, .. }) =
            moved.and_then(|moved| serde_json::from_value(moved).ok())
        {
            tracing::info!(disk, file = target, overlay = source, "an overlay went into the file below");
            self.merged.push(Merged { disk, file: target, overlay: source, problem });
        }
    }

    /// Both lists.
    pub(crate) fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_else(|_| json!({}))
    }
}

impl Move {
    /// Does all of a merge.
    async fn run_merge(mut self, job: &JobHandle) -> Result<Option<Value>, Unfinished> {
        job.step("merging");
        let begun = self.note(Phase::Copying).await;
        let begun = match begun {
            Ok(()) if self.entry.engine.is_some() => self.begin_commit().await,
            Ok(()) => self.commit_off(job).await,
            failed => failed,
        };
        if matches!(begun, Err(Unfinished::Left)) {
            return Err(Unfinished::Left);
        }
        self.settle(job, begun.err()).await
    }

    /// Has the VM's QEMU begin.
    async fn begin_commit(&mut self) -> Result<(), Unfinished> {
        let Monitor::On(qmp, _) = self.vm.monitor().await else { return Err(failed("QEMU does not answer")) };
        let (overlay, below) = self.nodes(&qmp).await?;
        if let Some(engine) = &mut self.entry.engine {
            (engine.source_node, engine.target_node) = (overlay, below);
        }
        self.note(Phase::Copying).await?;
        let Some(mirror) = self.mirror() else { return Ok(()) };
        mirror.start_commit(&qmp).await.map_err(failed)
    }

    /// What QEMU calls the overlay and the file below.
    async fn nodes(&self, qmp: &Qmp) -> Result<(String, String), Unfinished> {
        let drives = Drives::of_qmp(&qmp.execute("query-block", json!({})).await.map_err(failed)?);
        let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true })).await.map_err(failed)?;
        let is_at = |file: Option<&str>, disk: &Disk| {
            disk.source.path().zip(file).is_some_and(|(path, file)| same_file(path, Path::new(file)))
        };
        let overlay = drives.node(&self.source.id).filter(|_| is_at(drives.file(&self.source.id), &self.source));
        let overlay = overlay.ok_or_else(|| failed("QEMU has another file for it until its next start"))?;
        let driver = self.target.format.driver();
        let is_below = |node: &&Value| node["drv"] == driver && is_at(node["file"].as_str(), &self.target);
        let below = nodes.as_array().and_then(|nodes| nodes.iter().find(is_below));
        let below = below.and_then(|node| node["node-name"].as_str());
        Ok((overlay.into(), below.ok_or_else(|| failed("QEMU has not opened the file below"))?.into()))
    }

    /// The merge of a disk whose VM is off.
    async fn commit_off(&mut self, job: &JobHandle) -> Result<(), Unfinished> {
        let (Some(overlay), Some(base)) = (self.source.source.path(), self.target.source.path().map(PathBuf::from))
        else {
            return Err(failed("it is no file"));
        };
        // The overlay stays as it is (`-d`): it is the disk until the definition says otherwise.
        let mut arguments: Vec<OsString> = ["commit", "-p", "-d", "-f", "qcow2", "--"].map(Into::into).into();
        arguments.push(overlay.into());
        match self.disks.program.work(arguments, Progress::Told { total: self.size }, job, &[]).await {
            Err(Unfinished::Stopped) => return Err(stopped(job)),
            done => done?,
        }
        let synced = tokio::task::spawn_blocking(move || File::open(base)?.sync_all()).await;
        synced.map_err(failed)??;
        job.step("switching");
        job.seal().map_err(|_| stopped(job))?;
        self.note(Phase::Switching { resume: false }).await?;
        define(self.vm.definition_file(), &self.target).await?;
        self.note(Phase::Switched { resume: false }).await
    }
}
