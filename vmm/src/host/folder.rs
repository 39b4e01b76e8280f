//! The folder of the definitions, in which people edit, add and remove files while the gateway runs.

use super::machines::definition_files;
use super::{Host, WeakHost};
use crate::checkpoints;
use crate::definition::FolderWatch;

/// Notices what is done by hand, until the host has ended.
pub(super) async fn follow(host: WeakHost, mut watch: FolderWatch) {
    loop {
        watch.changed().await;
        let Some(host) = host.upgrade() else { return };
        for vm in host.list() {
            if !watch.is_being_written(vm.definition_path()) {
                vm.look_at_definition().await;
            }
        }
        host.take_in(&watch).await;
    }
}

impl Host {
    /// Makes VMs of the files that came, and sees which are no definitions of any.
    async fn take_in(&self, watch: &FolderWatch) {
        // None is seen half made.
        let _changing = self.machines.change().await;
        let mut files = definition_files(&self.shared.config.definitions).unwrap_or_default();
        let vms = self.machines.all();
        files.retain(|file| vms.iter().all(|vm| vm.definition_path() != file) && !watch.is_being_written(file));
        let mut problems = Vec::new();
        for file in files {
            match self.machines.load(&file) {
                Ok(definition) => {
                    tracing::info!(vm = definition.name, "its definition was put into the folder");
                    if let Some(vm) = self.bring_in(definition, file).await {
                        checkpoints::take_over(&vm, &self.jobs, &self.downgrade());
                    }
                }
                Err(problem) => problems.push(problem),
            }
        }
        self.machines.keep_problems(problems);
    }
}
