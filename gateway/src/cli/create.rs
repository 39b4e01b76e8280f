//! `fanlight vm create`: options or a file become a definition.

use std::path::{Path, PathBuf};

use clap::Args;
use uuid::Uuid;
use vmm::{Definition, Disk, DiskBus, DiskSource};

use super::Context;
use super::disk_option::{DISK_HELP, DiskOption, parse_disk, parse_source};
use super::settings::Settings;
use crate::api::model::{CreateVm, VmInfo};
use crate::problem::{Code, Problem};

/// Memory of a VM of which nothing is said, in MiB.
const USUAL_MEMORY: u32 = 1024;

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
    #[arg(long, short, value_name = "FILE", conflicts_with_all = ["name", "disks", "cdroms", "Settings", "Hardware"])]
    file: Option<PathBuf>,
    /// Name of the VM
    #[arg(long, required_unless_present = "file")]
    name: Option<String>,
    #[command(flatten)]
    settings: Settings,
    /// A disk; repeat it for several
    #[arg(long = "disk", value_name = "path=FILE[,…]", value_parser = parse_disk, long_help = DISK_HELP)]
    disks: Vec<DiskOption>,
    /// An ISO image, or its URL, in a CD drive; `empty` for a drive without a disc
    #[arg(long = "cdrom", value_name = "FILE", value_parser = cdrom)]
    cdroms: Vec<Disk>,
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
        definition.memory = USUAL_MEMORY;
        definition.disks = self.disks.into_iter().map(|option| option.disk).collect();
        definition.disks.extend(self.cdroms);
        self.settings.apply(&mut definition).map_err(|error| Problem::new(Code::Invalid, error))?;
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
