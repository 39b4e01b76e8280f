//! The images that VMs name.

use std::path::{Path, PathBuf};

use crate::definition::{Definition, DiskFormat, quoted_in};
use crate::host::{HostShared, definition_files};

/// What VMs name, as far as it can be known.
#[derive(Debug, Default)]
pub(super) struct Named {
    pub(super) images: Vec<NamedImage>,
    /// Where it cannot: why not, in words.
    pub(super) unread: Vec<String>,
}

/// An image that a VM names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedImage {
    pub(super) path: PathBuf,
    /// None: its definition cannot be read.
    pub(super) format: Option<DiskFormat>,
    pub(super) vm: String,
}

/// What the VMs of `host` name, as they are and as they shall be, and every file among their definitions, also one that is
/// refused: its owner will mend it. Waits for the host's disk.
pub(super) fn named_images(host: &HostShared) -> Named {
    let mut named = Named::default();
    for vm in host.vms() {
        vm.definitions().iter().for_each(|definition| named.take_in(definition));
    }
    let folder = &host.config.definitions;
    match definition_files(folder) {
        Ok(files) => files.iter().for_each(|file| named.look_at(file)),
        Err(error) => named.unread.push(format!("a VM may have it: {} cannot be read ({error})", folder.display())),
    }
    named
}

impl Named {
    fn look_at(&mut self, file: &Path) {
        if !file.is_file() {
            return;
        }
        if let Ok(definition) = Definition::load(file) {
            return self.take_in(&definition);
        }
        let vm = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match quoted_in(file) {
            Ok(quoted) => {
                let paths = quoted.into_iter().filter(|text| text.starts_with('/')).map(PathBuf::from);
                self.images.extend(paths.map(|path| NamedImage { path, format: None, vm: vm.clone() }));
            }
            Err(error) => self.unread.push(format!("VM {vm} may have it: {} cannot be read ({error})", file.display())),
        }
    }

    fn take_in(&mut self, definition: &Definition) {
        for disk in &definition.disks {
            let Some(path) = disk.source.path().map(Path::to_path_buf) else { continue };
            let image = NamedImage { path, format: Some(disk.format), vm: definition.name.clone() };
            if !self.images.contains(&image) {
                self.images.push(image);
            }
        }
    }
}
