//! A definition's text.

mod spans;

use std::io::{self, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use uuid::Uuid;

use super::cpu::CpuTable;
use super::firmware::{FirmwareWord, TpmTable};
use super::memory::{MemoryKey, MemoryPart};
use super::network::NetworkKey;
use super::{
    Accelerator, Boot, Bus, CheckpointSchedule, Controllers, Definition, Disk, DiskBus, DiskCache, DiskFormat,
    DiskSource, Firmware, IdeModel, Provider, ScsiModel, Session, Tpm,
};

use spans::Spans;

/// Largest definition that is read, in bytes.
const MAX_FILE: usize = 256 * 1024;

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
            return Err(DefinitionError::whole(file, too_large()));
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
        let text = read_text(file).map_err(|error| DefinitionError::whole(file, error.to_string()))?;
        Self::parse(&text, file)
    }
}

/// The text of the file of a definition.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read_bytes(path)?).map_err(|_| io::Error::other("it is not UTF-8"))
}

/// The bytes of the file of a definition, whatever they are.
pub(super) fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    // Who opens a pipe may wait for ever.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_FILE {
        return Err(io::Error::other(too_large()));
    }
    Ok(bytes)
}

fn too_large() -> String {
    format!("larger than {MAX_FILE} bytes")
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
mod tests;
