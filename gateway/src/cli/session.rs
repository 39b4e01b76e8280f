//! `fanlight session`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::Context;
use super::output::age;
use crate::problem::Problem;
use crate::sessions::{SessionId, SessionInfo};

const HEADER: &[&str] = &["ID", "USER", "VM", "FROM", "CLIENT", "SINCE", "PICTURES", "SENT", "DELAY"];

#[derive(Debug, Subcommand)]
pub(super) enum Session {
    List(List),
    End(End),
}

/// List the sessions that run
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fanlight session list\n  fanlight session list --json")]
pub(super) struct List {}

/// End a session; its client shows why
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fanlight session end 7")]
pub(super) struct End {
    /// The session's number
    id: SessionId,
}

impl Session {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        match self {
            Self::List(_) => {
                let sessions: Vec<SessionInfo> = context.client.get("/v1/sessions").await?;
                context.output.table(&sessions, HEADER, sessions.iter().map(row).collect());
            }
            Self::End(End { id }) => {
                context.client.delete(&format!("/v1/sessions/{id}")).await?;
                context.output.value(&serde_json::json!({ "ended": id }), || format!("session {id} ends"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn row(session: &SessionInfo) -> Vec<super::output::Cell> {
    vec![
        session.id.to_string().into(),
        session.user.as_str().into(),
        session.vm.as_str().into(),
        session.peer.to_string().into(),
        session.client.as_str().into(),
        age(session.since).into(),
        session.stats.frames.to_string().into(),
        format!("{} KiB", session.stats.graphics_bytes >> 10).into(),
        format!("{} us", session.stats.damage_to_socket_us.p50).into(),
    ]
}
