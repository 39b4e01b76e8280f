//! One client at one virtual machine: where `rdp-server` and `vmm` meet.
//!
//! ```text
//!  socket ─▶ FrameReader ─▶ Connection ─▶ Session ─▶ GuestInput (virtual hardware, or the agent), wished size
//!  socket ◀─ Writer ◀─ control PDUs ◀──────┘  │
//!               ▲                             ▼ acknowledgements, channel messages
//!               └──── pictures ◀─────── GraphicsTask ◀─ vmm::Viewer (damage, cursor)
//! ```
//! Three tasks: the session, its graphics, its writer. Dropping the session's ends of their queues ends the others.

mod framed;
mod graphics;
mod input;
mod notice;
mod sizing;
pub mod stats;
mod writer;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use console::{Point, PointerEvent, Size};
use rdp_server::accept::{AcceptError, Handshake, Reactivation};
use rdp_server::connection::{Connection, ConnectionConfig, ConnectionError, Event as ClientEvent, Farewell};
use rdp_server::graphics::{ClientGraphics, Pipeline};
use rdp_server::input::InputEvent;
use rdp_server::io::{self, Accepted, Frame, FrameError, FrameReader};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{Instrument as _, debug, info, info_span, warn};

use crate::bus::{Bus, InputCapabilities};
use crate::context::SessionContext;
use crate::sessions::{EndReason, SessionGuard};

use graphics::{GraphicsInput, GraphicsReport, GraphicsTask};
use input::GuestInput;
use sizing::Sizing;
use writer::{Outbox, Picture, WriteError, writer};

/// Messages for the graphics task that may wait. The session stops reading its client at this many.
const GRAPHICS_INPUTS: usize = 32;
/// How long a client that is told to go may take to read why.
const FAREWELL_TIME: Duration = Duration::from_secs(2);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The client broke the protocol.
    #[error("client misbehaved: {0}")]
    ClientMisbehaved(#[from] ConnectionError),
    /// The client broke the protocol while its desktop changed size.
    #[error(transparent)]
    Reactivation(#[from] AcceptError),
    /// What the client sent cannot be split into PDUs, or its socket failed.
    #[error(transparent)]
    Read(#[from] FrameError),
    /// The client cannot be written to.
    #[error("{0}")]
    Write(String),
}

/// What can happen to a session.
enum Event {
    Frame(Result<Option<Frame>, FrameError>),
    InputRoom,
    AgentChanged,
    Desktop,
    Report(GraphicsReport),
    Told(EndReason),
    WriterEnded(Result<(), WriteError>),
}

/// Runs one connection from its first byte to its last.
pub async fn run(stream: TcpStream, peer: SocketAddr, ctx: Arc<SessionContext>) {
    let accepted = match io::accept(stream, peer.ip(), &ctx.front, ctx.gate_for(peer)).await {
        Ok(accepted) => accepted,
        Err(error) => return ctx.door.refused(peer, &error),
    };
    let handshake = accepted.handshake();
    let (user, name) = (handshake.user.clone(), handshake.vm.clone());
    // Both were there a moment ago, when the user was let in.
    let Some(vm) = ctx.host.find(&name) else { return warn!(%peer, user, vm = name, "vm is gone") };
    let Some(place) = ctx.sessions.begin(&user, vm.name(), peer, &handshake.client.name) else {
        return warn!(%peer, user, vm = name, "too many sessions");
    };
    let span = info_span!("session", id = place.id(), vm = vm.name());
    async {
        info!(user, %peer, client = handshake_summary(accepted.handshake()), "connected");
        match attend(accepted, &vm, &ctx.buses.of(&vm), place).await {
            Ok(()) => info!(user, "ended"),
            Err(error) => info!(user, %error, "ended"),
        }
    }
    .instrument(span)
    .await;
}

/// Runs the session of a client that has logged on, until it leaves, breaks the protocol, or is told to go.
async fn attend<S>(accepted: Accepted<S>, vm: &vmm::Vm, bus: &Bus, mut place: SessionGuard) -> Result<(), SessionError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (reader, stream, handshake) = accepted.into_split();
    let (outbox, writer) = writer(stream, place.stats());
    let mut writing = tokio::spawn(writer.run());
    let mut session = Session::start(handshake, vm, bus, &place, outbox, reader);
    let result = session.drive(&mut place, &mut writing).await;
    let mut reader = session.end(result.is_err()).await;
    // The queues are closed: the writer sends what is left, and the rest for a stalled client is dropped.
    if !writing.is_finished() && tokio::time::timeout(FAREWELL_TIME, &mut writing).await.is_err() {
        writing.abort();
    }
    // A socket that is closed with bytes unread is reset, and a reset overtakes the reason that was sent.
    let silence = async { while let Ok(Some(_)) = reader.next_frame().await {} };
    let _ = tokio::time::timeout(FAREWELL_TIME, silence).await;
    result
}

struct Session<S> {
    connection: Connection,
    reader: FrameReader<S>,
    input: GuestInput<vmm::Console>,
    /// Whether an agent takes input, and what.
    agent: watch::Receiver<Option<InputCapabilities>>,
    outbox: Option<Outbox>,
    graphics: mpsc::Sender<GraphicsInput>,
    reports: mpsc::Receiver<GraphicsReport>,
    /// The size of the client's desktop.
    desktop: watch::Receiver<Size>,
    handshake: Handshake,
    reactivation: Option<Reactivation>,
    /// Input that the guest has no room for yet. While there is any, nothing more is read from the client.
    waiting: VecDeque<InputEvent>,
    ended: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Session<S> {
    fn start(
        handshake: Handshake,
        vm: &vmm::Vm,
        bus: &Bus,
        place: &SessionGuard,
        outbox: Outbox,
        reader: FrameReader<S>,
    ) -> Self {
        let console = vm.console();
        let port = bus.input();
        let agent = port.capabilities();
        let input =
            GuestInput::new(console.clone(), port.clone(), vm.definition().session.input, place.id(), place.stats());
        console.request_size(handshake.client.requested_size);
        let client = ClientGraphics::from_handshake(
            &handshake.capabilities,
            handshake.client.early_capability_flags,
            handshake.client.color_depth,
        );
        let connection = Connection::new(ConnectionConfig::from(&handshake));
        let (graphics, inputs) = mpsc::channel(GRAPHICS_INPUTS);
        let (report, reports) = mpsc::channel(1);
        let (size, desktop) = watch::channel(handshake.desktop_size);
        let task = GraphicsTask {
            vm: vm.name().to_owned(),
            pipeline: Pipeline::new(client, handshake.desktop_size, Instant::now()),
            viewer: console.viewer(),
            console,
            sizing: Sizing::new(handshake.client.requested_size),
            status: vm.watch(),
            desktop: size,
            inputs,
            reports: report,
            outbox: outbox.clone(),
            address: None,
            notice: false,
            damage: u64::MAX,
            since: None,
        };
        tokio::spawn(task.run());
        Self {
            connection,
            reader,
            input,
            agent,
            outbox: Some(outbox),
            graphics,
            reports,
            desktop,
            handshake,
            reactivation: None,
            waiting: VecDeque::new(),
            ended: false,
        }
    }

    async fn drive(
        &mut self,
        place: &mut SessionGuard,
        writing: &mut JoinHandle<Result<(), WriteError>>,
    ) -> Result<(), SessionError> {
        for early in std::mem::take(&mut self.handshake.input_events) {
            self.handle_frame(&early).await?;
        }
        self.follow_desktop();
        self.follow_agent().await?;
        self.send_output().await;
        while !self.ended {
            // Race semantics: each branch is cancel safe.
            let event = tokio::select! {
                biased;
                reason = place.ended() => Event::Told(reason),
                Some(report) = self.reports.recv() => Event::Report(report),
                ended = &mut *writing => Event::WriterEnded(ended.unwrap_or(Ok(()))),
                Ok(()) = self.agent.changed() => Event::AgentChanged,
                Ok(()) = self.desktop.changed() => Event::Desktop,
                () = self.input.room(), if self.is_input_behind() => Event::InputRoom,
                frame = self.reader.next_frame(), if !self.is_input_behind() => Event::Frame(frame),
            };
            match event {
                Event::Frame(Ok(Some(frame))) => self.handle_frame(frame.bytes()).await?,
                Event::Frame(Ok(None)) => self.ended = true,
                Event::Frame(Err(error)) => return Err(error.into()),
                Event::InputRoom => self.pass_input(),
                Event::AgentChanged => self.follow_agent().await?,
                Event::Desktop => self.follow_desktop(),
                Event::Report(report) => self.handle_report(report).await?,
                Event::Told(reason) => {
                    self.connection.disconnect(farewell(reason));
                    self.ended = true;
                }
                Event::WriterEnded(Ok(())) => self.ended = true,
                Event::WriterEnded(Err(error)) => return Err(SessionError::Write(error.to_string())),
            }
            self.send_output().await;
        }
        Ok(())
    }

    async fn handle_frame(&mut self, pdu: &[u8]) -> Result<(), SessionError> {
        self.connection.handle_frame(pdu)?;
        self.handle_events().await
    }

    async fn handle_events(&mut self) -> Result<(), SessionError> {
        while let Some(event) = self.connection.poll_event() {
            self.handle_client(event).await?;
        }
        Ok(())
    }

    /// An agent has come to the guest, or gone.
    async fn follow_agent(&mut self) -> Result<(), SessionError> {
        self.agent.mark_unchanged();
        self.input.choose();
        self.connection.set_touch(self.input.touch());
        self.pass_input();
        self.handle_events().await
    }

    /// The client's desktop has another size.
    fn follow_desktop(&mut self) {
        let size = *self.desktop.borrow_and_update();
        self.connection.set_desktop(size);
        self.input.set_desktop(size);
    }

    /// Whether the guest must take something before the client is listened to.
    fn is_input_behind(&self) -> bool {
        self.input.is_behind() || !self.waiting.is_empty()
    }

    async fn handle_client(&mut self, event: ClientEvent) -> Result<(), SessionError> {
        let input = match event {
            ClientEvent::Input(event) => {
                if let InputEvent::Pointer(PointerEvent::MoveTo { x, y }) = event {
                    // Only to spare pointer updates: one that is lost costs a few bytes.
                    let _ = self.graphics.try_send(GraphicsInput::PointerAt(Point { x, y }));
                }
                self.waiting.push_back(event);
                self.pass_input();
                return Ok(());
            }
            ClientEvent::Reactivation(pdu) => return self.go_on_reactivating(&pdu).await,
            ClientEvent::ShutdownRequested => {
                self.connection.deny_shutdown();
                return Ok(());
            }
            ClientEvent::Left => {
                self.ended = true;
                return Ok(());
            }
            ClientEvent::WantedSize(size) => GraphicsInput::Wanted(size),
            ClientEvent::GraphicsOpened(address) => GraphicsInput::Opened(address),
            ClientEvent::GraphicsClosed => GraphicsInput::Closed,
            ClientEvent::GraphicsMessage(message) => GraphicsInput::Message(message),
            ClientEvent::FrameAcknowledged(frame_id) => GraphicsInput::FrameAcknowledged(frame_id),
            ClientEvent::Refresh(rect) => GraphicsInput::Refresh(rect),
            ClientEvent::SuppressOutput(suppressed) => GraphicsInput::Suppress(suppressed),
        };
        self.tell_graphics(input).await;
        Ok(())
    }

    /// Passes input on while the guest has room. Nothing is dropped or overtaken: the client waits.
    fn pass_input(&mut self) {
        if self.input.catch_up().is_err() {
            return;
        }
        while let Some(event) = self.waiting.front() {
            if self.input.send(event).is_err() {
                return;
            }
            self.waiting.pop_front();
        }
    }

    async fn handle_report(&mut self, report: GraphicsReport) -> Result<(), SessionError> {
        match report {
            GraphicsReport::Misbehaved => self.connection.close_graphics(),
            GraphicsReport::Reactivate(size) => {
                debug!(%size, "desktop changes its size by reactivation");
                let (reactivation, pdus) = Reactivation::start(&mut self.handshake, size)?;
                self.reactivation = Some(reactivation);
                self.connection.set_reactivating(true);
                self.send_in_order(pdus).await;
            }
        }
        Ok(())
    }

    async fn go_on_reactivating(&mut self, pdu: &[u8]) -> Result<(), SessionError> {
        let Some(reactivation) = &mut self.reactivation else { return Ok(()) };
        let pdus = reactivation.handle_pdu(pdu)?;
        let finished = reactivation.is_finished();
        self.send_in_order(pdus).await;
        if finished {
            if let Some(reactivation) = self.reactivation.take() {
                reactivation.finish(&mut self.handshake);
            }
            self.connection.set_reactivating(false);
            self.tell_graphics(GraphicsInput::Reactivated(self.handshake.desktop_size)).await;
        }
        Ok(())
    }

    /// Sends behind the pictures that are on their way: a client that is being reactivated takes none.
    async fn send_in_order(&mut self, pdus: Vec<u8>) {
        if let (Some(outbox), false) = (&self.outbox, pdus.is_empty()) {
            // Without a writer the session ends at its next event.
            let _ = outbox.graphics.send(Picture { pdus, since: None }).await;
        }
    }

    async fn tell_graphics(&mut self, input: GraphicsInput) {
        // The task ends before the session only when the writer has: that is an event of its own.
        let _ = self.graphics.send(input).await;
    }

    async fn send_output(&mut self) {
        while let Some(pdu) = self.connection.poll_output() {
            if let Some(outbox) = &self.outbox {
                // As above: without a writer the session ends at its next event.
                let _ = outbox.control.send(pdu).await;
            }
        }
    }

    /// Gives the guest what the client still did, lifts every key, button and finger that may be down, and lets go of the
    /// other tasks.
    async fn end(mut self, misbehaved: bool) -> FrameReader<S> {
        if misbehaved {
            self.connection.disconnect(Farewell::BadClient);
            let _ = tokio::time::timeout(FAREWELL_TIME, self.send_output()).await;
        }
        self.outbox = None;
        self.end_touch();
        while self.is_input_behind() || self.input.release_all().is_err() {
            // A guest that hangs takes no input before it is switched off, and then forgets what was pressed.
            if tokio::time::timeout(FAREWELL_TIME, self.input.room()).await.is_err() {
                break;
            }
            self.pass_input();
        }
        self.reader
    }

    /// Cancels what the fingers are doing.
    fn end_touch(&mut self) {
        self.connection.cancel_touch();
        while let Some(event) = self.connection.poll_event() {
            if let ClientEvent::Input(event @ (InputEvent::Touch(_) | InputEvent::Pen(_))) = event {
                self.waiting.push_back(event);
            }
        }
        self.pass_input();
    }
}

fn farewell(reason: EndReason) -> Farewell {
    match reason {
        EndReason::ServiceStopping => Farewell::ServerShutdown,
        EndReason::Administrator | EndReason::VmDeleted => Farewell::EndedByAdministrator,
        EndReason::UserRemoved => Farewell::NotAllowed,
    }
}

fn handshake_summary(handshake: &Handshake) -> String {
    let client = &handshake.client;
    format!("{} build {} {}", client.name, client.build, client.requested_size)
}
