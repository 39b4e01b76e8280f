//! What is different between two definitions of a VM, in the words of the file, and from when on it counts.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::Definition;

/// One thing that is another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which key, with the tables that it is in: `memory.maximum`, `disk.disk0.path`. What belongs together is told as one, in
    /// words: `network`, `boot`, `tpm`, `checkpoints`, and `memory` that begins or ceases to follow the guest's need.
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
        for (table, other) in [(&mut from, wanted), (&mut to, self)] {
            put_in_words(table, other);
        }
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
    if key.starts_with("session.") || key == "checkpoints" {
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

/// Makes one line of words of each table whose keys mean nothing alone; `other` is what the definition is compared with.
fn put_in_words(table: &mut Table, other: &Definition) {
    for (key, in_words) in [("network", network as fn(&Table) -> String), ("boot", boot)] {
        if let Some(words) = table.get(key).and_then(Value::as_table).map(in_words) {
            table.insert(key.into(), Value::String(words));
        }
    }
    for (key, in_words) in [("tpm", tpm as fn(&Table) -> String), ("checkpoints", checkpoints)] {
        let words = table.get(key).and_then(Value::as_table).map_or_else(|| "none".into(), in_words);
        table.insert(key.into(), Value::String(words));
    }
    let words = match table.get("memory") {
        Some(Value::Table(dynamic)) if other.dynamic_memory.is_none() => dynamic_memory(dynamic),
        Some(Value::Integer(mib)) if other.dynamic_memory.is_some() => format!("{mib} MiB"),
        _ => return,
    };
    table.insert("memory".into(), Value::String(words));
}

/// `bridge br0, e1000, forward tcp:127.0.0.1:2222-:22`
fn network(table: &Table) -> String {
    let mode = [value(table, "mode"), value(table, "name")].into_iter().flatten().collect::<Vec<_>>().join(" ");
    let forward = table.get("forward").and_then(Value::as_array).filter(|forward| !forward.is_empty());
    let forward = forward.map(|forward| format!("forward {}", forward.iter().map(words).collect::<Vec<_>>().join(" ")));
    [Some(mode), value(table, "card"), forward].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// `uefi with secure boot, kernel /boot/vmlinuz, initrd /boot/initrd.img`
fn boot(table: &Table) -> String {
    let secure = table.get("secure_boot") == Some(&Value::Boolean(true));
    let firmware = value(table, "firmware").map(|firmware| firmware + if secure { " with secure boot" } else { "" });
    let named = |key: &str| Some(format!("{key} {}", value(table, key)?));
    [firmware, named("kernel"), named("initrd"), named("cmdline")].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn tpm(table: &Table) -> String {
    value(table, "model").unwrap_or_default()
}

fn checkpoints(table: &Table) -> String {
    let number = |key| value(table, key).unwrap_or_default();
    format!("every {} minutes, {} kept", number("every"), number("keep"))
}

fn dynamic_memory(table: &Table) -> String {
    let number = |key| value(table, key).unwrap_or_default();
    let (startup, minimum, maximum) = (number("startup"), number("minimum"), number("maximum"));
    format!("{startup} MiB, then {minimum} to {maximum} as its guest needs")
}

fn value(table: &Table, key: &str) -> Option<String> {
    table.get(key).map(words)
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
        Boot, CheckpointSchedule, Disk, DiskBus, DiskFormat, DynamicMemory, Firmware, Network, NetworkMode, Provider,
        Session, Tpm,
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
            network: Network::new(NetworkMode::Bridge("br0".parse().expect("a name"))),
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
                "boot: bios -> uefi with secure boot, NextStart",
                "checkpoints: none -> every 5 minutes, 2 kept, Now",
                "memory: 512 -> 1024, NextStart",
                "network: user -> bridge br0, virtio, NextStart",
                "tpm: none -> crb, NextStart",
                "vcpus: 1 -> 2, NextStart",
                "session.input: auto -> bus, Now",
                "disk.disk0: - -> /a.qcow2, NextStart",
            ]
        );
    }

    #[test]
    fn what_belongs_together_is_one_line() {
        let old = Definition::new("demo", Uuid::nil());
        let boot = Boot::DirectKernel { kernel: "/k".into(), initrd: None, cmdline: "quiet".into() };
        let dynamic_memory = Some(DynamicMemory::between(200, 720));
        let forward = vec!["tcp::2222-:22".parse().expect("a port")];
        let network = Network { forward, ..Network::default() };
        let new = Definition { memory: 300, dynamic_memory, boot, network, ..old.clone() };
        let there = [
            "boot: bios -> kernel /k, cmdline quiet, NextStart",
            "memory: 512 MiB -> 300 MiB, then 200 to 720 as its guest needs, NextStart",
            "network: user -> user, virtio, forward tcp:127.0.0.1:2222-:22, NextStart",
        ];
        assert_eq!(told(&old.changes_to(&new, None)), there);
        let back = told(&new.changes_to(&old, Some(&new)));
        assert_eq!(back[1], "memory: 300 MiB, then 200 to 720 as its guest needs -> 512 MiB, NextStart");
        assert_eq!(back.len(), 3, "{back:?}");
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
