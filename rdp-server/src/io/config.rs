//! Deadlines and budgets, and the clock that holds clients to them.

use std::sync::Arc;
use std::time::Duration;

use console::Size;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::accept::Step;
use crate::front::SecurityPolicy;

/// Time for the first bytes, from the connection on.
pub const FIRST_BYTES_TIME: Duration = Duration::from_secs(5);
/// Time for the pre-connection blob, from the connection on (MS-RDPEPS 3.2.2), and for a connection request.
pub const PRECONNECTION_TIME: Duration = Duration::from_secs(10);
/// Time for the TLS handshake.
pub const TLS_TIME: Duration = Duration::from_secs(10);
/// Time for CredSSP.
pub const CREDSSP_TIME: Duration = Duration::from_secs(20);
/// Time for everything, from the connection to the active session.
pub const LOGIN_TIME: Duration = Duration::from_secs(60);
/// Bytes that a stranger may send, TLS and all.
pub const STRANGER_BYTES: usize = 64 * 1024;
/// The largest desktop that is announced, unless told otherwise.
pub const MAX_DESKTOP: Size = Size::new(5120, 2880);

/// Passwords that are verified at a time: each costs a processor and tens of megabytes.
const PASSWORD_CHECKS: usize = 2;

/// How connections are accepted. One value serves all of them.
#[derive(Clone)]
pub struct FrontConfig {
    /// Certificate and protocol versions.
    pub tls: Arc<rustls::ServerConfig>,
    /// The bits of the SubjectPublicKey in our certificate: what CredSSP binds to.
    pub public_key: Vec<u8>,
    /// Which ways of logging on are allowed.
    pub security: SecurityPolicy,
    /// Deadlines and budgets.
    pub limits: Limits,
    pub(super) password_checks: Arc<Semaphore>,
}

impl FrontConfig {
    /// NLA where the client can, otherwise a password over TLS, and the usual limits.
    #[must_use]
    pub fn new(tls: Arc<rustls::ServerConfig>, public_key: Vec<u8>) -> Self {
        Self {
            tls,
            public_key,
            security: SecurityPolicy::default(),
            limits: Limits::default(),
            password_checks: Arc::new(Semaphore::new(PASSWORD_CHECKS)),
        }
    }
}

impl std::fmt::Debug for FrontConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrontConfig")
            .field("security", &self.security)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Deadlines and budgets of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// See [`FIRST_BYTES_TIME`].
    pub first_bytes: Duration,
    /// See [`PRECONNECTION_TIME`].
    pub preconnection: Duration,
    /// See [`TLS_TIME`].
    pub tls: Duration,
    /// See [`CREDSSP_TIME`].
    pub credssp: Duration,
    /// See [`LOGIN_TIME`].
    pub login: Duration,
    /// See [`STRANGER_BYTES`].
    pub stranger_bytes: usize,
    /// See [`MAX_DESKTOP`].
    pub max_desktop: Size,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_bytes: FIRST_BYTES_TIME,
            preconnection: PRECONNECTION_TIME,
            tls: TLS_TIME,
            credssp: CREDSSP_TIME,
            login: LOGIN_TIME,
            stranger_bytes: STRANGER_BYTES,
            max_desktop: MAX_DESKTOP,
        }
    }
}

impl Limits {
    const fn of(&self, step: Step) -> Duration {
        match step {
            Step::FirstBytes => self.first_bytes,
            Step::Preconnection | Step::ConnectionRequest => self.preconnection,
            Step::Tls => self.tls,
            Step::CredSsp => self.credssp,
            Step::Settings | Step::Activation => self.login,
        }
    }
}

/// When the step at hand must be over.
pub(super) struct StepClock {
    limits: Limits,
    accepted: Instant,
    step: Step,
    began: Instant,
}

impl StepClock {
    pub(super) fn start(limits: Limits) -> Self {
        let now = Instant::now();
        Self { limits, accepted: now, step: Step::FirstBytes, began: now }
    }

    /// The step that counts, its deadline, and the limit that set it.
    pub(super) fn look(&mut self, step: Step) -> (Step, Instant, Duration) {
        // All that comes before TLS in the ordinary order is measured from the connection on.
        let from_the_start = self.step <= Step::ConnectionRequest && step <= Step::ConnectionRequest;
        if step != self.step && !from_the_start {
            self.began = Instant::now();
        }
        self.step = step;
        let limit = self.limits.of(step);
        let (own, whole) = (self.began + limit, self.accepted + self.limits.login);
        if own < whole { (step, own, limit) } else { (step, whole, self.limits.login) }
    }
}
