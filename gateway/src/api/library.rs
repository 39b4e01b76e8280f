//! VMs from entries of a library, and entries from VMs.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use tracing::info;
use vmm::{FromEntry, Job};

use super::ApiContext;
use super::error::{Answer, Body, Part};
use super::model::{EntryFolder, VmInfo};

pub(super) async fn create(
    State(context): State<Arc<ApiContext>>,
    Body(request): Body<FromEntry>,
) -> Answer<(StatusCode, Json<VmInfo>)> {
    let vm = context.session.host.create_from(request).await?;
    info!(vm = vm.name(), "vm created");
    Ok((StatusCode::CREATED, Json(context.info(&vm))))
}

pub(super) async fn verify(
    State(context): State<Arc<ApiContext>>,
    Body(EntryFolder { folder }): Body<EntryFolder>,
) -> Answer<(StatusCode, Json<Job>)> {
    Ok((StatusCode::ACCEPTED, Json(context.session.host.verify_entry(folder).await?)))
}

pub(super) async fn export(
    State(context): State<Arc<ApiContext>>,
    Part(name): Part<String>,
    Body(EntryFolder { folder }): Body<EntryFolder>,
) -> Answer<(StatusCode, Json<Job>)> {
    let vm = context.vm(&name)?;
    let job = context.session.host.export(vm.name(), folder).await?;
    info!(vm = vm.name(), job = job.id.0, "export begun");
    Ok((StatusCode::ACCEPTED, Json(job)))
}

pub(super) async fn move_home(
    State(context): State<Arc<ApiContext>>,
    Part(name): Part<String>,
) -> Answer<(StatusCode, Json<Vec<Job>>)> {
    let vm = context.vm(&name)?;
    let jobs = context.session.host.move_home(&vm).await?;
    info!(vm = vm.name(), disks = jobs.len(), "disks move home");
    Ok((StatusCode::ACCEPTED, Json(jobs)))
}
