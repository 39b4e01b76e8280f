//! What a VM's network card is, and what it is connected to.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::Spanned;

use super::check::{Problem, problem};
use super::parse::{About, Misplaced};

/// Longest name of a network interface (`IFNAMSIZ` without its end).
const MAX_INTERFACE: usize = 15;
/// Most ports that are forwarded to a guest.
const MAX_FORWARDS: usize = 64;

/// A VM's network card and its other end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Network {
    /// What it is connected to.
    pub mode: NetworkMode,
    /// Ports of the host behind which are ports of the guest; with [`NetworkMode::User`] only.
    pub forward: Vec<Forward>,
    /// What the guest finds.
    pub card: NetworkCard,
}

/// What a VM's network card is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum NetworkMode {
    /// Nothing: there is no card.
    None,
    /// The host's networks through address translation, with QEMU's own DHCP and DNS.
    #[default]
    User,
    /// A bridge of the host, by its name.
    Bridge(InterfaceName),
    /// A tap device that somebody made, by its name.
    Tap(InterfaceName),
}

/// What a guest finds as its network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkCard {
    /// virtio-net.
    #[default]
    Virtio,
    /// Intel's 82540EM, for which every system since 2002 has a driver.
    E1000,
    /// Realtek's RTL8139, for systems older than that.
    Rtl8139,
}

/// The name of a network interface.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InterfaceName(String);

/// A port of the host behind which is a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forward {
    /// Of which protocol.
    pub protocol: ForwardProtocol,
    /// Where the host listens.
    pub host: SocketAddrV4,
    /// The guest's address; none: the first that QEMU's DHCP gives.
    pub guest: Option<Ipv4Addr>,
    /// The guest's port.
    pub guest_port: u16,
}

/// Of which protocol a forwarded port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ForwardProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A text that is no name of an interface or no forwarded port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidNetwork(String);

impl Network {
    /// Connected like that, with the usual card.
    #[must_use]
    pub fn new(mode: NetworkMode) -> Self {
        Self { mode, ..Self::default() }
    }

    /// No card at all.
    #[must_use]
    pub fn none() -> Self {
        Self::new(NetworkMode::None)
    }

    pub(super) fn problem(&self) -> Option<Problem> {
        if self.mode != NetworkMode::User && !self.forward.is_empty() {
            return problem(About::Network, "`forward` goes with `mode = \"user\"` only");
        }
        if self.forward.len() > MAX_FORWARDS {
            return problem(About::Network, format!("more than {MAX_FORWARDS} ports in `forward`"));
        }
        let listens = |forward: &Forward| (forward.protocol, forward.host);
        for (index, forward) in self.forward.iter().enumerate() {
            if self.forward.iter().take(index).any(|other| listens(other) == listens(forward)) {
                return problem(About::Network, format!("{forward}: the host's port is forwarded twice"));
            }
        }
        None
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::User => f.write_str("user"),
            Self::Bridge(name) => write!(f, "bridge {name}"),
            Self::Tap(name) => write!(f, "tap {name}"),
        }
    }
}

impl InterfaceName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        // The kernel allows more; QEMU's options and people do not.
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let good = (1..=MAX_INTERFACE).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(fits);
        if good {
            return Ok(Self(text.into()));
        }
        let reason =
            format!("{text:?} is no name of a network interface: 1 to {MAX_INTERFACE} letters, digits, '-', '_', '.'");
        Err(InvalidNetwork(reason))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Forward {
    type Err = InvalidNetwork;

    /// Reads `tcp:127.0.0.1:2222-:22`, as QEMU writes it; without an address the host listens on loopback only.
    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let wrong = || {
            let like = "tcp:127.0.0.1:2222-:22 or udp::5353-10.0.2.15:53";
            InvalidNetwork(format!("{text:?} is no forwarded port: write it as {like}"))
        };
        let (protocol, ends) = text.split_once(':').ok_or_else(wrong)?;
        let protocol = match protocol {
            "tcp" => ForwardProtocol::Tcp,
            "udp" => ForwardProtocol::Udp,
            _ => return Err(wrong()),
        };
        let (host, guest) = ends.split_once('-').ok_or_else(wrong)?;
        let end = |text: &str| -> Option<(Option<Ipv4Addr>, u16)> {
            let (address, port) = text.rsplit_once(':')?;
            let address = if address.is_empty() { None } else { Some(address.parse().ok()?) };
            let port = port.parse().ok().filter(|port| *port != 0)?;
            Some((address, port))
        };
        let (address, port) = end(host).ok_or_else(wrong)?;
        let (guest, guest_port) = end(guest).ok_or_else(wrong)?;
        let host = SocketAddrV4::new(address.unwrap_or(Ipv4Addr::LOCALHOST), port);
        Ok(Self { protocol, host, guest, guest_port })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            ForwardProtocol::Tcp => "tcp",
            ForwardProtocol::Udp => "udp",
        };
        let guest = self.guest.map(|address| address.to_string()).unwrap_or_default();
        write!(f, "{protocol}:{}-{guest}:{}", self.host, self.guest_port)
    }
}

impl Serialize for Forward {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `network = "user"`, or a table.
pub(super) enum NetworkKey {
    Word(Word),
    Table(NetworkTable),
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Word {
    None,
    User,
    Bridge,
    Tap,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NetworkTable {
    mode: Spanned<Word>,
    name: Option<Spanned<String>>,
    #[serde(default)]
    forward: Vec<Spanned<String>>,
    #[serde(default)]
    card: NetworkCard,
}

impl NetworkKey {
    pub(super) fn into_network(self, whole: &Range<usize>) -> Result<Network, Misplaced> {
        let table = match self {
            Self::Word(Word::None) => return Ok(Network::none()),
            Self::Word(Word::User) => return Ok(Network::default()),
            Self::Word(Word::Bridge | Word::Tap) => {
                let reason = "a bridge or tap has a name: `network = { mode = \"bridge\", name = \"br0\" }`";
                return Err((whole.clone(), reason.into()));
            }
            Self::Table(table) => table,
        };
        let word = *table.mode.get_ref();
        let name = match (word, &table.name) {
            (Word::Bridge | Word::Tap, None) => {
                return Err((table.mode.span(), "a bridge or tap needs its `name`".into()));
            }
            (Word::None | Word::User, Some(name)) => {
                return Err((name.span(), "`name` goes with `mode = \"bridge\"` and \"tap\" only".into()));
            }
            (_, Some(name)) => Some(placed::<InterfaceName>(name)?),
            (_, None) => None,
        };
        let mode = match (word, name) {
            (Word::Bridge, Some(name)) => NetworkMode::Bridge(name),
            (Word::Tap, Some(name)) => NetworkMode::Tap(name),
            (Word::None, _) => NetworkMode::None,
            _ => NetworkMode::User,
        };
        let forward = table.forward.iter().map(placed).collect::<Result<_, _>>()?;
        Ok(Network { mode, forward, card: table.card })
    }
}

fn placed<T: FromStr<Err = InvalidNetwork>>(text: &Spanned<String>) -> Result<T, Misplaced> {
    text.get_ref().parse().map_err(|error: InvalidNetwork| (text.span(), error.to_string()))
}

impl<'de> Deserialize<'de> for NetworkKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not an untagged enum: that forgets where in the table a mistake is, and which.
        deserializer.deserialize_any(NetworkVisitor)
    }
}

struct NetworkVisitor;

impl<'de> Visitor<'de> for NetworkVisitor {
    type Value = NetworkKey;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"user\", \"none\" or a table with `mode`")
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<NetworkKey, E> {
        Word::deserialize(de::value::StrDeserializer::new(value)).map(NetworkKey::Word)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<NetworkKey, A::Error> {
        NetworkTable::deserialize(MapAccessDeserializer::new(map)).map(NetworkKey::Table)
    }
}

/// How the file says it: a word where that is all, else a table.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum NetworkFile<'a> {
    Word(Word),
    Table {
        mode: Word,
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<&'a str>,
        #[serde(skip_serializing_if = "<[Forward]>::is_empty")]
        forward: &'a [Forward],
        card: NetworkCard,
    },
}

impl<'a> NetworkFile<'a> {
    pub(super) fn of(network: &'a Network) -> Self {
        let (mode, name) = match &network.mode {
            NetworkMode::None => (Word::None, None),
            NetworkMode::User => (Word::User, None),
            NetworkMode::Bridge(name) => (Word::Bridge, Some(name.as_str())),
            NetworkMode::Tap(name) => (Word::Tap, Some(name.as_str())),
        };
        if name.is_none() && network.forward.is_empty() && network.card == NetworkCard::default() {
            Self::Word(mode)
        } else {
            Self::Table { mode, name, forward: &network.forward, card: network.card }
        }
    }

    /// Whether it stands among the tables, which come after all values.
    pub(super) fn is_table(&self) -> bool {
        matches!(self, Self::Table { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_ports_are_read_as_qemu_writes_them() {
        for text in ["tcp:127.0.0.1:2222-:22", "udp:0.0.0.0:53-10.0.2.15:5353"] {
            assert_eq!(text.parse::<Forward>().expect("read").to_string(), text);
        }
        let open: Forward = "tcp::80-:8080".parse().expect("read");
        assert_eq!(open.host.to_string(), "127.0.0.1:80", "loopback unless said otherwise");
        for text in
            ["", "tcp", "tcp:1", "tcp:80-80", "sctp::1-:2", "tcp::0-:2", "tcp::1-:0", "tcp:host:1-:2", "tcp::70000-:1"]
        {
            assert!(text.parse::<Forward>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_of_interfaces_cannot_be_options_or_paths() {
        for text in ["br0", "virbr0.100", "tap-web01"] {
            assert_eq!(text.parse::<InterfaceName>().expect("a name").to_string(), text);
        }
        for text in ["", ".", "..", "-v", "a/b", "a,b", "a b", "sixteen-letters-", "é"] {
            assert!(text.parse::<InterfaceName>().is_err(), "{text}");
        }
    }
}
