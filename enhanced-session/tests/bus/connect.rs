//! How the two ends find and lose each other.

use std::sync::Arc;
use std::time::Duration;

use enhanced_session::class::Class;
use enhanced_session::control::{Features, Reason};
use enhanced_session::endpoint::{AttachError, Disconnect, Event, Preference, Transport};
use enhanced_session::region::HeapMemory;

use crate::pair::{Habit, Pair, REGION, TRANSPORTS};

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
