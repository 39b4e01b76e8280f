//! The copy of a disk whose VM is off: a storage daemon has both places open, and nobody else.

use super::compare::{self, SOURCE, TARGET, lock};
use super::daemon::Daemon;
use super::decision::Phase;
use super::mirror::{Mirror, Stopped};
use super::moving::{Move, failed};
use super::ranges::Ranges;
use super::switch::define;
use crate::disks::DiskError;
use crate::jobs::{JobHandle, Unfinished};

/// What the daemon that copies calls its job and the two places.
const JOB: &str = "copy";
const FROM: &str = "from";
const TO: &str = "to";

impl Move {
    /// Copies, compares, and has the definition name the target.
    pub(super) async fn copy_off(&mut self, job: &JobHandle) -> Result<(), Unfinished> {
        // It has looked at the source only.
        self.daemon = None;
        let copier = self.daemon_for(job).await?;
        job.step("copying");
        tokio::select! {
            copied = self.fill(&copier, job) => copied?,
            () = job.stopped() => return Err(Unfinished::Stopped),
        }
        copier.quit().await.map_err(failed)?;
        let daemon = self.daemon_for(job).await?;
        job.step("comparing");
        tokio::select! {
            same = self.compare_off(&daemon, job) => same?,
            () = job.stopped() => return Err(Unfinished::Stopped),
        }
        drop(daemon);
        job.step("switching");
        job.seal()?;
        self.note(Phase::Switching { resume: false }).await?;
        define(self.vm.definition_file(), &self.target).await?;
        self.note(Phase::Switched { resume: false }).await
    }

    /// A daemon that is ended by the next gateway if it outlives this one.
    async fn daemon_for(&self, job: &JobHandle) -> Result<Daemon, Unfinished> {
        let daemon =
            self.disks.start_daemon(&self.vm, &self.entry.disk).await.map_err(|error: DiskError| failed(error))?;
        job.leave(&daemon.leftover().into_iter().collect::<Vec<_>>()).await?;
        Ok(daemon)
    }

    async fn fill(&self, copier: &Daemon, job: &JobHandle) -> Result<(), Unfinished> {
        copier.open(&self.source, FROM, false).await.map_err(failed)?;
        let mirror = Mirror { job: JOB.into(), source: FROM.into(), target: TO.into() };
        mirror.start(copier.qmp(), &self.target, self.rate).await.map_err(failed)?;
        let ended = |stopped: Stopped| failed(stopped);
        mirror.until_in_step(copier.qmp(), |done, total| job.advance(done, total)).await.map_err(ended)?;
        mirror.complete(copier.qmp()).await.map_err(ended)
    }

    async fn compare_off(&self, daemon: &Daemon, job: &JobHandle) -> Result<(), Unfinished> {
        daemon.show(&self.source, SOURCE).await.map_err(failed)?;
        daemon.show(&self.target, TARGET).await.map_err(failed)?;
        let data = compare::data(daemon).await?.intersection(&Ranges::whole(self.size));
        let data = self.compare_files(data, &Ranges::default(), job).await.map_err(failed)?;
        let total = data.length();
        let look = compare::look(daemon, &data, compare::counted(job, total)).await?;
        lock(&self.report).compared += total;
        match look.differ.iter().next() {
            None => Ok(()),
            Some(range) => Err(failed(format!("the copy is not the same from byte {} on", range.start))),
        }
    }
}
