//! Rings in one process.

mod adversary;
mod models;
mod random;
mod threads;

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};

use super::grant::{Word, packet_size};
use super::*;
use crate::packet::{Fragment, PacketHeader, PacketType};
use crate::region::{ARENA, HeapMemory, PAGE, SharedMemory};

type Memory = Arc<HeapMemory>;

const TAG: u32 = 0x1234;
const SIZE: u32 = 4096;

/// A ring and both of its ends.
struct Ring {
    memory: Memory,
    grant: RingGrant,
    producer: Producer<Memory>,
    consumer: Consumer<Memory>,
}

impl Ring {
    fn new() -> Self {
        let memory = Arc::new(HeapMemory::new(ARENA + PAGE + SIZE as usize));
        let grant = RingGrant::new(ARENA as u64, SIZE, max_payload(SIZE), memory.size()).expect("fits");
        let producer = Producer::attach(Arc::clone(&memory), grant, TAG);
        let consumer = Consumer::attach(Arc::clone(&memory), grant, TAG);
        Self { memory, grant, producer, consumer }
    }

    fn push(&mut self, payload: &[u8]) -> Push {
        self.producer.push(&header(payload.len()), &[payload]).expect("no fault")
    }

    fn send(&mut self, payload: &[u8]) -> Kick {
        assert_eq!(self.push(payload), Push::Done);
        self.producer.publish().expect("no fault")
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let mut payload = Vec::new();
        let header = self.consumer.pop(&mut payload).expect("no fault")?;
        assert_eq!(header, self::header(payload.len()));
        Some(payload)
    }

    fn give_back(&mut self) -> Kick {
        self.consumer.publish().expect("no fault")
    }

    fn word(&self, word: Word) -> u32 {
        self.memory.load_u32(self.grant.word(word), Acquire)
    }

    fn set(&self, word: Word, value: u32) {
        self.memory.store_u32(self.grant.word(word), value, Release);
    }

    /// Puts bytes where the peer's next packet is looked for, and says that they are there.
    fn forge(&self, bytes: &[u8]) {
        self.memory.write(self.grant.place(0).0, bytes);
        self.set(Word::In, u32::try_from(bytes.len()).expect("short"));
    }

    fn pop_fault(&mut self) -> RingFault {
        let mut payload = Vec::new();
        let fault = self.consumer.pop(&mut payload).expect_err("a fault");
        assert!(payload.is_empty());
        fault
    }
}

fn header(length: usize) -> PacketHeader {
    let length = u32::try_from(length).expect("short");
    PacketHeader { length, packet_type: PacketType::Data, fragment: Fragment::Whole, txid: 0 }
}

#[test]
fn packets_come_out_as_they_went_in() {
    let mut ring = Ring::new();
    assert_eq!(ring.push(b"first"), Push::Done);
    assert_eq!(ring.push(b""), Push::Done);
    assert_eq!(ring.pop(), None, "not published");
    assert_eq!(ring.producer.publish(), Ok(Kick::Needed));
    assert_eq!(ring.pop().as_deref(), Some(&b"first"[..]));
    assert_eq!(ring.pop().as_deref(), Some(&b""[..]));
    assert_eq!(ring.pop(), None);
}

#[test]
fn the_parts_of_a_payload_are_put_together_and_padded() {
    let mut ring = Ring::new();
    ring.memory.write(ring.grant.place(0).0, &[0xff; 32]);
    assert_eq!(ring.producer.push(&header(9), &[b"one", b"", b"two", b"333"]), Ok(Push::Done));
    assert_eq!(ring.producer.publish(), Ok(Kick::Needed));
    let mut bytes = [0; 32];
    ring.memory.read(ring.grant.place(0).0, &mut bytes);
    assert_eq!(&bytes[16..], b"onetwo333\0\0\0\0\0\0\0");
    assert_eq!(ring.pop().as_deref(), Some(&b"onetwo333"[..]));
}

#[test]
fn pieces_of_a_message_come_together() {
    let mut ring = Ring::new();
    let piece = |length, fragment| PacketHeader { fragment, ..header(length) };
    assert_eq!(ring.producer.push(&piece(3, Fragment::First), &[b"abc"]), Ok(Push::Done));
    assert_eq!(ring.producer.push(&piece(2, Fragment::Last), &[b"de"]), Ok(Push::Done));
    assert_eq!(ring.producer.publish(), Ok(Kick::Needed));
    let mut message = Vec::new();
    assert_eq!(ring.consumer.pop(&mut message), Ok(Some(piece(3, Fragment::First))));
    assert_eq!(ring.consumer.pop(&mut message), Ok(Some(piece(2, Fragment::Last))));
    assert_eq!(message, b"abcde");
}

#[test]
fn words_lie_where_the_specification_says() {
    let mut ring = Ring::new();
    let _ = ring.send(b"12345");
    let word = |at| ring.memory.load_u32(ARENA + at, Acquire);
    assert_eq!((word(0), word(8), word(0x48)), (24, TAG, TAG));
    assert_eq!(word(PAGE), 5);
    let mut payload = Vec::new();
    assert!(ring.consumer.pop(&mut payload).expect("no fault").is_some());
    let word = |at| ring.memory.load_u32(ARENA + at, Acquire);
    assert_eq!((word(0x40), word(0x44)), (0, 1), "not given back, and masked");
    assert_eq!(ring.pop(), None);
    let word = |at| ring.memory.load_u32(ARENA + at, Acquire);
    assert_eq!((word(0x40), word(0x44)), (24, 0));
}

#[test]
fn a_consumer_that_sleeps_is_kicked_once() {
    let mut ring = Ring::new();
    assert_eq!(ring.send(b"a"), Kick::Needed);
    assert_eq!(ring.send(b"b"), Kick::NotNeeded, "the first kick is on its way");
    assert_eq!(ring.producer.publish(), Ok(Kick::NotNeeded), "there was nothing to publish");
    assert!(ring.pop().is_some());
    assert_eq!(ring.send(b"c"), Kick::NotNeeded, "it is awake");
    while ring.pop().is_some() {}
    assert_eq!(ring.send(b"d"), Kick::Needed);
}

#[test]
fn a_full_ring_asks_for_the_room_it_needs() {
    let mut ring = Ring::new();
    let payload = vec![7; max_payload(SIZE) as usize];
    for _ in 0..4 {
        assert_eq!(ring.push(&payload), Push::Done);
    }
    assert_eq!(ring.push(&payload), Push::Full);
    assert_eq!(ring.word(Word::PendingSend), SIZE / 4);
    assert_eq!(ring.word(Word::In), SIZE, "what was pushed is published: the consumer counts from it");
    assert_eq!(ring.producer.publish(), Ok(Kick::Needed), "and that must be told");

    assert!(ring.pop().is_some());
    assert_eq!(ring.word(Word::Out), 0, "room is given back in larger pieces");
    assert!(ring.pop().is_some());
    assert_eq!(ring.word(Word::Out), SIZE / 2, "half of the ring");
    assert_eq!(ring.give_back(), Kick::Needed);
    assert_eq!(ring.give_back(), Kick::NotNeeded);
    assert!(ring.pop().is_some());
    assert_eq!(ring.give_back(), Kick::NotNeeded, "it had enough before");

    assert_eq!(ring.push(&payload), Push::Done);
    assert_eq!(ring.word(Word::PendingSend), 0);
}

#[test]
fn room_that_is_just_enough_is_worth_a_kick() {
    let mut ring = Ring::new();
    let payload = vec![7; max_payload(SIZE) as usize];
    while ring.push(&payload) == Push::Done {}
    assert!(ring.pop().is_some());
    assert_eq!(ring.give_back(), Kick::Needed);
    assert_eq!(ring.push(&payload), Push::Done);
}

#[test]
fn room_that_came_meanwhile_is_taken_without_waiting() {
    let mut ring = Ring::new();
    let payload = vec![7; max_payload(SIZE) as usize];
    for _ in 0..4 {
        assert_eq!(ring.send(&payload), if ring.word(Word::In) == SIZE / 4 { Kick::Needed } else { Kick::NotNeeded });
    }
    while ring.pop().is_some() {}
    assert_eq!(ring.push(&payload), Push::Done);
    assert_eq!(ring.word(Word::PendingSend), 0);
}

#[test]
fn a_consumer_that_stops_early_gives_back_what_it_took() {
    let mut ring = Ring::new();
    let _ = ring.send(b"a");
    let _ = ring.send(b"b");
    assert!(ring.pop().is_some());
    assert_eq!(ring.give_back(), Kick::NotNeeded);
    assert_eq!((ring.word(Word::Out), ring.word(Word::Mask)), (24, 1), "it comes back by itself");
    assert_eq!(ring.producer.is_taken(), Ok(false));
    while ring.pop().is_some() {}
    assert_eq!(ring.producer.is_taken(), Ok(true));
}

#[test]
fn ends_of_different_openings_do_not_match() {
    let ring = Ring::new();
    assert!(ring.producer.peer_tag_matches() && ring.consumer.peer_tag_matches());
    let late = Producer::attach(Arc::clone(&ring.memory), ring.grant, TAG + 1);
    assert!(!late.peer_tag_matches() && !ring.consumer.peer_tag_matches());
}

#[test]
fn an_in_that_cannot_be_is_a_fault() {
    for value in [4, SIZE + 8, u32::MAX - 7] {
        let mut ring = Ring::new();
        ring.set(Word::In, value);
        let fault = ring.pop_fault();
        assert!(matches!(fault, RingFault::Unaligned { counter: "in", .. } | RingFault::Counter { counter: "in", .. }));
    }
    let mut ring = Ring::new();
    let _ = ring.send(b"a");
    let _ = ring.send(b"b");
    assert!(ring.pop().is_some());
    ring.set(Word::In, 24);
    assert!(ring.pop().is_some(), "what was seen before is taken");
    let fault = ring.pop_fault();
    assert_eq!(fault, RingFault::Counter { counter: "in", value: 24, seen: 48, limit: SIZE - 48 });
    assert_eq!(fault.to_string(), "`in` went from 0x30 to 0x18, and can go by 0xfd0 at most");
}

#[test]
fn an_out_that_cannot_be_is_a_fault() {
    for value in [4, 40, u32::MAX - 7] {
        let mut ring = Ring::new();
        assert_eq!(ring.send(b""), Kick::Needed);
        ring.set(Word::Out, value);
        let fault = ring.producer.is_taken().expect_err("a fault");
        assert!(matches!(
            fault,
            RingFault::Unaligned { counter: "out", .. } | RingFault::Counter { counter: "out", .. }
        ));
        assert_eq!(ring.push(b""), Push::Done, "there was room before");
        assert!(ring.producer.publish().is_err());
    }
    let mut ring = Ring::new();
    let _ = ring.send(b"");
    ring.set(Word::Out, 16);
    assert_eq!(ring.producer.is_taken(), Ok(true));
    ring.set(Word::Out, 8);
    assert!(ring.producer.is_taken().is_err(), "it went back");
}

#[test]
fn a_forged_packet_is_a_fault() {
    let packet = |header: PacketHeader, more: usize| [&header.encode()[..], &vec![0; more]].concat();
    let cases = [
        (vec![0; 8], RingFault::Cut { length: 16, available: 8 }),
        (packet(header(9), 8), RingFault::Cut { length: 32, available: 24 }),
        (packet(header(1009), 1016), RingFault::TooLong { length: 1009, limit: 1008 }),
        (packet(header(u32::MAX as usize), 8), RingFault::TooLong { length: u32::MAX, limit: 1008 }),
        (vec![0; 16], RingFault::Header(Malformed::Value { what: "packet type", value: 0 })),
    ];
    for (bytes, expected) in cases {
        let mut ring = Ring::new();
        ring.forge(&bytes);
        assert_eq!(ring.pop_fault(), expected);
    }
}

#[test]
fn a_producer_that_asks_for_the_impossible_is_never_kicked() {
    let mut ring = Ring::new();
    ring.forge(&header(0).encode());
    ring.set(Word::PendingSend, u32::MAX);
    assert!(ring.pop().is_some());
    assert_eq!(ring.pop(), None);
    assert_eq!(ring.give_back(), Kick::NotNeeded);
}

#[test]
#[should_panic(expected = "a packet of 1009 bytes is cut before it is pushed")]
fn a_payload_that_is_too_long_is_our_mistake() {
    let _ = Ring::new().push(&[0; 1009]);
}

#[test]
fn a_payload_may_wrap_and_so_may_a_header() {
    let mut ring = Ring::new();
    // 24 does not divide the ring: every way of wrapping comes by.
    for round in 0..3 * SIZE / packet_size(8) {
        let payload = u64::from(round).to_le_bytes();
        let _ = ring.send(&payload);
        assert_eq!(ring.pop().as_deref(), Some(&payload[..]));
        assert_eq!(ring.give_back(), Kick::NotNeeded);
    }
}
