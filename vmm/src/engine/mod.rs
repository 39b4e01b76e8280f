//! QEMU: what it is told, its process, and its monitor protocol.
//!
//! * `command_line`: a [`Definition`](crate::Definition) → arguments, a pure value,
//! * `disk`: a disk → what makes its device and its bytes, likewise,
//! * `firmware`: the builds of UEFI that the host has, and each VM's variables,
//! * `network`: the host's end of a VM's network card,
//! * `tpm`: the process beside QEMU that is a VM's TPM,
//! * `runtime_folder`: the files by which a later gateway finds a VM's QEMU again,
//! * `version`: which QEMU it is, for the few things that depend on it,
//! * `process`: starting QEMU detached, watching it, ending it,
//! * `qmp`: commands with deadlines, events.

mod command_line;
mod disk;
mod firmware;
mod network;
mod process;
mod qmp;
mod runtime_folder;
mod tpm;
mod version;

pub(crate) use command_line::{
    BUS_CHARDEV, BUS_MEMORY_PCI_SLOT, BUS_PORT, DISPLAY_DEVICE, KEYBOARD_DEVICE, Launch, MONITORS_IN_ORDER,
    TABLET_DEVICE, arguments, cpu,
};
pub(crate) use disk::{device, node, node_name, parse_device_name, parse_node_name, tls_name, tls_object};
pub(crate) use firmware::{find as find_uefi, flash};
pub(crate) use network::{check_network, connect_network};
pub(crate) use process::{BUS_MEMORY_FD, Exit, Inherited, Process};
#[cfg(test)]
pub(crate) use qmp::tests::{obliging_qemu, refusing_qemu};
pub(crate) use qmp::{Event, Qmp, QmpError};
pub(crate) use runtime_folder::{Leftover, ProcessStamp, RuntimeFolder, boot_id};
pub(crate) use tpm::{TpmPlan, start_tpm};
pub(crate) use version::Version;
