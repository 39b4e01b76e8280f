//! The host's end of each VM's bus: where `enhanced-session` meets `vmm`'s port, a clock, and who wants something of a guest.
//!
//! ```text
//!  sessions ─▶ InputPort ─┐
//!  API ─▶ Bus (commands) ─┴▶ driver (one task per VM) ─▶ services (pure, one per class)
//!                                   │    ▲
//!                                   ▼    │ enhanced_session::Host (pure)
//!                              vmm::BusPort: stream, shared memory, state of the VM
//! ```
//! A VM's task lives as long as the VM. It connects whenever the VM has a port, and whatever a guest does there stays
//! there: the VM, its console and its sessions go on.

mod alarm;
mod channel;
mod driver;
mod input_port;
mod link;
mod services;
mod status;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::Instrument as _;
use uuid::Uuid;
use vmm::Vm;

pub use enhanced_session::class::shutdown::Action;
pub use input_port::{InputCapabilities, InputPort, InputRefused};
pub use services::{ClockState, GuestDetails, Health, InterfaceDetails, MemoryReport, UserDetails};
pub use status::{BusState, BusStatus, BusTransport, ChannelStatus, GuestStatus};

use driver::{Command, Driver};
use services::ShutdownAnswer;

/// Commands that may wait for a VM's task.
const MAX_COMMANDS: usize = 32;
/// How long an agent may take to say whether it will go down, or to answer a ping.
const ANSWER: Duration = Duration::from_secs(5);

/// The buses of all VMs.
#[derive(Debug, Default)]
pub struct Buses {
    buses: Mutex<HashMap<Uuid, Bus>>,
}

/// A VM's bus. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bus {
    commands: mpsc::Sender<Command>,
    input: InputPort,
    goes_down: watch::Receiver<bool>,
}

/// Why an agent did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// There is none, or none that can do this.
    #[error("no agent in the guest can do that")]
    NoAgent,
    /// It did not answer.
    #[error("the agent in the guest did not answer within {} s", ANSWER.as_secs())]
    Silent,
    /// It does not want to.
    #[error("the guest does not go down: {0}")]
    Refused(String),
}

impl Buses {
    /// The bus of `vm`, whose task runs from the first time on that somebody asks, until the VM is deleted.
    #[must_use]
    pub fn of(&self, vm: &Vm) -> Bus {
        let mut buses = self.buses.lock().unwrap_or_else(PoisonError::into_inner);
        // A VM that was deleted and created again has another task.
        if let Some(bus) = buses.get(&vm.uuid()).filter(|bus| !bus.commands.is_closed()) {
            return bus.clone();
        }
        buses.retain(|_, bus| !bus.commands.is_closed());
        let bus = Bus::spawn(vm);
        buses.insert(vm.uuid(), bus.clone());
        bus
    }
}

impl Bus {
    fn spawn(vm: &Vm) -> Self {
        let (commands, receiver) = mpsc::channel(MAX_COMMANDS);
        let input = InputPort::new();
        let (can_go_down, goes_down) = watch::channel(false);
        let span = tracing::info_span!("bus", vm = vm.name());
        tokio::spawn(Driver::new(vm.clone(), receiver, input.clone(), can_go_down).run().instrument(span));
        Self { commands, input, goes_down }
    }

    /// Where sessions put their input for the agent.
    #[must_use]
    pub const fn input(&self) -> &InputPort {
        &self.input
    }

    /// How the bus stands; none when the VM is gone.
    pub async fn status(&self) -> Option<BusStatus> {
        self.ask(Command::Status).await
    }

    /// What the agent says of its guest; none when there is no agent.
    pub async fn guest(&self) -> Option<GuestStatus> {
        self.ask(Command::Guest).await
    }

    /// Asks the agent for a sign of life. Returns how long it took.
    ///
    /// # Errors
    ///
    /// When there is no agent, or it is silent.
    pub async fn ping(&self) -> Result<Duration, AgentError> {
        self.wait(Command::Ping).await
    }

    /// Waits until an agent is there that can have its system go down. Cancel safe.
    pub async fn can_go_down(&self) {
        if self.goes_down.clone().wait_for(|can| *can).await.is_err() {
            // The bus of a VM that was deleted does not come back.
            std::future::pending().await
        }
    }

    /// Asks the agent to have its system go down.
    ///
    /// # Errors
    ///
    /// When there is no agent, it cannot do this, is silent, or refuses.
    pub async fn shut_down(&self, action: Action) -> Result<(), AgentError> {
        match self.wait(|reply| Command::ShutDown { action, reply }).await? {
            ShutdownAnswer::Accepted => Ok(()),
            ShutdownAnswer::Refused(why) => Err(AgentError::Refused(why)),
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }

    async fn wait<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, AgentError> {
        let answer = timeout(ANSWER, self.ask(command)).await.map_err(|_| AgentError::Silent)?;
        answer.ok_or(AgentError::NoAgent)
    }
}
