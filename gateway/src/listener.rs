//! The sockets that RDP clients connect to.
//!
//! One task per address accepts; one task per connection waits for the first byte, and only then is there a
//! session's state at all. While no user exists, only loopback is open, whatever the configuration says.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{self, set_ipv6_v6only};
use socket2::SockRef;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::config::Listen;
use crate::context::SessionContext;
use crate::door::{GivenUp, Visitor};
use crate::session;
use crate::users::Users;

/// How long a connection may stay silent.
pub const FIRST_BYTE_DEADLINE: Duration = Duration::from_secs(5);
/// Connections the system keeps until they are accepted.
const BACKLOG: u32 = 1024;
/// Pause after an accept that failed for want of something; doubles up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Time between two warnings that connections cannot be accepted.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two tries to open an address that could not be opened.
const REOPEN: Duration = Duration::from_secs(10);
/// A client that vanished without a word is noticed after about two minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;
/// Bytes that the system keeps beyond those that are on their way to a client. It would keep megabytes, all of them older
/// pictures: for a client that is slow they come late, and for one that takes nothing they are encoded in vain.
const MAX_UNSENT: u32 = 128 * 1024;

/// An address that cannot be listened on.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}")]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// What the system says.
    pub source: io::Error,
}

/// The addresses that are open now. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct OpenAddresses {
    addresses: Arc<Mutex<Vec<SocketAddr>>>,
}

/// All listening sockets of a gateway. Dropping it closes them.
pub struct Listener {
    listen: Listen,
    users: Users,
    context: Arc<SessionContext>,
    open: OpenAddresses,
    /// By the address asked for, which port 0 makes another than the one that is open.
    sockets: BTreeMap<SocketAddr, Socket>,
}

struct Socket {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl OpenAddresses {
    /// The addresses, with their real ports.
    #[must_use]
    pub fn list(&self) -> Vec<SocketAddr> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Listener {
    /// Opens the addresses that may be open now.
    ///
    /// # Errors
    ///
    /// When one cannot be opened that the administrator chose, or that this host has.
    pub fn open(listen: Listen, users: Users, context: Arc<SessionContext>) -> Result<Self, ListenError> {
        let mut listener = Self { listen, users, context, open: OpenAddresses::default(), sockets: BTreeMap::new() };
        listener.reconcile()?;
        Ok(listener)
    }

    /// The addresses that are open, now and later.
    #[must_use]
    pub fn addresses(&self) -> OpenAddresses {
        self.open.clone()
    }

    /// Follows the users: the first one opens the configured addresses, the last one's removal closes them.
    /// Runs until dropped.
    pub async fn follow_users(mut self) {
        let mut watch = self.users.watch();
        loop {
            let complete = match self.reconcile() {
                Ok(()) => true,
                Err(error) => {
                    warn!(%error, "will try again");
                    false
                }
            };
            tokio::select! {
                // The users live as long as `self`.
                _ = watch.changed() => {}
                () = sleep(REOPEN), if !complete => {}
            }
        }
    }

    /// Opens what should be open and is not; closes the rest.
    fn reconcile(&mut self) -> Result<(), ListenError> {
        let nobody = self.users.book().is_empty();
        let wanted = if nobody { self.listen.loopback_only() } else { self.listen.clone() };
        self.sockets.retain(|asked, _| wanted.addresses.contains(asked));
        let opened = wanted.addresses.iter().try_for_each(|address| self.open_one(&wanted, *address));
        let addresses = self.sockets.values().map(|socket| socket.address).collect();
        *self.open.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
        opened
    }

    fn open_one(&mut self, wanted: &Listen, asked: SocketAddr) -> Result<(), ListenError> {
        if self.sockets.contains_key(&asked) {
            return Ok(());
        }
        let bound = bind(wanted, asked).and_then(|listener| Ok((listener.local_addr()?, listener)));
        match bound {
            Ok((address, listener)) => {
                info!(%address, "listening");
                let accepting = tokio::spawn(accept(listener, self.context.clone()));
                self.sockets.insert(asked, Socket { address, accepting });
                Ok(())
            }
            Err(error) if !wanted.chosen && host_lacks(&error) => Ok(()),
            Err(source) => Err(ListenError { address: asked, source }),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Whether the address is one that this host does not have: IPv6 switched off.
fn host_lacks(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

fn bind(wanted: &Listen, address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A port of the system's choice must not be one that another program is about to listen on.
    socket.set_reuseaddr(address.port() != 0)?;
    if address.is_ipv6() {
        // `[::]` takes IPv4 too, unless that port is asked for by an IPv4 address of its own.
        let shared = wanted.addresses.iter().any(|other| other.is_ipv4() && other.port() == address.port());
        set_ipv6_v6only(socket.as_fd(), shared)?;
    }
    socket.bind(address)?;
    // Connections inherit it; what is left of them after a stop would keep the next gateway from this port.
    socket.set_reuseaddr(true)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, context: Arc<SessionContext>) {
    let mut pause = SHORTEST_PAUSE;
    let mut warned: Option<Instant> = None;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                pause = SHORTEST_PAUSE;
                if let Some((visitor, given_up)) = context.door.admit(peer) {
                    tokio::spawn(serve(stream, peer, visitor, given_up, context.clone()));
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                let relieved = context.door.relieve();
                if warned.is_none_or(|at| at.elapsed() > WARNING_INTERVAL) {
                    warn!(%error, relieved, "cannot accept connections");
                    warned = Some(Instant::now());
                }
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Errors that tell about the connection which would have come, not about the socket (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    visitor: Visitor,
    mut given_up: GivenUp,
    context: Arc<SessionContext>,
) {
    let connection = async {
        set_options(&stream);
        match timeout(FIRST_BYTE_DEADLINE, stream.peek(&mut [0])).await {
            Err(_) => return visitor.turned_away("nothing said"),
            Ok(Err(_) | Ok(0)) => return visitor.turned_away("closed by the peer before it said anything"),
            Ok(Ok(_)) => visitor.spoke(),
        }
        // On the heap and not before: a silent connection costs a few hundred bytes.
        Box::pin(session::run(stream, peer, context)).await;
    };
    tokio::select! {
        () = connection => {}
        // Before logon only; dropping the connection closes it.
        () = given_up.wait() => {}
    }
}

/// Without these a connection is slower, or noticed to be dead later, and still of use.
fn set_options(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = keep_alive(stream);
    let _ = SockRef::from(stream).set_tcp_notsent_lowat(MAX_UNSENT);
}

fn keep_alive(stream: &TcpStream) -> rustix::io::Result<()> {
    let socket = stream.as_fd();
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that a socket takes for a client that reads none.
    async fn taken(set: fn(&TcpStream)) -> usize {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let client = TcpSocket::new_v4().expect("a socket");
        client.set_recv_buffer_size(4096).expect("a small buffer");
        let connecting = client.connect(listener.local_addr().expect("bound"));
        let (client, accepted) = tokio::join!(connecting, listener.accept());
        let (_client, (stream, _)) = (client.expect("connected"), accepted.expect("accepted"));
        set(&stream);
        let mut taken = 0;
        while let Ok(Ok(())) = timeout(Duration::from_millis(200), stream.writable()).await {
            taken += stream.try_write(&[0; 16 * 1024]).unwrap_or(0);
        }
        taken
    }

    #[tokio::test]
    async fn little_is_kept_for_a_client_that_takes_nothing() {
        let (ours, systems) = tokio::join!(taken(set_options), taken(|_| {}));
        assert!(ours < 2 * MAX_UNSENT as usize && ours < systems, "{ours} of {systems} bytes");
    }
}
