//! A definition's text.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use uuid::Uuid;

use super::cpu::CpuTable;
use super::firmware::{FirmwareWord, TpmTable};
use super::memory::{MemoryKey, MemoryPart, MemorySpans};
use super::network::NetworkKey;
use super::{
    Accelerator, Boot, Bus, CheckpointSchedule, Controllers, Definition, Disk, DiskBus, DiskCache, DiskFormat,
    DiskSource, Firmware, IdeModel, Provider, ScsiModel, Session, Tpm,
};

/// Largest definition that is read, in bytes.
pub(super) const MAX_FILE: usize = 256 * 1024;

/// Why a definition was refused, and where it says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}:{column}: {reason}", file.display())]
pub struct DefinitionError {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl DefinitionError {
    /// An error about the file as a whole.
    pub(crate) fn whole(file: &Path, reason: impl Into<String>) -> Self {
        Self { file: file.into(), line: 1, column: 1, reason: reason.into() }
    }

    /// An error about `span` of `text`.
    fn at(file: &Path, text: &str, span: Range<usize>, reason: impl Into<String>) -> Self {
        let before = text.get(..span.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            file: file.into(),
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).map_or(0, |start| start.chars().count()) + 1,
            reason: reason.into(),
        }
    }
}

impl Definition {
    /// Reads a definition from the text of `file`, which is only named in errors.
    ///
    /// # Errors
    ///
    /// The first place that is not TOML, has an unknown key or a wrong type, or says what cannot be.
    pub fn parse(text: &str, file: &Path) -> Result<Self, DefinitionError> {
        Self::read(text, file).map(|(definition, _)| definition)
    }

    /// Reads what is to be the definition of the VM that `known` is one of: its name and UUID stay.
    pub(super) fn parse_of(text: &str, file: &Path, known: &Self) -> Result<Self, DefinitionError> {
        let (definition, spans) = Self::read(text, file)?;
        let stays = |span: &Range<usize>, reason| Err(DefinitionError::at(file, text, span.clone(), reason));
        if definition.name != known.name {
            return stays(&spans.name, format!("`name` of a VM stays: it is {:?}", known.name));
        }
        if definition.uuid != known.uuid {
            return stays(&spans.uuid, format!("`uuid` of a VM stays: it is \"{}\"", known.uuid));
        }
        Ok(definition)
    }

    fn read(text: &str, file: &Path) -> Result<(Self, Spans), DefinitionError> {
        if text.len() > MAX_FILE {
            return Err(DefinitionError::whole(file, format!("larger than {MAX_FILE} bytes")));
        }
        let read: File = toml::from_str(text).map_err(|error| {
            DefinitionError::at(file, text, error.span().unwrap_or(0..0), error.message().trim_end())
        })?;
        let spans = Spans::of(&read);
        let mut definition =
            read.into_definition().map_err(|(span, reason)| DefinitionError::at(file, text, span, reason))?;
        definition.settle();
        definition.problem().map_or(Ok(()), |problem| {
            Err(DefinitionError::at(file, text, spans.find(problem.about), problem.reason))
        })?;
        Ok((definition, spans))
    }

    /// Reads the definition in `file`.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse), or that the file cannot be read.
    pub fn load(file: &Path) -> Result<Self, DefinitionError> {
        let text = std::fs::read_to_string(file).map_err(|error| DefinitionError::whole(file, error.to_string()))?;
        Self::parse(&text, file)
    }
}

/// What a problem is about; `parse` knows where each of them stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    Name,
    Memory(MemoryPart),
    Vcpus,
    Monitors,
    BusMemory,
    SessionInput,
    CheckpointsEvery,
    CheckpointsKeep,
    Kernel,
    Initrd,
    Cmdline,
    Controllers,
    Network,
    Boot,
    Cpu,
    CpuModel,
    Disk(usize),
    DiskId(usize),
    DiskSource(usize),
}

/// The keys of the file as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Spanned<String>,
    uuid: Spanned<String>,
    memory: Spanned<MemoryKey>,
    #[serde(default = "one")]
    vcpus: Spanned<u8>,
    #[serde(default = "auto")]
    accelerator: Accelerator,
    #[serde(default = "one")]
    monitors: Spanned<u8>,
    network: Option<Spanned<NetworkKey>>,
    #[serde(default)]
    bus: BusTable,
    #[serde(default)]
    session: SessionTable,
    checkpoints: Option<CheckpointsTable>,
    cpu: Option<Spanned<CpuTable>>,
    tpm: Option<TpmTable>,
    boot: Option<Spanned<BootTable>>,
    controllers: Option<Spanned<ControllersTable>>,
    #[serde(default, rename = "disk")]
    disks: Vec<Spanned<DiskTable>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct BusTable {
    enabled: Option<bool>,
    memory: Option<Spanned<u32>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct SessionTable {
    input: Option<Spanned<Provider>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointsTable {
    every: Spanned<u32>,
    keep: Spanned<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BootTable {
    firmware: Option<FirmwareWord>,
    secure_boot: Option<Spanned<bool>>,
    kernel: Option<Spanned<PathBuf>>,
    initrd: Option<Spanned<PathBuf>>,
    cmdline: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct ControllersTable {
    ide: Option<Vec<IdeModel>>,
    scsi: Option<Vec<ScsiModel>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskTable {
    id: Option<Spanned<String>>,
    path: Option<Spanned<PathBuf>>,
    url: Option<Spanned<String>>,
    format: Option<DiskFormat>,
    #[serde(default = "virtio")]
    bus: DiskBus,
    #[serde(default)]
    controller: u8,
    unit: Option<u8>,
    serial: Option<String>,
    #[serde(default)]
    cache: DiskCache,
    #[serde(default)]
    readonly: bool,
    #[serde(default)]
    cdrom: bool,
}

pub(super) type Misplaced = (Range<usize>, String);

impl File {
    fn into_definition(self) -> Result<Definition, Misplaced> {
        let uuid = Uuid::parse_str(self.uuid.get_ref())
            .map_err(|error| (self.uuid.span(), format!("`uuid` is not a UUID: {error}")))?;
        let (firmware, boot) = self.boot.map_or(Ok((Firmware::Bios, Boot::Firmware)), into_boot)?;
        let network = self.network.map(|key| (key.span(), key.into_inner()));
        let network = network.map(|(span, key)| key.into_network(&span)).transpose()?;
        let vcpus = self.vcpus.into_inner();
        let cpu = self.cpu.map(|table| (table.span(), table.into_inner().into_cpu(vcpus)));
        let cpu = cpu.map(|(span, cpu)| cpu.map_err(|reason| (span, reason))).transpose()?;
        Ok(Definition {
            name: self.name.into_inner(),
            uuid,
            memory: self.memory.get_ref().startup(),
            dynamic_memory: self.memory.get_ref().dynamic(),
            vcpus,
            cpu: cpu.unwrap_or_default(),
            accelerator: self.accelerator,
            monitors: self.monitors.into_inner(),
            network: network.unwrap_or_default(),
            bus: self.bus.into_bus(),
            session: Session { input: self.session.input.map(Spanned::into_inner).unwrap_or_default() },
            checkpoints: self
                .checkpoints
                .map(|table| CheckpointSchedule { every: table.every.into_inner(), keep: table.keep.into_inner() }),
            firmware,
            tpm: self.tpm.map(|table| Tpm { model: table.model }),
            boot,
            controllers: self.controllers.map(|table| table.into_inner().into_controllers()).unwrap_or_default(),
            disks: self.disks.into_iter().map(into_disk).collect::<Result<_, _>>()?,
        })
    }
}

impl BusTable {
    fn into_bus(self) -> Bus {
        let usual = Bus::default();
        Bus {
            enabled: self.enabled.unwrap_or(usual.enabled),
            memory: self.memory.map_or(usual.memory, Spanned::into_inner),
        }
    }
}

fn into_boot(table: Spanned<BootTable>) -> Result<(Firmware, Boot), Misplaced> {
    let whole = table.span();
    let BootTable { firmware: word, secure_boot, kernel, initrd, cmdline } = table.into_inner();
    let firmware = FirmwareWord::firmware(word, secure_boot.as_ref())?;
    let Some(kernel) = kernel else {
        return match (word, initrd, cmdline) {
            (None, ..) => {
                Err((whole, "`[boot]` needs `firmware = \"bios\"`, `firmware = \"uefi\"` or `kernel`".into()))
            }
            (_, Some(initrd), _) => Err((initrd.span(), "`initrd` goes with `kernel` only".into())),
            (_, _, Some(cmdline)) => Err((cmdline.span(), "`cmdline` goes with `kernel` only".into())),
            (Some(_), None, None) => Ok((firmware, Boot::Firmware)),
        };
    };
    let boot = Boot::DirectKernel {
        kernel: kernel.into_inner(),
        initrd: initrd.map(Spanned::into_inner),
        cmdline: cmdline.map(Spanned::into_inner).unwrap_or_default(),
    };
    Ok((firmware, boot))
}

impl ControllersTable {
    fn into_controllers(self) -> Controllers {
        let usual = Controllers::default();
        Controllers { ide: self.ide.unwrap_or(usual.ide), scsi: self.scsi.unwrap_or(usual.scsi) }
    }
}

fn into_disk(table: Spanned<DiskTable>) -> Result<Disk, Misplaced> {
    let whole = table.span();
    let table = table.into_inner();
    let source = match (table.path, table.url) {
        (Some(_), Some(url)) => return Err((url.span(), "`path` and `url` exclude each other".into())),
        (Some(path), None) => DiskSource::Path(path.into_inner()),
        (None, Some(url)) => {
            let remote = url.get_ref().parse().map_err(|error| (url.span(), format!("`url`: {error}")))?;
            DiskSource::Remote(remote)
        }
        (None, None) => DiskSource::Empty,
    };
    // A disc has no other: saying so is not asked of anybody.
    let format = table.format.or(table.cdrom.then_some(DiskFormat::Raw));
    Ok(Disk {
        id: table.id.map(Spanned::into_inner).unwrap_or_default(),
        source,
        format: format.ok_or_else(|| (whole, "missing field `format`".to_owned()))?,
        bus: table.bus,
        controller: table.controller,
        unit: table.unit,
        serial: table.serial,
        cache: table.cache,
        // A CD is never written: the same.
        readonly: table.readonly || table.cdrom,
        cdrom: table.cdrom,
    })
}

/// Where each value stands in the file.
struct Spans {
    name: Range<usize>,
    uuid: Range<usize>,
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
    fn of(file: &File) -> Self {
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

    fn find(&self, about: About) -> Range<usize> {
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

fn one() -> Spanned<u8> {
    Spanned::new(0..0, 1)
}

fn auto() -> Accelerator {
    Accelerator::Auto
}

fn virtio() -> DiskBus {
    DiskBus::Virtio
}

#[cfg(test)]
mod tests {
    use super::super::{Network, NetworkCard, NetworkMode};
    use super::*;
    use crate::definition::DynamicMemory;

    const HEAD: &str = "name = \"demo\"\nuuid = \"6fa9d1d2-0a37-4d7b-8f6e-0c6c3f5b2a11\"\nmemory = 256\n";

    fn parse(text: &str) -> Result<Definition, DefinitionError> {
        Definition::parse(text, Path::new("demo.toml"))
    }

    fn refusal(text: &str) -> String {
        parse(text).expect_err("must be refused").to_string()
    }

    #[test]
    fn the_shortest_definition_has_the_usual_hardware() {
        let definition = parse(HEAD).expect("valid");
        let uuid = Uuid::parse_str("6fa9d1d2-0a37-4d7b-8f6e-0c6c3f5b2a11").expect("valid");
        assert_eq!(definition, Definition { memory: 256, ..Definition::new("demo", uuid) });
    }

    #[test]
    fn everything_that_can_be_said_is_read() {
        let text = format!(
            "{HEAD}vcpus = 4\naccelerator = \"tcg\"\nmonitors = 3\nnetwork = \"none\"\n\
             [bus]\nenabled = true\nmemory = 128\n\
             [session]\ninput = \"hardware\"\n\
             [checkpoints]\nevery = 60\nkeep = 24\n\
             [boot]\nkernel = \"/k\"\ninitrd = \"/i\"\ncmdline = \"quiet\"\n\
             [[disk]]\npath = \"/a.vhd\"\nformat = \"vpc\"\nbus = \"ide\"\n\
             [controllers]\nscsi = [\"virtio\", \"lsi\"]\n\
             [[disk]]\nbus = \"scsi\"\ncdrom = true\n\
             [[disk]]\nid = \"data\"\nurl = \"nbd://host/x\"\nformat = \"raw\"\nbus = \"scsi\"\ncontroller = 1\n\
             unit = 3\nserial = \"S-1\"\ncache = \"none\"\n"
        );
        let definition = parse(&text).expect("valid");
        assert_eq!((definition.vcpus, definition.monitors), (4, 3));
        assert_eq!(definition.accelerator, Accelerator::Tcg);
        assert_eq!(definition.network, Network::none());
        assert_eq!(definition.bus, Bus { enabled: true, memory: 128 });
        assert_eq!(definition.session, Session { input: Provider::Hardware });
        assert_eq!(definition.checkpoints, Some(CheckpointSchedule { every: 60, keep: 24 }));
        let Boot::DirectKernel { initrd, cmdline, .. } = definition.boot else { panic!("a kernel was given") };
        assert_eq!((initrd, cmdline.as_str()), (Some("/i".into()), "quiet"));
        assert_eq!(definition.disks[0].format, DiskFormat::Vhd);
        assert!(definition.disks[1].cdrom && definition.disks[1].readonly);
        assert_eq!((definition.disks[1].id.as_str(), &definition.disks[1].source), ("disk1", &DiskSource::Empty));
        assert_eq!(definition.controllers.scsi, [ScsiModel::Virtio, ScsiModel::Lsi]);
        let remote = DiskSource::Remote("nbd://host/x".parse().expect("valid"));
        let data = Disk {
            id: "data".into(),
            controller: 1,
            unit: Some(3),
            serial: Some("S-1".into()),
            cache: DiskCache::None,
            ..Disk::new(remote, DiskFormat::Raw, DiskBus::Scsi)
        };
        assert_eq!(definition.disks[2], data);
    }

    #[test]
    fn memory_is_a_number_or_a_table() {
        let head = HEAD.replace("memory = 256\n", "");
        let table = "startup = 512\nminimum = 256\nmaximum = 2048\nbuffer = 30\nweight = 100\n";
        let definition = parse(&format!("{head}[memory]\n{table}")).expect("valid");
        let expected = DynamicMemory { buffer: 30, weight: 100, ..DynamicMemory::between(256, 2048) };
        assert_eq!((definition.memory, definition.dynamic_memory), (512, Some(expected)));
        let short = parse(&HEAD.replace("256", "{ startup = 512, maximum = 1024 }")).expect("valid");
        assert_eq!(short.dynamic_memory, Some(DynamicMemory::between(512, 1024)));
        assert_eq!(parse(HEAD).expect("valid").dynamic_memory, None);
    }

    #[test]
    fn a_network_is_a_word_or_a_table() {
        let network = |text: &str| parse(&format!("{HEAD}{text}")).expect("valid").network;
        assert_eq!(network(""), Network::default());
        assert_eq!(network("network = \"user\"\n"), Network::default());
        let forwarded = network("[network]\nmode = \"user\"\nforward = [\"tcp::2222-:22\"]\ncard = \"e1000\"\n");
        assert_eq!(forwarded.forward[0].to_string(), "tcp:127.0.0.1:2222-:22");
        assert_eq!(forwarded.card, NetworkCard::E1000);
        let bridge = network("network = { mode = \"bridge\", name = \"br0\" }\n");
        assert_eq!(bridge.mode, NetworkMode::Bridge("br0".parse().expect("a name")));
    }

    #[test]
    fn firmware_processors_and_tpm_are_read() {
        let text = "vcpus = 8\n[cpu]\nthreads = 2\nmodel = \"qemu32\"\n[tpm]\n[boot]\nfirmware = \"uefi\"\nsecure_boot = true\n";
        let definition = parse(&format!("{HEAD}{text}")).expect("valid");
        assert_eq!(definition.firmware, Firmware::Uefi { secure_boot: true });
        assert_eq!((definition.boot, definition.tpm), (Boot::Firmware, Some(Tpm::default())));
        let topology = definition.cpu.topology.expect("said");
        assert_eq!((topology.sockets, topology.cores, topology.threads), (1, 4, 2));
        assert_eq!(definition.cpu.model.as_deref(), Some("qemu32"));
        let with_kernel = parse(&format!("{HEAD}[boot]\nfirmware = \"uefi\"\nkernel = \"/k\"\n")).expect("valid");
        assert_eq!(with_kernel.firmware, Firmware::Uefi { secure_boot: false });
        assert!(matches!(with_kernel.boot, Boot::DirectKernel { .. }));
    }

    #[test]
    fn a_refusal_says_where_and_why() {
        let cases = [
            ("name = ", "demo.toml:1:8: "),
            ("nam = \"x\"", "demo.toml:1:1: unknown field `nam`"),
            ("name = 5", "demo.toml:1:8: invalid type: integer `5`, expected a string"),
            ("name = \"x\"", "demo.toml:1:1: missing field `uuid`"),
            ("name = \"x\"\nuuid = \"12\"\nmemory = 64", "demo.toml:2:8: `uuid` is not a UUID"),
            (&format!("{HEAD}vcpus = 33\n"), "demo.toml:4:9: `vcpus` is 1 to 32, not 33"),
            (&format!("{HEAD}vcpus = 300\n"), "demo.toml:4:9: invalid value: integer `300`, expected u8"),
            (&format!("{HEAD}monitors = 0\n"), "demo.toml:4:12: `monitors` is 1 to 16, not 0"),
            (&format!("{HEAD}  colour = 1\n"), "demo.toml:4:3: unknown field `colour`"),
            (&format!("{HEAD}accelerator = \"hvf\"\n"), "demo.toml:4:15: unknown variant `hvf`"),
            (&format!("{HEAD}name = \"again\"\n"), "demo.toml:4:1: duplicate key"),
            (&HEAD.replace("256", "0"), "demo.toml:3:10: `memory` is 16 to 1048576 MiB, not 0"),
            (&HEAD.replace("256", "\"1G\""), "demo.toml:3:10: invalid type: string \"1G\", expected MiB or a table"),
            (&HEAD.replace("256", "-1"), "demo.toml:3:10: invalid value: integer `-1`, expected MiB or a table"),
            (&HEAD.replace("256", "{ minimum = 64 }"), "demo.toml:3:10: missing field `startup`"),
            (&HEAD.replace("256", "{ startup = 4 }"), "demo.toml:3:22: `memory` is 16 to 1048576 MiB, not 4"),
            (&HEAD.replace("256", "{ startup = 64, top = 4 }"), "demo.toml:3:26: unknown field `top`"),
            (
                &HEAD.replace("256", "{ startup = 64, minimum = 65 }"),
                "demo.toml:3:36: `minimum` is 16 to `startup` (64) MiB, not 65",
            ),
            (
                &HEAD.replace("256", "{ startup = 64, maximum = 63 }"),
                "demo.toml:3:36: `maximum` is `startup` (64) to 1048576 MiB, not 63",
            ),
            (&HEAD.replace("256", "{ startup = 64, buffer = 4 }"), "demo.toml:3:35: `buffer` is 5 to 2000 %, not 4"),
            (&HEAD.replace("256", "{ startup = 64, weight = 10001 }"), "demo.toml:3:35: `weight` is 0 to 10000"),
            (&HEAD.replace("256", "{ startup = 64, weight = -1 }"), "demo.toml:3:35: invalid value: integer `-1`"),
            (&HEAD.replace("256", "{ startup = 64, devices = \"xen\" }"), "demo.toml:3:36: unknown variant `xen`"),
            (
                &format!("{}accelerator = \"tcg\"\n", HEAD.replace("256", "{ startup = 64, devices = \"hyperv\" }")),
                "demo.toml:3:36: `devices = \"hyperv\"` needs KVM",
            ),
            (&HEAD.replace("demo", "a/b"), "demo.toml:1:8: `name` may not have '/'"),
            (&HEAD.replace("demo", ".."), "demo.toml:1:8: `name` "),
            (&HEAD.replace("demo", ""), "demo.toml:1:8: `name` is empty"),
            (&format!("{HEAD}[bus]\nmemory = 48\n"), "demo.toml:5:10: `memory` of the bus is 0 or a power of two"),
            (&format!("{HEAD}[bus]\nmemory = 2048\n"), "demo.toml:5:10: `memory` of the bus is 0 or a power of two"),
            (&format!("{HEAD}[bus]\nenabled = 1\n"), "demo.toml:5:11: invalid type: integer `1`, expected a boolean"),
            (&format!("{HEAD}[bus]\nsize = 1\n"), "demo.toml:5:1: unknown field `size`"),
            (
                &format!("{HEAD}[session]\ninput = \"bus\"\n[bus]\nenabled = false\n"),
                "demo.toml:5:9: `input = \"bus\"` needs a bus, which `[bus]` switches off",
            ),
            (&format!("{HEAD}[session]\ninput = \"agent\"\n"), "demo.toml:5:9: unknown variant `agent`"),
            (&format!("{HEAD}[session]\nsound = \"bus\"\n"), "demo.toml:5:1: unknown field `sound`"),
            (&format!("{HEAD}[checkpoints]\nevery = 5\n"), "demo.toml:4:1: missing field `keep`"),
            (
                &format!("{HEAD}[checkpoints]\nevery = 0\nkeep = 3\n"),
                "demo.toml:5:9: `every` of the checkpoints is 1 to 10080 minutes, not 0",
            ),
            (
                &format!("{HEAD}[checkpoints]\nevery = 5\nkeep = 101\n"),
                "demo.toml:6:8: `keep` of the checkpoints is 1 to 100, not 101",
            ),
            (&format!("{HEAD}[boot]\n"), "demo.toml:4:1: `[boot]` needs"),
            (&format!("{HEAD}[boot]\ninitrd = \"/i\"\n"), "demo.toml:4:1: `[boot]` needs"),
            (&format!("{HEAD}[boot]\nfirmware = \"bios\"\ncmdline = \"x\"\n"), "demo.toml:6:11: `cmdline` goes with"),
            (
                &format!("{HEAD}[boot]\nsecure_boot = true\nkernel = \"/k\"\n"),
                "demo.toml:5:15: `secure_boot` goes with",
            ),
            (&format!("{HEAD}[boot]\nfirmware = \"efi\"\n"), "demo.toml:5:12: unknown variant `efi`"),
            (
                &format!("{}[boot]\nfirmware = \"uefi\"\n", HEAD.replace("256", "32")),
                "demo.toml:4:1: UEFI needs 64 MiB of memory, not 32",
            ),
            (
                &format!("{HEAD}vcpus = 4\n[cpu]\nsockets = 3\n"),
                "demo.toml:5:1: 3 sockets of 1 cores of 1 threads make 3",
            ),
            (&format!("{HEAD}[cpu]\nmodel = \"a b\"\n"), "demo.toml:5:9: `model` is a name of QEMU's"),
            (&format!("{HEAD}network = \"bridge\"\n"), "demo.toml:4:11: a bridge or tap has a name"),
            (&format!("{HEAD}network = \"lan\"\n"), "demo.toml:4:11: unknown variant `lan`"),
            (&format!("{HEAD}network = 5\n"), "demo.toml:4:11: invalid type: integer `5`, expected \"user\""),
            (&format!("{HEAD}[network]\nmode = \"tap\"\n"), "demo.toml:5:8: a bridge or tap needs its `name`"),
            (
                &format!("{HEAD}[network]\nmode = \"tap\"\nname = \"a/b\"\n"),
                "demo.toml:6:8: \"a/b\" is no name of a network interface",
            ),
            (
                &format!("{HEAD}[network]\nmode = \"user\"\nforward = [\"tcp::1-:1\", \"80\"]\n"),
                "demo.toml:6:25: \"80\" is no forwarded port",
            ),
            (
                &format!("{HEAD}[network]\nmode = \"none\"\nforward = [\"tcp::1-:1\"]\n"),
                "demo.toml:4:1: `forward` goes with `mode = \"user\"` only",
            ),
            (
                &format!("{HEAD}network = {{ mode = \"user\", forward = [\"tcp::1-:1\", \"tcp::1-:2\"] }}\n"),
                "demo.toml:4:11: tcp:127.0.0.1:1-:2: the host's port is forwarded twice",
            ),
            (&format!("{HEAD}[tpm]\nmodel = \"spi\"\n"), "demo.toml:5:9: unknown variant `spi`"),
            (&format!("{HEAD}[boot]\nkernel = \"k\"\n"), "demo.toml:5:10: `kernel` must be an absolute path"),
            (&format!("{HEAD}[boot]\nkernel = \"/k\"\nkernal = 1\n"), "demo.toml:6:1: unknown field `kernal`"),
            (
                &format!(
                    "{HEAD}[[disk]]\npath = \"/d\"\nformat = \"raw\"\n[[disk]]\npath = \"/d\"\nformat = \"raw\"\n"
                ),
                "demo.toml:8:8: disk 2 is the same file as disk 1",
            ),
            (&format!("{HEAD}[[disk]]\npath = \"/d\"\nformat = \"vdi\"\n"), "demo.toml:6:10: unknown variant `vdi`"),
            (&format!("{HEAD}[[disk]]\npath = \"d\"\nformat = \"raw\"\n"), "demo.toml:5:8: `path` must be an absolute"),
            (
                &format!("{HEAD}[[disk]]\npath = \"/d\"\nformat = \"raw\"\nbus = \"virtio\"\ncdrom = true\n"),
                "demo.toml:4:1: disk 1: a CD needs bus",
            ),
            (&format!("{HEAD}[[disk]]\npath = \"/d\"\n"), "demo.toml:4:1: missing field `format`"),
            (&format!("{HEAD}[[disk]]\nformat = \"raw\"\n"), "demo.toml:4:1: disk 1 needs a `path` or a `url`"),
            (
                &format!("{HEAD}[[disk]]\nformat = \"raw\"\nurl = \"ftp://h/x\"\n"),
                "demo.toml:6:7: `url`: `ftp://h/x` is not nbd://",
            ),
            (
                &format!("{HEAD}[[disk]]\nformat = \"raw\"\nurl = \"nbd://h/x\"\npath = \"/d\"\n"),
                "demo.toml:6:7: `path` and `url` exclude each other",
            ),
            (
                &format!("{HEAD}[[disk]]\nformat = \"raw\"\nurl = \"https://h/x\"\n"),
                "demo.toml:6:7: disk 1: what a web server gives out is only read",
            ),
            (
                &format!("{HEAD}[[disk]]\nid = \"Disk\"\npath = \"/d\"\nformat = \"raw\"\n"),
                "demo.toml:5:6: disk 1: `id` is a letter",
            ),
            (
                &format!("{HEAD}[[disk]]\npath = \"/d\"\nformat = \"raw\"\nbus = \"scsi\"\ncontroller = 1\n"),
                "demo.toml:4:1: disk 1: there is no controller 1 of bus \"scsi\"",
            ),
            (&format!("{HEAD}[controllers]\nscsi = []\n"), "demo.toml:4:1: there are 1 to 4 controllers"),
            (&format!("{HEAD}[controllers]\nscsi = [\"buslogic\"]\n"), "demo.toml:5:9: unknown variant `buslogic`"),
            (
                &format!("{HEAD}[[disk]]\npath = \"/d\"\nformat = \"vmdk\"\n"),
                "demo.toml:4:1: disk 1: vmdk images are only read",
            ),
            ("é = 1", "demo.toml:1:1: "),
        ];
        for (text, start) in cases {
            let said = refusal(text);
            assert!(said.starts_with(start), "{text:?}\n said {said:?}\n want {start:?}");
        }
    }

    #[test]
    fn columns_count_characters() {
        let text = format!("{HEAD}disk = [{{ path = \"/é/ü\", format = \"nope\" }}]\n");
        assert!(refusal(&text).starts_with("demo.toml:4:35: unknown variant `nope`"), "{}", refusal(&text));
    }

    #[test]
    fn a_file_that_is_not_there_says_so() {
        let error = Definition::load(Path::new("/nonexistent/x.toml")).expect_err("missing");
        assert!(error.to_string().starts_with("/nonexistent/x.toml:1:1: No such file"), "{error}");
    }
}
