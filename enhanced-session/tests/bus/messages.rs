//! What goes over an open channel.

use std::time::Duration;

use enhanced_session::class::Class;
use enhanced_session::control::Reason;
use enhanced_session::endpoint::{ChannelId, Event, MAX_REQUESTS, SendError, Transport};
use enhanced_session::message::Message;

use crate::pair::{Pair, TRANSPORTS};

fn opened(transport: Transport, class: Class) -> (Pair, ChannelId) {
    let (mut pair, ids) = Pair::on(transport).with(&[class]);
    pair.take_host_events();
    pair.take_guest_events();
    (pair, ids[0])
}

/// A message of a folder that does not fit on its ring.
const LONGER_THAN_RING: usize = (1 << 20) + 4096;

/// Bytes that differ from place to place.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|place| u8::try_from(place * 7 % 251).expect("a byte")).collect()
}

#[test]
fn long_messages_arrive_whole() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport, Class::Clipboard);
        for length in [0, 1, 16_368, 16_384, 16_385, 65_520, 65_521, 300_000, 1 << 20] {
            let payload = pattern(length);
            pair.host.send(id, payload.clone()).expect("it is free");
            pair.guest.send(id, payload.clone()).expect("it is free");
            pair.run();
            assert!(pair.guest.receive(id) == Some(Message::Data(payload.clone())), "{length} bytes down");
            assert!(pair.host.receive(id) == Some(Message::Data(payload)), "{length} bytes up");
        }
        let limit = 1 << 20;
        assert_eq!(pair.host.send(id, vec![0; limit + 1]), Err(SendError::TooLong { length: limit + 1, limit }));
    }
}

#[test]
fn a_channel_takes_one_message_at_a_time_and_says_when_it_can_take_the_next() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport, Class::Clipboard);
        let mut sent = 0;
        // As nobody takes them, they pile up: in the window, or on the ring.
        while pair.host.send(id, vec![sent; 50_000]).is_ok() {
            sent += 1;
            pair.run();
        }
        assert!((2..10).contains(&sent), "{sent} messages");
        pair.run();
        assert_eq!(pair.take_host_events(), []);
        for number in 0..sent {
            assert!(pair.take_down(id) == Some(Message::Data(vec![number; 50_000])));
            pair.run();
        }
        assert_eq!(pair.take_down(id), None);
        assert_eq!(pair.take_host_events(), [Event::Writable(id)], "once");
        assert!(pair.talks(id));
    }
}

#[test]
fn who_asks_in_vain_whether_there_is_room_is_told_when_there_is() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport, Class::Clipboard);
        while pair.host.has_room(id) {
            pair.host.send(id, vec![0; 50_000]).expect("there is room");
            pair.run();
        }
        assert_eq!(pair.host.send(id, vec![0]), Err(SendError::Full));
        assert_eq!(pair.take_host_events(), []);
        while pair.take_down(id).is_some() {
            pair.run();
        }
        assert_eq!(pair.take_host_events(), [Event::Writable(id)], "once");
        assert!(pair.host.has_room(id));
        pair.host.close(id, Reason::Done);
        assert!(!pair.host.has_room(id), "it is not open");
    }
}

#[test]
fn who_is_not_read_holds_up_nobody_else() {
    for transport in TRANSPORTS {
        let (mut pair, ids) = Pair::on(transport).with(&[Class::Clipboard, Class::Folder, Class::Input]);
        for id in &ids[..2] {
            while pair.host.send(*id, vec![0; 100_000]).is_ok() {
                pair.run();
            }
        }
        assert!(pair.talks(ids[2]));
    }
}

#[test]
fn who_brings_much_lets_others_have_their_turn() {
    for transport in TRANSPORTS {
        let (mut pair, ids) = Pair::on(transport).with(&[Class::Folder, Class::Input]);
        let flood = |pair: &mut Pair| {
            while pair.host.send(ids[0], vec![7; 20_000]).is_ok() {
                pair.run();
            }
        };
        flood(&mut pair);
        pair.host.send(ids[1], vec![1]).expect("it is free");
        pair.transmit();
        pair.take_guest_events();
        let mut taken = 0;
        while pair.guest.receive(ids[0]).is_some() {
            taken += 1;
            flood(&mut pair);
        }
        assert_eq!(taken, 1, "a peer that is faster than its reader has no end");
        pair.run();
        assert_eq!(pair.guest.receive(ids[1]), Some(Message::Data(vec![1])));
        assert!(pair.take_guest_events().ends_with(&[Event::Readable(ids[0])]), "it has its next turn");
        assert!(pair.guest.receive(ids[0]).is_some());
    }
}

#[test]
fn a_host_has_one_frame_of_bulk_on_its_way_and_input_behind_it() {
    let (mut pair, ids) = Pair::stream().with(&[Class::Folder, Class::Input]);
    pair.host.send(ids[0], pattern(100_000)).expect("it is free");
    let mut sent = Vec::new();
    while pair.host.poll_transmit(pair.now, &mut sent) {}
    assert!((16_384..16_500).contains(&sent.len()), "{} bytes", sent.len());
    pair.host.send(ids[1], vec![1]).expect("it is free");
    while pair.host.poll_transmit(pair.now, &mut sent) {}
    assert!((16_384..16_600).contains(&sent.len()), "{} bytes", sent.len());
    pair.guest.handle_bytes(pair.now, &sent);
    assert_eq!(pair.guest.receive(ids[1]), Some(Message::Data(vec![1])));
    pair.run();
    assert!(pair.take_down(ids[0]) == Some(Message::Data(pattern(100_000))));
}

#[test]
fn readable_is_said_when_something_comes_after_there_was_nothing() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport, Class::Input);
        for number in 0..3 {
            pair.host.send(id, vec![number]).expect("it is free");
            pair.run();
        }
        assert_eq!(pair.take_guest_events(), [Event::Readable(id)]);
        for number in 0..3 {
            assert!(pair.guest.receive(id) == Some(Message::Data(vec![number])));
        }
        assert_eq!(pair.guest.receive(id), None);
        pair.host.send(id, vec![3]).expect("it is free");
        pair.run();
        assert_eq!(pair.take_guest_events(), [Event::Readable(id)]);
    }
}

#[test]
fn requests_are_completed_in_any_order() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport, Class::Folder);
        let mut txids = Vec::new();
        for number in 0..3u8 {
            txids.push(pair.host.request(id, vec![number; 40_000]).expect("it is free"));
            pair.run();
        }
        let mut asked = Vec::new();
        while let Some(message) = pair.take_down(id) {
            let Message::Request(txid, payload) = message else { panic!("not a request") };
            asked.push((txid, payload[0]));
            pair.run();
        }
        assert_eq!(asked, [(txids[0], 0), (txids[1], 1), (txids[2], 2)]);
        for (txid, number) in asked.into_iter().rev() {
            pair.guest.complete(id, txid, vec![number; 70_000]).expect("it is free");
            pair.run();
            assert!(pair.host.receive(id) == Some(Message::Completion(txid, vec![number; 70_000])));
            pair.run();
            assert_eq!(pair.guest.complete(id, txid, vec![]), Err(SendError::NoSuchRequest));
        }
    }
}

#[test]
fn only_so_many_requests_are_open_in_each_direction() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport, Class::Folder);
        for _ in 0..MAX_REQUESTS {
            pair.guest.request(id, vec![]).expect("it is free");
            pair.run();
            assert!(matches!(pair.host.receive(id), Some(Message::Request(..))));
        }
        assert_eq!(pair.guest.request(id, vec![]), Err(SendError::TooManyRequests));
        assert!(pair.host.request(id, vec![]).is_ok(), "the other direction has its own");
        assert!(pair.guest.send(id, vec![]).is_ok(), "messages go on");
        pair.guest.reset(id).expect("it is open");
        pair.run();
        assert!(pair.guest.request(id, vec![]).is_ok(), "all are forgotten");
    }
}

#[test]
fn fin_comes_after_what_was_sent_and_ends_one_direction() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport, Class::Clipboard);
        pair.host.send(id, pattern(100_000)).expect("it is free");
        while pair.host.finish(id) == Err(SendError::Full) {
            pair.step();
        }
        pair.run();
        assert!(pair.take_down(id) == Some(Message::Data(pattern(100_000))));
        pair.run();
        assert_eq!(pair.take_down(id), Some(Message::Fin));
        assert_eq!(pair.host.send(id, vec![]), Err(SendError::Finished));
        assert_eq!(pair.host.finish(id), Err(SendError::Finished));
        assert_eq!(pair.send_up(id, b"still"), Some(Message::Data(b"still".to_vec())));
    }
}

#[test]
fn reset_drops_what_is_under_way_and_begins_anew() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport, Class::Folder);
        let txid = pair.guest.request(id, vec![]).expect("it is free");
        pair.run();
        pair.host.receive(id);
        // Under way in both directions: half a message, and a completion.
        pair.guest.send(id, pattern(LONGER_THAN_RING)).expect("it is free");
        pair.host.complete(id, txid, pattern(300_000)).expect("it was asked");
        pair.transmit();
        pair.guest.reset(id).expect("it is open");
        pair.run();
        assert_eq!(pair.host.receive(id), Some(Message::Reset));
        assert_eq!(pair.host.receive(id), None);
        assert_eq!(pair.guest.receive(id), None);
        assert_eq!(pair.host.complete(id, txid, vec![]), Err(SendError::NoSuchRequest));
        assert!(pair.talks(id), "{transport:?}");
        assert!(!pair.host_events.iter().chain(&pair.guest_events).any(|event| matches!(event, Event::Faulted { .. })));
    }
}

#[test]
fn resets_at_both_ends_at_once_are_one() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport, Class::Folder);
        pair.guest.finish(id).expect("it is free");
        pair.run();
        pair.host.send(id, pattern(300_000)).expect("it is free");
        pair.step();
        pair.guest.reset(id).expect("it is open");
        pair.host.reset(id).expect("it is open");
        pair.run();
        assert_eq!((pair.host.receive(id), pair.guest.receive(id)), (None, None));
        assert!(pair.talks(id));
    }
}

#[test]
fn statistics_count_what_happened() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport, Class::Input);
        assert!(pair.talks(id));
        let statistics = pair.host.statistics();
        let channel = &statistics.channels[0];
        assert_eq!((channel.id, channel.class, channel.transport), (id, Class::Input, Some(transport)));
        assert_eq!((channel.sent.messages, channel.sent.bytes), (1, 4));
        assert_eq!((channel.received.messages, channel.received.bytes), (1, 2));
        assert_eq!(statistics.region_attached, transport == Transport::Ring);
        assert_eq!(statistics.kicks_sent > 0 && statistics.kicks_received > 0, transport == Transport::Ring);
        assert_eq!((statistics.connections, statistics.faults), (1, 0));
        assert_eq!(statistics.port.sent, pair.guest.statistics().port.received);
        assert_eq!(statistics.port.received, pair.guest.statistics().port.sent);
        assert_eq!(statistics.peer.expect("a guest").epoch, pair.guest.statistics().epoch);
    }
}

#[test]
fn quiescing_waits_for_what_was_sent_and_holds_the_rest() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport, Class::Clipboard);
        pair.guest.send(id, pattern(1000)).expect("it is free");
        pair.host.send(id, pattern(2000)).expect("it is free");
        pair.run();
        pair.take_host_events();
        pair.host.quiesce(pair.now);
        pair.pass(Duration::from_millis(100));
        assert_eq!(pair.take_host_events(), [], "the guest's message was not taken");
        pair.host.receive(id);
        pair.pass(Duration::from_millis(100));
        assert_eq!(pair.take_host_events(), [], "the host's message was not taken");
        pair.guest.receive(id);
        pair.pass(Duration::from_millis(100));
        assert_eq!(pair.take_host_events(), [Event::Quiesced { clean: true }]);
        // What is sent meanwhile waits.
        pair.guest.send(id, vec![1]).expect("it is free");
        pair.host.send(id, vec![2]).expect("it is free");
        pair.pass(Duration::from_secs(5));
        assert_eq!((pair.host.receive(id), pair.guest.receive(id)), (None, None));
        pair.host.unquiesce(pair.now);
        pair.run();
        assert!(pair.host.receive(id) == Some(Message::Data(vec![1])));
        assert!(pair.guest.receive(id) == Some(Message::Data(vec![2])));
    }
}

#[test]
fn quiescing_does_not_wait_for_ever() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport, Class::Clipboard);
        pair.guest.send(id, pattern(1000)).expect("it is free");
        pair.run();
        pair.take_host_events();
        let start = pair.now;
        pair.host.quiesce(pair.now);
        pair.pass(Duration::from_secs(1));
        assert_eq!(pair.take_host_events(), []);
        pair.pass(Duration::from_secs(1));
        assert_eq!(pair.take_host_events(), [Event::Quiesced { clean: false }]);
        assert_eq!(pair.now - start, Duration::from_secs(2));
        pair.host.unquiesce(pair.now);
        pair.run();
        assert!(pair.host.receive(id) == Some(Message::Data(pattern(1000))));
        assert!(pair.talks(id));
    }
}

#[test]
fn a_host_without_a_guest_is_quiet() {
    let mut pair = Pair::stream();
    pair.host.quiesce(pair.now);
    pair.run();
    assert_eq!(pair.take_host_events(), [Event::Quiesced { clean: true }]);
}

#[test]
fn a_guest_that_leaves_meanwhile_ends_the_wait() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport, Class::Clipboard);
        pair.guest.send(id, pattern(1000)).expect("it is free");
        pair.run();
        pair.take_host_events();
        pair.host.quiesce(pair.now);
        pair.host.handle_port_closed(pair.now);
        pair.run();
        assert!(pair.take_host_events().contains(&Event::Quiesced { clean: false }));
        // What was quiesced stays so, whoever comes.
        let mut pair = pair.connect();
        pair.host.send(id, vec![1]).expect("it is free");
        pair.run();
        assert_eq!(pair.guest.receive(id), None);
        pair.host.unquiesce(pair.now);
        pair.run();
        assert!(pair.guest.receive(id) == Some(Message::Data(vec![1])));
    }
}
