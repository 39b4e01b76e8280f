//! Finding each other (`docs/bus.md`, section 3): nothing on the stream counts until each end has proved that it
//! hears the other's present incarnation.
//!
//! ```text
//!              a SYNC whose echo is our random
//!   looking ─────────────────────────────────────▶ in step
//!      ▲                                              │
//!      └──────────────────────────────────────────────┘
//!        a SYNC with another random; or look(): the port
//!        opened, rubbish, silence
//! ```

/// The body of a SYNC frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncBody {
    /// Which start of the sender it is. Not 0.
    pub epoch: u64,
    /// Which attempt of the sender to find the other end it is. Not 0.
    pub random: u64,
    /// The last `random` that the sender heard; 0 if none.
    pub echo: u64,
}

/// What a SYNC frame means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing new, but perhaps the other end did not hear the answer.
    Same {
        /// What to send, if anything.
        answer: Option<SyncBody>,
    },
    /// From the byte after that frame on, the stream counts.
    InStep {
        /// What to send, if the other end cannot know it yet.
        answer: Option<SyncBody>,
    },
    /// The other end looks, so this one looks too: all that was known is gone.
    Lost {
        /// What to send.
        answer: SyncBody,
        /// Whether it is another start of the other end.
        restarted: bool,
    },
}

/// One end's view of who is at the other.
#[derive(Debug)]
pub struct Sync {
    role: Role,
    epoch: u64,
    random: u64,
    state: State,
}

/// Which end. Only the guest repeats its SYNC, and only the host answers one that it has answered before: so a lost
/// one is made up for, and no two answers chase each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The gateway.
    Host,
    /// The agent.
    Guest,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// `heard`: the last random of the other end, which the SYNC sent last echoes; 0 if none.
    Looking {
        heard: u64,
    },
    InStep {
        random: u64,
        epoch: u64,
    },
}

impl Sync {
    /// An end that is looking. Epoch and random are any numbers; 0 stands for 1.
    #[must_use]
    pub fn new(role: Role, epoch: u64, random: u64) -> Self {
        Self { role, epoch: epoch.max(1), random: random.max(1), state: State::Looking { heard: 0 } }
    }

    /// Which start of this end it is.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Which start of the other end it is in step with.
    #[must_use]
    pub const fn peer_epoch(&self) -> Option<u64> {
        match self.state {
            State::Looking { .. } => None,
            State::InStep { epoch, .. } => Some(epoch),
        }
    }

    /// Begins another start of this end, which looks.
    pub fn restart(&mut self, epoch: u64, random: u64) -> SyncBody {
        self.epoch = epoch.max(1);
        self.look(random)
    }

    /// Begins to look, with a new random. Returns what to send.
    pub fn look(&mut self, random: u64) -> SyncBody {
        let heard = match self.state {
            State::Looking { heard } | State::InStep { random: heard, .. } => heard,
        };
        self.random = random.max(1);
        self.state = State::Looking { heard };
        self.body(heard)
    }

    /// What an end that looks says again.
    #[must_use]
    pub const fn repeated(&self) -> Option<SyncBody> {
        match self.state {
            State::Looking { heard } => Some(self.body(heard)),
            State::InStep { .. } => None,
        }
    }

    /// A SYNC came. `fresh` is the random to look with, should it come to that.
    pub fn handle(&mut self, heard: SyncBody, fresh: u64) -> Verdict {
        match self.state {
            State::Looking { heard: before } => self.heard_while_looking(heard, before),
            State::InStep { random, .. } if random == heard.random => {
                Verdict::Same { answer: (self.role == Role::Host).then(|| self.body(random)) }
            }
            State::InStep { epoch, .. } => {
                self.state = State::Looking { heard: heard.random };
                Verdict::Lost { answer: self.look(fresh), restarted: epoch != heard.epoch }
            }
        }
    }

    fn heard_while_looking(&mut self, heard: SyncBody, before: u64) -> Verdict {
        let answer = self.body(heard.random);
        if heard.echo == self.random {
            self.state = State::InStep { random: heard.random, epoch: heard.epoch };
            return Verdict::InStep { answer: (before != heard.random).then_some(answer) };
        }
        self.state = State::Looking { heard: heard.random };
        Verdict::Same { answer: Some(answer) }
    }

    const fn body(&self, echo: u64) -> SyncBody {
        SyncBody { epoch: self.epoch, random: self.random, echo }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn body(epoch: u64, random: u64, echo: u64) -> SyncBody {
        SyncBody { epoch, random, echo }
    }

    fn guest() -> Sync {
        Sync::new(Role::Guest, 7, 1)
    }

    #[test]
    fn an_echo_of_the_own_random_brings_it_in_step() {
        let mut guest = guest();
        assert_eq!(guest.repeated(), Some(body(7, 1, 0)));
        assert_eq!(guest.handle(body(9, 100, 0), 2), Verdict::Same { answer: Some(body(7, 1, 100)) });
        assert_eq!(guest.repeated(), Some(body(7, 1, 100)));
        assert_eq!(guest.handle(body(9, 100, 1), 2), Verdict::InStep { answer: None });
        assert_eq!((guest.repeated(), guest.peer_epoch()), (None, Some(9)));
    }

    #[test]
    fn who_cannot_know_yet_is_answered() {
        let mut guest = guest();
        assert_eq!(guest.handle(body(9, 100, 1), 2), Verdict::InStep { answer: Some(body(7, 1, 100)) });
    }

    #[test]
    fn an_echo_of_an_earlier_random_proves_nothing() {
        let mut guest = guest();
        guest.look(2);
        assert_eq!(guest.handle(body(9, 100, 1), 3), Verdict::Same { answer: Some(body(7, 2, 100)) });
    }

    #[test]
    fn the_same_sync_again_changes_nothing() {
        for (role, answer) in [(Role::Guest, None), (Role::Host, Some(body(7, 1, 100)))] {
            let mut end = Sync::new(role, 7, 1);
            end.handle(body(9, 100, 1), 2);
            assert_eq!(end.handle(body(9, 100, 1), 2), Verdict::Same { answer });
            assert_eq!(end.peer_epoch(), Some(9));
        }
    }

    #[test]
    fn another_random_means_that_the_other_end_looks() {
        let mut guest = guest();
        guest.handle(body(9, 100, 1), 2);
        let lost = guest.handle(body(9, 101, 1), 3);
        assert_eq!(lost, Verdict::Lost { answer: body(7, 3, 101), restarted: false });
        guest.handle(body(9, 101, 3), 4);
        let lost = guest.handle(body(10, 200, 0), 5);
        assert_eq!(lost, Verdict::Lost { answer: body(7, 5, 200), restarted: true });
    }

    /// Two ends, and what is under way between them.
    struct Two {
        ends: [Sync; 2],
        wires: [VecDeque<SyncBody>; 2],
        fresh: u64,
    }

    impl Two {
        fn new() -> Self {
            let ends = [Sync::new(Role::Host, 50, 1), Sync::new(Role::Guest, 60, 2)];
            let mut two = Self { ends, wires: Default::default(), fresh: 100 };
            two.look(0);
            two.look(1);
            two
        }

        fn look(&mut self, end: usize) {
            self.fresh += 1;
            let body = self.ends[end].look(self.fresh);
            self.wires[end].push_back(body);
        }

        fn restart(&mut self, end: usize) {
            self.fresh += 1;
            let role = self.ends[end].role;
            self.ends[end] = Sync::new(role, self.fresh, 1);
            self.look(end);
        }

        fn repeat(&mut self) {
            self.wires[1].extend(self.ends[1].repeated());
        }

        /// The first frame on its way from `end` arrives. In step, the other's next look is answered in time.
        fn deliver(&mut self, end: usize) -> bool {
            let Some(body) = self.wires[end].pop_front() else { return false };
            self.fresh += 1;
            let answer = match self.ends[1 - end].handle(body, self.fresh) {
                Verdict::Same { answer } | Verdict::InStep { answer } => answer,
                Verdict::Lost { answer, .. } => Some(answer),
            };
            self.wires[1 - end].extend(answer);
            true
        }

        fn settle(&mut self) {
            for _ in 0..200 {
                if !(self.deliver(0) | self.deliver(1)) {
                    return;
                }
            }
            panic!("two ends that answer each other for ever");
        }

        fn in_step(&self) -> bool {
            let [host, guest] = &self.ends;
            matches!((host.state, guest.state), (State::InStep { random: g, .. }, State::InStep { random: h, .. })
                if g == guest.random && h == host.random)
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_both_ends_find_each_other(ops in proptest::collection::vec(0u8..9, 0..40)) {
            let mut two = Two::new();
            for op in ops {
                match op {
                    0 | 1 => two.look(op.into()),
                    2 | 3 => two.restart(usize::from(op - 2)),
                    4..=7 => drop(two.deliver(usize::from(op % 2))),
                    // Bytes on their way to the guest are lost when its agent dies.
                    _ => {
                        two.wires[0].clear();
                        two.restart(1);
                    }
                }
            }
            two.settle();
            two.repeat();
            two.settle();
            prop_assert!(two.in_step());
        }
    }
}
