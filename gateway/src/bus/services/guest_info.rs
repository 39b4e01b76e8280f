//! What the guest is and has, as it says itself; and what it is told about itself.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use enhanced_session::class::Text;
use enhanced_session::class::guest_info::{Pool, Request, Snapshot, ToHost, Value};
use enhanced_session::message::Message;
use enhanced_session::wire::Malformed;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Channel, Full, Moment, Service};

/// What a guest says of itself. All texts are the guest's: without control characters, and otherwise anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDetails {
    /// Its system: `Debian GNU/Linux`.
    pub system: String,
    /// The system's version.
    pub system_version: String,
    /// Its kernel's version.
    pub kernel: String,
    /// Its processor's architecture.
    pub architecture: String,
    /// Its name in its network.
    pub host_name: String,
    /// The agent's version.
    pub agent_version: String,
    /// How long ago it was started, in seconds.
    pub up_time: u64,
    /// Its network interfaces.
    pub interfaces: Vec<InterfaceDetails>,
    /// Who is logged on.
    pub users: Vec<UserDetails>,
}

/// A network interface of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceDetails {
    /// What the guest calls it.
    pub name: String,
    /// Its hardware address: `52:54:00:12:34:56`.
    pub mac: Option<String>,
    /// Whether it is up and has a link.
    pub up: bool,
    /// Its addresses with the length of their network's prefix: `10.0.2.15/24`.
    pub addresses: Vec<String>,
}

/// A user who is logged on to a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserDetails {
    /// The account.
    pub name: String,
    /// The seat or terminal.
    pub session: String,
    /// How long ago, in seconds.
    pub since: u64,
}

/// The host's side of the class.
#[derive(Debug)]
pub(in crate::bus) struct GuestInfo {
    facts: [(&'static str, String); 2],
    /// Those that the guest has still to be told.
    tell: VecDeque<usize>,
    snapshot: Option<(Box<Snapshot>, Instant)>,
}

impl GuestInfo {
    /// The guest is told what its virtual machine is called here, under the names that Hyper-V uses for it.
    pub(in crate::bus) fn new(name: &str, uuid: Uuid) -> Self {
        let facts = [("VirtualMachineName", name.to_owned()), ("VirtualMachineId", uuid.to_string())];
        Self { facts, tell: VecDeque::new(), snapshot: None }
    }

    /// The last that it said, carried on to `now`.
    pub(in crate::bus) fn details(&self, now: Instant) -> Option<GuestDetails> {
        self.snapshot.as_ref().map(|(snapshot, at)| details(snapshot, now.saturating_duration_since(*at)))
    }
}

impl Service for GuestInfo {
    fn opened(&mut self, _: Moment) {
        self.tell = (0..self.facts.len()).collect();
        self.snapshot = None;
    }

    fn closed(&mut self) {
        self.tell.clear();
        self.snapshot = None;
    }

    fn handle(&mut self, at: Moment, message: Message) -> Result<(), Malformed> {
        // A guest that does not want to know what it is called may say so; nothing depends on it.
        let Message::Data(bytes) = message else { return Ok(()) };
        if let ToHost::Snapshot { snapshot } = ToHost::decode(&bytes)? {
            self.snapshot = Some((snapshot, at.now));
        }
        Ok(())
    }

    fn drive(&mut self, _: Moment, channel: &mut dyn Channel) -> Result<(), Full> {
        while let Some((key, value)) = self.tell.front().and_then(|fact| self.facts.get(*fact)) {
            let value = Value::Text { text: Text::cut(value) };
            channel.request(Request::Set { pool: Pool::AutoExternal, key: Text::cut(key), value }.encode())?;
            self.tell.pop_front();
        }
        Ok(())
    }

    fn timeout(&self) -> Option<Instant> {
        None
    }
}

fn details(snapshot: &Snapshot, age: Duration) -> GuestDetails {
    let interfaces = snapshot.interfaces.iter().map(|interface| InterfaceDetails {
        name: clean(&interface.name),
        mac: interface.mac.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":")),
        up: interface.up,
        addresses: interface
            .addresses
            .iter()
            .map(|subnet| format!("{}/{}", subnet.address(), subnet.prefix()))
            .collect(),
    });
    let users = snapshot.users.iter().map(|user| UserDetails {
        name: clean(&user.name),
        session: clean(&user.session),
        since: user.since.saturating_add(age).as_secs(),
    });
    GuestDetails {
        system: clean(&snapshot.system),
        system_version: clean(&snapshot.system_version),
        kernel: clean(&snapshot.kernel),
        architecture: clean(&snapshot.architecture),
        host_name: clean(&snapshot.host_name),
        agent_version: clean(&snapshot.agent_version),
        up_time: snapshot.up_time.saturating_add(age).as_secs(),
        interfaces: interfaces.collect(),
        users: users.collect(),
    }
}

/// The guest's text without what a terminal would obey.
fn clean(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use enhanced_session::class::List;
    use enhanced_session::class::guest_info::{Interface, Subnet};

    use super::super::testing::{Clock, Sent};
    use super::*;

    fn snapshot() -> Snapshot {
        let text = |text| Text::new(text).expect("fits");
        Snapshot {
            system: text("Debian\x1b[31m"),
            system_version: text("12"),
            kernel: text("6.12"),
            architecture: Text::new("x86_64").expect("fits"),
            host_name: text("console"),
            agent_version: Text::new("0.1.0").expect("fits"),
            up_time: Duration::from_secs(10),
            interfaces: List::from([Interface {
                name: Text::new("eth0").expect("fits"),
                mac: Some([0x52, 0x54, 0, 1, 2, 0xab]),
                up: true,
                addresses: List::from([Subnet::new([10, 0, 2, 15].into(), 24).expect("possible")]),
            }]),
            users: List::default(),
        }
    }

    #[test]
    fn what_the_guest_says_is_shown_without_what_a_terminal_obeys() {
        let mut clock = Clock::new();
        let mut info = GuestInfo::new("demo", Uuid::nil());
        info.opened(clock.at());
        let message = ToHost::Snapshot { snapshot: Box::new(snapshot()) };
        info.handle(clock.at(), Message::Data(message.encode())).expect("read");
        let details = info.details(clock.pass(Duration::from_secs(5)).now).expect("there");
        assert_eq!((details.system.as_str(), details.up_time), ("Debian[31m", 15));
        assert_eq!(details.interfaces[0].mac.as_deref(), Some("52:54:00:01:02:ab"));
        assert_eq!(details.interfaces[0].addresses, ["10.0.2.15/24"]);
        info.closed();
        assert_eq!(info.details(clock.at().now), None);
    }

    #[test]
    fn the_guest_is_told_its_name_as_soon_as_there_is_room() {
        let (clock, mut channel) = (Clock::new(), Sent::new());
        let mut info = GuestInfo::new("demo", Uuid::nil());
        info.opened(clock.at());
        channel.room = 1;
        assert_eq!(info.drive(clock.at(), &mut channel), Err(Full));
        channel.room = 9;
        info.drive(clock.at(), &mut channel).expect("room");
        assert_eq!(channel.messages.len(), 2);
        let value = Value::Text { text: Text::new("demo").expect("fits") };
        let key = Text::new("VirtualMachineName").expect("fits");
        assert_eq!(Request::decode(&channel.messages[0]), Ok(Request::Set { pool: Pool::AutoExternal, key, value }));
    }
}
