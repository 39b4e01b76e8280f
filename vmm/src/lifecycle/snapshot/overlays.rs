//! Disks whose files keep no snapshots get an overlay each, a qcow2 image that stands on the file.
//!
//! ```text
//! 1  make the overlay, empty        2  the definition names it        3  QEMU writes to it
//! ```
//!
//! In this order, since an empty overlay reads as what it stands on: cut off after 1 nothing has changed. Cut off after 2, a
//! QEMU still writes to the file below, and whoever starts the VM then goes through the overlay and finds every byte of that.
//! The other way round (3 before 2) a start would go past what the overlay has. A QEMU that was left after 2 is found by
//! what it has open, and 3 is done again: by the next gateway, or before the next snapshot.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::definition::{Definition, DefinitionFile, Disk, DiskFormat};
use crate::disks::{
    DiskError, QemuImg, backing_of, describe, is_block_device, is_empty, make_overlay, replay, same_file,
};
use crate::engine::{Qmp, QmpError, node, node_name};
use crate::jobs::FileStamp;
use crate::lifecycle::disks::Drives;

/// Gives the disks of a VM overlays.
#[derive(Debug, Clone)]
pub(in crate::lifecycle) struct Overlays {
    pub(in crate::lifecycle) program: QemuImg,
    pub(in crate::lifecycle) definition: DefinitionFile,
    /// That of its QEMU; none when it is off.
    pub(in crate::lifecycle) qmp: Option<Arc<Qmp>>,
    /// How long each step of QEMU may take.
    pub(in crate::lifecycle) deadline: Duration,
}

/// A disk cannot be given an overlay.
#[derive(Debug, thiserror::Error)]
pub(in crate::lifecycle) enum OverlayError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the definition cannot be changed: {0}")]
    Definition(#[from] io::Error),
    #[error("QEMU has {there} for disk {disk} until its next start, and the definition names {named}")]
    Other { disk: String, named: String, there: String },
    #[error(transparent)]
    Qmp(#[from] QmpError),
}

/// An overlay that was made.
#[derive(Debug, Clone)]
struct Overlay {
    disk: Disk,
    file: FileStamp,
}

impl Overlays {
    /// Makes all disks that the guest writes to able to keep snapshots. An error of QEMU apart from a refusal leaves open
    /// whether it has been done; after any other the VM is as it was.
    pub(in crate::lifecycle) async fn lay(&self) -> Result<(), OverlayError> {
        self.finish().await?;
        let below = without_snapshots(&self.definition.current());
        if below.is_empty() {
            return Ok(());
        }
        let sizes = self.sizes(&below).await?;
        let overlays = self.make(&below, &sizes).await?;
        let disks: Vec<Disk> = overlays.iter().map(|overlay| overlay.disk.clone()).collect();
        if let Err(error) = self.define(&below, &disks).await {
            remove(&overlays);
            return Err(error.into());
        }
        if let Some(qmp) = &self.qmp
            && let Err(error) = self.go_over(qmp, &disks).await
        {
            // Only what was refused has certainly not been done.
            if matches!(error, QmpError::Refused { .. }) && self.define(&disks, &below).await.is_ok() {
                remove(&overlays);
            }
            return Err(error.into());
        }
        for (below, disk) in below.iter().zip(&disks) {
            tracing::info!(disk = disk.id, below = %below.source, overlay = %disk.source, "an overlay takes its changes");
        }
        Ok(())
    }

    /// Has QEMU go over to the overlays that the definition names already, where that was cut off.
    pub(in crate::lifecycle) async fn finish(&self) -> Result<(), OverlayError> {
        let Some(qmp) = &self.qmp else { return Ok(()) };
        let drives = self.drives(qmp).await?;
        let (current, wanted) = (self.definition.current(), self.definition.wanted());
        let (mut below, mut overlays) = (Vec::new(), Vec::new());
        for disk in current.disks.iter().filter(|disk| !disk.readonly) {
            let Some(file) = drives.file(&disk.id) else { continue };
            // The file is changed before what is kept of a VM that is on.
            let named = [&current, &wanted].into_iter().filter_map(|definition| definition.disk(&disk.id));
            for overlay in named {
                if self.is_empty_overlay(overlay, Path::new(file)).await? {
                    below.push(disk.clone());
                    overlays.push(Disk { source: overlay.source.clone(), format: overlay.format, ..disk.clone() });
                    break;
                }
            }
        }
        if overlays.is_empty() {
            return Ok(());
        }
        tracing::info!(disks = overlays.len(), "QEMU goes over to overlays that an earlier gateway made");
        self.define(&below, &overlays).await?;
        Ok(self.go_over(qmp, &overlays).await?)
    }

    /// Whether a disk stands on `file` and has nothing of its own: otherwise it does not read as that.
    async fn is_empty_overlay(&self, disk: &Disk, file: &Path) -> Result<bool, DiskError> {
        let Some(path) = disk.source.path().filter(|_| disk.format == DiskFormat::Qcow2) else { return Ok(false) };
        let below = if same_file(path, file) { None } else { backing_of(path).ok().flatten() };
        Ok(below.is_some_and(|below| same_file(&below.path, file)) && is_empty(&self.program, path).await?)
    }

    /// How large the disks are, in bytes.
    async fn sizes(&self, disks: &[Disk]) -> Result<Vec<u64>, OverlayError> {
        let mut sizes = Vec::new();
        let qemu = match &self.qmp {
            Some(qmp) => Some((self.drives(qmp).await?, self.nodes(qmp).await?)),
            None => None,
        };
        for disk in disks {
            let Some(path) = disk.source.path() else { continue };
            sizes.push(match &qemu {
                Some((drives, nodes)) => size_in_qemu(disk, drives, nodes)?,
                None => {
                    if disk.format == DiskFormat::Vhdx {
                        replay(&self.program, path).await?;
                    }
                    describe(&self.program, path, disk.format).await?.size
                }
            });
        }
        Ok(sizes)
    }

    /// The first step.
    async fn make(&self, disks: &[Disk], sizes: &[u64]) -> Result<Vec<Overlay>, DiskError> {
        let mut made = Vec::new();
        for (disk, size) in disks.iter().zip(sizes) {
            let Some(path) = disk.source.path() else { continue };
            match make_overlay(&self.program, path, disk.format, *size).await {
                Ok(file) => {
                    let source = file.path().to_path_buf().into();
                    made.push(Overlay { disk: Disk { source, format: DiskFormat::Qcow2, ..disk.clone() }, file });
                }
                Err(error) => {
                    remove(&made);
                    return Err(error);
                }
            }
        }
        Ok(made)
    }

    /// The second: wherever the definition has a disk of `from`, it has that of `to`.
    async fn define(&self, from: &[Disk], to: &[Disk]) -> io::Result<()> {
        let (definition, pairs) = (self.definition.clone(), from.iter().cloned().zip(to.iter().cloned()));
        let pairs: Vec<(Disk, Disk)> = pairs.collect();
        let change = move |definition: &mut Definition| {
            for (from, to) in &pairs {
                let is_it = |disk: &&mut Disk| disk.id == from.id && disk.source == from.source;
                if let Some(found) = definition.disks.iter_mut().find(is_it) {
                    (found.source, found.format) = (to.source.clone(), to.format);
                }
            }
        };
        tokio::task::spawn_blocking(move || definition.change(change)).await?
    }

    /// The third, for all disks or, if QEMU refuses, for none.
    async fn go_over(&self, qmp: &Qmp, overlays: &[Disk]) -> Result<(), QmpError> {
        let (drives, nodes) = (self.drives(qmp).await?, self.nodes(qmp).await?);
        let mut opened = Vec::new();
        let done = async {
            let mut actions = Vec::new();
            for overlay in overlays {
                let Some(below) = drives.node(&overlay.id) else { continue };
                let name = node_name(&overlay.id, drives.next_generation(&overlay.id));
                if named(&nodes, &name).is_some() {
                    // An earlier gateway opened it, and came no further.
                    self.execute(qmp, "blockdev-del", json!({ "node-name": name })).await?;
                }
                let mut file = node(overlay, &name, is_block_device);
                // What it stands on it is given in the same moment in which it takes the guest's writes.
                file["backing"] = Value::Null;
                self.execute(qmp, "blockdev-add", file).await?;
                opened.push(name.clone());
                actions.push(json!({ "type": "blockdev-snapshot", "data": { "node": below, "overlay": name } }));
            }
            self.execute(qmp, "transaction", json!({ "actions": actions })).await
        };
        let done = done.await;
        if let Err(QmpError::Refused { .. }) = &done {
            for name in &opened {
                // The reason of the first failure is the one to tell.
                let _ = self.execute(qmp, "blockdev-del", json!({ "node-name": name })).await;
            }
        }
        done.map(drop)
    }

    async fn drives(&self, qmp: &Qmp) -> Result<Drives, QmpError> {
        Ok(Drives::of_qmp(&self.execute(qmp, "query-block", json!({})).await?))
    }

    async fn nodes(&self, qmp: &Qmp) -> Result<Value, QmpError> {
        self.execute(qmp, "query-named-block-nodes", json!({ "flat": true })).await
    }

    async fn execute(&self, qmp: &Qmp, command: &str, arguments: Value) -> Result<Value, QmpError> {
        qmp.execute_within(self.deadline, command, arguments).await
    }
}

/// The disks of a VM that the guest writes to, and whose files keep no snapshots.
fn without_snapshots(definition: &Definition) -> Vec<Disk> {
    let is_one = |disk: &&Disk| {
        let is_file = disk.source.path().is_some_and(|path| !is_block_device(path));
        is_file && !disk.readonly && disk.format != DiskFormat::Qcow2
    };
    definition.disks.iter().filter(is_one).cloned().collect()
}

/// How large a disk of QEMU is, if it is the one that the definition names.
fn size_in_qemu(disk: &Disk, drives: &Drives, nodes: &Value) -> Result<u64, OverlayError> {
    let file = drives.file(&disk.id);
    let is_it = |file: &str| disk.source.path().is_some_and(|path| same_file(path, Path::new(file)));
    let size = drives.node(&disk.id).filter(|_| file.is_some_and(is_it)).and_then(|name| named(nodes, name));
    size.and_then(|node| node["image"]["virtual-size"].as_u64()).ok_or_else(|| OverlayError::Other {
        disk: disk.id.clone(),
        named: disk.source.to_string(),
        there: file.unwrap_or("nothing").into(),
    })
}

fn named<'a>(nodes: &'a Value, name: &str) -> Option<&'a Value> {
    nodes.as_array()?.iter().find(|node| node["node-name"] == name)
}

/// Takes back the first step.
fn remove(overlays: &[Overlay]) {
    for Overlay { file, .. } in overlays {
        if let Err(error) = file.remove() {
            tracing::warn!(file = %file.path().display(), %error, "an overlay that nothing uses stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::Mutex;

    use uuid::Uuid;

    use super::*;
    use crate::definition::DiskBus;
    use crate::engine::refusing_qemu;
    use crate::files::power_cut::Recording;

    const DEADLINE: Duration = Duration::from_secs(60);

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("fanlight-overlays-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).expect("a folder");
            Self(path)
        }

        /// A VM with two raw disks.
        fn definition(&self) -> DefinitionFile {
            let disk = |name: &str| {
                let path = self.0.join(name);
                fs::File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("an image");
                Disk::new(path, DiskFormat::Raw, DiskBus::Virtio)
            };
            let disks = vec![disk("a.raw"), disk("b.raw")];
            let mut definition = Definition { disks, ..Definition::new("demo", Uuid::nil()) };
            definition.settle();
            let path = self.0.join("demo.toml");
            fs::write(&path, definition.to_toml()).expect("written");
            DefinitionFile::new(definition, path)
        }

        fn names(&self) -> Vec<String> {
            let names = fs::read_dir(&self.0).expect("there").map(|entry| entry.expect("one").file_name());
            let mut names: Vec<String> = names.map(|name| name.into_string().expect("text")).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn overlays(definition: &DefinitionFile, qmp: Option<Arc<Qmp>>) -> Overlays {
        let program = QemuImg::beside(Path::new("qemu"));
        Overlays { program, definition: definition.clone(), qmp, deadline: DEADLINE }
    }

    /// A QEMU that has the files of `definition` and notes what it is told; it refuses the command `refused`.
    async fn qemu(definition: &DefinitionFile, refused: &'static str, told: &Arc<Mutex<Vec<String>>>) -> Arc<Qmp> {
        let disks = definition.current().disks.clone();
        let told = told.clone();
        let stream = refusing_qemu(move |command, arguments| {
            match command {
            "query-block" => Ok(disks
                .iter()
                .map(|disk| json!({ "qdev": disk.id, "inserted": { "node-name": format!("{}.4", disk.id), "file": disk.source } }))
                .collect()),
            "query-named-block-nodes" => Ok(disks
                .iter()
                .flat_map(|disk| {
                    let node = |generation| json!({ "node-name": format!("{}.{generation}", disk.id), "image": { "virtual-size": 1 << 20 } });
                    [node(4), node(5)]
                })
                .collect()),
            _ => {
                let what = arguments["node-name"].as_str().unwrap_or_default();
                told.lock().expect("unharmed").push(format!("{command} {what}").trim_end().into());
                if command == refused { Err("no") } else { Ok(json!({})) }
            }
        }
        });
        Arc::new(Qmp::open(stream, DEADLINE).await.expect("opens").0)
    }

    #[tokio::test]
    async fn the_disks_of_a_vm_that_is_off_are_overlays_of_what_they_were() {
        let folder = Folder::new("off");
        let definition = folder.definition();
        overlays(&definition, None).lay().await.expect("laid");
        let disks = definition.current().disks.clone();
        for (disk, name) in disks.iter().zip(["a.raw", "b.raw"]) {
            assert_eq!(
                (disk.format, disk.source.path().expect("a file")),
                (DiskFormat::Qcow2, &*folder.0.join(format!("{name}.checkpoints.qcow2")))
            );
        }
        let written = Definition::load(definition.path()).expect("read");
        assert_eq!(written.disks, disks);
        overlays(&definition, None).lay().await.expect("nothing is left to do");
        assert_eq!(definition.current().disks, disks);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn power_that_goes_at_any_point_leaves_disks_that_read_as_before() {
        let recording = Recording::new("overlays");
        let [vms, images] = ["vms", "images"].map(|name| recording.folder_named(name));
        let disk = |name: &str| {
            let path = images.join(name);
            recording.lasting(&path, name.repeat(1 << 10));
            Disk::new(path, DiskFormat::Raw, DiskBus::Virtio)
        };
        let disks = vec![disk("a.raw"), disk("b.raw")];
        let mut definition = Definition { disks, ..Definition::new("demo", Uuid::nil()) };
        definition.settle();
        let below = definition.disks.clone();
        let file = vms.join("demo.toml");
        recording.lasting(&file, definition.to_toml());
        Recording::mark(recording.folder(), 0);
        overlays(&DefinitionFile::new(definition, file.clone()), None).lay().await.expect("laid");
        let overlay = |disk: &Disk| disk.source.path().expect("a file").with_extension("raw.checkpoints.qcow2");
        let whole: Vec<Vec<u8>> = below.iter().map(|disk| fs::read(overlay(disk)).expect("made")).collect();

        let cuts = recording.cut_everywhere(|_| {
            let found = Definition::load(&file).expect("it is one of those that were written");
            for ((found, below), whole) in found.disks.iter().zip(&below).zip(&whole) {
                assert!(below.source.path().is_some_and(Path::exists), "what is below stays");
                if found != below {
                    let path = found.source.path().expect("a file");
                    assert_eq!((path, found.format), (&*overlay(below), DiskFormat::Qcow2));
                    assert!(fs::read(path).is_ok_and(|bytes| bytes == *whole), "{} is in part", path.display());
                }
            }
        });
        assert!(cuts > 12, "{cuts} cuts");
    }

    #[tokio::test]
    async fn qemu_goes_over_when_the_definition_says_so_and_never_without() {
        let folder = Folder::new("over");
        let (definition, told) = (folder.definition(), Arc::default());
        let qmp = qemu(&definition, "", &told).await;
        overlays(&definition, Some(qmp.clone())).lay().await.expect("laid");
        let steps = [
            "blockdev-del disk0.5",
            "blockdev-add disk0.5",
            "blockdev-del disk1.5",
            "blockdev-add disk1.5",
            "transaction",
        ];
        assert_eq!(*told.lock().expect("unharmed"), steps);
        // Such a QEMU has the files below, as one does whose gateway ended before it was told.
        overlays(&definition, Some(qmp)).finish().await.expect("done again");
        assert_eq!(told.lock().expect("unharmed").len(), 2 * steps.len());
        assert_eq!(definition.current().disks[0].format, DiskFormat::Qcow2);
    }

    #[tokio::test]
    async fn what_qemu_refuses_leaves_everything_as_it_was() {
        for refused in ["blockdev-add", "transaction"] {
            let folder = Folder::new(refused);
            let (definition, told) = (folder.definition(), Arc::default());
            let qmp = qemu(&definition, refused, &told).await;
            let before = definition.current();
            let error = overlays(&definition, Some(qmp)).lay().await.expect_err("refused").to_string();
            assert_eq!(error, format!("QEMU refused {refused}: no"));
            assert_eq!(
                (definition.current(), folder.names()),
                (before, vec!["a.raw".into(), "b.raw".into(), "demo.toml".into()])
            );
        }
    }

    #[tokio::test]
    async fn another_file_than_qemus_gets_no_overlay() {
        let folder = Folder::new("other");
        let (definition, told) = (folder.definition(), Arc::default());
        let qmp = qemu(&definition, "", &told).await;
        let other = folder.0.join("c.raw");
        fs::copy(folder.0.join("a.raw"), &other).expect("copied");
        definition.change(|definition| definition.disks[1].source = other.clone().into()).expect("changed");
        let error = overlays(&definition, Some(qmp)).lay().await.expect_err("refused").to_string();
        assert!(
            error.starts_with("QEMU has ") && error.contains("b.raw for disk disk1 until its next start"),
            "{error}"
        );
        assert_eq!(folder.names(), ["a.raw", "b.raw", "c.raw", "demo.toml"]);
    }

    #[tokio::test]
    async fn an_overlay_with_something_of_its_own_is_not_laid_under_a_guest() {
        let folder = Folder::new("own");
        let (definition, told) = (folder.definition(), Arc::default());
        let qmp = qemu(&definition, "", &told).await;
        overlays(&definition, None).lay().await.expect("laid");
        let overlay = folder.0.join("a.raw.checkpoints.qcow2");
        let made = std::process::Command::new("qemu-img").args(["snapshot", "-c", "a"]).arg(&overlay).status();
        assert!(made.expect("qemu-img runs").success());
        overlays(&definition, Some(qmp)).finish().await.expect("looked");
        let told = told.lock().expect("unharmed");
        assert_eq!(*told, ["blockdev-del disk1.5", "blockdev-add disk1.5", "transaction"]);
    }
}
