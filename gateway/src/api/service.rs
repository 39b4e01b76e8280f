//! The service itself over the API: status, sessions, the host's check.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use tracing::info;

use super::ApiContext;
use super::error::{Answer, Part};
use super::model::ServiceStatus;
use crate::doctor::{self, Report};
use crate::problem::{Code, Problem};
use crate::sessions::{EndReason, SessionId, SessionInfo};

pub(super) async fn version() -> Json<Value> {
    Json(json!({ "name": "fanlight", "version": env!("CARGO_PKG_VERSION"), "api": "v1" }))
}

pub(super) async fn status(State(context): State<Arc<ApiContext>>) -> Json<ServiceStatus> {
    Json(ServiceStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        listening: context.listening.list().iter().map(ToString::to_string).collect(),
        fingerprint: context.fingerprint.to_string(),
        users: context.users.book().len(),
        vms: context.session.host.list().len(),
        sessions: context.session.sessions.list().len(),
        door: context.session.door.status(),
    })
}

pub(super) async fn doctor(State(context): State<Arc<ApiContext>>) -> Json<Report> {
    let listening = context.listening.list();
    Json(doctor::examine(&context.config, &context.session.host, Some(&listening)).await)
}

pub(super) async fn sessions(State(context): State<Arc<ApiContext>>) -> Json<Vec<SessionInfo>> {
    Json(context.session.sessions.list())
}

pub(super) async fn end_session(
    State(context): State<Arc<ApiContext>>,
    Part(id): Part<SessionId>,
) -> Answer<StatusCode> {
    if context.session.sessions.end(EndReason::Administrator, |session| session.id == id) == 0 {
        return Err(Problem::new(Code::NotFound, format!("there is no session {id}"))
            .hint("`fanlight session list` names them"));
    }
    info!(session = id, "session ended by the administrator");
    Ok(StatusCode::NO_CONTENT)
}
