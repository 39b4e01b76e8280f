//! The running gateway: everything started, and ended in order.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rdp_server::FrontConfig;
use rdp_server::front::SecurityPolicy;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{info, warn};
use vmm::{Host, HostConfig};

use crate::api::{ApiContext, ApiSocket};
use crate::bus::Buses;
use crate::certificate::{Fingerprint, Identity};
use crate::config::{Config, Nla};
use crate::context::SessionContext;
use crate::door::Door;
use crate::gate::Gate;
use crate::listener::{Listener, OpenAddresses};
use crate::problem::{Code, Problem};
use crate::sessions::{EndReason, Sessions};
use crate::state::StateLock;
use crate::users::Users;

/// How long clients may take to hear why their session ends.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long jobs may take to stop and clear up.
const LAST_JOBS: Duration = Duration::from_secs(10);
/// How long answers that are under way may take.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// A gateway that runs.
pub struct Service {
    context: Arc<ApiContext>,
    stop: watch::Sender<bool>,
    listening: JoinHandle<()>,
    api: JoinHandle<()>,
    _lock: StateLock,
}

/// Runs a gateway until `shutdown` resolves; `started` is called once it listens.
///
/// # Errors
///
/// When it cannot start; one that has started ends in order.
pub async fn run(
    config: Config,
    started: impl FnOnce(&Service),
    shutdown: impl Future<Output = ()>,
) -> Result<(), Problem> {
    let service = Service::start(config).await?;
    started(&service);
    shutdown.await;
    service.stop().await;
    Ok(())
}

impl Service {
    /// Starts everything. VMs that run already are taken back.
    ///
    /// # Errors
    ///
    /// When another gateway has the state folder, or something that is needed is missing.
    pub async fn start(config: Config) -> Result<Self, Problem> {
        config.state.create()?;
        let lock = config.state.lock()?;
        Self::start_locked(config, lock).await
    }

    /// As [`start`](Self::start), for a caller who holds the lock already.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_locked(config: Config, lock: StateLock) -> Result<Self, Problem> {
        let descriptors = set_limits();
        let users = Users::open(config.state.users())?;
        let identity = Identity::load_or_create(&config)?;
        let host = open_host(&config).await?;
        let (stop, stopping) = watch::channel(false);
        let budgets = config.budgets.fit(descriptors);
        let session = Arc::new(SessionContext {
            gate: Arc::new(Gate::new(users.clone(), host.clone())),
            front: front(&config, &identity),
            buses: Buses::default(),
            host,
            door: Door::new(budgets),
            sessions: Sessions::new(budgets.sessions),
            shutdown: stopping.clone(),
        });
        tokio::spawn(listen_for_agents(session.clone()));
        let socket = ApiSocket::bind(&config.state)
            .map_err(|error| Problem::new(Code::Internal, format!("cannot open the api socket: {error}")))?;
        let listener = Listener::open(config.listen.clone(), users.clone(), session.clone())?;
        let context = Arc::new(ApiContext {
            listening: listener.addresses(),
            fingerprint: identity.fingerprint,
            config,
            session,
            users,
        });
        info!(
            fingerprint = %format_args!("sha256:{}", context.fingerprint),
            state = %context.config.state.path().display(),
            "started"
        );
        let listening = tokio::spawn(listener.follow_users());
        let api = tokio::spawn(socket.serve(context.clone(), stopping));
        Ok(Self { context, stop, listening, api, _lock: lock })
    }

    /// The VMs.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.context.session.host
    }

    /// Where RDP clients are awaited.
    #[must_use]
    pub fn listening(&self) -> &OpenAddresses {
        &self.context.listening
    }

    /// The certificate's.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.context.fingerprint
    }

    /// Stops listening, ends the sessions with a reason that their clients show, and leaves the guests running.
    pub async fn stop(self) {
        let session = &self.context.session;
        info!("stopping");
        self.listening.abort();
        session.sessions.end(EndReason::ServiceStopping, |_| true);
        self.stop.send_replace(true);
        session.door.close();
        if timeout(FAREWELL, session.sessions.all_ended()).await.is_err() {
            warn!(sessions = session.sessions.list().len(), "sessions did not end in time");
        }
        if timeout(LAST_JOBS, session.host.jobs().stop()).await.is_err() {
            warn!("jobs did not end in time");
        }
        if timeout(LAST_ANSWERS, self.api).await.is_err() {
            warn!("requests did not end in time");
        }
        info!("stopped");
    }
}

/// Listens for the agents of all VMs, whether somebody is connected or not, until the gateway stops.
async fn listen_for_agents(session: Arc<SessionContext>) {
    let (mut vms, mut shutdown) = (session.host.watch(), session.shutdown.clone());
    loop {
        session.host.list().iter().for_each(|vm| drop(session.buses.of(vm)));
        // Who loses has nothing to lose.
        tokio::select! {
            changed = vms.changed() => if changed.is_err() { return },
            _ = shutdown.wait_for(|stopping| *stopping) => return,
        }
    }
}

fn front(config: &Config, identity: &Identity) -> FrontConfig {
    let security = match config.nla {
        Nla::Allow => SecurityPolicy::NlaOrTls,
        Nla::Require => SecurityPolicy::NlaOnly,
        Nla::Off => SecurityPolicy::TlsOnly,
    };
    let mut front = FrontConfig::new(identity.tls.clone(), identity.public_key.clone());
    front.security = security;
    front
}

async fn open_host(config: &Config) -> Result<Host, Problem> {
    let settings = HostConfig {
        qemu: config.qemu.clone(),
        memory: config.memory,
        ..HostConfig::new(config.state.definitions(), config.state.runtime())
    };
    Ok(Host::open(settings).await?)
}

/// Allows as many open files as the system permits, and no core dumps: they would hold passwords and guest memory.
/// Returns the number of files.
fn set_limits() -> usize {
    // Both only make things better; without them the gateway works too.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: getrlimit(Resource::Core).maximum });
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum });
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(allowed).unwrap_or(usize::MAX)
}
