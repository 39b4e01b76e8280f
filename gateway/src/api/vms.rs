//! VMs over the API.

use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use tracing::info;
use vmm::{Accelerator, Definition, EditDefinition, HostError, RefusedVm, Vm};

use super::disks::NewDisks;
use super::error::{Answer, Body, Part, Query};
use super::model::{CreateVm, DeletedVm, EditedVm, VmInfo, VmList};
use super::{ApiContext, memory};
use crate::problem::{Code, Problem};
use crate::sessions::EndReason;

pub(super) async fn list(State(context): State<Arc<ApiContext>>) -> Json<VmList> {
    let vms = context.session.host.list().iter().map(|vm| context.info(vm)).collect::<Vec<_>>();
    let refused = context.session.host.refused().iter().map(refused_info).collect::<Vec<_>>();
    let mut vms = [vms, refused].concat();
    vms.sort_by_key(|vm| vm.name.to_lowercase());
    let problems = context.session.host.problems().iter().map(ToString::to_string).collect();
    Json(VmList { vms, problems })
}

pub(super) async fn create(
    State(context): State<Arc<ApiContext>>,
    Body(request): Body<CreateVm>,
) -> Answer<(StatusCode, Json<VmInfo>)> {
    let file = request.file.as_deref().unwrap_or("definition");
    let definition =
        Definition::parse(&request.definition, Path::new(file)).map_err(|error| Problem::new(Code::Invalid, error))?;
    if let Some(vm) = context.session.host.find(&definition.name) {
        return Err(HostError::Taken { what: "name", value: vm.name().into() }.into());
    }
    if request.import {
        require_importable(&context, &definition).await?;
    }
    let disks = NewDisks::create(&context.session.host.disks(), request.disks).await?;
    let vm = context.session.host.create(definition).await?;
    disks.keep();
    info!(vm = vm.name(), "vm created");
    Ok((StatusCode::CREATED, Json(context.info(&vm))))
}

/// Fails when the first disk cannot hold a system already.
async fn require_importable(context: &ApiContext, definition: &Definition) -> Answer<()> {
    let first = definition.disks.first().filter(|disk| !disk.cdrom);
    let first = first.ok_or_else(|| Problem::new(Code::Invalid, "there is no disk that a system could be on"))?;
    // What is on a server is seen when the VM is started.
    if let Some(path) = first.source.path() {
        context.session.host.disks().info(path, Some(first.format)).await?;
    }
    Ok(())
}

pub(super) async fn show(State(context): State<Arc<ApiContext>>, Part(name): Part<String>) -> Answer<Json<VmInfo>> {
    if let Some(refused) = context.refused(&name) {
        return Ok(Json(refused_info(&refused)));
    }
    let vm = context.vm(&name)?;
    let bus = context.session.buses.of(&vm).status().await;
    Ok(Json(VmInfo { bus, ..context.info(&vm) }))
}

/// What is to go with it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct With {
    /// The images that nothing else needs.
    #[serde(default)]
    disks: bool,
}

pub(super) async fn delete(
    State(context): State<Arc<ApiContext>>,
    Part(name): Part<String>,
    Query(with): Query<With>,
) -> Answer<Json<DeletedVm>> {
    let vm = context.vm(&name)?;
    let (name, definition, disks) = (vm.name().to_owned(), vm.definition(), context.session.host.disks());
    context.session.host.delete(&name).await?;
    context.session.sessions.end(EndReason::VmDeleted, |session| session.vm == name);
    let images = if with.disks { disks.delete_left_by(&definition).await } else { disks.left_by(&definition) };
    info!(vm = name, disks = with.disks, "vm deleted");
    Ok(Json(DeletedVm { deleted: name, images }))
}

/// How it is to be told.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct How {
    /// As it stands in the file, whether that can be read or not.
    #[serde(default)]
    file: bool,
}

pub(super) async fn definition(
    State(context): State<Arc<ApiContext>>,
    Part(name): Part<String>,
    Query(how): Query<How>,
) -> Answer<impl IntoResponse> {
    if let Some(refused) = context.refused(&name).filter(|_| how.file) {
        let unreadable = |error| Problem::new(Code::Internal, format!("{}: {error}", refused.problem.file.display()));
        return Ok(([(header::CONTENT_TYPE, "application/toml")], refused.text().map_err(unreadable)?));
    }
    let vm = context.vm(&name)?;
    let text = if how.file { vm.definition_text() } else { vm.wanted_definition().to_toml() };
    Ok(([(header::CONTENT_TYPE, "application/toml")], text))
}

pub(super) async fn edit(
    State(context): State<Arc<ApiContext>>,
    Part(name): Part<String>,
    Body(request): Body<EditDefinition>,
) -> Answer<Json<EditedVm>> {
    if let Some(refused) = context.refused(&name) {
        let vm = context.session.host.mend(&refused, request).await?;
        // Its agent is listened for from now on.
        drop(context.session.buses.of(&vm));
        info!(vm = vm.name(), "definition mended");
        return Ok(Json(EditedVm { changes: Vec::new(), vm: context.info(&vm), mended: true }));
    }
    let vm = context.vm(&name)?;
    let changes = vm.edit_definition(request).await?;
    Ok(Json(EditedVm { changes, vm: context.info(&vm), mended: false }))
}

pub(super) async fn screenshot(
    State(context): State<Arc<ApiContext>>,
    Part(name): Part<String>,
) -> Answer<impl IntoResponse> {
    let vm = context.vm(&name)?;
    let file = context.config.state.runtime().join(format!(".screenshot-{}.png", uuid::Uuid::new_v4()));
    let dumped = vm.screendump(&file).await;
    let picture = tokio::fs::read(&file).await;
    // Whatever became of it, nobody needs the file any more.
    let _ = tokio::fs::remove_file(&file).await;
    dumped.map_err(|reason| Problem::new(Code::Conflict, format!("no screenshot: {reason}")))?;
    let picture = picture.map_err(|error| Problem::new(Code::Internal, format!("no screenshot: {error}")))?;
    Ok(([(header::CONTENT_TYPE, "image/png")], picture))
}

pub(super) async fn request(
    State(context): State<Arc<ApiContext>>,
    Part((name, request)): Part<(String, String)>,
) -> Answer<Json<VmInfo>> {
    let vm = context.vm(&name)?;
    match request.as_str() {
        "start" => {
            let wants = vm.definition().accelerator;
            vm.start().await.map_err(|error| start_problem(error.into(), wants, vm.name()))?;
        }
        "shutdown" => context.shut_down(&vm).await?,
        "reboot" => context.reboot(&vm).await?,
        "stop" => vm.power_off().await?,
        "reset" => vm.reset().await?,
        "pause" => vm.pause().await?,
        "resume" => vm.resume().await?,
        _ => return Err(Problem::new(Code::NotFound, format!("a VM cannot be asked to `{request}`"))),
    }
    Ok(Json(context.info(&vm)))
}

/// Where KVM does not work, QEMU's own words are of registers and file descriptors.
fn start_problem(problem: Problem, wants: Accelerator, vm: &str) -> Problem {
    if wants != Accelerator::Kvm || problem.code != Code::Internal || problem.hint.is_some() {
        return problem;
    }
    problem.hint(format!(
        "`fanlight doctor` says whether KVM works here; `fanlight vm edit {vm} --accelerator auto` takes what works"
    ))
}

impl ApiContext {
    pub(super) fn vm(&self, name: &str) -> Result<Vm, Problem> {
        let unknown = || {
            if let Some(RefusedVm { name, problem }) = self.refused(name) {
                let message = format!("the definition of `{name}` is refused: {problem}");
                return Problem::new(Code::Conflict, message).hint(format!("`fanlight vm edit {name}` mends it"));
            }
            Problem::new(Code::NotFound, format!("there is no VM `{name}`")).hint("`fanlight vm list` names them")
        };
        self.session.host.find(name).ok_or_else(unknown)
    }

    /// The VM of that name, if there is none because its definition is refused.
    fn refused(&self, name: &str) -> Option<RefusedVm> {
        let host = &self.session.host;
        host.find_refused(name).filter(|_| host.find(name).is_none())
    }

    pub(super) fn info(&self, vm: &Vm) -> VmInfo {
        let (status, definition) = (vm.status(), vm.definition());
        let mut sessions = self.session.sessions.list();
        sessions.retain(|session| session.vm == vm.name());
        VmInfo {
            name: vm.name().to_owned(),
            uuid: vm.uuid().to_string(),
            state: status.state.to_string(),
            reason: status.reason,
            accelerator: status.accelerator.as_ref().map(|report| report.accelerator.to_string()),
            accelerator_reason: status.accelerator.map(|report| report.why),
            pid: status.pid,
            since: status.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            memory: definition.memory,
            assigned_memory: memory::assigned(vm),
            dynamic_memory: memory::dynamic(vm),
            vcpus: definition.vcpus,
            waiting_changes: vm.waiting_changes(),
            definition_problem: vm.definition_problem().map(|problem| problem.to_string()),
            sessions,
            bus: None,
        }
    }
}

/// What is known of a VM whose definition is refused.
fn refused_info(refused: &RefusedVm) -> VmInfo {
    let since = std::fs::metadata(&refused.problem.file).and_then(|data| data.modified());
    VmInfo {
        name: refused.name.clone(),
        uuid: String::new(),
        state: "refused".into(),
        reason: None,
        accelerator: None,
        accelerator_reason: None,
        pid: None,
        since: since.unwrap_or(UNIX_EPOCH).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        memory: 0,
        assigned_memory: None,
        dynamic_memory: None,
        vcpus: 0,
        waiting_changes: Vec::new(),
        definition_problem: Some(refused.problem.to_string()),
        sessions: Vec::new(),
        bus: None,
    }
}
