//! Where each value stands in a definition's file: for what is said of it.

use std::ops::Range;

use toml::Spanned;

use super::super::memory::MemorySpans;
use super::{About, DiskTable, File};

/// Where each value stands in the file.
pub(super) struct Spans {
    pub(super) name: Range<usize>,
    pub(super) uuid: Range<usize>,
    memory: MemorySpans,
    vcpus: Range<usize>,
    monitors: Range<usize>,
    bus_memory: Range<usize>,
    session_input: Range<usize>,
    checkpoints: (Range<usize>, Range<usize>),
    kernel: Range<usize>,
    initrd: Range<usize>,
    cmdline: Range<usize>,
    controllers: Range<usize>,
    network: Range<usize>,
    boot: Range<usize>,
    cpu: Range<usize>,
    cpu_model: Range<usize>,
    disks: Vec<DiskSpans>,
}

struct DiskSpans {
    whole: Range<usize>,
    id: Range<usize>,
    source: Range<usize>,
}

impl DiskSpans {
    fn of(table: &Spanned<DiskTable>) -> Self {
        let (whole, disk) = (table.span(), table.get_ref());
        let source = disk.path.as_ref().map(Spanned::span).or(disk.url.as_ref().map(Spanned::span));
        let id = disk.id.as_ref().map(Spanned::span);
        Self { id: id.unwrap_or(whole.clone()), source: source.unwrap_or(whole.clone()), whole }
    }
}

impl Spans {
    pub(super) fn of(file: &File) -> Self {
        let boot = file.boot.as_ref();
        let whole = boot.map(Spanned::span).unwrap_or_default();
        let boot = boot.map(Spanned::get_ref);
        Self {
            name: file.name.span(),
            uuid: file.uuid.span(),
            memory: MemorySpans::of(&file.memory),
            vcpus: file.vcpus.span(),
            monitors: file.monitors.span(),
            bus_memory: file.bus.memory.as_ref().map(Spanned::span).unwrap_or_default(),
            session_input: file.session.input.as_ref().map(Spanned::span).unwrap_or_default(),
            checkpoints: file
                .checkpoints
                .as_ref()
                .map(|table| (table.every.span(), table.keep.span()))
                .unwrap_or_default(),
            kernel: boot.and_then(|boot| boot.kernel.as_ref()).map_or(whole.clone(), Spanned::span),
            initrd: boot.and_then(|boot| boot.initrd.as_ref()).map_or(whole.clone(), Spanned::span),
            cmdline: boot.and_then(|boot| boot.cmdline.as_ref()).map_or(whole.clone(), Spanned::span),
            network: file.network.as_ref().map(Spanned::span).unwrap_or_default(),
            boot: whole,
            cpu: file.cpu.as_ref().map(Spanned::span).unwrap_or_default(),
            cpu_model: file.cpu.as_ref().and_then(|cpu| cpu.get_ref().model_span()).unwrap_or_default(),
            controllers: file.controllers.as_ref().map(Spanned::span).unwrap_or_default(),
            disks: file.disks.iter().map(DiskSpans::of).collect(),
        }
    }

    pub(super) fn find(&self, about: About) -> Range<usize> {
        let found = match about {
            About::Name => Some(&self.name),
            About::Memory(part) => Some(self.memory.find(part)),
            About::Vcpus => Some(&self.vcpus),
            About::Monitors => Some(&self.monitors),
            About::BusMemory => Some(&self.bus_memory),
            About::SessionInput => Some(&self.session_input),
            About::CheckpointsEvery => Some(&self.checkpoints.0),
            About::CheckpointsKeep => Some(&self.checkpoints.1),
            About::Kernel => Some(&self.kernel),
            About::Initrd => Some(&self.initrd),
            About::Cmdline => Some(&self.cmdline),
            About::Network => Some(&self.network),
            About::Boot => Some(&self.boot),
            About::Cpu => Some(&self.cpu),
            About::CpuModel => Some(&self.cpu_model),
            About::Controllers => Some(&self.controllers),
            About::Disk(index) => self.disks.get(index).map(|disk| &disk.whole),
            About::DiskId(index) => self.disks.get(index).map(|disk| &disk.id),
            About::DiskSource(index) => self.disks.get(index).map(|disk| &disk.source),
        };
        found.cloned().unwrap_or_default()
    }
}
