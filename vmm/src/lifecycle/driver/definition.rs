//! A definition that is edited, by request or by hand.

use std::path::PathBuf;

use super::{Driver, Trouble, VmState};
use crate::definition::{Change, Definition, EditDefinition, EditError};

impl Driver {
    /// Sees what is in the file now: what counts at once is so when this returns.
    pub(super) fn look_at_file(&mut self) {
        if self.status.borrow().state != VmState::Deleted {
            self.with_new_limits(|driver| driver.definition.look());
        }
    }

    /// Looks, and fails when there is no knowing what is wanted.
    pub(super) fn require_readable(&mut self) -> Result<(), Trouble> {
        self.look_at_file();
        self.definition.problem().map_or(Ok(()), |problem| Err(Trouble::Refused(problem.to_string())))
    }

    pub(super) fn edit(&mut self, edit: EditDefinition) -> Result<Vec<Change>, EditError> {
        let (definition, holds) = (self.definition.clone(), self.connections.holds.clone());
        let allowed = |wanted: &Definition| {
            let (moving, before) = (holds.disks(), definition.wanted());
            let same = |id: &String| wanted.disks.iter().find(|disk| disk.id == *id) == before.disk(id);
            let changed = moving.into_iter().find(|id| !same(id));
            changed.map_or(Ok(()), |id| Err(format!("its disk {id} is being moved; wait for that, or cancel it")))
        };
        let changes = self.with_new_limits(|driver| driver.definition.edit(edit, allowed))?;
        let what: Vec<_> = changes.iter().map(|change| change.what.as_str()).collect();
        tracing::info!(changes = what.join(", "), "definition edited by request");
        Ok(changes)
    }

    /// A QEMU was found: the VM is what that was started as, which is `kept` in a file.
    pub(super) fn take_back_definition(&mut self, kept: PathBuf) {
        let uuid = self.definition.current().uuid;
        match Definition::load(&kept) {
            Ok(running) if running.uuid == uuid => self.definition.found_running(running, kept),
            Ok(_) => tracing::warn!(file = %kept.display(), "another VM's"),
            Err(problem) => {
                tracing::warn!(%problem, "what the VM was started as is not known; its definition is believed");
                if let Err(error) = self.definition.begin_run(kept) {
                    tracing::warn!(%error, "it cannot be kept either");
                }
            }
        }
        self.become_current();
        self.take_limits();
        self.look_at_file();
    }

    /// What belongs to the VM and outlives its QEMUs is as the definition says.
    pub(super) fn become_current(&self) {
        let current = self.definition.current();
        self.connections.display.set_monitors(current.monitors);
        self.connections.memory.take_terms(&current);
    }

    fn with_new_limits<T>(&mut self, change: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.definition.wanted();
        let changed = change(self);
        if self.machine.is_none() {
            self.become_current();
        } else if self.definition.wanted().dynamic_memory != before.dynamic_memory {
            self.take_limits();
        }
        changed
    }

    /// The limits of the memory are those of the file, as far as the devices of the VM have room for them.
    fn take_limits(&self) {
        let (current, wanted) = (self.definition.current(), self.definition.wanted());
        let limits = wanted.dynamic_memory.zip(current.dynamic_memory);
        if let Some((limits, _)) = limits.filter(|(wanted, current)| wanted.devices == current.devices) {
            let limits = Definition { dynamic_memory: Some(limits), ..Definition::clone(&current) };
            // What was just compared is dynamic, so that there is nothing to refuse.
            let _ = self.connections.memory.change(limits.memory_settings());
        }
    }
}
