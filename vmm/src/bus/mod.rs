//! A VM's end of the bus (`docs/bus.md`): the port and the memory, handed out to whoever speaks its protocol.
//!
//! ```text
//!  agent in the guest                              QEMU                                   BusPort
//!  /dev/vport… ◀──▶ virtio-serial port ◀──▶ chardev on a socket that we bound ◀──▶ connect(): a stream
//!  PCI resource2 ◀─▶ ivshmem-plain     ◀──▶ descriptor 4, a sealed memfd       ◀──▶ connect(): the memory
//! ```
//!
//! Both belong to the QEMU process: whoever connects again, or after another gateway, finds the same memory as long as
//! the process lives. Nothing here knows what is said on the bus.
//!
//! * this file: [`BusPort`] and what is known of the port,
//! * `memory`: [`BusMemory`],
//! * `quiesce`: coming to rest before the VM's state is saved or replaced.

mod memory;
mod quiesce;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::engine::{BUS_PORT, Event, RuntimeFolder};

pub use memory::BusMemory;
pub(crate) use quiesce::AtRest;
use quiesce::Quiescer;
pub use quiesce::{Quiesce, QuiesceReason, QuiesceRequests};

/// What the kernel is asked to hold of what is sent; it takes 16 256 bytes then, about one frame of bulk data
/// (`docs/bus.md` 2): what is in there cannot be overtaken.
const SEND_BUFFER: usize = 8 * 1024;

/// How long QEMU may take to let go of the connections before this one.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// A VM's end of the bus. Cheap to clone; survives stops and starts of the VM.
///
/// One at a time may be connected: QEMU takes a second connection only when the first has ended.
#[derive(Debug, Clone)]
pub struct BusPort {
    shared: Arc<BusShared>,
}

/// What is known of a VM's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BusPortState {
    /// Counts the QEMU processes of the VM that this host has known, from 1; 0: none yet. With another process everything
    /// is another: connection and memory.
    pub generation: u64,
    /// Whether that process is there and has a port. One that has ended, or whose VM has no bus, has none.
    pub present: bool,
    /// Whether the processors run: while they do not, nobody in the guest can answer.
    pub vm_running: bool,
    /// Whether a process in the guest has the port open. QEMU tells at most one change per second: a port that was
    /// closed and opened again may have stayed open for all that is seen here.
    pub port_open: bool,
    /// Counts what took the guest's memory away under the agent: resets and loaded snapshots.
    pub resets: u64,
}

/// A connection to the port, and the memory of the same QEMU.
#[derive(Debug)]
pub struct BusConnection {
    /// [`BusPortState::generation`] of the QEMU at its other end.
    pub generation: u64,
    /// The bytes to and from the guest. Its end means that the connection is to be made anew, if the port is still
    /// there.
    pub stream: UnixStream,
    /// The memory, if the VM has any: the same for each connection of a generation.
    pub memory: Option<BusMemory>,
}

/// What a VM's handles and its driver share.
#[derive(Debug)]
pub(crate) struct BusShared {
    state: watch::Sender<BusPortState>,
    plug: Mutex<Option<Plug>>,
    quiescer: Quiescer,
}

/// Where the port and the memory of one QEMU are.
#[derive(Debug, Clone)]
struct Plug {
    generation: u64,
    folder: Arc<RuntimeFolder>,
    memory: Option<BusMemory>,
}

/// Keeps the port of one QEMU in reach; it is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Plugged {
    shared: Arc<BusShared>,
}

impl BusPort {
    pub(crate) fn new(shared: Arc<BusShared>) -> Self {
        Self { shared }
    }

    /// What is known of the port now.
    #[must_use]
    pub fn state(&self) -> BusPortState {
        *self.shared.state.borrow()
    }

    /// Follows what is known of the port.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<BusPortState> {
        self.shared.state.subscribe()
    }

    /// Connects to the port. Whether the guest has opened it does not matter: bytes wait until it does, and some of
    /// them may be left from before.
    ///
    /// The kernel holds about one frame of bulk data of what is sent, and no more.
    ///
    /// # Errors
    ///
    /// [`NotConnected`](io::ErrorKind::NotConnected): there is no QEMU with a port, or it has just ended.
    /// [`TimedOut`](io::ErrorKind::TimedOut): others are connected, or QEMU hangs. Others: its socket cannot be used.
    pub async fn connect(&self) -> io::Result<BusConnection> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the VM has no port now");
        let Plug { generation, folder, memory } = self.shared.plug().clone().ok_or_else(gone)?;
        let stream = timeout(CONNECT_DEADLINE, folder.connect_bus_port()).await??;
        rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER)?;
        // The socket of the next QEMU has the same path.
        if self.shared.plug().as_ref().is_none_or(|plug| plug.generation != generation) {
            return Err(gone());
        }
        Ok(BusConnection { generation, stream, memory })
    }

    /// The memory that the guest sees too, if the VM is on and has any.
    #[must_use]
    pub fn memory(&self) -> Option<BusMemory> {
        self.shared.plug().as_ref()?.memory.clone()
    }

    /// Takes over the answers to [`Quiesce`] from whoever had them before. Without anybody who takes them, a VM's state is
    /// saved and loaded without asking.
    #[must_use]
    pub fn quiesce_requests(&self) -> QuiesceRequests {
        self.shared.quiescer.requests()
    }
}

impl BusShared {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: watch::Sender::default(), plug: Mutex::default(), quiescer: Quiescer::default() })
    }

    /// A QEMU is there, which may have a port; [`set_port`](Self::set_port) tells.
    pub(crate) fn plug_in(self: &Arc<Self>, folder: Arc<RuntimeFolder>, memory: Option<BusMemory>) -> Plugged {
        self.state.send_modify(|state| {
            *state = BusPortState { generation: state.generation + 1, resets: state.resets, ..BusPortState::default() };
        });
        let generation = self.state.borrow().generation;
        *self.plug() = Some(Plug { generation, folder, memory });
        Plugged { shared: self.clone() }
    }

    /// Whether QEMU has the port, and the guest has opened it.
    pub(crate) fn set_port(&self, open: Option<bool>) {
        self.change(|state| (state.present, state.port_open) = (open.is_some(), open == Some(true)));
    }

    pub(crate) fn set_running(&self, running: bool) {
        self.change(|state| state.vm_running = running);
    }

    /// Has whoever speaks the bus come to rest; waits for that, but not long.
    pub(crate) async fn quiesce(&self, reason: QuiesceReason) -> AtRest {
        self.quiescer.quiesce(reason).await
    }

    /// The guest's memory is not what it was.
    pub(crate) fn count_reset(&self) {
        self.change(|state| state.resets += 1);
    }

    /// Takes from QEMU's events what concerns the port.
    pub(crate) fn note(&self, event: &Event) {
        match event.name.as_str() {
            "VSERPORT_CHANGE" if event.data["id"] == BUS_PORT => {
                self.set_port(Some(event.data["open"] == Value::Bool(true)));
            }
            "STOP" | "SUSPEND" | "SUSPEND_DISK" => self.set_running(false),
            "RESUME" | "WAKEUP" => self.set_running(true),
            "RESET" => self.count_reset(),
            _ => {}
        }
    }

    fn change(&self, change: impl FnOnce(&mut BusPortState)) {
        self.state.send_if_modified(|state| {
            let before = *state;
            change(state);
            *state != before
        });
    }

    fn plug(&self) -> MutexGuard<'_, Option<Plug>> {
        self.plug.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        *self.shared.plug() = None;
        self.shared.change(|state| (state.present, state.vm_running, state.port_open) = (false, false, false));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, data: Value) -> Event {
        Event { name: name.into(), data }
    }

    fn plugged() -> (Arc<BusShared>, BusPort, Plugged) {
        let shared = BusShared::new();
        let folder = Arc::new(RuntimeFolder::open(&std::env::temp_dir()).expect("a folder"));
        let plugged = shared.plug_in(folder, None);
        (shared.clone(), BusPort::new(shared), plugged)
    }

    #[test]
    fn events_become_what_is_known() {
        let (shared, port, _plugged) = plugged();
        shared.set_port(Some(false));
        shared.note(&event("RESUME", Value::Null));
        shared.note(&event("VSERPORT_CHANGE", json!({ "id": BUS_PORT, "open": true })));
        shared.note(&event("VSERPORT_CHANGE", json!({ "id": "another", "open": false })));
        shared.note(&event("RESET", json!({ "guest": true })));
        let expected = BusPortState { generation: 1, present: true, vm_running: true, port_open: true, resets: 1 };
        assert_eq!(port.state(), expected);
        shared.note(&event("STOP", Value::Null));
        shared.note(&event("VSERPORT_CHANGE", json!({ "id": BUS_PORT })));
        assert_eq!(port.state(), BusPortState { vm_running: false, port_open: false, ..expected });
    }

    #[test]
    fn what_changes_nothing_wakes_nobody() {
        let (shared, port, _plugged) = plugged();
        let mut watch = port.watch();
        watch.mark_unchanged();
        shared.set_running(false);
        assert!(!watch.has_changed().expect("the VM is there"));
        shared.set_running(true);
        assert!(watch.has_changed().expect("the VM is there"));
    }

    #[tokio::test]
    async fn each_qemu_is_another_generation_and_nobody_connects_to_one_that_is_gone() {
        let (shared, port, plugged) = plugged();
        shared.set_port(Some(true));
        shared.count_reset();
        drop(plugged);
        assert_eq!(port.state(), BusPortState { generation: 1, resets: 1, ..BusPortState::default() });
        assert!(port.memory().is_none());
        let error = port.connect().await.expect_err("there is no QEMU");
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
        let folder = Arc::new(RuntimeFolder::open(&std::env::temp_dir()).expect("a folder"));
        let memory = BusMemory::create(1).expect("memory");
        let _plugged = shared.plug_in(folder, Some(memory));
        assert_eq!((port.state().generation, port.state().resets), (2, 1));
        assert_eq!(port.memory().map(|memory| memory.size()), Some(1 << 20));
    }
}
