//! Channels: offered, opened, closed, withdrawn, released.

use std::time::Duration;

use enhanced_session::class::Class;
use enhanced_session::control::{ControlMessage, ErrorCode, OfferFlags, Reason, TransportCode};
use enhanced_session::endpoint::{
    ChannelId, Disconnect, Event, MAX_CHANNELS, MAX_SUBCHANNELS, OfferError, OpenError, Preference, SendError,
    Transport,
};
use enhanced_session::message::Message;

use crate::pair::{Habit, Pair, TRANSPORTS};
use crate::raw::Raw;

/// Connected, with one channel offered and not open.
fn offered(transport: Transport) -> (Pair, ChannelId) {
    let mut pair = Pair::on(transport);
    pair.habit = Habit::Attaches;
    let (mut pair, ids) = pair.with(&[Class::Clipboard]);
    pair.take_guest_events();
    pair.take_host_events();
    (pair, ids[0])
}

/// The same, and the channel is open.
fn opened(transport: Transport) -> (Pair, ChannelId) {
    let (mut pair, id) = offered(transport);
    pair.guest.open(id, Preference::Ring).expect("it is offered");
    pair.run();
    let opened = Event::Opened { id, transport };
    assert_eq!((pair.take_host_events(), pair.take_guest_events()), (vec![opened.clone()], vec![opened]));
    (pair, id)
}

#[test]
fn offers_come_at_any_time() {
    for transport in TRANSPORTS {
        let mut pair = Pair::on(transport);
        let before = pair.offer(Class::Input);
        let mut pair = pair.connect();
        let after = [pair.offer(Class::Video), pair.offer(Class::Clipboard)];
        pair.run();
        assert!(pair.talks(before) && after.into_iter().all(|id| pair.talks(id)));
        let offers = pair.guest_events.iter().filter(|event| matches!(event, Event::Offered(_))).count();
        assert_eq!(offers, 3);
    }
}

#[test]
fn an_instance_is_offered_once_and_only_so_many_are() {
    let mut pair = Pair::stream();
    for index in 0..MAX_CHANNELS {
        let index = u16::try_from(index).expect("few");
        let offer = pair.host.offer(Class::Usb, index, OfferFlags::default());
        assert!(offer.is_ok());
        assert_eq!(pair.host.offer(Class::Usb, index, OfferFlags::default()), Err(OfferError::Twice));
    }
    let one_more = pair.host.offer(Class::Input, 0, OfferFlags::default());
    assert_eq!(one_more, Err(OfferError::TooMany { limit: MAX_CHANNELS }));
    let pair = pair.connect();
    let opened = pair.host_events.iter().filter(|event| matches!(event, Event::Opened { .. })).count();
    assert_eq!(opened, MAX_CHANNELS);
}

#[test]
fn either_end_closes_and_the_channel_can_be_opened_again() {
    for transport in TRANSPORTS {
        for from_host in [true, false] {
            let (mut pair, id) = opened(transport);
            for _ in 0..3 {
                if from_host {
                    pair.host.close(id, Reason::SessionLeft);
                } else {
                    pair.guest.close(id, Reason::SessionLeft);
                }
                assert_eq!(pair.host.send(id, vec![]).err(), from_host.then_some(SendError::NotOpen));
                pair.run();
                let closed = Event::Closed { id, reason: Reason::SessionLeft };
                assert_eq!((pair.take_host_events(), pair.take_guest_events()), (vec![closed.clone()], vec![closed]));
                assert_eq!(pair.guest.send(id, vec![]), Err(SendError::NotOpen));
                pair.guest.open(id, Preference::Ring).expect("it is offered again");
                pair.run();
                assert!(pair.talks(id));
                pair.take_host_events();
                pair.take_guest_events();
            }
        }
    }
}

#[test]
fn closing_at_both_ends_at_once_closes_once() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport);
        pair.host.close(id, Reason::Policy);
        pair.guest.close(id, Reason::Done);
        pair.run();
        assert_eq!(pair.take_host_events(), [Event::Closed { id, reason: Reason::Policy }]);
        assert_eq!(pair.take_guest_events(), [Event::Closed { id, reason: Reason::Done }]);
        pair.guest.open(id, Preference::Ring).expect("it is offered again");
        pair.run();
        assert!(pair.talks(id));
    }
}

#[test]
fn a_guest_may_close_what_it_is_opening() {
    for transport in TRANSPORTS {
        let (mut pair, id) = offered(transport);
        pair.guest.open(id, Preference::Ring).expect("it is offered");
        pair.guest.close(id, Reason::Done);
        assert_eq!(pair.guest.open(id, Preference::Ring), Err(OpenError::InUse));
        pair.run();
        let closed = Event::Closed { id, reason: Reason::Done };
        assert_eq!(pair.take_host_events(), [Event::Opened { id, transport }, closed.clone()]);
        assert_eq!(pair.take_guest_events(), [closed]);
        pair.guest.open(id, Preference::Ring).expect("it is offered again");
        pair.run();
        assert!(pair.talks(id));
    }
}

#[test]
fn what_is_under_way_when_a_channel_closes_is_dropped() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport);
        pair.host.send(id, vec![1; 300_000]).expect("it is free");
        pair.guest.send(id, vec![2; 300_000]).expect("it is free");
        for _ in 0..4 {
            pair.step();
        }
        pair.guest.close(id, Reason::Done);
        pair.run();
        assert_eq!(pair.host.receive(id), None);
        pair.guest.open(id, Preference::Ring).expect("it is offered again");
        pair.run();
        assert!(pair.talks(id), "and nothing of the old conversation comes first");
    }
}

#[test]
fn an_offer_can_be_withdrawn_in_every_state() {
    for transport in TRANSPORTS {
        // Offered, opening, open, closing here, closing there.
        for state in 0..5 {
            let (mut pair, id) = if state < 2 { offered(transport) } else { opened(transport) };
            match state {
                1 => pair.guest.open(id, Preference::Ring).expect("it is offered"),
                3 => pair.guest.close(id, Reason::Done),
                4 => pair.host.close(id, Reason::Done),
                _ => {}
            }
            pair.host.rescind(id, Reason::DeviceRemoved);
            pair.run();
            let closed = Event::Closed { id, reason: Reason::DeviceRemoved };
            let rescinded = Event::Rescinded { id, reason: Reason::DeviceRemoved };
            let host_events = if state < 2 { vec![] } else { vec![closed.clone()] };
            assert_eq!(pair.take_host_events(), host_events, "state {state}");
            // A guest that hears CLOSE first has closed by then.
            let guest_events = match state {
                0 => vec![rescinded],
                4 => vec![Event::Closed { id, reason: Reason::Done }, rescinded],
                _ => vec![closed, rescinded],
            };
            assert_eq!(pair.take_guest_events(), guest_events, "state {state}");
            assert_eq!(pair.guest.open(id, Preference::Ring), Err(OpenError::NotOffered));
            let again = pair.offer(Class::Clipboard);
            assert_eq!(again, id, "the number was released");
            pair.run();
            pair.guest.open(again, Preference::Ring).expect("it is offered");
            pair.run();
            assert!(pair.talks(again));
        }
    }
}

#[test]
fn a_number_is_not_used_again_before_it_is_released() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport);
        pair.host.rescind(id, Reason::Done);
        let other = pair.offer(Class::Clipboard);
        assert_ne!(other, id);
        pair.run();
        let third = pair.offer(Class::Input);
        assert_eq!(third, id);
        pair.run();
        for id in [other, third] {
            pair.guest.open(id, Preference::Ring).expect("it is offered");
            pair.run();
            assert!(pair.talks(id));
        }
    }
}

#[test]
fn memory_of_withdrawn_channels_comes_back_when_they_are_released() {
    let (mut pair, mut id) = opened(Transport::Ring);
    // 512 KiB each time, of 16 MiB.
    for _ in 0..100 {
        pair.host.rescind(id, Reason::Done);
        pair.run();
        id = pair.offer(Class::Clipboard);
        pair.run();
        assert!(matches!(pair.guest_events.last(), Some(Event::Offered(offer)) if offer.has_rings));
    }
}

#[test]
fn a_guest_that_releases_nothing_gets_a_new_beginning() {
    let mut raw = Raw::new(None);
    raw.contact();
    raw.offers();
    raw.events();
    for round in 0..=MAX_CHANNELS {
        assert_eq!(raw.events(), [], "round {round}");
        let id = raw.host.offer(Class::Input, 0, OfferFlags::default()).expect("there is room");
        raw.host.rescind(id, Reason::Done);
    }
    assert_eq!(raw.events(), [Event::Disconnected(Disconnect::Misbehaving)]);
    assert_eq!(raw.host.offer(Class::Input, 0, OfferFlags::default()), Ok(ChannelId(1)));
}

#[test]
fn unloading_stops_everything_until_the_next_step() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport);
        pair.guest.unload();
        assert_eq!(pair.guest.send(id, vec![]), Err(SendError::NotOpen));
        pair.run();
        let closed = Event::Closed { id, reason: Reason::ServiceGone };
        let disconnected = Event::Disconnected(Disconnect::Unloaded);
        assert_eq!(pair.take_guest_events(), [closed.clone(), disconnected.clone(), Event::Unloaded]);
        assert_eq!(pair.take_host_events(), [closed, disconnected]);
        pair.pass(Duration::from_secs(60));
        assert_eq!((pair.take_host_events(), pair.take_guest_events()), (vec![], vec![]));
        // The next agent.
        pair.restart_guest();
        pair.run();
        pair.guest.open(id, Preference::Ring).expect("it is offered");
        pair.run();
        assert!(pair.talks(id));
    }
}

#[test]
fn what_a_guest_says_before_it_goes_is_heard_however_it_arrives() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport);
        pair.guest.send(id, b"last words".to_vec()).expect("it is free");
        // All of it comes at once.
        while pair.transmit() {}
        pair.guest.unload();
        while pair.transmit() {}
        while pair.deliver() {}
        assert_eq!(pair.host.poll_event(), Some(Event::Readable(id)));
        assert_eq!(pair.host.receive(id), Some(Message::Data(b"last words".to_vec())));
        let closed = Event::Closed { id, reason: Reason::ServiceGone };
        assert_eq!(
            [pair.host.poll_event(), pair.host.poll_event()],
            [Some(closed), Some(Event::Disconnected(Disconnect::Unloaded))]
        );
        assert_eq!((pair.host.poll_event(), pair.host.receive(id)), (None, None));
    }
}

#[test]
fn subchannels_are_offered_when_they_are_wanted() {
    for transport in TRANSPORTS {
        let (mut pair, id) = opened(transport);
        pair.guest.want_subchannels(id, 2);
        pair.run();
        assert_eq!(pair.take_host_events(), [Event::SubchannelsWanted { id, count: 2 }]);
        let subchannels = [(); 2].map(|()| pair.host.offer_subchannel(id).expect("there is room"));
        pair.run();
        let infos = pair.guest_events.iter().filter_map(|event| match event {
            Event::Offered(info) => Some((info.id, info.class, info.sub_index)),
            _ => None,
        });
        let infos: Vec<_> = infos.collect();
        let [first, second] = subchannels;
        assert_eq!(infos, [(first, Class::Clipboard, 1), (second, Class::Clipboard, 2)]);
        pair.guest.open(first, Preference::Ring).expect("it is offered");
        pair.run();
        assert!(pair.talks(first));
        assert_eq!(pair.host.offer_subchannel(first), Err(OfferError::NoParent));
        pair.host.rescind(id, Reason::Done);
        pair.run();
        let rescinded = |id| Event::Rescinded { id, reason: Reason::Done };
        for id in [id, first, second] {
            assert!(pair.guest_events.contains(&rescinded(id)), "{id}");
        }
    }
}

#[test]
fn a_channel_has_so_many_subchannels_and_they_go_with_the_guest() {
    let (mut pair, id) = opened(Transport::Stream);
    for _ in 0..MAX_SUBCHANNELS {
        pair.host.offer_subchannel(id).expect("there is room");
    }
    assert!(matches!(pair.host.offer_subchannel(id), Err(OfferError::TooMany { .. })));
    pair.restart_guest();
    pair.run();
    assert!(pair.host.offer_subchannel(id).is_ok());
}

#[test]
fn what_cannot_be_opened_is_refused() {
    let mut raw = Raw::new(None);
    let id = raw.host.offer(Class::Input, 0, OfferFlags::default()).expect("there is room");
    raw.contact();
    let open = |raw: &mut Raw, channel, transport, class_minor| {
        raw.say(ControlMessage::Open { channel, open_id: 1, transport, class_minor });
        match raw.answers()[..] {
            [ControlMessage::OpenResult { open_id: 1, status, .. }] => status,
            ref other => panic!("not a result: {other:?}"),
        }
    };
    let stream = TransportCode::Stream;
    assert_eq!(open(&mut raw, id.0, stream, 0), Err(ErrorCode::WrongState), "offers were not asked for");
    raw.offers();
    assert_eq!(open(&mut raw, 99, stream, 0), Err(ErrorCode::UnknownChannel));
    assert_eq!(open(&mut raw, id.0, stream, 1), Err(ErrorCode::Unsupported), "a later version of the class");
    assert_eq!(open(&mut raw, id.0, TransportCode::Other(2), 0), Err(ErrorCode::Unsupported));
    assert_eq!(open(&mut raw, id.0, TransportCode::Ring, 0), Err(ErrorCode::RegionNotProved));
    assert_eq!(open(&mut raw, id.0, stream, 0), Ok(()));
    assert_eq!(open(&mut raw, id.0, stream, 0), Err(ErrorCode::WrongState));
}

#[test]
fn messages_of_an_earlier_opening_are_late() {
    let mut raw = Raw::new(None);
    let id = raw.host.offer(Class::Input, 0, OfferFlags::default()).expect("there is room");
    raw.contact();
    raw.offers();
    raw.open(id, 1);
    raw.say(ControlMessage::Close { channel: id.0, open_id: 1, reason: Reason::Done });
    assert_eq!(raw.answers(), [ControlMessage::Closed { channel: id.0, open_id: 1 }]);
    raw.open(id, 2);
    raw.events();
    raw.say(ControlMessage::Close { channel: id.0, open_id: 1, reason: Reason::Done });
    raw.say(ControlMessage::Closed { channel: id.0, open_id: 1 });
    raw.say(ControlMessage::Closed { channel: id.0, open_id: 2 });
    assert_eq!((raw.answers(), raw.events()), (vec![], vec![]));
    raw.host.send(id, vec![]).expect("it is open still");
    raw.host.close(id, Reason::Done);
    let close = ControlMessage::Close { channel: id.0, open_id: 2, reason: Reason::Done };
    assert_eq!(raw.answers(), [close], "and nothing of the message");
    raw.say(ControlMessage::Closed { channel: id.0, open_id: 1 });
    assert_eq!(raw.events(), []);
    raw.say(ControlMessage::Closed { channel: id.0, open_id: 2 });
    assert_eq!(raw.events(), [Event::Closed { id, reason: Reason::Done }]);
}
