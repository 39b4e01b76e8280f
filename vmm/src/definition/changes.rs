//! What is different between two definitions of a VM, in the words of the file, and from when on it counts.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::Definition;

/// One key that has another value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which, with the tables that it is in: `memory.maximum`, `disk.disk0.path`.
    pub what: String,
    /// What it was; none: it was not there.
    pub from: Option<String>,
    /// What it is; none: it is not there.
    pub to: Option<String>,
    /// From when on it counts.
    pub when: When,
}

/// From when on a change counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// At once; what concerns sessions, for those that begin from then on.
    Now,
    /// When the VM is started the next time.
    NextStart,
}

impl Definition {
    /// What is different in `wanted`, and when it counts for a VM that is on and was started with `running`; without, for
    /// one that is off.
    #[must_use]
    pub fn changes_to(&self, wanted: &Self, running: Option<&Self>) -> Vec<Change> {
        let (mut from, mut to) = (table(self), table(wanted));
        let (from_disks, to_disks) = (take_disks(&mut from), take_disks(&mut to));
        let mut differences = Vec::new();
        compare("", &from, &to, &mut differences);
        for (id, disk) in &from_disks {
            match to_disks.get(id) {
                Some(other) => compare(&format!("disk.{id}"), disk, other, &mut differences),
                None => differences.push((format!("disk.{id}"), Some(place(disk)), None)),
            }
        }
        let added = to_disks.iter().filter(|(id, _)| !from_disks.contains_key(*id));
        differences.extend(added.map(|(id, disk)| (format!("disk.{id}"), None, Some(place(disk)))));
        let (from, to) = (order(self, &to_disks), order(wanted, &from_disks));
        if from != to {
            differences.push(("order of the disks".into(), Some(from), Some(to)));
        }
        let changes = differences.into_iter().map(|(what, from, to)| {
            let when = if counts_now(&what, wanted, running) { When::Now } else { When::NextStart };
            Change { what, from, to, when }
        });
        changes.collect()
    }

    /// Takes over from `wanted` what counts at once and is not hardware.
    pub(crate) fn take_what_counts_now(&mut self, wanted: &Self) {
        self.session = wanted.session;
        self.checkpoints = wanted.checkpoints;
    }
}

/// Whether a key counts before the VM is started again.
fn counts_now(key: &str, wanted: &Definition, running: Option<&Definition>) -> bool {
    if key.starts_with("session.") || key.starts_with("checkpoints.") {
        return true;
    }
    let dynamic = wanted.dynamic_memory.zip(running.and_then(|running| running.dynamic_memory));
    let Some((wanted, running)) = dynamic.filter(|(wanted, running)| wanted.devices == running.devices) else {
        return false;
    };
    match key {
        "memory.minimum" | "memory.buffer" | "memory.weight" => true,
        // The devices have room for what they were made for.
        "memory.maximum" => wanted.maximum <= running.maximum,
        _ => false,
    }
}

/// A key, and what it was and is.
type Difference = (String, Option<String>, Option<String>);

/// What the file says, by its keys.
fn table(definition: &Definition) -> Table {
    // What was written is read.
    toml::from_str(&definition.to_toml()).unwrap_or_default()
}

/// The disks by their names.
fn take_disks(table: &mut Table) -> BTreeMap<String, Table> {
    let Some(Value::Array(disks)) = table.remove("disk") else { return BTreeMap::new() };
    let disks = disks.into_iter().filter_map(|disk| match disk {
        Value::Table(mut disk) => Some((words(&disk.remove("id")?), disk)),
        _ => None,
    });
    disks.collect()
}

/// The values first, then the tables, each in the order of the alphabet.
fn compare(path: &str, from: &Table, to: &Table, differences: &mut Vec<Difference>) {
    let keys: BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    let under = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    let mut tables = Vec::new();
    for key in keys {
        let (old, new) = (from.get(key), to.get(key));
        // A value may become a table of the same name.
        let sides = [old, new].map(|side| side.and_then(Value::as_table));
        let values = [old, new].map(|side| side.filter(|side| !side.is_table()).map(words));
        let [old, new] = values;
        if old != new {
            differences.push((under(key), old, new));
        }
        if sides.iter().any(Option::is_some) {
            tables.push((key, sides));
        }
    }
    let none = Table::new();
    for (key, [old, new]) in tables {
        compare(&under(key), old.unwrap_or(&none), new.unwrap_or(&none), differences);
    }
}

fn words(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), Into::into)
}

fn place(disk: &Table) -> String {
    disk.get("path").or(disk.get("url")).map_or_else(|| "empty".into(), words)
}

/// The order of those disks that are among `others`, too.
fn order(definition: &Definition, others: &BTreeMap<String, Table>) -> String {
    let ids = definition.disks.iter().map(|disk| disk.id.as_str()).filter(|id| others.contains_key(*id));
    ids.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use uuid::Uuid;

    use super::*;
    use crate::definition::{
        CheckpointSchedule, Disk, DiskBus, DiskFormat, DynamicMemory, Firmware, Network, Provider, Session, Tpm,
    };

    fn told(changes: &[Change]) -> Vec<String> {
        let words = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        let told = |change: &Change| {
            format!("{}: {} -> {}, {:?}", change.what, words(&change.from), words(&change.to), change.when)
        };
        changes.iter().map(told).collect()
    }

    #[test]
    fn what_is_the_same_is_not_told_and_what_is_not_is_told_once() {
        let old = Definition::new("demo", Uuid::nil());
        assert_eq!(old.changes_to(&old, Some(&old)), []);
        let mut new = Definition {
            memory: 1024,
            vcpus: 2,
            network: Network::none(),
            firmware: Firmware::Uefi { secure_boot: true },
            tpm: Some(Tpm::default()),
            session: Session { input: Provider::Bus },
            checkpoints: Some(CheckpointSchedule { every: 5, keep: 2 }),
            ..old.clone()
        };
        new.disks = vec![Disk::new(PathBuf::from("/a.qcow2"), DiskFormat::Qcow2, DiskBus::Virtio)];
        new.settle();
        assert_eq!(
            told(&old.changes_to(&new, Some(&old))),
            [
                "memory: 512 -> 1024, NextStart",
                "network: user -> none, NextStart",
                "vcpus: 1 -> 2, NextStart",
                "boot.firmware: bios -> uefi, NextStart",
                "boot.secure_boot: - -> true, NextStart",
                "checkpoints.every: - -> 5, Now",
                "checkpoints.keep: - -> 2, Now",
                "session.input: auto -> bus, Now",
                "tpm.model: - -> crb, NextStart",
                "disk.disk0: - -> /a.qcow2, NextStart",
            ]
        );
    }

    #[test]
    fn limits_of_memory_count_now_as_far_as_there_is_room_for_them() {
        let dynamic = |minimum, maximum| Definition {
            memory: 512,
            dynamic_memory: Some(DynamicMemory::between(minimum, maximum)),
            ..Definition::new("demo", Uuid::nil())
        };
        let running = dynamic(256, 1024);
        let changes = running.changes_to(&dynamic(128, 768), Some(&running));
        assert_eq!(told(&changes), ["memory.maximum: 1024 -> 768, Now", "memory.minimum: 256 -> 128, Now"]);
        let changes = dynamic(256, 768).changes_to(&dynamic(256, 1024), Some(&running));
        assert_eq!(told(&changes), ["memory.maximum: 768 -> 1024, Now"]);
        let changes = running.changes_to(&dynamic(256, 2048), Some(&running));
        assert_eq!(told(&changes), ["memory.maximum: 1024 -> 2048, NextStart"]);
        let off = running.changes_to(&dynamic(128, 1024), None);
        assert_eq!(told(&off), ["memory.minimum: 256 -> 128, NextStart"]);
    }

    #[test]
    fn another_order_of_the_disks_is_a_change() {
        let disk = |id: &str| Disk {
            id: id.into(),
            ..Disk::new(PathBuf::from(format!("/{id}")), DiskFormat::Raw, DiskBus::Virtio)
        };
        let with = |ids: [&str; 2]| Definition { disks: ids.map(disk).into(), ..Definition::new("demo", Uuid::nil()) };
        let changes = with(["a", "b"]).changes_to(&with(["b", "a"]), None);
        assert_eq!(told(&changes), ["order of the disks: a, b -> b, a, NextStart"]);
    }
}
