//! The comparison of both places while the guest writes on.

use std::io;
use std::sync::Arc;

use tokio::time::sleep;

use super::compare::{self, SOURCE, TARGET, lock};
use super::daemon::Daemon;
use super::direct::{self, Local};
use super::mirror::Mirror;
use super::moving::{LOOK_AGAIN, Move};
use super::ranges::Ranges;
use super::switch::Rest;
use crate::engine::{Qmp, RuntimeFolder};
use crate::jobs::JobHandle;

/// So much is compared while the guest stands still without trying to make it less.
const LITTLE: u64 = 8 << 20;
/// So much is compared then at most.
const MOST: u64 = 1 << 30;
/// How often what changes meanwhile is compared again.
const PASSES: u32 = 8;
/// How often a node is opened that another writes to: its tables may be torn at that moment.
const OPENINGS: u32 = 5;

impl Move {
    /// Compares both places while the guest writes on, until little is left that must be compared again.
    pub(super) async fn compare(&mut self, qmp: &Arc<Qmp>, mirror: &Mirror, job: &JobHandle) -> io::Result<Rest> {
        let daemon = match &self.daemon {
            Some(daemon) => daemon.clone(),
            None => Arc::new(self.disks.start_daemon(&self.vm, &self.entry.disk).await.map_err(io::Error::other)?),
        };
        self.daemon = Some(daemon.clone());
        self.leave_daemon(job).await.map_err(|_| io::Error::other("the job cannot be noted"))?;
        let folder = Arc::new(RuntimeFolder::open(&self.disks.host.runtime_of(self.vm.uuid()))?);
        job.step("comparing");
        let mut written = mirror.take_written(qmp, &folder).await?;
        self.show(&daemon).await?;
        let size = daemon.connect(SOURCE, None).await?.size();
        if self.taken_over {
            written = Ranges::whole(size);
        }
        let mut left = compare::data(&daemon).await?;
        left.extend(&written);
        left = left.intersection(&Ranges::whole(size));
        left = self.compare_files(left, &written, job).await?;
        for _ in 0..PASSES {
            let total = left.length();
            let look = compare::look(&daemon, &left, compare::counted(job, total)).await?;
            lock(&self.report).compared += total;
            let since = mirror.take_written(qmp, &folder).await?;
            let mut again = look.unsettled(&written);
            again.extend(&since);
            written.extend(&since);
            let is_less = again.length() < total / 2;
            left = again;
            if left.length() <= LITTLE || !is_less {
                break;
            }
            mirror.flush_target(qmp).await.map_err(io::Error::other)?;
            self.show(&daemon).await?;
        }
        if left.length() > MOST {
            return Err(io::Error::other("the guest writes more than can be compared; try again when it writes less"));
        }
        Ok(Rest { ranges: left, daemon, folder })
    }

    /// Compares in their files what both places have there, which is most of it; what is left to be compared.
    pub(super) async fn compare_files(&self, ranges: Ranges, written: &Ranges, job: &JobHandle) -> io::Result<Ranges> {
        let (Some(source), Some(target)) = (Local::of(&self.source), Local::of(&self.target)) else {
            return Ok(ranges);
        };
        let total = ranges.length();
        let seen = compare::counted(job, total);
        let look = direct::look(&self.disks.program, [&source, &target], &ranges, seen).await?;
        let left = look.unsettled(written);
        lock(&self.report).compared += total - left.length();
        Ok(left)
    }

    async fn show(&self, daemon: &Daemon) -> io::Result<()> {
        for (disk, name) in [(&self.source, SOURCE), (&self.target, TARGET)] {
            let mut openings = 1;
            while let Err(error) = daemon.show(disk, name).await {
                openings += 1;
                if openings > OPENINGS {
                    return Err(io::Error::other(error));
                }
                sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }
}
