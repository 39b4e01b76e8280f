//! The connection sequence up to an active session, in both orders.
//!
//! ```text
//!                 ┌─▶ ConnectionRequest ─▶ Tls ──┬─▶ CredSsp ──┐
//! FirstBytes ─▶ (blob)                           └─────────────┼─▶ Connect ─▶ Activation ─▶ active
//!                 └─▶ Tls ─▶ CredSsp ─▶ DirectRequest ─────────┘                 │  ▲
//!                     VMConnect's order                                         Password
//! ```

mod negotiation;
mod proof;
mod session;

use std::collections::VecDeque;
use std::sync::Arc;

use console::Size;
use zeroize::Zeroizing;

use super::activation::{Activation, Negotiated};
use super::credssp::CredSsp;
use super::error::{AcceptError, Step};
use super::gatekeeper::Gatekeeper;
use super::handshake::Handshake;
use super::ntlm::ServerSecrets;
use crate::front::{Frame, FrameSplitter, LogonName, Routing, SecurityPolicy};

/// How a login runs.
#[derive(Debug, Clone)]
pub struct LoginSettings {
    /// Which ways of logging on are allowed.
    pub security: SecurityPolicy,
    /// The bits of the SubjectPublicKey of our TLS certificate.
    pub public_key: Vec<u8>,
    /// The largest desktop that is announced.
    pub max_desktop: Size,
    /// Random and current numbers for NTLM.
    pub secrets: ServerSecrets,
}

/// What the caller must do, in order.
#[derive(Debug)]
pub enum Output {
    /// Send this to the client.
    Send(Vec<u8>),
    /// Start TLS as the server, with [`Login::take_pending`] as its first bytes, then call [`Login::tls_started`].
    StartTls,
    /// Verify a password, then call [`Login::password_verified`].
    VerifyPassword {
        /// The account.
        user: String,
        /// What the client sent.
        password: Zeroizing<String>,
    },
    /// The client has proved who it is: budgets for strangers end.
    Authenticated,
    /// The session is active.
    Active(Box<Handshake>),
}

/// One client's way from its first byte to an active session.
pub struct Login {
    settings: LoginSettings,
    gate: Arc<dyn Gatekeeper>,
    input: FrameSplitter,
    outputs: VecDeque<Output>,
    routing: Routing,
    enhanced: bool,
    state: State,
}

enum State {
    FirstBytes,
    Preconnection,
    Preconnected,
    ConnectionRequest,
    Tls(AfterTls),
    CredSsp {
        credssp: Box<CredSsp>,
        negotiated: Option<Negotiated>,
    },
    DirectRequest {
        name: LogonName,
    },
    /// The name is known when CredSSP has proved it.
    Connect {
        negotiated: Negotiated,
        name: Option<LogonName>,
    },
    Activation {
        activation: Box<Activation>,
        negotiated: Negotiated,
        name: Option<LogonName>,
    },
    Password {
        activation: Box<Activation>,
        negotiated: Negotiated,
        name: LogonName,
    },
    Permitted {
        activation: Box<Activation>,
        negotiated: Negotiated,
        user: String,
        vm: String,
    },
    Over,
}

enum AfterTls {
    CredSsp(Option<Negotiated>),
    Connect(Negotiated),
}

/// Whether there may be more to do with the bytes at hand.
#[derive(PartialEq, Eq)]
enum Flow {
    Again,
    Wait,
}

impl Login {
    /// A login that waits for the first byte.
    #[must_use]
    pub fn new(settings: LoginSettings, gate: Arc<dyn Gatekeeper>) -> Self {
        Self {
            settings,
            gate,
            input: FrameSplitter::new(),
            outputs: VecDeque::new(),
            routing: Routing::default(),
            enhanced: false,
            state: State::FirstBytes,
        }
    }

    /// The step that the client is in, for deadlines and for errors.
    #[must_use]
    pub const fn step(&self) -> Step {
        match &self.state {
            State::FirstBytes => Step::FirstBytes,
            State::Preconnection | State::Preconnected => Step::Preconnection,
            State::ConnectionRequest | State::DirectRequest { .. } => Step::ConnectionRequest,
            State::Tls(_) => Step::Tls,
            State::CredSsp { .. } => Step::CredSsp,
            State::Connect { .. } | State::Activation { .. } | State::Password { .. } => Step::Settings,
            State::Permitted { .. } | State::Over => Step::Activation,
        }
    }

    /// Takes bytes from the client: before TLS as they are, afterwards deciphered.
    ///
    /// # Errors
    ///
    /// When the client is refused. Outputs that are left are still to be sent to it.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), AcceptError> {
        self.input.push(bytes);
        self.advance()
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Bytes that came and were not used: the start of TLS at [`Output::StartTls`], of the session's data at
    /// [`Output::Active`].
    #[must_use]
    pub fn take_pending(&mut self) -> Vec<u8> {
        self.input.take_pending()
    }

    /// TLS is up.
    ///
    /// # Errors
    ///
    /// When it was not asked for.
    pub fn tls_started(&mut self) -> Result<(), AcceptError> {
        self.state = match std::mem::replace(&mut self.state, State::Over) {
            State::Tls(AfterTls::CredSsp(negotiated)) => {
                let credssp = CredSsp::new(self.settings.public_key.clone(), self.settings.secrets.clone());
                State::CredSsp { credssp: Box::new(credssp), negotiated }
            }
            State::Tls(AfterTls::Connect(negotiated)) => State::Connect { negotiated, name: None },
            _ => return Err(misbehaved(Step::Tls, "tls was not due")),
        };
        self.advance()
    }

    /// The password of [`Output::VerifyPassword`] is right or wrong.
    ///
    /// # Errors
    ///
    /// When it is wrong, or the user may not go where it wants to.
    pub fn password_verified(&mut self, right: bool) -> Result<(), AcceptError> {
        let State::Password { activation, negotiated, name } = std::mem::replace(&mut self.state, State::Over) else {
            return Err(misbehaved(Step::Settings, "no password was to be verified"));
        };
        if !right {
            self.deny(*activation);
            return Err(AcceptError::WrongCredentials { user: name.account });
        }
        self.outputs.push_back(Output::Authenticated);
        self.authorise(activation, negotiated, name)?;
        self.advance()
    }

    fn advance(&mut self) -> Result<(), AcceptError> {
        // Each round consumes bytes or changes the state, and no state comes twice.
        while self.advance_once()? == Flow::Again {}
        Ok(())
    }

    fn advance_once(&mut self) -> Result<Flow, AcceptError> {
        match &self.state {
            State::FirstBytes | State::Preconnected => self.read_first_bytes(),
            State::Preconnection => self.read_preconnection(),
            State::ConnectionRequest => self.read_connection_request(),
            State::CredSsp { .. } => self.read_credssp(),
            State::DirectRequest { .. } => self.read_direct_request(),
            State::Connect { .. } => self.read_connect(),
            State::Activation { .. } | State::Permitted { .. } => self.read_activation(),
            State::Tls(_) | State::Password { .. } | State::Over => Ok(Flow::Wait),
        }
    }

    fn next_frame(&mut self) -> Result<Option<Frame>, AcceptError> {
        let step = self.step();
        self.input.next_frame().map_err(|error| misbehaved(step, error))
    }

    fn send(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.outputs.push_back(Output::Send(bytes));
        }
    }
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("step", &self.step()).finish_non_exhaustive()
    }
}

fn misbehaved(step: Step, reason: impl ToString) -> AcceptError {
    AcceptError::PeerMisbehaved { step, reason: reason.to_string() }
}

#[cfg(test)]
pub(super) mod tests;
