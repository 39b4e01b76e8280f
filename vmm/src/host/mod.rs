//! All virtual machines of one host.
//!
//! * `machines`: which there are,
//! * `refused`: those whose definitions are refused,
//! * `folder`: definitions that somebody edits, adds or removes by hand.

mod folder;
mod machines;
mod refused;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{OnceCell, watch};
use uuid::Uuid;

use crate::accelerator::{self, AcceleratorReport};
use crate::checkpoints::{self, Checkpoints};
use crate::definition::{Definition, DefinitionError, FolderWatch, InvalidDefinition, make_folder, replace_file};
use crate::disks::{Disks, OverlayBook, note_overlays, storage_daemon};
use crate::engine::{Process, RuntimeFolder, Version, find_uefi};
use crate::jobs::{Jobs, JobsError, WeakJobs};
use crate::lifecycle::RequestError;
use crate::memory::{self, Board, HostMemoryView, MemoryConfig};
use crate::vm::Vm;

use machines::Machines;
pub(crate) use machines::definition_files;
pub use refused::RefusedVm;

/// How a host is set up.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// The folder of the definitions, one `NAME.toml` per VM.
    pub definitions: PathBuf,
    /// The folder of the runtime facts, one folder per VM.
    pub runtime: PathBuf,
    /// The folder of the jobs, one file per job.
    pub jobs: PathBuf,
    /// The folder of what is known of checkpoints, one file per VM that has any.
    pub checkpoints: PathBuf,
    /// The folder of the moves of disks that are under way, one file per move.
    pub moves: PathBuf,
    /// The folder of images that are made for VMs.
    pub images: PathBuf,
    /// The folder of what VMs' devices keep (variables of UEFI, keys of TPMs), one folder per VM.
    pub devices: PathBuf,
    /// The QEMU to run; `qemu-system-x86_64` on the path when none is named.
    pub qemu: Option<PathBuf>,
    /// The TPM emulator to run; `swtpm` on the path when none is named.
    pub swtpm: Option<PathBuf>,
    /// How long things may take.
    pub deadlines: Deadlines,
    /// How the memory of VMs is managed.
    pub memory: MemoryConfig,
}

/// How long things may take before they have failed.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// One command of QEMU's monitor.
    pub command: Duration,
    /// From starting QEMU to its first answer.
    pub start: Duration,
    /// From asking QEMU to end, or killing it, to its end.
    pub end: Duration,
    /// From asking the guest to shut down to its having done so.
    pub guest_shutdown: Duration,
    /// Between two looks at a QEMU of which nothing is heard.
    pub heartbeat: Duration,
    /// A snapshot: saving, loading or deleting it, whatever the memory and the disks of the VM.
    pub snapshot: Duration,
    /// The probe of the accelerator.
    pub probe: Duration,
}

/// All virtual machines of one host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Host {
    shared: Arc<HostShared>,
    machines: Arc<Machines>,
    jobs: Jobs,
}

/// What the drivers of all VMs share.
#[derive(Debug)]
pub(crate) struct HostShared {
    pub(crate) config: HostConfig,
    pub(crate) qemu: PathBuf,
    pub(crate) memory: Arc<Board>,
    /// Images of which no VM need know.
    pub(crate) overlays: OverlayBook,
    machines: Weak<Machines>,
    probed: OnceCell<AcceleratorReport>,
    version: OnceCell<Option<Version>>,
}

/// A handle that keeps nothing of a host.
#[derive(Debug, Clone)]
pub(crate) struct WeakHost {
    shared: Weak<HostShared>,
    machines: Weak<Machines>,
    jobs: WeakJobs,
}

/// The host cannot do that.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A folder or file cannot be used.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The definition says what cannot be.
    #[error(transparent)]
    Invalid(#[from] InvalidDefinition),
    /// Another VM has the name or the UUID.
    #[error("there is already a VM with the {what} {value}")]
    Taken {
        /// `name` or `uuid`.
        what: &'static str,
        /// Which.
        value: String,
    },
    /// There is no such VM.
    #[error("there is no VM {0}")]
    Unknown(String),
    /// The VM refused.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The jobs cannot be read.
    #[error(transparent)]
    Jobs(#[from] JobsError),
}

impl HostConfig {
    /// A host with its definitions in `definitions`, its runtime facts in `runtime`, and the rest beside the former.
    #[must_use]
    pub fn new(definitions: impl Into<PathBuf>, runtime: impl Into<PathBuf>) -> Self {
        let definitions = definitions.into();
        let [jobs, checkpoints, moves, images, devices] =
            ["jobs", "checkpoints", "moves", "images", "devices"].map(|name| definitions.with_file_name(name));
        let (deadlines, memory) = (Deadlines::default(), MemoryConfig::default());
        let (runtime, qemu, swtpm) = (runtime.into(), None, None);
        Self { definitions, runtime, jobs, checkpoints, moves, images, devices, qemu, swtpm, deadlines, memory }
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            command: Duration::from_secs(10),
            start: Duration::from_secs(20),
            end: Duration::from_secs(20),
            guest_shutdown: Duration::from_secs(120),
            heartbeat: Duration::from_secs(15),
            snapshot: Duration::from_secs(15 * 60),
            probe: Duration::from_secs(4),
        }
    }
}

impl Host {
    /// Reads the definitions, takes back each QEMU that still runs, and goes on with or clears up after jobs that were
    /// interrupted.
    ///
    /// A definition that cannot be read is kept among the [`problems`](Self::problems) and stops nothing else.
    ///
    /// # Errors
    ///
    /// When a folder cannot be made or read.
    pub async fn open(config: HostConfig) -> Result<Self, HostError> {
        for folder in [&config.definitions, &config.runtime] {
            make_folder(folder).map_err(|error| HostError::Io { path: folder.clone(), error })?;
        }
        let config = HostConfig {
            definitions: absolute(&config.definitions)?,
            runtime: absolute(&config.runtime)?,
            devices: absolute(&config.devices)?,
            images: absolute(&config.images)?,
            ..config
        };
        // What comes from here on is noticed.
        let watch = FolderWatch::new(&config.definitions);
        let files = machines::definition_files(&config.definitions)
            .map_err(|error| HostError::Io { path: config.definitions.clone(), error })?;
        let qemu = config.qemu.clone().unwrap_or_else(|| "qemu-system-x86_64".into());
        let jobs = Jobs::open(&config.jobs)?;
        let memory = Arc::new(Board::new(config.memory));
        tokio::spawn(memory::run(Arc::downgrade(&memory)));
        let (probed, version) = (OnceCell::new(), OnceCell::new());
        let overlays = OverlayBook::new(config.definitions.with_file_name("overlays.json"));
        let machines: Arc<Machines> = Arc::default();
        let known = Arc::downgrade(&machines);
        let shared = Arc::new(HostShared { config, qemu, memory, overlays, machines: known, probed, version });
        let host = Self { shared, machines, jobs };
        let (mut waits, mut problems) = (Vec::new(), Vec::new());
        for file in files {
            match host.machines.load(&file) {
                Ok(definition) => waits.push(host.add(definition, file)),
                Err(problem) => problems.push(problem),
            }
        }
        host.machines.keep_problems(problems);
        waits.extend(host.add_those_that_run());
        for wait in waits {
            // A driver that ended can only have panicked; its VM says so when it is asked.
            let _ = wait.await;
        }
        host.disks().recover_moves().await;
        for vm in host.list() {
            checkpoints::take_over(&vm, &host.jobs, &host.downgrade());
        }
        host.begin_again().await;
        host.jobs.interrupt_orphans().await;
        tokio::spawn(folder::follow(host.downgrade(), watch));
        Ok(host)
    }

    pub(crate) fn downgrade(&self) -> WeakHost {
        let (shared, machines) = (Arc::downgrade(&self.shared), Arc::downgrade(&self.machines));
        WeakHost { shared, machines, jobs: self.jobs.downgrade() }
    }

    /// What takes minutes.
    #[must_use]
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// The checkpoints of a VM.
    #[must_use]
    pub fn checkpoints(&self, vm: &Vm) -> Checkpoints {
        Checkpoints::new(vm.clone(), self.jobs.clone(), self.disks())
    }

    /// The disk images.
    #[must_use]
    pub fn disks(&self) -> Disks {
        Disks::new(self.clone(), &self.shared.qemu)
    }

    /// What the drivers share.
    pub(crate) fn shared(&self) -> &Arc<HostShared> {
        &self.shared
    }

    /// The folder of the moves that are under way.
    pub(crate) fn moves(&self) -> &Path {
        &self.shared.config.moves
    }

    /// The QEMU that is run.
    pub(crate) fn qemu(&self) -> &Path {
        &self.shared.qemu
    }

    /// The folder of images that are made for VMs.
    pub(crate) fn images(&self) -> &Path {
        &self.shared.config.images
    }

    /// Where a VM's devices keep their things.
    pub(crate) fn devices_of(&self, vm: Uuid) -> PathBuf {
        self.shared.config.devices.join(vm.to_string())
    }

    /// The runtime folder of a VM.
    pub(crate) fn runtime_of(&self, vm: Uuid) -> PathBuf {
        self.shared.config.runtime.join(vm.to_string())
    }

    /// All VMs, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Vm> {
        let mut vms = self.machines.all();
        vms.sort_by_key(|vm| vm.name().to_lowercase());
        vms
    }

    /// Says when VMs have come or gone.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<()> {
        self.machines.watch()
    }

    /// The VM of that name, whatever its case, or UUID.
    #[must_use]
    pub fn find(&self, name_or_uuid: &str) -> Option<Vm> {
        self.machines.find(name_or_uuid)
    }

    /// Adds a VM, and writes its definition.
    ///
    /// # Errors
    ///
    /// When the definition says what cannot be, its name or UUID is taken, or it cannot be written.
    pub async fn create(&self, mut definition: Definition) -> Result<Vm, HostError> {
        let _changing = self.machines.change().await;
        definition.settle();
        definition.name_devices_lastingly();
        definition.validate()?;
        if let Some((what, value)) = self.machines.taken(&definition) {
            return Err(HostError::Taken { what, value });
        }
        let file = self.definition_file(&definition);
        // A file that was refused may be in the way: it is somebody's work.
        if file.exists() {
            return Err(HostError::Taken { what: "file", value: file.display().to_string() });
        }
        replace_file(&file, &definition.to_toml()).map_err(|error| HostError::Io { path: file.clone(), error })?;
        let uuid = definition.uuid;
        self.bring_in(definition, file).await.ok_or_else(|| HostError::Unknown(uuid.to_string()))
    }

    /// Forgets a VM that is off: its definition and runtime facts. Its disks stay.
    ///
    /// # Errors
    ///
    /// When there is none of that name or UUID, or it is on.
    pub async fn delete(&self, name_or_uuid: &str) -> Result<(), HostError> {
        let _changing = self.machines.change().await;
        let vm = self.find(name_or_uuid).ok_or_else(|| HostError::Unknown(name_or_uuid.into()))?;
        note_overlays(&self.shared).await;
        vm.delete().await?;
        vm.checkpoint_keeper().remove();
        self.machines.remove(vm.uuid());
        Ok(())
    }

    /// The definitions that were refused.
    #[must_use]
    pub fn problems(&self) -> Vec<DefinitionError> {
        self.machines.problems()
    }

    /// The host's memory at the last tick; none while no VM with dynamic memory is on. What each VM has is told by
    /// [`Vm::memory`].
    #[must_use]
    pub fn memory(&self) -> Option<HostMemoryView> {
        self.shared.memory.view()
    }

    /// Which accelerator works here. The first call finds out, which takes seconds at most.
    pub async fn probe_accelerator(&self) -> AcceleratorReport {
        self.shared.probe().await
    }

    /// QEMU's storage daemon, which compares the two places of each disk that moves.
    #[must_use]
    pub fn storage_daemon(&self) -> PathBuf {
        storage_daemon(&self.shared.qemu)
    }

    /// The firmware that a VM with UEFI would be given here, if there is any.
    #[must_use]
    pub fn uefi(secure_boot: bool) -> Option<PathBuf> {
        find_uefi(secure_boot).map(|build| build.code)
    }

    /// VMs whose definitions cannot be read or are gone, and whose QEMUs run: they go on as they were started.
    fn add_those_that_run(&self) -> Vec<tokio::sync::oneshot::Receiver<()>> {
        let folders = fs::read_dir(&self.shared.config.runtime).into_iter().flatten().flatten();
        let mut waits = Vec::new();
        for folder in folders.filter_map(|entry| RuntimeFolder::open(&entry.path()).ok()) {
            let Ok(definition) = Definition::load(&folder.definition()) else { continue };
            if self.machines.taken(&definition).is_none() && Process::find(&folder).is_ok_and(|found| found.is_some()) {
                tracing::warn!(vm = definition.name, "it runs without a definition that can be read");
                let file = self.definition_file(&definition);
                self.machines.forget_problem(&file);
                waits.push(self.add(definition, file));
            }
        }
        waits
    }

    fn definition_file(&self, definition: &Definition) -> PathBuf {
        self.shared.config.definitions.join(format!("{}.toml", definition.name))
    }

    /// Adds a VM, and waits until it has dealt with what was left of an earlier run; none when it has gone again.
    async fn bring_in(&self, definition: Definition, file: PathBuf) -> Option<Vm> {
        let uuid = definition.uuid;
        // A driver that ended can only have panicked; its VM says so when it is asked.
        let _ = self.add(definition, file).await;
        self.machines.get(uuid)
    }

    fn add(&self, definition: Definition, file: PathBuf) -> tokio::sync::oneshot::Receiver<()> {
        let (vm, ready) = Vm::spawn(self.shared.clone(), definition, file);
        checkpoints::keep_time(&vm, self.jobs.downgrade());
        self.machines.insert(vm);
        ready
    }
}

impl WeakHost {
    /// The host, while anybody else has it.
    pub(crate) fn upgrade(&self) -> Option<Host> {
        let (shared, machines) = (self.shared.upgrade()?, self.machines.upgrade()?);
        Some(Host { shared, machines, jobs: self.jobs.upgrade()? })
    }
}

impl HostShared {
    /// All VMs.
    pub(crate) fn vms(&self) -> Vec<Vm> {
        self.machines.upgrade().map_or_else(Vec::new, |machines| machines.all())
    }

    pub(crate) async fn version(&self) -> Option<Version> {
        *self.version.get_or_init(|| Version::of(&self.qemu, self.config.deadlines.probe)).await
    }

    pub(crate) async fn probe(&self) -> AcceleratorReport {
        let probe = || accelerator::probe(&self.qemu, &self.config.runtime, self.config.deadlines.probe);
        self.probed.get_or_init(probe).await.clone()
    }
}

/// QEMU has another working folder than we.
fn absolute(path: &Path) -> Result<PathBuf, HostError> {
    std::path::absolute(path).map_err(|error| HostError::Io { path: path.into(), error })
}
