//! The last steps of a move, which the VM's driver has done while it asks QEMU nothing else.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::json;

use super::compare::{self, SOURCE, TARGET, lock};
use super::daemon::Daemon;
use super::decision::{Phase, Step};
use super::journal::{Entry, Journal};
use super::mirror::Mirror;
use super::ranges::Ranges;
use crate::definition::{DefinitionFile, Disk};
use crate::engine::{Qmp, QmpError, RuntimeFolder};
use crate::lifecycle::Switch;

/// What the steps work with.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    pub(super) entry: Entry,
    pub(super) journal: Journal,
    pub(super) definition: DefinitionFile,
    pub(super) mirror: Mirror,
    pub(super) source: Disk,
    pub(super) target: Disk,
    /// What is left to be compared, and how; none when nothing is.
    pub(super) rest: Option<Rest>,
    /// Whether the guest ran before, if that is known from the journal.
    pub(super) resume: Option<bool>,
    pub(super) report: Arc<Mutex<Report>>,
}

/// What must be compared while the guest stands still.
#[derive(Debug, Clone)]
pub(super) struct Rest {
    pub(super) ranges: Ranges,
    pub(super) daemon: Arc<Daemon>,
    pub(super) folder: Arc<RuntimeFolder>,
}

/// What is to be told of it.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) compared: u64,
    /// In milliseconds.
    pub(super) stood_still: Option<u64>,
}

impl Stage {
    /// The steps, in their order, as the driver takes them.
    pub(super) fn into_switch(self, steps: &'static [Step]) -> Switch {
        let disk = self.entry.disk.clone();
        Switch { disk, work: Box::new(move |qmp, running| Box::pin(self.perform(qmp, running, steps))) }
    }

    async fn perform(mut self, qmp: Arc<Qmp>, running: bool, steps: &'static [Step]) -> Result<(), String> {
        let resume = self.resume.unwrap_or(running);
        let mut stopped = None;
        let mut over = !steps.contains(&Step::Complete);
        for step in steps {
            let done = self.step(*step, &qmp, resume).await;
            match (step, done) {
                (Step::Stop, Ok(())) => stopped = Some(Instant::now()),
                (Step::Complete, Ok(())) => over = true,
                (_, Ok(())) => {}
                // The driver hears how QEMU ended, which is the better answer.
                (_, Err(Wrong::Qmp(QmpError::Closed))) => std::future::pending().await,
                (_, Err(wrong)) if over => return Err(wrong.to_string()),
                (_, Err(wrong)) => {
                    self.step_back(&qmp, resume).await;
                    return Err(wrong.to_string());
                }
            }
        }
        let stood_still = stopped.filter(|_| resume).map(|at| at.elapsed().as_millis());
        let mut report = lock(&self.report);
        report.stood_still = stood_still.and_then(|millis| u64::try_from(millis).ok()).or(report.stood_still);
        Ok(())
    }

    async fn step(&mut self, step: Step, qmp: &Qmp, resume: bool) -> Result<(), Wrong> {
        match step {
            Step::NoteSwitching => self.note(Phase::Switching { resume }).await?,
            Step::Stop => drop(qmp.execute("stop", json!({})).await?),
            Step::Compare => self.compare(qmp).await?,
            Step::Complete => self.mirror.complete(qmp).await.map_err(|error| Wrong::Copy(error.to_string()))?,
            Step::Define => self.define().await?,
            Step::NoteSwitched => self.note(Phase::Switched { resume }).await?,
            Step::Resume if resume => drop(qmp.execute("cont", json!({})).await?),
            Step::Resume => {}
        }
        Ok(())
    }

    /// QEMU has not gone over: the guest goes on with the source.
    async fn step_back(&mut self, qmp: &Qmp, resume: bool) {
        if let Err(error) = self.note(Phase::Copying).await {
            tracing::warn!(%error, "the journal of a move cannot be written");
        }
        if resume && let Err(error) = qmp.execute("cont", json!({})).await {
            tracing::warn!(%error, "the guest cannot go on");
        }
    }

    async fn note(&mut self, phase: Phase) -> io::Result<()> {
        self.entry.phase = phase;
        let (journal, entry) = (self.journal.clone(), self.entry.clone());
        tokio::task::spawn_blocking(move || journal.write(&entry)).await?
    }

    async fn define(&self) -> io::Result<()> {
        define(&self.definition, &self.target).await
    }

    /// Compares what is left, now that nothing changes.
    async fn compare(&self, qmp: &Qmp) -> Result<(), Wrong> {
        let Some(Rest { ranges, daemon, folder }) = &self.rest else { return Ok(()) };
        let mut ranges = ranges.clone();
        ranges.extend(&self.mirror.take_written(qmp, folder).await?);
        daemon.show(&self.source, SOURCE).await?;
        daemon.show(&self.target, TARGET).await?;
        let look = compare::look(daemon, &ranges, |_| ()).await?;
        lock(&self.report).compared += ranges.length();
        match look.differ.iter().next() {
            None => Ok(()),
            Some(range) => Err(Wrong::Copy(format!("the copy is not the same from byte {} on", range.start))),
        }
    }
}

/// Has the definition name another place for a disk.
pub(super) async fn define(definition: &DefinitionFile, disk: &Disk) -> io::Result<()> {
    let (definition, disk) = (definition.clone(), disk.clone());
    let change = move || {
        definition.change(|definition| {
            if let Some(found) = definition.disks.iter_mut().find(|found| found.id == disk.id) {
                (found.source, found.format) = (disk.source.clone(), disk.format);
            }
        })
    };
    // It is done whether or not anybody waits for it.
    tokio::task::spawn_blocking(change).await?
}

/// What went wrong with a step.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Copy(String),
}
