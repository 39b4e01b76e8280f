//! Two ends in two threads, on real memory and a real processor: what models and single threads do not show, and what
//! sanitizers can look at.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use super::*;
use crate::region::Mapping;

const PACKETS: usize = 20_000;
/// The machine may be busy; only a lost wake-up takes so long.
const DEADLINE: Duration = Duration::from_secs(120);

/// Packet `number`: every length comes by.
fn payload(number: usize) -> Vec<u8> {
    let length = number * 31 % (max_payload(SIZE) as usize + 1);
    (0..length).map(|at| (number + at) as u8).collect()
}

fn kick(kick: Kick, to: &Sender<()>) {
    if kick == Kick::Needed {
        // The other end may have finished.
        let _ = to.send(());
    }
}

fn stream(memory: Arc<impl SharedMemory + 'static>) {
    let grant = RingGrant::new(ARENA as u64, SIZE, max_payload(SIZE), memory.size()).expect("fits");
    let producer = Producer::attach(Arc::clone(&memory), grant, TAG);
    let consumer = Consumer::attach(memory, grant, TAG);
    let (data, data_kicked) = channel();
    let (room, room_kicked) = channel();
    let producing = thread::spawn(move || produce(producer, &data, &room_kicked));
    consume(consumer, &room, &data_kicked);
    producing.join().expect("produced");
}

fn produce(mut producer: Producer<impl SharedMemory>, data: &Sender<()>, room: &Receiver<()>) {
    for number in 0..PACKETS {
        let payload = payload(number);
        while producer.push(&header(payload.len()), &[&payload]).expect("no fault") == Push::Full {
            kick(producer.publish().expect("no fault"), data);
            room.recv_timeout(DEADLINE).expect("kicked");
        }
        if number % 5 == 0 {
            kick(producer.publish().expect("no fault"), data);
        }
    }
    kick(producer.publish().expect("no fault"), data);
}

fn consume(mut consumer: Consumer<impl SharedMemory>, room: &Sender<()>, data: &Receiver<()>) {
    let mut found = Vec::new();
    for number in 0..PACKETS {
        found.clear();
        while consumer.pop(&mut found).expect("no fault").is_none() {
            kick(consumer.publish().expect("no fault"), room);
            data.recv_timeout(DEADLINE).expect("kicked");
        }
        assert_eq!(found, payload(number), "packet {number}");
        if number % 7 == 0 {
            kick(consumer.publish().expect("no fault"), room);
        }
    }
}

#[test]
fn packets_cross_between_threads() {
    stream(Arc::new(HeapMemory::new(ARENA + PAGE + SIZE as usize)));
}

#[test]
fn packets_cross_between_threads_in_mapped_memory() {
    stream(Arc::new(Mapping::create("test", ARENA + PAGE + SIZE as usize).expect("mapped").0));
}
