//! Book and images together.

use serde::{Deserialize, Serialize};

use super::book::{Book, Change, Entry};
use crate::lifecycle::Snapshot;

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// What people call it.
    pub name: String,
    /// What they want to remember.
    pub notes: String,
    /// The name of the one that it came after.
    pub parent: Option<String>,
    /// When it was taken, in seconds since 1970.
    pub taken: u64,
    /// Whether it was taken by the clock, and goes when there are enough younger ones.
    pub automatic: bool,
    /// Whether memory belongs to it; without, it has the disks of a VM that was off.
    pub memory: bool,
    /// What the memory takes, in bytes; none while it is not known.
    pub size: Option<u64>,
    /// Whether the present state came after it.
    pub here: bool,
    /// Why it cannot be gone back to, if it cannot.
    pub problem: Option<String>,
}

/// All checkpoints of a VM: each after the one that it came after, brothers by age.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointTree {
    /// The checkpoints.
    pub checkpoints: Vec<Checkpoint>,
    /// The name of the one that the present state came after.
    pub here: Option<String>,
    /// What is under way, or was cut off and is still to be done.
    pub unfinished: Option<String>,
}

impl Book {
    /// The tree; `found` is what the images have, if they could be asked.
    pub(super) fn tree(&self, found: Option<&[Snapshot]>) -> CheckpointTree {
        let mut checkpoints = Vec::new();
        self.branch(None, found, &mut checkpoints);
        CheckpointTree {
            checkpoints,
            here: self.here.as_ref().and_then(|tag| self.tagged(tag)).map(|entry| entry.name.clone()),
            unfinished: self.unfinished(),
        }
    }

    /// Those that came after `parent`, each followed by what came after it.
    fn branch(&self, parent: Option<&Entry>, found: Option<&[Snapshot]>, tree: &mut Vec<Checkpoint>) {
        let is_child = |entry: &&Entry| match (parent, &entry.parent) {
            (Some(parent), Some(tag)) => parent.tag == *tag,
            (None, Some(tag)) => self.tagged(tag).is_none(),
            (parent, None) => parent.is_none(),
        };
        // A file that somebody wrote by hand may go round in circles.
        if tree.len() > self.entries.len() {
            return;
        }
        let mut children: Vec<&Entry> = self.entries.iter().filter(is_child).collect();
        children.sort_by_key(|entry| entry.taken);
        for entry in children {
            tree.push(self.checkpoint(entry, parent, found));
            self.branch(Some(entry), found, tree);
        }
    }

    fn checkpoint(&self, entry: &Entry, parent: Option<&Entry>, found: Option<&[Snapshot]>) -> Checkpoint {
        let snapshot = found.map(|found| found.iter().find(|snapshot| snapshot.tag == entry.tag));
        Checkpoint {
            name: entry.name.clone(),
            notes: entry.notes.clone(),
            parent: parent.map(|parent| parent.name.clone()),
            taken: entry.taken,
            automatic: entry.automatic,
            memory: entry.memory,
            size: snapshot.flatten().map(|snapshot| snapshot.size),
            here: self.here.as_ref() == Some(&entry.tag),
            problem: snapshot.and_then(problem),
        }
    }

    fn unfinished(&self) -> Option<String> {
        let pending = self.pending.as_ref()?;
        let name = |tag| self.tagged(tag).map_or(tag.as_str(), |entry| &entry.name);
        Some(match &pending.what {
            Change::Create(entry) => format!("checkpoint `{}` is being made", entry.name),
            Change::Revert { tag, .. } => format!("going back to checkpoint `{}` has not ended", name(tag)),
            Change::Delete(tag) => format!("checkpoint `{}` is being deleted", name(tag)),
        })
    }
}

/// Why a snapshot cannot be gone back to.
pub(super) fn problem(snapshot: Option<&Snapshot>) -> Option<String> {
    match snapshot {
        None => Some("the VM's disks do not have it any more".into()),
        Some(snapshot) if !snapshot.is_whole() => {
            let missing: Vec<String> = snapshot.missing.iter().map(|path| path.display().to_string()).collect();
            Some(format!("{} did not belong to the VM then", missing.join(", ")))
        }
        Some(_) => None,
    }
}
