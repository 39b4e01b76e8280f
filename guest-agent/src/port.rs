//! The port: a character device of virtio-serial that one process may open.
//!
//! It is read and written without blocking, and watched edge-triggered: while nobody is at the host's end the device
//! is always readable and hung up, and only the edges tell that somebody came.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

/// What the host calls the port.
pub const PORT_NAME: &str = "org.fanlight.bus.0";

/// Why there is no port.
#[derive(Debug, Error)]
pub enum PortError {
    /// The host gave the guest none, or its driver is not there yet.
    #[error("there is no virtio-serial port {PORT_NAME}")]
    Absent,
    /// Another process has it.
    #[error("{0} is open in another process; only one agent can run")]
    Busy(PathBuf),
    /// It cannot be opened.
    #[error("cannot open {0}: {1}")]
    Open(PathBuf, #[source] io::Error),
    /// It cannot be watched.
    #[error("cannot wait for the port: {0}")]
    Watch(#[source] io::Error),
}

/// What came of reading or writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// So many bytes passed, at least one.
    Bytes(usize),
    /// Not now; an edge tells when.
    Later,
    /// Nobody is at the other end.
    HostAway,
}

/// The open port.
#[derive(Debug)]
pub struct Port {
    device: OwnedFd,
}

impl Port {
    /// Finds the port by its name, and opens it.
    ///
    /// # Errors
    ///
    /// When there is none, or it cannot be opened.
    pub fn find() -> Result<Self, PortError> {
        Self::open(&find_node(PORT_NAME).ok_or(PortError::Absent)?)
    }

    /// Opens the port that has this device node.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn open(node: &Path) -> Result<Self, PortError> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        match rustix::fs::open(node, flags, Mode::empty()) {
            Ok(device) => Ok(Self { device }),
            Err(Errno::BUSY) => Err(PortError::Busy(node.to_owned())),
            Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => Err(PortError::Absent),
            Err(error) => Err(PortError::Open(node.to_owned(), error.into())),
        }
    }

    /// A port that is something else: one end of a socket pair, in tests. It must not block.
    #[must_use]
    pub const fn from_device(device: OwnedFd) -> Self {
        Self { device }
    }

    /// Whether somebody is at the host's end.
    #[must_use]
    pub fn is_host_there(&self) -> bool {
        let mut port = [PollFd::new(&self.device, PollFlags::IN)];
        let looked = poll(&mut port, Some(&Timespec::default()));
        let [port] = port;
        looked.is_ok() && !port.revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Reads what is there.
    ///
    /// # Errors
    ///
    /// When the device is gone.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Transfer> {
        // The driver reads nothing, instead of refusing, while nobody is at the other end.
        transfer(rustix::io::read(&self.device, buffer))
    }

    /// Writes as much as there is room for.
    ///
    /// # Errors
    ///
    /// When the device is gone.
    pub fn write(&self, bytes: &[u8]) -> io::Result<Transfer> {
        transfer(rustix::io::write(&self.device, bytes))
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

fn transfer(result: rustix::io::Result<usize>) -> io::Result<Transfer> {
    match result {
        // EPIPE and ECONNRESET: a socket's way to say it.
        Ok(0) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(Transfer::HostAway),
        Ok(count) => Ok(Transfer::Bytes(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Transfer::Later),
        Err(error) => Err(error.into()),
    }
}

/// The device node of the port that the host calls `name`.
#[must_use]
pub fn find_node(name: &str) -> Option<PathBuf> {
    find_node_in(Path::new("/dev"), Path::new("/sys/class/virtio-ports"), name)
}

/// By udev's link where there is one, else by the name that the driver shows.
fn find_node_in(dev: &Path, class: &Path, name: &str) -> Option<PathBuf> {
    let link = dev.join("virtio-ports").join(name);
    if link.exists() {
        return Some(link);
    }
    let ports = fs::read_dir(class).ok()?.flatten();
    let named =
        |port: &fs::DirEntry| fs::read_to_string(port.path().join("name")).is_ok_and(|shown| shown.trim_end() == name);
    ports.filter(named).map(|port| dev.join(port.file_name())).next()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("fanlight-agent-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn the_port_is_found_by_the_name_that_the_driver_shows() {
        let root = scratch("port");
        let (dev, class) = (root.join("dev"), root.join("class"));
        for (port, name) in [("vport1p1", "com.redhat.spice.0\n"), ("vport2p3", "org.fanlight.bus.0\n")] {
            fs::create_dir_all(class.join(port)).unwrap();
            fs::write(class.join(port).join("name"), name).unwrap();
        }
        assert_eq!(find_node_in(&dev, &class, PORT_NAME), Some(dev.join("vport2p3")));
        fs::create_dir_all(dev.join("virtio-ports")).unwrap();
        fs::write(dev.join("virtio-ports").join(PORT_NAME), "").unwrap();
        assert_eq!(find_node_in(&dev, &class, PORT_NAME), Some(dev.join("virtio-ports").join(PORT_NAME)));
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(find_node_in(&dev, &class, PORT_NAME), None);
    }

    #[test]
    fn a_port_that_is_not_there_is_absent() {
        assert!(matches!(Port::open(Path::new("/nonexistent/vport0p1")), Err(PortError::Absent)));
        assert!(matches!(Port::open(Path::new("/proc")), Err(PortError::Open(..))));
    }

    #[test]
    fn over_a_socket_pair_that_stands_for_the_port_nothing_blocks() {
        let (guest, host) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        let port = Port::from_device(guest.into());
        let mut buffer = [0; 8];
        assert!(port.is_host_there());
        assert_eq!(port.read(&mut buffer).unwrap(), Transfer::Later);
        assert_eq!(port.write(b"knock").unwrap(), Transfer::Bytes(5));
        drop(host);
        assert!(!port.is_host_there());
        assert_eq!(port.write(b"knock").unwrap(), Transfer::HostAway);
        assert_eq!(port.read(&mut buffer).unwrap(), Transfer::HostAway);
    }
}
