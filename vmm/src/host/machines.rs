//! Which virtual machines there are, and which definitions are none's.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard, watch};
use uuid::Uuid;

use crate::definition::{Definition, DefinitionError};
use crate::vm::Vm;

/// The VMs of a host.
#[derive(Debug, Default)]
pub(super) struct Machines {
    vms: Mutex<BTreeMap<Uuid, Vm>>,
    problems: Mutex<Vec<DefinitionError>>,
    /// One creation or deletion at a time.
    changing: AsyncMutex<()>,
    /// Says when one came or went.
    changes: watch::Sender<()>,
}

impl Machines {
    pub(super) fn all(&self) -> Vec<Vm> {
        lock(&self.vms).values().cloned().collect()
    }

    pub(super) fn get(&self, uuid: Uuid) -> Option<Vm> {
        lock(&self.vms).get(&uuid).cloned()
    }

    /// The VM of that name, whatever its case, or UUID.
    pub(super) fn find(&self, name_or_uuid: &str) -> Option<Vm> {
        let vms = lock(&self.vms);
        let by_uuid = Uuid::parse_str(name_or_uuid).ok().and_then(|uuid| vms.get(&uuid));
        by_uuid.or_else(|| vms.values().find(|vm| same_name(vm.name(), name_or_uuid))).cloned()
    }

    pub(super) fn insert(&self, vm: Vm) {
        lock(&self.vms).insert(vm.uuid(), vm);
        self.changes.send_replace(());
    }

    pub(super) fn remove(&self, uuid: Uuid) {
        lock(&self.vms).remove(&uuid);
        self.changes.send_replace(());
    }

    /// Follows what comes and goes.
    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Which VMs there are is not changed by others as long as this is held.
    pub(super) async fn change(&self) -> AsyncMutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// The definition in `file`, if a VM can be made of it beside those that there are.
    pub(super) fn load(&self, file: &Path) -> Result<Definition, DefinitionError> {
        let definition = Definition::load(file)?;
        if file.file_stem().is_none_or(|stem| stem != definition.name.as_str()) {
            let reason = format!("the file of a VM named {:?} is \"{}.toml\"", definition.name, definition.name);
            return Err(DefinitionError::whole(file, reason));
        }
        match self.taken(&definition) {
            Some((what, _)) => Err(DefinitionError::whole(file, format!("another VM has the same {what}"))),
            None => Ok(definition),
        }
    }

    /// What of a definition another VM has already: its `name` or its `uuid`.
    pub(super) fn taken(&self, definition: &Definition) -> Option<(&'static str, String)> {
        let vms = lock(&self.vms);
        if let Some(vm) = vms.values().find(|vm| same_name(vm.name(), &definition.name)) {
            return Some(("name", vm.name().to_owned()));
        }
        vms.contains_key(&definition.uuid).then(|| ("uuid", definition.uuid.to_string()))
    }

    /// The definitions that were refused.
    pub(super) fn problems(&self) -> Vec<DefinitionError> {
        lock(&self.problems).clone()
    }

    /// These definitions were refused, and no others: tells of those that are new.
    pub(super) fn keep_problems(&self, problems: Vec<DefinitionError>) {
        let mut kept = lock(&self.problems);
        for problem in problems.iter().filter(|problem| !kept.contains(problem)) {
            tracing::warn!(%problem, "definition refused");
        }
        *kept = problems;
    }

    pub(super) fn forget_problem(&self, file: &Path) {
        lock(&self.problems).retain(|problem| problem.file != file);
    }
}

/// The definitions in `folder`, in the order of their names: of two that exclude each other the first counts.
pub(crate) fn definition_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // What editors put aside is hidden; the name of a VM begins with something else.
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|extension| extension == "toml") && !hidden {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn same_name(a: &str, b: &str) -> bool {
    a.to_lowercase() == b.to_lowercase()
}
