//! QEMU: what it is told, its process, and its monitor protocol.
//!
//! * `command_line`: a [`Definition`](crate::Definition) → arguments, a pure value,
//! * `runtime_folder`: the files by which a later gateway finds a VM's QEMU again,
//! * `process`: starting QEMU detached, watching it, ending it,
//! * `qmp`: commands with deadlines, events.

mod command_line;
mod process;
mod qmp;
mod runtime_folder;

pub(crate) use command_line::{
    BUS_CHARDEV, BUS_MEMORY_PCI_SLOT, BUS_PORT, DISPLAY_DEVICE, KEYBOARD_DEVICE, Launch, TABLET_DEVICE, arguments, cpu,
};
pub(crate) use process::{BUS_MEMORY_FD, Exit, Inherited, Process};
pub(crate) use qmp::{Event, Qmp, QmpError};
pub(crate) use runtime_folder::{Leftover, RuntimeFolder};
