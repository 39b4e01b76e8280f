//! Saving, loading and deleting, as jobs of QEMU.
//!
//! ```text
//! snapshot-save ──▶ created ─▶ running ─▶ … ─▶ concluded ──▶ its error, if any; job-dismiss
//! ```
//!
//! QEMU (10.0) saves and loads in its main loop: meanwhile the processors stand still, it answers only when it happens to
//! wait for a disk, and there is no way to end a job but to end QEMU.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::{Part, Snapshot, SnapshotDisk, SnapshotTag, assemble};
use crate::definition::Definition;
use crate::disks::is_block_device;
use crate::engine::{Qmp, QmpError, node, node_name};
use crate::lifecycle::disks::Drives;

const SAVE: &str = "snapshot-save";
const LOAD: &str = "snapshot-load";
const DELETE: &str = "snapshot-delete";
/// Kinds of migration: what is in the way of the first need not be of the second.
const ELSEWHERE: &str = "normal";
const IN_PLACE: &str = "cpr-reboot";
/// What the names of our jobs begin with.
const JOB: &str = "fanlight-";
/// How often a state is loaded before it counts as one that cannot be.
///
/// With several monitors one load in ten goes wrong ("Missing section footer"), because QEMU reads a byte from a wrong place
/// ([`Launch::allocator`](crate::engine::Launch::allocator)): for the second monitor, the lowest of the address of a
/// picture. Another load puts that elsewhere. If that byte happened to be zero when the state was saved, nine in ten do.
const LOADS: u32 = 30;
/// Bytes of what QEMU is given to keep between two loads, and how much one is larger than the other before: it would put
/// the pictures where those of the load before last were, and go back and forth between two places.
const KEPT: Range<usize> = 64..384;
const KEPT_STEP: usize = 16;
/// First and longest time between two looks at a job.
const LOOK_AFTER: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));

/// Carries out snapshots of one QEMU.
#[derive(Debug, Clone)]
pub(in crate::lifecycle) struct Jobs {
    pub(in crate::lifecycle) qmp: Arc<Qmp>,
    /// The disks that belong to the state. The first keeps the memory, too.
    pub(in crate::lifecycle) disks: Vec<SnapshotDisk>,
    /// What the disks are.
    pub(in crate::lifecycle) definition: Arc<Definition>,
    /// How long each may take.
    pub(in crate::lifecycle) deadline: Duration,
}

impl Jobs {
    /// The snapshots of the VM, oldest first.
    pub(in crate::lifecycle) async fn list(&self) -> Result<Vec<Snapshot>, QmpError> {
        let (names, nodes) = (self.names().await?, self.nodes().await?);
        let parts = names.iter().map(|name| parts(&nodes, name));
        Ok(assemble(self.disks.iter().zip(parts)))
    }

    /// The same, once a job that an earlier gateway began has ended.
    pub(in crate::lifecycle) async fn list_settled(&self) -> Result<Vec<Snapshot>, QmpError> {
        let silent = || QmpError::TimedOut { command: "query-jobs".into(), deadline: self.deadline };
        timeout(self.deadline, self.wait_for_others()).await.map_err(|_| silent())??;
        self.list().await
    }

    /// Saves the state as it is now. Processors that run stand still until it is done.
    ///
    /// Where QEMU went back to a state, it puts the next in its place, and takes the old one's clusters one by one from the
    /// counts of what is used, each time waiting for the disk. It counts later instead: when it is done, or, if it dies
    /// before, when the image is opened next.
    pub(in crate::lifecycle) async fn save(&self, tag: &SnapshotTag) -> Result<(), QmpError> {
        let counts_later = self.count(Some(true)).await;
        if let Err(error) = &counts_later {
            tracing::debug!(%error, "QEMU counts while it saves");
        }
        let saved = self.save_in_place(tag).await;
        // A QEMU that is silent counts later until the next.
        if counts_later.is_ok()
            && !matches!(saved, Err(QmpError::TimedOut { .. }))
            && let Err(error) = self.count(None).await
        {
            tracing::warn!(%error, "QEMU goes on to count clusters late");
        }
        saved
    }

    /// Has QEMU count clusters `later` in the image that keeps the memory; none: as the image says.
    async fn count(&self, later: Option<bool>) -> Result<(), QmpError> {
        let (names, nodes) = (self.names().await?, self.nodes().await?);
        let disk = self.disks.first().and_then(|disk| self.definition.disk(&disk.id));
        let (Some(disk), Some(name)) = (disk, names.first()) else { return Ok(()) };
        let mut options = node(disk, name, is_block_device);
        if let Some(later) = later {
            options["lazy-refcounts"] = later.into();
        }
        if let Some(below) = below(&nodes, name) {
            options["backing"] = below.into();
        }
        self.execute("blockdev-reopen", json!({ "options": [options] })).await.map(drop)
    }

    /// QEMU refuses that with an image of another format among those below the disks: it saves as if for another QEMU, which
    /// could know less of that image. Nothing of this goes elsewhere.
    async fn save_in_place(&self, tag: &SnapshotTag) -> Result<(), QmpError> {
        if !self.is_kept_by_formats().await? {
            return self.run(SAVE, tag).await;
        }
        // A QEMU without such kinds refuses to save, with its reason.
        let _ = self.migrates(IN_PLACE).await;
        let saved = self.run(SAVE, tag).await;
        if !matches!(saved, Err(QmpError::TimedOut { .. })) {
            // A QEMU that is silent is told before the next.
            let _ = self.migrates(ELSEWHERE).await;
        }
        saved
    }

    /// Goes back to a state, which must exist. The processors must stand still, and do so afterwards.
    ///
    /// # Errors
    ///
    /// [`QmpError::Refused`]: what QEMU holds after this is no VM any more.
    pub(in crate::lifecycle) async fn load(&self, tag: &SnapshotTag) -> Result<(), QmpError> {
        let mut kept = Vec::new();
        let mut done = self.run(LOAD, tag).await;
        for attempt in 1..LOADS {
            let Err(error @ QmpError::Refused { .. }) = &done else { break };
            tracing::warn!(%error, attempt, "the state is loaded again");
            self.take_places(&mut kept).await;
            done = self.run(LOAD, tag).await;
        }
        for id in kept {
            // What stays costs a few hundred bytes.
            let _ = self.execute("object-del", json!({ "id": id })).await;
        }
        done
    }

    /// Has QEMU put something where its next small pictures would be.
    async fn take_places(&self, kept: &mut Vec<String>) {
        for size in KEPT.step_by(KEPT_STEP) {
            let id = format!("{JOB}{}", Uuid::new_v4());
            let object = json!({ "qom-type": "secret", "id": id, "data": "x".repeat(size - 1) });
            if self.execute("object-add", object).await.is_ok() {
                kept.push(id);
            }
        }
    }

    /// Forgets a state.
    pub(in crate::lifecycle) async fn delete(&self, tag: &SnapshotTag) -> Result<(), QmpError> {
        self.run(DELETE, tag).await
    }

    async fn run(&self, command: &'static str, tag: &SnapshotTag) -> Result<(), QmpError> {
        let silent = || QmpError::TimedOut { command: command.into(), deadline: self.deadline };
        timeout(self.deadline, self.begin_and_follow(command, tag)).await.map_err(|_| silent())?
    }

    async fn begin_and_follow(&self, command: &'static str, tag: &SnapshotTag) -> Result<(), QmpError> {
        self.wait_for_others().await?;
        self.forget_concluded().await?;
        let id = format!("{JOB}{}", Uuid::new_v4());
        let mut names = self.names().await?;
        if command == DELETE {
            // QEMU refuses disks that can keep none.
            let nodes = self.nodes().await?;
            names.retain(|name| parts(&nodes, name).iter().any(|part| part.name == tag.as_str()));
        }
        let mut arguments = json!({ "job-id": id, "tag": tag, "devices": names });
        match command {
            SAVE => arguments["vmstate"] = json!(names.first()),
            LOAD => arguments["vmstate"] = json!(self.keeper_of(tag, &names).await?),
            _ => {}
        }
        self.execute(command, arguments).await?;
        let (mut wait, longest) = LOOK_AFTER;
        loop {
            let job = self.jobs().await?.into_iter().find(|job| job.id == id);
            let refused = |reason| QmpError::Refused { command: command.into(), reason };
            let Some(job) = job else { return Err(refused("its job is gone".into())) };
            if job.status == "concluded" {
                self.execute("job-dismiss", json!({ "id": id })).await?;
                return job.error.map_or(Ok(()), |reason| Err(refused(reason)));
            }
            sleep(wait).await;
            wait = longest.min(2 * wait);
        }
    }

    /// The node of the disk whose file has the memory of a snapshot: another disk may have been the first when it was saved.
    async fn keeper_of<'a>(&self, tag: &SnapshotTag, names: &'a [String]) -> Result<Option<&'a String>, QmpError> {
        let nodes = self.nodes().await?;
        let keeps = |name: &str| parts(&nodes, name).iter().any(|part| part.name == tag.as_str() && part.memory > 0);
        Ok(names.iter().find(|name| keeps(name)).or(names.first()))
    }

    /// The nodes that have the bytes of the disks: a disk that moved has another than at the start.
    async fn names(&self) -> Result<Vec<String>, QmpError> {
        let drives = Drives::of_qmp(&self.execute("query-block", json!({})).await?);
        let name = |disk: &SnapshotDisk| drives.node(&disk.id).map_or_else(|| node_name(&disk.id, 0), Into::into);
        Ok(self.disks.iter().map(name).collect())
    }

    async fn nodes(&self) -> Result<Vec<NodeInfo>, QmpError> {
        let nodes = self.execute("query-named-block-nodes", json!({ "flat": true })).await?;
        Ok(entries(&nodes))
    }

    /// Whether the formats of images, and nothing else, keep QEMU from saving.
    async fn is_kept_by_formats(&self) -> Result<bool, QmpError> {
        // Whatever a gateway left that ended while it saved.
        let _ = self.migrates(ELSEWHERE).await;
        let migration = self.execute("query-migrate", json!({})).await?;
        let reasons = migration["blocked-reasons"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_format = |reason: &Value| reason.as_str().is_some_and(|reason| reason.contains(" format used by node "));
        Ok(!reasons.is_empty() && reasons.iter().all(is_format))
    }

    async fn migrates(&self, mode: &str) -> Result<Value, QmpError> {
        self.execute("migrate-set-parameters", json!({ "mode": mode })).await
    }

    /// Waits until no job of ours is under way: one goes on when its gateway ends.
    async fn wait_for_others(&self) -> Result<(), QmpError> {
        let (mut wait, longest) = LOOK_AFTER;
        let is_under_way = |job: &JobInfo| job.id.starts_with(JOB) && job.status != "concluded";
        while self.jobs().await?.iter().any(is_under_way) {
            sleep(wait).await;
            wait = longest.min(2 * wait);
        }
        Ok(())
    }

    /// Clears up after a gateway that ended before its job did.
    async fn forget_concluded(&self) -> Result<(), QmpError> {
        for job in self.jobs().await? {
            if job.id.starts_with(JOB) && job.status == "concluded" {
                self.execute("job-dismiss", json!({ "id": job.id })).await?;
            }
        }
        Ok(())
    }

    async fn jobs(&self) -> Result<Vec<JobInfo>, QmpError> {
        let jobs = self.execute("query-jobs", json!({})).await?;
        Ok(entries(&jobs))
    }

    async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.qmp.execute_within(self.deadline, command, arguments).await
    }
}

/// What the image of a node says of its snapshots.
fn parts(nodes: &[NodeInfo], node: &str) -> Vec<Part> {
    let image = nodes.iter().find(|info| info.name.as_deref() == Some(node)).map(|info| &info.image);
    image.into_iter().flat_map(|image| &image.snapshots).filter_map(SnapshotInfo::to_part).collect()
}

/// The node that an image stands on, if it stands on any.
fn below<'a>(nodes: &'a [NodeInfo], node: &str) -> Option<&'a str> {
    let image = &nodes.iter().find(|info| info.name.as_deref() == Some(node))?.image;
    let file = image.full_below.as_ref().or(image.below.as_ref())?;
    let is_it = |info: &&NodeInfo| info.file.as_ref() == Some(file) && info.driver == image.below_format;
    nodes.iter().find(is_it)?.name.as_deref()
}

/// The entries of a list that are what they should be.
fn entries<T: for<'a> Deserialize<'a>>(list: &Value) -> Vec<T> {
    list.as_array().into_iter().flatten().filter_map(|entry| T::deserialize(entry).ok()).collect()
}

/// As [`entries`]: one that is strange does not hide the others.
fn lenient<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SnapshotInfo>, D::Error> {
    Ok(entries(&Value::deserialize(deserializer)?))
}

#[derive(Deserialize)]
struct JobInfo {
    id: String,
    status: String,
    error: Option<String>,
}

#[derive(Deserialize)]
struct NodeInfo {
    #[serde(rename = "node-name")]
    name: Option<String>,
    #[serde(rename = "drv")]
    driver: Option<String>,
    file: Option<String>,
    image: ImageInfo,
}

#[derive(Deserialize)]
struct ImageInfo {
    #[serde(default, deserialize_with = "lenient")]
    snapshots: Vec<SnapshotInfo>,
    #[serde(rename = "backing-filename")]
    below: Option<String>,
    #[serde(rename = "full-backing-filename")]
    full_below: Option<String>,
    #[serde(rename = "backing-filename-format")]
    below_format: Option<String>,
}

#[derive(Deserialize)]
struct SnapshotInfo {
    name: String,
    #[serde(rename = "vm-state-size")]
    size: u64,
    #[serde(rename = "date-sec")]
    seconds: u64,
    #[serde(rename = "date-nsec")]
    nanoseconds: u32,
}

impl SnapshotInfo {
    fn to_part(&self) -> Option<Part> {
        let since = Duration::from_secs(self.seconds).checked_add(Duration::from_nanos(self.nanoseconds.into()))?;
        let taken = SystemTime::UNIX_EPOCH.checked_add(since)?;
        Some(Part { name: self.name.clone(), memory: self.size, taken })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::definition::{Disk, DiskBus, DiskFormat};
    use crate::engine::obliging_qemu;

    const DEADLINE: Duration = Duration::from_secs(60);

    fn tag(name: &str) -> SnapshotTag {
        name.parse().expect("a name")
    }

    /// Jobs of a QEMU that says of its job, at each look, what `look` makes of the number of the look.
    async fn jobs(begun: &'static AtomicU32, look: impl Fn(u32) -> Value + Send + 'static) -> Jobs {
        let (mut id, mut looks) = (Value::Null, 0);
        let stream = obliging_qemu(move |command, arguments| match command {
            "query-jobs" if id.is_null() => json!([]),
            "query-jobs" => {
                looks += 1;
                let mut job = look(looks);
                job["id"] = id.clone();
                json!([{ "id": "another", "status": "running" }, job])
            }
            "query-named-block-nodes" | "query-block" => json!([]),
            "query-migrate" | "migrate-set-parameters" | "object-add" | "object-del" => json!({}),
            "job-dismiss" => {
                id = Value::Null;
                json!({})
            }
            _ => {
                begun.fetch_add(1, Ordering::Relaxed);
                id = arguments["job-id"].clone();
                json!({})
            }
        });
        let (qmp, _) = Qmp::open(stream, DEADLINE).await.expect("opens");
        of(qmp, &["image0", "image2"])
    }

    /// Jobs for disks that no definition has.
    fn of(qmp: Qmp, disks: &[&str]) -> Jobs {
        let definition = Arc::new(Definition::new("demo", Uuid::nil()));
        let disks = disks.iter().map(|id| disk(id)).collect();
        Jobs { qmp: Arc::new(qmp), disks, definition, deadline: DEADLINE }
    }

    #[tokio::test]
    async fn clusters_are_counted_later_while_a_state_is_saved() {
        let told = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (noted, mut id) = (told.clone(), Value::Null);
        let stream = obliging_qemu(move |command, arguments| match command {
            "query-jobs" => json!([{ "id": id, "status": "concluded" }]),
            "query-named-block-nodes" => json!([
                { "node-name": "file", "drv": "file", "file": "/base", "image": {} },
                { "node-name": "#block7", "drv": "raw", "file": "/base", "image": {} },
                { "node-name": "disk0.0", "drv": "qcow2", "file": "/a",
                  "image": { "backing-filename": "/base", "backing-filename-format": "raw" } },
            ]),
            "blockdev-reopen" => {
                let options = &arguments["options"][0];
                let told = json!([options["node-name"], options["lazy-refcounts"], options["backing"]]);
                noted.lock().expect("unharmed").push(told);
                json!({})
            }
            "snapshot-save" => {
                noted.lock().expect("unharmed").push(json!("save"));
                id = arguments["job-id"].clone();
                json!({})
            }
            _ => json!({}),
        });
        let (qmp, _) = Qmp::open(stream, DEADLINE).await.expect("opens");
        let mut definition = Definition::new("demo", Uuid::nil());
        definition.disks.push(Disk::new(PathBuf::from("/a"), DiskFormat::Qcow2, DiskBus::Virtio));
        definition.settle();
        let jobs = Jobs { definition: Arc::new(definition), ..of(qmp, &["disk0"]) };
        jobs.save(&tag("a")).await.expect("saved");
        let reopened = |later| json!(["disk0.0", later, "#block7"]);
        assert_eq!(*told.lock().expect("unharmed"), [reopened(json!(true)), json!("save"), reopened(Value::Null)]);
    }

    #[tokio::test]
    async fn a_job_is_followed_to_its_end() {
        static BEGUN: AtomicU32 = AtomicU32::new(0);
        let state = |look| json!({ "status": if look < 4 { "running" } else { "concluded" } });
        jobs(&BEGUN, state).await.save(&tag("a")).await.expect("saved");
        assert_eq!(BEGUN.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn the_words_of_a_job_that_went_wrong_are_kept() {
        static BEGUN: AtomicU32 = AtomicU32::new(0);
        let state = |_| json!({ "status": "concluded", "error": "No space left on device" });
        let error = jobs(&BEGUN, state).await.save(&tag("a")).await.expect_err("no room");
        assert_eq!(error.to_string(), "QEMU refused snapshot-save: No space left on device");
    }

    #[tokio::test]
    async fn a_load_that_goes_wrong_is_tried_again_but_not_for_ever() {
        static TWICE: AtomicU32 = AtomicU32::new(0);
        let failed = || json!({ "status": "concluded", "error": "Error -22 while loading VM state" });
        let state = move |look| if look < 3 { failed() } else { json!({ "status": "concluded" }) };
        jobs(&TWICE, state).await.load(&tag("a")).await.expect("loaded");
        assert_eq!(TWICE.load(Ordering::Relaxed), 3);
        static ALWAYS: AtomicU32 = AtomicU32::new(0);
        let error = jobs(&ALWAYS, move |_| failed()).await.load(&tag("a")).await.expect_err("never loaded");
        assert_eq!(error.to_string(), "QEMU refused snapshot-load: Error -22 while loading VM state");
        assert_eq!(ALWAYS.load(Ordering::Relaxed), LOADS);
    }

    #[tokio::test]
    async fn a_job_that_does_not_end_is_given_up() {
        static BEGUN: AtomicU32 = AtomicU32::new(0);
        let mut jobs = jobs(&BEGUN, |_| json!({ "status": "running" })).await;
        jobs.deadline = Duration::from_millis(100);
        let error = jobs.delete(&tag("a")).await.expect_err("given up");
        assert_eq!(error.to_string(), "QEMU did not answer snapshot-delete within 0.1 s");
    }

    #[tokio::test]
    async fn a_job_of_an_earlier_gateway_is_waited_for() {
        let mut looks = 0;
        let stream = obliging_qemu(move |command, _| {
            if command != "query-jobs" {
                return json!([]);
            }
            looks += 1;
            json!([{ "id": "fanlight-x", "status": if looks < 3 { "running" } else { "concluded" } }])
        });
        let (qmp, mut events) = Qmp::open(stream, DEADLINE).await.expect("opens");
        let jobs = of(qmp, &["image0"]);
        assert_eq!(jobs.list_settled().await.expect("listed"), []);
        assert!(events.try_recv().is_err());
    }

    #[tokio::test]
    async fn only_formats_are_got_round() {
        let formats = "The vhdx format used by node 'a' does not support live migration";
        for (reasons, modes) in [
            (vec![], vec![ELSEWHERE]),
            (vec![formats, "State blocked by non-migratable device"], vec![ELSEWHERE]),
            (vec![formats, formats], vec![ELSEWHERE, IN_PLACE, ELSEWHERE]),
        ] {
            let told = Arc::new(std::sync::Mutex::new(Vec::new()));
            let noted = told.clone();
            let stream = obliging_qemu(move |command, arguments| match command {
                "query-migrate" => json!({ "blocked-reasons": reasons }),
                "migrate-set-parameters" => {
                    noted.lock().expect("unharmed").push(arguments["mode"].as_str().unwrap_or_default().to_owned());
                    json!({})
                }
                _ => json!([]),
            });
            let (qmp, _) = Qmp::open(stream, DEADLINE).await.expect("opens");
            let jobs = of(qmp, &["disk0"]);
            jobs.save(&tag("a")).await.expect_err("this QEMU has no jobs");
            assert_eq!(*told.lock().expect("unharmed"), modes);
        }
    }

    #[test]
    fn an_image_tells_its_snapshots_and_a_strange_one_nothing() {
        let info = |name: &str, size: u64| {
            json!({ "id": "1", "name": name, "vm-state-size": size, "date-sec": 10, "date-nsec": 5,
                    "vm-clock-sec": 1, "vm-clock-nsec": 2 })
        };
        let image = json!({ "snapshots": [info("a", 7), { "name": "half" }, info("b", 0)] });
        let nodes = entries(&json!([{ "node-name": "file" }, 5, { "node-name": "image0", "image": image }]));
        let found = parts(&nodes, "image0");
        let taken = SystemTime::UNIX_EPOCH + Duration::new(10, 5);
        assert_eq!(found[0], Part { name: "a".into(), memory: 7, taken });
        assert!(parts(&nodes, "image1").is_empty() && parts(&entries(&json!({})), "image0").is_empty());
    }

    #[tokio::test]
    async fn a_disk_that_moved_is_saved_where_it_is() {
        let (names, seen) = tokio::sync::oneshot::channel();
        let mut names = Some(names);
        let stream = obliging_qemu(move |command, arguments| match command {
            "query-block" => json!([
                { "qdev": "/machine/peripheral/disk0/virtio-backend", "inserted": { "node-name": "disk0.3" } },
                { "qdev": "disk1", "inserted": { "node-name": "disk1.0" } },
            ]),
            "snapshot-save" => {
                let devices = (arguments["devices"].clone(), arguments["vmstate"].clone());
                names.take().map(|names| names.send(devices));
                json!({})
            }
            _ => json!([]),
        });
        let (qmp, _) = Qmp::open(stream, DEADLINE).await.expect("opens");
        let jobs = of(qmp, &["disk0", "disk1"]);
        jobs.save(&tag("a")).await.expect_err("this QEMU has no jobs");
        assert_eq!(seen.await.expect("asked"), (json!(["disk0.3", "disk1.0"]), json!("disk0.3")));
    }

    fn disk(id: &str) -> SnapshotDisk {
        SnapshotDisk { id: id.into(), path: "/a".into(), keeps: true }
    }
}
