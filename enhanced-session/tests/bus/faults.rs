//! What is done about an end that breaks rules.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use enhanced_session::class::Class;
use enhanced_session::control::{ControlMessage, ErrorCode, Offer, OfferFlags, Reason, TransportCode};
use enhanced_session::endpoint::{ChannelId, Event, Fault, MAX_REQUESTS, OpenError, Preference, Transport};
use enhanced_session::message::{Message, MessageFault};
use enhanced_session::packet::{Fragment, PacketHeader, PacketType};
use enhanced_session::region::{HeapMemory, SharedMemory as _};
use enhanced_session::ring::{Consumer, Producer, Push, RingGrant, ring_tag};
use enhanced_session::stream::Frame;

use crate::pair::{Pair, REGION};
use crate::raw::{EPOCH, Raw};

const DATA: PacketHeader =
    PacketHeader { length: 0, packet_type: PacketType::Data, fragment: Fragment::Whole, txid: 0 };

fn packet(header: PacketHeader, payload: &[u8]) -> Vec<u8> {
    [&header.encode(), payload].concat()
}

/// A host whose only channel is open on the stream.
fn opened(class: Class) -> (Raw, ChannelId) {
    let mut raw = Raw::new(None);
    let id = raw.host.offer(class, 0, OfferFlags::default()).expect("there is room");
    raw.contact();
    raw.offers();
    raw.open(id, 1);
    raw.events();
    (raw, id)
}

/// What the host finds wrong when these packets come.
fn fault(packets: &[Vec<u8>]) -> Option<Fault> {
    let (mut raw, id) = opened(Class::Input);
    for packet in packets {
        raw.send(&Frame::Data { channel: id.0, body: packet.clone() });
        raw.host.receive(id);
    }
    let events = raw.events();
    events.into_iter().find_map(|event| match event {
        Event::Faulted { what, .. } => Some(what),
        _ => None,
    })
}

#[test]
fn every_broken_rule_is_found() {
    let (fin, request) = (PacketType::Fin, PacketType::Request);
    let txid = |packet_type, txid| packet(PacketHeader { packet_type, txid, ..DATA }, &[]);
    let is_message = |fault: Option<Fault>| matches!(fault, Some(Fault::Message(_)));
    assert_eq!(fault(&[packet(DATA, &[])]), None);
    assert!(is_message(fault(&[vec![]])) && is_message(fault(&[vec![0; 15]])) && is_message(fault(&[vec![0; 16]])));
    assert!(is_message(fault(&[packet(DATA, &[1])])), "a length that is not that of the payload");
    let piece = packet(PacketHeader { fragment: Fragment::Last, ..DATA }, &[]);
    assert_eq!(fault(&[piece]), Some(Fault::Message(MessageFault::Piece)));
    let long = packet(PacketHeader { length: 4097, ..DATA }, &[0; 4097]);
    assert_eq!(fault(&[long]), Some(Fault::Message(MessageFault::TooLong { limit: 4096 })));
    let completion = txid(PacketType::Completion, 7);
    assert_eq!(fault(&[completion]), Some(Fault::NoSuchRequest(7)));
    assert_eq!(fault(&[txid(request, 7), txid(request, 7)]), Some(Fault::RequestTwice(7)));
    let requests: Vec<_> = (1..=MAX_REQUESTS as u64 + 1).map(|number| txid(request, number)).collect();
    assert_eq!(fault(&requests), Some(Fault::TooManyRequests { limit: MAX_REQUESTS }));
    let empty = packet(PacketHeader { fragment: Fragment::First, ..DATA }, &[]);
    assert_eq!(fault(&[empty]), Some(Fault::Message(MessageFault::Empty)));
    let fin = packet(PacketHeader { packet_type: fin, ..DATA }, &[]);
    assert_eq!(fault(&[fin, packet(DATA, &[])]), Some(Fault::AfterFin));
}

#[test]
fn more_than_the_credit_is_found_even_when_nobody_takes_anything() {
    let (mut raw, id) = opened(Class::Input);
    let body = packet(PacketHeader { length: 4096, ..DATA }, &[0; 4096]);
    let mut sent = 0;
    while raw.events().iter().all(|event| !matches!(event, Event::Faulted { .. })) {
        raw.send(&Frame::Data { channel: id.0, body: body.clone() });
        sent += body.len();
    }
    let window = 128 * 1024;
    assert!((window..window + 2 * body.len()).contains(&(sent - body.len())), "{sent} bytes");
}

#[test]
fn a_fault_closes_the_channel_and_no_other() {
    let mut raw = Raw::new(None);
    let ids = [Class::Input, Class::Video].map(|class| raw.host.offer(class, 0, OfferFlags::default()).unwrap());
    raw.contact();
    raw.offers();
    raw.open(ids[0], 1);
    raw.open(ids[1], 2);
    raw.events();
    raw.send(&Frame::Data { channel: ids[0].0, body: vec![] });
    let close = ControlMessage::Close { channel: ids[0].0, open_id: 1, reason: Reason::Fault };
    assert_eq!(raw.answers(), [close]);
    assert!(matches!(raw.events()[..], [Event::Faulted { id, .. }] if id == ids[0]));
    raw.send(&Frame::Data { channel: ids[0].0, body: vec![] });
    assert_eq!((raw.answers(), raw.events()), (vec![], vec![]), "what comes after is not looked at");
    raw.send(&Frame::Data { channel: ids[1].0, body: packet(DATA, &[]) });
    assert_eq!(raw.host.receive(ids[1]), Some(Message::Data(vec![])));
    raw.hear();
    raw.say(ControlMessage::Closed { channel: ids[0].0, open_id: 1 });
    assert_eq!(raw.events()[1..], [Event::Closed { id: ids[0], reason: Reason::Fault }]);
    raw.open(ids[0], 3);
}

/// Breaks a rule of a channel until it is withdrawn; returns for how many seconds.
fn break_until_withdrawn(raw: &mut Raw, id: ChannelId, open_id: &mut u32) -> u64 {
    for _ in 0..3 {
        *open_id += 1;
        raw.open(id, *open_id);
        raw.send(&Frame::Data { channel: id.0, body: vec![] });
        match raw.answers()[..] {
            [ControlMessage::Close { .. }] => {
                raw.say(ControlMessage::Closed { channel: id.0, open_id: *open_id });
            }
            [ControlMessage::Rescind { channel, reason: Reason::Misbehaving }] => assert_eq!(channel, id.0),
            ref other => panic!("{other:?}"),
        }
    }
    let events = raw.events();
    let [
        ..,
        Event::Faulted { .. },
        Event::Closed { reason: Reason::Misbehaving, .. },
        Event::Withdrawn { id: was, until },
    ] = events[..]
    else {
        panic!("not withdrawn: {events:?}")
    };
    assert_eq!(was, id);
    (until - raw.now).as_secs()
}

#[test]
fn a_channel_that_faults_again_and_again_is_withdrawn_for_longer_each_time() {
    let mut raw = Raw::new(None);
    let mut id = raw.host.offer(Class::Input, 0, OfferFlags::default()).expect("there is room");
    raw.contact();
    raw.offers();
    raw.events();
    let (mut open_id, mut rests) = (0, Vec::new());
    for round in 0..10 {
        let rest = break_until_withdrawn(&mut raw, id, &mut open_id);
        rests.push(rest);
        // Some guests release at once, some late: the number differs.
        if round % 2 == 0 {
            raw.say(ControlMessage::Released { channel: id.0 });
        }
        raw.pass(Duration::from_secs(rest) - Duration::from_millis(1));
        assert_eq!((raw.answers(), raw.events()), (vec![], vec![]));
        raw.pass(Duration::from_millis(1));
        let [Event::Reoffered { was, id: again }] = raw.events()[..] else { panic!("it is offered again") };
        assert_eq!((was, again == id), (id, round % 2 == 0));
        let Some(ControlMessage::Offer(Offer { channel, .. })) = raw.answers().pop() else { panic!("an offer") };
        assert_eq!(channel, again.0);
        id = again;
    }
    assert_eq!(rests, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
    raw.pass(Duration::from_secs(600));
    assert_eq!(break_until_withdrawn(&mut raw, id, &mut open_id), 1, "long ago");
}

#[test]
fn what_rests_can_be_withdrawn_and_is_not_offered_to_the_next_guest_too_early() {
    let (mut raw, id) = opened(Class::Input);
    raw.say(ControlMessage::Close { channel: id.0, open_id: 1, reason: Reason::Done });
    raw.answers();
    let mut open_id = 1;
    break_until_withdrawn(&mut raw, id, &mut open_id);
    let twice = raw.host.offer(Class::Input, 0, OfferFlags::default());
    assert!(twice.is_err(), "it is offered, though not now");
    raw.restart();
    raw.contact();
    assert_eq!(raw.offers(), []);
    raw.pass(Duration::from_secs(1));
    assert!(matches!(raw.answers()[..], [ControlMessage::Offer(_)]));
    let id = raw.events().into_iter().find_map(|event| match event {
        Event::Reoffered { id, .. } => Some(id),
        _ => None,
    });
    raw.host.rescind(id.expect("it is offered again"), Reason::Done);
    assert!(matches!(raw.answers()[..], [ControlMessage::Rescind { reason: Reason::Done, .. }]));
}

#[test]
fn a_guest_does_not_open_for_a_while_what_the_host_breaks_again_and_again() {
    let (mut pair, ids) = Pair::stream().with(&[Class::Input]);
    let id = ids[0];
    pair.habit = crate::pair::Habit::Nothing;
    pair.take_guest_events();
    for round in 0..3 {
        let mut bytes = Vec::new();
        Frame::Data { channel: id.0, body: vec![] }.encode(&mut bytes);
        pair.guest.handle_bytes(pair.now, &bytes);
        pair.run();
        let reason = if round < 2 { Reason::Fault } else { Reason::Misbehaving };
        let [Event::Faulted { .. }, closed] = &pair.take_guest_events()[..] else { panic!("a fault") };
        assert_eq!(closed, &Event::Closed { id, reason });
        if round < 2 {
            pair.guest.open(id, Preference::Stream).expect("it may try again");
            pair.run();
            pair.take_guest_events();
        }
    }
    assert_eq!(pair.guest.open(id, Preference::Stream), Err(OpenError::Resting));
    pair.pass(Duration::from_millis(999));
    assert_eq!(pair.take_guest_events(), []);
    pair.pass(Duration::from_millis(1));
    assert!(matches!(pair.take_guest_events()[..], [Event::Offered(info)] if info.id == id));
    pair.guest.open(id, Preference::Stream).expect("it has rested");
    pair.run();
    assert!(pair.talks(id));
    assert_eq!(pair.guest.statistics().channels[0].faults, 3);
}

/// A host with an open channel on rings, and the guest's ends of them.
struct Rings {
    raw: Raw,
    id: ChannelId,
    memory: Arc<HeapMemory>,
    map: crate::raw::Map,
    producer: Producer<Arc<HeapMemory>>,
    consumer: Consumer<Arc<HeapMemory>>,
    offer: Offer,
}

fn rings(class: Class) -> Rings {
    let memory = Arc::new(HeapMemory::new(REGION));
    let mut raw = Raw::new(Some(Arc::clone(&memory)));
    let id = raw.host.offer(class, 0, OfferFlags::default()).expect("there is room");
    let ack = raw.contact();
    let map = raw.attach(&memory, &ack);
    let offer = raw.offers()[0];
    let rings = offer.rings.expect("there is memory");
    let grant = |offset, size| RingGrant::new(offset, size, rings.max_payload, REGION).expect("a ring");
    let tag = ring_tag(ack.host_epoch, EPOCH, 1);
    let producer = Producer::attach(Arc::clone(&memory), grant(rings.g2h_offset, rings.g2h_size), tag);
    let consumer = Consumer::attach(Arc::clone(&memory), grant(rings.h2g_offset, rings.h2g_size), tag);
    raw.say(ControlMessage::Open { channel: id.0, open_id: 1, transport: TransportCode::Ring, class_minor: 0 });
    let status = Ok(());
    assert_eq!(raw.answers(), [ControlMessage::OpenResult { channel: id.0, open_id: 1, status }]);
    assert!(producer.peer_tag_matches() && consumer.peer_tag_matches());
    raw.events();
    Rings { raw, id, memory, map, producer, consumer, offer }
}

impl Rings {
    fn push(&mut self, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("short");
        let pushed = self.producer.push(&PacketHeader { length, ..DATA }, &[payload]).expect("the host is honest");
        assert_eq!(pushed, Push::Done);
        let _ = self.producer.publish().expect("the host is honest");
    }

    /// Tells the host about the channel.
    fn kick(&mut self) {
        let _ = self.map.raiser.raise(self.id.0);
        self.raw.send(&Frame::Kick);
    }

    fn events(&mut self) -> Vec<Event> {
        self.raw.events()
    }
}

#[test]
fn a_ring_that_cannot_be_is_a_fault() {
    for (word, value) in [(0, 4), (0, 0x0100_0000), (0, 8), (0x40, 4), (0x40, 0x0100_0000)] {
        let mut rings = rings(Class::Input);
        let offer = rings.offer.rings.expect("there are rings");
        // `in` of the guest's ring, or `out` of the host's.
        let at = if word == 0 { offer.g2h_offset } else { offer.h2g_offset + word };
        rings.memory.store_u32(usize::try_from(at).unwrap(), value, SeqCst);
        rings.kick();
        rings.raw.host.send(rings.id, vec![1]).ok();
        let events = rings.events();
        assert!(matches!(events[..], [Event::Faulted { what: Fault::Ring(_), .. }]), "{word} {value}: {events:?}");
        let close = ControlMessage::Close { channel: rings.id.0, open_id: 1, reason: Reason::Fault };
        assert!(rings.raw.answers().contains(&close));
    }
}

#[test]
fn rings_of_another_incarnation_are_not_opened() {
    let mut rings = rings(Class::Input);
    rings.raw.say(ControlMessage::Close { channel: rings.id.0, open_id: 1, reason: Reason::Done });
    rings.raw.answers();
    // The tags in the guest's words are those of the first opening.
    let (channel, open_id) = (rings.id.0, 2);
    rings.raw.say(ControlMessage::Open { channel, open_id, transport: TransportCode::Ring, class_minor: 0 });
    let status = Err(ErrorCode::WrongState);
    assert_eq!(rings.raw.answers(), [ControlMessage::OpenResult { channel, open_id, status }]);
    rings.raw.open(rings.id, 3);
}

#[test]
fn a_guest_closes_rings_of_another_incarnation() {
    let (mut pair, _) = Pair::rings().with(&[]);
    let id = pair.offer(Class::Input);
    while !matches!(pair.host_events.last(), Some(Event::Opened { .. })) {
        pair.step();
    }
    // Somebody else wrote over the host's tag before its answer arrived.
    let memory = pair.memory.clone().expect("there is memory");
    let offset = 0x4000 + 0x08;
    assert_ne!(memory.load_u32(offset, SeqCst), 0, "the first ring of the arena");
    memory.store_u32(offset, 1, SeqCst);
    pair.run();
    assert!(pair.guest_events.contains(&Event::Faulted { id, what: Fault::Tag }));
    assert!(pair.host_events.contains(&Event::Closed { id, reason: Reason::Fault }));
}

#[test]
fn what_is_on_a_ring_is_found_without_a_kick_at_the_next_ping() {
    let mut rings = rings(Class::Input);
    rings.push(b"unheard");
    assert_eq!(rings.events(), []);
    rings.raw.say(ControlMessage::Ping { cookie: 1 });
    assert_eq!(rings.events(), [Event::Readable(rings.id)]);
    assert_eq!(rings.raw.host.receive(rings.id), Some(Message::Data(b"unheard".to_vec())));
}

#[test]
fn what_is_on_a_ring_is_found_without_its_kick_when_another_comes_seconds_later() {
    let mut rings = rings(Class::Input);
    rings.push(b"unheard");
    // Nobody is silent: kicks for others come, and no end asks whether the other is alive.
    rings.raw.pass(Duration::from_secs(2));
    rings.raw.send(&Frame::Kick);
    assert_eq!(rings.events(), []);
    rings.raw.pass(Duration::from_secs(2));
    rings.raw.send(&Frame::Kick);
    assert_eq!(rings.events(), [Event::Readable(rings.id)]);
    assert_eq!(rings.raw.host.receive(rings.id), Some(Message::Data(b"unheard".to_vec())));
}

#[test]
fn a_flood_of_kicks_is_ignored_and_nothing_lost() {
    let mut rings = rings(Class::Input);
    for _ in 0..25_000 {
        rings.raw.send(&Frame::Kick);
    }
    rings.push(b"quiet");
    rings.kick();
    assert_eq!(rings.events(), [], "kicks are not listened to");
    rings.raw.pass(Duration::from_millis(1));
    assert_eq!(rings.events(), [Event::Readable(rings.id)], "but the map is looked at");
    rings.raw.host.receive(rings.id);
    rings.raw.pass(Duration::from_secs(2));
    rings.push(b"again");
    rings.kick();
    assert_eq!(rings.events(), [Event::Readable(rings.id)]);
    assert_eq!(rings.raw.host.statistics().kicks_received, 25_005);
}

#[test]
fn a_kick_that_comes_before_the_channel_is_open_is_not_lost() {
    let (mut pair, ids) = Pair::rings().with(&[Class::Input]);
    let id = pair.offer(Class::Video);
    while pair.host_events.last() != Some(&Event::Opened { id, transport: Transport::Ring }) {
        pair.step();
    }
    // OPEN_RESULT waits to be sent. The guest looks at the map for another channel, and sees this one's bit.
    pair.host.send(id, b"early".to_vec()).expect("it is free");
    pair.host.send(ids[0], b"other".to_vec()).expect("it is free");
    let mut kick = Vec::new();
    Frame::Kick.encode(&mut kick);
    pair.guest.handle_bytes(pair.now, &kick);
    pair.run();
    assert_eq!(pair.guest.receive(id), Some(Message::Data(b"early".to_vec())));
    assert!(pair.talks(id) && pair.guest.receive(ids[0]).is_some());
}

#[test]
fn the_host_kicks_and_reads_as_the_specification_says() {
    let mut rings = rings(Class::Input);
    rings.raw.host.send(rings.id, b"down".to_vec()).expect("it is free");
    assert_eq!(rings.raw.hear(), [Frame::Kick]);
    let mut pending = Vec::new();
    rings.map.watcher.take(&mut pending);
    assert_eq!(pending, [rings.id.0]);
    let mut payload = Vec::new();
    let header = rings.consumer.pop(&mut payload).expect("the host is honest").expect("a packet");
    assert_eq!((header, &payload[..]), (PacketHeader { length: 4, ..DATA }, &b"down"[..]));
    rings.raw.host.send(rings.id, b"more".to_vec()).expect("it is free");
    assert_eq!(rings.raw.hear(), [], "the guest reads, and needs no kick");
}

#[test]
fn a_message_in_the_smallest_pieces_is_taken_with_the_next_timeouts() {
    let mut rings = rings(Class::Folder);
    let limit = Class::Folder.limits().message as usize;
    let piece = |fragment| PacketHeader { length: 1, fragment, ..DATA };
    let mut sent = 0;
    let mut readable = false;
    while !readable {
        let fragment = match sent {
            0 => Fragment::First,
            sent if sent == limit - 1 => Fragment::Last,
            _ => Fragment::Middle,
        };
        if sent < limit && rings.producer.push(&piece(fragment), &[&[7]]).expect("the host is honest") == Push::Done {
            sent += 1;
            continue;
        }
        let _ = rings.producer.publish().expect("the host is honest");
        rings.kick();
        while let Some(due) = rings.raw.host.poll_timeout().filter(|due| *due <= rings.raw.now) {
            rings.raw.host.handle_timeout(due);
        }
        readable = rings.events().contains(&Event::Readable(rings.id));
    }
    assert_eq!(sent, limit);
    assert!(rings.raw.host.receive(rings.id) == Some(Message::Data(vec![7; limit])));
}
