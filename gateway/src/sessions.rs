//! The sessions that run, and how the rest of the program ends one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::session::stats::{SessionStats, StatsReading};

/// Number of a session, never used twice by one gateway.
pub type SessionId = u64;

/// One session, for people and the API.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Its number.
    pub id: SessionId,
    /// Who.
    pub user: String,
    /// On which VM.
    pub vm: String,
    /// From where.
    pub peer: SocketAddr,
    /// The client computer's name, as the client says.
    pub client: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// What it was sent, and how soon.
    pub stats: StatsReading,
}

/// Why the gateway ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// The gateway stops.
    ServiceStopping,
    /// An administrator ended it.
    Administrator,
    /// The user was removed.
    UserRemoved,
    /// The VM was deleted.
    VmDeleted,
}

/// The sessions that run. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sessions {
    inner: Arc<Mutex<Inner>>,
    count: watch::Sender<usize>,
    limit: usize,
}

/// One session's place among the others; dropping it is the end of the session.
#[derive(Debug)]
pub struct SessionGuard {
    sessions: Sessions,
    id: SessionId,
    stats: SessionStats,
    end: watch::Receiver<Option<EndReason>>,
}

#[derive(Debug)]
struct Live {
    info: SessionInfo,
    stats: SessionStats,
    end: watch::Sender<Option<EndReason>>,
}

#[derive(Debug, Default)]
struct Inner {
    next: SessionId,
    live: BTreeMap<SessionId, Live>,
}

impl Sessions {
    /// No sessions, and room for `limit`.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { inner: Arc::default(), count: watch::Sender::new(0), limit }
    }

    /// Registers a session; none when there are too many.
    #[must_use]
    pub fn begin(&self, user: &str, vm: &str, peer: SocketAddr, client: &str) -> Option<SessionGuard> {
        let mut inner = self.lock();
        if inner.live.len() >= self.limit {
            return None;
        }
        let id = inner.next;
        inner.next += 1;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let stats = SessionStats::default();
        let (user, vm, client) = (user.to_owned(), vm.to_owned(), client.to_owned());
        let info = SessionInfo { id, user, vm, peer, client, since, stats: stats.read() };
        let (sender, end) = watch::channel(None);
        inner.live.insert(id, Live { info, stats: stats.clone(), end: sender });
        self.count.send_replace(inner.live.len());
        Some(SessionGuard { sessions: self.clone(), id, stats, end })
    }

    /// All sessions, the oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<SessionInfo> {
        let inner = self.lock();
        inner.live.values().map(|live| SessionInfo { stats: live.stats.read(), ..live.info.clone() }).collect()
    }

    /// Tells the sessions that `choose` picks to end; returns how many.
    pub fn end(&self, reason: EndReason, choose: impl Fn(&SessionInfo) -> bool) -> usize {
        let inner = self.lock();
        let mut ended = 0;
        for live in inner.live.values().filter(|live| choose(&live.info)) {
            live.end.send_replace(Some(reason));
            ended += 1;
        }
        ended
    }

    /// Waits until there is none.
    pub async fn all_ended(&self) {
        // Never fails: `self` holds the sender.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SessionGuard {
    /// The session's number.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The session's counters.
    #[must_use]
    pub fn stats(&self) -> SessionStats {
        self.stats.clone()
    }

    /// Waits until the gateway wants the session to end. Cancel safe; the reason stays.
    pub async fn ended(&mut self) -> EndReason {
        match self.end.wait_for(Option::is_some).await.map(|reason| *reason) {
            Ok(Some(reason)) => reason,
            // The sender lives as long as the entry, and the entry as long as `self`.
            _ => std::future::pending().await,
        }
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        let mut inner = self.sessions.lock();
        inner.live.remove(&self.id);
        self.sessions.count.send_replace(inner.live.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    #[tokio::test]
    async fn a_session_that_is_told_to_end_knows_why() {
        let sessions = Sessions::new(10);
        let mut one = sessions.begin("anna", "web01", PEER, "pc").unwrap();
        let two = sessions.begin("bob", "web02", PEER, "pc").unwrap();
        assert_eq!(sessions.end(EndReason::VmDeleted, |session| session.vm == "web01"), 1);
        assert_eq!(one.ended().await, EndReason::VmDeleted);
        drop(one);
        assert_eq!(sessions.list().iter().map(|session| session.id).collect::<Vec<_>>(), [two.id()]);
        drop(two);
        sessions.all_ended().await;
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let sessions = Sessions::new(1);
        let first = sessions.begin("anna", "web01", PEER, "pc");
        assert!(first.is_some() && sessions.begin("bob", "web01", PEER, "pc").is_none());
        drop(first);
        assert!(sessions.begin("bob", "web01", PEER, "pc").is_some());
    }
}
