//! A guest that is written out by hand, to say what no guest would.

use std::sync::Arc;
use std::time::{Duration, Instant};

use enhanced_session::control::{
    AgentVersion, Contact, ContactAck, ControlMessage, ErrorCode, Features, Offer, Os, TransportCode,
};
use enhanced_session::endpoint::{ChannelId, Event, Host, HostConfig};
use enhanced_session::region::{Direction, GuestPage, HeapMemory};
use enhanced_session::ring::{Raiser, Watcher};
use enhanced_session::stream::{Deframer, Frame, SyncBody};
use uuid::Uuid;

use crate::pair::random;

pub(crate) const EPOCH: u64 = 77;

/// A host, and what it says.
pub(crate) struct Raw {
    pub(crate) host: Host<HeapMemory>,
    pub(crate) now: Instant,
    deframer: Deframer,
    next_txid: u64,
    random: u64,
}

impl Raw {
    /// A host with an open port.
    pub(crate) fn new(memory: Option<Arc<HeapMemory>>) -> Self {
        let now = Instant::now();
        let mut host = Host::new(HostConfig::new(Uuid::from_u128(1)), memory, random(3), now);
        host.handle_port_opened(now);
        Self { host, now, deframer: Deframer::new(), next_txid: 100, random: 1 }
    }

    /// Another agent opens the port.
    pub(crate) fn restart(&mut self) {
        self.deframer = Deframer::new();
        self.random += 1;
        self.host.handle_port_opened(self.now);
    }

    /// Finds the host.
    pub(crate) fn step(&mut self) {
        let Some(Frame::Sync(first)) = self.hear().pop() else { panic!("the host says who it is") };
        self.send(&Frame::Sync(SyncBody { epoch: EPOCH, random: self.random, echo: first.random }));
        let Some(Frame::Sync(second)) = self.hear().pop() else { panic!("the host answers") };
        assert_eq!((second.random, second.echo), (first.random, self.random));
        self.deframer.enter_step();
    }

    /// Finds the host and contacts it.
    pub(crate) fn contact(&mut self) -> ContactAck {
        self.step();
        self.say(contact(1));
        match self.answers().pop() {
            Some(ControlMessage::ContactAck(ack)) => ack,
            other => panic!("not an answer to contact: {other:?}"),
        }
    }

    /// Asks for offers.
    pub(crate) fn offers(&mut self) -> Vec<Offer> {
        self.say(ControlMessage::RequestOffers);
        let offer = |message| match message {
            ControlMessage::Offer(offer) => Some(offer),
            _ => None,
        };
        self.answers().into_iter().filter_map(offer).collect()
    }

    /// Opens a channel on the stream.
    pub(crate) fn open(&mut self, id: ChannelId, open_id: u32) {
        let transport = TransportCode::Stream;
        self.say(ControlMessage::Open { channel: id.0, open_id, transport, class_minor: 0 });
        let opened = ControlMessage::OpenResult { channel: id.0, open_id, status: Ok(()) };
        assert_eq!(self.answers(), [opened]);
    }

    /// Shows that it sees the shared memory. Returns its halves of the pending map.
    pub(crate) fn attach(&mut self, memory: &Arc<HeapMemory>, ack: &ContactAck) -> Map {
        let page = GuestPage { minor: 0, features: 0, guest_epoch: EPOCH, host_epoch: ack.host_epoch, guest_nonce: 5 };
        let raiser = Raiser::attach(Arc::clone(memory), Direction::GuestToHost, 256);
        let watcher = Watcher::attach(Arc::clone(memory), Direction::HostToGuest, 256);
        page.write_to(memory);
        let region_nonce = ack.region.expect("there is shared memory").nonce;
        self.say(ControlMessage::Attach { region_nonce, guest_nonce: 5 });
        assert_eq!(self.answers(), [ControlMessage::AttachResult { status: Ok(()) }]);
        Map { raiser, watcher }
    }

    pub(crate) fn say(&mut self, message: ControlMessage) {
        self.next_txid += 1;
        self.send(&Frame::Control(message.encode(self.next_txid)));
    }

    pub(crate) fn send(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.host.handle_bytes(self.now, &bytes);
    }

    /// All frames that the host has to say.
    pub(crate) fn hear(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        let mut bytes = Vec::new();
        while self.host.poll_transmit(self.now, &mut bytes) {
            let mut input = &bytes[..];
            while let Some(frame) = self.deframer.next_frame(&mut input).expect("the host keeps in step") {
                frames.push(frame);
            }
            bytes.clear();
        }
        frames
    }

    /// All control messages that the host has to say, which must be all that it says.
    pub(crate) fn answers(&mut self) -> Vec<ControlMessage> {
        let message = |frame| match frame {
            Frame::Control(bytes) => ControlMessage::decode(&bytes).expect("the host says what it should").1,
            other => panic!("not a control message: {other:?}"),
        };
        self.hear().into_iter().map(message).collect()
    }

    /// The only error that the host complains with.
    pub(crate) fn complaint(&mut self) -> ErrorCode {
        match &self.answers()[..] {
            [ControlMessage::Error { code, .. }] => *code,
            other => panic!("not one complaint: {other:?}"),
        }
    }

    pub(crate) fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.host.poll_event()).collect()
    }

    /// Lets time pass, in which the guest is heard every second.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let next = (self.now + Duration::from_secs(1)).min(end);
            while let Some(due) = self.host.poll_timeout().filter(|due| *due <= next) {
                self.now = self.now.max(due);
                self.host.handle_timeout(self.now);
            }
            self.now = next;
            self.send(&Frame::Kick);
        }
    }
}

/// The guest's halves of the pending map.
pub(crate) struct Map {
    pub(crate) raiser: Raiser<Arc<HeapMemory>>,
    pub(crate) watcher: Watcher<Arc<HeapMemory>>,
}

pub(crate) fn contact(major: u16) -> ControlMessage {
    ControlMessage::Contact(Contact {
        major,
        minor: 9,
        features: Features::ALL,
        guest_epoch: EPOCH,
        os: Os::Other(9),
        agent_version: AgentVersion(0, 0, 0),
        name: String::new(),
    })
}
