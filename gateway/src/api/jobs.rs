//! Long jobs over the API.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tracing::info;
use vmm::{Job, JobId, JobsError};

use super::ApiContext;
use super::error::{Answer, Part, Query};

/// Longest time that an answer is held back.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// When to answer.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct When {
    /// As soon as the job's revision is greater than this.
    #[serde(default)]
    after: u64,
    /// After this many seconds in any case.
    #[serde(default)]
    wait: u64,
}

pub(super) async fn list(State(context): State<Arc<ApiContext>>) -> Json<Vec<Job>> {
    Json(context.session.host.jobs().list())
}

pub(super) async fn show(
    State(context): State<Arc<ApiContext>>,
    Part(id): Part<JobId>,
    Query(when): Query<When>,
) -> Answer<Json<Job>> {
    let patience = Duration::from_secs(when.wait).min(MAX_WAIT);
    let job = context.session.host.jobs().wait(id, when.after, patience).await;
    Ok(Json(job.ok_or(JobsError::Unknown(id))?))
}

pub(super) async fn cancel(State(context): State<Arc<ApiContext>>, Part(id): Part<JobId>) -> Answer<Json<Job>> {
    let job = context.session.host.jobs().cancel(id)?;
    info!(job = id.0, "job cancelled");
    Ok(Json(job))
}
