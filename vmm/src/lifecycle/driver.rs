//! The one task that changes a VM.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::machine::{Happening, Machine, RunState};
use super::request_queue::{Process, RequestId, RequestQueue, Step};
use super::state::{Request, RequestError, Status, VmState};
use crate::accelerator::AcceleratorReport;
use crate::definition::{Accelerator, Definition, sync_folder};
use crate::display::Display;
use crate::engine::{DISPLAY_DEVICE, Event, Exit, Launch, Leftover, QmpError, RuntimeFolder, arguments};
use crate::host::HostShared;

/// How soon a display or a monitor that was lost, or a QEMU that does not answer, is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a handle of a VM asks its driver.
#[derive(Debug)]
pub(crate) enum Message {
    Request { request: Request, reply: Reply },
    Screendump { path: PathBuf, reply: oneshot::Sender<Result<(), String>> },
}

type Reply = oneshot::Sender<Result<(), RequestError>>;

/// Why a request was not carried out.
enum Trouble {
    /// The VM is as it was.
    Refused(String),
    /// The VM has failed over it.
    Failed(String),
}

/// A VM's driver.
pub(crate) struct Driver {
    host: Arc<HostShared>,
    definition: Arc<Definition>,
    /// The file the definition is in.
    file: PathBuf,
    runtime: PathBuf,
    display: Arc<Display>,
    messages: mpsc::Receiver<Message>,
    status: watch::Sender<Status>,
    queue: RequestQueue,
    replies: HashMap<RequestId, Reply>,
    next_id: u64,
    /// Who waits for the guest to go down, and until when.
    shutdowns: Vec<(Reply, Instant)>,
    machine: Option<Machine>,
    /// What a disk said before the processors stopped.
    disk_failure: Option<String>,
    next_heartbeat: Instant,
    next_attach: Option<Instant>,
}

impl Driver {
    pub(crate) fn new(
        host: Arc<HostShared>,
        definition: Arc<Definition>,
        file: PathBuf,
        display: Arc<Display>,
        messages: mpsc::Receiver<Message>,
        status: watch::Sender<Status>,
    ) -> Self {
        let runtime = host.config.runtime.join(definition.uuid.to_string());
        let state = status.borrow().state;
        let next_heartbeat = Instant::now() + host.config.deadlines.heartbeat;
        Self {
            host,
            definition,
            file,
            runtime,
            display,
            messages,
            status,
            queue: RequestQueue::new(state, Process::None),
            replies: HashMap::new(),
            next_id: 0,
            shutdowns: Vec::new(),
            machine: None,
            disk_failure: None,
            next_heartbeat,
            next_attach: None,
        }
    }

    /// Takes back a QEMU that still runs, says so on `ready`, and drives the VM until its last handle is gone.
    /// QEMU goes on then.
    pub(crate) async fn run(mut self, ready: oneshot::Sender<()>) {
        self.take_back().await;
        // Nobody need wait for it.
        let _ = ready.send(());
        while self.step().await {}
        if let Some(machine) = &mut self.machine {
            machine.detach().await;
        }
    }

    /// One thing that happens; `false` when nobody will ever ask again.
    async fn step(&mut self) -> bool {
        self.carry_out_requests().await;
        let timer = self.next_timer();
        let happening = async {
            match &mut self.machine {
                Some(machine) => machine.happening().await,
                None => std::future::pending().await,
            }
        };
        // The losers lose nothing: a queue, a machine's events, and a time that stays where it is.
        tokio::select! {
            message = self.messages.recv() => match message {
                Some(message) => self.handle_message(message).await,
                None => return false,
            },
            happening = happening => self.handle_happening(happening).await,
            () = sleep_until(timer) => self.handle_timer().await,
        }
        true
    }

    // What others ask.

    async fn handle_message(&mut self, message: Message) {
        match message {
            Message::Request { request, reply } => {
                let id = RequestId(self.next_id);
                self.next_id += 1;
                match self.queue.submit(id, request) {
                    Ok(()) => drop(self.replies.insert(id, reply)),
                    Err(refusal) => drop(reply.send(Err(refusal.into()))),
                }
            }
            Message::Screendump { path, reply } => {
                let dumped = self.screendump(&path).await;
                // The caller may have lost interest.
                let _ = reply.send(dumped);
            }
        }
    }

    async fn carry_out_requests(&mut self) {
        // Those that came in while the last was carried out are judged together with it.
        while let Ok(message) = self.messages.try_recv() {
            self.handle_message(message).await;
        }
        while let Some(step) = self.queue.next() {
            match step {
                Step::Refuse(id, refusal) => self.answer(id, Err(refusal.into())),
                Step::Run(id, request) => {
                    let done = self.carry_out(id, request).await;
                    self.finish(id, request, done);
                }
            }
        }
    }

    async fn carry_out(&mut self, id: RequestId, request: Request) -> Result<(), Trouble> {
        tracing::debug!(%request, "request");
        match request {
            Request::Start => self.start().await,
            Request::Shutdown => self.shut_down(id).await,
            Request::PowerOff => self.power_off(None).await,
            Request::Reset => self.ask_qemu("system_reset").await,
            Request::Pause => self.ask_qemu("stop").await,
            Request::Resume => self.ask_qemu("cont").await,
            Request::Delete => self.delete(),
        }
    }

    fn finish(&mut self, id: RequestId, request: Request, done: Result<(), Trouble>) {
        let answer = match done {
            Ok(()) => Ok(()),
            Err(Trouble::Refused(reason)) => Err(RequestError::Failed { request, reason }),
            Err(Trouble::Failed(reason)) => {
                self.enter(VmState::Failed, Some(reason.clone()));
                Err(RequestError::Failed { request, reason })
            }
        };
        let state = self.status.borrow().state;
        self.queue.finish(state, self.process());
        self.answer(id, answer);
    }

    fn answer(&mut self, id: RequestId, answer: Result<(), RequestError>) {
        // A shutdown that has begun is answered when the guest is down.
        if let Some(reply) = self.replies.remove(&id) {
            let _ = reply.send(answer);
        }
    }

    // The requests.

    async fn start(&mut self) -> Result<(), Trouble> {
        self.enter(VmState::Starting, None);
        self.disk_failure = None;
        if let Some(left) = self.machine.take() {
            left.end_by_force().await.map_err(Trouble::Failed)?;
        }
        let report = self.accelerator().await?;
        self.status.send_modify(|status| status.accelerator = Some(report.clone()));
        if let Some(missing) = self.definition.missing_files() {
            return Err(Trouble::Failed(missing));
        }
        let folder = RuntimeFolder::create(&self.runtime)
            .map_err(|error| Trouble::Failed(format!("runtime folder {}: {error}", self.runtime.display())))?;
        let arguments = arguments(&self.definition, &self.launch(report.accelerator));
        let machine = Machine::start(&self.host.qemu, &arguments, folder, self.host.config.deadlines).await;
        let machine = self.machine.insert(machine.map_err(Trouble::Failed)?);
        self.status.send_modify(|status| status.pid = Some(machine.pid()));
        self.attach().await;
        self.run_processors().await?;
        self.enter(VmState::Running, None);
        tracing::info!(pid = self.status.borrow().pid, accelerator = %report.accelerator, "started");
        Ok(())
    }

    async fn accelerator(&self) -> Result<AcceleratorReport, Trouble> {
        let asked = |accelerator| AcceleratorReport { accelerator, why: "the definition asks for it".into() };
        Ok(match self.definition.accelerator {
            Accelerator::Auto => self.host.probe().await,
            accelerator => asked(accelerator),
        })
    }

    fn launch(&self, accelerator: Accelerator) -> Launch {
        let is_block_device = |path| fs::metadata(path).is_ok_and(|data| data.file_type().is_block_device());
        let block_devices = self.definition.disks.iter().map(|disk| is_block_device(&disk.path)).collect();
        Launch { accelerator, block_devices }
    }

    /// The last step of a start; a QEMU that cannot even do this is ended.
    async fn run_processors(&mut self) -> Result<(), Trouble> {
        let Some(machine) = &self.machine else { return Ok(()) };
        let Err(error) = machine.command("cont").await else { return Ok(()) };
        if let Some(machine) = self.machine.take() {
            machine.end_by_force().await.map_err(Trouble::Failed)?;
        }
        Err(Trouble::Failed(error.to_string()))
    }

    async fn shut_down(&mut self, id: RequestId) -> Result<(), Trouble> {
        self.ask_qemu("system_powerdown").await?;
        if let Some(reply) = self.replies.remove(&id) {
            self.shutdowns.push((reply, Instant::now() + self.host.config.deadlines.guest_shutdown));
        }
        Ok(())
    }

    /// Ends QEMU; `reason` is why, when nobody asked for it.
    async fn power_off(&mut self, reason: Option<String>) -> Result<(), Trouble> {
        let listens = self.status.borrow().state != VmState::Failed;
        self.enter(VmState::Stopping, None);
        if let Some(machine) = self.machine.take() {
            let ended = if listens { machine.end().await } else { machine.end_by_force().await.map(drop) };
            ended.map_err(Trouble::Failed)?;
        }
        self.enter(VmState::Stopped, reason);
        tracing::info!("stopped");
        Ok(())
    }

    /// Has QEMU carry out one command, and notes what it leads to.
    async fn ask_qemu(&mut self, command: &str) -> Result<(), Trouble> {
        let Some(machine) = &self.machine else { return Err(Trouble::Refused("there is no QEMU".into())) };
        match machine.command(command).await {
            Ok(()) => {
                self.look().await;
                Ok(())
            }
            Err(error @ QmpError::Refused { .. }) => Err(Trouble::Refused(error.to_string())),
            Err(error) => Err(Trouble::Failed(error.to_string())),
        }
    }

    fn delete(&mut self) -> Result<(), Trouble> {
        let removed = |result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Trouble::Refused(error.to_string())),
            _ => Ok(()),
        };
        removed(fs::remove_file(&self.file))?;
        if let Some(folder) = self.file.parent() {
            removed(sync_folder(folder))?;
        }
        removed(fs::remove_dir_all(&self.runtime))?;
        self.enter(VmState::Deleted, None);
        tracing::info!("deleted");
        Ok(())
    }

    async fn screendump(&self, path: &std::path::Path) -> Result<(), String> {
        let machine = self.machine.as_ref().ok_or("the VM is off")?;
        let arguments = json!({ "filename": path, "device": DISPLAY_DEVICE, "head": 0, "format": "png" });
        machine.execute("screendump", arguments).await.map(drop).map_err(|error| error.to_string())
    }

    // What happens by itself.

    /// Finds out what became of the VM while there was no gateway.
    async fn take_back(&mut self) {
        let Ok(folder) = RuntimeFolder::open(&self.runtime) else { return };
        match Machine::find(folder, self.host.config.deadlines) {
            Ok(Ok(machine)) => {
                self.status.send_modify(|status| status.pid = Some(machine.pid()));
                self.machine = Some(machine);
                self.recover().await;
                let status = self.status.borrow();
                tracing::info!(pid = status.pid, state = %status.state, "taken back");
            }
            Ok(Err(folder)) => self.note_leftover(&folder),
            Err(error) => self.enter(VmState::Failed, Some(format!("cannot look for its QEMU: {error}"))),
        }
    }

    /// There is no QEMU; was there one the last time?
    fn note_leftover(&mut self, folder: &RuntimeFolder) {
        let leftover = folder.leftover();
        let said = folder.log_tail(3);
        folder.forget_process();
        match leftover {
            None => self.enter(VmState::Stopped, None),
            Some(Leftover::EarlierBoot) => {
                self.enter(VmState::Stopped, Some("the host was started over while it was on".into()));
            }
            Some(Leftover::ThisBoot) => {
                let reason = format!("QEMU ended while no gateway was there. {said}");
                self.enter(VmState::Failed, Some(reason.trim().into()));
            }
        }
    }

    /// Gets a QEMU to answer that does not, or not yet.
    async fn recover(&mut self) {
        let deadline = self.host.config.deadlines.command;
        let Some(machine) = &mut self.machine else { return };
        if let Err(reason) = machine.connect(deadline).await {
            self.enter(VmState::Failed, Some(reason));
            return;
        }
        self.look().await;
        self.name_accelerator().await;
        self.attach_if_missing().await;
    }

    /// Whether a QEMU that did not answer still does not. It is not waited for long: who asks for it to be switched off
    /// is heard in between.
    async fn still_hangs(&mut self) -> bool {
        let Some(machine) = &mut self.machine else { return false };
        let answers = async { machine.connect(RETRY_AFTER).await.is_ok() && machine.run_state().await.is_ok() };
        !timeout(RETRY_AFTER, answers).await.unwrap_or(false)
    }

    /// Asks the QEMU that an earlier gateway started how its processors are run.
    async fn name_accelerator(&self) {
        if self.status.borrow().accelerator.is_some() {
            return;
        }
        let Some(machine) = &self.machine else { return };
        let Ok(kvm) = machine.execute("query-kvm", json!({})).await else { return };
        let accelerator = if kvm["enabled"] == true { Accelerator::Kvm } else { Accelerator::Tcg };
        let report = AcceleratorReport { accelerator, why: "it was started with it".into() };
        self.status.send_modify(|status| status.accelerator = Some(report));
    }

    async fn handle_happening(&mut self, happening: Happening) {
        match happening {
            Happening::Event(event) => self.handle_event(&event).await,
            // Not at once: most often the process is about to end, and a monitor that closes again and again must not
            // keep us busy.
            Happening::MonitorLost => self.next_heartbeat = Instant::now() + RETRY_AFTER,
            Happening::DisplayLost => {
                if let Some(machine) = &mut self.machine {
                    machine.detach().await;
                }
                self.next_attach = Some(Instant::now() + RETRY_AFTER);
            }
            Happening::Ended(exit) => self.handle_end(exit).await,
        }
    }

    async fn handle_event(&mut self, event: &Event) {
        tracing::debug!(event = event.name, data = %event.data, "QEMU");
        match event.name.as_str() {
            "BLOCK_IO_ERROR" if event.data["action"] == "stop" => {
                let text = |key: &str| event.data[key].as_str().unwrap_or("?").to_owned();
                let failure =
                    format!("a {} of disk {} failed: {}", text("operation"), text("node-name"), text("reason"));
                self.disk_failure = Some(failure);
                self.look().await;
            }
            "STOP" | "RESUME" | "SHUTDOWN" | "GUEST_PANICKED" | "RESET" | "WATCHDOG" => self.look().await,
            _ => {
                if self.machine.as_ref().is_some_and(Machine::take_missed_events) {
                    self.look().await;
                }
            }
        }
    }

    async fn handle_end(&mut self, exit: Exit) {
        let Some(machine) = self.machine.take() else { return };
        let reason = machine.obituary(exit);
        machine.bury().await;
        tracing::warn!(reason, "QEMU ended");
        self.enter(VmState::Failed, Some(reason));
    }

    /// Makes the state what QEMU says it is.
    async fn look(&mut self) {
        let Some(machine) = &self.machine else { return };
        match machine.run_state().await {
            Ok(RunState::Running) => {
                self.disk_failure = None;
                self.enter(VmState::Running, None);
            }
            Ok(RunState::Paused(why)) => self.enter(VmState::Paused, why.map(Into::into)),
            Ok(RunState::DiskFailed) => {
                let why = self.disk_failure.clone().unwrap_or_else(|| "a disk failed".into());
                self.enter(VmState::Paused, Some(why));
            }
            Ok(RunState::ShutDown) => {
                let ended = self.power_off(Some("the guest shut down".into())).await;
                self.fail_on(ended);
            }
            Ok(RunState::Broken) => self.give_up().await,
            // The process has ended too, or the connection is found closed: what is to be said comes from there.
            Err(QmpError::Closed) => {}
            Err(error) => self.enter(VmState::Failed, Some(error.to_string())),
        }
    }

    /// QEMU's accelerator met what it cannot do.
    async fn give_up(&mut self) {
        let Some(machine) = self.machine.take() else { return };
        let ended = machine.end_by_force().await.map(drop).map_err(Trouble::Failed);
        self.enter(VmState::Failed, Some("QEMU met an internal error and cannot run this guest further".into()));
        self.fail_on(ended);
    }

    fn fail_on(&mut self, done: Result<(), Trouble>) {
        if let Err(Trouble::Failed(reason) | Trouble::Refused(reason)) = done {
            self.enter(VmState::Failed, Some(reason));
        }
    }

    // Time.

    fn next_timer(&self) -> Instant {
        let shutdowns = self.shutdowns.iter().map(|(_, deadline)| *deadline);
        shutdowns.chain(self.next_attach).fold(self.next_heartbeat, Instant::min)
    }

    async fn handle_timer(&mut self) {
        let now = Instant::now();
        self.end_overdue_shutdowns(now);
        if self.next_attach.is_some_and(|at| at <= now) {
            self.next_attach = None;
            self.attach_if_missing().await;
        }
        if self.next_heartbeat <= now {
            self.heartbeat().await;
        }
    }

    /// Sees whether QEMU still answers; one that had stopped may have come back.
    async fn heartbeat(&mut self) {
        let failed = self.status.borrow().state == VmState::Failed;
        let until_next = if self.machine.is_some() && failed && self.still_hangs().await {
            2 * RETRY_AFTER
        } else {
            self.recover().await;
            self.host.config.deadlines.heartbeat
        };
        self.next_heartbeat = Instant::now() + until_next;
        if let Some(machine) = &self.machine {
            machine.trim_log();
        }
    }

    fn end_overdue_shutdowns(&mut self, now: Instant) {
        let limit = self.host.config.deadlines.guest_shutdown.as_secs();
        for (reply, _) in self.shutdowns.extract_if(.., |(_, deadline)| *deadline <= now) {
            let reason = format!("the guest did not go down within {limit} s");
            let _ = reply.send(Err(RequestError::Failed { request: Request::Shutdown, reason }));
        }
    }

    async fn attach_if_missing(&mut self) {
        if self.machine.as_ref().is_some_and(|machine| !machine.has_display()) {
            self.attach().await;
        }
    }

    /// Connects the display. A VM without one still runs: it is tried again.
    async fn attach(&mut self) {
        let Some(machine) = &mut self.machine else { return };
        if let Err(reason) = machine.attach(&self.display).await {
            tracing::warn!(reason, "the display cannot be reached");
            self.next_attach = Some(Instant::now() + RETRY_AFTER);
        }
    }

    // The state.

    fn process(&self) -> Process {
        if self.machine.is_some() { Process::Alive } else { Process::None }
    }

    fn enter(&mut self, state: VmState, reason: Option<String>) {
        let pid = self.machine.as_ref().map(Machine::pid);
        self.status.send_if_modified(|status| {
            let same = status.state == state && status.reason == reason && status.pid == pid;
            if status.state != state {
                status.since = SystemTime::now();
            }
            (status.state, status.reason, status.pid) = (state, reason, pid);
            !same
        });
        self.queue.observe(state, self.process());
        self.answer_shutdowns(state);
    }

    fn answer_shutdowns(&mut self, state: VmState) {
        let answer = match state {
            VmState::Stopped | VmState::Deleted => Ok(()),
            VmState::Failed => {
                let reason = self.status.borrow().reason.clone().unwrap_or_default();
                Err(RequestError::Failed { request: Request::Shutdown, reason })
            }
            _ => return,
        };
        for (reply, _) in self.shutdowns.drain(..) {
            let _ = reply.send(answer.clone());
        }
    }
}
