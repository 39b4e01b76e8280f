//! Guest information: a snapshot when the channel opens and whenever something in it changes, and pools of keys.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use enhanced_session::class::guest_info::{
    Interface, MAX_ADDRESSES, MAX_INTERFACES, MAX_KEY, MAX_USERS, Request, Snapshot, Subnet, ToGuest, ToHost, User,
    Value,
};
use enhanced_session::class::{List, Text};

use super::{Completions, Incoming, Outgoing, Service, ServiceError};

mod netlink;
mod os_release;
mod pools;
mod system;
mod utmp;

use pools::Pools;
use system::Linux;
use utmp::Login;

/// How often is looked whether something changed that nobody tells of, at the latest.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How much earlier that may be, when the agent is awake anyway.
const CHECK_SLACK: Duration = Duration::from_secs(5);
/// Changes of addresses come in bursts.
const SETTLE: Duration = Duration::from_millis(200);
/// Snapshots are not sent more often.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// The agent's version.
pub(super) const AGENT_VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a snapshot tells, but for times.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Facts {
    system: String,
    system_version: String,
    kernel: String,
    architecture: String,
    host_name: String,
    interfaces: Vec<netlink::Interface>,
    logins: Vec<Login>,
}

/// Where the facts come from.
trait System {
    fn facts(&mut self) -> Facts;
    fn up_time(&self) -> Duration;
    /// What becomes readable when the network changes.
    fn network_changes(&self) -> Option<BorrowedFd<'_>>;
    /// Takes note of the changes. Whether there were any.
    fn take_network_changes(&mut self) -> bool;
}

/// The service of one channel.
pub(super) struct GuestInfo {
    system: Box<dyn System>,
    pools: Pools,
    facts: Facts,
    is_due: bool,
    last_made: Instant,
    next_check: Instant,
    /// From then on is looked when the agent is awake anyway.
    may_check: Instant,
    completions: Completions,
}

impl GuestInfo {
    /// Tells of this system.
    pub(super) fn of_system(now: Instant) -> Self {
        Self::new(Box::new(Linux::new()), PathBuf::from(pools::FOLDER), now)
    }

    fn new(mut system: Box<dyn System>, pools: PathBuf, now: Instant) -> Self {
        let facts = system.facts();
        Self {
            system,
            pools: Pools::new(pools),
            facts,
            is_due: true,
            last_made: now,
            next_check: now + CHECK_INTERVAL,
            may_check: now + CHECK_INTERVAL - CHECK_SLACK,
            completions: Completions::default(),
        }
    }

    fn snapshot(&self) -> ToHost {
        let Facts { system, system_version, kernel, architecture, host_name, interfaces, logins } = &self.facts;
        let interfaces = chosen(interfaces).into_iter().map(interface).collect();
        let users = logins.iter().map(user).collect();
        let snapshot = Snapshot {
            system: Text::cut(system),
            system_version: Text::cut(system_version),
            kernel: Text::cut(kernel),
            architecture: Text::cut(architecture),
            host_name: Text::cut(host_name),
            agent_version: Text::cut(AGENT_VERSION),
            up_time: self.system.up_time(),
            interfaces: List::<_, MAX_INTERFACES>::first(interfaces),
            users: List::<_, MAX_USERS>::first(users),
        };
        ToHost::Snapshot { snapshot: Box::new(snapshot) }
    }
}

impl Service for GuestInfo {
    fn handle(&mut self, _: Instant, incoming: Incoming<'_>) -> Result<(), ServiceError> {
        match incoming {
            Incoming::Message(bytes) => match ToGuest::decode(bytes)? {
                ToGuest::Refresh => self.is_due = true,
                ToGuest::Unknown(_) => {}
            },
            Incoming::Request(txid, bytes) => {
                let response = self.pools.answer(Request::decode(bytes)?, || auto_pool(&self.facts));
                self.completions.push(txid, response.encode())?;
            }
        }
        Ok(())
    }

    fn poll_output(&mut self) -> Option<Outgoing> {
        if std::mem::take(&mut self.is_due) {
            return Some(Outgoing::Message(self.snapshot().encode()));
        }
        self.completions.pop()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.next_check)
    }

    fn handle_timeout(&mut self, now: Instant) {
        if now < self.may_check {
            return;
        }
        self.next_check = now + CHECK_INTERVAL;
        self.may_check = self.next_check - CHECK_SLACK;
        let facts = self.system.facts();
        if facts != self.facts {
            self.facts = facts;
            self.is_due = true;
            self.last_made = now;
        }
    }

    fn watched(&self) -> Option<BorrowedFd<'_>> {
        self.system.network_changes()
    }

    fn handle_readable(&mut self, now: Instant) {
        if self.system.take_network_changes() {
            let soon = (now + SETTLE).max(self.last_made + MIN_INTERVAL);
            self.next_check = self.next_check.min(soon);
            self.may_check = self.next_check;
        }
    }
}

/// When there are more than a snapshot holds (containers have one each), those with addresses.
fn chosen(interfaces: &[netlink::Interface]) -> Vec<&netlink::Interface> {
    let mut chosen: Vec<_> = interfaces.iter().collect();
    chosen.sort_by_key(|interface| interface.addresses.is_empty());
    chosen.truncate(MAX_INTERFACES);
    chosen
}

fn interface(interface: &netlink::Interface) -> Interface {
    let subnets = interface.addresses.iter().filter_map(|(address, prefix)| Subnet::new(*address, *prefix));
    Interface {
        name: Text::cut(&interface.name),
        mac: interface.mac,
        up: interface.up,
        addresses: List::<_, MAX_ADDRESSES>::first(subnets.collect()),
    }
}

fn user(login: &Login) -> User {
    let since = SystemTime::now().duration_since(login.since).unwrap_or_default();
    User { name: Text::cut(&login.user), session: Text::cut(&login.line), since }
}

/// The facts under the names that Hyper-V gave them.
fn auto_pool(facts: &Facts) -> Vec<(Text<MAX_KEY>, Value)> {
    let addresses = |is_wanted: fn(&IpAddr) -> bool| {
        let all = facts.interfaces.iter().flat_map(|interface| &interface.addresses);
        let texts: Vec<_> =
            all.map(|(address, _)| address).filter(|each| is_wanted(each)).map(IpAddr::to_string).collect();
        texts.join(";")
    };
    let mut numbers = facts.system_version.split('.');
    let mut number = || numbers.next().unwrap_or_default().to_owned();
    let (major, minor) = (number(), number());
    [
        ("FullyQualifiedDomainName", facts.host_name.clone()),
        ("IntegrationServicesVersion", AGENT_VERSION.to_owned()),
        ("NetworkAddressIPv4", addresses(IpAddr::is_ipv4)),
        ("NetworkAddressIPv6", addresses(IpAddr::is_ipv6)),
        ("OSBuildNumber", facts.kernel.clone()),
        ("OSName", facts.system.clone()),
        ("OSMajorVersion", major),
        ("OSMinorVersion", minor),
        ("OSVersion", facts.system_version.clone()),
        ("ProcessorArchitecture", facts.architecture.clone()),
    ]
    .into_iter()
    .map(|(key, text)| (Text::cut(key), Value::Text { text: Text::cut(&text) }))
    .collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use enhanced_session::class::guest_info::{Pool, Response};

    use super::*;

    #[derive(Clone, Default)]
    struct FakeSystem(Rc<RefCell<Facts>>);

    impl System for FakeSystem {
        fn facts(&mut self) -> Facts {
            self.0.borrow().clone()
        }
        fn up_time(&self) -> Duration {
            Duration::from_secs(9)
        }
        fn network_changes(&self) -> Option<BorrowedFd<'_>> {
            None
        }
        fn take_network_changes(&mut self) -> bool {
            true
        }
    }

    fn facts() -> Facts {
        let address = |text: &str, prefix| (text.parse().unwrap(), prefix);
        let network = netlink::Interface {
            name: "eth0".into(),
            mac: Some([2, 0, 0, 0, 0, 9]),
            up: true,
            addresses: vec![address("10.0.2.15", 24), address("fd00::1", 64), address("10.0.3.15", 24)],
        };
        Facts {
            system: "Debian GNU/Linux".into(),
            system_version: "13.1".into(),
            kernel: "6.12".into(),
            architecture: "x86_64".into(),
            host_name: "vm".into(),
            interfaces: vec![network],
            logins: vec![Login { user: "ada".into(), line: "tty1".into(), since: SystemTime::now() }],
        }
    }

    fn open() -> (FakeSystem, GuestInfo, Instant) {
        let (system, now) = (FakeSystem(Rc::new(RefCell::new(facts()))), Instant::now());
        let pools = std::env::temp_dir().join("fanlight-agent-no-such-pools");
        (system.clone(), GuestInfo::new(Box::new(system), pools, now), now)
    }

    fn snapshot(info: &mut GuestInfo) -> Option<Snapshot> {
        match info.poll_output()? {
            Outgoing::Message(bytes) => match ToHost::decode(&bytes).unwrap() {
                ToHost::Snapshot { snapshot } => Some(*snapshot),
                other => panic!("{other:?} is no snapshot"),
            },
            Outgoing::Completion(..) => panic!("a snapshot is no answer"),
        }
    }

    #[test]
    fn a_snapshot_tells_the_facts() {
        let (_, mut info, _) = open();
        let Snapshot { system, host_name, agent_version, up_time, interfaces, users, .. } =
            snapshot(&mut info).expect("a snapshot at first");
        assert_eq!((&*system, &*host_name, &*agent_version), ("Debian GNU/Linux", "vm", AGENT_VERSION));
        assert_eq!(up_time, Duration::from_secs(9));
        let [eth0] = &*interfaces else { panic!("{interfaces:?}") };
        assert_eq!((&*eth0.name, eth0.up, eth0.addresses.len()), ("eth0", true, 3));
        assert_eq!(users.first().map(|user| &*user.name), Some("ada"));
        assert_eq!(snapshot(&mut info), None);
    }

    #[test]
    fn a_change_is_told_once_and_nothing_else_is() {
        let (system, mut info, start) = open();
        snapshot(&mut info);
        info.handle_timeout(start + CHECK_INTERVAL);
        assert_eq!(snapshot(&mut info), None);
        system.0.borrow_mut().host_name = "db".into();
        info.handle_timeout(start + 2 * CHECK_INTERVAL);
        assert_eq!(snapshot(&mut info).map(|snapshot| snapshot.host_name.into_string()).as_deref(), Some("db"));
        assert_eq!(snapshot(&mut info), None);
        info.handle(start, Incoming::Message(&ToGuest::Refresh.encode())).unwrap();
        assert!(snapshot(&mut info).is_some());
    }

    #[test]
    fn a_change_of_the_network_is_looked_at_soon_and_not_too_often() {
        let (_, mut info, start) = open();
        let later = start + Duration::from_secs(5);
        info.handle_readable(later);
        assert_eq!(info.poll_timeout(), Some(later + SETTLE));
        let (_, mut info, start) = open();
        info.handle_readable(start);
        assert_eq!(info.poll_timeout(), Some(start + MIN_INTERVAL));
    }

    #[test]
    fn the_agents_own_pool_has_hyper_vs_names() {
        let (_, mut info, now) = open();
        snapshot(&mut info);
        let mut get = |key: &str| {
            let request = Request::Get { pool: Pool::Auto, key: Text::new(key).unwrap() };
            info.handle(now, Incoming::Request(3, &request.encode())).unwrap();
            match info.poll_output() {
                Some(Outgoing::Completion(3, bytes)) => match Response::decode(&bytes).unwrap() {
                    Response::Value { value: Value::Text { text } } => text.into_string(),
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?} is no answer"),
            }
        };
        assert_eq!(get("NetworkAddressIPv4"), "10.0.2.15;10.0.3.15");
        assert_eq!(get("NetworkAddressIPv6"), "fd00::1");
        assert_eq!(get("OSMinorVersion"), "1");
    }

    #[test]
    fn of_many_interfaces_those_with_addresses_are_told() {
        let with = facts().interfaces.remove(0);
        let without = netlink::Interface { addresses: Vec::new(), ..with.clone() };
        let mut many = vec![without; MAX_INTERFACES];
        many.push(with.clone());
        let chosen = chosen(&many);
        assert_eq!(chosen.len(), MAX_INTERFACES);
        assert_eq!(chosen[0], &with);
    }

    #[test]
    fn this_system_has_a_name_and_a_kernel() {
        let mut info = GuestInfo::of_system(Instant::now());
        let Snapshot { kernel, host_name, architecture, up_time, .. } = snapshot(&mut info).expect("a snapshot");
        assert!(!kernel.is_empty() && !host_name.is_empty() && !architecture.is_empty() && !up_time.is_zero());
    }
}
