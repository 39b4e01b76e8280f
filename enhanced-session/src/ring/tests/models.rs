//! Every interleaving of two ends, and every value that a load may return under Rust's memory model.
//!
//! A kick is a message on a channel, and who has nothing to do waits for one: a lost wake-up is a deadlock, which loom
//! reports. The rings are as small as they can be, for there must be few steps.
//!
//! What loom cannot see: a load that returns what is stored after it in time. So nothing here shows that `out` needs its
//! release.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

use loom::model::Builder;
use loom::sync::atomic::{AtomicU32, AtomicU64, fence};
use loom::sync::mpsc::{Receiver, Sender, channel};
use loom::thread;

use super::super::grant::RingGrant;
use super::super::{Consumer, Kick, Producer, Push, Raiser, RingFault, Watcher};
use super::header;
use crate::region::{ARENA, Direction, PAGE, SharedMemory};

/// Two packets with a payload of one word fit, and the third wraps.
const SIZE: u32 = 64;
const DIRECTION: Direction = Direction::HostToGuest;
const CHANNEL: u32 = 1;
/// How often a run may switch between threads that could both go on. Two find every flaw below; three take a minute
/// without optimisation.
const PREEMPTIONS: usize = if cfg!(debug_assertions) { 2 } else { 3 };

/// Memory whose accesses loom decides on; there are only the words that the models use.
struct LoomMemory {
    words: BTreeMap<usize, AtomicU32>,
    double_words: BTreeMap<usize, AtomicU64>,
}

/// One end's view of it, and what this end does wrong.
struct View(Arc<LoomMemory>, Flaw);

/// A mistake that the models must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// The fences are left out.
    NoFence,
    /// Words are not stored with release.
    NoRelease,
    /// Words are not loaded with acquire.
    NoAcquire,
}

/// What producer and consumer do wrong.
type Flaws = (Flaw, Flaw);

const SOUND: Flaws = (Flaw::None, Flaw::None);

/// Two views of the same memory.
fn memory((producer, consumer): Flaws) -> (View, View) {
    let control = [0x00, 0x04, 0x08, 0x40, 0x44, 0x48].map(|at| (ARENA + at, AtomicU32::new(0)));
    let data = (ARENA + PAGE..ARENA + PAGE + SIZE as usize).step_by(8);
    let map = [DIRECTION.raised(), DIRECTION.seen()];
    let double_words = data.chain(map).map(|at| (at, AtomicU64::new(0))).collect();
    let memory = Arc::new(LoomMemory { words: control.into(), double_words });
    (View(Arc::clone(&memory), producer), View(memory, consumer))
}

impl SharedMemory for View {
    fn size(&self) -> usize {
        ARENA + PAGE + SIZE as usize
    }

    fn load_u32(&self, at: usize, ordering: Ordering) -> u32 {
        self.0.words[&at].load(self.load(ordering))
    }

    fn store_u32(&self, at: usize, value: u32, ordering: Ordering) {
        self.0.words[&at].store(value, self.store(ordering));
    }

    fn load_u64(&self, at: usize, ordering: Ordering) -> u64 {
        self.0.double_words[&at].load(self.load(ordering))
    }

    fn store_u64(&self, at: usize, value: u64, ordering: Ordering) {
        self.0.double_words[&at].store(value, self.store(ordering));
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        for (at, bytes) in (at..).step_by(8).zip(bytes.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&self.load_u64(at, Relaxed).to_le_bytes());
        }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        for (at, bytes) in (at..).step_by(8).zip(bytes.chunks_exact(8)) {
            self.store_u64(at, u64::from_le_bytes(bytes.try_into().expect("8 bytes")), Relaxed);
        }
    }

    fn fence(&self) {
        if self.1 != Flaw::NoFence {
            fence(Ordering::SeqCst);
        }
    }
}

impl View {
    fn load(&self, ordering: Ordering) -> Ordering {
        if self.1 == Flaw::NoAcquire { Relaxed } else { ordering }
    }

    fn store(&self, ordering: Ordering) -> Ordering {
        if self.1 == Flaw::NoRelease { Relaxed } else { ordering }
    }
}

/// Both ends of a ring, and kicks both ways.
struct Ends {
    producer: Producer<View>,
    consumer: Consumer<View>,
    data: (Sender<()>, Receiver<()>),
    room: (Sender<()>, Receiver<()>),
}

impl Ends {
    fn new(flaws: Flaws) -> Self {
        let (first, second) = memory(flaws);
        let grant = RingGrant::tiny(ARENA, SIZE, 8);
        let producer = Producer::attach(first, grant, 0);
        let consumer = Consumer::attach(second, grant, 0);
        Self { producer, consumer, data: channel(), room: channel() }
    }
}

/// The payload of packet `number`, which no other word in the ring equals.
fn payload(number: u64) -> [u8; 8] {
    (0x0101_0101_0101_0101 * number).to_le_bytes()
}

/// Takes packet `number` if it is there. Its bytes must be those that were published.
fn pop(consumer: &mut Consumer<impl SharedMemory>, number: u64) -> bool {
    let mut bytes = Vec::new();
    let found = consumer.pop(&mut bytes).expect("no fault");
    if found.is_some() {
        assert_eq!((found, bytes), (Some(header(8)), payload(number).to_vec()), "bytes that were not published");
    }
    found.is_some()
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_branches = 5000;
    builder.check(model);
}

/// Packets that all fit: the consumer sleeps whenever there is nothing, and must notice each.
fn data_wakes(flaws: Flaws) {
    let mut ends = Ends::new(flaws);
    let producing = thread::spawn(move || {
        for number in [1, 2] {
            assert_eq!(ends.producer.push(&header(8), &[&payload(number)]), Ok(Push::Done));
            kick_if_needed(ends.producer.publish(), &ends.data.0);
        }
    });
    for number in [1, 2] {
        while !pop(&mut ends.consumer, number) {
            ends.data.1.recv().expect("a kick");
        }
    }
    producing.join().expect("done");
}

/// When an end publishes: as late as it may, or after each packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Publish {
    Late,
    Each,
}

/// One packet more than fits: each end sleeps for the other.
fn room_wakes(flaws: Flaws, (producer, consumer): (Publish, Publish)) {
    let mut ends = Ends::new(flaws);
    let producing = thread::spawn(move || {
        for number in [1, 2, 3] {
            while ends.producer.push(&header(8), &[&payload(number)]) == Ok(Push::Full) {
                kick_if_needed(ends.producer.publish(), &ends.data.0);
                ends.room.1.recv().expect("a kick");
            }
            if producer == Publish::Each || number == 3 {
                kick_if_needed(ends.producer.publish(), &ends.data.0);
            }
        }
        // Kicks may come until the other end has finished.
        ends.room.1
    });
    for number in [1, 2, 3] {
        while !pop(&mut ends.consumer, number) {
            kick_if_needed(ends.consumer.publish(), &ends.room.0);
            ends.data.1.recv().expect("a kick");
        }
        if consumer == Publish::Each {
            kick_if_needed(ends.consumer.publish(), &ends.room.0);
        }
    }
    producing.join().expect("done");
}

/// The pending map alone: after the last of several values was stored, the watcher is woken and finds it.
fn map_wakes(flaws: Flaws) {
    const LAST: u32 = 3;
    let (first, second) = memory(flaws);
    let (sender, receiver) = (Arc::new(first), Arc::new(second));
    let mut raiser = Raiser::attach(Arc::clone(&sender), DIRECTION, CHANNEL + 1);
    let mut watcher = Watcher::attach(Arc::clone(&receiver), DIRECTION, CHANNEL + 1);
    let (kick, kicked) = channel();
    let raising = thread::spawn(move || {
        for value in 1..=LAST {
            sender.store_u32(ARENA, value, Release);
            sender.fence();
            if raiser.raise(CHANNEL) {
                kick.send(()).expect("heard");
            }
        }
    });
    let mut pending = Vec::new();
    while receiver.load_u32(ARENA, Acquire) != LAST {
        kicked.recv().expect("a kick");
        watcher.take(&mut pending);
    }
    assert!(pending.iter().all(|channel| *channel == CHANNEL));
    raising.join().expect("done");
}

/// A ring whose kicks go through the map, as they do on the bus: only a channel that is pending is looked at.
fn map_and_ring_wake(flaws: Flaws) {
    let (first, second) = memory(flaws);
    let (first, second) = (Arc::new(first), Arc::new(second));
    let grant = RingGrant::tiny(ARENA, SIZE, 8);
    let mut producer = Producer::attach(Arc::clone(&first), grant, 0);
    let mut consumer = Consumer::attach(Arc::clone(&second), grant, 0);
    let mut raiser = Raiser::attach(first, DIRECTION, CHANNEL + 1);
    let mut watcher = Watcher::attach(second, DIRECTION, CHANNEL + 1);
    let (kick, kicked) = channel();
    let producing = thread::spawn(move || {
        for number in [1, 2] {
            assert_eq!(producer.push(&header(8), &[&payload(number)]), Ok(Push::Done));
            if producer.publish() == Ok(Kick::Needed) && raiser.raise(CHANNEL) {
                kick.send(()).expect("heard");
            }
        }
    });
    let mut next = 1;
    while next <= 2 {
        kicked.recv().expect("a kick");
        let mut pending = Vec::new();
        watcher.take(&mut pending);
        if pending == [CHANNEL] {
            while next <= 2 && pop(&mut consumer, next) {
                next += 1;
            }
        }
    }
    producing.join().expect("done");
}

fn kick_if_needed(kick: Result<Kick, RingFault>, to: &Sender<()>) {
    if kick.expect("no fault") == Kick::Needed {
        // The other end may have finished.
        let _ = to.send(());
    }
}

#[test]
fn published_packets_are_noticed() {
    check(|| data_wakes(SOUND));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_producer_without_fences_does_not_kick_who_sleeps() {
    check(|| data_wakes((Flaw::NoFence, Flaw::None)));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_consumer_without_fences_sleeps_too_long() {
    check(|| data_wakes((Flaw::None, Flaw::NoFence)));
}

#[test]
#[should_panic(expected = "no fault")]
fn without_release_a_packet_is_read_before_it_is_there() {
    check(|| data_wakes((Flaw::NoRelease, Flaw::None)));
}

#[test]
#[should_panic(expected = "no fault")]
fn without_acquire_a_packet_is_read_before_it_is_there() {
    check(|| data_wakes((Flaw::None, Flaw::NoAcquire)));
}

#[test]
fn room_is_noticed_however_often_the_ends_publish() {
    use Publish::{Each, Late};
    for habits in [(Late, Late), (Late, Each), (Each, Late), (Each, Each)] {
        check(move || room_wakes(SOUND, habits));
    }
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_producer_without_fences_waits_for_room_too_long() {
    check(|| room_wakes((Flaw::NoFence, Flaw::None), (Publish::Late, Publish::Late)));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_consumer_without_fences_does_not_kick_who_waits() {
    check(|| room_wakes((Flaw::None, Flaw::NoFence), (Publish::Late, Publish::Late)));
}

#[test]
fn a_raised_channel_is_noticed() {
    check(|| map_wakes(SOUND));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_raiser_without_fences_takes_an_old_kick_for_enough() {
    check(|| map_wakes((Flaw::NoFence, Flaw::None)));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_watcher_without_fences_looks_too_early() {
    check(|| map_wakes((Flaw::None, Flaw::NoFence)));
}

#[test]
fn packets_are_noticed_through_the_map() {
    check(|| map_and_ring_wake(SOUND));
}
