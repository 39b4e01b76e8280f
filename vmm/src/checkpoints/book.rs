//! The book of a VM's checkpoints: names, notes, which came after which, and what was under way. Pure.
//!
//! The states themselves are snapshots in the disks' images. What changes them is entered before it begins and again when it
//! has ended, so that after a crash the images tell how it went:
//!
//! ```text
//! entered       images have it     what is done
//! create        whole              it was made: entered as made
//!               in part            it is deleted, as if it had never begun
//!               not                as if it had never begun
//! delete        whole or in part   it is deleted; then as below
//!               not                it was deleted: its children are its parent's
//! revert        whole              once more: the state to go back to is never touched
//! ```

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::CheckpointError;
use crate::jobs::JobId;
use crate::lifecycle::{Snapshot, SnapshotTag};

/// Most checkpoints of a VM.
const MAX_CHECKPOINTS: usize = 512;
/// Longest name, in bytes.
const MAX_NAME: usize = 120;
/// Longest notes, in bytes.
const MAX_NOTES: usize = 4096;

/// What is known of a VM's checkpoints beside the images.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Book {
    #[serde(default)]
    pub(super) entries: Vec<Entry>,
    /// The checkpoint that the present state came after.
    pub(super) here: Option<SnapshotTag>,
    pub(super) pending: Option<Pending>,
}

/// One checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// What the images call it.
    pub(super) tag: SnapshotTag,
    /// What people call it.
    pub(super) name: String,
    #[serde(default)]
    pub(super) notes: String,
    /// The one that its state came after.
    pub(super) parent: Option<SnapshotTag>,
    /// When it was taken, in seconds since 1970.
    pub(super) taken: u64,
    /// Whether it was taken by the clock, and goes when there are enough younger ones.
    #[serde(default)]
    pub(super) automatic: bool,
    /// Whether memory belongs to it.
    #[serde(default)]
    pub(super) memory: bool,
    /// The VM's definition at that time; none if it is not known.
    pub(super) definition: Option<String>,
}

/// A checkpoint that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) notes: String,
    pub(super) taken: u64,
    pub(super) automatic: bool,
    pub(super) definition: Option<String>,
}

/// What is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pending {
    pub(super) what: Change,
    /// The job that does it.
    pub(super) job: Option<JobId>,
}

/// What changes the images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Change {
    Create(Entry),
    /// `resume`: whether the processors shall run afterwards.
    Revert {
        tag: SnapshotTag,
        resume: bool,
    },
    Delete(SnapshotTag),
}

/// What the images say of what was under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing was.
    Nothing,
    /// It was done.
    Done,
    /// It was not even begun.
    Never,
    /// It was cut off, and this is to be deleted from the images; then it is judged again.
    Clear(SnapshotTag),
    /// It was cut off, and has to be done again.
    Again(SnapshotTag),
}

impl Book {
    /// The checkpoint of that name.
    pub(super) fn find(&self, name: &str) -> Result<&Entry, CheckpointError> {
        self.entries.iter().find(|entry| entry.name == name).ok_or_else(|| CheckpointError::Unknown(name.into()))
    }

    pub(super) fn tagged(&self, tag: &SnapshotTag) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.tag == *tag)
    }

    /// The revert that was cut off, if one was.
    pub(super) fn cut_off_revert(&self) -> Option<(&Entry, bool)> {
        match &self.pending.as_ref()?.what {
            Change::Revert { tag, resume } => Some((self.tagged(tag)?, *resume)),
            _ => None,
        }
    }

    /// Enters what the images have and nobody entered.
    pub(super) fn adopt(&mut self, found: &[Snapshot]) {
        for snapshot in found.iter().filter(|snapshot| snapshot.is_whole()) {
            if self.knows(&snapshot.tag) || self.entries.len() >= MAX_CHECKPOINTS {
                continue;
            }
            self.entries.push(Entry {
                tag: snapshot.tag.clone(),
                name: self.free_name(snapshot.tag.as_str()),
                notes: String::new(),
                parent: None,
                taken: unix(snapshot.taken),
                automatic: false,
                memory: snapshot.size > 0,
                definition: None,
            });
        }
    }

    /// Enters that a checkpoint is to be made, and says what the images shall call it.
    pub(super) fn begin_create(
        &mut self,
        draft: Draft,
        found: &[Snapshot],
        job: Option<JobId>,
    ) -> Result<SnapshotTag, CheckpointError> {
        self.check_free(&draft.name)?;
        check_notes(&draft.notes)?;
        if self.entries.len() >= MAX_CHECKPOINTS {
            return Err(CheckpointError::Impossible(format!("a VM has {MAX_CHECKPOINTS} checkpoints at most")));
        }
        self.begin()?;
        let tag = self.free_tag(&draft.name, found)?;
        let Draft { name, notes, taken, automatic, definition } = draft;
        let parent = self.here.clone();
        let entry = Entry { tag: tag.clone(), name, notes, parent, taken, automatic, memory: false, definition };
        self.pending = Some(Pending { what: Change::Create(entry), job });
        Ok(tag)
    }

    /// Enters that the VM is to go back. One that was cut off is forgotten over it.
    pub(super) fn begin_revert(
        &mut self,
        tag: &SnapshotTag,
        resume: bool,
        job: Option<JobId>,
    ) -> Result<(), CheckpointError> {
        if self.cut_off_revert().is_none() {
            self.begin()?;
        }
        self.pending = Some(Pending { what: Change::Revert { tag: tag.clone(), resume }, job });
        Ok(())
    }

    /// Enters that a checkpoint is to be deleted.
    pub(super) fn begin_delete(&mut self, tag: &SnapshotTag, job: Option<JobId>) -> Result<(), CheckpointError> {
        self.begin()?;
        self.pending = Some(Pending { what: Change::Delete(tag.clone()), job });
        Ok(())
    }

    /// What is under way has been done; the images have `found`.
    pub(super) fn finish(&mut self, found: &[Snapshot]) {
        match self.pending.take().map(|pending| pending.what) {
            Some(Change::Create(mut entry)) => {
                entry.memory = found.iter().any(|snapshot| snapshot.tag == entry.tag && snapshot.size > 0);
                self.here = Some(entry.tag.clone());
                self.entries.push(entry);
            }
            Some(Change::Revert { tag, .. }) => self.here = Some(tag),
            Some(Change::Delete(tag)) => self.remove(&tag),
            None => {}
        }
    }

    /// What is under way has not been done, and never will be.
    pub(super) fn give_up(&mut self) {
        self.pending = None;
    }

    /// Finds out what became of what was under way.
    pub(super) fn judge(&self, found: &[Snapshot]) -> Verdict {
        let Some(pending) = &self.pending else { return Verdict::Nothing };
        let find = |tag: &SnapshotTag| found.iter().find(|snapshot| snapshot.tag == *tag);
        match &pending.what {
            Change::Create(entry) => match find(&entry.tag) {
                Some(snapshot) if snapshot.is_whole() => Verdict::Done,
                Some(_) => Verdict::Clear(entry.tag.clone()),
                None => Verdict::Never,
            },
            Change::Delete(tag) => find(tag).map_or(Verdict::Done, |_| Verdict::Clear(tag.clone())),
            // Without the state to go back to there is nothing that could be done again.
            Change::Revert { tag, .. } => match find(tag).filter(|_| self.tagged(tag).is_some()) {
                Some(snapshot) if snapshot.is_whole() => Verdict::Again(tag.clone()),
                _ => Verdict::Never,
            },
        }
    }

    /// Gives a checkpoint another name. One that was taken by the clock is kept from then on.
    pub(super) fn rename(&mut self, name: &str, new: &str) -> Result<(), CheckpointError> {
        let index = self.entries.iter().position(|entry| entry.name == name);
        let index = index.ok_or_else(|| CheckpointError::Unknown(name.into()))?;
        if name != new {
            self.check_free(new)?;
        }
        if let Some(entry) = self.entries.get_mut(index) {
            entry.name = new.into();
            entry.automatic = false;
        }
        Ok(())
    }

    /// The oldest of those that were taken by the clock, as long as there are more of them than `keep`.
    pub(super) fn surplus(&self, keep: usize) -> Option<&Entry> {
        let automatic = || self.entries.iter().filter(|entry| entry.automatic);
        automatic().min_by_key(|entry| entry.taken).filter(|_| automatic().count() > keep)
    }

    /// A name that is not taken and begins with `name`.
    pub(super) fn free_name(&self, name: &str) -> String {
        let name = shortened(name, MAX_NAME - 8);
        let taken = |name: &String| self.check_free(name).is_err();
        let numbered = (2..).map(|number| format!("{name} ({number})"));
        std::iter::once(name.to_owned()).chain(numbered).find(|name| !taken(name)).unwrap_or_default()
    }

    fn begin(&self) -> Result<(), CheckpointError> {
        match &self.pending {
            None => Ok(()),
            Some(Pending { what: Change::Revert { tag, .. }, .. }) => {
                let name = self.tagged(tag).map_or(tag.as_str(), |entry| &entry.name);
                Err(CheckpointError::Impossible(format!(
                    "going back to checkpoint `{name}` was cut off; start the VM or revert it first"
                )))
            }
            Some(_) => Err(CheckpointError::Impossible("another checkpoint is being made or deleted".into())),
        }
    }

    fn remove(&mut self, tag: &SnapshotTag) {
        let Some(index) = self.entries.iter().position(|entry| entry.tag == *tag) else { return };
        let parent = self.entries.remove(index).parent;
        for child in self.entries.iter_mut().filter(|entry| entry.parent.as_ref() == Some(tag)) {
            child.parent.clone_from(&parent);
        }
        if self.here.as_ref() == Some(tag) {
            self.here = parent;
        }
    }

    fn knows(&self, tag: &SnapshotTag) -> bool {
        let pending = match self.pending.as_ref().map(|pending| &pending.what) {
            Some(Change::Create(entry)) => Some(&entry.tag),
            _ => None,
        };
        pending == Some(tag) || self.tagged(tag).is_some()
    }

    fn check_free(&self, name: &str) -> Result<(), CheckpointError> {
        check_name(name)?;
        let pending = match self.pending.as_ref().map(|pending| &pending.what) {
            Some(Change::Create(entry)) => entry.name == name,
            _ => false,
        };
        if pending || self.entries.iter().any(|entry| entry.name == name) {
            return Err(CheckpointError::Exists(name.into()));
        }
        Ok(())
    }

    /// A tag that nothing has, as like the name as may be.
    fn free_tag(&self, name: &str, found: &[Snapshot]) -> Result<SnapshotTag, CheckpointError> {
        let taken: BTreeSet<&SnapshotTag> = found.iter().map(|snapshot| &snapshot.tag).collect();
        let numbered = (2..).map(|number| format!("{name}~{number}"));
        let tags = std::iter::once(name.to_owned()).chain(numbered).take(2 * MAX_CHECKPOINTS);
        let mut tags = tags.filter_map(|text| text.parse::<SnapshotTag>().ok());
        let free = tags.find(|tag| !taken.contains(tag) && !self.knows(tag));
        free.ok_or_else(|| CheckpointError::Exists(name.into()))
    }
}

fn check_name(name: &str) -> Result<(), CheckpointError> {
    let fits = (1..=MAX_NAME).contains(&name.len()) && name.trim() == name && !name.chars().any(char::is_control);
    let rule = "has 1 to 120 bytes, no control characters, and no space at its beginning or end";
    if fits { Ok(()) } else { Err(CheckpointError::Invalid(format!("a checkpoint's name {rule}"))) }
}

fn check_notes(notes: &str) -> Result<(), CheckpointError> {
    let fits = notes.len() <= MAX_NOTES && !notes.chars().any(|c| c.is_control() && c != '\n');
    let rule = "have 4096 bytes at most and no control characters but line ends";
    if fits { Ok(()) } else { Err(CheckpointError::Invalid(format!("a checkpoint's notes {rule}"))) }
}

fn shortened(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.get(..end).unwrap_or_default().trim_end()
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
