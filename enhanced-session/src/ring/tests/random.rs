//! A ring against a queue, in any order of what its ends may do.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::super::grant::Word;
use super::*;

/// What an end may do next.
#[derive(Debug, Clone)]
enum Op {
    Push(u32),
    PublishIn,
    Pop,
    PublishOut,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => prop_oneof![0..40u32, 0..=max_payload(SIZE)].prop_map(Op::Push),
        1 => Just(Op::PublishIn),
        3 => Just(Op::Pop),
        1 => Just(Op::PublishOut),
    ]
}

/// What each packet of a run contains: its number, repeated.
fn payload(number: usize, length: u32) -> Vec<u8> {
    (0..length).map(|at| (number as u32).wrapping_mul(31).wrapping_add(at) as u8).collect()
}

/// What the queue says about a ring.
#[derive(Default)]
struct Model {
    pushed: usize,
    /// Packets under way, with whether they are published.
    queue: VecDeque<(Vec<u8>, bool)>,
    /// The consumer was told that there is nothing, and has not been kicked since.
    asleep: bool,
    /// The producer was told that there is no room for so long a packet, and has not been kicked since.
    waits: Option<u32>,
}

impl Model {
    fn push(&mut self, ring: &mut Ring, length: u32) {
        let payload = payload(self.pushed, length);
        self.waits = None;
        match ring.push(&payload) {
            Push::Done => {
                self.queue.push_back((payload, false));
                self.pushed += 1;
            }
            Push::Full => {
                assert!(!self.queue.is_empty() || ring.word(Word::Out) != ring.word(Word::In), "full of nothing");
                self.waits = Some(length);
                self.publish_in(ring);
            }
        }
    }

    fn publish_in(&mut self, ring: &mut Ring) {
        let news = self.queue.iter().any(|(_, published)| !published);
        let kick = ring.producer.publish().expect("no fault");
        self.queue.iter_mut().for_each(|(_, published)| *published = true);
        if kick == Kick::Needed {
            self.asleep = false;
        }
        assert!(!news || !self.asleep, "the consumer sleeps over {} packets", self.queue.len());
    }

    fn pop(&mut self, ring: &mut Ring) {
        match ring.pop() {
            Some(payload) => assert_eq!(self.queue.pop_front(), Some((payload, true))),
            None => {
                assert!(!self.queue.front().is_some_and(|(_, published)| *published), "a packet was missed");
                self.asleep = true;
                self.publish_out(ring);
            }
        }
    }

    fn publish_out(&mut self, ring: &mut Ring) {
        let kick = ring.give_back();
        if kick == Kick::Needed {
            self.waits = None;
        }
        let taken: usize = self.queue.iter().map(|(payload, _)| packet_size(payload.len() as u32) as usize).sum();
        let fits = |length| taken + packet_size(length) as usize <= SIZE as usize;
        assert!(!self.waits.is_some_and(fits), "the producer waits for room that there is");
    }
}

proptest! {
    #[test]
    fn a_ring_is_a_queue(ops in proptest::collection::vec(op(), 1..300), before_the_end in 0u32..20_000) {
        let mut ring = Ring::new();
        // As if nearly all that a counter can count had gone through.
        let count = (before_the_end & !7).wrapping_neg();
        ring.producer.set_count(count);
        ring.consumer.set_count(count);
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Push(length) => model.push(&mut ring, length),
                Op::PublishIn => model.publish_in(&mut ring),
                Op::Pop => model.pop(&mut ring),
                Op::PublishOut => model.publish_out(&mut ring),
            }
        }
        model.publish_in(&mut ring);
        while !model.queue.is_empty() {
            model.pop(&mut ring);
        }
        model.pop(&mut ring);
        prop_assert!(model.waits.is_none(), "nobody kicked the producer");
        prop_assert_eq!(ring.producer.is_taken(), Ok(true));
    }
}
