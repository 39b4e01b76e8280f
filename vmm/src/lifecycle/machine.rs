//! One QEMU with all that hangs on it: its process, its TPM's, its monitor, its display, its port of the bus.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::holds::Holds;
use crate::bus::{BusMemory, BusShared, Plugged};
use crate::definition::Bus;
use crate::display::{Display, Link};
use crate::engine::{BUS_CHARDEV, Event, Exit, Inherited, Process, Qmp, QmpError, RuntimeFolder, TpmPlan, start_tpm};
use crate::host::Deadlines;
use crate::memory::Account;

/// Lines of QEMU's output that a reason quotes.
const REASON_LINES: usize = 6;

/// A QEMU, which may or may not answer.
#[derive(Debug)]
pub(super) struct Machine {
    process: Process,
    /// None when it has none, or its end has been told.
    tpm: Option<Process>,
    folder: Arc<RuntimeFolder>,
    deadlines: Deadlines,
    /// None while QEMU does not answer.
    monitor: Option<Monitor>,
    link: Option<Link>,
    /// Dropped with the rest: nobody shall connect to what has ended.
    _plugged: Plugged,
}

/// Those who look at a VM from outside or hold a part of it, whichever QEMU it has.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    pub(crate) display: Arc<Display>,
    pub(crate) bus: Arc<BusShared>,
    pub(crate) memory: Arc<Account>,
    pub(crate) holds: Holds,
}

/// The QEMU to start.
#[derive(Debug, Clone)]
pub(super) struct Plan<'a> {
    pub(super) qemu: &'a Path,
    pub(super) arguments: &'a [String],
    pub(super) allocator: Option<&'a str>,
    pub(super) bus: Bus,
    pub(super) tpm: Option<TpmPlan>,
}

#[derive(Debug)]
struct Monitor {
    qmp: Arc<Qmp>,
    events: mpsc::Receiver<Event>,
}

/// Why a monitor is not open.
#[derive(Debug, thiserror::Error)]
enum NotOpened {
    /// QEMU ended, and said that.
    #[error("{0}")]
    Ended(String),
    #[error("QEMU's monitor did not answer within {0} s")]
    Silent(f32),
    #[error(transparent)]
    Closed(#[from] QmpError),
}

/// What QEMU does by itself.
#[derive(Debug)]
pub(super) enum Happening {
    /// It says so.
    Event(Event),
    /// Its monitor ended, but it did not.
    MonitorLost,
    /// Its display ended, but it did not.
    DisplayLost,
    /// Its TPM ended, but it did not; how, in words.
    TpmLost(String),
    /// It ended.
    Ended(Exit),
}

/// What QEMU's processors do, in QEMU's words, and what they amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunState {
    Running,
    /// They wait for something to wake the guest from its sleep.
    Suspended,
    /// They stand still, for the reason given if it is not that somebody asked for it.
    Paused(Option<&'static str>),
    /// They stand still because a disk failed; an event says which and how.
    DiskFailed,
    /// The guest has shut down.
    ShutDown,
    /// QEMU cannot go on with this guest.
    Broken,
    /// A state was to be loaded and is not: what there is now is no VM.
    Torn,
}

impl Machine {
    /// Starts a QEMU that waits for [`resume`](Self::resume).
    pub(super) async fn start(
        plan: Plan<'_>,
        folder: RuntimeFolder,
        connections: &Connections,
        deadlines: Deadlines,
    ) -> Result<Self, String> {
        let memory = (plan.bus.enabled && plan.bus.memory > 0).then(|| BusMemory::create(plan.bus.memory)).transpose();
        let memory = memory.map_err(|error| format!("cannot make the memory of the bus: {error}"))?;
        let tpm = match &plan.tpm {
            Some(tpm) => Some(start_tpm_alone(tpm, &folder, deadlines).await?),
            None => None,
        };
        let inherited = inherited(plan.bus, &folder, memory.as_ref())
            .map_err(|error| format!("cannot make QEMU's sockets: {error}"))?;
        let process = match Process::start(plan.qemu, plan.arguments, &folder, plan.allocator, inherited) {
            Ok(process) => process,
            Err(error) => {
                // Without QEMU it would wait for ever.
                tpm.iter().for_each(Process::kill);
                return Err(format!("cannot start {}: {error}", plan.qemu.display()));
            }
        };
        let mut machine = Self::new(process, tpm, folder, memory, connections, deadlines);
        match machine.open_monitor(deadlines.start).await {
            Ok(()) => Ok(machine),
            Err(error) => {
                if matches!(error, NotOpened::Closed(_)) {
                    // It is about to end, and has said why.
                    let _ = timeout(deadlines.command, machine.process.ended()).await;
                }
                let (reason, end) = (error.to_string(), machine.end_by_force().await);
                Err(end.map_or(reason.clone(), |end| if end.told { end.reason } else { reason }))
            }
        }
    }

    /// The QEMU that an earlier gateway started, when it still runs.
    pub(super) fn find(
        folder: RuntimeFolder,
        connections: &Connections,
        deadlines: Deadlines,
    ) -> io::Result<Result<Self, RuntimeFolder>> {
        let Some(process) = Process::find(&folder)? else { return Ok(Err(folder)) };
        let memory = BusMemory::of_process(process.pid()).unwrap_or_else(|error| {
            tracing::warn!(pid = process.pid(), %error, "the memory of the bus is out of reach; its port does without");
            None
        });
        let tpm = Process::find_tpm(&folder)?;
        Ok(Ok(Self::new(process, tpm, folder, memory, connections, deadlines)))
    }

    fn new(
        process: Process,
        tpm: Option<Process>,
        folder: RuntimeFolder,
        memory: Option<BusMemory>,
        connections: &Connections,
        deadlines: Deadlines,
    ) -> Self {
        let folder = Arc::new(folder);
        let plugged = connections.bus.plug_in(folder.clone(), memory);
        Self { process, tpm, folder, deadlines, monitor: None, link: None, _plugged: plugged }
    }

    /// Opens the monitor, unless it is open.
    pub(super) async fn connect(&mut self, deadline: Duration) -> Result<(), String> {
        self.open_monitor(deadline).await.map_err(|error| error.to_string())
    }

    async fn open_monitor(&mut self, deadline: Duration) -> Result<(), NotOpened> {
        if self.monitor.is_some() {
            return Ok(());
        }
        let open = async {
            let stream = self.folder.connect_monitor().await.map_err(QmpError::Io)?;
            Qmp::open(stream, self.deadlines.command).await
        };
        let opened = tokio::select! {
            opened = timeout(deadline, open) => opened,
            exit = self.process.ended() => return Err(NotOpened::Ended(self.obituary(exit))),
        };
        let (qmp, events) = opened.map_err(|_| NotOpened::Silent(deadline.as_secs_f32()))??;
        self.monitor = Some(Monitor { qmp: Arc::new(qmp), events });
        Ok(())
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its monitor, while that is open.
    pub(super) fn qmp(&self) -> Option<Arc<Qmp>> {
        self.monitor.as_ref().map(|monitor| monitor.qmp.clone())
    }

    pub(super) fn has_display(&self) -> bool {
        self.link.is_some()
    }

    /// Notes that its processors shall stand still until somebody asks otherwise, or need not. The next gateway finds it.
    pub(super) fn keep_paused(&self, kept: bool) -> io::Result<()> {
        self.folder.keep_paused(kept)
    }

    /// Whether that is noted.
    pub(super) fn is_kept_paused(&self) -> bool {
        self.folder.is_kept_paused()
    }

    /// Keeps what it says from filling the host's disk.
    pub(super) fn trim_log(&self) {
        self.folder.trim_log();
    }

    /// Shows its pictures on `display` from now on.
    pub(super) async fn attach(&mut self, display: &Arc<Display>) -> Result<(), String> {
        self.detach().await;
        let Some(monitor) = &self.monitor else { return Err("QEMU's monitor is closed".into()) };
        self.link = Some(Link::attach(&monitor.qmp, display).await.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Waits for the next thing that QEMU does by itself. Cancel safe.
    pub(super) async fn happening(&mut self) -> Happening {
        let event = async {
            match &mut self.monitor {
                Some(monitor) => monitor.events.recv().await,
                None => std::future::pending().await,
            }
        };
        let display = async {
            match &mut self.link {
                Some(link) => link.closed().await,
                None => std::future::pending().await,
            }
        };
        let tpm = async {
            match &self.tpm {
                Some(tpm) => tpm.ended().await,
                None => std::future::pending().await,
            }
        };
        // Whatever is not taken now is still there the next time.
        tokio::select! {
            biased;
            exit = self.process.ended() => Happening::Ended(exit),
            event = event => event.map_or_else(|| { self.monitor = None; Happening::MonitorLost }, Happening::Event),
            () = display => Happening::DisplayLost,
            exit = tpm => {
                self.tpm = None;
                let said = self.folder.tpm_log_tail(REASON_LINES);
                Happening::TpmLost(format!("swtpm ended {exit}{}{said}", if said.is_empty() { "" } else { ": " }))
            }
        }
    }

    /// Whether something happened that there was no room for.
    pub(super) fn take_missed_events(&self) -> bool {
        self.monitor.as_ref().is_some_and(|monitor| monitor.qmp.take_missed_events())
    }

    pub(super) async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let monitor = self.monitor.as_ref().ok_or(QmpError::Closed)?;
        monitor.qmp.execute(command, arguments).await
    }

    pub(super) async fn command(&self, command: &str) -> Result<(), QmpError> {
        self.execute(command, json!({})).await.map(drop)
    }

    /// What its processors do.
    pub(super) async fn run_state(&self) -> Result<RunState, QmpError> {
        let status = self.execute("query-status", json!({})).await?;
        Ok(RunState::from_qmp(status["status"].as_str().unwrap_or_default()))
    }

    /// Whether the guest has the port of the bus open; none if there is no port.
    pub(super) async fn bus_port(&self) -> Result<Option<bool>, QmpError> {
        let chardevs = self.execute("query-chardev", json!({})).await?;
        let port = chardevs.as_array().and_then(|list| list.iter().find(|chardev| chardev["label"] == BUS_CHARDEV));
        Ok(port.map(|chardev| chardev["frontend-open"] == Value::Bool(true)))
    }

    /// Ends it: politely when it listens, else by force.
    pub(super) async fn end(mut self) -> Result<(), String> {
        self.detach().await;
        // An answer is welcome and not needed; what counts is that the process ends.
        let asked = match &self.monitor {
            Some(monitor) => monitor.qmp.execute("quit", json!({})).await,
            None => Err(QmpError::Closed),
        };
        let listens = match asked {
            Ok(_) | Err(QmpError::Closed) => self.monitor.is_some(),
            Err(error) => {
                tracing::debug!(%error, "QEMU does not quit when asked");
                false
            }
        };
        if listens && timeout(self.deadlines.end, self.process.ended()).await.is_ok() {
            self.end_tpm().await;
            self.folder.forget_process();
            return Ok(());
        }
        self.end_by_force().await.map(drop)
    }

    /// Ends it at once, and says what it had to say.
    pub(super) async fn end_by_force(mut self) -> Result<End, String> {
        self.detach().await;
        // One that ended by itself can tell how; a moment is enough, since its monitor is closed then.
        let told = timeout(Duration::from_millis(100), self.process.ended()).await.ok();
        self.process.kill();
        let exit = match told {
            Some(exit) => exit,
            None => timeout(self.deadlines.end, self.process.ended())
                .await
                .map_err(|_| format!("QEMU (process {}) does not end even when killed", self.process.pid()))?,
        };
        let reason = self.obituary(exit);
        self.end_tpm().await;
        self.folder.forget_process();
        Ok(End { told: told.is_some(), reason })
    }

    /// How it ended and what it said last.
    pub(super) fn obituary(&self, exit: Exit) -> String {
        let said = self.folder.log_tail(REASON_LINES);
        if said.is_empty() { format!("QEMU ended {exit}") } else { format!("QEMU ended {exit}: {said}") }
    }

    /// Forgets a process that has ended.
    pub(super) async fn bury(mut self) {
        self.detach().await;
        self.end_tpm().await;
        self.folder.forget_process();
    }

    /// Waits for the TPM, which ends after QEMU: the next one must find its state free.
    async fn end_tpm(&mut self) {
        let Some(tpm) = self.tpm.take() else { return };
        if timeout(self.deadlines.command, tpm.ended()).await.is_err() {
            tracing::warn!(pid = tpm.pid(), "the TPM does not end with QEMU and is killed");
            tpm.kill();
            // One that does not even end now holds its state; the next start says so.
            let _ = timeout(self.deadlines.end, tpm.ended()).await;
        }
    }

    /// Lets go of the display; its monitors are dark when this returns.
    pub(super) async fn detach(&mut self) {
        if let Some(link) = self.link.take() {
            link.detach().await;
        }
    }
}

/// The end of a QEMU that was killed.
#[derive(Debug)]
pub(super) struct End {
    /// Whether it had ended by itself before.
    told: bool,
    reason: String,
}

/// Starts the TPM; one that was left without a QEMU is ended first.
async fn start_tpm_alone(plan: &TpmPlan, folder: &RuntimeFolder, deadlines: Deadlines) -> Result<Process, String> {
    let told = |error: io::Error| format!("cannot start the TPM ({}): {error}", plan.program.display());
    if let Some(left) = Process::find_tpm(folder).map_err(told)? {
        left.kill();
        let _ = timeout(deadlines.end, left.ended()).await;
    }
    start_tpm(plan, folder).map_err(told)
}

/// What QEMU is given: sockets that listen already, and the memory of the bus.
fn inherited(bus: Bus, folder: &RuntimeFolder, memory: Option<&BusMemory>) -> io::Result<Inherited> {
    Ok(Inherited {
        monitor: folder.listen_monitor()?,
        bus_port: bus.enabled.then(|| folder.listen_bus_port()).transpose()?,
        bus_memory: memory.map(|memory| memory.as_fd().try_clone_to_owned()).transpose()?,
    })
}

impl RunState {
    /// Reads a `RunState` of QEMU's qapi/run-state.json.
    fn from_qmp(status: &str) -> Self {
        match status {
            "paused" | "debug" | "save-vm" | "inmigrate" | "postmigrate" | "finish-migrate" => Self::Paused(None),
            "prelaunch" => Self::Paused(Some("it has not begun to run")),
            "io-error" => Self::DiskFailed,
            "guest-panicked" => Self::Paused(Some("the guest panicked; its screen is kept until a reset or power off")),
            "watchdog" => Self::Paused(Some("the guest's watchdog ran out")),
            "shutdown" => Self::ShutDown,
            "internal-error" => Self::Broken,
            "restore-vm" => Self::Torn,
            "suspended" => Self::Suspended,
            // "running", and what later QEMUs may think of.
            _ => Self::Running,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_states_are_ours() {
        assert_eq!(RunState::from_qmp("running"), RunState::Running);
        assert_eq!(RunState::from_qmp("suspended"), RunState::Suspended);
        assert_eq!(RunState::from_qmp("paused"), RunState::Paused(None));
        assert_eq!(RunState::from_qmp("shutdown"), RunState::ShutDown);
        assert_eq!(RunState::from_qmp("internal-error"), RunState::Broken);
        assert_eq!(RunState::from_qmp("io-error"), RunState::DiskFailed);
        assert_eq!(RunState::from_qmp("restore-vm"), RunState::Torn);
    }
}
