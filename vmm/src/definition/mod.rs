//! What a virtual machine is: one TOML file each, checked when it is read.
//!
//! * this file, `disk`, `source`: the values,
//! * [`parse`](Definition::parse): text → [`Definition`], or [`DefinitionError`] with file, line and column,
//! * `memory`: memory that is always the same, or follows the guest's need,
//! * `check`, `check_disks`: what no value may say,
//! * `write`: [`Definition`] → text,
//! * `changes`: what is different between two of them, and from when on that counts,
//! * `file`: a definition that changes together with its file,
//! * `folder_watch`: files that somebody else changes.

mod changes;
mod check;
mod check_disks;
mod cpu;
mod disk;
mod file;
mod firmware;
mod folder_watch;
mod memory;
mod network;
mod parse;
mod quoted;
mod source;
mod write;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) use crate::files::{make_folder, replace_file, sync_folder};
pub use changes::{Change, When};
pub use check::InvalidDefinition;
pub use cpu::{Cpu, Topology};
pub use disk::{Controllers, Disk, DiskBus, DiskCache, DiskFormat, IdeModel, ScsiModel};
pub(crate) use file::DefinitionFile;
pub use file::{EditDefinition, EditError};
pub use firmware::{Firmware, Tpm, TpmModel};
pub(crate) use folder_watch::FolderWatch;
pub use memory::{DynamicMemory, MEMORY_BUFFER, MEMORY_WEIGHT, MemoryDevices};
pub use network::{Forward, ForwardProtocol, InterfaceName, InvalidNetwork, Network, NetworkCard, NetworkMode};
pub use parse::DefinitionError;
pub(crate) use parse::read_text;
pub(crate) use quoted::quoted_in;
pub use source::{DiskSource, InvalidUrl, NbdServer, Remote, Tls};

/// Longest name of a VM, in bytes.
pub(crate) const MAX_NAME: usize = 64;
/// Least and most memory of a VM, in MiB.
pub(crate) const MEMORY_MIB: std::ops::RangeInclusive<u32> = 16..=1024 * 1024;
/// Fewest and most virtual processors of a VM.
pub const VCPUS: std::ops::RangeInclusive<u8> = 1..=32;
/// Fewest and most monitors of a VM: what virtio-gpu has scanouts for.
pub const MONITORS: std::ops::RangeInclusive<u8> = 1..=16;
/// Least and most memory that a VM's bus shares with the host, in MiB; always a power of two, as the guest finds it in a
/// PCI device.
pub const BUS_MEMORY_MIB: std::ops::RangeInclusive<u32> = 1..=1024;
/// Least and most minutes between two checkpoints that are taken by the clock.
pub const CHECKPOINT_MINUTES: std::ops::RangeInclusive<u32> = 1..=7 * 24 * 60;
/// Fewest and most of them that are kept.
pub const CHECKPOINTS_KEPT: std::ops::RangeInclusive<u16> = 1..=100;

/// A virtual machine as its owner wants it.
///
/// A value that came from [`parse`](Self::parse) has been checked; one built in code is checked by
/// [`validate`](Self::validate) before anything is made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// What people call it; unique on a host without regard to case, and the stem of its file's name.
    pub name: String,
    /// What programs call it; never changes.
    pub uuid: Uuid,
    /// Memory in MiB: always, or to start with.
    pub memory: u32,
    /// How it follows the guest's need; none: it does not.
    pub dynamic_memory: Option<DynamicMemory>,
    /// Virtual processors.
    pub vcpus: u8,
    /// What they look like.
    pub cpu: Cpu,
    /// How the processors are run.
    pub accelerator: Accelerator,
    /// Most monitors the guest may have at once.
    pub monitors: u8,
    /// Its network card, and what that is connected to.
    pub network: Network,
    /// Its channel to the agent in the guest.
    pub bus: Bus,
    /// How a session reaches the guest.
    pub session: Session,
    /// When checkpoints are taken by the clock, if they are.
    pub checkpoints: Option<CheckpointSchedule>,
    /// What its processors run first.
    pub firmware: Firmware,
    /// Its TPM, if it has one.
    pub tpm: Option<Tpm>,
    /// What the firmware starts.
    pub boot: Boot,
    /// What its disks sit on.
    pub controllers: Controllers,
    /// Disks and drives, in the order the firmware tries them.
    pub disks: Vec<Disk>,
}

impl Definition {
    /// A VM of 512 MiB, one processor, one monitor, a NAT network and a bus that starts its firmware and has no disk.
    #[must_use]
    pub fn new(name: impl Into<String>, uuid: Uuid) -> Self {
        Self {
            name: name.into(),
            uuid,
            memory: 512,
            dynamic_memory: None,
            vcpus: 1,
            cpu: Cpu::default(),
            accelerator: Accelerator::Auto,
            monitors: 1,
            network: Network::default(),
            bus: Bus::default(),
            session: Session::default(),
            checkpoints: None,
            firmware: Firmware::Bios,
            tpm: None,
            boot: Boot::Firmware,
            controllers: Controllers::default(),
            disks: Vec::new(),
        }
    }
}

/// How the processors of a VM are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// By the hardware where a probe shows that it works, else by translation.
    Auto,
    /// By the hardware; the VM does not start without.
    Kvm,
    /// By translation.
    Tcg,
}

/// The channel between the host and the agent in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bus {
    /// Whether the VM has the devices of it.
    pub enabled: bool,
    /// Memory that both ends see, in MiB; 0: none, and everything goes through the port.
    pub memory: u32,
}

impl Default for Bus {
    fn default() -> Self {
        Self { enabled: true, memory: 64 }
    }
}

/// How a session reaches the guest, service by service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Session {
    /// Keyboard, pointer and touch.
    pub input: Provider,
}

/// Which way a service of a session takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The better one of those that are there.
    #[default]
    Auto,
    /// The VM's virtual devices only.
    Hardware,
    /// The agent in the guest only.
    Bus,
}

/// Checkpoints that are taken by the clock, while the VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointSchedule {
    /// Minutes from one to the next.
    pub every: u32,
    /// How many are kept; the oldest goes when there is one more.
    pub keep: u16,
}

/// What a VM's firmware starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// What it finds on the disks.
    Firmware,
    /// A kernel from the host.
    DirectKernel {
        /// The kernel: an ELF with a PVH note, or a bzImage.
        kernel: PathBuf,
        /// The initial file system.
        initrd: Option<PathBuf>,
        /// The command line of the kernel.
        cmdline: String,
    },
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Hardware => "hardware",
            Self::Bus => "bus",
        })
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}
