//! What no definition may say.

use std::path::Path;

use super::firmware::UEFI_MEMORY_MIB;
use super::memory::MemoryPart;
use super::parse::About;
use super::{
    BUS_MEMORY_MIB, Boot, CHECKPOINT_MINUTES, CHECKPOINTS_KEPT, Definition, MAX_NAME, MEMORY_MIB, MONITORS, Provider,
    VCPUS,
};

/// Longest kernel command line: what Linux on x86 takes (`COMMAND_LINE_SIZE`), without its end.
const MAX_CMDLINE: usize = 2047;

/// Something a definition says that cannot be.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) about: About,
    pub(super) reason: String,
}

/// A definition built in code says what cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidDefinition(String);

impl InvalidDefinition {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl Definition {
    /// Checks what the types alone do not: ranges, names, paths and what excludes each other.
    ///
    /// # Errors
    ///
    /// The first thing that cannot be.
    pub fn validate(&self) -> Result<(), InvalidDefinition> {
        self.problem().map_or(Ok(()), |problem| Err(InvalidDefinition(problem.reason)))
    }

    /// The files that must be there when the VM starts and are not, in words.
    pub(crate) fn missing_files(&self) -> Option<String> {
        let boot = match &self.boot {
            Boot::Firmware => Vec::new(),
            Boot::DirectKernel { kernel, initrd, .. } => {
                let initrd = initrd.iter().map(|path| ("initrd", path.as_path()));
                std::iter::once(("kernel", kernel.as_path())).chain(initrd).collect()
            }
        };
        let disks = self.disks.iter().filter_map(|disk| Some(("disk", disk.source.path()?)));
        boot.into_iter().chain(disks).find_map(|(what, path)| {
            let error = std::fs::metadata(path).err()?;
            Some(format!("{what} {}: {error}", path.display()))
        })
    }

    pub(super) fn problem(&self) -> Option<Problem> {
        name_problem(&self.name)
            .or_else(|| self.number_problem())
            .or_else(|| self.cpu_problem())
            .or_else(|| self.network.problem())
            .or_else(|| self.bus_problem())
            .or_else(|| self.checkpoints_problem())
            .or_else(|| self.boot_problem())
            .or_else(|| self.disks_problem())
    }

    fn number_problem(&self) -> Option<Problem> {
        if !MEMORY_MIB.contains(&self.memory) {
            let (least, most) = (MEMORY_MIB.start(), MEMORY_MIB.end());
            return problem(
                About::Memory(MemoryPart::Startup),
                format!("`memory` is {least} to {most} MiB, not {}", self.memory),
            );
        }
        if let Some(found) = self.dynamic_memory.and_then(|dynamic| dynamic.problem(self.memory, self.accelerator)) {
            return Some(found);
        }
        if !VCPUS.contains(&self.vcpus) {
            return problem(About::Vcpus, format!("`vcpus` is 1 to {}, not {}", VCPUS.end(), self.vcpus));
        }
        if !MONITORS.contains(&self.monitors) {
            return problem(About::Monitors, format!("`monitors` is 1 to {}, not {}", MONITORS.end(), self.monitors));
        }
        None
    }

    fn bus_problem(&self) -> Option<Problem> {
        let memory = self.bus.memory;
        if memory != 0 && !(BUS_MEMORY_MIB.contains(&memory) && memory.is_power_of_two()) {
            let most = BUS_MEMORY_MIB.end();
            let reason = format!("`memory` of the bus is 0 or a power of two up to {most} MiB, not {memory}");
            return problem(About::BusMemory, reason);
        }
        if !self.bus.enabled && self.session.input == Provider::Bus {
            return problem(About::SessionInput, "`input = \"bus\"` needs a bus, which `[bus]` switches off");
        }
        None
    }

    fn checkpoints_problem(&self) -> Option<Problem> {
        let schedule = self.checkpoints?;
        if !CHECKPOINT_MINUTES.contains(&schedule.every) {
            let (every, most) = (schedule.every, CHECKPOINT_MINUTES.end());
            let reason = format!("`every` of the checkpoints is 1 to {most} minutes, not {every}");
            return problem(About::CheckpointsEvery, reason);
        }
        if !CHECKPOINTS_KEPT.contains(&schedule.keep) {
            let (keep, most) = (schedule.keep, CHECKPOINTS_KEPT.end());
            return problem(About::CheckpointsKeep, format!("`keep` of the checkpoints is 1 to {most}, not {keep}"));
        }
        None
    }

    fn boot_problem(&self) -> Option<Problem> {
        if self.firmware.is_uefi() && self.memory < UEFI_MEMORY_MIB {
            return problem(About::Boot, format!("UEFI needs {UEFI_MEMORY_MIB} MiB of memory, not {}", self.memory));
        }
        let Boot::DirectKernel { kernel, initrd, cmdline } = &self.boot else { return None };
        path_problem(About::Kernel, "kernel", kernel)
            .or_else(|| path_problem(About::Initrd, "initrd", initrd.as_deref()?))
            .or_else(|| cmdline_problem(cmdline))
    }
}

fn name_problem(name: &str) -> Option<Problem> {
    let reason = if name.is_empty() {
        "`name` is empty".into()
    } else if name.len() > MAX_NAME {
        format!("`name` is longer than {MAX_NAME} bytes")
    } else if let Some(bad) = name.chars().find(|c| !c.is_alphanumeric() && !" -_.".contains(*c)) {
        format!("`name` may not have {bad:?}: letters, digits, ' ', '-', '_' and '.' only")
    } else if !name.starts_with(char::is_alphanumeric) || name.ends_with([' ', '.']) {
        "`name` must begin with a letter or digit and not end with ' ' or '.'".into()
    } else {
        return None;
    };
    problem(About::Name, reason)
}

pub(super) fn path_problem(about: About, key: &str, path: &Path) -> Option<Problem> {
    if !path.is_absolute() {
        return problem(about, format!("`{key}` must be an absolute path, not {:?}", path.display().to_string()));
    }
    // QEMU takes its paths as text.
    let text = path.to_str();
    if text.is_none_or(|text| text.chars().any(char::is_control)) {
        return problem(about, format!("`{key}` may have no control characters and must be UTF-8"));
    }
    None
}

fn cmdline_problem(cmdline: &str) -> Option<Problem> {
    if cmdline.len() > MAX_CMDLINE {
        return problem(About::Cmdline, format!("`cmdline` is longer than {MAX_CMDLINE} bytes"));
    }
    if cmdline.chars().any(char::is_control) {
        return problem(About::Cmdline, "`cmdline` may have no control characters");
    }
    None
}

#[expect(clippy::unnecessary_wraps, reason = "every caller returns the answer as its own")]
pub(super) fn problem(about: About, reason: impl Into<String>) -> Option<Problem> {
    Some(Problem { about, reason: reason.into() })
}
