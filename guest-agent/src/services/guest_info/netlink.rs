//! The guest's network addresses, as the kernel tells them over netlink (rtnetlink(7)).
//!
//! One socket only says that something changed; the addresses are then asked for anew with another. So no half
//! picture is ever put together from changes.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use enhanced_session::wire::{Malformed, Reader};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with, sockopt,
};

/// Most interfaces that are looked at, and most addresses of one.
const MAX_INTERFACES: usize = 1024;
const MAX_ADDRESSES: usize = 64;
/// Larger than any datagram of a dump.
const RECEIVE_BYTES: usize = 64 * 1024;
/// The kernel answers at once, or something is very wrong.
const PATIENCE: Duration = Duration::from_secs(1);

const GROUP_LINK: u32 = 0x1;
const GROUP_IPV4: u32 = 0x10;
const GROUP_IPV6: u32 = 0x100;

const FLAGS_REQUEST_DUMP: u16 = 0x301;
const MESSAGE_HEADER: usize = 16;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;
const TYPE_NEW_LINK: u16 = 16;
const TYPE_GET_LINK: u16 = 18;
const TYPE_NEW_ADDRESS: u16 = 20;
const TYPE_GET_ADDRESS: u16 = 22;

const LINK_LOOPBACK: u32 = 0x8;
const LINK_UP_AND_RUNNING: u32 = 0x1 | 0x40;
const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const ADDRESS_ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;

/// One of the guest's interfaces. Loopback is left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) mac: Option<[u8; 6]>,
    /// Up, with a link.
    pub(super) up: bool,
    /// With the length of each one's prefix; in the kernel's order.
    pub(super) addresses: Vec<(IpAddr, u8)>,
}

/// Becomes readable when a link or an address changes.
#[derive(Debug)]
pub(super) struct Monitor {
    socket: OwnedFd,
}

impl Monitor {
    pub(super) fn open() -> io::Result<Self> {
        let socket = open(SocketFlags::NONBLOCK)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUP_LINK | GROUP_IPV4 | GROUP_IPV6))?;
        Ok(Self { socket })
    }

    /// Takes what came. True when something changed.
    pub(super) fn drain(&self) -> bool {
        let mut buffer = [0; 256];
        let mut changed = false;
        loop {
            // A datagram is cut to the buffer, and its rest thrown away: nobody reads it.
            match recv(&self.socket, &mut buffer, RecvFlags::empty()) {
                Ok((0, _)) | Err(Errno::AGAIN) => return changed,
                // NOBUFS: there were more changes than the kernel kept.
                Ok(_) | Err(Errno::NOBUFS) => changed = true,
                Err(Errno::INTR) => {}
                Err(_) => return changed,
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Asks the kernel for all interfaces and their addresses, in the order in which they came to be.
pub(super) fn interfaces() -> io::Result<Vec<Interface>> {
    let socket = open(SocketFlags::empty())?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    let mut dump = Dump::default();
    for request in [TYPE_GET_LINK, TYPE_GET_ADDRESS] {
        send(&socket, &dump_request(request), SendFlags::empty())?;
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let (count, _) = recv(&socket, &mut buffer, RecvFlags::empty())?;
            let datagram = buffer.get(..count).unwrap_or_default();
            let part = dump.take(datagram).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if part == Part::Last {
                break;
            }
        }
    }
    Ok(dump.finish())
}

fn open(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC | flags, None)?)
}

fn dump_request(message_type: u16) -> [u8; 32] {
    let mut request = [0; 32];
    request[0..4].copy_from_slice(&32_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&message_type.to_ne_bytes());
    request[6..8].copy_from_slice(&FLAGS_REQUEST_DUMP.to_ne_bytes());
    request
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    More,
    Last,
}

#[derive(Debug, Default)]
struct Dump {
    /// By index; those that were deleted while the kernel told us are missing.
    links: BTreeMap<u32, Interface>,
}

impl Dump {
    fn take(&mut self, datagram: &[u8]) -> Result<Part, Malformed> {
        let mut reader = Reader::new(datagram);
        while reader.remaining() >= MESSAGE_HEADER {
            let length = usize::try_from(u32_of(&mut reader)?).unwrap_or(usize::MAX);
            let message_type = u16_of(&mut reader)?;
            reader.bytes(10, "netlink header")?;
            let body = reader.bytes(length.saturating_sub(MESSAGE_HEADER), "netlink message")?;
            skip_padding(&mut reader, length);
            match message_type {
                TYPE_DONE | TYPE_ERROR => return Ok(Part::Last),
                TYPE_NEW_LINK if self.links.len() < MAX_INTERFACES => self.link(body)?,
                TYPE_NEW_ADDRESS => self.address(body)?,
                _ => {}
            }
        }
        Ok(Part::More)
    }

    fn link(&mut self, body: &[u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new(body);
        reader.bytes(4, "link family and type")?;
        let index = u32_of(&mut reader)?;
        let flags = u32_of(&mut reader)?;
        reader.bytes(4, "link change mask")?;
        if flags & LINK_LOOPBACK != 0 {
            return Ok(());
        }
        let attributes = attributes(reader)?;
        let find = |wanted| attributes.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| *value);
        let name = find(LINK_NAME).map(text).unwrap_or_default();
        let mac = find(LINK_ADDRESS).and_then(|mac| mac.try_into().ok());
        let up = flags & LINK_UP_AND_RUNNING == LINK_UP_AND_RUNNING;
        self.links.insert(index, Interface { name, mac, up, addresses: Vec::new() });
        Ok(())
    }

    fn address(&mut self, body: &[u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new(body);
        let family = reader.u8("address family")?;
        let prefix = reader.u8("prefix length")?;
        reader.bytes(2, "address flags and scope")?;
        let index = u32_of(&mut reader)?;
        let attributes = attributes(reader)?;
        let find = |wanted| attributes.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| *value);
        // On a point-to-point link ADDRESS is the other end's.
        let address = find(ADDRESS_LOCAL).or_else(|| find(ADDRESS_ADDRESS)).and_then(|bytes| ip(family, bytes));
        if let (Some(address), Some(link)) = (address, self.links.get_mut(&index))
            && link.addresses.len() < MAX_ADDRESSES
        {
            link.addresses.push((address, prefix));
        }
        Ok(())
    }

    fn finish(self) -> Vec<Interface> {
        self.links.into_values().collect()
    }
}

fn attributes(mut reader: Reader<'_>) -> Result<Vec<(u16, &[u8])>, Malformed> {
    let mut attributes = Vec::new();
    while reader.remaining() >= 4 {
        let length = usize::from(u16_of(&mut reader)?);
        // The two highest bits say how the value is built.
        let kind = u16_of(&mut reader)? & 0x3fff;
        attributes.push((kind, reader.bytes(length.saturating_sub(4), "netlink attribute")?));
        skip_padding(&mut reader, length);
    }
    Ok(attributes)
}

/// Messages and attributes begin at multiples of four; the last one's padding may be missing.
fn skip_padding(reader: &mut Reader<'_>, length: usize) {
    let padding = length.wrapping_neg() % 4;
    let _ = reader.bytes(padding.min(reader.remaining()), "netlink padding");
}

fn ip(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        FAMILY_IPV4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        FAMILY_IPV6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

// Netlink speaks the processor's byte order.
fn u16_of(reader: &mut Reader<'_>) -> Result<u16, Malformed> {
    reader.array("netlink field").map(u16::from_ne_bytes)
}

fn u32_of(reader: &mut Reader<'_>) -> Result<u32, Malformed> {
    reader.array("netlink field").map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(message_type: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + MESSAGE_HEADER).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&message_type.to_ne_bytes());
        bytes.extend_from_slice(&[0; 10]);
        bytes.extend_from_slice(body);
        bytes
    }

    fn link(index: u32, flags: u32, name: &str) -> Vec<u8> {
        let mut body = vec![0; 4];
        body.extend_from_slice(&index.to_ne_bytes());
        body.extend_from_slice(&flags.to_ne_bytes());
        body.extend_from_slice(&[0; 4]);
        body.extend(attribute(LINK_ADDRESS, &[2, 0, 0, 0, 0, 9]));
        body.extend(attribute(LINK_NAME, format!("{name}\0").as_bytes()));
        message(TYPE_NEW_LINK, &body)
    }

    fn address(index: u32, family: u8, prefix: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![family, prefix, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        attributes.iter().for_each(|(kind, value)| body.extend(attribute(*kind, value)));
        message(TYPE_NEW_ADDRESS, &body)
    }

    #[test]
    fn addresses_are_named_after_their_links_and_loopback_is_left_out() {
        let mut dump = Dump::default();
        let links = [link(1, LINK_LOOPBACK | 1, "lo"), link(2, 0x41, "eth0"), link(3, 1, "tun0")].concat();
        assert_eq!(dump.take(&links), Ok(Part::More));
        let mut ipv6 = [0; 16];
        (ipv6[0], ipv6[15]) = (0xfd, 1);
        let addresses = [
            address(1, FAMILY_IPV4, 8, &[(ADDRESS_ADDRESS, &[127, 0, 0, 1])]),
            address(2, FAMILY_IPV4, 24, &[(ADDRESS_ADDRESS, &[10, 0, 2, 15]), (ADDRESS_LOCAL, &[10, 0, 2, 15])]),
            address(2, FAMILY_IPV6, 64, &[(ADDRESS_ADDRESS, &ipv6)]),
            address(3, FAMILY_IPV4, 32, &[(ADDRESS_ADDRESS, &[192, 0, 2, 1]), (ADDRESS_LOCAL, &[192, 0, 2, 2])]),
            address(9, FAMILY_IPV4, 32, &[(ADDRESS_ADDRESS, &[192, 0, 2, 9])]),
            address(2, 99, 0, &[(ADDRESS_ADDRESS, &[1])]),
            message(TYPE_DONE, &[0; 4]),
        ]
        .concat();
        assert_eq!(dump.take(&addresses), Ok(Part::Last));
        let mac = Some([2, 0, 0, 0, 0, 9]);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let expected = [
            Interface {
                name: "eth0".into(),
                mac,
                up: true,
                addresses: vec![(ip("10.0.2.15"), 24), (ip("fd00::1"), 64)],
            },
            Interface { name: "tun0".into(), mac, up: false, addresses: vec![(ip("192.0.2.2"), 32)] },
        ];
        assert_eq!(dump.finish(), expected);
    }

    #[test]
    fn a_message_that_is_cut_off_is_an_error() {
        let whole = link(2, 1, "eth0");
        assert!(Dump::default().take(&whole[..whole.len() - 4]).is_err());
    }

    #[test]
    fn this_machines_kernel_answers() {
        let interfaces = interfaces().unwrap();
        assert!(interfaces.iter().all(|interface| interface.name != "lo"), "{interfaces:?}");
        assert!(!Monitor::open().unwrap().drain());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Dump::default().take(&bytes);
            let _ = Dump::default().take(&message(TYPE_NEW_LINK, &bytes));
            let _ = Dump::default().take(&message(TYPE_NEW_ADDRESS, &bytes));
        }
    }
}
