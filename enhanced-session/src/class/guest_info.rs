//! What the guest is and has. (`docs/bus.md`, section 9.11)
//!
//! Two things in one class. The *snapshot* is what every host wants to show: the guest sends it when the channel opens
//! and when something in it changes. The *pools* are keys and values, with the meaning that Hyper-V gave them, for
//! programs on both sides that know of each other.
//!
//! ```text
//! host                                              guest
//!                                              ◀──  Snapshot { … }
//! Request Set { pool: External, "role", "db" } ──▶
//!                                              ◀──  Response Done
//! Request Enumerate { pool: Guest, index: 0 }  ──▶
//!                                              ◀──  Response Item { "backup", 1 }
//! Request Enumerate { pool: Guest, index: 1 }  ──▶
//!                                              ◀──  Response Failed { NoMoreItems }
//!                                              ◀──  Snapshot { … }                  a cable was plugged in
//! ```

use std::net::IpAddr;
use std::time::Duration;

#[cfg(test)]
use proptest::prelude::*;

use super::bounded::{List, Text};
use super::define::{choice, codes, messages, record};
use super::field::Field;
use crate::wire::{Malformed, Reader, Writer};

/// Longest key of a pool, in bytes.
pub const MAX_KEY: usize = 512;
/// Longest text in a pool, in bytes.
pub const MAX_VALUE: usize = 2048;
/// Longest text of a snapshot, in bytes.
pub const MAX_NAME: usize = 256;
/// Longest name of an interface or a session, in bytes.
pub const MAX_SHORT_NAME: usize = 64;
/// Most interfaces of a snapshot.
pub const MAX_INTERFACES: usize = 16;
/// Most addresses of an interface.
pub const MAX_ADDRESSES: usize = 16;
/// Most users of a snapshot.
pub const MAX_USERS: usize = 16;

messages! {
    /// What the host sends unasked.
    pub enum ToGuest {
        /// Send a snapshot, changed or not.
        Refresh = 0x01,
    }
}

messages! {
    /// What the guest sends.
    pub enum ToHost {
        /// What the guest is and has: first, when something but `up_time` changes (not more often than once a
        /// second), and when asked.
        Snapshot = 0x81 {
            /// All of it.
            snapshot: Box<Snapshot>,
        },
    }
}

record! {
    /// What a guest is and has.
    pub struct Snapshot {
        /// The system as its vendor names it: `Debian GNU/Linux`.
        pub system: Text<MAX_NAME>,
        /// Its version: `13.1`.
        pub system_version: Text<MAX_NAME>,
        /// The kernel's version: `6.12.48+deb13-amd64`.
        pub kernel: Text<MAX_NAME>,
        /// The processor's architecture: `x86_64`, `aarch64`.
        pub architecture: Text<MAX_SHORT_NAME>,
        /// The guest's name in its network, with its domain if it has one.
        pub host_name: Text<MAX_NAME>,
        /// The agent's version: `0.1.0`.
        pub agent_version: Text<MAX_SHORT_NAME>,
        /// How long ago the guest was started.
        pub up_time: Duration,
        /// Network interfaces without the loopback one.
        pub interfaces: List<Interface, MAX_INTERFACES>,
        /// Users that are logged on.
        pub users: List<User, MAX_USERS>,
    }
}

record! {
    /// A network interface.
    pub struct Interface {
        /// What the system calls it.
        pub name: Text<MAX_SHORT_NAME>,
        /// Its hardware address, if it has one.
        pub mac: Option<[u8; 6]>,
        /// Whether it is up and has a link.
        pub up: bool,
        /// Its addresses.
        pub addresses: List<Subnet, MAX_ADDRESSES>,
    }
}

record! {
    /// A user who is logged on.
    pub struct User {
        /// The account, with its domain before a `\` if it has one.
        pub name: Text<MAX_NAME>,
        /// The seat or terminal: `tty1`, `:0`, `console`.
        pub session: Text<MAX_SHORT_NAME>,
        /// How long ago the user logged on.
        pub since: Duration,
    }
}

messages! {
    /// What the host asks of a pool.
    pub enum Request {
        /// The value of a key.
        Get = 0x101 {
            /// Where.
            pool: Pool,
            /// Which.
            key: Text<MAX_KEY>,
        },
        /// Give a key a value. Only in the host's pools.
        Set = 0x102 {
            /// Where.
            pool: Pool,
            /// Which.
            key: Text<MAX_KEY>,
            /// What it is to be.
            value: Value,
        },
        /// Forget a key. Only in the host's pools.
        Delete = 0x103 {
            /// Where.
            pool: Pool,
            /// Which.
            key: Text<MAX_KEY>,
        },
        /// The key with this number. The order is the guest's; it stays the same as long as nothing is added or deleted.
        Enumerate = 0x104 {
            /// Where.
            pool: Pool,
            /// From 0.
            index: u32,
        },
    }
}

messages! {
    /// What the guest answers.
    pub enum Response {
        /// It does not know the request.
        Unsupported = 0,
        /// To [`Request::Get`].
        Value = 0x101 {
            /// The key's value.
            value: Value,
        },
        /// To [`Request::Set`] and [`Request::Delete`].
        Done = 0x102,
        /// To [`Request::Enumerate`].
        Item = 0x104 {
            /// The key with that number.
            key: Text<MAX_KEY>,
            /// Its value.
            value: Value,
        },
        /// To all of them.
        Failed = 0xffff {
            /// Why.
            error: PoolError,
        },
    }
}

codes! {
    /// A set of keys. Who writes it tells what it is for.
    pub enum Pool: u8 {
        /// The host's, for programs in the guest.
        External = 0,
        /// The guest's programs'.
        Guest = 1,
        /// The agent's own: what a snapshot has, under the names that Hyper-V gave it.
        Auto = 2,
        /// The host's own: what it and the virtual machine are called.
        AutoExternal = 3,
    }
}

choice! {
    /// What a key stands for. The tags are those of the Windows registry.
    pub enum Value {
        /// Text.
        Text = 1 {
            /// The text.
            text: Text<MAX_VALUE>,
        },
        /// A number of 32 bits.
        U32 = 4 {
            /// The number.
            number: u32,
        },
        /// A number of 64 bits.
        U64 = 11 {
            /// The number.
            number: u64,
        },
    }
}

codes! {
    /// Why a pool does not do what it is asked.
    pub enum PoolError: u16 {
        /// There is no such key.
        NotFound = 1,
        /// There are no keys from this number on.
        NoMoreItems = 2,
        /// The host may not write there.
        NotAllowed = 3,
        /// The pool is full.
        Full = 4,
        /// The guest's disk or system answered with an error.
        Failed = 5,
    }
}

/// An address of an interface and how many of its first bits are the network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet {
    address: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// None when the address does not have so many bits.
    #[must_use]
    pub const fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        if prefix <= bits(address) { Some(Self { address, prefix }) } else { None }
    }

    /// The address.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// Bits of the network, 0 to 32 or 128.
    #[must_use]
    pub const fn prefix(self) -> u8 {
        self.prefix
    }
}

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The address, u8 prefix.
impl Field for Subnet {
    const MAX_BYTES: usize = IpAddr::MAX_BYTES + 1;

    fn write(&self, writer: &mut Writer) {
        self.address.write(writer);
        writer.u8(self.prefix);
    }

    fn read(reader: &mut Reader<'_>, _: &'static str) -> Result<Self, Malformed> {
        let address = IpAddr::read(reader, "address")?;
        let prefix = reader.u8("prefix")?;
        Self::new(address, prefix).ok_or(Malformed::Value { what: "prefix", value: prefix.into() })
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        let subnet = IpAddr::any().prop_flat_map(|address| (Just(address), 0..=bits(address)));
        subnet.prop_map(|(address, prefix)| Self { address, prefix }).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_snapshot_reads_as_it_is_specified() {
        let text = |text: &str| Text::new(text).expect("it fits");
        let snapshot = Snapshot {
            system: text("Debian"),
            system_version: Text::default(),
            kernel: Text::default(),
            architecture: Text::new("x").expect("it fits"),
            host_name: text("vm"),
            agent_version: Text::default(),
            up_time: Duration::from_nanos(2),
            interfaces: List::from([Interface {
                name: Text::new("e0").expect("it fits"),
                mac: Some([2, 0, 0, 0, 0, 9]),
                up: true,
                addresses: List::from([Subnet::new(Ipv4Addr::new(10, 0, 2, 15).into(), 24).expect("24 bits")]),
            }]),
            users: List::default(),
        };
        let bytes = [
            [0x81, 0, 0, 0].as_slice(),
            b"\x06\0Debian\0\0\0\0\x01\0x\x02\0vm\0\0",
            &[2, 0, 0, 0, 0, 0, 0, 0],
            b"\x01\0\x02\0e0\x01\x02\0\0\0\0\x09\x01\x01\0\x04\x0a\0\x02\x0f\x18",
            &[0, 0],
        ]
        .concat();
        let message = ToHost::Snapshot { snapshot: Box::new(snapshot) };
        assert_eq!(message.encode(), bytes);
        assert_eq!(ToHost::decode(&bytes), Ok(message));
    }

    #[test]
    fn an_address_has_no_more_bits_than_it_has() {
        assert!(Subnet::new(Ipv4Addr::LOCALHOST.into(), 33).is_none());
        let bytes = [4, 127, 0, 0, 1, 33];
        assert!(Subnet::read(&mut Reader::new(&bytes), "address").is_err());
    }

    #[test]
    fn pools_read_as_they_are_specified() {
        let request = Request::Enumerate { pool: Pool::Guest, index: 3 };
        assert_eq!(request.encode(), [0x04, 0x01, 0, 0, 1, 3, 0, 0, 0]);
        let item = b"\x04\x01\0\0\x01\0k\x0b\x05\0\0\0\0\0\0\0";
        let value = Value::U64 { number: 5 };
        assert_eq!(Response::decode(item), Ok(Response::Item { key: Text::new("k").expect("it fits"), value }));
    }
}
