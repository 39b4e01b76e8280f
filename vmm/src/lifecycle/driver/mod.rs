//! The one task that changes a VM.
//!
//! Here is its loop and its state; `requests` has what others ask, `definition` what its file is to say, `disks` what of it
//! is about disks, `jobs` what of it takes long, `moves` what a disk that moves needs, `happenings` what happens by itself,
//! `failures` what of it is a disk's.

mod definition;
mod disks;
mod failures;
mod happenings;
mod jobs;
mod moves;
mod requests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::holds::Hold;
use super::machine::{Connections, Machine};
use super::request_queue::{Process, RequestId, RequestQueue, Step};
use super::snapshot::Snapshot;
use super::state::{Cause, Request, RequestError, Status, VmState};
use crate::definition::{Change, DefinitionFile, EditDefinition, EditError};
use crate::disks::DiskError;
use crate::host::HostShared;
use crate::memory::{self, Facts, Orders};

use failures::Failures;
use jobs::Job;
pub(crate) use moves::{Monitor, Switch};

/// How soon a display or a monitor that was lost, or a QEMU that does not answer, is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a handle of a VM asks its driver.
#[derive(Debug)]
pub(crate) enum Message {
    Request {
        request: Request,
        reply: Reply,
    },
    Screendump {
        path: PathBuf,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// `settled`: once nothing of an earlier gateway is under way.
    Snapshots {
        settled: bool,
        reply: oneshot::Sender<Result<Vec<Snapshot>, String>>,
    },
    /// Carry out `orders`; none: say how it is. An answer may be missing.
    Memory {
        orders: Option<Orders>,
        reply: oneshot::Sender<Option<Facts>>,
    },
    HoldDisk {
        disk: String,
        reply: oneshot::Sender<Result<(Hold, Monitor), String>>,
    },
    Monitor {
        reply: oneshot::Sender<Monitor>,
    },
    /// See what is in the definition's file now.
    Look {
        reply: oneshot::Sender<()>,
    },
    Edit {
        edit: Box<EditDefinition>,
        reply: oneshot::Sender<Result<Vec<Change>, EditError>>,
    },
    Switch {
        switch: Switch,
        reply: Reply,
    },
}

type Reply = oneshot::Sender<Result<(), RequestError>>;

/// Why a request was not carried out.
enum Trouble {
    /// The VM is as it was.
    Refused(String),
    /// The VM has failed over it.
    Failed(String),
    /// There is no sense left in what its QEMU holds.
    Lost(String),
    /// Either of these, for a reason of that kind.
    Of(Cause, Box<Trouble>),
}

/// A VM's driver.
pub(crate) struct Driver {
    host: Arc<HostShared>,
    definition: DefinitionFile,
    runtime: PathBuf,
    /// Where its devices keep their things.
    devices: PathBuf,
    connections: Connections,
    messages: mpsc::Receiver<Message>,
    status: watch::Sender<Status>,
    queue: RequestQueue,
    replies: HashMap<RequestId, Reply>,
    switches: HashMap<RequestId, Switch>,
    next_id: u64,
    /// Who waits for the guest to go down, and until when.
    shutdowns: Vec<(Reply, Instant)>,
    machine: Option<Machine>,
    /// What takes long; QEMU may answer nothing else meanwhile.
    job: Option<Job>,
    failures: Failures,
    /// Whether an earlier gateway may have left QEMU with other disks than the definition has.
    uncorrected: bool,
    /// How the TPM ended, when QEMU goes on without.
    tpm_failure: Option<String>,
    next_heartbeat: Instant,
    next_attach: Option<Instant>,
}

impl Trouble {
    /// With what kind of reason it is.
    fn of(cause: Cause, trouble: Self) -> Self {
        Self::Of(cause, Box::new(trouble))
    }

    /// What was refused because of what `error` says.
    fn refused_for(error: &DiskError) -> Self {
        Self::of(error.cause(), Self::Refused(error.to_string()))
    }

    fn reason(self) -> String {
        match self {
            Self::Refused(reason) | Self::Failed(reason) | Self::Lost(reason) => reason,
            Self::Of(_, trouble) => trouble.reason(),
        }
    }

    /// What kind of reason it has, and what else there is to it.
    fn take_cause(self) -> (Cause, Self) {
        match self {
            Self::Of(cause, trouble) => (cause, *trouble),
            trouble => (Cause::default(), trouble),
        }
    }
}

impl Driver {
    pub(crate) fn new(
        host: Arc<HostShared>,
        definition: DefinitionFile,
        connections: Connections,
        messages: mpsc::Receiver<Message>,
        status: watch::Sender<Status>,
    ) -> Self {
        let uuid = definition.current().uuid.to_string();
        let (runtime, devices) = (host.config.runtime.join(&uuid), host.config.devices.join(&uuid));
        let state = status.borrow().state;
        let next_heartbeat = Instant::now() + host.config.deadlines.heartbeat;
        Self {
            host,
            definition,
            runtime,
            devices,
            connections,
            messages,
            status,
            queue: RequestQueue::new(state, Process::None),
            replies: HashMap::new(),
            switches: HashMap::new(),
            next_id: 0,
            shutdowns: Vec::new(),
            machine: None,
            job: None,
            failures: Failures::default(),
            uncorrected: true,
            tpm_failure: None,
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
        let job = async {
            match &mut self.job {
                Some(job) => job.ended().await,
                None => std::future::pending().await,
            }
        };
        // The losers lose nothing: a queue, a machine's events, a job and a look that go on, and a time that stays where
        // it is.
        tokio::select! {
            message = self.messages.recv() => match message {
                Some(message) => self.handle_message(message).await,
                None => return false,
            },
            happening = happening => self.handle_happening(happening).await,
            done = job => self.end_job(done).await,
            found = self.failures.found() => self.handle_found(found).await,
            () = sleep_until(timer) => self.handle_timer().await,
        }
        true
    }

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
            Message::Screendump { path, reply } => answer_aside(reply, self.screendump(&path)),
            Message::Snapshots { settled, reply } => answer_aside(reply, self.list_snapshots(settled)),
            Message::Memory { orders, reply } => self.talk_of_memory(orders, reply),
            Message::HoldDisk { disk, reply } => self.hold_disk(&disk, reply),
            // Nobody need wait for it.
            Message::Monitor { reply } => drop(reply.send(self.monitor())),
            Message::Switch { switch, reply } => self.submit_switch(switch, reply),
            Message::Look { reply } => {
                self.look_at_file();
                let _ = reply.send(());
            }
            Message::Edit { edit, reply } => drop(reply.send(self.edit(*edit))),
        }
    }

    fn talk_of_memory(&self, orders: Option<Orders>, reply: oneshot::Sender<Option<Facts>>) {
        // QEMU may be silent until a job of its own ends.
        let qmp = self.machine.as_ref().filter(|_| self.job.is_none()).and_then(Machine::qmp);
        if let Some((qmp, devices)) = qmp.zip(self.connections.memory.devices()) {
            memory::converse(qmp, devices, orders, reply);
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
                    if let Some(done) = self.carry_out(id, &request).await {
                        self.finish(id, request, done);
                    }
                }
                Step::Abandon(_) => self.abandon_job(Trouble::Refused("it is to be powered off first".into())),
            }
        }
    }

    /// Carries out a request; none when it goes on as a job.
    async fn carry_out(&mut self, id: RequestId, request: &Request) -> Option<Result<(), Trouble>> {
        tracing::debug!(%request, "request");
        if let Some(obstacle) = self.connections.holds.obstacle(request) {
            return Some(Err(Trouble::Refused(obstacle)));
        }
        Some(match request {
            Request::Start => self.start().await,
            Request::Shutdown => self.shut_down(id).await,
            Request::PowerOff => self.power_off(None).await,
            Request::Reset => self.ask_qemu("system_reset").await,
            Request::Pause => self.pause().await,
            Request::Resume => self.resume().await,
            Request::Delete => self.delete(),
            Request::SaveSnapshot { tag } => return self.begin_save(id, tag.clone()).err().map(Err),
            Request::LoadSnapshot { tag } => return self.begin_load(id, tag.clone()).await.err().map(Err),
            Request::RestoreDisks { tag } => return self.begin_restore(id, tag.clone()).await.err().map(Err),
            Request::DeleteSnapshot { tag } => return self.begin_delete(id, tag.clone()).err().map(Err),
            Request::SwitchDisk { .. } => return self.begin_switch(id).err().map(Err),
            Request::AttachDisk { disk } => self.attach_disk(disk).await,
            Request::DetachDisk { id } => self.detach_disk(id).await,
            Request::ResizeDisk { id, size } => self.resize_disk(id, *size).await,
            Request::ChangeDisc { id, source, force } => self.change_disc(id, source, *force).await,
        })
    }

    fn finish(&mut self, id: RequestId, request: Request, done: Result<(), Trouble>) {
        let answer = done.map_err(|trouble| {
            let (cause, trouble) = trouble.take_cause();
            let fails = !matches!(trouble, Trouble::Refused(_));
            let reason = trouble.reason();
            if fails {
                self.enter(VmState::Failed, Some(reason.clone()));
            }
            RequestError::Failed { request, reason, cause }
        });
        let state = self.status.borrow().state;
        self.queue.finish(state, self.process());
        self.answer(id, answer);
    }

    fn answer(&mut self, id: RequestId, answer: Result<(), RequestError>) {
        // A shutdown that has begun is answered when the guest is down.
        self.switches.remove(&id);
        if let Some(reply) = self.replies.remove(&id) {
            let _ = reply.send(answer);
        }
    }

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
            if pid.is_none() {
                status.next_start.clear();
            }
            !same
        });
        if state == VmState::Failed {
            // A QEMU that is still there may come back.
            self.next_heartbeat = self.next_heartbeat.min(Instant::now() + RETRY_AFTER);
        }
        if self.machine.is_none() && state != VmState::Starting {
            self.connections.memory.release();
            self.definition.end_run();
            self.become_current();
        }
        self.queue.observe(state, self.process());
        self.queue.observe_wait(self.failures.come_back());
        self.answer_shutdowns(state);
    }

    fn answer_shutdowns(&mut self, state: VmState) {
        let answer = match state {
            VmState::Stopped | VmState::Deleted => Ok(()),
            VmState::Failed => {
                let reason = self.status.borrow().reason.clone().unwrap_or_default();
                Err(RequestError::Failed { request: Request::Shutdown, reason, cause: Cause::Failure })
            }
            _ => return,
        };
        for (reply, _) in self.shutdowns.drain(..) {
            let _ = reply.send(answer.clone());
        }
    }
}

/// Answers a question that QEMU is asked, when it answers; the driver goes on.
fn answer_aside<T: Send + 'static>(
    reply: oneshot::Sender<Result<T, String>>,
    question: Result<impl Future<Output = Result<T, String>> + Send + 'static, String>,
) {
    match question {
        Ok(question) => drop(tokio::spawn(async move { reply.send(question.await) })),
        // The caller may have lost interest.
        Err(reason) => drop(reply.send(Err(reason))),
    }
}
