//! A guest, and a wild host.

use std::sync::Arc;
use std::time::Instant;

use crate::class::Class;
use crate::control::{AgentVersion, ContactStatus, ControlMessage, Offer, OfferedRings, Os, Reason};
use crate::endpoint::{ChannelId, Event, Guest, GuestConfig, Preference, SurfaceId};
use crate::message::{Message, Txid};
use crate::region::{ARENA, Direction, HeapMemory, HostPage};
use crate::ring::{Consumer, Producer, Raiser, RingGrant, Watcher, max_payload, ring_tag};
use crate::stream::Role;

use super::wild::{Act, EPOCH, NONCE, REGION, Victim, Wild, contact_ack, offer, random};

/// Whatever a host says and writes, the guest stays in order: the bytes are a program of what it does.
///
/// # Panics
///
/// When the guest does not.
pub fn fuzz_bus_guest(bytes: &[u8]) {
    let (now, memory) = (Instant::now(), Arc::new(HeapMemory::new(REGION)));
    let config = GuestConfig { name: "honest".into(), version: AgentVersion(1, 0, 0), os: Os::Linux };
    let mut guest = Owned { guest: Guest::new(config, random(), now), memory: Arc::clone(&memory) };
    guest.guest.handle_port_opened(now);
    let mut wild = Wild::new(guest, memory, Role::Host, now);
    connect(&mut wild);
    wild.run(bytes);
}

/// A guest whose owner has the shared memory.
struct Owned {
    guest: Guest<HeapMemory>,
    memory: Arc<HeapMemory>,
}

/// Connects, offers three channels, and lets the first be opened on rings and the second on the stream.
fn connect(wild: &mut Wild<Owned>) {
    wild.settle();
    write_page(&wild.memory);
    wild.say(&ControlMessage::ContactAck(contact_ack(ContactStatus::Welcome, 4096)));
    wild.settle();
    wild.victim.guest.attach(Arc::clone(&wild.memory)).expect("it is the memory");
    wild.say(&ControlMessage::AttachResult { status: Ok(()) });
    let first = Offer { rings: Some(rings()), ..offer(1, Class::Input) };
    for offer in [first, offer(2, Class::Heartbeat), offer(3, Class::Video)] {
        wild.say(&ControlMessage::Offer(offer));
    }
    wild.settle();
    let guest = &mut wild.victim.guest;
    guest.open(ChannelId(1), Preference::Ring).expect("it is offered");
    guest.open(ChannelId(2), Preference::Stream).expect("it is offered");
    let tag = ring_tag(EPOCH, guest.statistics().epoch, 1);
    let rings = rings();
    let grant = |offset, size| RingGrant::new(offset, size, rings.max_payload, REGION).expect("it fits");
    let h2g = grant(rings.h2g_offset, rings.h2g_size);
    wild.producer = Some(Producer::attach(Arc::clone(&wild.memory), h2g, tag));
    drop(Consumer::attach(Arc::clone(&wild.memory), grant(rings.g2h_offset, rings.g2h_size), tag));
    for open_id in [1, 2] {
        wild.say(&ControlMessage::OpenResult { channel: open_id, open_id, status: Ok(()) });
    }
    wild.settle();
    let statistics = wild.victim.guest.statistics();
    let open = statistics.channels.iter().filter(|channel| channel.transport.is_some()).count();
    assert_eq!(open, 2, "an honest host's channels can be opened");
}

fn write_page(memory: &Arc<HeapMemory>) {
    drop(Raiser::attach(Arc::clone(memory), Direction::HostToGuest, 256));
    drop(Watcher::attach(Arc::clone(memory), Direction::GuestToHost, 256));
    let page = HostPage {
        minor: 0,
        region_size: REGION as u64,
        features: 0,
        host_epoch: EPOCH,
        region_nonce: NONCE,
        arena_offset: ARENA as u64,
        arena_size: (REGION - ARENA) as u64,
        channel_limit: 256,
    };
    page.write_to(memory);
}

fn rings() -> OfferedRings {
    let limits = Class::Input.limits();
    OfferedRings {
        h2g_offset: ARENA as u64,
        g2h_offset: ARENA as u64 + RingGrant::bytes(limits.h2g_ring),
        h2g_size: limits.h2g_ring,
        g2h_size: limits.g2h_ring,
        max_payload: max_payload(limits.h2g_ring.min(limits.g2h_ring)),
    }
}

impl Victim for Owned {
    fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) {
        self.guest.handle_bytes(now, bytes);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.guest.handle_timeout(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.guest.poll_timeout()
    }

    fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        self.guest.poll_transmit(now, out)
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.guest.poll_event()
    }

    fn receive(&mut self, id: ChannelId) -> Option<Message> {
        self.guest.receive(id)
    }

    fn act(&mut self, _: Instant, Act { verb, id, number }: Act) {
        let guest = &mut self.guest;
        let payload = || vec![verb; usize::from(number)];
        let preference = if number & 1 == 1 { Preference::Ring } else { Preference::Stream };
        match verb % 13 {
            0 => drop(guest.send(id, payload())),
            1 => drop(guest.request(id, payload())),
            2 => drop(guest.complete(id, Txid(number.into()), Vec::new())),
            3 => drop(guest.finish(id)),
            4 => drop(guest.reset(id)),
            5 => guest.close(id, Reason::Done),
            6 | 7 => drop(guest.open(id, preference)),
            8 => guest.want_subchannels(id, number),
            9 => guest.return_surface(id, SurfaceId(number.into())),
            10 => guest.unload(),
            11 => drop(guest.attach(Arc::clone(&self.memory))),
            _ => guest.decline(),
        }
    }
}
