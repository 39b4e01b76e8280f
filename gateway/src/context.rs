//! What every session is given.

use std::net::SocketAddr;
use std::sync::Arc;

use rdp_server::accept::Gatekeeper;
use tokio::sync::watch;

use crate::bus::Buses;
use crate::door::Door;
use crate::sessions::Sessions;

/// Shared by all connections of a gateway.
pub struct SessionContext {
    /// The VMs.
    pub host: vmm::Host,
    /// Their agents.
    pub buses: Buses,
    /// TLS, NLA policy and budgets of the front door.
    pub front: rdp_server::FrontConfig,
    /// Users and rights. A connection asks through [`gate_for`](Self::gate_for), so that its address counts.
    pub gate: Arc<dyn Gatekeeper>,
    /// Budgets before logon and the memory of wrong passwords.
    pub door: Door,
    /// The sessions that run.
    pub sessions: Sessions,
    /// True once the gateway stops.
    pub shutdown: watch::Receiver<bool>,
}

impl SessionContext {
    /// The gatekeeper for the connection from `peer`.
    #[must_use]
    pub fn gate_for(&self, peer: SocketAddr) -> Arc<dyn Gatekeeper> {
        self.door.gate_for(peer, self.gate.clone())
    }
}
