//! The HTTP API `/v1`, on a unix socket for the state folder's owner and root.
//!
//! | method and path | what |
//! | --- | --- |
//! | `GET /v1/version` | name and version |
//! | `GET /v1/status` | addresses, fingerprint, counts |
//! | `GET /v1/doctor` | what the host has and lacks |
//! | `GET`, `POST /v1/vms` | list, create |
//! | `GET`, `DELETE /v1/vms/{vm}` | show, delete |
//! | `GET`, `PUT /v1/vms/{vm}/definition` | its definition, in TOML (`?file=true`: as it stands in the file); edit it |
//! | `GET /v1/vms/{vm}/screenshot` | what its screen shows, as PNG |
//! | `GET`, `POST /v1/vms/{vm}/disks` | list, attach |
//! | `POST /v1/vms/{vm}/disks/{disk}/detach`, `disc` | detach; put another disc, or none, into a drive |
//! | `POST /v1/vms/{vm}/export` | make an entry of a library of it, as a job |
//! | `POST /v1/vms/{vm}/move-home` | move all its disks into images of its own, a job each |
//! | `POST /v1/library` | make a VM from an entry |
//! | `POST /v1/library/verify` | compare an entry with its checksums, as a job |
//! | `POST /v1/vms/{vm}/{request}` | `start`, `shutdown`, `reboot`, `stop`, `reset`, `pause`, `resume` |
//! | `GET /v1/vms/{vm}/guest`, `POST /v1/vms/{vm}/guest/ping` | what its agent says; whether it answers |
//! | `GET /v1/memory` | what each VM has and needs |
//! | `GET`, `POST /v1/vms/{vm}/checkpoints` | the tree of its checkpoints; make one, as a job |
//! | `DELETE /v1/vms/{vm}/checkpoints/{name}` | delete one, as a job |
//! | `POST /v1/vms/{vm}/checkpoints/{name}/{request}` | `revert`, as a job; `rename` |
//! | `POST /v1/vms/{vm}/merge-overlays` | have overlays without checkpoints go back into the files below, as a job |
//! | `POST /v1/vms/{vm}/disks/{disk}/move` | move a disk to another place, while the VM runs too |
//! | `GET`, `POST /v1/users` | list, add |
//! | `DELETE /v1/users/{user}` | remove |
//! | `GET`, `POST`, `DELETE /v1/disks` | describe (`?path=`), create, delete (`?path=`) a disk image |
//! | `POST /v1/disks/{request}` | `convert`, `resize` |
//! | `GET /v1/disks/tree`, `devices` | which image stands on which (`?folder=`); the host's block devices |
//! | `GET /v1/jobs`, `GET /v1/jobs/{id}` | long jobs; one, when it is past a revision (`?after=N&wait=SECONDS`) |
//! | `DELETE /v1/jobs/{id}` | cancel one |
//! | `GET /v1/sessions`, `DELETE /v1/sessions/{id}` | list, end |
//!
//! Bodies are JSON (`model`). An answer that is not a success is `{"error": {"code", "message", "hint"}}`.

mod checkpoints;
pub mod client;
mod disks;
mod error;
mod guest;
mod jobs;
mod library;
mod memory;
pub mod model;
mod service;
mod socket;
pub mod users;
mod vm_disks;
mod vms;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};

pub use socket::ApiSocket;

use crate::certificate::Fingerprint;
use crate::config::Config;
use crate::context::SessionContext;
use crate::listener::OpenAddresses;
use crate::users::Users;

/// Largest request: a definition with many disks fits.
const MAX_BODY: usize = 256 * 1024;

/// What the handlers work on.
pub struct ApiContext {
    /// The configuration the service runs with.
    pub config: Config,
    /// VMs, sessions and the door.
    pub session: Arc<SessionContext>,
    /// The users.
    pub users: Users,
    /// Where RDP clients are awaited.
    pub listening: OpenAddresses,
    /// The certificate's.
    pub fingerprint: Fingerprint,
}

/// All routes.
pub fn router(context: Arc<ApiContext>) -> Router {
    Router::new()
        .route("/v1/version", get(service::version))
        .route("/v1/status", get(service::status))
        .route("/v1/doctor", get(service::doctor))
        .route("/v1/vms", get(vms::list).post(vms::create))
        .route("/v1/vms/{vm}", get(vms::show).delete(vms::delete))
        .route("/v1/vms/{vm}/definition", get(vms::definition).put(vms::edit))
        .route("/v1/vms/{vm}/screenshot", get(vms::screenshot))
        .route("/v1/vms/{vm}/guest", get(guest::show))
        .route("/v1/vms/{vm}/guest/ping", post(guest::ping))
        .route("/v1/vms/{vm}/checkpoints", get(checkpoints::list).post(checkpoints::create))
        .route("/v1/vms/{vm}/checkpoints/{name}", delete(checkpoints::delete))
        .route("/v1/vms/{vm}/checkpoints/{name}/revert", post(checkpoints::revert))
        .route("/v1/vms/{vm}/checkpoints/{name}/rename", post(checkpoints::rename))
        .route("/v1/vms/{vm}/merge-overlays", post(checkpoints::merge))
        .route("/v1/vms/{vm}/disks", get(vm_disks::list).post(vm_disks::attach))
        .route("/v1/vms/{vm}/disks/{disk}/detach", post(vm_disks::detach))
        .route("/v1/vms/{vm}/disks/{disk}/disc", post(vm_disks::change_disc))
        .route("/v1/vms/{vm}/export", post(library::export))
        .route("/v1/vms/{vm}/move-home", post(library::move_home))
        .route("/v1/library", post(library::create))
        .route("/v1/library/verify", post(library::verify))
        .route("/v1/vms/{vm}/{request}", post(vms::request))
        .route("/v1/vms/{vm}/disks/{disk}/move", post(disks::move_disk))
        .route("/v1/disks", get(disks::show).post(disks::create).delete(disks::delete))
        .route("/v1/disks/convert", post(disks::convert))
        .route("/v1/disks/resize", post(disks::resize))
        .route("/v1/disks/tree", get(disks::tree))
        .route("/v1/disks/devices", get(disks::devices))
        .route("/v1/jobs", get(jobs::list))
        .route("/v1/jobs/{id}", get(jobs::show).delete(jobs::cancel))
        .route("/v1/memory", get(memory::show))
        .route("/v1/users", get(users::list).post(users::add))
        .route("/v1/users/{user}", delete(users::remove))
        .route("/v1/sessions", get(service::sessions))
        .route("/v1/sessions/{id}", delete(service::end_session))
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(context)
}
