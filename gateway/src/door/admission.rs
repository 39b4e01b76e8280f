//! Which connections are kept before logon: pure bookkeeping, no sockets and no clock.
//!
//! ```text
//! accepted ──▶ Silent ──first byte──▶ Waiting ──logged on──▶ Inside
//! ```
//!
//! Each stage before logon has a budget, for all and per network. A newcomer is never refused for it: the
//! oldest connection of the network that has most is given up instead. A peer that fills a stage therefore
//! pushes out its own connections, and one that says nothing never pushes out one that speaks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// How many connections each stage may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// Sessions of users who logged on.
    pub sessions: usize,
    /// Connections that have spoken and not yet logged on.
    pub waiting: usize,
    /// Those of one network.
    pub waiting_per_address: usize,
    /// Connections that have not sent a byte.
    pub silent: usize,
    /// Those of one network.
    pub silent_per_address: usize,
}

impl Default for Budgets {
    fn default() -> Self {
        Self { sessions: 256, waiting: 256, waiting_per_address: 64, silent: 512, silent_per_address: 256 }
    }
}

impl Budgets {
    /// The same, no larger than `descriptors` open files allow: half of them are left to sessions and QEMU.
    #[must_use]
    pub fn fit(self, descriptors: usize) -> Self {
        let silent = self.silent.min(descriptors / 4).max(1);
        let waiting = self.waiting.min(descriptors / 4).max(1);
        Self {
            silent,
            waiting,
            silent_per_address: self.silent_per_address.min(silent),
            waiting_per_address: self.waiting_per_address.min(waiting),
            ..self
        }
    }
}

/// What counts as one peer: an IPv4 address, or the /64 that one IPv6 customer gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(IpAddr);

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.into()),
            IpAddr::V6(v6) => {
                let mut octets = v6.octets();
                octets[8..].fill(0);
                Self(IpAddr::from(octets))
            }
        }
    }
}

/// One connection, by its place in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(u64);

/// The stages before logon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Silent,
    Waiting,
}

/// The connections before logon.
#[derive(Debug)]
pub(super) struct Admission {
    budgets: Budgets,
    next: u64,
    place: HashMap<ConnectionId, (Stage, Network)>,
    silent: Room,
    waiting: Room,
}

/// The connections of one stage.
#[derive(Debug, Default)]
struct Room {
    size: usize,
    networks: BTreeMap<Network, BTreeSet<ConnectionId>>,
}

impl Admission {
    pub(super) fn new(budgets: Budgets) -> Self {
        Self { budgets, next: 0, place: HashMap::new(), silent: Room::default(), waiting: Room::default() }
    }

    /// A connection was accepted; returns it, and the one to give up for it.
    pub(super) fn arrived(&mut self, network: Network) -> (ConnectionId, Option<ConnectionId>) {
        let evicted = self.silent.make_room(network, self.budgets.silent, self.budgets.silent_per_address);
        self.forget(evicted);
        let id = ConnectionId(self.next);
        self.next += 1;
        self.silent.insert(network, id);
        self.place.insert(id, (Stage::Silent, network));
        (id, evicted)
    }

    /// A connection sent its first byte; returns the one to give up for it.
    pub(super) fn spoke(&mut self, id: ConnectionId) -> Option<ConnectionId> {
        let Some(&(Stage::Silent, network)) = self.place.get(&id) else { return None };
        let evicted = self.waiting.make_room(network, self.budgets.waiting, self.budgets.waiting_per_address);
        self.forget(evicted);
        self.silent.remove(network, id);
        self.waiting.insert(network, id);
        self.place.insert(id, (Stage::Waiting, network));
        evicted
    }

    /// A connection logged on, or is gone: it is no concern of the door any more. Returns whether it was here.
    pub(super) fn left(&mut self, id: ConnectionId) -> bool {
        let Some((stage, network)) = self.place.remove(&id) else { return false };
        match stage {
            Stage::Silent => self.silent.remove(network, id),
            Stage::Waiting => self.waiting.remove(network, id),
        }
        true
    }

    /// The system has no descriptors left: gives up the oldest silent connection, else the oldest of all.
    pub(super) fn relieve(&mut self) -> Option<ConnectionId> {
        let evicted = self.silent.take_oldest_of_largest().or_else(|| self.waiting.take_oldest_of_largest());
        self.forget(evicted);
        evicted
    }

    /// How many are silent and how many wait.
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.silent.size, self.waiting.size)
    }

    fn forget(&mut self, id: Option<ConnectionId>) {
        if let Some(id) = id {
            self.place.remove(&id);
        }
    }
}

impl Room {
    /// Takes out the connection that has to go before another one of `network` comes in.
    fn make_room(&mut self, network: Network, all: usize, per_network: usize) -> Option<ConnectionId> {
        if self.networks.get(&network).is_some_and(|ids| ids.len() >= per_network) {
            self.take_oldest(network)
        } else if self.size >= all {
            self.take_oldest_of_largest()
        } else {
            None
        }
    }

    fn take_oldest_of_largest(&mut self) -> Option<ConnectionId> {
        let (network, _) = self.networks.iter().max_by_key(|(_, ids)| ids.len())?;
        self.take_oldest(*network)
    }

    fn take_oldest(&mut self, network: Network) -> Option<ConnectionId> {
        let oldest = *self.networks.get(&network)?.first()?;
        self.remove(network, oldest);
        Some(oldest)
    }

    fn insert(&mut self, network: Network, id: ConnectionId) {
        self.size += usize::from(self.networks.entry(network).or_default().insert(id));
    }

    fn remove(&mut self, network: Network, id: ConnectionId) {
        let Some(ids) = self.networks.get_mut(&network) else { return };
        self.size -= usize::from(ids.remove(&id));
        if ids.is_empty() {
            self.networks.remove(&network);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGETS: Budgets =
        Budgets { sessions: 1, waiting: 3, waiting_per_address: 2, silent: 4, silent_per_address: 3 };

    fn network(last: u8) -> Network {
        IpAddr::from([10, 0, 0, last]).into()
    }

    #[test]
    fn a_flood_of_silence_pushes_out_only_itself() {
        let mut door = Admission::new(BUDGETS);
        let (user, _) = door.arrived(network(1));
        assert_eq!(door.spoke(user), None);
        let (late_user, _) = door.arrived(network(2));
        for _ in 0..10_000 {
            let (_, evicted) = door.arrived(network(9));
            assert!(evicted != Some(user) && evicted != Some(late_user));
        }
        assert_eq!(door.sizes(), (4, 1));
        assert!(door.left(user) && door.left(late_user));
    }

    #[test]
    fn the_oldest_of_the_same_network_goes_first() {
        let mut door = Admission::new(BUDGETS);
        let ids: Vec<_> = (0..3)
            .map(|_| {
                let (id, _) = door.arrived(network(1));
                (id, door.spoke(id))
            })
            .collect();
        assert_eq!(ids[1].1, None);
        assert_eq!(ids[2].1, Some(ids[0].0));
        assert!(!door.left(ids[0].0), "it was given up already");
    }

    #[test]
    fn a_full_room_costs_the_network_that_has_most() {
        let mut door = Admission::new(BUDGETS);
        let speak = |door: &mut Admission, last| {
            let (id, _) = door.arrived(network(last));
            (id, door.spoke(id))
        };
        let (greedy, _) = speak(&mut door, 1);
        speak(&mut door, 1);
        speak(&mut door, 2);
        assert_eq!(speak(&mut door, 3).1, Some(greedy));
    }

    #[test]
    fn everything_that_leaves_is_forgotten() {
        let mut door = Admission::new(BUDGETS);
        for last in 0..200 {
            let (id, _) = door.arrived(network(last));
            if last % 2 == 0 {
                door.spoke(id);
            }
            door.left(id);
        }
        assert_eq!(door.sizes(), (0, 0));
        assert!(door.place.is_empty() && door.silent.networks.is_empty() && door.waiting.networks.is_empty());
        assert_eq!(door.relieve(), None);
    }

    #[test]
    fn an_ipv6_customer_is_one_network() {
        let network = |text: &str| Network::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
    }
}
