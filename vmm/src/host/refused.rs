//! VMs whose definitions are refused: known by their names and the reasons, until somebody mends them.

use super::Host;
use super::machines::same_name;
use crate::checkpoints;
use crate::definition::{Definition, DefinitionError, EditDefinition, EditError, read_text, replace_file};
use crate::vm::Vm;

/// A VM that is none as long as its definition is as it is. Its disks are kept for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedVm {
    /// What it is called: its file's name.
    pub name: String,
    /// Why it is refused.
    pub problem: DefinitionError,
}

impl Host {
    /// The VMs whose definitions are refused, by name.
    #[must_use]
    pub fn refused(&self) -> Vec<RefusedVm> {
        let mut refused: Vec<_> = self.problems().into_iter().filter_map(RefusedVm::of).collect();
        refused.sort_by_key(|refused| refused.name.to_lowercase());
        refused
    }

    /// The one of that name, whatever its case.
    #[must_use]
    pub fn find_refused(&self, name: &str) -> Option<RefusedVm> {
        self.refused().into_iter().find(|refused| same_name(&refused.name, name))
    }

    /// Puts another definition into the file of a VM whose definition is refused, and makes the VM.
    ///
    /// # Errors
    ///
    /// When it is no definition of a VM of that name, the file has been changed since it was read, or it cannot be written:
    /// all is as it was then.
    pub async fn mend(&self, refused: &RefusedVm, edit: EditDefinition) -> Result<Vm, EditError> {
        let _changing = self.machines.change().await;
        let file = &refused.problem.file;
        let EditDefinition { definition: mut text, file: called, base } = edit;
        let changed = || EditError::Changed(file.clone());
        let unreadable = |error| EditError::Io { path: file.clone(), error };
        if base.is_some_and(|base| refused.text().is_ok_and(|text| text != base)) {
            return Err(changed());
        }
        let called = called.as_deref().unwrap_or(file);
        let mut definition = Definition::parse(&text, called)?;
        if definition.name != refused.name {
            let reason = format!("`name` of a VM stays: it is {:?}", refused.name);
            return Err(DefinitionError::whole(called, reason).into());
        }
        match self.machines.taken(&definition) {
            // Somebody else has mended it.
            Some(("name", _)) => return Err(changed()),
            Some((what, _)) => {
                return Err(DefinitionError::whole(called, format!("another VM has the same {what}")).into());
            }
            None => {}
        }
        if definition.name_devices_lastingly() {
            text = definition.to_toml();
        }
        replace_file(file, &text).map_err(unreadable)?;
        self.machines.forget_problem(file);
        let vm = self.bring_in(definition, file.clone()).await;
        let vm = vm.ok_or_else(|| EditError::Refused("the VM has gone again".into()))?;
        checkpoints::take_over(&vm, &self.jobs, &self.downgrade());
        Ok(vm)
    }
}

impl RefusedVm {
    fn of(problem: DefinitionError) -> Option<Self> {
        let name = problem.file.file_stem()?.to_str()?.to_owned();
        Some(Self { name, problem })
    }

    /// The text of its file. Waits for the host's disk.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn text(&self) -> std::io::Result<String> {
        read_text(&self.problem.file)
    }
}
