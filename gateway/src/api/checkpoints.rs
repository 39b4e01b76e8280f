//! Checkpoints over the API.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use tracing::info;
use vmm::{CheckpointTree, Checkpoints, Job, NewCheckpoint};

use super::ApiContext;
use super::error::{Answer, Body, Part};
use super::model::Rename;
use crate::problem::Problem;

pub(super) async fn list(
    State(context): State<Arc<ApiContext>>,
    Part(vm): Part<String>,
) -> Answer<Json<CheckpointTree>> {
    Ok(Json(context.checkpoints(&vm)?.list().await?))
}

pub(super) async fn create(
    State(context): State<Arc<ApiContext>>,
    Part(vm): Part<String>,
    Body(new): Body<NewCheckpoint>,
) -> Answer<(StatusCode, Json<Job>)> {
    let job = context.checkpoints(&vm)?.create(new).await?;
    info!(vm, job = job.id.0, "checkpoint begun");
    Ok((StatusCode::ACCEPTED, Json(job)))
}

pub(super) async fn revert(
    State(context): State<Arc<ApiContext>>,
    Part((vm, name)): Part<(String, String)>,
) -> Answer<(StatusCode, Json<Job>)> {
    let job = context.checkpoints(&vm)?.revert(&name).await?;
    info!(vm, checkpoint = name, job = job.id.0, "revert begun");
    Ok((StatusCode::ACCEPTED, Json(job)))
}

pub(super) async fn delete(
    State(context): State<Arc<ApiContext>>,
    Part((vm, name)): Part<(String, String)>,
) -> Answer<(StatusCode, Json<Job>)> {
    let job = context.checkpoints(&vm)?.delete(&name).await?;
    info!(vm, checkpoint = name, job = job.id.0, "deletion of a checkpoint begun");
    Ok((StatusCode::ACCEPTED, Json(job)))
}

pub(super) async fn merge(
    State(context): State<Arc<ApiContext>>,
    Part(vm): Part<String>,
) -> Answer<(StatusCode, Json<Job>)> {
    let job = context.checkpoints(&vm)?.merge().await?;
    info!(vm, job = job.id.0, "merge of overlays begun");
    Ok((StatusCode::ACCEPTED, Json(job)))
}

pub(super) async fn rename(
    State(context): State<Arc<ApiContext>>,
    Part((vm, name)): Part<(String, String)>,
    Body(Rename { name: new }): Body<Rename>,
) -> Answer<Json<CheckpointTree>> {
    Ok(Json(context.checkpoints(&vm)?.rename(&name, &new).await?))
}

impl ApiContext {
    fn checkpoints(&self, vm: &str) -> Result<Checkpoints, Problem> {
        Ok(self.session.host.checkpoints(&self.vm(vm)?))
    }
}
