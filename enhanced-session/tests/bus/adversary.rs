//! Peers that do anything, and damage on the way.

use std::time::Duration;

use enhanced_session::class::Class;
use enhanced_session::endpoint::{ChannelId, Preference, Transport};
use enhanced_session::fuzz_oracle;
use enhanced_session::message::Message;
use enhanced_session::region::SharedMemory as _;
use proptest::prelude::*;

use crate::pair::{Habit, Pair, REGION};

/// Bytes of shared memory in which things happen: the head, and the rings of the first channels.
const BUSY_MEMORY: usize = 0x4000 + 0x2_0000;

fn program() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..1500)
}

#[derive(Debug, Clone)]
enum Damage {
    ToGuest(usize, u8),
    ToHost(usize, u8),
    Memory(usize, u32),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        1 => (any::<usize>(), 1u8..).prop_map(|(place, value)| Damage::ToGuest(place, value)),
        1 => (any::<usize>(), 1u8..).prop_map(|(place, value)| Damage::ToHost(place, value)),
        4 => (0..BUSY_MEMORY / 4, any::<u32>()).prop_map(|(place, value)| Damage::Memory(place * 4, value)),
        // Values that could be.
        4 => (0..BUSY_MEMORY / 4, 0u32..20).prop_map(|(place, value)| Damage::Memory(place * 4, value * 8)),
    ]
}

/// Sends whatever there is room for, and takes whatever has come.
fn talk(pair: &mut Pair, ids: &[ChannelId], round: usize) {
    for id in ids {
        while pair.host.receive(*id).is_some() {}
        while pair.guest.receive(*id).is_some() {}
        pair.host.send(*id, vec![1; round % 4000]).ok();
        pair.guest.request(*id, vec![2; round % 4000]).ok();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_host_withstands_any_guest(program in program()) {
        fuzz_oracle::fuzz_bus_host(&program);
    }

    #[test]
    fn a_guest_withstands_any_host(program in program()) {
        fuzz_oracle::fuzz_bus_guest(&program);
    }

    #[test]
    fn control_messages_and_streams_of_any_bytes(bytes in program()) {
        fuzz_oracle::fuzz_bus_control(&bytes);
        fuzz_oracle::fuzz_bus_stream(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Bytes are changed on the port and in the shared memory. Once that ends, both ends are as before.
    #[test]
    fn damage_is_overcome(is_ring in any::<bool>(), damages in proptest::collection::vec(damage(), 0..60)) {
        let (transport, preference) = match is_ring {
            true => (Transport::Ring, Preference::Ring),
            false => (Transport::Stream, Preference::Stream),
        };
        let mut pair = Pair::on(transport);
        pair.habit = Habit::Reopens(preference);
        let (mut pair, mut ids) = pair.with(&[Class::Input, Class::Heartbeat]);
        for (round, damage) in damages.into_iter().enumerate() {
            talk(&mut pair, &ids, 97 * round);
            pair.transmit();
            match damage {
                Damage::ToGuest(place, value) => drop(pair.to_guest.damage(place, value)),
                Damage::ToHost(place, value) => drop(pair.to_host.damage(place, value)),
                Damage::Memory(place, value) => {
                    if let Some(memory) = &pair.memory {
                        assert!(place < REGION);
                        memory.store_u32(place, value, std::sync::atomic::Ordering::Relaxed);
                    }
                }
            }
            pair.pass(Duration::from_millis(300));
        }
        // The longest rest, and what it takes to find each other.
        pair.pass(Duration::from_secs(330));
        ids = pair.host.statistics().channels.iter().map(|channel| channel.id).collect();
        prop_assert_eq!(ids.len(), 2);
        for id in ids {
            // What the damage left under way.
            pair.host.reset(id).expect("it is open");
            for _ in 0..300 {
                let _ = (pair.host.receive(id), pair.guest.receive(id));
                pair.run();
            }
            pair.pass(Duration::from_secs(20));
            pair.host.send(id, b"down".to_vec()).expect("it is free");
            pair.guest.send(id, b"up".to_vec()).expect("it is free");
            // A word that was written over may keep the other end from kicking; a ping helps.
            pair.pass(Duration::from_secs(20));
            prop_assert_eq!(pair.guest.receive(id), Some(Message::Data(b"down".to_vec())));
            prop_assert_eq!(pair.host.receive(id), Some(Message::Data(b"up".to_vec())));
        }
    }
}
