//! Random operations at both ends, against a model: what is sent on a channel arrives in order, once and unchanged.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use enhanced_session::class::Class;
use enhanced_session::endpoint::{ChannelId, Event, SendError, Transport};
use enhanced_session::message::{Message, Txid};
use proptest::prelude::*;

use crate::pair::Pair;

const CLASSES: [Class; 3] = [Class::Input, Class::Heartbeat, Class::Memory];

#[derive(Debug, Clone, Copy)]
enum Side {
    Host,
    Guest,
}

#[derive(Debug, Clone)]
enum Op {
    Send(Side, usize, usize),
    Request(Side, usize, usize),
    Complete(Side, usize, usize),
    Receive(Side, usize),
    Reset(Side, usize),
    Transmit,
    Deliver(usize),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let side = || prop_oneof![Just(Side::Host), Just(Side::Guest)];
    let channel = || 0..CLASSES.len();
    let length = || prop_oneof![3 => 0usize..100, 1 => 0usize..16_384];
    prop_oneof![
        8 => (side(), channel(), length()).prop_map(|(side, channel, length)| Op::Send(side, channel, length)),
        3 => (side(), channel(), length()).prop_map(|(side, channel, length)| Op::Request(side, channel, length)),
        3 => (side(), channel(), length()).prop_map(|(side, channel, length)| Op::Complete(side, channel, length)),
        8 => (side(), channel()).prop_map(|(side, channel)| Op::Receive(side, channel)),
        10 => Just(Op::Transmit),
        10 => (1usize..20_000).prop_map(Op::Deliver),
        2 => (0u64..3000).prop_map(Op::Pass),
    ]
}

/// The same, with resets.
fn op_or_reset() -> impl Strategy<Value = Op> {
    let side = prop_oneof![Just(Side::Host), Just(Side::Guest)];
    prop_oneof![
        20 => op(),
        1 => (side, 0..CLASSES.len()).prop_map(|(side, channel)| Op::Reset(side, channel)),
    ]
}

/// What one end of a channel has sent and not received.
#[derive(Default)]
struct Half {
    under_way: VecDeque<Message>,
    /// Requests that it has received and not answered.
    to_answer: BTreeSet<Txid>,
}

struct World {
    pair: Pair,
    ids: Vec<ChannelId>,
    /// By channel: what goes to the guest, what goes to the host.
    channels: Vec<[Half; 2]>,
    number: u8,
}

impl World {
    fn new(transport: Transport, window: u32) -> Self {
        let (pair, ids) = Pair::on(transport).with_window(window).with(&CLASSES);
        let channels = CLASSES.iter().map(|_| Default::default()).collect();
        Self { pair, ids, channels, number: 0 }
    }

    /// Carries `op` out at the end and in the model.
    fn apply(&mut self, op: Op) {
        match op {
            Op::Send(side, channel, length) => {
                let payload = self.payload(length);
                let sent = match side {
                    Side::Host => self.pair.host.send(self.ids[channel], payload.clone()),
                    Side::Guest => self.pair.guest.send(self.ids[channel], payload.clone()),
                };
                self.sent(side, channel, sent.map(|()| Message::Data(payload)));
            }
            Op::Request(side, channel, length) => {
                let payload = self.payload(length);
                let sent = match side {
                    Side::Host => self.pair.host.request(self.ids[channel], payload.clone()),
                    Side::Guest => self.pair.guest.request(self.ids[channel], payload.clone()),
                };
                self.sent(side, channel, sent.map(|txid| Message::Request(txid, payload)));
            }
            Op::Complete(side, channel, length) => self.complete(side, channel, length),
            Op::Receive(side, channel) => drop(self.receive(side, channel)),
            Op::Reset(side, channel) => {
                let reset = match side {
                    Side::Host => self.pair.host.reset(self.ids[channel]),
                    Side::Guest => self.pair.guest.reset(self.ids[channel]),
                };
                reset.expect("it is open");
            }
            Op::Transmit => drop(self.pair.transmit()),
            Op::Deliver(piece) => {
                self.pair.piece = piece;
                self.pair.deliver();
            }
            Op::Pass(millis) => self.pair.pass(Duration::from_millis(millis)),
        }
        self.pair.collect();
    }

    fn payload(&mut self, length: usize) -> Vec<u8> {
        self.number = self.number.wrapping_add(1);
        vec![self.number; length]
    }

    fn complete(&mut self, side: Side, channel: usize, length: usize) {
        let Some(txid) = self.half(side, channel).to_answer.first().copied() else { return };
        let payload = self.payload(length);
        let sent = match side {
            Side::Host => self.pair.host.complete(self.ids[channel], txid, payload.clone()),
            Side::Guest => self.pair.guest.complete(self.ids[channel], txid, payload.clone()),
        };
        if sent.is_ok() {
            self.half(side, channel).to_answer.remove(&txid);
        }
        self.sent(side, channel, sent.map(|()| Message::Completion(txid, payload)));
    }

    fn sent(&mut self, side: Side, channel: usize, sent: Result<Message, SendError>) {
        match sent {
            Ok(message) => self.half(side, channel).under_way.push_back(message),
            Err(SendError::Full | SendError::TooManyRequests) => {}
            Err(SendError::TooLong { limit, .. }) => {
                assert_eq!(limit, CLASSES[channel].limits().message as usize);
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Takes a message, which must be the first that the other end sent. Returns whether there was one.
    fn receive(&mut self, side: Side, channel: usize) -> bool {
        let message = self.take(side, channel);
        let Some(message) = message else { return false };
        if let Message::Request(txid, _) = &message {
            assert!(self.half(side, channel).to_answer.insert(*txid));
        }
        let expected = self.half(side.other(), channel).under_way.pop_front();
        assert!(expected == Some(message), "not the message that was sent first");
        true
    }

    fn take(&mut self, side: Side, channel: usize) -> Option<Message> {
        match side {
            Side::Host => self.pair.host.receive(self.ids[channel]),
            Side::Guest => self.pair.guest.receive(self.ids[channel]),
        }
    }

    fn half(&mut self, side: Side, channel: usize) -> &mut Half {
        &mut self.channels[channel][side as usize]
    }

    /// Everything arrives.
    fn check_all_arrives(&mut self) {
        self.pair.piece = usize::MAX;
        let mut idle = 0;
        // What brings much has its next turn only in the next round.
        while idle < 2 {
            self.pair.run();
            idle += 1;
            for channel in 0..CLASSES.len() {
                if self.receive(Side::Host, channel) | self.receive(Side::Guest, channel) {
                    idle = 0;
                }
            }
        }
        for half in self.channels.iter().flatten() {
            assert!(half.under_way.is_empty(), "{} messages got lost", half.under_way.len());
        }
        self.check_innocence();
    }

    fn check_innocence(&self) {
        let bad = |event: &&Event| matches!(event, Event::Faulted { .. } | Event::Disconnected(_));
        assert_eq!(self.pair.host_events.iter().chain(&self.pair.guest_events).find(bad), None);
    }
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Host => Self::Guest,
            Self::Guest => Self::Host,
        }
    }
}

fn window() -> impl Strategy<Value = u32> {
    prop_oneof![Just(1024u32), 1024..6000u32, Just(131_072u32)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn messages_arrive_in_order_once_and_unchanged_on_the_stream(
        window in window(),
        ops in proptest::collection::vec(op(), 0..150),
    ) {
        let mut world = World::new(Transport::Stream, window);
        ops.into_iter().for_each(|op| world.apply(op));
        world.check_all_arrives();
    }

    #[test]
    fn messages_arrive_in_order_once_and_unchanged_on_rings(ops in proptest::collection::vec(op(), 0..150)) {
        let mut world = World::new(Transport::Ring, 131_072);
        ops.into_iter().for_each(|op| world.apply(op));
        world.check_all_arrives();
    }

    /// What is under way at a reset may get lost; nobody is found guilty, and afterwards all is as new.
    #[test]
    fn after_resets_at_any_time_both_ends_agree(
        is_ring in any::<bool>(),
        window in window(),
        ops in proptest::collection::vec(op_or_reset(), 0..150),
    ) {
        let transport = if is_ring { Transport::Ring } else { Transport::Stream };
        let mut world = World::new(transport, window);
        for op in ops {
            match op {
                Op::Receive(side, channel) => drop(world.take(side, channel)),
                Op::Complete(..) => {}
                op => world.apply(op),
            }
        }
        world.pair.piece = usize::MAX;
        for channel in 0..CLASSES.len() {
            world.pair.host.reset(world.ids[channel]).expect("it is open");
            world.pair.run();
            // As many as can be under way.
            for _ in 0..100 {
                let _ = world.take(Side::Guest, channel);
                let _ = world.take(Side::Host, channel);
                world.pair.run();
            }
            prop_assert!(world.pair.talks(world.ids[channel]));
        }
        world.check_innocence();
    }
}
