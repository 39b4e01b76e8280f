//! A peer that writes what it likes, at any time: before each of our accesses to the ring.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering::{self, Relaxed, Release};
use std::sync::{Mutex, MutexGuard};

use proptest::prelude::*;

use super::super::grant::Word;
use super::*;

/// No call touches the ring more often, whatever the peer does: it cannot make us spin.
const MOST_ACCESSES: usize = 16;

/// What the peer writes.
#[derive(Debug, Clone)]
enum Attack {
    Word(Word, u32),
    Data(u32, Vec<u8>),
}

/// Memory in which we may touch one ring only, and that changes between our accesses.
struct Hostile {
    memory: HeapMemory,
    ring: Range<usize>,
    peer: Mutex<Peer>,
}

/// What the peer still has in store.
struct Peer {
    /// Each with the number of our accesses to let pass before.
    attacks: VecDeque<(usize, Attack)>,
    accesses: usize,
}

impl Hostile {
    /// The memory, with a ring in its middle.
    fn new(attacks: Vec<(usize, Attack)>) -> (Arc<Self>, RingGrant) {
        let memory = HeapMemory::new(ARENA + PAGE + SIZE as usize + PAGE);
        let grant = RingGrant::new(ARENA as u64, SIZE, max_payload(SIZE), memory.size()).expect("fits");
        let peer = Mutex::new(Peer { attacks: attacks.into(), accesses: 0 });
        (Arc::new(Self { memory, ring: ARENA..grant.end(), peer }), grant)
    }

    fn peer(&self) -> MutexGuard<'_, Peer> {
        self.peer.lock().expect("not poisoned")
    }

    /// Accesses since the last call.
    fn accesses(&self) -> usize {
        std::mem::take(&mut self.peer().accesses)
    }

    fn access(&self, at: usize, count: usize) {
        let inside = self.ring.start <= at && at + count <= self.ring.end;
        assert!(inside, "{count} bytes at {at:#x} are not of the ring");
        let mut peer = self.peer();
        peer.accesses += 1;
        while let Some((0, attack)) = peer.attacks.pop_front_if(|(left, _)| *left == 0) {
            match attack {
                Attack::Word(word, value) => self.memory.store_u32(self.ring.start + word as usize, value, Release),
                Attack::Data(at, bytes) => self.memory.write(self.ring.start + PAGE + at as usize, &bytes),
            }
        }
        if let Some((left, _)) = peer.attacks.front_mut() {
            *left -= 1;
        }
    }
}

impl SharedMemory for Hostile {
    fn size(&self) -> usize {
        self.memory.size()
    }

    fn load_u32(&self, at: usize, ordering: Ordering) -> u32 {
        self.access(at, 4);
        self.memory.load_u32(at, ordering)
    }

    fn store_u32(&self, at: usize, value: u32, ordering: Ordering) {
        self.access(at, 4);
        self.memory.store_u32(at, value, ordering);
    }

    fn load_u64(&self, at: usize, ordering: Ordering) -> u64 {
        self.access(at, 8);
        self.memory.load_u64(at, ordering)
    }

    fn store_u64(&self, at: usize, value: u64, ordering: Ordering) {
        self.access(at, 8);
        self.memory.store_u64(at, value, ordering);
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        self.access(at, bytes.len());
        self.memory.read(at, bytes);
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        self.access(at, bytes.len());
        self.memory.write(at, bytes);
    }

    fn fence(&self) {
        self.memory.fence();
    }
}

/// Values that may pass for a counter, and any others.
fn counter() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => (0..SIZE / 4).prop_map(|eighths| eighths * 8),
        1 => 0..SIZE,
        1 => any::<u32>(),
    ]
}

/// Bytes that may pass for a header, and any others.
fn data() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![4 => 0..2 * max_payload(SIZE), 1 => any::<u32>()];
    prop_oneof![
        3 => length.prop_map(|length| PacketHeader { length, ..header(0) }.encode().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..64),
    ]
}

fn attack(words: &'static [Word]) -> impl Strategy<Value = (usize, Attack)> {
    let word = (proptest::sample::select(words), counter()).prop_map(|(word, value)| Attack::Word(word, value));
    let data = (0..SIZE / 8 - 8, data()).prop_map(|(word, bytes)| Attack::Data(word * 8, bytes));
    (0usize..6, prop_oneof![word, data])
}

fn attacks(words: &'static [Word]) -> impl Strategy<Value = Vec<(usize, Attack)>> {
    proptest::collection::vec(attack(words), 0..60)
}

const EVERY_WORD: &[Word] = &[Word::In, Word::PendingSend, Word::ProducerTag, Word::Out, Word::Mask, Word::ConsumerTag];

proptest! {
    #[test]
    fn a_consumer_takes_packets_or_reports_a_fault(
        attacks in attacks(EVERY_WORD),
        publishes in proptest::collection::vec(any::<bool>(), 1..60),
    ) {
        let (memory, grant) = Hostile::new(attacks);
        let mut consumer = Consumer::attach(Arc::clone(&memory), grant, TAG);
        let mut payload = Vec::new();
        for publish in publishes {
            let before = payload.len();
            memory.accesses();
            match consumer.pop(&mut payload) {
                Ok(Some(header)) => {
                    prop_assert!(header.length <= grant.max_payload());
                    prop_assert_eq!(payload.len() - before, header.length as usize);
                }
                Ok(None) => prop_assert_eq!(payload.len(), before),
                Err(_) => prop_assert!(payload.len() - before <= grant.max_payload() as usize),
            }
            if publish {
                let _ = consumer.publish();
            }
            prop_assert!(memory.accesses() <= MOST_ACCESSES);
        }
    }

    #[test]
    fn a_producer_finds_room_or_reports_a_fault(
        attacks in attacks(EVERY_WORD),
        pushes in proptest::collection::vec((0..=max_payload(SIZE), any::<bool>()), 1..60),
    ) {
        let (memory, grant) = Hostile::new(attacks);
        let mut producer = Producer::attach(Arc::clone(&memory), grant, TAG);
        for (length, publish) in pushes {
            let payload = vec![7; length as usize];
            memory.accesses();
            let _ = producer.push(&header(payload.len()), &[&payload]);
            if publish {
                let _ = producer.publish();
                let _ = producer.is_taken();
            }
            prop_assert!(memory.accesses() <= MOST_ACCESSES + 4);
        }
    }

    /// The peer publishes real packets, and changes them while they are copied: what comes out is as long as it says.
    #[test]
    fn a_packet_that_changes_under_the_copy_keeps_its_length(
        attacks in attacks(&[Word::PendingSend, Word::Mask]),
        lengths in proptest::collection::vec(0..=max_payload(SIZE), 1..20),
    ) {
        let (memory, grant) = Hostile::new(attacks);
        let mut consumer = Consumer::attach(Arc::clone(&memory), grant, TAG);
        let mut written = 0u32;
        for length in lengths {
            let (at, until_end) = grant.place(written);
            let header = PacketHeader { length, ..header(0) }.encode();
            memory.memory.write(at, &header[..header.len().min(until_end)]);
            written = written.wrapping_add(packet_size(length));
            memory.memory.store_u32(grant.word(Word::In), written, Release);
            let mut payload = Vec::new();
            match consumer.pop(&mut payload) {
                Ok(Some(header)) => prop_assert_eq!(payload.len(), header.length as usize),
                Ok(None) => prop_assert!(false, "a packet was published"),
                // It changed the header before it was copied.
                Err(_) => return Ok(()),
            }
            let _ = consumer.publish();
            prop_assert!(memory.memory.load_u32(grant.word(Word::Out), Relaxed) <= written);
        }
    }
}
