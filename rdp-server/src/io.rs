//! Where the front door meets sockets and the clock: TLS, deadlines, byte budgets, framed reading and writing.
//!
//! ```text
//! socket ─▶ Metered ─▶ [rustls] ─▶ accept::Login ─▶ Handshake ─▶ FrameReader, FrameWriter
//! ```

mod config;
mod metered;
mod session;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;
use zeroize::Zeroizing;

use self::config::StepClock;
pub use self::config::{
    CREDSSP_TIME, FIRST_BYTES_TIME, FrontConfig, LOGIN_TIME, Limits, MAX_DESKTOP, PRECONNECTION_TIME, STRANGER_BYTES,
    TLS_TIME,
};
pub use self::metered::Metered;
use self::metered::OverBudget;
pub use self::session::{Accepted, FrameError, FrameReader, FrameWriter};
use crate::accept::ntlm::ServerSecrets;
use crate::accept::{AcceptError, Gatekeeper, Handshake, Login, LoginSettings, NtHash, Output, Step};
pub use crate::front::Frame;
use crate::front::FrameSplitter;

/// Time for the last answer to a refused client to leave, and for its reaction.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
/// Bytes of a refused client that are still read, so that closing the socket does not destroy the answer.
const FAREWELL_BYTES: usize = 64 * 1024;
/// Bytes read at a time from a client that logs on: there may be many.
const LOGIN_READ_BYTES: usize = 2 * 1024;

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

#[cfg(test)]
mod tests;
