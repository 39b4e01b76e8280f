//! A process that opens images for us: QEMU's storage daemon. What it says goes through its own eyes, not through those of
//! the QEMU that runs the guest, and costs that one nothing.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::nbd::Export;
use crate::definition::Disk;
use crate::disks::is_block_device;
use crate::engine::{Qmp, QmpError, RuntimeFolder, node, tls_name, tls_object};
use crate::jobs::Leftover;

/// One command of its monitor: it opens files, on shares too.
const DEADLINE: Duration = Duration::from_secs(30);

/// A storage daemon; it ends with this value.
#[derive(Debug)]
pub(super) struct Daemon {
    qmp: Qmp,
    child: Child,
    folder: RuntimeFolder,
    /// Where it awaits NBD clients: one disk's, as several of a VM may move at a time.
    socket: String,
}

impl Daemon {
    /// Starts it for a disk, which nobody else has one for; its socket is in the runtime folder of the VM.
    pub(super) async fn start(qemu: &Path, folder: RuntimeFolder, disk: &str) -> io::Result<Self> {
        let program = storage_daemon(qemu);
        let socket = format!("move-{disk}.sock");
        let (monitor, listener) = (StdStream::pair()?, folder.listen(&socket)?);
        let child = spawn(&program, monitor.1, listener)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot run {}: {error}", program.display())))?;
        monitor.0.set_nonblocking(true)?;
        let (qmp, _) = Qmp::open(UnixStream::from_std(monitor.0)?, DEADLINE).await.map_err(io::Error::other)?;
        Ok(Self { qmp, child, folder, socket })
    }

    /// What is left of it when nobody is there to end it.
    pub(super) fn leftover(&self) -> Option<Leftover> {
        Leftover::program(self.child.id()?).ok()
    }

    pub(super) fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// Opens a disk for reading, also while another writes to it, and serves it. What was open under the name is closed.
    pub(super) async fn show(&self, disk: &Disk, name: &str) -> Result<(), QmpError> {
        self.hide(name).await?;
        let thread = format!("{name}-thread");
        // There from the last time, perhaps.
        let _ = self.qmp.execute("object-add", json!({ "qom-type": "iothread", "id": thread })).await;
        self.open(&Disk { readonly: true, ..disk.clone() }, name, true).await?;
        let export = json!({ "type": "nbd", "id": name, "node-name": name, "name": name, "iothread": thread });
        self.qmp.execute("block-export-add", export).await.map(drop)
    }

    /// Opens a disk under a name.
    pub(super) async fn open(&self, disk: &Disk, name: &str, beside_a_writer: bool) -> Result<(), QmpError> {
        // Its certificates are named after the disk: of two nodes of one daemon each needs its own.
        let disk = Disk { id: name.into(), ..disk.clone() };
        if let Some(object) = tls_object(&disk) {
            let _ = self.qmp.execute("object-del", json!({ "id": tls_name(name) })).await;
            self.qmp.execute("object-add", object).await?;
        }
        let mut arguments = node(&disk, name, is_block_device);
        if beside_a_writer {
            look_on(&mut arguments);
        }
        self.qmp.execute("blockdev-add", arguments).await.map(drop)
    }

    /// Closes what is open under a name.
    pub(super) async fn hide(&self, name: &str) -> Result<(), QmpError> {
        let shown = self.qmp.execute("query-block-exports", json!({})).await?;
        let is_shown = |export: &Value| export["id"] == name;
        if shown.as_array().is_some_and(|exports| exports.iter().any(is_shown)) {
            self.qmp.execute("block-export-del", json!({ "id": name, "mode": "hard" })).await?;
            // It goes once its clients are gone, which they are.
            self.until_gone(name).await?;
            self.qmp.execute("blockdev-del", json!({ "node-name": name })).await?;
        }
        Ok(())
    }

    /// A connection to what is shown under a name.
    pub(super) async fn connect(&self, name: &str, context: Option<&str>) -> io::Result<Export> {
        Export::open(self.folder.connect(&self.socket).await?, name, context).await
    }

    /// Ends it in order: what it wrote is on the disks when this returns.
    pub(super) async fn quit(mut self) -> io::Result<()> {
        // The answer may be lost in its end, which is what counts.
        let _ = self.qmp.execute("quit", json!({})).await;
        let status = tokio::time::timeout(DEADLINE, self.child.wait()).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("the storage daemon ended with {status}"))) }
    }

    async fn until_gone(&self, name: &str) -> Result<(), QmpError> {
        let gone = async {
            loop {
                let shown = self.qmp.execute("query-block-exports", json!({})).await?;
                if !shown.as_array().is_some_and(|exports| exports.iter().any(|export| export["id"] == name)) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let silent = |_| QmpError::TimedOut { command: "block-export-del".into(), deadline: DEADLINE };
        tokio::time::timeout(DEADLINE, gone).await.map_err(silent)?
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.folder.remove(&self.socket);
    }
}

/// Makes a node one that takes no locks: whoever fills an image lets nobody else read it.
fn look_on(node: &mut Value) {
    let file = &mut node["file"];
    file["read-only"] = true.into();
    if matches!(file["driver"].as_str(), Some("file" | "host_device")) {
        file["locking"] = "off".into();
    }
    if let Some(node) = node.as_object_mut() {
        node.remove("discard");
    }
}

fn spawn(program: &Path, monitor: StdStream, listener: UnixListener) -> io::Result<Child> {
    Command::new(program)
        // Both are descriptors that it has from us.
        .args(["--chardev", "socket,id=monitor,fd=0", "--monitor", "chardev=monitor"])
        .args(["--nbd-server", "addr.type=fd,addr.str=1,max-connections=0"])
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(monitor)))
        .stdout(Stdio::from(OwnedFd::from(listener)))
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}

/// The storage daemon beside `qemu`, else the one on the path.
pub(crate) fn storage_daemon(qemu: &Path) -> PathBuf {
    let beside = qemu.with_file_name("qemu-storage-daemon");
    let is_there =
        qemu.parent().is_some_and(|folder| !folder.as_os_str().is_empty()) && fs::exists(&beside).unwrap_or(false);
    if is_there { beside } else { "qemu-storage-daemon".into() }
}
