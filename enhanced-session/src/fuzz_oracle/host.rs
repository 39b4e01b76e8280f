//! A host, and a wild guest.

use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use crate::class::Class;
use crate::control::{ControlMessage, OfferFlags, Picture, Reason, TransportCode};
use crate::endpoint::{ChannelId, Event, Host, HostConfig, MAX_CHANNELS, SurfaceId};
use crate::message::{Message, Txid};
use crate::region::{Direction, GuestPage, HeapMemory, HostPage};
use crate::ring::{Consumer, Producer, Raiser, RingGrant, Watcher, max_payload, ring_tag};
use crate::stream::Role;

use super::wild::{Act, EPOCH, REGION, Victim, Wild, contact, random};

/// Whatever a guest says and writes, the host stays in order: the bytes are a program of what it does.
///
/// # Panics
///
/// When the host does not.
pub fn fuzz_bus_host(bytes: &[u8]) {
    let (now, memory) = (Instant::now(), Arc::new(HeapMemory::new(REGION)));
    let config = HostConfig { window: 4096, ..HostConfig::new(Uuid::nil()) };
    let mut host = Host::new(config, Some(Arc::clone(&memory)), random(), now);
    for class in [Class::Input, Class::Heartbeat, Class::Video] {
        host.offer(class, 0, OfferFlags::SURFACES).expect("there is room");
    }
    host.handle_port_opened(now);
    let mut wild = Wild::new(host, memory, Role::Guest, now);
    connect(&mut wild);
    wild.run(bytes);
}

/// Connects, and opens the first channel on rings and the second on the stream.
fn connect(wild: &mut Wild<Host<HeapMemory>>) {
    wild.look();
    wild.settle();
    wild.say(&ControlMessage::Contact(contact(0)));
    wild.settle();
    let page = HostPage::read_from(&wild.memory).expect("the host has written its page");
    for direction in [Direction::GuestToHost, Direction::HostToGuest] {
        drop(Raiser::attach(Arc::clone(&wild.memory), direction, 256));
    }
    drop(Watcher::attach(Arc::clone(&wild.memory), Direction::HostToGuest, 256));
    let own = GuestPage { minor: 0, features: 0, guest_epoch: EPOCH, host_epoch: page.host_epoch, guest_nonce: 7 };
    own.write_to(&wild.memory);
    wild.say(&ControlMessage::Attach { region_nonce: page.region_nonce, guest_nonce: 7 });
    wild.say(&ControlMessage::RequestOffers);
    let (h2g, g2h) = rings_of_first();
    let tag = ring_tag(page.host_epoch, EPOCH, 1);
    wild.producer = Some(Producer::attach(Arc::clone(&wild.memory), g2h, tag));
    drop(Consumer::attach(Arc::clone(&wild.memory), h2g, tag));
    for (channel, transport) in [(1, TransportCode::Ring), (2, TransportCode::Stream)] {
        wild.say(&ControlMessage::Open { channel, open_id: 1, transport, class_minor: 0 });
    }
    wild.settle();
    let open = wild.victim.statistics().channels.iter().filter(|channel| channel.transport.is_some()).count();
    assert_eq!(open, 2, "an honest guest can open channels");
}

/// Where the host puts them: at the front of the arena.
fn rings_of_first() -> (RingGrant, RingGrant) {
    let limits = Class::Input.limits();
    let max_payload = max_payload(limits.h2g_ring.min(limits.g2h_ring));
    let grant = |offset, size| RingGrant::new(offset, size, max_payload, REGION).expect("it fits");
    let h2g = grant(0x4000, limits.h2g_ring);
    (h2g, grant(0x4000 + RingGrant::bytes(limits.h2g_ring), limits.g2h_ring))
}

impl Victim for Host<HeapMemory> {
    fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) {
        self.handle_bytes(now, bytes);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.handle_timeout(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.poll_timeout()
    }

    fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        self.poll_transmit(now, out)
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.poll_event()
    }

    fn receive(&mut self, id: ChannelId) -> Option<Message> {
        self.receive(id)
    }

    fn act(&mut self, now: Instant, Act { verb, id, number }: Act) {
        let payload = || vec![verb; usize::from(number)];
        let class = Class::ALL[usize::from(number) % Class::ALL.len()];
        let picture = Picture { fourcc: 1, stride: 64, width: 16, height: number.into() };
        match verb % 16 {
            0 => drop(self.send(id, payload())),
            1 => drop(self.request(id, payload())),
            2 => drop(self.complete(id, Txid(number.into()), Vec::new())),
            3 => drop(self.finish(id)),
            4 => drop(self.reset(id)),
            5 => self.close(id, Reason::Done),
            6 => self.rescind(id, Reason::Done),
            7 => drop(self.offer(class, number / 12 % 3, OfferFlags::SURFACES)),
            8 => drop(self.offer_subchannel(id)),
            9 => drop(self.grant_surface(id, picture)),
            10 => self.revoke_surface(id, SurfaceId(number.into())),
            11 => self.quiesce(now),
            12 => self.unquiesce(now),
            13 => self.handle_paused(now),
            14 => self.handle_resumed(now),
            _ => assert!(self.statistics().channels.len() <= MAX_CHANNELS),
        }
    }
}
