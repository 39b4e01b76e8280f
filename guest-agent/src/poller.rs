//! What the loop waits for: edges on files, signals, and time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

/// Most edges that are taken at a time.
const MAX_EDGES: usize = 16;

const READABLE: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::ET);

/// What an edge is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The port can be read or written again, or somebody came to the host's end, or left it.
    Port,
    /// A signal came.
    Signal,
    /// What the service of this channel watches is readable.
    Channel(u32),
}

impl Token {
    const fn data(self) -> EventData {
        EventData::new_u64(self.to_wire())
    }

    const fn to_wire(self) -> u64 {
        match self {
            Self::Port => 0,
            Self::Signal => 1,
            Self::Channel(number) => 1 << 32 | number as u64,
        }
    }

    fn from_wire(data: u64) -> Option<Self> {
        match data {
            0 => Some(Self::Port),
            1 => Some(Self::Signal),
            _ => u32::try_from(data ^ 1 << 32).ok().map(Self::Channel),
        }
    }
}

/// The files that are watched. Closing a file takes it out.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// Watches nothing yet.
    ///
    /// # Errors
    ///
    /// When the process may open no more files.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Watches a file for being readable, by edges: whoever is told of one must read until nothing is left.
    ///
    /// # Errors
    ///
    /// When it cannot be watched.
    pub fn watch(&self, file: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, file, token.data(), READABLE)?)
    }

    /// Watches a file that is watched already for being writable, too, or not any more. It is told at once when it is.
    ///
    /// Only while there is something to write: a port that has passed something on becomes writable each time.
    ///
    /// # Errors
    ///
    /// When it is not watched.
    pub fn watch_for_room(&self, file: impl AsFd, token: Token, wanted: bool) -> io::Result<()> {
        let edges = if wanted { READABLE | EventFlags::OUT } else { READABLE };
        Ok(epoll::modify(&self.epoll, file, token.data(), edges)?)
    }

    /// Waits for edges; none: for as long as it takes.
    ///
    /// # Errors
    ///
    /// Never, unless the process is broken.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Token>> {
        // A timer that is early by less than a millisecond would fire twice.
        let timeout = timeout.map(|timeout| timeout.min(Duration::from_secs(3600)) + Duration::from_micros(999));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut edges = Vec::with_capacity(MAX_EDGES);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut edges), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {
                Ok(edges.iter().filter_map(|edge: &epoll::Event| Token::from_wire(edge.data.u64())).collect())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What the loop has to know of from outside.
#[derive(Debug)]
pub struct Signals {
    wakes: UnixStream,
    stop: Arc<AtomicBool>,
    child: Arc<AtomicBool>,
}

/// Ends a loop from another thread, as SIGTERM does.
#[derive(Debug)]
pub struct Stopper {
    waker: UnixStream,
    stop: Arc<AtomicBool>,
}

impl Signals {
    /// Takes the signals over, for the whole process.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn take_over() -> io::Result<Self> {
        let (signals, Stopper { waker, stop }) = Self::without_signals()?;
        signal_hook::flag::register(SIGCHLD, Arc::clone(&signals.child))?;
        // Whoever started the agent starts it again when it is hung up.
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        for signal in [SIGCHLD, SIGTERM, SIGINT, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, waker.try_clone()?)?;
        }
        Ok(signals)
    }

    /// For a loop beside others in its process: in tests.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn without_signals() -> io::Result<(Self, Stopper)> {
        let (wakes, waker) = UnixStream::pair()?;
        wakes.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let signals = Self { wakes, stop: Arc::default(), child: Arc::default() };
        let stop = Arc::clone(&signals.stop);
        Ok((signals, Stopper { waker, stop }))
    }

    /// Takes note of the wakes; to be called for [`Token::Signal`].
    pub fn drain(&self) {
        let mut buffer = [0; 64];
        while rustix::io::read(&self.wakes, &mut buffer).is_ok_and(|count| count > 0) {}
    }

    /// Whether the agent was asked to end.
    #[must_use]
    pub fn must_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Whether a child process ended since the last call.
    #[must_use]
    pub fn take_child(&self) -> bool {
        self.child.swap(false, Ordering::Relaxed)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wakes.as_fd()
    }
}

impl Stopper {
    /// Ends the loop.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        // A pipe that is full wakes as well.
        let _ = rustix::io::write(&self.waker, &[0]);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [Token::Port, Token::Signal, Token::Channel(0), Token::Channel(u32::MAX)] {
            assert_eq!(Token::from_wire(token.to_wire()), Some(token));
        }
        assert_eq!(Token::from_wire(2 << 32), None);
    }

    #[test]
    fn an_edge_is_told_once_and_a_closed_file_never() {
        let poller = Poller::new().unwrap();
        let (watched, mut other) = UnixStream::pair().unwrap();
        poller.watch(&watched, Token::Channel(7)).unwrap();
        let at_once = Some(Duration::ZERO);
        assert_eq!(poller.wait(at_once).unwrap(), []);
        poller.watch_for_room(&watched, Token::Channel(7), true).unwrap();
        assert_eq!(poller.wait(at_once).unwrap(), [Token::Channel(7)], "it can be written");
        poller.watch_for_room(&watched, Token::Channel(7), false).unwrap();
        assert_eq!(poller.wait(at_once).unwrap(), []);
        other.write_all(b"x").unwrap();
        assert_eq!(poller.wait(at_once).unwrap(), [Token::Channel(7)]);
        assert_eq!(poller.wait(at_once).unwrap(), []);
        drop(watched);
        drop(other);
        assert_eq!(poller.wait(at_once).unwrap(), []);
    }
}
