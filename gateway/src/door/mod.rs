//! The door: what a peer may cost before it has logged on, and how often it may try.
//!
//! [`Door`] binds two pure parts, `admission` and `lockout`, to tasks and the clock. A connection that is given
//! up is told so and drops everything it has.

mod admission;
mod lockout;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdp_server::accept::{AcceptError, Gatekeeper, NtHash};
use rdp_server::front::Target;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

pub use admission::{Budgets, ConnectionId, Network};

use admission::Admission;
use lockout::{Lockout, Patience};

/// Log lines about refused connections: this many at once, then [`LINES_PER_SECOND`].
const LINE_BURST: u32 = 20;
const LINES_PER_SECOND: u32 = 2;
/// Networks from which users have logged on, remembered so that an attack elsewhere does not lock them out.
const MAX_KNOWN: usize = 4096;

/// All connections before logon, and the memory of wrong passwords. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Door {
    inner: Arc<Mutex<Inner>>,
}

/// A connection at the door; dropping it leaves.
#[derive(Debug)]
pub struct Visitor {
    door: Door,
    id: ConnectionId,
    peer: SocketAddr,
}

/// Resolves when a connection is given up; never once its user has logged on.
#[derive(Debug)]
pub struct GivenUp(oneshot::Receiver<()>);

/// How the door is doing.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub struct DoorStatus {
    /// Connections that have not sent a byte.
    pub silent: usize,
    /// Connections that have spoken and not logged on.
    pub waiting: usize,
    /// Connections refused or given up since the start.
    pub refused: u64,
}

#[derive(Debug)]
struct Inner {
    admission: Admission,
    visitors: HashMap<ConnectionId, (SocketAddr, oneshot::Sender<()>)>,
    peers: HashMap<SocketAddr, ConnectionId>,
    networks: Lockout<Network>,
    users: Lockout<String>,
    known: HashMap<(String, Network), Instant>,
    lines: LineBudget,
    refused: u64,
}

impl Door {
    /// A door with these budgets.
    #[must_use]
    pub fn new(budgets: Budgets) -> Self {
        let inner = Inner {
            admission: Admission::new(budgets),
            visitors: HashMap::new(),
            peers: HashMap::new(),
            networks: Lockout::new(Patience::NETWORK),
            users: Lockout::new(Patience::USER),
            known: HashMap::new(),
            lines: LineBudget::new(Instant::now()),
            refused: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Lets a connection in, unless its network has to wait after wrong passwords.
    #[must_use]
    pub fn admit(&self, peer: SocketAddr) -> Option<(Visitor, GivenUp)> {
        let now = Instant::now();
        let network = Network::from(peer.ip());
        let mut inner = self.lock();
        if let Some(wait) = inner.networks.remaining(now, &network) {
            inner.refuse(now, peer, &format_args!("locked out for {} s", wait.as_secs() + 1));
            return None;
        }
        let (id, evicted) = inner.admission.arrived(network);
        inner.give_up(now, evicted);
        let (sender, given_up) = oneshot::channel();
        inner.visitors.insert(id, (peer, sender));
        inner.peers.insert(peer, id);
        Some((Visitor { door: self.clone(), id, peer }, GivenUp(given_up)))
    }

    /// The gatekeeper for one connection: it knows the address, so wrong passwords count against it.
    #[must_use]
    pub fn gate_for(&self, peer: SocketAddr, gate: Arc<dyn Gatekeeper>) -> Arc<dyn Gatekeeper> {
        Arc::new(PeerGate { door: self.clone(), peer, gate })
    }

    /// A connection was not accepted: one line in the log, and a wrong password counts.
    pub fn refused(&self, peer: SocketAddr, error: &AcceptError) {
        let now = Instant::now();
        let mut inner = self.lock();
        if let Some(user) = error.failed_user() {
            inner.wrong_password(now, peer, user);
        } else {
            inner.refuse(now, peer, error);
        }
    }

    /// The system has no descriptors left: gives one connection up. Returns whether there was one.
    pub fn relieve(&self) -> bool {
        let mut inner = self.lock();
        let evicted = inner.admission.relieve();
        inner.give_up(Instant::now(), evicted);
        evicted.is_some()
    }

    /// Gives up everybody who has not logged on.
    pub fn close(&self) {
        while self.relieve() {}
    }

    /// How many are at the door.
    #[must_use]
    pub fn status(&self) -> DoorStatus {
        let inner = self.lock();
        let (silent, waiting) = inner.admission.sizes();
        DoorStatus { silent, waiting, refused: inner.refused }
    }

    /// A user proved who he is. False when the connection was given up a moment before.
    fn logged_on(&self, peer: SocketAddr, user: &str) -> bool {
        let mut inner = self.lock();
        let Some(id) = inner.peers.remove(&peer) else { return false };
        inner.visitors.remove(&id);
        let was_here = inner.admission.left(id);
        inner.remember(Instant::now(), user, peer.ip());
        was_here
    }

    fn may_try(&self, peer: SocketAddr, user: &str) -> bool {
        let inner = self.lock();
        let user = user.to_ascii_lowercase();
        inner.users.remaining(Instant::now(), &user).is_none()
            || inner.known.contains_key(&(user, Network::from(peer.ip())))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Visitor {
    /// The first byte has arrived.
    pub fn spoke(&self) {
        let mut inner = self.door.lock();
        let evicted = inner.admission.spoke(self.id);
        inner.give_up(Instant::now(), evicted);
    }

    /// It is turned away; one line in the log.
    pub fn turned_away(&self, reason: &str) {
        self.door.lock().refuse(Instant::now(), self.peer, &reason);
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let mut inner = self.door.lock();
        inner.admission.left(self.id);
        inner.visitors.remove(&self.id);
        if inner.peers.get(&self.peer) == Some(&self.id) {
            inner.peers.remove(&self.peer);
        }
    }
}

impl GivenUp {
    /// Waits until the connection is given up. Cancel safe.
    pub async fn wait(&mut self) {
        if (&mut self.0).await.is_err() {
            std::future::pending().await
        }
    }
}

impl Inner {
    fn give_up(&mut self, now: Instant, id: Option<ConnectionId>) {
        let Some((peer, sender)) = id.and_then(|id| self.visitors.remove(&id)) else { return };
        self.peers.remove(&peer);
        // A task that is gone already needs no telling.
        let _ = sender.send(());
        self.refuse(now, peer, &"given up for a newer connection");
    }

    fn refuse(&mut self, now: Instant, peer: SocketAddr, reason: &dyn std::fmt::Display) {
        self.refused += 1;
        match self.lines.take(now) {
            Some(0) => info!(%peer, %reason, "connection refused"),
            Some(unlogged) => info!(%peer, %reason, unlogged, "connection refused"),
            None => debug!(%peer, %reason, "connection refused"),
        }
    }

    fn wrong_password(&mut self, now: Instant, peer: SocketAddr, user: &str) {
        self.refused += 1;
        self.users.failed(now, user.to_ascii_lowercase());
        let wait = self.networks.failed(now, Network::from(peer.ip())).unwrap_or_default();
        // Never silenced: what blocks attackers by the log has to see each attempt, and the wait bounds their number.
        warn!(address = %peer.ip(), ?user, locked_out_seconds = wait.as_secs(), "authentication failed");
    }

    fn remember(&mut self, now: Instant, user: &str, address: IpAddr) {
        let user = user.to_ascii_lowercase();
        let network = Network::from(address);
        self.networks.succeeded(&network);
        self.known.insert((user, network), now);
        if self.known.len() > MAX_KNOWN {
            let oldest = self.known.iter().min_by_key(|(_, at)| **at).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.known.remove(&key));
        }
    }
}

/// The gatekeeper as one connection sees it.
struct PeerGate {
    door: Door,
    peer: SocketAddr,
    gate: Arc<dyn Gatekeeper>,
}

impl Gatekeeper for PeerGate {
    fn nt_hash(&self, user: &str) -> Option<NtHash> {
        if self.door.may_try(self.peer, user) { self.gate.nt_hash(user) } else { None }
    }

    fn verify_password(&self, user: &str, password: &str) -> bool {
        self.door.may_try(self.peer, user) && self.gate.verify_password(user, password)
    }

    fn authorise(&self, user: &str, target: &Target) -> Option<String> {
        if self.door.logged_on(self.peer, user) { self.gate.authorise(user, target) } else { None }
    }
}

/// How many more lines the log takes.
#[derive(Debug)]
struct LineBudget {
    left: u32,
    filled: Instant,
    unlogged: u64,
}

impl LineBudget {
    fn new(now: Instant) -> Self {
        Self { left: LINE_BURST, filled: now, unlogged: 0 }
    }

    /// Room for one line, and how many were left out before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let per_line = Duration::from_secs(1) / LINES_PER_SECOND;
        let earned = now.saturating_duration_since(self.filled).as_millis() / per_line.as_millis();
        if let Some(earned) = u32::try_from(earned).ok().filter(|earned| *earned > 0) {
            self.left = self.left.saturating_add(earned).min(LINE_BURST);
            self.filled = now;
        }
        if self.left == 0 {
            self.unlogged += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 1000);

    struct Everybody;

    impl Gatekeeper for Everybody {
        fn nt_hash(&self, _: &str) -> Option<NtHash> {
            Some(NtHash::new([0; 16]))
        }

        fn verify_password(&self, _: &str, _: &str) -> bool {
            true
        }

        fn authorise(&self, _: &str, _: &Target) -> Option<String> {
            Some("vm".to_owned())
        }
    }

    fn remembered(door: &Door) -> (usize, usize) {
        let inner = door.lock();
        (inner.visitors.len(), inner.peers.len())
    }

    fn wrong_password(user: &str) -> AcceptError {
        AcceptError::WrongCredentials { user: user.to_owned() }
    }

    #[test]
    fn who_guesses_too_often_has_to_wait_and_nobody_else() {
        let door = Door::new(Budgets::default());
        (0..10).for_each(|_| door.refused(PEER, &wrong_password("anna")));
        assert!(door.admit(PEER).is_none());
        assert!(door.admit(SocketAddr::new([192, 0, 2, 2].into(), 1000)).is_some());
    }

    #[test]
    fn a_user_under_attack_logs_on_from_a_known_address_only() {
        let door = Door::new(Budgets::default());
        let other = SocketAddr::new([192, 0, 2, 2].into(), 1);
        let _visitor = door.admit(PEER).unwrap();
        let gate = |peer| door.gate_for(peer, Arc::new(Everybody));
        assert!(gate(PEER).authorise("Anna", &Target::Default).is_some());
        for last in 0..110 {
            door.refused(SocketAddr::new([198, 51, 100, last].into(), 1), &wrong_password("anna"));
        }
        assert!(gate(PEER).verify_password("anna", ""));
        assert!(!gate(other).verify_password("anna", ""));
        assert!(gate(other).nt_hash("ANNA").is_none());
        assert!(gate(other).verify_password("bob", ""));
    }

    #[tokio::test]
    async fn who_is_given_up_is_told_and_leaves_nothing_behind() {
        let door = Door::new(Budgets { silent: 2, silent_per_address: 2, ..Budgets::default() });
        let mut visitors: Vec<_> = (1..100).map(|port| door.admit(SocketAddr::new(PEER.ip(), port)).unwrap()).collect();
        visitors[0].1.wait().await;
        assert_eq!(door.status().silent, 2);
        assert_eq!(remembered(&door), (2, 2));
        visitors.clear();
        assert_eq!(door.status().silent, 0);
        assert_eq!(remembered(&door), (0, 0));
    }

    #[test]
    fn who_was_given_up_is_not_let_in_by_a_late_password() {
        let door = Door::new(Budgets::default());
        let _visitor = door.admit(PEER).unwrap();
        let gate = door.gate_for(PEER, Arc::new(Everybody));
        door.close();
        assert!(gate.authorise("anna", &Target::Default).is_none());
    }

    #[test]
    fn the_log_takes_a_burst_and_then_little() {
        let start = Instant::now();
        let mut lines = LineBudget::new(start);
        assert_eq!((0..1000).filter(|_| lines.take(start).is_some()).count(), LINE_BURST as usize);
        assert_eq!(lines.take(start + Duration::from_millis(500)), Some(1000 - u64::from(LINE_BURST)));
        assert_eq!(lines.take(start + Duration::from_millis(600)), None);
    }
}
