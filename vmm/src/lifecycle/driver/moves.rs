//! A disk that goes on elsewhere: the driver's part in a move.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::jobs::{Job, Stage};
use super::{Driver, Reply, RequestId, Trouble, VmState};
use crate::engine::Qmp;
use crate::lifecycle::holds::{Hold, Kind};
use crate::lifecycle::state::Request;

/// The last step of a move: what is done in one go while nothing else is asked of QEMU.
pub(crate) struct Switch {
    /// What the VM calls the disk.
    pub(crate) disk: String,
    /// Does it, knowing whether the processors run. When QEMU goes away meanwhile, it need not end.
    pub(crate) work: Box<dyn FnOnce(Arc<Qmp>, bool) -> Work + Send + Sync>,
}

/// An error: it is as before, and why.
pub(crate) type Work = std::pin::Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// The monitor of a VM's QEMU.
#[derive(Debug, Clone)]
pub(crate) enum Monitor {
    /// There is no QEMU.
    Off,
    /// It does not answer.
    Silent,
    /// It is that of the process with this number.
    On(Arc<Qmp>, u32),
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Switch").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl Driver {
    pub(super) fn monitor(&self) -> Monitor {
        let Some(machine) = &self.machine else { return Monitor::Off };
        machine.qmp().map_or(Monitor::Silent, |qmp| Monitor::On(qmp, machine.pid()))
    }

    /// Holds a disk, and says with what QEMU.
    pub(super) fn hold_disk(&self, disk: &str, reply: oneshot::Sender<Result<(Hold, Monitor), String>>) {
        let monitor = self.monitor();
        let kind = if self.machine.is_some() { Kind::Live } else { Kind::Off };
        let held = match self.status.borrow().state {
            VmState::Deleted => Err("it is no more".into()),
            _ if self.job.is_some() => Err("it is busy with a snapshot".into()),
            _ => self
                .connections
                .holds
                .hold(disk, kind)
                .ok_or_else(|| format!("its disk {disk} is being moved or copied already")),
        };
        // Nobody waits any more: the disk is let go of again.
        let _ = reply.send(held.map(|hold| (hold, monitor)));
    }

    pub(super) fn submit_switch(&mut self, switch: Switch, reply: Reply) {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        match self.queue.submit(id, Request::SwitchDisk { disk: switch.disk.clone() }) {
            Ok(()) => {
                self.switches.insert(id, switch);
                self.replies.insert(id, reply);
            }
            Err(refusal) => drop(reply.send(Err(refusal.into()))),
        }
    }

    /// Begins the switch; [`end_job`](Self::end_job) goes on when it is done.
    pub(super) fn begin_switch(&mut self, id: RequestId) -> Result<(), Trouble> {
        let gone = || Trouble::Refused("QEMU does not answer".into());
        let (switch, Monitor::On(qmp, _)) = (self.switches.remove(&id).ok_or_else(gone)?, self.monitor()) else {
            return Err(gone());
        };
        let running = self.status.borrow().state == VmState::Running;
        let Switch { disk, work } = switch;
        let work = work(qmp, running);
        let work = async move { work.await.map_err(Trouble::Refused) };
        self.job = Some(Job::new(id, Request::SwitchDisk { disk }, Stage::Found, work));
        Ok(())
    }
}
