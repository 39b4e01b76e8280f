//! The unix socket: who may connect, and serving it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{ApiContext, router};
use crate::files::SocketPath;
use crate::state::StateFolder;

/// Pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The bound socket; its file is gone when this is dropped.
#[derive(Debug)]
pub struct ApiSocket {
    listener: OwnerOnly,
    _file: SocketFile,
}

#[derive(Debug)]
struct SocketFile(PathBuf);

/// Takes connections of this process's own user and of root.
#[derive(Debug)]
struct OwnerOnly(UnixListener);

impl ApiSocket {
    /// Binds the socket of `state`. The caller holds the lock, so a file that is there is nobody's.
    ///
    /// # Errors
    ///
    /// When the folder does not take it.
    pub fn bind(state: &StateFolder) -> io::Result<Self> {
        let path = state.socket();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(SocketPath::new(&path)?.path())?;
        // The folder is its owner's alone, so nobody came in before this.
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Self { listener: OwnerOnly(listener), _file: SocketFile(path) })
    }

    /// Answers requests until `shutdown` says true.
    pub async fn serve(self, context: Arc<ApiContext>, mut shutdown: watch::Receiver<bool>) {
        let stop = async move {
            // An error means that the service is gone: that is a stop too.
            let _ = shutdown.wait_for(|stop| *stop).await;
        };
        // `Infallible` in all but name: errors of connections end those connections.
        let served = axum::serve(self.listener, router(context)).with_graceful_shutdown(stop).await;
        if let Err(error) = served {
            warn!(%error, "the api socket ended");
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Listener for OwnerOnly {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok((stream, address)) => match stream.peer_cred().map(|peer| peer.uid()) {
                    Ok(uid) if may_use(uid) => return (stream, address),
                    Ok(uid) => warn!(uid, "refused a connection to the api"),
                    Err(error) => debug!(%error, "a connection to the api without credentials"),
                },
                Err(error) => {
                    warn!(%error, "cannot accept on the api socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

fn may_use(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}
