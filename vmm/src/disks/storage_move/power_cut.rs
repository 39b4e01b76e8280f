//! The power goes at any point of a move or a merge, and with it QEMU: what is read again names one complete disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::decision::{Decision, Engine, MERGE, Phase, Place, SWITCH, Step, decide};
use super::journal::{EngineStamp, Entry, Journal, Location};
use super::mirror::Mirror;
use super::plan::claim_target;
use super::switch::{Report, Stage};
use crate::definition::{Definition, DefinitionFile, Disk, DiskBus, DiskFormat};
use crate::engine::{Qmp, refusing_qemu};
use crate::files::power_cut::Recording;
use crate::files::remove_file;
use crate::jobs::JobId;

const DEADLINE: Duration = Duration::from_secs(60);
/// What the disk holds before: longer than any part of it that a cut may leave.
const OLD: &str = "what was there before;";
/// What the guest writes while its disk moves, and has flushed. The marks count it.
const WRITES: [&str; 3] = ["while it is copied;", "before it stands still;", "after it went over;"];

/// A VM with one disk, and the folders of all that is written.
struct Host {
    recording: Recording,
    definition: DefinitionFile,
    journal: Journal,
    source: Disk,
    target: Disk,
}

impl Host {
    fn new(name: &str) -> Self {
        let recording = Recording::new(name);
        let [vms, moves, from, to] = ["vms", "moves", "from", "to"].map(|name| recording.folder_named(name));
        let source = Disk::new(from.join("disk.raw"), DiskFormat::Raw, DiskBus::Virtio);
        let mut definition = Definition { disks: vec![source], ..Definition::new("demo", Uuid::nil()) };
        definition.settle();
        let source = definition.disks[0].clone();
        let target = Disk { source: to.join("disk.raw").into(), ..source.clone() };
        let file = vms.join("demo.toml");
        recording.lasting(&file, definition.to_toml());
        let definition = DefinitionFile::new(definition, file);
        Self { recording, definition, journal: Journal::new(moves), source, target }
    }

    fn entry(&self) -> Entry {
        let location = |disk: &Disk| Location::new(&disk.source, disk.format);
        let engine =
            EngineStamp { pid: 7, start_time: 8, source_node: "disk0.0".into(), target_node: "disk0.1".into() };
        let (source, target) = (location(&self.source), location(&self.target));
        Entry { engine: Some(engine), ..Entry::new(JobId(1), Uuid::nil(), &self.source.id, source, target) }
    }

    /// Says that the guest has been told of so many of its writes that they are on the disk.
    fn told(&self, writes: usize) {
        Recording::mark(self.recording.folder(), writes);
    }

    /// The last steps, as the driver takes them with a QEMU that has copied.
    async fn switch(&self, entry: &Entry, steps: &'static [Step]) {
        let qemu = refusing_qemu(self.qemu());
        let qmp = Arc::new(Qmp::open(qemu, DEADLINE).await.expect("opens").0);
        let stage = Stage {
            entry: entry.clone(),
            journal: self.journal.clone(),
            definition: self.definition.clone(),
            mirror: Mirror { job: "job".into(), source: "disk0.0".into(), target: "disk0.1".into() },
            source: self.source.clone(),
            target: self.target.clone(),
            rest: None,
            resume: None,
            report: Arc::new(std::sync::Mutex::new(Report::default())),
        };
        (stage.into_switch(steps).work)(qmp, true).await.expect("switched");
    }

    /// A QEMU that mirrors, and its guest, which writes before it stands still and when it goes on.
    fn qemu(&self) -> impl FnMut(&str, &serde_json::Value) -> Result<serde_json::Value, &'static str> + Send + 'static {
        let (source, target) = (path(&self.source), path(&self.target));
        let folder = self.recording.folder().to_path_buf();
        move |command, _| {
            match command {
                "stop" => {
                    write_flushed(&[&source, &target], WRITES[1]);
                    Recording::mark(&folder, 2);
                }
                "cont" => {
                    write_flushed(&[&target], WRITES[2]);
                    Recording::mark(&folder, 3);
                }
                _ => {}
            }
            Ok(json!([]))
        }
    }

    /// Which of both places is the disk, by what is read of the journal and the definition.
    fn disk(&self) -> Disk {
        let definition = Definition::load(self.definition.path()).expect("it is one of those that were written");
        let named = &definition.disks[0];
        let found = self.journal.read().expect("read");
        assert!(found.refused.is_empty() && found.entries.len() <= 1, "{found:?}");
        let place = if named.source == self.target.source { Place::Target } else { Place::Source };
        let disk = match decide(place, Engine::Off) {
            Decision::Finish => &self.target,
            Decision::Discard => &self.source,
            decision => panic!("without a QEMU nothing is left but to settle it, not to {decision:?}"),
        };
        assert_eq!(disk, named, "the next start takes what the definition names");
        if place == Place::Target {
            let entry = found.entries.first();
            let phases = entry.map(|entry| entry.phase);
            assert!(!matches!(phases, Some(Phase::Copying)), "it is named before the journal says so");
        }
        disk.clone()
    }
}

fn path(disk: &Disk) -> PathBuf {
    disk.source.path().expect("a file").into()
}

fn write_flushed(files: &[&Path], text: &str) {
    for file in files {
        Recording::write(file, text);
        Recording::flush(file);
    }
}

/// What a complete disk begins with when the guest was told of so many writes.
fn expected(told: usize) -> String {
    OLD.to_owned() + &WRITES[..told].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_whose_host_loses_power_at_any_point_leaves_one_complete_disk() {
    let host = Host::new("move");
    let (source, target) = (path(&host.source), path(&host.target));
    host.recording.lasting(&source, OLD);
    host.told(0);
    let mut entry = Entry { delete_source: true, ..host.entry() };
    host.journal.write(&entry).expect("written");
    entry.made = claim_target(&host.target).expect("claimed");
    host.journal.write(&entry).expect("written");
    write_flushed(&[&source], WRITES[0]);
    host.told(1);
    // Copied, and not flushed by anybody before QEMU stops the guest.
    Recording::write(&target, &expected(1));
    host.switch(&entry, &SWITCH).await;
    remove_file(&source).expect("removed");
    host.journal.remove(entry.job).expect("removed");

    let cuts = host.recording.cut_everywhere(|told| {
        let disk = host.disk();
        let bytes = fs::read_to_string(path(&disk)).unwrap_or_else(|error| panic!("{}: {error}", disk.source));
        assert!(bytes.starts_with(&expected(told)), "{} holds {bytes}", disk.source);
    });
    assert!(cuts > 25, "{cuts} cuts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_whose_host_loses_power_at_any_point_leaves_one_complete_disk() {
    let host = Host::new("merge");
    let (overlay, base) = (path(&host.source), path(&host.target));
    host.recording.lasting(&base, OLD);
    host.recording.lasting(&overlay, "");
    host.told(0);
    let entry = host.entry().into_merge();
    host.journal.write(&entry).expect("written");
    write_flushed(&[&overlay], WRITES[0]);
    host.told(1);
    Recording::write(&base, WRITES[0]);
    host.switch(&entry, &MERGE).await;
    remove_file(&overlay).expect("removed");
    host.journal.remove(entry.job).expect("removed");

    let cuts = host.recording.cut_everywhere(|told| {
        let disk = host.disk();
        let below = fs::read_to_string(&base).expect("nobody removes it");
        let bytes = if disk == host.target {
            below
        } else {
            // What was merged already hides behind the overlay.
            assert!(below.starts_with(OLD), "{below}");
            OLD.to_owned() + &fs::read_to_string(&overlay).expect("it is the disk")
        };
        assert!(bytes.starts_with(&expected(told)), "{} holds {bytes}", disk.source);
    });
    assert!(cuts > 25, "{cuts} cuts");
}
