//! Users over the API.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use tracing::info;

use super::ApiContext;
use super::error::{Answer, Body, Part};
use super::model::{AddUser, UserInfo};
use crate::config::Nla;
use crate::problem::{Code, Problem};
use crate::sessions::EndReason;
use crate::users::{Keep, Secret, User, Users, UsersError, VmRights};

pub(super) async fn list(State(context): State<Arc<ApiContext>>) -> Json<Vec<UserInfo>> {
    Json(context.users.book().values().map(|user| UserInfo::from(&**user)).collect())
}

pub(super) async fn add(
    State(context): State<Arc<ApiContext>>,
    Body(request): Body<AddUser>,
) -> Answer<(StatusCode, Json<UserInfo>)> {
    let users = context.users.clone();
    let nla = context.config.nla;
    let added = tokio::task::spawn_blocking(move || add_user(&users, nla, &request)).await;
    let info = added.map_err(|error| Problem::new(Code::Internal, error))??;
    info!(user = info.name, "user added");
    Ok((StatusCode::CREATED, Json(info)))
}

pub(super) async fn remove(State(context): State<Arc<ApiContext>>, Part(name): Part<String>) -> Answer<StatusCode> {
    let users = context.users.clone();
    let removed = name.clone();
    let result = tokio::task::spawn_blocking(move || users.remove(&removed)).await;
    result.map_err(|error| Problem::new(Code::Internal, error))??;
    info!(user = name, "user removed");
    context.session.sessions.end(EndReason::UserRemoved, |session| session.user.eq_ignore_ascii_case(&name));
    Ok(StatusCode::NO_CONTENT)
}

/// Adds a user, with or without a running service. Blocks while the password is hashed.
///
/// # Errors
///
/// When the request makes no sense, the name is taken or the file cannot be written.
pub fn add_user(users: &Users, nla: Nla, request: &AddUser) -> Result<UserInfo, Problem> {
    let name = request.name.parse()?;
    let keep = match (request.nla, nla) {
        (Some(false), _) | (None, Nla::Off) => Keep::Argon2Only,
        (Some(true), Nla::Off) => {
            return Err(Problem::new(Code::Invalid, "NLA is switched off")
                .hint("set `nla = \"allow\"` under [login] in fanlight.toml first"));
        }
        (Some(true) | None, _) => Keep::NtHashToo,
    };
    if users.find(&request.name).is_some() {
        return Err(UsersError::Exists(name).into());
    }
    let vms = match &request.vms {
        None => VmRights::All,
        Some(names) => VmRights::Only(names.iter().cloned().collect()),
    };
    let user = User { name, secret: Secret::new(&request.password, keep)?, vms };
    let info = UserInfo::from(&user);
    users.add(user)?;
    Ok(info)
}

impl From<&User> for UserInfo {
    fn from(user: &User) -> Self {
        let vms = match &user.vms {
            VmRights::All => None,
            VmRights::Only(names) => Some(names.iter().cloned().collect()),
        };
        Self { name: user.name.to_string(), nla: user.secret.nt_hash().is_some(), vms }
    }
}
