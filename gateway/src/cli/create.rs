//! `fanlight vm create`: options or a file become a definition.

use std::path::{Path, PathBuf};

use clap::Args;
use uuid::Uuid;
use vmm::{Definition, Disk, DiskBus, DiskSource, FromEntry, Job};

use super::disk_option::{DISK_HELP, DiskOption, absolute, parse_disk, parse_source, require_file};
use super::settings::Settings;
use super::{Context, job};
use crate::api::client::segment;
use crate::api::model::{CreateVm, EntryFolder, VmInfo};
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
  fanlight vm create --name old01 --import --disk path=/srv/old01.vhdx,bus=ide
  fanlight vm create --name web02 --from /mnt/library/debian-12 --move-home
  fanlight vm create --file web01.toml

Memory is written as MIB[,minimum=MIB][,maximum=MIB][,buffer=PERCENT][,weight=0..10000][,devices=virtio|hyperv].")]
pub(super) struct Create {
    /// A definition in TOML; `vm show --definition` prints one
    #[arg(long, short, value_name = "FILE", conflicts_with_all = ["name", "disks", "cdroms", "Settings", "Hardware"])]
    file: Option<PathBuf>,
    /// Name of the VM; one from a library is called as its entry if nothing is said
    #[arg(long, required_unless_present_any = ["file", "from"])]
    name: Option<String>,
    #[command(flatten)]
    settings: Settings,
    /// A disk; repeat it for several
    #[arg(long = "disk", value_name = "path=FILE[,…]", value_parser = parse_disk, long_help = DISK_HELP)]
    disks: Vec<DiskOption>,
    /// An ISO image, or its URL, in a CD drive; `empty` for a drive without a disc
    #[arg(long = "cdrom", value_name = "FILE", value_parser = cdrom)]
    cdroms: Vec<Disk>,
    /// The first disk holds a system already: it is started from there, and nothing is installed
    #[arg(long, requires = "disks", conflicts_with = "kernel")]
    import: bool,
    #[command(flatten)]
    library: FromLibrary,
}

/// A VM from a library.
#[derive(Debug, Args)]
struct FromLibrary {
    /// An entry of a library, as `vm export` makes one: the VM is there at once, on images that stand on the entry's disks
    #[arg(long, value_name = "LIBRARY/NAME", conflicts_with_all = ["file", "disks", "cdroms", "Settings", "Hardware"])]
    from: Option<PathBuf>,
    /// Use the entry's disks themselves
    #[arg(long, requires = "from")]
    direct: bool,
    /// Compare the entry with its checksums first
    #[arg(long, requires = "from")]
    verify: bool,
    /// Start the VM, and move its disks home while it runs
    #[arg(long, requires = "from")]
    move_home: bool,
}

impl Create {
    pub(super) async fn run(self, context: &Context) -> Result<(), Problem> {
        if let Some(entry) = self.library.from.clone() {
            return self.library.create(context, self.name, absolute(entry)).await;
        }
        let request = match &self.file {
            Some(file) => from_file(file)?,
            None => self.into_request()?,
        };
        let vm: VmInfo = context.client.post("/v1/vms", &request).await?;
        context.output.value(&vm, || format!("{} is created; start it with `fanlight vm start {}`", vm.name, vm.name));
        Ok(())
    }

    fn into_request(self) -> Result<CreateVm, Problem> {
        let invalid = |error: &dyn std::fmt::Display| Problem::new(Code::Invalid, error);
        if self.import && self.disks.first().is_some_and(|disk| disk.new_image().is_some()) {
            return Err(invalid(&"--import takes a disk that is there; leave `size=` out of the first one"));
        }
        let discs = self.cdroms.iter().filter_map(|disc| disc.source.path()).map(require_file);
        let there = self.disks.iter().map(DiskOption::require_file).chain(discs).collect::<Result<(), _>>();
        there.map_err(|error| Problem::new(Code::NotFound, error))?;
        let new_disks = self.disks.iter().filter_map(DiskOption::new_image).collect();
        let mut definition = Definition::new(self.name.unwrap_or_default(), Uuid::new_v4());
        definition.memory = USUAL_MEMORY;
        definition.disks = self.disks.into_iter().map(|option| option.disk).collect();
        definition.disks.extend(self.cdroms);
        self.settings.apply(&mut definition).map_err(|error| invalid(&error))?;
        definition.settle();
        definition.validate().map_err(|error| invalid(&error))?;
        if self.import && definition.disks.first().is_some_and(|disk| disk.cdrom) {
            return Err(invalid(&"--import starts from the disk; leave --boot cdrom out"));
        }
        Ok(CreateVm { definition: definition.to_toml(), file: None, disks: new_disks, import: self.import })
    }
}

fn from_file(file: &Path) -> Result<CreateVm, Problem> {
    // Read here for its errors; the service reads the same text again.
    let definition = Definition::load(file).map_err(|error| Problem::new(Code::Invalid, error))?;
    Ok(CreateVm {
        definition: definition.to_toml(),
        file: Some(file.display().to_string()),
        disks: Vec::new(),
        import: false,
    })
}

impl FromLibrary {
    async fn create(self, context: &Context, name: Option<String>, entry: PathBuf) -> Result<(), Problem> {
        if self.verify {
            let folder = EntryFolder { folder: entry.clone() };
            let job: Job = context.client.post("/v1/library/verify", &folder).await?;
            job::require_done(context, job).await?;
        }
        let request = FromEntry { entry: entry.clone(), name, direct: self.direct };
        let vm: VmInfo = context.client.post("/v1/library", &request).await?;
        if !self.move_home {
            let how = if self.direct { "uses the disks of" } else { "stands on" };
            context.output.value(&vm, || {
                let (name, entry) = (&vm.name, entry.display());
                format!("{name} is created and {how} {entry}; start it with `fanlight vm start {name}`")
            });
            return Ok(());
        }
        let path = format!("/v1/vms/{}", segment(&vm.name));
        let vm: VmInfo = context.client.post(&format!("{path}/start"), &()).await?;
        let jobs: Vec<Job> = context.client.post(&format!("{path}/move-home"), &()).await?;
        context.output.value(&serde_json::json!({ "vm": vm, "jobs": jobs }), || {
            let moves = jobs.iter().map(|job| format!("\n  job {}: {}", job.id, job.target)).collect::<String>();
            format!("{} is created and runs; its disks move home:{moves}", vm.name)
        });
        Ok(())
    }
}

/// A drive with a disc in it; `empty`: without.
fn cdrom(words: &str) -> Result<Disk, String> {
    let source = if words == "empty" { DiskSource::Empty } else { parse_source(words)? };
    Ok(Disk::cdrom(source, DiskBus::Ide))
}
