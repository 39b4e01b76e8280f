//! Oracles for fuzz targets: each takes any bytes and panics only when an invariant is broken.
//!
//! Those of whole endpoints read their bytes as a program of what a hostile peer does (`wild.rs`).

mod guest;
mod host;
mod stream;
mod wild;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::packet::{Fragment, PacketHeader, PacketType};
use crate::region::{ARENA, Arena, GuestPage, HeapMemory, HostPage, PAGE, SharedMemory};
use crate::ring::{Consumer, MIN_DATA, Producer, RingGrant, max_payload};
use crate::wire::{Malformed, Reader};

pub use guest::fuzz_bus_guest;
pub use host::fuzz_bus_host;
pub use stream::{fuzz_bus_control, fuzz_bus_stream};

/// The bytes are what a peer does to a ring between our steps: it writes control words and data, we push, pop and
/// publish. Every packet is as long as it says and allowed, and nothing outside of the ring is touched.
///
/// # Panics
///
/// When one is not, or something is.
pub fn fuzz_bus_ring(bytes: &[u8]) {
    let memory = Arc::new(HeapMemory::new(ARENA + 2 * PAGE + MIN_DATA as usize));
    let grant = RingGrant::new(ARENA as u64, MIN_DATA, max_payload(MIN_DATA), memory.size()).expect("it fits");
    memory.write(0, &[0xA5; ARENA]);
    memory.write(ARENA + PAGE + MIN_DATA as usize, &[0xA5; PAGE]);
    let mut attacked = AttackedRing {
        producer: Producer::attach(Arc::clone(&memory), grant, 0),
        consumer: Consumer::attach(Arc::clone(&memory), grant, 0),
        memory: Arc::clone(&memory),
    };
    let mut reader = Reader::new(bytes);
    while attacked.step(&mut reader).is_ok() {}
    let mut around = vec![0; ARENA + PAGE];
    let (before, after) = around.split_at_mut(ARENA);
    memory.read(0, before);
    memory.read(ARENA + PAGE + MIN_DATA as usize, after);
    assert!(around.iter().all(|byte| *byte == 0xA5), "memory outside of the ring was written");
}

/// A page of the region is refused, or says what can be, and the same when written and read again; a ring that an offer
/// places is refused, or lies in the region.
///
/// # Panics
///
/// When it does not.
pub fn fuzz_bus_region(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    let _ = read_pages(&mut reader);
    while let (Ok(offset), Ok(size), Ok(payload)) = (reader.u64("offset"), reader.u32("size"), reader.u32("payload")) {
        const REGION: usize = 1 << 20;
        if let Ok(grant) = RingGrant::new(offset, size, payload, REGION) {
            assert!(offset >= ARENA as u64 && offset + RingGrant::bytes(size) <= REGION as u64, "a ring outside");
            assert!(grant.max_payload() <= grant.data_size() / 4, "packets that are too long");
        }
    }
}

struct AttackedRing {
    memory: Arc<HeapMemory>,
    producer: Producer<Arc<HeapMemory>>,
    consumer: Consumer<Arc<HeapMemory>>,
}

impl AttackedRing {
    /// Does what the next bytes say; an error when there are none.
    fn step(&mut self, script: &mut Reader<'_>) -> Result<(), Malformed> {
        const WORDS: [usize; 4] = [0x00, 0x04, 0x40, 0x44];
        match script.u8("step")? % 8 {
            word @ 0..4 => {
                let at = ARENA + WORDS.get(usize::from(word)).copied().unwrap_or_default();
                self.memory.store_u32(at, script.u32("word")?, Relaxed);
            }
            4 => {
                let at = usize::from(script.u16("place")?) % (MIN_DATA as usize - 256);
                let count = usize::from(script.u8("count")?);
                self.memory.write(ARENA + PAGE + at, script.bytes(count, "data")?);
            }
            5 => self.pop(),
            6 => {
                let length = script.u16("length")? % 1009;
                let txid = u64::from(script.u8("txid")?);
                let packet_type = if txid == 0 { PacketType::Data } else { PacketType::Request };
                let header = PacketHeader { length: length.into(), packet_type, fragment: Fragment::Whole, txid };
                let _ = self.producer.push(&header, &[&vec![0x5A; length.into()]]);
            }
            _ => {
                let _ = self.producer.publish();
                let _ = self.consumer.publish();
            }
        }
        Ok(())
    }

    fn pop(&mut self) {
        let mut payload = Vec::new();
        if let Ok(Some(header)) = self.consumer.pop(&mut payload) {
            assert_eq!(payload.len(), header.length as usize, "a payload of another length");
        }
        assert!(payload.len() <= max_payload(MIN_DATA) as usize, "a payload that is too long");
    }
}

/// Both pages, as they are, and with a checksum that is right: no fuzzer guesses that.
fn read_pages(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    let mut host = reader.array("host page")?;
    for _ in 0..2 {
        if let Ok(page) = HostPage::decode(&host) {
            assert_eq!(HostPage::decode(&page.encode()), Ok(page), "another page when written again");
            assert!(page.arena_offset + page.arena_size <= page.region_size, "an arena outside");
            assert!(Arena::new(page.arena_offset, page.arena_size).free() <= page.arena_size, "more than there is");
        }
        seal(&mut host);
    }
    let mut guest = reader.array("guest page")?;
    for _ in 0..2 {
        if let Ok(page) = GuestPage::decode(&guest) {
            assert_eq!(GuestPage::decode(&page.encode()), Ok(page), "another page when written again");
        }
        seal(&mut guest);
    }
    Ok(())
}

fn seal(head: &mut [u8]) {
    let (body, checksum) = head.split_at_mut(head.len() - size_of::<u32>());
    checksum.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
}
