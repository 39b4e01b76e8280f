//! What `vm create` and `vm edit` say of a VM beside its disks.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use vmm::{
    Accelerator, Boot, Bus, CheckpointSchedule, Definition, DynamicMemory, IdeModel, MemoryDevices, Provider, ScsiModel,
};

use super::disk_option::{absolute, word};
use super::hardware::Hardware;
use super::size::parse_size;

const MEMORY_HELP: &str = "\
Memory: MIB[,minimum=MIB][,maximum=MIB][,buffer=PERCENT][,weight=0..10000][,devices=virtio|hyperv]. MIB alone is always the
same; with a minimum or maximum it follows the guest's need. What is not said stays as it is.";

/// Memory, processors, firmware and the rest.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub(super) struct Settings {
    /// Memory in MiB; with a minimum or maximum it follows the guest's need
    #[arg(long, value_name = "MIB[,…]", value_parser = parse_memory, long_help = MEMORY_HELP)]
    memory: Option<MemoryOption>,
    #[command(flatten)]
    hardware: Hardware,
    /// The SCSI controllers, virtio unless said otherwise: virtio, lsi
    #[arg(long, value_name = "MODEL[,…]", value_parser = list::<ScsiModel>)]
    scsi: Option<List<ScsiModel>>,
    /// The IDE controllers, ahci unless said otherwise: ahci, piix
    #[arg(long, value_name = "MODEL[,…]", value_parser = list::<IdeModel>)]
    ide: Option<List<IdeModel>>,
    /// A Linux kernel to start instead of the firmware
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The initial file system of that kernel
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The command line of that kernel
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Most monitors the guest may have, 1 unless said otherwise
    #[arg(long, value_name = "NUMBER")]
    monitors: Option<u8>,
    /// How the processors are run: auto, kvm or tcg
    #[arg(long, value_name = "WORD", value_parser = word::<Accelerator>)]
    accelerator: Option<Accelerator>,
    /// Memory in MiB that the bus to the guest's agent shares, 0 for its port only; `none` for no bus
    #[arg(long, value_name = "MIB|none", value_parser = parse_bus)]
    bus: Option<Bus>,
    /// How a session's keyboard, pointer and touch reach the guest: auto, hardware or bus
    #[arg(long, value_name = "WORD", value_parser = word::<Provider>)]
    session_input: Option<Provider>,
    /// Checkpoints by the clock: every=MINUTES,keep=NUMBER, or none
    #[arg(long, value_name = "every=MINUTES,keep=NUMBER", value_parser = parse_checkpoints)]
    checkpoints: Option<CheckpointsOption>,
}

/// A `--memory`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct MemoryOption {
    startup: Option<u32>,
    minimum: Option<u32>,
    maximum: Option<u32>,
    buffer: Option<u16>,
    weight: Option<u16>,
    devices: Option<MemoryDevices>,
}

/// Clap takes a `Vec` for an option that may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
struct List<T>(Vec<T>);

/// A `--checkpoints`; none: there are none by the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CheckpointsOption(Option<CheckpointSchedule>);

impl Settings {
    /// Makes `definition` what was asked for.
    pub(super) fn apply(self, definition: &mut Definition) -> Result<(), String> {
        if let Some(memory) = self.memory {
            memory.apply(definition);
        }
        if let Some(List(models)) = self.scsi {
            definition.controllers.scsi = models;
        }
        if let Some(List(models)) = self.ide {
            definition.controllers.ide = models;
        }
        definition.monitors = self.monitors.unwrap_or(definition.monitors);
        definition.accelerator = self.accelerator.unwrap_or(definition.accelerator);
        definition.bus = self.bus.unwrap_or(definition.bus);
        definition.session.input = self.session_input.unwrap_or(definition.session.input);
        if let Some(CheckpointsOption(schedule)) = self.checkpoints {
            definition.checkpoints = schedule;
        }
        self.hardware.apply(definition);
        apply_kernel(definition, self.kernel, self.initrd, self.cmdline)
    }
}

impl MemoryOption {
    fn apply(self, definition: &mut Definition) {
        let startup = self.startup.unwrap_or(definition.memory);
        definition.memory = startup;
        if self == (Self { startup: self.startup, ..Self::default() }) {
            definition.dynamic_memory = None;
            return;
        }
        let before = definition.dynamic_memory.unwrap_or(DynamicMemory::between(startup, startup));
        definition.dynamic_memory = Some(DynamicMemory {
            minimum: self.minimum.unwrap_or(before.minimum),
            maximum: self.maximum.unwrap_or(before.maximum),
            buffer: self.buffer.unwrap_or(before.buffer),
            weight: self.weight.unwrap_or(before.weight),
            devices: self.devices.unwrap_or(before.devices),
        });
    }
}

fn apply_kernel(
    definition: &mut Definition,
    new_kernel: Option<PathBuf>,
    new_initrd: Option<PathBuf>,
    new_cmdline: Option<String>,
) -> Result<(), String> {
    if new_kernel.is_none() && new_initrd.is_none() && new_cmdline.is_none() {
        return Ok(());
    }
    if let Some(kernel) = new_kernel {
        // Another kernel keeps what was said to the one before.
        let (initrd, cmdline) = match std::mem::replace(&mut definition.boot, Boot::Firmware) {
            Boot::DirectKernel { initrd, cmdline, .. } => (initrd, cmdline),
            Boot::Firmware => (None, String::new()),
        };
        definition.boot = Boot::DirectKernel { kernel: absolute(kernel), initrd, cmdline };
    }
    let Boot::DirectKernel { initrd, cmdline, .. } = &mut definition.boot else {
        return Err("--initrd and --cmdline are for a VM with a --kernel".into());
    };
    if let Some(new) = new_initrd {
        *initrd = Some(absolute(new));
    }
    if let Some(new) = new_cmdline {
        *cmdline = new;
    }
    Ok(())
}

/// Reads `512`, `512,minimum=256,maximum=2048,buffer=20,weight=5000`, `maximum=2048`; virt-install says `maxmemory`.
fn parse_memory(text: &str) -> Result<MemoryOption, String> {
    let mut option = MemoryOption::default();
    for part in text.split(',') {
        match part.split_once('=') {
            None => option.startup = Some(mebibytes(part)?),
            Some(("memory" | "startup", value)) => option.startup = Some(mebibytes(value)?),
            Some(("minimum", value)) => option.minimum = Some(mebibytes(value)?),
            Some(("maximum" | "maxmemory", value)) => option.maximum = Some(mebibytes(value)?),
            Some(("buffer", value)) => option.buffer = Some(number(value)?),
            Some(("weight", value)) => option.weight = Some(number(value)?),
            Some(("devices", value)) => option.devices = Some(word(value)?),
            Some(_) => return Err(format!("`{part}` is not one of minimum=, maximum=, buffer=, weight=, devices=")),
        }
    }
    Ok(option)
}

fn parse_bus(text: &str) -> Result<Bus, String> {
    if text == "none" {
        return Ok(Bus { enabled: false, ..Bus::default() });
    }
    Ok(Bus { enabled: true, memory: number(text)? })
}

/// Reads `every=60,keep=5` and `none`.
fn parse_checkpoints(text: &str) -> Result<CheckpointsOption, String> {
    if text == "none" {
        return Ok(CheckpointsOption(None));
    }
    let (mut every, mut keep) = (None, None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("every", value)) => every = Some(number(value)?),
            Some(("keep", value)) => keep = Some(number(value)?),
            _ => return Err(format!("`{part}` is not one of every=, keep=, none")),
        }
    }
    let schedule = every.zip(keep).map(|(every, keep)| CheckpointSchedule { every, keep });
    schedule.map(|schedule| CheckpointsOption(Some(schedule))).ok_or_else(|| "write every=MINUTES,keep=NUMBER".into())
}

/// The words of a list, without the spaces between them.
fn list<T: serde::de::DeserializeOwned>(words: &str) -> Result<List<T>, String> {
    words.split(',').map(|part| word(part.trim())).collect::<Result<_, _>>().map(List)
}

/// Reads `2048`, `2048M`, `2G`.
fn mebibytes(text: &str) -> Result<u32, String> {
    if let Ok(mebibytes) = text.parse() {
        return Ok(mebibytes);
    }
    let mebibytes = parse_size(text).ok().filter(|bytes| bytes.is_multiple_of(1 << 20)).map(|bytes| bytes >> 20);
    let mebibytes = mebibytes.and_then(|mebibytes| u32::try_from(mebibytes).ok());
    mebibytes.ok_or_else(|| format!("`{text}` is no amount of memory: write 2048 (MiB), 2048M or 2G"))
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is not a number that could be meant here"))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn with(memory: &str, mut definition: Definition) -> (u32, Option<DynamicMemory>) {
        parse_memory(memory).expect("read").apply(&mut definition);
        (definition.memory, definition.dynamic_memory)
    }

    #[test]
    fn memory_is_a_number_or_more() {
        let demo = Definition::new("demo", Uuid::nil());
        assert_eq!(with("1024", demo.clone()), (1024, None));
        let dynamic = DynamicMemory { weight: 9000, ..DynamicMemory::between(256, 2048) };
        assert_eq!(with("512,minimum=256,maxmemory=2048,weight=9000", demo.clone()), (512, Some(dynamic)));
        assert_eq!(with("2G", demo.clone()), (2048, None));
        for text in ["", "x", "512,", "4096K3", "1K", "512,min=1", "512,weight=99999999", "512,devices=xen", "-1"] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
        // Of a VM that is there, the rest stays.
        let before = Definition { dynamic_memory: Some(dynamic), ..demo };
        let raised = DynamicMemory { maximum: 4096, ..dynamic };
        assert_eq!(with("maximum=4096", before.clone()), (512, Some(raised)));
        assert_eq!(with("600", before), (600, None));
    }

    #[test]
    fn a_kernel_is_changed_in_parts() {
        let mut demo = Definition::new("demo", Uuid::nil());
        assert!(apply_kernel(&mut demo, None, Some("/i".into()), None).is_err(), "there is no kernel");
        apply_kernel(&mut demo, Some("/k".into()), Some("/i".into()), Some("quiet".into())).expect("all");
        apply_kernel(&mut demo, Some("/other".into()), None, None).expect("the kernel alone");
        apply_kernel(&mut demo, None, None, Some("-x".into())).expect("the words alone");
        let boot = Boot::DirectKernel { kernel: "/other".into(), initrd: Some("/i".into()), cmdline: "-x".into() };
        assert_eq!(demo.boot, boot);
    }

    #[test]
    fn schedules_and_buses_are_read() {
        let schedule = CheckpointSchedule { every: 60, keep: 5 };
        assert_eq!(parse_checkpoints("every=60,keep=5"), Ok(CheckpointsOption(Some(schedule))));
        assert_eq!(parse_checkpoints("none"), Ok(CheckpointsOption(None)));
        assert!(parse_checkpoints("every=60").is_err() && parse_checkpoints("hourly").is_err());
        assert_eq!(parse_bus("0"), Ok(Bus { enabled: true, memory: 0 }));
        assert!(!parse_bus("none").expect("read").enabled && parse_bus("x").is_err());
    }
}
