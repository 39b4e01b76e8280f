//! How the two ends find and lose each other.

use std::sync::Arc;
use std::time::Duration;

use enhanced_session::class::Class;
use enhanced_session::control::{
    ContactStatus, ControlMessage, ErrorCode, Features, OfferFlags, Reason, TransportCode,
};
use enhanced_session::endpoint::{AttachError, Disconnect, Event, Preference, Transport};
use enhanced_session::region::HeapMemory;
use enhanced_session::stream::{Frame, SyncBody};

use crate::pair::{Habit, Pair, REGION, TRANSPORTS};
use crate::raw::{Raw, contact};

#[test]
fn two_ends_connect_and_talk() {
    for transport in TRANSPORTS {
        let (mut pair, ids) = Pair::on(transport).with(&[Class::Input, Class::Clipboard]);
        for id in ids {
            let opened = Event::Opened { id, transport };
            assert!(pair.host_events.contains(&opened) && pair.guest_events.contains(&opened));
            assert!(pair.talks(id));
        }
    }
}

#[test]
fn each_end_hears_who_the_other_is() {
    let (pair, _) = Pair::stream().with(&[]);
    let guest = pair.host.peer().expect("a guest");
    let agent = guest.agent.as_ref().expect("an agent");
    assert_eq!((agent.name.as_str(), agent.version.to_string().as_str()), ("test agent", "1.2.3"));
    assert_eq!(guest.features, Features::SUBCHANNELS.or(Features::PAUSE), "no surfaces without shared memory");
    let host = pair.guest.peer().expect("a host");
    assert_eq!((host.features, &host.agent), (guest.features, &None));
    assert_eq!(pair.host.statistics().epoch, host.epoch);
    assert_eq!(pair.guest.statistics().epoch, guest.epoch);
}

#[test]
fn pieces_and_latency_do_not_matter() {
    for transport in TRANSPORTS {
        let mut pair = Pair::on(transport);
        (pair.piece, pair.latency) = (1, Duration::from_millis(30));
        let (mut pair, ids) = pair.with(&[Class::Input]);
        assert!(pair.talks(ids[0]));
    }
}

#[test]
fn either_end_may_start_first() {
    let mut pair = Pair::stream();
    let id = pair.offer(Class::Input);
    pair.guest.handle_port_opened(pair.now);
    // The host's port is closed: what the guest says meanwhile is lost.
    pair.pass(Duration::from_secs(5));
    pair.to_host.clear();
    pair.host.handle_port_opened(pair.now);
    pair.pass(Duration::from_secs(1));
    assert!(pair.talks(id));

    let mut pair = Pair::stream();
    let id = pair.offer(Class::Input);
    pair.host.handle_port_opened(pair.now);
    pair.run();
    pair.to_guest.clear();
    pair.guest.handle_port_opened(pair.now);
    pair.run();
    assert!(pair.talks(id));
}

#[test]
fn a_new_agent_takes_the_place_of_one_that_died() {
    for transport in TRANSPORTS {
        let (mut pair, ids) = Pair::on(transport).with(&[Class::Input]);
        pair.take_host_events();
        pair.restart_guest();
        pair.run();
        let events = pair.take_host_events();
        assert_eq!(events[0], Event::Closed { id: ids[0], reason: Reason::ServiceGone });
        assert_eq!(events[1], Event::Disconnected(Disconnect::PeerRestarted));
        assert!(matches!(events[2], Event::Connected(_)));
        assert!(pair.talks(ids[0]));
    }
}

#[test]
fn a_new_gateway_takes_the_place_of_one_that_died() {
    for transport in TRANSPORTS {
        let (mut pair, _) = Pair::on(transport).with(&[Class::Input]);
        pair.take_guest_events();
        pair.restart_host();
        let id = pair.offer(Class::Input);
        pair.run();
        assert!(pair.take_guest_events().contains(&Event::Disconnected(Disconnect::PeerRestarted)));
        assert!(pair.talks(id));
    }
}

#[test]
fn an_agent_that_dies_within_a_frame_is_found_silent_and_its_successor_heard() {
    let (mut pair, ids) = Pair::stream().with(&[Class::Clipboard]);
    pair.guest.send(ids[0], vec![7; 10_000]).expect("it is free");
    pair.transmit();
    pair.to_host.cut(5000);
    pair.restart_guest();
    pair.run();
    assert!(pair.host.peer().is_some(), "what comes is taken for the rest of the frame");
    pair.pass(Duration::from_secs(10));
    assert!(pair.take_host_events().contains(&Event::Disconnected(Disconnect::Silent)));
    assert!(pair.talks(ids[0]));
}

#[test]
fn a_gateway_that_dies_within_a_frame_is_found_silent_and_its_successor_heard() {
    let (mut pair, ids) = Pair::stream().with(&[Class::Clipboard]);
    pair.host.send(ids[0], vec![7; 10_000]).expect("it is free");
    pair.transmit();
    pair.to_guest.cut(5000);
    pair.restart_host();
    let id = pair.offer(Class::Clipboard);
    pair.pass(Duration::from_secs(10));
    assert!(pair.take_guest_events().contains(&Event::Disconnected(Disconnect::Silent)));
    assert!(pair.talks(id));
}

#[test]
fn a_guest_without_shared_memory_goes_over_the_stream() {
    let mut pair = Pair::rings();
    pair.habit = Habit::Nothing;
    let (mut pair, ids) = pair.with(&[Class::Input]);
    assert!(matches!(pair.guest_events[..], [Event::Connected(_), Event::RegionOffered(_)]));
    pair.guest.decline();
    pair.run();
    assert!(matches!(pair.guest_events[2], Event::Offered(offer) if offer.id == ids[0] && !offer.has_rings));
    pair.guest.open(ids[0], Preference::Ring).expect("it is offered");
    pair.run();
    assert!(pair.guest_events.contains(&Event::Opened { id: ids[0], transport: Transport::Stream }));
    assert!(pair.talks(ids[0]));
}

#[test]
fn other_memory_is_not_taken() {
    let mut pair = Pair::rings();
    pair.habit = Habit::Nothing;
    let (mut pair, _) = pair.with(&[Class::Input]);
    for memory in [HeapMemory::new(REGION), HeapMemory::new(REGION / 2), HeapMemory::new(8)] {
        assert!(matches!(pair.guest.attach(Arc::new(memory)), Err(AttachError::Other(_))));
    }
    let memory = pair.memory.clone().expect("there is some");
    assert_eq!(pair.guest.attach(Arc::clone(&memory)), Ok(()));
    assert_eq!(pair.guest.attach(memory), Err(AttachError::NotOffered));
    pair.run();
    assert!(pair.guest_events.contains(&Event::RegionAttached) && pair.host_events.contains(&Event::RegionAttached));
}

#[test]
fn an_offer_says_whether_there_are_rings() {
    let mut pair = Pair::rings();
    pair.habit = Habit::Attaches;
    let (pair, ids) = pair.with(&[Class::Input]);
    let offered = |event: &Event| matches!(event, Event::Offered(offer) if offer.id == ids[0] && offer.has_rings);
    assert!(pair.guest_events.iter().any(offered));
    assert_eq!(pair.guest_events.last(), Some(&Event::OffersDone));
}

#[test]
fn an_idle_connection_stays() {
    for transport in TRANSPORTS {
        let (mut pair, ids) = Pair::on(transport).with(&[Class::Input]);
        pair.take_host_events();
        pair.pass(Duration::from_secs(600));
        assert_eq!(pair.take_host_events(), []);
        assert!(pair.talks(ids[0]));
    }
}

#[test]
fn a_silent_peer_is_asked_and_then_taken_for_dead() {
    let (mut pair, ids) = Pair::stream().with(&[Class::Input]);
    pair.take_host_events();
    let start = pair.now;
    let mut asked = 0;
    while pair.host_events.is_empty() {
        pair.now = pair.host.poll_timeout().expect("a host that hears nothing does something about it");
        pair.host.handle_timeout(pair.now);
        asked += usize::from(pair.host.poll_transmit(pair.now, &mut Vec::new()));
        while let Some(event) = pair.host.poll_event() {
            pair.host_events.push(event);
        }
    }
    assert_eq!((pair.now - start, asked), (Duration::from_secs(10), 4), "three pings and a sync");
    let closed = Event::Closed { id: ids[0], reason: Reason::ServiceGone };
    assert_eq!(pair.take_host_events(), [closed, Event::Disconnected(Disconnect::Silent)]);
    assert_eq!(pair.host.poll_timeout(), None, "a host does not repeat itself");
}

#[test]
fn an_end_that_stood_still_asks_before_it_gives_up() {
    let (mut pair, ids) = Pair::stream().with(&[Class::Input]);
    pair.take_host_events();
    pair.now += Duration::from_secs(3600);
    pair.run();
    pair.pass(Duration::from_secs(1));
    assert_eq!(pair.take_host_events(), []);
    assert!(pair.talks(ids[0]));
}

#[test]
fn the_silence_of_a_vm_that_stands_still_means_nothing() {
    let (mut pair, ids) = Pair::stream().with(&[Class::Input]);
    pair.take_host_events();
    pair.host.handle_paused(pair.now);
    assert_eq!(pair.host.poll_timeout(), None);
    pair.now += Duration::from_secs(3600);
    pair.host.handle_timeout(pair.now);
    pair.host.handle_resumed(pair.now);
    assert!(pair.host.poll_timeout().is_some_and(|timeout| timeout >= pair.now));
    pair.pass(Duration::from_secs(1));
    assert_eq!(pair.take_host_events(), []);
    assert!(pair.talks(ids[0]));
}

#[test]
fn a_reset_of_the_vm_begins_another_epoch() {
    for transport in TRANSPORTS {
        let (mut pair, ids) = Pair::on(transport).with(&[Class::Input]);
        let epoch = pair.host.statistics().epoch;
        pair.take_host_events();
        pair.host.handle_reset(pair.now);
        pair.restart_guest();
        pair.run();
        assert!(pair.take_host_events().contains(&Event::Disconnected(Disconnect::Reset)));
        assert_ne!(pair.host.statistics().epoch, epoch);
        assert!(pair.talks(ids[0]));
    }
}

#[test]
fn an_agent_from_a_checkpoint_drops_what_it_knew() {
    for transport in TRANSPORTS {
        let (mut pair, ids) = Pair::on(transport).with(&[Class::Input, Class::Folder]);
        pair.guest.send(ids[1], vec![1; 200_000]).expect("it is free");
        pair.guest.send(ids[0], vec![1]).expect("it is free");
        pair.take_guest_events();
        // What was on the wires is not in the checkpoint; the agent goes on as if nothing had been.
        pair.to_guest.clear();
        pair.to_host.clear();
        pair.host.handle_reset(pair.now);
        pair.run();
        assert!(pair.take_guest_events().contains(&Event::Disconnected(Disconnect::PeerRestarted)));
        assert_eq!(pair.host.receive(ids[0]), None, "of the agent's old state");
        assert!(pair.talks(ids[0]) && pair.talks(ids[1]));
    }
}

#[test]
fn a_port_that_is_opened_anew_begins_anew() {
    for transport in TRANSPORTS {
        let (mut pair, ids) = Pair::on(transport).with(&[Class::Input]);
        pair.guest.handle_port_closed(pair.now);
        pair.host.handle_port_closed(pair.now);
        pair.run();
        assert!(pair.guest_events.contains(&Event::Disconnected(Disconnect::PortClosed)));
        assert!(!pair.transmit() && !pair.deliver(), "nothing is said on a closed port");
        let mut pair = pair.connect();
        assert!(pair.talks(ids[0]));
    }
}

#[test]
fn what_lay_in_the_port_before_is_skipped() {
    let mut pair = Pair::stream();
    let id = pair.offer(Class::Input);
    pair.host.handle_port_opened(pair.now);
    pair.guest.handle_port_opened(pair.now);
    let mut old = b"\x20\0\0\0VSBSYNC1 rubbish ".to_vec();
    Frame::Sync(SyncBody { epoch: 1, random: 2, echo: 3 }).encode(&mut old);
    Frame::Kick.encode(&mut old);
    old.extend([0x20, 0, 0, 0, 0]);
    pair.host.handle_bytes(pair.now, &old);
    pair.guest.handle_bytes(pair.now, &old);
    pair.run();
    assert!(pair.talks(id));
}

#[test]
fn rubbish_in_the_stream_makes_both_start_over() {
    for transport in TRANSPORTS {
        let (mut pair, ids) = Pair::on(transport).with(&[Class::Input]);
        pair.host.handle_bytes(pair.now, &[0xff; 20]);
        pair.run();
        assert!(pair.host_events.contains(&Event::Disconnected(Disconnect::OutOfStep)));
        assert!(pair.guest_events.contains(&Event::Disconnected(Disconnect::PeerStartsOver)));
        assert!(pair.talks(ids[0]));
    }
}

#[test]
fn a_guest_of_another_version_is_sent_away() {
    let mut raw = Raw::new(None);
    raw.step();
    raw.say(contact(2));
    let [ControlMessage::ContactAck(ack)] = &raw.answers()[..] else { panic!("an answer") };
    assert_eq!(ack.status, ContactStatus::OtherVersion);
    assert_eq!(raw.events(), []);
    raw.say(contact(1));
    assert!(matches!(raw.answers()[..], [ControlMessage::ContactAck(ack)] if ack.status == ContactStatus::Welcome));
}

#[test]
fn a_contact_has_the_epoch_of_its_sync_and_comes_first_and_once() {
    let mut raw = Raw::new(None);
    raw.step();
    raw.say(ControlMessage::RequestOffers);
    assert_eq!(raw.complaint(), ErrorCode::WrongState);
    raw.say(contact(1));
    assert!(matches!(raw.answers()[..], [ControlMessage::ContactAck(_)]));
    raw.say(contact(1));
    assert_eq!(raw.complaint(), ErrorCode::WrongState);
}

#[test]
fn the_third_message_without_sense_within_a_minute_makes_a_host_start_over() {
    let mut raw = Raw::new(None);
    raw.contact();
    raw.events();
    let nonsense = ControlMessage::Released { channel: 9 };
    for _ in 0..5 {
        raw.say(nonsense.clone());
        assert_eq!(raw.complaint(), ErrorCode::UnknownChannel);
        raw.pass(Duration::from_secs(31));
    }
    raw.pass(Duration::from_secs(60));
    raw.say(nonsense.clone());
    raw.say(nonsense.clone());
    raw.say(nonsense);
    assert!(matches!(raw.hear()[..], [Frame::Sync(_)]), "the complaint is dropped with all the rest");
    assert_eq!(raw.events(), [Event::Disconnected(Disconnect::Misbehaving)]);
}

#[test]
fn messages_of_later_versions_do_no_harm() {
    let mut raw = Raw::new(None);
    raw.contact();
    raw.events();
    for number in 26..60u16 {
        let mut message = ControlMessage::Unload.encode(number.into());
        message[0..2].copy_from_slice(&number.to_le_bytes());
        raw.send(&Frame::Control(message));
        assert_eq!(raw.complaint(), ErrorCode::Unsupported);
    }
    assert_eq!(raw.events(), []);
}

#[test]
fn a_guest_that_does_not_read_its_answers_is_not_listened_to() {
    let mut raw = Raw::new(None);
    raw.contact();
    raw.events();
    let mut pings = 0;
    while raw.host.wants_bytes() {
        raw.say(ControlMessage::Ping { cookie: 1 });
        pings += 1;
    }
    assert_eq!(pings, 64 * 1024 / 24 + 1);
    assert_eq!(raw.answers().len(), pings);
    assert!(raw.host.wants_bytes());
    // An owner that reads on all the same loses the guest before it loses its memory.
    for _ in 0..5 * pings {
        raw.say(ControlMessage::Ping { cookie: 1 });
    }
    assert_eq!(raw.events(), [Event::Disconnected(Disconnect::NotReading)]);
    assert!(matches!(raw.hear()[..], [Frame::Sync(_)]));
}

#[test]
fn the_memory_must_be_proved() {
    let memory = Arc::new(HeapMemory::new(REGION));
    let mut raw = Raw::new(Some(Arc::clone(&memory)));
    let id = raw.host.offer(Class::Input, 0, OfferFlags::default()).expect("there is room");
    let ack = raw.contact();
    raw.offers();
    let nonce = ack.region.expect("there is memory").nonce;
    for (region_nonce, guest_nonce) in [(nonce, 5), (nonce + 1, 5), (0, 0)] {
        raw.say(ControlMessage::Attach { region_nonce, guest_nonce });
        let refused = ControlMessage::AttachResult { status: Err(ErrorCode::RegionNotProved) };
        assert_eq!(raw.answers(), [refused]);
    }
    raw.say(ControlMessage::Open { channel: id.0, open_id: 1, transport: TransportCode::Ring, class_minor: 0 });
    let status = Err(ErrorCode::RegionNotProved);
    assert_eq!(raw.answers(), [ControlMessage::OpenResult { channel: id.0, open_id: 1, status }]);
    raw.attach(&memory, &ack);
    raw.say(ControlMessage::Attach { region_nonce: nonce, guest_nonce: 5 });
    assert_eq!(raw.complaint(), ErrorCode::WrongState, "once is enough");
}
