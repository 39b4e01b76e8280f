//! The task of one VM's bus.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::{Duration, Instant};

use enhanced_session::class::shutdown::Action;
use enhanced_session::control::OfferFlags;
use enhanced_session::endpoint::Event as BusEvent;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info, warn};
use vmm::{BusConnection, BusPort, BusPortState, Quiesce, QuiesceReason, QuiesceRequests, Vm, VmState};

use super::alarm::Alarm;
use super::channel::HostChannel;
use super::input_port::InputPort;
use super::link::{Link, Stream};
use super::services::{Moment, Services, ShutdownAnswer};
use super::status::{BusState, BusStatus, GuestStatus, Rates, agent_name};

/// How soon a connection that ended or could not be made is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What others ask of a VM's bus.
#[derive(Debug)]
pub(super) enum Command {
    Status(oneshot::Sender<BusStatus>),
    Guest(oneshot::Sender<GuestStatus>),
    Ping(oneshot::Sender<Duration>),
    ShutDown { action: Action, reply: oneshot::Sender<ShutdownAnswer> },
}

type Over = Pin<Box<dyn Future<Output = ()> + Send>>;
type Connecting = Pin<Box<dyn Future<Output = io::Result<BusConnection>> + Send>>;

/// What can happen.
enum Event {
    Port,
    VmDeleted,
    Command(Option<Command>),
    Quiesce(Option<Quiesce>),
    Over,
    Connected(io::Result<BusConnection>),
    LinkReady,
    Input,
    Timer,
}

pub(super) struct Driver {
    vm: Vm,
    port: BusPort,
    port_state: watch::Receiver<BusPortState>,
    /// What of it has been acted on.
    known: BusPortState,
    commands: mpsc::Receiver<Command>,
    quiesces: QuiesceRequests,
    /// The checkpoint that waits for the guest to come to rest.
    resting: Option<Quiesce>,
    /// The checkpoint that the guest rests for.
    over: Option<Over>,
    input: InputPort,
    link: Option<Link>,
    connecting: Option<Connecting>,
    connect_after: Option<Instant>,
    alarm: Alarm,
    services: Services,
    /// Whether the agent can have its system go down.
    can_go_down: watch::Sender<bool>,
    rates: Rates,
    told_off: bool,
}

impl Driver {
    pub(super) fn new(
        vm: Vm,
        commands: mpsc::Receiver<Command>,
        input: InputPort,
        can_go_down: watch::Sender<bool>,
    ) -> Self {
        let port = vm.bus();
        Self {
            port_state: port.watch(),
            quiesces: port.quiesce_requests(),
            known: BusPortState::default(),
            commands,
            resting: None,
            over: None,
            services: Services::new(&vm, input.clone()),
            input,
            can_go_down,
            link: None,
            connecting: None,
            connect_after: None,
            alarm: Alarm::new(),
            rates: Rates::default(),
            told_off: false,
            port,
            vm,
        }
    }

    /// Runs until the VM is deleted, or nobody has a handle any more.
    pub(super) async fn run(mut self) {
        let mut status = self.vm.watch();
        self.follow_port();
        loop {
            match self.next_event(&mut status).await {
                Event::Port => self.follow_port(),
                Event::VmDeleted | Event::Command(None) => break,
                Event::Command(Some(command)) => self.obey(command),
                Event::Quiesce(Some(quiesce)) => self.come_to_rest(quiesce),
                // Somebody else has taken the bus over, or the VM's driver is gone; the status tells which.
                Event::Quiesce(None) => self.quiesces = self.port.quiesce_requests(),
                Event::Over => self.go_on(),
                Event::Connected(connected) => self.connected(connected),
                Event::LinkReady => self.turn(),
                Event::Input => {}
                Event::Timer => self.handle_timer(),
            }
            self.pump();
            let can = self.services.shutdown.can(Action::PowerOff);
            self.can_go_down.send_if_modified(|known| std::mem::replace(known, can) != can);
        }
        self.input.close();
    }

    async fn next_event(&mut self, status: &mut watch::Receiver<vmm::Status>) -> Event {
        let timer = self.next_timer();
        let connecting = async {
            match &mut self.connecting {
                Some(connecting) => connecting.await,
                None => std::future::pending().await,
            }
        };
        let over = async {
            match &mut self.over {
                Some(over) => over.await,
                None => std::future::pending().await,
            }
        };
        let ready = async {
            match &self.link {
                Some(link) => link.ready().await,
                None => std::future::pending().await,
            }
        };
        // Race semantics: the losers lose nothing. Queues and watches keep what they have, a connection that is being
        // made goes on the next time.
        tokio::select! {
            Ok(()) = self.port_state.changed() => Event::Port,
            _ = status.wait_for(|status| status.state == VmState::Deleted) => Event::VmDeleted,
            command = self.commands.recv() => Event::Command(command),
            quiesce = self.quiesces.next() => Event::Quiesce(quiesce),
            () = over => Event::Over,
            connected = connecting => Event::Connected(connected),
            () = ready => Event::LinkReady,
            () = self.input.filled() => Event::Input,
            () = self.alarm.wait(timer) => Event::Timer,
        }
    }

    /// Acts on what has become of the VM and its port.
    fn follow_port(&mut self) {
        let now = Instant::now();
        let state = *self.port_state.borrow_and_update();
        let before = std::mem::replace(&mut self.known, state);
        let present = state.present.then_some(state.generation);
        if self.link.as_ref().is_some_and(|link| Some(link.generation) != present) {
            self.drop_link();
        }
        if present.is_some() && self.link.is_none() && self.connecting.is_none() {
            self.connect();
        }
        let Some(link) = &mut self.link else { return };
        if state.resets != before.resets {
            link.host.handle_reset(now);
        }
        if state.vm_running != before.vm_running {
            if state.vm_running {
                link.host.handle_resumed(now);
                self.services.resumed(Moment::now());
            } else {
                link.host.handle_paused(now);
            }
        }
        match (before.port_open, state.port_open) {
            (false, true) => link.host.handle_port_opened(now),
            (true, false) => link.host.handle_port_closed(now),
            _ => {}
        }
    }

    fn connect(&mut self) {
        let port = self.port.clone();
        self.connect_after = None;
        self.connecting = Some(Box::pin(async move { port.connect().await }));
    }

    fn connected(&mut self, connected: io::Result<BusConnection>) {
        self.connecting = None;
        let connection = match connected {
            Ok(connection) => connection,
            Err(error) => {
                debug!(%error, "the port cannot be connected to");
                self.connect_after = self.known.present.then(|| Instant::now() + RETRY_AFTER);
                return;
            }
        };
        let now = Instant::now();
        let BusConnection { generation, stream, memory } = connection;
        let stream = match Stream::new(stream) {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "the port cannot be waited for");
                self.connect_after = Some(now + RETRY_AFTER);
                return;
            }
        };
        match &mut self.link {
            Some(link) if link.generation == generation => link.reconnected(stream),
            _ => {
                self.drop_link();
                let mut link = Link::new(generation, stream, memory.as_ref(), self.vm.uuid(), now);
                for class in Services::CLASSES {
                    if let Err(error) = link.host.offer(class, 0, OfferFlags::ONE_INSTANCE) {
                        // A fresh core has room for so few.
                        warn!(%class, %error, "cannot be offered");
                    }
                }
                if !self.known.vm_running {
                    link.host.handle_paused(now);
                }
                self.link = Some(link);
            }
        }
        if let Some(link) = &mut self.link {
            // Whether the guest has it open is known a little late, and what is sent to nobody waits.
            link.host.handle_port_opened(now);
        }
    }

    fn drop_link(&mut self) {
        if self.link.take().is_some() {
            self.services.all_closed();
            self.rates = Rates::default();
            self.told_off = false;
        }
    }

    fn turn(&mut self) {
        if let Some(link) = &mut self.link
            && !link.turn(Instant::now())
        {
            self.connect_after = Some(Instant::now() + RETRY_AFTER);
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        let core = self.link.as_ref().and_then(|link| link.host.poll_timeout());
        [core, self.services.timeout(), self.connect_after].into_iter().flatten().min()
    }

    fn handle_timer(&mut self) {
        let now = Instant::now();
        if self.connect_after.is_some_and(|at| at <= now) && self.connecting.is_none() {
            self.connect();
        }
        if let Some(link) = &mut self.link {
            link.host.handle_timeout(now);
        }
    }

    /// Lets the core, the services and the port have what each has for the others, until none has anything.
    fn pump(&mut self) {
        loop {
            let at = Moment::now();
            let Some(link) = &mut self.link else { return };
            let Some(event) = link.host.poll_event() else {
                for id in self.services.open() {
                    self.services.drive(at, id, &mut HostChannel { host: &mut link.host, id });
                }
                if !link.write(at.now) {
                    self.turn();
                }
                break;
            };
            self.handle_bus(at, event);
        }
        let now = Instant::now();
        if self.rates.wants_sample(now)
            && let Some(link) = &self.link
        {
            self.rates.sample(now, link.host.statistics());
        }
    }

    fn handle_bus(&mut self, at: Moment, event: BusEvent) {
        let Some(link) = &mut self.link else { return };
        match event {
            BusEvent::Connected(_) => {
                let agent = agent_name(&link.host.statistics()).unwrap_or_default();
                info!(agent, "agent connected");
            }
            BusEvent::Disconnected(why) => {
                info!(%why, "agent gone");
                self.services.all_closed();
                self.rest(false);
            }
            BusEvent::Opened { id, .. } => {
                if let Some(class) = link.host.class(id) {
                    self.services.opened(at, id, class);
                }
            }
            BusEvent::Closed { id, reason } => {
                debug!(channel = id.0, ?reason, "channel closed");
                self.services.closed(id);
            }
            BusEvent::Readable(id) => HostChannel { host: &mut link.host, id }.read(at, &mut self.services),
            BusEvent::Faulted { id, what } => {
                debug!(channel = id.0, %what, "channel faulted");
            }
            BusEvent::Withdrawn { id, .. } => {
                self.services.closed(id);
                // Once for all that the guest may do: its next line would come from it, too.
                if !std::mem::replace(&mut self.told_off, true) {
                    warn!(
                        channel = id.0,
                        "the guest breaks the bus's rules again and again; channels are kept from it for longer and longer"
                    );
                }
            }
            BusEvent::Quiesced { clean } => self.rest(clean),
            BusEvent::PeerError { code, text } => {
                debug!(?code, text = %text.escape_debug(), "the agent did not act on something");
            }
            _ => {}
        }
    }

    fn obey(&mut self, command: Command) {
        let at = Moment::now();
        match command {
            // Whoever asked may have lost interest.
            Command::Status(reply) => drop(reply.send(self.status(at.now))),
            Command::Guest(reply) => {
                if self.is_connected() {
                    let _ = reply.send(GuestStatus::new(&self.services, at.now));
                }
            }
            Command::Ping(reply) => self.services.heartbeat.ping(at, reply),
            Command::ShutDown { action, reply } => self.services.shutdown.ask(action, reply),
        }
    }

    /// The VM's state is to be saved or another one loaded. In the first case the guest is asked to finish what it is
    /// doing; in the second nothing that it does will have been.
    fn come_to_rest(&mut self, quiesce: Quiesce) {
        match &mut self.link {
            Some(link) if quiesce.reason == QuiesceReason::Save && link.host.peer().is_some() => {
                link.host.quiesce(Instant::now());
                self.resting = Some(quiesce);
            }
            _ => self.over = Some(Box::pin(quiesce.ready())),
        }
    }

    /// The guest has come to rest, or does not.
    fn rest(&mut self, clean: bool) {
        if let Some(quiesce) = self.resting.take() {
            debug!(clean, "at rest");
            self.over = Some(Box::pin(quiesce.ready()));
        }
    }

    /// The VM's state was saved, or another was loaded; that it was is seen from the port's count of resets.
    fn go_on(&mut self) {
        self.over = None;
        if let Some(link) = &mut self.link {
            link.host.unquiesce(Instant::now());
        }
    }

    fn is_connected(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.host.peer().is_some())
    }

    fn status(&self, now: Instant) -> BusStatus {
        let statistics = self.link.as_ref().map(|link| link.host.statistics()).unwrap_or_default();
        let state = match &self.link {
            _ if !self.known.present => BusState::Off,
            Some(link) if link.host.peer().is_some() => BusState::Connected,
            _ => BusState::Waiting,
        };
        BusStatus::new(state, &statistics, &self.rates, &self.services, now)
    }
}
