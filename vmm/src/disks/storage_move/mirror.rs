//! What is asked of the QEMU or storage daemon that copies.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::compare::GRAIN;
use super::nbd::Export;
use super::ranges::Ranges;
use crate::definition::Disk;
use crate::disks::is_block_device;
use crate::engine::{Qmp, QmpError, RuntimeFolder, node, parse_node_name, tls_name, tls_object};

/// How often a job is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// How soon what must go in a moment is looked for again, and how long that may take.
const TRY_AGAIN: Duration = Duration::from_millis(5);
const MOMENT: Duration = Duration::from_secs(60);
/// What the names of our bitmaps begin with.
const BITMAP: &str = "fanlight-written-";
/// What is exported to read them, and the name QEMU has the socket by.
const EXPORT: &str = "fanlight-written";
const SOCKET_FD: &str = "fanlight-move";
/// The socket in the runtime folder.
const SOCKET: &str = "written.sock";

/// A copy that QEMU keeps up to date.
#[derive(Debug, Clone)]
pub(super) struct Mirror {
    /// What QEMU calls the job.
    pub(super) job: String,
    pub(super) source: String,
    pub(super) target: String,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// There is none.
    Gone,
    /// It copies.
    Copying { done: u64, total: u64 },
    /// Both places are the same, and each write goes to both.
    InStep,
    /// It ended by itself.
    Ended { problem: Option<String> },
}

impl Mirror {
    /// Opens the target and begins to copy.
    pub(super) async fn start(&self, qmp: &Qmp, target: &Disk, rate: Option<u64>) -> Result<(), QmpError> {
        // Its certificates have their own name as long as the disk is in two places.
        let named = Disk { id: self.target.clone(), ..target.clone() };
        if let Some(object) = tls_object(&named) {
            qmp.execute("object-add", object).await?;
        }
        qmp.execute_within(MOMENT, "blockdev-add", node(&named, &self.target, is_block_device)).await?;
        self.record(qmp, 0).await?;
        let arguments = json!({
            "job-id": self.job,
            "device": self.source,
            "target": self.target,
            "sync": "full",
            "copy-mode": "write-blocking",
            "speed": rate.unwrap_or(0),
            "on-source-error": "report",
            "on-target-error": "report",
            "auto-dismiss": false,
        });
        qmp.execute_within(MOMENT, "blockdev-mirror", arguments).await.map(drop)
    }

    /// Begins to copy what an overlay has into the file below, which QEMU has open already.
    pub(super) async fn start_commit(&self, qmp: &Qmp) -> Result<(), QmpError> {
        let arguments = json!({
            "job-id": self.job,
            "device": self.source,
            "base-node": self.target,
            "on-error": "report",
            "auto-dismiss": false,
        });
        qmp.execute_within(MOMENT, "block-commit", arguments).await.map(drop)
    }

    pub(super) async fn state(&self, qmp: &Qmp) -> Result<State, QmpError> {
        let jobs = qmp.execute("query-jobs", json!({})).await?;
        let job = jobs.as_array().and_then(|jobs| jobs.iter().find(|job| job["id"] == self.job.as_str()));
        let Some(job) = job else { return Ok(State::Gone) };
        let number = |key: &str| job[key].as_u64().unwrap_or(0);
        Ok(match job["status"].as_str() {
            // A job in step stands by for as long as QEMU drains the disk for somebody else.
            Some("ready" | "standby") => State::InStep,
            Some("concluded") => State::Ended { problem: job["error"].as_str().map(Into::into) },
            _ => State::Copying { done: number("current-progress"), total: number("total-progress") },
        })
    }

    /// Waits until both places are the same.
    pub(super) async fn until_in_step(&self, qmp: &Qmp, seen: impl Fn(u64, u64)) -> Result<(), Stopped> {
        loop {
            match self.state(qmp).await? {
                State::InStep => return Ok(()),
                State::Copying { done, total } => seen(done, total),
                State::Ended { problem } => return Err(Stopped::Ended(problem)),
                State::Gone => return Err(Stopped::Ended(None)),
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Has QEMU go over to the target.
    pub(super) async fn complete(&self, qmp: &Qmp) -> Result<(), Stopped> {
        qmp.execute("block-job-complete", json!({ "device": self.job })).await?;
        match self.end(qmp).await? {
            None => Ok(()),
            Some(problem) => Err(Stopped::Ended(Some(problem))),
        }
    }

    /// Ends the copy where it is, if it still goes on, and closes the target.
    pub(super) async fn cancel(&self, qmp: &Qmp) -> Result<(), QmpError> {
        self.cancel_commit(qmp).await?;
        self.forget_written(qmp).await?;
        close(qmp, &self.target).await
    }

    /// The same where the target is what the source stands on.
    pub(super) async fn cancel_commit(&self, qmp: &Qmp) -> Result<(), QmpError> {
        if !matches!(self.state(qmp).await?, State::Gone | State::Ended { .. }) {
            qmp.execute("block-job-cancel", json!({ "device": self.job, "force": true })).await?;
        }
        self.end(qmp).await.map(drop)
    }

    /// Closes the source, which nothing uses any more.
    pub(super) async fn release(&self, qmp: &Qmp) -> Result<(), QmpError> {
        self.end(qmp).await?;
        self.forget_written(qmp).await?;
        close(qmp, &self.source).await?;
        self.release_below(qmp).await
    }

    /// The same where the target is what the source stood on.
    pub(super) async fn release_commit(&self, qmp: &Qmp) -> Result<(), QmpError> {
        self.end(qmp).await?;
        close(qmp, &self.source).await
    }

    /// Closes what the source stood on, where that has a node of its own: it was the disk once.
    async fn release_below(&self, qmp: &Qmp) -> Result<(), QmpError> {
        let Some((disk, source)) = parse_node_name(&self.source) else { return Ok(()) };
        let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true })).await?;
        let names = nodes.as_array().into_iter().flatten().filter_map(|node| node["node-name"].as_str());
        let older = |name: &&str| parse_node_name(name).is_some_and(|(of, number)| of == disk && number < source);
        for name in names.filter(older) {
            close(qmp, name).await?;
        }
        Ok(())
    }

    /// Has what was written to the target reach its file, tables and all: who looks at it from outside sees that only.
    /// There is no other command for it while the job is the target's.
    pub(super) async fn flush_target(&self, qmp: &Qmp) -> Result<(), QmpError> {
        let line = json!({ "command-line": format!("qemu-io {} flush", self.target) });
        qmp.execute_within(MOMENT, "human-monitor-command", line).await.map(drop)
    }

    /// Waits for the job's end; what went wrong.
    async fn end(&self, qmp: &Qmp) -> Result<Option<String>, QmpError> {
        let deadline = Instant::now() + MOMENT;
        loop {
            match self.state(qmp).await? {
                State::Gone => return Ok(None),
                State::Ended { problem } => {
                    qmp.execute("job-dismiss", json!({ "id": self.job })).await?;
                    return Ok(problem);
                }
                _ if Instant::now() > deadline => {
                    return Err(QmpError::TimedOut { command: "block-job-complete".into(), deadline: MOMENT });
                }
                _ => sleep(TRY_AGAIN).await,
            }
        }
    }

    /// Begins to record what the guest writes.
    async fn record(&self, qmp: &Qmp, number: u32) -> Result<(), QmpError> {
        qmp.execute("block-dirty-bitmap-add", self.bitmap(number)).await.map(drop)
    }

    fn bitmap(&self, number: u32) -> Value {
        json!({ "node": self.source, "name": format!("{BITMAP}{number}"), "granularity": GRAIN })
    }

    /// The numbers of the bitmaps that there are, in their order.
    async fn bitmaps(&self, qmp: &Qmp) -> Result<Vec<u32>, QmpError> {
        let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true })).await?;
        let source =
            nodes.as_array().and_then(|nodes| nodes.iter().find(|node| node["node-name"] == self.source.as_str()));
        let bitmaps = source.and_then(|node| node["dirty-bitmaps"].as_array()).into_iter().flatten();
        let number = |bitmap: &Value| bitmap["name"].as_str()?.strip_prefix(BITMAP)?.parse().ok();
        let mut numbers: Vec<u32> = bitmaps.filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    async fn forget_written(&self, qmp: &Qmp) -> Result<(), QmpError> {
        let _server = qmp.nbd_server().await;
        // There is none if nobody looked.
        let _ = qmp.execute("nbd-server-stop", json!({})).await;
        for number in self.bitmaps(qmp).await? {
            self.forget(qmp, number).await?;
        }
        Ok(())
    }

    async fn forget(&self, qmp: &Qmp, number: u32) -> Result<(), QmpError> {
        let bitmap = json!({ "node": self.source, "name": format!("{BITMAP}{number}") });
        qmp.execute("block-dirty-bitmap-remove", bitmap).await.map(drop)
    }

    /// What the guest has written since this was asked last, or since the copy began. It and all before it has been
    /// flushed to the source when this returns.
    pub(super) async fn take_written(&self, qmp: &Qmp, folder: &RuntimeFolder) -> io::Result<Ranges> {
        let numbers = self.bitmaps(qmp).await.map_err(io::Error::other)?;
        let next = numbers.last().map_or(0, |last| last + 1);
        let mut actions = vec![json!({ "type": "block-dirty-bitmap-add", "data": self.bitmap(next) })];
        actions.extend(numbers.iter().map(|number| {
            json!({ "type": "block-dirty-bitmap-disable",
                    "data": { "node": self.source, "name": format!("{BITMAP}{number}") } })
        }));
        qmp.execute("transaction", json!({ "actions": actions })).await.map_err(io::Error::other)?;
        let ranges = self.read(qmp, folder, &numbers).await;
        for number in numbers {
            self.forget(qmp, number).await.map_err(io::Error::other)?;
        }
        ranges
    }

    /// Reads bitmaps that record nothing any more.
    async fn read(&self, qmp: &Qmp, folder: &RuntimeFolder, numbers: &[u32]) -> io::Result<Ranges> {
        let _server = qmp.nbd_server().await;
        // One that an earlier gateway left listens where nobody hears it.
        let _ = qmp.execute("nbd-server-stop", json!({})).await;
        let listener = folder.listen(SOCKET)?;
        let named = json!({ "fdname": SOCKET_FD });
        qmp.execute_with_fd("getfd", named, listener.as_fd()).await.map_err(io::Error::other)?;
        let address = json!({ "addr": { "type": "fd", "data": { "str": SOCKET_FD } } });
        qmp.execute("nbd-server-start", address).await.map_err(io::Error::other)?;
        let names: Vec<String> = numbers.iter().map(|number| format!("{BITMAP}{number}")).collect();
        let export = json!({ "type": "nbd", "id": EXPORT, "node-name": self.source, "name": EXPORT, "bitmaps": names });
        qmp.execute("block-export-add", export).await.map_err(io::Error::other)?;
        let read = async {
            let mut written = Ranges::default();
            for name in &names {
                let context = format!("qemu:dirty-bitmap:{name}");
                let mut export = Export::open(folder.connect(SOCKET).await?, EXPORT, Some(&context)).await?;
                let extents = export.extents().await?;
                extents
                    .into_iter()
                    .filter(|extent| extent.flags & 1 != 0)
                    .for_each(|dirty| written.insert(dirty.range));
            }
            Export::open(folder.connect(SOCKET).await?, EXPORT, None).await?.flush().await?;
            io::Result::Ok(written)
        };
        let read = read.await;
        // It takes its export and its clients with it.
        qmp.execute("nbd-server-stop", json!({})).await.map_err(io::Error::other)?;
        folder.remove(SOCKET);
        read
    }
}

/// Why a copy is no copy any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stopped {
    /// QEMU does not answer as it should.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// It ended by itself.
    #[error("{}", .0.as_deref().unwrap_or("QEMU does not know why"))]
    Ended(Option<String>),
}

/// The node that a disk's device is attached to.
pub(super) async fn attached(qmp: &Qmp, disk: &str) -> Result<Option<String>, QmpError> {
    let blocks = qmp.execute("query-block", json!({})).await?;
    // A device without a backend of its own is called by its name, another by its path.
    let path = format!("/peripheral/{disk}/");
    let is_it = |block: &&Value| block["qdev"].as_str().is_some_and(|qdev| qdev == disk || qdev.contains(&path));
    let block = blocks.as_array().and_then(|blocks| blocks.iter().find(is_it));
    Ok(block.and_then(|block| block["inserted"]["node-name"].as_str()).map(Into::into))
}

/// Closes a node, if it is there, once nothing uses it.
async fn close(qmp: &Qmp, name: &str) -> Result<(), QmpError> {
    let deadline = Instant::now() + MOMENT;
    loop {
        let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true })).await?;
        if !nodes.as_array().is_some_and(|nodes| nodes.iter().any(|node| node["node-name"] == name)) {
            break;
        }
        match qmp.execute("blockdev-del", json!({ "node-name": name })).await {
            Err(QmpError::Refused { .. }) if Instant::now() < deadline => sleep(TRY_AGAIN).await,
            done => drop(done?),
        }
    }
    // Few have certificates.
    let _ = qmp.execute("object-del", json!({ "id": tls_name(name) })).await;
    Ok(())
}
