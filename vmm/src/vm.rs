//! A handle of a virtual machine.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument as _;
use uuid::Uuid;

use crate::bus::{BusPort, BusShared};
use crate::checkpoints::{self, Keeper};
use crate::definition::{
    Change, Definition, DefinitionError, DefinitionFile, Disk, DiskSource, EditDefinition, EditError,
};
use crate::display::{Console, Display};
use crate::host::HostShared;
use crate::lifecycle::{
    Connections, Driver, Hold, Holds, Message, Monitor, Request, RequestError, Snapshot, SnapshotTag, Status, Switch,
    VmState, snapshot_obstacle,
};
use crate::memory::{Account, MemoryReport, MemorySettings, VmMemoryView};

/// Messages that wait for a driver; who sends more waits.
const MAX_MESSAGES: usize = 32;

/// A handle of a virtual machine. Cheap to clone; all handles of a VM are equal.
///
/// Requests are carried out one at a time by the VM's own task, in the order they come; each returns when its state is
/// reached, or when it is refused or has failed. A request goes on when its caller stops waiting.
#[derive(Debug, Clone)]
pub struct Vm {
    shared: Arc<VmShared>,
}

/// A handle that does not keep the VM's driver.
#[derive(Debug, Clone)]
pub(crate) struct WeakVm(Weak<VmShared>);

#[derive(Debug)]
struct VmShared {
    name: String,
    uuid: Uuid,
    definition: DefinitionFile,
    display: Arc<Display>,
    bus: Arc<BusShared>,
    memory: Arc<Account>,
    checkpoints: Keeper,
    messages: mpsc::Sender<Message>,
    status: watch::Receiver<Status>,
}

impl Vm {
    /// Starts the driver of a VM; the receiver hears when what was left of an earlier run has been dealt with.
    pub(crate) fn spawn(host: Arc<HostShared>, definition: Definition, file: PathBuf) -> (Self, oneshot::Receiver<()>) {
        let (name, uuid) = (definition.name.clone(), definition.uuid);
        let display = Display::new(definition.monitors);
        let definition = DefinitionFile::new(definition, file);
        let bus = BusShared::new();
        let (messages, receiver) = mpsc::channel(MAX_MESSAGES);
        let (status, watch) = watch::channel(Status::new(VmState::Created));
        let (ready, is_ready) = oneshot::channel();
        let memory = host.memory.open(&definition.current(), watch.clone(), messages.downgrade());
        let checkpoints = Keeper::open(host.config.checkpoints.join(format!("{uuid}.json")));
        let connections =
            Connections { display: display.clone(), bus: bus.clone(), memory: memory.clone(), holds: Holds::default() };
        let driver = Driver::new(host, definition.clone(), connections, receiver, status);
        let span = tracing::info_span!("vm", name);
        tokio::spawn(driver.run(ready).instrument(span));
        let shared = VmShared { name, uuid, definition, display, bus, memory, checkpoints, messages, status: watch };
        (Self { shared: Arc::new(shared) }, is_ready)
    }

    pub(crate) fn downgrade(&self) -> WeakVm {
        WeakVm(Arc::downgrade(&self.shared))
    }

    /// What people call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What programs call it.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.shared.uuid
    }

    /// As it is: one that is on as it was started, with what was changed since.
    #[must_use]
    pub fn definition(&self) -> Arc<Definition> {
        self.shared.definition.current()
    }

    /// As its owner wants it from its next start on: what its file says, or said when it could be read last.
    #[must_use]
    pub fn wanted_definition(&self) -> Arc<Definition> {
        self.shared.definition.wanted()
    }

    /// The text of its file. Waits for the host's disk.
    #[must_use]
    pub fn definition_text(&self) -> String {
        self.shared.definition.text()
    }

    /// What was changed in its definition and waits for the next start.
    #[must_use]
    pub fn waiting_changes(&self) -> Vec<Change> {
        self.shared.definition.waiting()
    }

    /// Why its file cannot be read, if it was edited by hand. The VM is not started until it can.
    #[must_use]
    pub fn definition_problem(&self) -> Option<DefinitionError> {
        self.shared.definition.problem()
    }

    /// Puts another definition into its file. When it is on it keeps what it runs with until its next start; what is
    /// different, and from when on it counts.
    ///
    /// # Errors
    ///
    /// When it is no definition of this VM, or has been changed since it was read, or is about a disk that is being moved:
    /// all is as it was then.
    pub async fn edit_definition(&self, edit: EditDefinition) -> Result<Vec<Change>, EditError> {
        let (reply, answer) = oneshot::channel();
        let ended = || EditError::Refused("the host has ended".into());
        let message = Message::Edit { edit: Box::new(edit), reply };
        self.shared.messages.send(message).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Sees whether somebody has edited its file.
    pub(crate) async fn look_at_definition(&self) {
        let (reply, answer) = oneshot::channel();
        if self.shared.messages.send(Message::Look { reply }).await.is_ok() {
            // Its driver ended, and nobody need see anything.
            let _ = answer.await;
        }
    }

    /// What it is, and what it shall be where that is something else.
    pub(crate) fn definitions(&self) -> Vec<Arc<Definition>> {
        let (current, wanted) = (self.shared.definition.current(), self.shared.definition.wanted());
        if Arc::ptr_eq(&current, &wanted) { vec![current] } else { vec![current, wanted] }
    }

    /// What it is doing now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    /// Follows what it is doing.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.shared.status.clone()
    }

    /// Starts it. If going back to a checkpoint was cut off, it is started in that.
    ///
    /// # Errors
    ///
    /// When it is on already, or QEMU cannot be started; the VM is `Failed` then, and can be started again.
    pub async fn start(&self) -> Result<(), RequestError> {
        checkpoints::start(self).await
    }

    /// Asks the guest to shut down, and waits until it has.
    ///
    /// # Errors
    ///
    /// When it is not running, or the guest does not go down in time; the VM goes on then.
    pub async fn shutdown(&self) -> Result<(), RequestError> {
        self.request(Request::Shutdown).await
    }

    /// Switches it off.
    ///
    /// # Errors
    ///
    /// When it is off.
    pub async fn power_off(&self) -> Result<(), RequestError> {
        self.request(Request::PowerOff).await
    }

    /// Starts the guest over.
    ///
    /// # Errors
    ///
    /// When it is off.
    pub async fn reset(&self) -> Result<(), RequestError> {
        self.request(Request::Reset).await
    }

    /// Stops its processors.
    ///
    /// # Errors
    ///
    /// When they do not run.
    pub async fn pause(&self) -> Result<(), RequestError> {
        self.request(Request::Pause).await
    }

    /// Lets its processors go on.
    ///
    /// # Errors
    ///
    /// When it is not paused, or the guest cannot go on (a panic).
    pub async fn resume(&self) -> Result<(), RequestError> {
        self.request(Request::Resume).await
    }

    /// Keeps the state that it is in in the disks' own files: memory and disks, or the disks alone when it is off. Its
    /// processors stand still meanwhile. A disk whose file can keep none gets a qcow2 image that stands on the file, and is that
    /// from then on. [`Checkpoints`](crate::Checkpoints) do more than this and the next four.
    ///
    /// # Errors
    ///
    /// When it has a writable disk that is no file, or no writable disk, there is a snapshot of the name, or there is no room.
    /// The VM goes on then. When it is powered off before this is done; the snapshot may be there all the same.
    pub async fn save_snapshot(&self, tag: SnapshotTag) -> Result<(), RequestError> {
        self.request(Request::SaveSnapshot { tag }).await
    }

    /// Goes back to a state that was kept with its memory; what it was doing is lost. It runs afterwards unless it was
    /// paused before.
    ///
    /// # Errors
    ///
    /// When there is no such snapshot, or as for [`start`](Self::start): it is as it was before. When the state cannot be
    /// loaded: the VM is `Failed` then, and the snapshot can be loaded again. When it is powered off before this is done.
    pub async fn load_snapshot(&self, tag: SnapshotTag) -> Result<(), RequestError> {
        self.request(Request::LoadSnapshot { tag }).await
    }

    /// Makes its disks what they were in a state that was kept, and leaves it off; what it was doing is lost.
    ///
    /// # Errors
    ///
    /// When there is no such snapshot: it is as it was before. When a disk cannot be written: those before it are changed.
    pub async fn restore_disks(&self, tag: SnapshotTag) -> Result<(), RequestError> {
        self.request(Request::RestoreDisks { tag }).await
    }

    /// Forgets a state that was kept, or what there is of it.
    ///
    /// # Errors
    ///
    /// When there is no such snapshot, or it cannot be deleted from all disks.
    pub async fn delete_snapshot(&self, tag: SnapshotTag) -> Result<(), RequestError> {
        self.request(Request::DeleteSnapshot { tag }).await
    }

    /// The states that were kept, oldest first, and what there is of others.
    ///
    /// # Errors
    ///
    /// Why they cannot be told, in words.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, String> {
        self.ask(|reply| Message::Snapshots { settled: false, reply }).await
    }

    /// The same, once QEMU has ended what an earlier gateway began.
    pub(crate) async fn settled_snapshots(&self) -> Result<Vec<Snapshot>, String> {
        self.ask(|reply| Message::Snapshots { settled: true, reply }).await
    }

    /// Why it can have no snapshots, if it cannot: every disk that is in the way.
    pub(crate) fn checkpoint_obstacle(&self) -> Option<String> {
        snapshot_obstacle(&self.definition())
    }

    pub(crate) fn checkpoint_keeper(&self) -> &Keeper {
        &self.shared.checkpoints
    }

    /// How its memory was at the last tick; none while it is off, or when its memory is always the same.
    #[must_use]
    pub fn memory(&self) -> Option<VmMemoryView> {
        self.shared.memory.view()
    }

    /// What its owner wants of its memory now; none when that is always the same.
    #[must_use]
    pub fn memory_settings(&self) -> Option<MemorySettings> {
        self.shared.memory.settings()
    }

    /// Takes in what the agent in its guest says of the memory. It counts before what the balloon says, as long as it
    /// comes at least every five seconds.
    pub fn report_memory(&self, report: MemoryReport) {
        self.shared.memory.report(report);
    }

    /// Gives it another disk, in its definition and at once where that can be: when it is on, on a virtio controller of bus
    /// "scsi". Elsewhere its guest has it from the next start on; then [`Status::next_start`] names it. The disk's name, if
    /// it has none, is chosen.
    ///
    /// # Errors
    ///
    /// When the disk cannot be, its file is not there, its device is in use, or QEMU does not take it. The VM is as it was
    /// then.
    pub async fn attach_disk(&self, disk: Disk) -> Result<(), RequestError> {
        self.request(Request::AttachDisk { disk: Box::new(disk) }).await
    }

    /// Takes the disk of that name or image from it, as [`attach_disk`](Self::attach_disk) gives it; the image stays.
    ///
    /// # Errors
    ///
    /// When there is no such disk, or the guest does not let go of it.
    pub async fn detach_disk(&self, id: &str) -> Result<(), RequestError> {
        self.request(Request::DetachDisk { id: id.into() }).await
    }

    /// Makes the disk of that name `size` bytes large while its QEMU has it open.
    pub(crate) async fn resize_disk(&self, id: &str, size: u64) -> Result<(), RequestError> {
        self.request(Request::ResizeDisk { id: id.into(), size }).await
    }

    /// Puts another disc into the drive of that name, or none. With `force` whether the guest has locked the drive or not.
    ///
    /// # Errors
    ///
    /// When there is no such drive, the disc is not there, or the guest does not let go of the one that is in.
    pub async fn change_disc(&self, id: &str, source: DiskSource, force: bool) -> Result<(), RequestError> {
        self.request(Request::ChangeDisc { id: id.into(), source: Box::new(source), force }).await
    }

    /// Its first screen, with keyboard and pointer.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "a display has at least one screen")]
    pub fn console(&self) -> Console {
        self.shared.display.console(0).expect("a display has at least one screen")
    }

    /// The screen of that number, from 0.
    #[must_use]
    pub fn console_at(&self, index: usize) -> Option<Console> {
        self.shared.display.console(index)
    }

    /// The port and the memory by which the agent in the guest is reached.
    #[must_use]
    pub fn bus(&self) -> BusPort {
        BusPort::new(self.shared.bus.clone())
    }

    /// Has QEMU write what its first screen shows to `path`, as PNG.
    ///
    /// # Errors
    ///
    /// Why not, in words.
    pub async fn screendump(&self, path: &Path) -> Result<(), String> {
        let path = std::path::absolute(path).map_err(|error| error.to_string())?;
        self.ask(|reply| Message::Screendump { path, reply }).await
    }

    /// The file with its definition.
    pub(crate) fn definition_path(&self) -> &Path {
        self.shared.definition.path()
    }

    /// Its definition, to be changed.
    pub(crate) fn definition_file(&self) -> &DefinitionFile {
        &self.shared.definition
    }

    /// Holds a disk, so that nothing happens that a move of it excludes; the monitor of its QEMU at that moment.
    pub(crate) async fn hold_disk(&self, disk: &str) -> Result<(Hold, Monitor), String> {
        let (reply, answer) = oneshot::channel();
        let message = Message::HoldDisk { disk: disk.into(), reply };
        self.shared.messages.send(message).await.map_err(|_| "the host has ended")?;
        answer.await.map_err(|_| "the host has ended")?
    }

    /// The monitor of its QEMU; that of a VM whose host has ended is silent.
    pub(crate) async fn monitor(&self) -> Monitor {
        let (reply, answer) = oneshot::channel();
        if self.shared.messages.send(Message::Monitor { reply }).await.is_err() {
            return Monitor::Silent;
        }
        answer.await.unwrap_or(Monitor::Silent)
    }

    /// Does the last step of a move.
    pub(crate) async fn switch_disk(&self, switch: Switch) -> Result<(), RequestError> {
        let (reply, answer) = oneshot::channel();
        let ended = RequestError::HostEnded { request: Request::SwitchDisk { disk: switch.disk.clone() } };
        self.shared.messages.send(Message::Switch { switch, reply }).await.map_err(|_| ended.clone())?;
        answer.await.map_err(|_| ended)?
    }

    /// Forgets it; [`Host::delete`](crate::Host::delete) takes it off the list, too.
    pub(crate) async fn delete(&self) -> Result<(), RequestError> {
        self.request(Request::Delete).await
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Message) -> Result<T, String> {
        let (reply, answer) = oneshot::channel();
        self.shared.messages.send(message(reply)).await.map_err(|_| "the host has ended")?;
        answer.await.map_err(|_| "the host has ended")?
    }

    pub(crate) async fn request(&self, request: Request) -> Result<(), RequestError> {
        let (reply, answer) = oneshot::channel();
        let ended = RequestError::HostEnded { request: request.clone() };
        self.shared.messages.send(Message::Request { request, reply }).await.map_err(|_| ended.clone())?;
        answer.await.map_err(|_| ended)?
    }
}

impl WeakVm {
    /// The VM, while anybody else has a handle of it.
    pub(crate) fn upgrade(&self) -> Option<Vm> {
        Some(Vm { shared: self.0.upgrade()? })
    }
}

impl PartialEq for Vm {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for Vm {}
