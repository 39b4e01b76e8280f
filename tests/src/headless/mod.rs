//! An RDP client without a window: real TCP, TLS, NLA, graphics and touch channels, and a count of every byte.

mod connect;
mod graphics;
pub mod keyboard;
mod picture;
mod socket;
mod tls;
pub mod touch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use ironrdp_connector::ConnectionResult;
use ironrdp_core::{decode, encode_vec};
use ironrdp_dvc::DrdynvcClient;
use ironrdp_pdu::mcs::{McsMessage, SendDataIndication};
use ironrdp_pdu::rdp::headers::{ShareControlHeader, ShareControlPdu, ShareDataPdu};
use ironrdp_pdu::x224::X224;
use ironrdp_svc::client_encode_svc_messages;
use tokio::time::{timeout, timeout_at};
use tokio_rustls::client::TlsStream;

pub use graphics::{Frame, Screen, SharedScreen};
pub use picture::Decode;
use socket::{Counted, Framed};
use touch::pdu::{CsReadyPdu, RdpeiPdu};
use touch::{SharedTouch, TouchState};

/// Nothing a server does takes this long: a client that waits longer reports it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who connects, and where to.
#[derive(Debug, Clone)]
pub struct Options {
    /// The gateway's RDP port.
    pub address: SocketAddr,
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
    /// The VM, when there is more than one.
    pub vm: Option<String>,
    /// The desktop to ask for.
    pub size: (u16, u16),
    /// What to do with the pictures.
    pub decode: Decode,
    /// Bytes the system keeps for a client that does not read; none leaves it to the system.
    pub receive_buffer: Option<u32>,
    /// What it says that it can do with touch; none is a client without.
    pub touch: Option<CsReadyPdu>,
}

/// When the steps of a connection were done.
#[derive(Debug, Clone, Copy)]
pub struct Timeline {
    /// The first thing the client did.
    pub started: Instant,
    /// TCP is established.
    pub connected: Instant,
    /// TLS is established.
    pub encrypted: Instant,
    /// The server has accepted the password.
    pub authenticated: Instant,
    /// Capabilities are exchanged and the session is active.
    pub activated: Instant,
}

/// Bytes that came from the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Received {
    /// Of TCP: with TLS.
    pub wire: u64,
    /// Of RDP: what TLS carries.
    pub rdp: u64,
}

/// A client in an active session.
pub struct Client {
    framed: Framed<TlsStream<Counted>>,
    session: ConnectionResult,
    dynamic_channel_id: u16,
    screen: SharedScreen,
    touch: SharedTouch,
    wire: Arc<AtomicU64>,
    timeline: Timeline,
}

/// Runs what a test does with headless clients, in the thread of the test.
///
/// # Errors
///
/// Those of `what`.
pub fn run<T>(what: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(what)
}

impl Timeline {
    fn start() -> Self {
        let now = Instant::now();
        Self { started: now, connected: now, encrypted: now, authenticated: now, activated: now }
    }
}

impl Client {
    /// Connects and logs on.
    ///
    /// # Errors
    ///
    /// When the server refuses or does not answer.
    pub async fn connect(options: &Options) -> Result<Self> {
        let screen = SharedScreen::new(options.decode);
        let touch = SharedTouch::default();
        let mut channels = DrdynvcClient::new().with_dynamic_channel(screen.channel());
        if let Some(answer) = &options.touch {
            channels.attach_dynamic_channel(touch.channel(answer.clone()));
        }
        let connecting = connect::connect(options, channels);
        let connected = timeout(PATIENCE, connecting).await.context("the server does not answer")??;
        let channels = &connected.result.static_channels;
        let dynamic_channel_id =
            channels.get_channel_id_by_type::<DrdynvcClient>().context("the server has no dynamic channels")?;
        Ok(Self {
            wire: connected.framed.stream().get_ref().0.counter(),
            framed: connected.framed,
            session: connected.result,
            dynamic_channel_id,
            screen,
            touch,
            timeline: connected.timeline,
        })
    }

    /// When the steps of the connection were done.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// Bytes so far.
    pub fn received(&self) -> Received {
        Received { wire: self.wire.load(Ordering::Relaxed), rdp: self.framed.received }
    }

    /// What is on the screen.
    pub fn screen(&self) -> &SharedScreen {
        &self.screen
    }

    /// Presses and releases a key; returns when it was written.
    ///
    /// # Errors
    ///
    /// When the session is over.
    pub async fn tap(&mut self, scancode: u8) -> Result<Instant> {
        self.send(&keyboard::tap(scancode)?).await
    }

    /// Types a text, a key at a time, as fast as the server takes it.
    ///
    /// # Errors
    ///
    /// When there is no key for a character, or the session is over.
    pub async fn type_text(&mut self, text: &str) -> Result<()> {
        for character in text.chars() {
            self.send(&keyboard::character(character)?).await?;
        }
        Ok(())
    }

    /// What the server has said about touch.
    pub fn touch_state(&self) -> TouchState {
        self.touch.lock().clone()
    }

    /// Reads until `is_it` is content with what the server has said about touch.
    ///
    /// # Errors
    ///
    /// When it never is, or the session is over.
    pub async fn wait_for_touch(&mut self, what: &str, is_it: impl Fn(&TouchState) -> bool) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !is_it(&self.touch_state()) {
            let next = timeout_at(deadline, self.handle_next()).await;
            next.with_context(|| format!("no {what}: {:?}", self.touch_state()))??;
        }
        Ok(())
    }

    /// Says something on the touch channel; returns when it was written.
    ///
    /// # Errors
    ///
    /// When the server has not opened the channel, or the session is over.
    pub async fn touch(&mut self, message: &RdpeiPdu) -> Result<Instant> {
        self.touch_with(&encode_vec(message)?).await
    }

    /// As [`touch`](Self::touch), with any bytes.
    ///
    /// # Errors
    ///
    /// As for [`touch`](Self::touch).
    pub async fn touch_with(&mut self, message: &[u8]) -> Result<Instant> {
        let messages = self.touch.encode(message)?;
        let user = self.session.user_channel_id;
        self.send(&client_encode_svc_messages(messages, self.dynamic_channel_id, user)?).await
    }

    /// The next frame.
    ///
    /// # Errors
    ///
    /// When none comes, or the session is over.
    pub async fn next_frame(&mut self) -> Result<Frame> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let mut frames = self.screen.lock().take_frames();
            if !frames.is_empty() {
                return Ok(frames.remove(0));
            }
            timeout_at(deadline, self.handle_next()).await.context("no frame came")??;
        }
    }

    /// Reads for as long as something comes at least every `pause`; returns the frames.
    ///
    /// # Errors
    ///
    /// When the server never becomes quiet, or the session is over.
    pub async fn until_quiet(&mut self, pause: Duration) -> Result<Vec<Frame>> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while let Ok(result) = timeout(pause, self.handle_next()).await {
            result?;
            if tokio::time::Instant::now() > deadline {
                bail!("the server never becomes quiet");
            }
        }
        Ok(self.screen.lock().take_frames())
    }

    /// Reads for as long as `window` lasts; returns the frames.
    ///
    /// # Errors
    ///
    /// When the session is over.
    pub async fn during(&mut self, window: Duration) -> Result<Vec<Frame>> {
        let deadline = tokio::time::Instant::now() + window;
        while let Ok(result) = timeout_at(deadline, self.handle_next()).await {
            result?;
        }
        Ok(self.screen.lock().take_frames())
    }

    /// Serves the session until it fails: a client that keeps up.
    pub async fn keep_up(mut self) -> anyhow::Error {
        loop {
            if let Err(error) = self.handle_next().await {
                return error;
            }
            self.screen.lock().take_frames();
        }
    }

    async fn send(&mut self, pdu: &[u8]) -> Result<Instant> {
        timeout(PATIENCE, self.framed.write(pdu)).await.context("the server does not read")??;
        Ok(Instant::now())
    }

    /// Takes one PDU and answers it. Cancel safe while it waits for the PDU; an answer is small enough for the
    /// socket's own buffer.
    async fn handle_next(&mut self) -> Result<()> {
        let pdu = self.framed.read_pdu().await?;
        // Fast-path output starts with its action bits clear: pointers, and pictures of clients without the channel.
        if pdu.first() != Some(&3) {
            return Ok(());
        }
        self.screen.lock().set_arrived(self.framed.arrived);
        match decode::<X224<McsMessage<'_>>>(&pdu).context("an MCS PDU does not decode")?.0 {
            McsMessage::SendDataIndication(data) => {
                let answer = self.handle_data(&data)?;
                if !answer.is_empty() {
                    self.framed.write(&answer).await?;
                }
                Ok(())
            }
            McsMessage::DisconnectProviderUltimatum(reason) => bail!("the server ends the session: {reason:?}"),
            other => bail!("unexpected MCS PDU {other:?}"),
        }
    }

    fn handle_data(&mut self, data: &SendDataIndication<'_>) -> Result<Vec<u8>> {
        if data.channel_id == self.dynamic_channel_id {
            let channel = self.session.static_channels.get_by_channel_id_mut(data.channel_id);
            let channel = channel.context("no dynamic channels")?;
            let answers = channel.process(&data.user_data).map_err(|error| anyhow!("{}", error.report()))?;
            return Ok(client_encode_svc_messages(answers, data.channel_id, self.session.user_channel_id)?);
        }
        if data.channel_id == self.session.io_channel_id {
            let header: ShareControlHeader = decode(&data.user_data).context("a share PDU does not decode")?;
            match header.share_control_pdu {
                ShareControlPdu::Data(data) => match data.share_data_pdu {
                    ShareDataPdu::ServerSetErrorInfo(info) => bail!("the server ends the session: {:?}", info.0),
                    _ => return Ok(Vec::new()),
                },
                other => bail!("unexpected share PDU {}", other.as_short_name()),
            }
        }
        Ok(Vec::new())
    }
}
