//! `fanlight vm create`: options or a file become a definition.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use uuid::Uuid;
use vmm::{Accelerator, Boot, Controllers, Definition, Disk, DiskBus, DiskSource, DynamicMemory, IdeModel, ScsiModel};

use super::Context;
use super::disk_option::{DISK_HELP, DiskOption, absolute, parse_disk, parse_source, word};
use super::hardware::Hardware;
use crate::api::model::{CreateVm, VmInfo};
use crate::problem::{Code, Problem};

/// Create a VM, from options or from a definition file
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fanlight vm create --name web01 --memory 2048 --vcpus 2 \\
      --disk path=/srv/web01.qcow2,size=20G,format=qcow2 --cdrom /srv/debian-12.iso
  fanlight vm create --name db01 --memory 1024,minimum=512,maximum=8192 --disk path=/srv/db01.qcow2
  fanlight vm create --name tiny --memory 256 --kernel /srv/vmlinux --initrd /srv/initrd --cmdline console=tty0
  fanlight vm create --name win11 --memory 8192 --vcpus 4 --boot uefi,secure-boot,cdrom,hd --tpm default \\
      --disk path=/srv/win11.qcow2,size=64G,bus=ide --cdrom /srv/win11.iso --network user,forward=tcp::3390-:3389
  fanlight vm create --file web01.toml

Memory is written as MIB[,minimum=MIB][,maximum=MIB][,buffer=PERCENT][,weight=0..10000][,devices=virtio|hyperv].")]
pub(super) struct Create {
    /// A definition in TOML; `vm show --definition` prints one
    #[arg(long, short, value_name = "FILE", conflicts_with_all = ["name", "memory", "vcpus", "cpu", "boot", "tpm", "disks", "cdroms", "kernel", "initrd", "cmdline", "monitors", "accelerator", "network", "scsi", "ide"])]
    file: Option<PathBuf>,
    /// Name of the VM
    #[arg(long, required_unless_present = "file")]
    name: Option<String>,
    /// Memory in MiB; with a minimum or maximum it follows the guest's need
    #[arg(long, default_value = "1024", value_name = "MIB[,…]", value_parser = parse_memory)]
    memory: MemoryOption,
    #[command(flatten)]
    hardware: Hardware,
    /// A disk; repeat it for several
    #[arg(long = "disk", value_name = "path=FILE[,…]", value_parser = parse_disk, long_help = DISK_HELP)]
    disks: Vec<DiskOption>,
    /// An ISO image, or its URL, in a CD drive; `empty` for a drive without a disc
    #[arg(long = "cdrom", value_name = "FILE", value_parser = cdrom)]
    cdroms: Vec<Disk>,
    /// The SCSI controllers: virtio, lsi
    #[arg(long, value_name = "MODEL[,…]", default_value = "virtio", value_parser = list::<ScsiModel>)]
    scsi: List<ScsiModel>,
    /// The IDE controllers: ahci, piix
    #[arg(long, value_name = "MODEL[,…]", default_value = "ahci", value_parser = list::<IdeModel>)]
    ide: List<IdeModel>,
    /// A Linux kernel to start instead of the firmware
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The initial file system of that kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The command line of that kernel
    #[arg(long, value_name = "TEXT", requires = "kernel", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Most monitors the guest may have
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    monitors: u8,
    /// How the processors are run: auto, kvm or tcg
    #[arg(long, default_value = "auto", value_parser = word::<Accelerator>)]
    accelerator: Accelerator,
}

/// A `--memory`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct MemoryOption {
    startup: u32,
    dynamic: Option<DynamicMemory>,
}

impl Create {
    pub(super) async fn run(self, context: &Context) -> Result<(), Problem> {
        let request = match &self.file {
            Some(file) => from_file(file)?,
            None => self.into_request()?,
        };
        let vm: VmInfo = context.client.post("/v1/vms", &request).await?;
        context.output.value(&vm, || format!("{} is created; start it with `fanlight vm start {}`", vm.name, vm.name));
        Ok(())
    }

    fn into_request(self) -> Result<CreateVm, Problem> {
        let new_disks = self.disks.iter().filter_map(DiskOption::new_image).collect();
        let mut definition = Definition::new(self.name.unwrap_or_default(), Uuid::new_v4());
        definition.memory = self.memory.startup;
        definition.dynamic_memory = self.memory.dynamic;
        definition.monitors = self.monitors;
        definition.accelerator = self.accelerator;
        definition.disks = self.disks.into_iter().map(|option| option.disk).collect();
        definition.disks.extend(self.cdroms);
        definition.controllers = Controllers { ide: self.ide.0, scsi: self.scsi.0 };
        self.hardware.apply(&mut definition);
        if let Some(kernel) = self.kernel {
            definition.boot = Boot::DirectKernel {
                kernel: absolute(kernel),
                initrd: self.initrd.map(absolute),
                cmdline: self.cmdline.unwrap_or_default(),
            };
        }
        definition.settle();
        definition.validate().map_err(|error| Problem::new(Code::Invalid, error))?;
        Ok(CreateVm { definition: definition.to_toml(), file: None, disks: new_disks })
    }
}

fn from_file(file: &Path) -> Result<CreateVm, Problem> {
    // Read here for its errors; the service reads the same text again.
    let definition = Definition::load(file).map_err(|error| Problem::new(Code::Invalid, error))?;
    Ok(CreateVm { definition: definition.to_toml(), file: Some(file.display().to_string()), disks: Vec::new() })
}

/// A drive with a disc in it; `empty`: without.
fn cdrom(words: &str) -> Result<Disk, String> {
    let source = if words == "empty" { DiskSource::Empty } else { parse_source(words)? };
    Ok(Disk::cdrom(source, DiskBus::Ide))
}

/// The words of a list, without the spaces between them.
fn list<T: serde::de::DeserializeOwned>(words: &str) -> Result<List<T>, String> {
    words.split(',').map(|part| word(part.trim())).collect::<Result<_, _>>().map(List)
}

/// Clap takes a `Vec` for an option that may be repeated.
#[derive(Debug, Clone)]
struct List<T>(Vec<T>);

/// Reads `512,minimum=256,maximum=2048,buffer=20,weight=5000`; virt-install says `maxmemory`.
fn parse_memory(text: &str) -> Result<MemoryOption, String> {
    let (startup, rest) = text.split_once(',').map_or((text, None), |(startup, rest)| (startup, Some(rest)));
    let startup = number(startup.trim_start_matches("memory="))?;
    let Some(rest) = rest else { return Ok(MemoryOption { startup, dynamic: None }) };
    let mut dynamic = DynamicMemory::between(startup, startup);
    for part in rest.split(',') {
        match part.split_once('=') {
            Some(("minimum", value)) => dynamic.minimum = number(value)?,
            Some(("maximum" | "maxmemory", value)) => dynamic.maximum = number(value)?,
            Some(("buffer", value)) => dynamic.buffer = number(value)?,
            Some(("weight", value)) => dynamic.weight = number(value)?,
            Some(("devices", value)) => dynamic.devices = word(value)?,
            _ => return Err(format!("`{part}` is not one of minimum=, maximum=, buffer=, weight=, devices=")),
        }
    }
    Ok(MemoryOption { startup, dynamic: Some(dynamic) })
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is not a number that could be meant here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_a_number_or_more() {
        assert_eq!(parse_memory("512"), Ok(MemoryOption { startup: 512, dynamic: None }));
        let dynamic = Some(DynamicMemory { weight: 9000, ..DynamicMemory::between(256, 2048) });
        let text = "512,minimum=256,maxmemory=2048,weight=9000";
        assert_eq!(parse_memory(text), Ok(MemoryOption { startup: 512, dynamic }));
        for text in ["", "x", "512,", "512,min=1", "512,weight=99999999", "512,devices=xen", "-1"] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
    }
}
