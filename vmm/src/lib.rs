//! Virtual machines on QEMU: what they are, how they live, what they show.
//!
//! ```text
//! Host ──▶ Vm ──▶ lifecycle::driver ──▶ engine (process, QMP) ──▶ QEMU
//!           ├──▶ Console, Viewer ◀── display (D-Bus, shared pictures) ◀──┤
//!           └──▶ BusPort ◀────────── bus (port, shared memory) ◀─────────┘
//! ```
//!
//! * `definition`: a VM as a TOML file,
//! * `host`: all VMs; takes back QEMUs that outlived the gateway,
//! * `vm`: the handle everybody else uses,
//! * `lifecycle`: states, requests, and the one task per VM that changes anything,
//! * `memory`: how much memory each guest has,
//! * `engine`: QEMU's command line as a value, its process, its monitor protocol,
//! * `accelerator`: whether KVM really works here,
//! * `checkpoints`: states that a VM can go back to, as people see them,
//! * `disks`: images that no VM has to run for: made, described, converted, resized,
//! * `library`: VMs that are ready to be started, and making them,
//! * `jobs`: what takes minutes: progress, cancelling, and what a killed gateway left,
//! * `again`: those that begin again with the next gateway,
//! * `files`: files that are whole or not there,
//! * `display`: pictures and cursors out of QEMU, keys and pointers into it,
//! * `bus`: the port and the memory by which the agent in the guest is reached.
//!
//! Nothing here knows RDP; what passes to and from a remote desktop are the nouns of `console`.

mod accelerator;
mod again;
mod bus;
mod checkpoints;
mod definition;
mod disks;
mod display;
mod engine;
pub mod files;
#[doc(hidden)]
pub mod fuzz_oracle;
mod host;
mod jobs;
mod library;
mod lifecycle;
pub mod memory;
mod vm;

pub use accelerator::AcceleratorReport;
pub use bus::{BusConnection, BusMemory, BusPort, BusPortState, Quiesce, QuiesceReason, QuiesceRequests};
pub use checkpoints::{Checkpoint, CheckpointError, CheckpointTree, Checkpoints, NewCheckpoint};
pub use definition::{
    Accelerator, BUS_MEMORY_MIB, Boot, Bus, CHECKPOINT_MINUTES, CHECKPOINTS_KEPT, Change, CheckpointSchedule,
    Controllers, Cpu, Definition, DefinitionError, Disk, DiskBus, DiskCache, DiskFormat, DiskSource, DynamicMemory,
    EditDefinition, EditError, Firmware, Forward, ForwardProtocol, IdeModel, InterfaceName, InvalidDefinition,
    InvalidNetwork, InvalidUrl, MEMORY_BUFFER, MEMORY_WEIGHT, MONITORS, MemoryDevices, NbdServer, Network, NetworkCard,
    NetworkMode, Provider, Remote, ScsiModel, Session, Tls, Topology, Tpm, TpmModel, VCPUS, When,
};
pub use disks::{
    BackingFile, BackingImage, BlockDevice, Convert, DiskError, Disks, ImageInfo, ImageSnapshot, ImageUser, Layout,
    LeftImage, Made, MoveDisk, Moved, NewImage, NewSize, Preallocation, Resize, TreeNode,
};
pub use display::{Console, InputFull, Viewer};
pub use host::{Deadlines, Host, HostConfig, HostError, RefusedVm};
pub use jobs::{Job, JobHandle, JobId, JobKind, JobState, Jobs, JobsError, NewJob, Progress, Unfinished};
pub use library::{FromEntry, LibraryError};
pub use lifecycle::{Cause, InvalidTag, Refusal, Request, RequestError, Snapshot, SnapshotTag, Status, VmState};
pub use vm::Vm;
