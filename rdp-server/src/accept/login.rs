//! The connection sequence up to an active session, in both orders.
//!
//! ```text
//!                 ┌─▶ ConnectionRequest ─▶ Tls ──┬─▶ CredSsp ──┐
//! FirstBytes ─▶ (blob)                           └─────────────┼─▶ Connect ─▶ Activation ─▶ active
//!                 └─▶ Tls ─▶ CredSsp ─▶ DirectRequest ─────────┘                 │  ▲
//!                     VMConnect's order                                         Password
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use console::Size;
use ironrdp_pdu::nego::{FailureCode, SecurityProtocol};
use zeroize::Zeroizing;

use super::activation::{Activation, IO_CHANNEL_ID, Negotiated, Progress, Refusal, USER_CHANNEL_ID};
use super::credssp::{self, CredSsp, CredSspError};
use super::error::{AcceptError, Step};
use super::gatekeeper::{Gatekeeper, NtHash};
use super::handshake::Handshake;
use super::ntlm::{Claim, SERVER_NAME, ServerSecrets};
use crate::front::first_bytes::{FirstBytes, MAX_REQUEST_BYTES, classify};
use crate::front::{Frame, FrameSplitter, LogonName, Routing, SecurityPolicy};
use crate::front::{connection_request, failure, preconnection};

/// MS-RDPBCGR 2.2.10.2 Early User Authorization Result PDU: success. Rights are judged later, for all alike.
const EARLY_AUTHORIZATION_SUCCESS: [u8; 4] = [0; 4];

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

    fn read_first_bytes(&mut self) -> Result<Flow, AcceptError> {
        let after_blob = matches!(self.state, State::Preconnected);
        match classify(self.input.pending()) {
            None => return Ok(Flow::Wait),
            Some(FirstBytes::X224) => self.state = State::ConnectionRequest,
            Some(FirstBytes::Tls) => {
                if self.settings.security == SecurityPolicy::TlsOnly {
                    return Err(AcceptError::Unsupported(
                        "tls before x.224 needs nla, which is switched off".to_owned(),
                    ));
                }
                self.start_tls(AfterTls::CredSsp(None));
            }
            Some(FirstBytes::Preconnection) if !after_blob => self.state = State::Preconnection,
            Some(FirstBytes::Http) => return Err(AcceptError::Unsupported("client speaks http".to_owned())),
            Some(FirstBytes::Preconnection | FirstBytes::Unknown) => {
                return Err(misbehaved(self.step(), "client speaks neither rdp nor tls"));
            }
        }
        Ok(Flow::Again)
    }

    fn read_preconnection(&mut self) -> Result<Flow, AcceptError> {
        let read = preconnection::read(self.input.pending());
        let Some((blob, size)) = read.map_err(|error| misbehaved(Step::Preconnection, error))? else {
            return Ok(Flow::Wait);
        };
        self.input.consume(size);
        self.routing.preconnection = blob.target;
        self.enhanced = blob.enhanced;
        self.state = State::Preconnected;
        Ok(Flow::Again)
    }

    fn read_connection_request(&mut self) -> Result<Flow, AcceptError> {
        self.input.set_limit(MAX_REQUEST_BYTES.into());
        let Some(request) = self.next_request()? else {
            return Ok(Flow::Wait);
        };
        let selected = match self.settings.security.select(request.protocols) {
            Ok(selected) => selected,
            Err(code) => return self.refuse(code, request.protocols),
        };
        self.outputs.push_back(Output::Send(failure::confirm(selected)));
        let negotiated = Negotiated { requested: request.protocols, selected };
        self.start_tls(if selected == SecurityProtocol::SSL {
            AfterTls::Connect(negotiated)
        } else {
            AfterTls::CredSsp(Some(negotiated))
        });
        Ok(Flow::Wait)
    }

    /// VMConnect's order: there is no early user authorization in it, so HYBRID is the only answer.
    fn read_direct_request(&mut self) -> Result<Flow, AcceptError> {
        self.input.set_limit(MAX_REQUEST_BYTES.into());
        let Some(request) = self.next_request()? else {
            return Ok(Flow::Wait);
        };
        if !request.protocols.contains(SecurityProtocol::HYBRID) {
            return self.refuse(FailureCode::INCONSISTENT_FLAGS, request.protocols);
        }
        let State::DirectRequest { name } = std::mem::replace(&mut self.state, State::Over) else {
            unreachable!("called in this state only");
        };
        self.outputs.push_back(Output::Send(failure::confirm(SecurityProtocol::HYBRID)));
        let negotiated = Negotiated { requested: request.protocols, selected: SecurityProtocol::HYBRID };
        self.state = State::Connect { negotiated, name: Some(name) };
        Ok(Flow::Again)
    }

    fn next_request(&mut self) -> Result<Option<connection_request::ConnectionRequest>, AcceptError> {
        let Some(frame) = self.next_frame()? else {
            return Ok(None);
        };
        let request =
            connection_request::read(frame.bytes()).map_err(|error| misbehaved(Step::ConnectionRequest, error))?;
        self.routing.token.clone_from(&request.target);
        Ok(Some(request))
    }

    fn refuse(&mut self, code: FailureCode, requested: SecurityProtocol) -> Result<Flow, AcceptError> {
        self.state = State::Over;
        self.outputs.push_back(Output::Send(failure::refuse(code)));
        Err(AcceptError::Unsupported(format!("client can only do {requested}: {code}")))
    }

    fn start_tls(&mut self, after: AfterTls) {
        self.state = State::Tls(after);
        self.outputs.push_back(Output::StartTls);
    }

    fn read_credssp(&mut self) -> Result<Flow, AcceptError> {
        let State::CredSsp { credssp, negotiated } = &mut self.state else {
            unreachable!("called in this state only");
        };
        let length = credssp::message_length(self.input.pending()).map_err(|error| misbehaved(Step::CredSsp, error))?;
        let Some(message) = length.and_then(|length| self.input.pending().get(..length)) else {
            return Ok(Flow::Wait);
        };
        let consumed = message.len();
        let gate = &self.gate;
        let progress = credssp.handle_message(message, |claim| find_hash(gate.as_ref(), claim));
        let negotiated = *negotiated;
        self.input.consume(consumed);
        match progress {
            Ok(credssp::Progress::Reply(reply)) => {
                self.outputs.push_back(Output::Send(reply));
                Ok(Flow::Again)
            }
            Ok(credssp::Progress::Done) => self.finish_credssp(negotiated),
            Err(error) => self.fail_credssp(error),
        }
    }

    fn finish_credssp(&mut self, negotiated: Option<Negotiated>) -> Result<Flow, AcceptError> {
        let Some(name) = self.claimed_name() else {
            return Err(misbehaved(Step::CredSsp, "credssp ended without a name"));
        };
        self.outputs.push_back(Output::Authenticated);
        self.state = match negotiated {
            None => State::DirectRequest { name },
            Some(negotiated) => {
                if negotiated.selected == SecurityProtocol::HYBRID_EX {
                    self.outputs.push_back(Output::Send(EARLY_AUTHORIZATION_SUCCESS.to_vec()));
                }
                State::Connect { negotiated, name: Some(name) }
            }
        };
        Ok(Flow::Again)
    }

    fn fail_credssp(&mut self, error: CredSspError) -> Result<Flow, AcceptError> {
        let name = self.claimed_name();
        let State::CredSsp { credssp, .. } = std::mem::replace(&mut self.state, State::Over) else {
            unreachable!("called in this state only");
        };
        self.outputs.extend(credssp.refusal().map(Output::Send));
        match (error, name) {
            (CredSspError::LogonDenied, name) => {
                Err(AcceptError::WrongCredentials { user: name.map_or_else(String::new, |name| name.account) })
            }
            (CredSspError::NoNtlm, _) => Err(AcceptError::Unsupported("client offers no ntlm for nla".to_owned())),
            (error, _) => Err(misbehaved(Step::CredSsp, error)),
        }
    }

    fn claimed_name(&self) -> Option<LogonName> {
        match &self.state {
            State::CredSsp { credssp, .. } => credssp.claim().map(logon_name),
            _ => None,
        }
    }

    fn read_connect(&mut self) -> Result<Flow, AcceptError> {
        self.input.set_limit(crate::front::framing::MAX_TPKT_BYTES);
        let Some(frame) = self.next_frame()? else {
            return Ok(Flow::Wait);
        };
        let State::Connect { negotiated, name } = std::mem::replace(&mut self.state, State::Over) else {
            unreachable!("called in this state only");
        };
        let mut out = Vec::new();
        let connected = Activation::connect(frame.bytes(), negotiated, self.settings.max_desktop, &mut out);
        self.send(out);
        let activation = Box::new(connected.map_err(|refusal| refused(Step::Settings, refusal))?);
        self.state = State::Activation { activation, negotiated, name };
        Ok(Flow::Again)
    }

    fn read_activation(&mut self) -> Result<Flow, AcceptError> {
        let Some(frame) = self.next_frame()? else {
            return Ok(Flow::Wait);
        };
        let step = self.step();
        let (State::Activation { activation, .. } | State::Permitted { activation, .. }) = &mut self.state else {
            unreachable!("called in these states only");
        };
        let mut out = Vec::new();
        let progress = activation.handle_frame(&frame, &mut out);
        self.send(out);
        match progress.map_err(|refusal| refused(step, refusal))? {
            Progress::Wait => {}
            Progress::Credentials(credentials) => self.judge(credentials)?,
            Progress::Active => self.finish(),
        }
        Ok(Flow::Again)
    }

    /// Client Info is there: with CredSSP the user is known, without it the password in there decides.
    fn judge(&mut self, credentials: ironrdp_pdu::rdp::client_info::Credentials) -> Result<(), AcceptError> {
        let State::Activation { activation, negotiated, name } = std::mem::replace(&mut self.state, State::Over) else {
            return Err(misbehaved(Step::Activation, "client info came twice"));
        };
        let password = Zeroizing::new(credentials.password);
        if let Some(name) = name {
            return self.authorise(activation, negotiated, name);
        }
        let domain = credentials.domain.as_deref().unwrap_or_default();
        let name = LogonName::read(&credentials.username, domain, &[&activation.client.name, SERVER_NAME]);
        self.outputs.push_back(Output::VerifyPassword { user: name.account.clone(), password });
        self.state = State::Password { activation, negotiated, name };
        Ok(())
    }

    fn authorise(
        &mut self,
        mut activation: Box<Activation>,
        negotiated: Negotiated,
        name: LogonName,
    ) -> Result<(), AcceptError> {
        let target = self.routing.resolve(name.target);
        let Some(vm) = self.gate.authorise(&name.account, &target) else {
            self.deny(*activation);
            return Err(AcceptError::NotAllowed { user: name.account, target });
        };
        let mut out = Vec::new();
        let permitted = activation.permit(&mut out);
        self.send(out);
        permitted.map_err(|refusal| refused(Step::Activation, refusal))?;
        self.state = State::Permitted { activation, negotiated, user: name.account, vm };
        Ok(())
    }

    fn deny(&mut self, activation: Activation) {
        let mut out = Vec::new();
        activation.deny(&mut out);
        self.send(out);
    }

    fn finish(&mut self) {
        let State::Permitted { activation, negotiated, user, vm } = std::mem::replace(&mut self.state, State::Over)
        else {
            unreachable!("a session is active only after permission");
        };
        let client = activation.client.clone();
        let desktop_size = activation.desktop;
        let static_channels = activation.static_channels.clone();
        let message_channel_id = activation.message_channel_id;
        let (acceptor, capabilities, input_events) = activation.finish();
        self.outputs.push_back(Output::Active(Box::new(Handshake {
            user,
            vm,
            enhanced: self.enhanced,
            protocol: negotiated.selected,
            client,
            desktop_size,
            capabilities,
            static_channels,
            user_channel_id: USER_CHANNEL_ID,
            io_channel_id: IO_CHANNEL_ID,
            message_channel_id,
            input_events,
            acceptor: Some(Box::new(acceptor)),
        })));
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

fn logon_name(claim: &Claim) -> LogonName {
    LogonName::read(&claim.user, &claim.domain, &[&claim.workstation, SERVER_NAME])
}

/// The hash of the bare account: the proof itself is checked with the names as the client sent them.
fn find_hash(gate: &dyn Gatekeeper, claim: &Claim) -> Option<NtHash> {
    gate.nt_hash(&logon_name(claim).account)
}

fn misbehaved(step: Step, reason: impl ToString) -> AcceptError {
    AcceptError::PeerMisbehaved { step, reason: reason.to_string() }
}

fn refused(step: Step, refusal: Refusal) -> AcceptError {
    match refusal {
        Refusal::Misbehaved(reason) => misbehaved(step, reason),
        Refusal::Left => AcceptError::Closed { step },
    }
}

#[cfg(test)]
pub(super) mod tests;
