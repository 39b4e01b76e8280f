//! Where the front door meets sockets and the clock: TLS, deadlines, byte budgets, framed reading and writing.
//!
//! ```text
//! socket ─▶ Metered ─▶ [rustls] ─▶ accept::Login ─▶ Handshake ─▶ FrameReader, FrameWriter
//! ```

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use console::Size;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;
use zeroize::Zeroizing;

use crate::accept::ntlm::ServerSecrets;
use crate::accept::{AcceptError, Gatekeeper, Handshake, Login, LoginSettings, NtHash, Output, Step};
pub use crate::front::Frame;
use crate::front::{FrameSplitter, FramingError, SecurityPolicy};

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

/// Time for the last answer to a refused client to leave, and for its reaction.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
/// Bytes of a refused client that are still read, so that closing the socket does not destroy the answer.
const FAREWELL_BYTES: usize = 64 * 1024;
/// Passwords that are verified at a time: each costs a processor and tens of megabytes.
const PASSWORD_CHECKS: usize = 2;
/// Bytes read at a time from a client that logs on, and from one that has.
const LOGIN_READ_BYTES: usize = 2 * 1024;
const READ_BYTES: usize = 16 * 1024;

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
    password_checks: Arc<Semaphore>,
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

/// Takes a client from its first byte to an active session.
///
/// A refused client has been told why, as far as the protocol can say it, before this returns.
/// Not cancel safe: dropping the future drops the connection.
///
/// # Errors
///
/// When the client does not get in. The caller writes one line of log about it.
pub async fn accept<S>(
    stream: S,
    peer: IpAddr,
    config: &FrontConfig,
    gate: Arc<dyn Gatekeeper>,
) -> Result<Accepted<S>, AcceptError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let settings = LoginSettings {
        security: config.security,
        public_key: config.public_key.clone(),
        max_desktop: config.limits.max_desktop,
        secrets: server_secrets().map_err(|error| AcceptError::Io { step: Step::FirstBytes, error })?,
    };
    let mut driver = Driver {
        login: Login::new(settings, gate.clone()),
        gate,
        config,
        clock: StepClock::start(config.limits),
        buffer: vec![0; LOGIN_READ_BYTES],
    };
    let mut stream = Metered::new(stream, config.limits.stranger_bytes);
    let verdict = driver.drive(&mut stream, None).await;
    if let Err(error) = verdict {
        driver.say_farewell(&mut stream).await;
        return Err(error);
    }
    stream.unread(driver.login.take_pending());
    let mut stream = driver.start_tls(stream).await?;
    debug!(%peer, version = ?stream.get_ref().1.protocol_version(), "tls is up");
    let verdict = match driver.login.tls_started() {
        Ok(()) => driver.drive_to_session(&mut stream).await,
        Err(error) => Err(error),
    };
    match verdict {
        Ok(handshake) => {
            let mut splitter = FrameSplitter::new();
            splitter.push(&driver.login.take_pending());
            Ok(Accepted { stream, splitter, handshake })
        }
        Err(error) => {
            driver.say_farewell(&mut stream).await;
            Err(error)
        }
    }
}

struct Driver<'a> {
    login: Login,
    gate: Arc<dyn Gatekeeper>,
    config: &'a FrontConfig,
    clock: StepClock,
    buffer: Vec<u8>,
}

/// What ends a phase of driving.
enum Pause {
    StartTls,
    Active(Box<Handshake>),
}

impl Driver<'_> {
    async fn drive_to_session<S>(&mut self, stream: &mut TlsStream<Metered<S>>) -> Result<Handshake, AcceptError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let lift: fn(&mut TlsStream<Metered<S>>) = |stream| stream.get_mut().0.lift_budget();
        match self.drive(stream, Some(lift)).await? {
            Pause::Active(handshake) => Ok(*handshake),
            Pause::StartTls => {
                Err(AcceptError::PeerMisbehaved { step: Step::Tls, reason: "tls inside tls".to_owned() })
            }
        }
    }

    /// Carries bytes between client and login until TLS is to start or the session is active.
    async fn drive<T>(&mut self, stream: &mut T, authenticated: Option<fn(&mut T)>) -> Result<Pause, AcceptError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            while let Some(output) = self.login.poll_output() {
                match output {
                    Output::Send(bytes) => self.send(stream, &bytes).await?,
                    Output::VerifyPassword { user, password } => {
                        let right = self.verify(user, password).await?;
                        self.login.password_verified(right)?;
                    }
                    Output::Authenticated => authenticated.into_iter().for_each(|lift| lift(stream)),
                    Output::StartTls => return Ok(Pause::StartTls),
                    Output::Active(handshake) => return Ok(Pause::Active(handshake)),
                }
            }
            let (step, deadline, limit) = self.clock.look(self.login.step());
            let read = timeout_at(deadline, stream.read(&mut self.buffer)).await;
            match read.map_err(|_| AcceptError::TooSlow { step, limit })?.map_err(|error| self.io(step, error))? {
                0 => return Err(AcceptError::Closed { step }),
                count => self.login.handle_bytes(self.buffer.get(..count).unwrap_or_default())?,
            }
        }
    }

    async fn start_tls<S>(&mut self, stream: Metered<S>) -> Result<TlsStream<Metered<S>>, AcceptError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (step, deadline, limit) = self.clock.look(Step::Tls);
        let started = timeout_at(deadline, TlsAcceptor::from(self.config.tls.clone()).accept(stream)).await;
        started.map_err(|_| AcceptError::TooSlow { step, limit })?.map_err(|error| self.io(step, error))
    }

    async fn send<T: AsyncWrite + Unpin>(&mut self, stream: &mut T, bytes: &[u8]) -> Result<(), AcceptError> {
        let (step, deadline, limit) = self.clock.look(self.login.step());
        let sent = timeout_at(deadline, write_flushed(stream, bytes)).await;
        sent.map_err(|_| AcceptError::TooSlow { step, limit })?.map_err(|error| self.io(step, error))
    }

    /// Verifies a password on a blocking thread, few at a time.
    async fn verify(&mut self, user: String, password: Zeroizing<String>) -> Result<bool, AcceptError> {
        let (step, deadline, limit) = self.clock.look(self.login.step());
        let permit = timeout_at(deadline, self.config.password_checks.clone().acquire_owned()).await;
        let permit = permit.map_err(|_| AcceptError::TooSlow { step, limit })?;
        let gate = self.gate.clone();
        let verified = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            gate.verify_password(&user, &password)
        });
        // A verification that panicked has verified nothing.
        Ok(verified.await.unwrap_or(false))
    }

    /// Sends what a refused client is still to be told, then waits a little for it to hang up.
    async fn say_farewell<T: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: &mut T) {
        let farewell = async {
            while let Some(output) = self.login.poll_output() {
                if let Output::Send(bytes) = output {
                    write_flushed(stream, &bytes).await?;
                }
            }
            stream.shutdown().await?;
            let mut read = 0;
            while read < FAREWELL_BYTES {
                match stream.read(&mut self.buffer).await? {
                    0 => break,
                    count => read += count,
                }
            }
            io::Result::Ok(())
        };
        // Nobody is left to tell whether it worked.
        let _ = timeout(FAREWELL_TIME, farewell).await;
    }

    fn io(&self, step: Step, error: io::Error) -> AcceptError {
        let over_budget = error.get_ref().is_some_and(|inner| inner.is::<OverBudget>());
        match error.kind() {
            _ if over_budget => AcceptError::TooMuch { step, limit: self.config.limits.stranger_bytes },
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                AcceptError::Closed { step }
            }
            _ => AcceptError::Io { step, error },
        }
    }
}

/// When the step at hand must be over.
struct StepClock {
    limits: Limits,
    accepted: Instant,
    step: Step,
    began: Instant,
}

impl StepClock {
    fn start(limits: Limits) -> Self {
        let now = Instant::now();
        Self { limits, accepted: now, step: Step::FirstBytes, began: now }
    }

    /// The step that counts, its deadline, and the limit that set it.
    fn look(&mut self, step: Step) -> (Step, Instant, Duration) {
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

async fn write_flushed<T: AsyncWrite + Unpin>(stream: &mut T, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

fn server_secrets() -> io::Result<ServerSecrets> {
    /// 100 ns between 1601 and 1970.
    const UNIX_EPOCH_FILE_TIME: u64 = 116_444_736_000_000_000;
    let mut random = Zeroizing::new([0; 24]);
    getrandom::fill(&mut *random).map_err(io::Error::other)?;
    let mut challenge = [0; 8];
    let mut nobody = [0; 16];
    challenge.copy_from_slice(&random[..8]);
    nobody.copy_from_slice(&random[8..]);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let ticks = u64::try_from(since.as_nanos() / 100).unwrap_or_default();
    let file_time = UNIX_EPOCH_FILE_TIME.saturating_add(ticks);
    Ok(ServerSecrets { challenge, file_time, nobody: NtHash::new(nobody) })
}

/// An active session on its socket.
#[derive(Debug)]
pub struct Accepted<S> {
    stream: TlsStream<Metered<S>>,
    splitter: FrameSplitter,
    handshake: Handshake,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Accepted<S> {
    /// What the handshake found out.
    #[must_use]
    pub const fn handshake(&self) -> &Handshake {
        &self.handshake
    }

    /// Takes the connection apart for the session. Bytes that came behind the handshake are in the reader.
    #[must_use]
    pub fn into_split(self) -> (FrameReader<S>, FrameWriter<S>, Handshake) {
        let (read, write) = tokio::io::split(self.stream);
        let reader = FrameReader { stream: read, splitter: self.splitter, buffer: vec![0; READ_BYTES] };
        (reader, FrameWriter { stream: write }, self.handshake)
    }
}

/// Why a session's client cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It sent what is no PDU.
    #[error("client misbehaved: {0}")]
    Framing(#[from] FramingError),
    /// It went away within a PDU.
    #[error("client closed the connection within a pdu")]
    Truncated,
    /// The socket or TLS failed.
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
}

/// The reading half of a session's connection.
#[derive(Debug)]
pub struct FrameReader<S> {
    stream: ReadHalf<TlsStream<Metered<S>>>,
    splitter: FrameSplitter,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> FrameReader<S> {
    /// The next PDU; none when the client has closed the connection between two.
    ///
    /// Cancel safe: bytes are either still in the socket or kept for the next call.
    ///
    /// # Errors
    ///
    /// When there is no next PDU to be had.
    pub async fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.splitter.next_frame()? {
                return Ok(Some(frame));
            }
            let count = match self.stream.read(&mut self.buffer).await {
                Ok(count) => count,
                // Most clients leave without TLS's goodbye.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                Err(error) => return Err(error.into()),
            };
            if count == 0 {
                let whole = self.splitter.pending().is_empty();
                return if whole { Ok(None) } else { Err(FrameError::Truncated) };
            }
            self.splitter.push(self.buffer.get(..count).unwrap_or_default());
        }
    }
}

/// The writing half of a session's connection.
#[derive(Debug)]
pub struct FrameWriter<S> {
    stream: WriteHalf<TlsStream<Metered<S>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> FrameWriter<S> {
    /// Writes whole PDUs and hands them to the socket.
    ///
    /// Not cancel safe: a dropped future may have written a part.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub async fn write(&mut self, pdus: &[u8]) -> io::Result<()> {
        write_flushed(&mut self.stream, pdus).await
    }

    /// Says goodbye in TLS and closes this direction.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}

/// A socket that gives back what was read too far, and stops when a stranger sends too much.
#[derive(Debug)]
pub struct Metered<S> {
    inner: S,
    unread: Vec<u8>,
    at: usize,
    budget: Option<usize>,
}

/// The budget of [`Metered`] is used up.
#[derive(Debug, thiserror::Error)]
#[error("byte budget exceeded")]
struct OverBudget;

impl<S> Metered<S> {
    const fn new(inner: S, budget: usize) -> Self {
        Self { inner, unread: Vec::new(), at: 0, budget: Some(budget) }
    }

    /// The socket itself.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    fn unread(&mut self, bytes: Vec<u8>) {
        self.unread = bytes;
        self.at = 0;
    }

    const fn lift_budget(&mut self) {
        self.budget = None;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(left) = this.unread.get(this.at..).filter(|left| !left.is_empty()) {
            let count = left.len().min(buffer.remaining());
            buffer.put_slice(left.get(..count).unwrap_or_default());
            this.at += count;
            if this.at == this.unread.len() {
                this.unread(Vec::new());
            }
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
        if let Some(budget) = &mut this.budget {
            let count = buffer.filled().len() - before;
            match budget.checked_sub(count) {
                Some(rest) => *budget = rest,
                None => return Poll::Ready(Err(io::Error::other(OverBudget))),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
