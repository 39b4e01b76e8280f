//! The JSON bodies of the API, for both ends.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::{Change, DiskBus, DiskCache, DiskFormat, LeftImage, NewImage};
use zeroize::Zeroizing;

use crate::bus::BusStatus;
use crate::door::DoorStatus;
use crate::sessions::SessionInfo;

/// A VM as lists and `vm show` have it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmInfo {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// `created`, `running`, `paused`, `stopped`, `failed`, or a step between; `refused`: its definition cannot be read, and
    /// numbers of it are 0.
    pub state: String,
    /// Why it is in this state, when there is something to say.
    pub reason: Option<String>,
    /// What runs its processors: `kvm` or `tcg`.
    pub accelerator: Option<String>,
    /// Why that and not the other.
    pub accelerator_reason: Option<String>,
    /// QEMU's process.
    pub pid: Option<u32>,
    /// Since when it is in this state, in seconds since 1970.
    pub since: u64,
    /// Memory in MiB: always, or to start with.
    pub memory: u32,
    /// What it has now, in MiB, while it is on.
    pub assigned_memory: Option<u64>,
    /// How its memory follows the guest's need; none: it does not.
    pub dynamic_memory: Option<DynamicMemoryInfo>,
    /// Virtual processors.
    pub vcpus: u8,
    /// What was changed in its definition and waits for the next start.
    #[serde(default)]
    pub waiting_changes: Vec<Change>,
    /// Why its definition cannot be read, `FILE:LINE:COLUMN: reason`; it is not started until it can.
    #[serde(default)]
    pub definition_problem: Option<String>,
    /// Who is connected.
    pub sessions: Vec<SessionInfo>,
    /// How its bus stands; only where one VM is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<BusStatus>,
}

/// A sign of life of a guest's agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pong {
    /// From the question to its answer, in microseconds.
    pub round_trip_us: u64,
}

/// All VMs, and the definitions that were refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmList {
    /// The VMs.
    pub vms: Vec<VmInfo>,
    /// One line per refused definition file: `FILE:LINE:COLUMN: reason`.
    pub problems: Vec<String>,
}

/// The memory of the host and of all VMs. All amounts are MiB.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemoryOverview {
    /// The host; none while no VM with dynamic memory is on.
    pub host: Option<HostMemoryInfo>,
    /// The VMs.
    pub vms: Vec<VmMemoryInfo>,
}

/// The memory of the host, in MiB.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostMemoryInfo {
    /// All there is.
    pub total: u64,
    /// What could be used at once.
    pub available: u64,
    /// What stays free whatever VMs ask for.
    pub reserve: u64,
    /// What VMs have whose memory is always the same.
    pub fixed: u64,
    /// What VMs with dynamic memory share.
    pub pool: u64,
    /// What of it cannot be taken away from them.
    pub least: u64,
}

/// The memory of a VM, in MiB.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmMemoryInfo {
    /// The VM's name.
    pub vm: String,
    /// What it is doing.
    pub state: String,
    /// What it has, while it is on.
    pub assigned: Option<u64>,
    /// How that follows the guest's need; none: it does not.
    pub dynamic: Option<DynamicMemoryInfo>,
}

/// How a VM's memory follows its guest's need. Amounts in MiB; what is not known while it is off is none.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DynamicMemoryInfo {
    /// What it starts with.
    pub startup: u64,
    /// What it keeps under all circumstances.
    pub minimum: u64,
    /// What it never exceeds.
    pub maximum: u64,
    /// How much it should have beyond its need, in percent of the need.
    pub buffer: u16,
    /// How much it counts when memory is short, from 0 to 10000.
    pub weight: u16,
    /// What it uses.
    pub demand: Option<u64>,
    /// That in percent of what it has.
    pub pressure: Option<u64>,
    /// Its part of what there is.
    pub target: Option<u64>,
    /// In how much of the last ten seconds some program waited for memory, in percent.
    pub stalled: Option<f32>,
    /// How many programs were killed for want of memory since the guest started.
    pub killed: Option<u64>,
    /// Who told of the guest: `balloon` or `agent`.
    pub reporter: Option<String>,
    /// How many seconds ago.
    pub report_age: Option<u64>,
    /// Why it has what it has.
    pub reason: Option<String>,
}

/// A VM to create.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// The definition, in TOML.
    pub definition: String,
    /// The name of the file it comes from, for messages.
    #[serde(default)]
    pub file: Option<String>,
    /// Disk images to create with it.
    #[serde(default)]
    pub disks: Vec<NewImage>,
    /// Whether there is a system on its first disk already: it must be there, and of the format that is said.
    #[serde(default)]
    pub import: bool,
}

/// An entry of a library.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntryFolder {
    /// Its folder; absolute.
    pub folder: PathBuf,
}

/// A definition that was edited.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EditedVm {
    /// What is different, and from when on it counts.
    pub changes: Vec<Change>,
    /// The VM as it is.
    pub vm: VmInfo,
    /// Whether its definition was refused before.
    #[serde(default)]
    pub mended: bool,
}

/// A VM that was deleted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeletedVm {
    /// Its name.
    pub deleted: String,
    /// The images that it wrote to.
    pub images: Vec<LeftImage>,
}

/// Another name for something.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// The name.
    pub name: String,
}

/// A disk of a VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmDisk {
    /// What commands call it.
    pub id: String,
    /// The path or URL of its bytes; none in an empty drive.
    pub source: Option<String>,
    /// How they are laid out.
    pub format: DiskFormat,
    /// What it sits on.
    pub bus: DiskBus,
    /// Which controller of that bus, from 0.
    pub controller: u8,
    /// Its place on the controller; a virtio disk has none.
    pub unit: Option<u8>,
    /// The serial number that the guest reads.
    pub serial: Option<String>,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// Whether it is a drive for discs.
    pub cdrom: bool,
    /// Whether the guest has it only from its next start on.
    pub next_start: bool,
}

/// A disk to attach.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachDisk {
    /// The path or URL of its bytes; none for an empty drive.
    #[serde(default)]
    pub source: Option<String>,
    /// How they are laid out; none means what the name tells, or raw.
    #[serde(default)]
    pub format: Option<DiskFormat>,
    /// What it shall sit on.
    pub bus: DiskBus,
    /// Which controller of that bus, from 0.
    #[serde(default)]
    pub controller: u8,
    /// Its place on the controller; none means the first that is free.
    #[serde(default)]
    pub unit: Option<u8>,
    /// What commands shall call it; none means a name that is free.
    #[serde(default)]
    pub id: Option<String>,
    /// The serial number that the guest reads.
    #[serde(default)]
    pub serial: Option<String>,
    /// What the host keeps of it in memory.
    #[serde(default)]
    pub cache: DiskCache,
    /// Whether the guest may only read.
    #[serde(default)]
    pub readonly: bool,
    /// Whether it is a drive for discs.
    #[serde(default)]
    pub cdrom: bool,
}

/// A disk that was detached.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DetachedDisk {
    /// What it was called.
    pub id: String,
    /// The path or URL of its bytes, which stay.
    pub source: Option<String>,
    /// Whether the guest has it until its next start.
    pub next_start: bool,
    /// How many states of the VM are kept in it.
    #[serde(default)]
    pub states: usize,
}

/// What shall be in a drive for discs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeDisc {
    /// The path or URL of the disc; none for an empty drive.
    #[serde(default)]
    pub source: Option<String>,
    /// Whether the guest has locked the drive or not.
    #[serde(default)]
    pub force: bool,
}

/// A user as lists have it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UserInfo {
    /// The name.
    pub name: String,
    /// Whether an NT hash is kept, so that the user can log on by NLA.
    pub nla: bool,
    /// The VMs the user may use; none means all.
    pub vms: Option<Vec<String>>,
}

/// A user to add.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddUser {
    /// The name.
    pub name: String,
    /// The password.
    pub password: Zeroizing<String>,
    /// Whether to keep an NT hash; none means as the configuration says.
    #[serde(default)]
    pub nla: Option<bool>,
    /// The VMs the user may use; none means all.
    #[serde(default)]
    pub vms: Option<Vec<String>>,
}

/// The service as it is now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// The program's version.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// The addresses where RDP clients are awaited.
    pub listening: Vec<String>,
    /// SHA-256 of the certificate.
    pub fingerprint: String,
    /// Number of users.
    pub users: usize,
    /// Number of VMs.
    pub vms: usize,
    /// Number of sessions.
    pub sessions: usize,
    /// Connections before logon.
    pub door: DoorStatus,
}

/// How many sessions were told to end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ended {
    /// The number.
    pub ended: usize,
}
