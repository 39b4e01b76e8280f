//! `fanlight disk list`, `attach`, `detach`, `insert`, `eject`: the disks of a VM.

use clap::Args;
use serde_json::Value;
use vmm::{DiskBus, DiskCache, DiskFormat, DiskSource};

use super::Context;
use super::disk_option::{parse_source, word};
use super::output::Cell;
use crate::api::client::segment;
use crate::api::model::{AttachDisk, ChangeDisc, DetachedDisk, VmDisk};
use crate::problem::Problem;

const DISKS: &[&str] = &["DISK", "BUS", "FORMAT", "SOURCE", "NOTE"];

/// List the disks of a VM
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fanlight disk list web01")]
pub(super) struct List {
    /// The VM: name or UUID
    vm: String,
}

/// Give a VM another disk; on a virtio SCSI controller at once, elsewhere at its next start
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fanlight disk attach web01 /srv/data.qcow2
  fanlight disk attach web01 /dev/disk/by-id/usb-Stick_01 --bus scsi
  fanlight disk attach web01 'nbds://store/data?tls-certificates=/etc/fanlight/nbd' --id data
  fanlight disk attach web01 empty --cdrom --bus ide")]
pub(super) struct Attach {
    /// The VM: name or UUID
    vm: String,
    /// The image, the device, or a URL: nbd://, nbds://, nbd+unix://, http://, https://; `empty` for a drive without a disc
    #[arg(value_name = "PATH", value_parser = disc)]
    source: DiskSource,
    /// What it shall sit on: scsi, ide or virtio
    #[arg(long, default_value = "scsi", value_parser = word::<DiskBus>)]
    bus: DiskBus,
    /// Which controller of that bus
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    controller: u8,
    /// Its place on the controller; else the first that is free
    #[arg(long, value_name = "NUMBER")]
    unit: Option<u8>,
    /// Its format, when the name does not tell
    #[arg(long, value_parser = word::<DiskFormat>)]
    format: Option<DiskFormat>,
    /// What commands shall call it; else a name is chosen
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// The serial number that the guest reads
    #[arg(long)]
    serial: Option<String>,
    /// What the host keeps of it in memory: writeback or none
    #[arg(long, default_value = "writeback", value_parser = word::<DiskCache>)]
    cache: DiskCache,
    /// The guest may only read
    #[arg(long)]
    readonly: bool,
    /// A drive for discs
    #[arg(long)]
    cdrom: bool,
}

/// Take a disk from a VM; its image stays. Let the guest unmount it first
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fanlight disk detach web01 disk1")]
pub(super) struct Detach {
    /// The VM: name or UUID
    vm: String,
    /// The disk: its name or its image
    disk: String,
}

/// Put a disc into a drive of a VM, in place of the one that is in
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fanlight disk insert web01 disk1 /srv/debian-12.iso
  fanlight disk insert web01 disk1 https://mirror.example/debian-12.iso")]
pub(super) struct Insert {
    /// The VM: name or UUID
    vm: String,
    /// The drive
    drive: String,
    /// The disc: an ISO image or its URL
    #[arg(value_parser = parse_source)]
    disc: DiskSource,
    /// Also when the guest has locked the drive
    #[arg(long)]
    force: bool,
}

/// Take the disc out of a drive of a VM
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fanlight disk eject web01 disk1\n  fanlight disk eject web01 disk1 --force")]
pub(super) struct Eject {
    /// The VM: name or UUID
    vm: String,
    /// The drive
    drive: String,
    /// Also when the guest has locked the drive
    #[arg(long)]
    force: bool,
}

impl List {
    pub(super) async fn run(self, context: &Context) -> Result<(), Problem> {
        let disks: Vec<VmDisk> = context.client.get(&path(&self.vm, "")).await?;
        context.output.table(&disks, DISKS, disks.iter().map(row).collect());
        Ok(())
    }
}

impl Attach {
    pub(super) async fn run(self, context: &Context) -> Result<(), Problem> {
        let request = AttachDisk {
            source: words(&self.source),
            format: self.format,
            bus: self.bus,
            controller: self.controller,
            unit: self.unit,
            id: self.id,
            serial: self.serial,
            cache: self.cache,
            readonly: self.readonly,
            cdrom: self.cdrom,
        };
        let disk: VmDisk = context.client.post(&path(&self.vm, ""), &request).await?;
        context.output.value(&disk, || {
            let when = if disk.next_start { "; its guest has it from the next start on" } else { "" };
            format!("{} is attached to {} as {}, on {}{when}", source(&disk), self.vm, disk.id, place(&disk))
        });
        Ok(())
    }
}

impl Detach {
    pub(super) async fn run(self, context: &Context) -> Result<(), Problem> {
        let path = path(&self.vm, &format!("/{}/detach", segment(&self.disk)));
        let disk: DetachedDisk = context.client.post(&path, &Value::Null).await?;
        context.output.value(&disk, || {
            let when = if disk.next_start { "; its guest has it until the next start" } else { "" };
            let source = disk.source.as_deref().unwrap_or("its image");
            let kept = match disk.states {
                0 => String::new(),
                1 => format!("; {source} stays, with a state of {} that is kept in it", self.vm),
                states => format!("; {source} stays, with {states} states of {} that are kept in it", self.vm),
            };
            format!("{} is detached from {}{when}{kept}", disk.id, self.vm)
        });
        Ok(())
    }
}

impl Insert {
    pub(super) async fn run(self, context: &Context) -> Result<(), Problem> {
        let request = ChangeDisc { source: words(&self.disc), force: self.force };
        change_disc(context, &self.vm, &self.drive, &request).await
    }
}

impl Eject {
    pub(super) async fn run(self, context: &Context) -> Result<(), Problem> {
        change_disc(context, &self.vm, &self.drive, &ChangeDisc { source: None, force: self.force }).await
    }
}

async fn change_disc(context: &Context, vm: &str, drive: &str, request: &ChangeDisc) -> Result<(), Problem> {
    let path = path(vm, &format!("/{}/disc", segment(drive)));
    let disk: VmDisk = context.client.post(&path, request).await?;
    context.output.value(&disk, || match &disk.source {
        Some(disc) => format!("{disc} is in {} of {vm}", disk.id),
        None => format!("{} of {vm} is empty", disk.id),
    });
    Ok(())
}

/// A path or a URL; `empty`: no disc.
fn disc(text: &str) -> Result<DiskSource, String> {
    if text == "empty" { Ok(DiskSource::Empty) } else { parse_source(text) }
}

fn words(source: &DiskSource) -> Option<String> {
    (*source != DiskSource::Empty).then(|| source.to_string())
}

fn source(disk: &VmDisk) -> &str {
    disk.source.as_deref().unwrap_or("an empty drive")
}

fn place(disk: &VmDisk) -> String {
    let unit = disk.unit.map(|unit| format!(" {}:{unit}", disk.controller)).unwrap_or_default();
    format!("{}{unit}", disk.bus.word())
}

fn row(disk: &VmDisk) -> Vec<Cell> {
    let kind = if disk.cdrom { Some("drive") } else { disk.readonly.then_some("read-only") };
    let notes: Vec<_> = kind.into_iter().chain(disk.next_start.then_some("from the next start on")).collect();
    vec![
        disk.id.clone().into(),
        place(disk).into(),
        disk.format.word().into(),
        disk.source.clone().unwrap_or_default().into(),
        notes.join(", ").into(),
    ]
}

fn path(vm: &str, rest: &str) -> String {
    format!("/v1/vms/{}/disks{rest}", segment(vm))
}
