//! What a guest's agent says and does, over the API.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tokio::time::timeout;
use tracing::info;
use vmm::{Vm, VmState};

use super::ApiContext;
use super::error::{Answer, Part};
use super::model::Pong;
use crate::bus::{Action, AgentError, GuestStatus};
use crate::problem::{Code, Problem};

const NO_AGENT: &str = "it may still be starting, or not be installed; `fanlight vm show` tells";

pub(super) async fn show(
    State(context): State<Arc<ApiContext>>,
    Part(name): Part<String>,
) -> Answer<Json<GuestStatus>> {
    let vm = context.vm(&name)?;
    let guest = context.session.buses.of(&vm).guest().await;
    Ok(Json(guest.ok_or_else(|| no_agent(&vm))?))
}

pub(super) async fn ping(State(context): State<Arc<ApiContext>>, Part(name): Part<String>) -> Answer<Json<Pong>> {
    let vm = context.vm(&name)?;
    let round_trip = context.session.buses.of(&vm).ping().await.map_err(|error| problem(&vm, &error))?;
    Ok(Json(Pong { round_trip_us: u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX) }))
}

impl ApiContext {
    /// Has the guest shut down: by its agent, which tells its users, and by its power button where there is none.
    pub(super) async fn shut_down(&self, vm: &Vm) -> Result<(), Problem> {
        let bus = self.session.buses.of(vm);
        if vm.status().state == VmState::Running {
            match bus.shut_down(Action::PowerOff).await {
                Ok(()) => return is_down(vm).await,
                Err(error @ AgentError::Refused(_)) => return Err(problem(vm, &error)),
                Err(AgentError::NoAgent | AgentError::Silent) => {}
            }
        }
        // A guest that is still starting misses its power button, but its agent may come.
        let by_agent = async {
            bus.can_go_down().await;
            // Whatever it says, the button has been pressed, and the guest is waited for.
            let _ = bus.shut_down(Action::PowerOff).await;
            std::future::pending::<Infallible>().await
        };
        // The loser has done what it can.
        tokio::select! {
            down = vm.shutdown() => Ok(down?),
            never = by_agent => match never {},
        }
    }

    /// Has the guest start over in its own way.
    pub(super) async fn reboot(&self, vm: &Vm) -> Result<(), Problem> {
        let asked = self.session.buses.of(vm).shut_down(Action::Reboot).await;
        asked.map_err(|error| match error {
            AgentError::Refused(_) => problem(vm, &error),
            _ => problem(vm, &error)
                .hint("`fanlight vm reset` needs no agent, and what the guest has not written is lost"),
        })
    }
}

/// Waits until a guest that has promised to go down has done so.
async fn is_down(vm: &Vm) -> Result<(), Problem> {
    info!(vm = vm.name(), "the guest shuts down");
    let mut status = vm.watch();
    let down =
        status.wait_for(|status| !matches!(status.state, VmState::Running | VmState::Paused | VmState::Stopping));
    let limit = vmm::Deadlines::default().guest_shutdown;
    let status = timeout(limit, down).await.map_err(|_| {
        let late = format!("`{}` said it goes down, and did not within {} s", vm.name(), limit.as_secs());
        Problem::new(Code::Conflict, late).hint("`fanlight vm stop` switches it off")
    })?;
    // A VM whose task is gone says nothing any more.
    match status.map(|status| (status.state, status.reason.clone())) {
        Ok((VmState::Failed, reason)) => Err(Problem::new(Code::Internal, reason.unwrap_or_default())),
        _ => Ok(()),
    }
}

fn no_agent(vm: &Vm) -> Problem {
    Problem::new(Code::Conflict, format!("no agent answers in `{}`, which is {}", vm.name(), vm.status().state))
        .hint(NO_AGENT)
}

fn problem(vm: &Vm, error: &AgentError) -> Problem {
    match error {
        AgentError::NoAgent => no_agent(vm),
        AgentError::Silent | AgentError::Refused(_) => {
            Problem::new(Code::Conflict, format!("`{}`: {error}", vm.name()))
        }
    }
}
