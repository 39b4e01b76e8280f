//! The disks of a VM over the API: listed, attached, detached, and discs in drives.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use tracing::info;
use vmm::{Disk, DiskFormat, DiskSource, Vm};

use super::ApiContext;
use super::error::{Answer, Body, Part};
use super::model::{AttachDisk, ChangeDisc, DetachedDisk, VmDisk};
use crate::problem::{Code, Problem};

pub(super) async fn list(State(context): State<Arc<ApiContext>>, Part(vm): Part<String>) -> Answer<Json<Vec<VmDisk>>> {
    let vm = context.vm(&vm)?;
    Ok(Json(vm.definition().disks.iter().map(|disk| shown(&vm, disk)).collect()))
}

pub(super) async fn attach(
    State(context): State<Arc<ApiContext>>,
    Part(vm): Part<String>,
    Body(request): Body<AttachDisk>,
) -> Answer<(StatusCode, Json<VmDisk>)> {
    let vm = context.vm(&vm)?;
    let wanted = request.into_disk()?;
    // Of two that are attached at once, each has its own source.
    let source = wanted.source.clone();
    let before: Vec<_> = vm.definition().disks.iter().map(|disk| disk.id.clone()).collect();
    vm.attach_disk(wanted).await?;
    let definition = vm.definition();
    let is_it = |disk: &&Disk| !before.contains(&disk.id) && (disk.source == source || disk.source.path().is_some());
    let disk = definition.disks.iter().rev().find(is_it).ok_or_else(|| gone("it was detached again at once"))?;
    info!(vm = vm.name(), disk = disk.id, source = %disk.source, "disk attached");
    Ok((StatusCode::CREATED, Json(shown(&vm, disk))))
}

pub(super) async fn detach(
    State(context): State<Arc<ApiContext>>,
    Part((vm, disk)): Part<(String, String)>,
) -> Answer<Json<DetachedDisk>> {
    let vm = context.vm(&vm)?;
    let disk = known(&vm, &disk)?;
    vm.detach_disk(&disk.id).await?;
    info!(vm = vm.name(), disk = disk.id, "disk detached");
    let next_start = vm.status().next_start.contains(&disk.id);
    let states = match disk.source.path() {
        Some(path) => {
            context.session.host.disks().info(path, Some(disk.format)).await.map_or(0, |info| info.snapshots.len())
        }
        None => 0,
    };
    Ok(Json(DetachedDisk { source: words(&disk.source), id: disk.id, next_start, states }))
}

pub(super) async fn change_disc(
    State(context): State<Arc<ApiContext>>,
    Part((vm, disk)): Part<(String, String)>,
    Body(request): Body<ChangeDisc>,
) -> Answer<Json<VmDisk>> {
    let vm = context.vm(&vm)?;
    let disk = known(&vm, &disk)?;
    let source = read(request.source.as_deref())?;
    vm.change_disc(&disk.id, source, request.force).await?;
    let disk = known(&vm, &disk.id)?;
    info!(vm = vm.name(), disk = disk.id, source = %disk.source, "disc changed");
    Ok(Json(shown(&vm, &disk)))
}

impl AttachDisk {
    fn into_disk(self) -> Result<Disk, Problem> {
        let source = read(self.source.as_deref())?;
        let format = self.format.or_else(|| source.named_format().filter(|_| !self.cdrom)).unwrap_or(DiskFormat::Raw);
        Ok(Disk {
            id: self.id.unwrap_or_default(),
            controller: self.controller,
            unit: self.unit,
            serial: self.serial,
            cache: self.cache,
            readonly: self.readonly || self.cdrom,
            cdrom: self.cdrom,
            ..Disk::new(source, format, self.bus)
        })
    }
}

fn read(source: Option<&str>) -> Result<DiskSource, Problem> {
    let Some(words) = source else { return Ok(DiskSource::Empty) };
    DiskSource::of_words(words).map_err(|error| Problem::new(Code::Invalid, error))
}

fn words(source: &DiskSource) -> Option<String> {
    (*source != DiskSource::Empty).then(|| source.to_string())
}

fn known(vm: &Vm, disk: &str) -> Result<Disk, Problem> {
    let definition = vm.definition();
    definition.disk(disk).cloned().ok_or_else(|| gone(&format!("{} has no disk `{disk}`", vm.name())))
}

fn gone(message: &str) -> Problem {
    Problem::new(Code::NotFound, message).hint("`fanlight disk list VM` names them")
}

fn shown(vm: &Vm, disk: &Disk) -> VmDisk {
    VmDisk {
        id: disk.id.clone(),
        source: words(&disk.source),
        format: disk.format,
        bus: disk.bus,
        controller: disk.controller,
        unit: disk.unit,
        serial: disk.serial.clone(),
        readonly: disk.readonly,
        cdrom: disk.cdrom,
        next_start: vm.status().next_start.contains(&disk.id),
    }
}
