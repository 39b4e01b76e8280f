//! Which of its two places a moving disk has, and what is to be done about the other. Pure.
//!
//! ```text
//! copying ──▶ Switching ──▶ stop ──▶ compare ──▶ complete ──▶ define ──▶ Switched ──▶ resume ──▶ release
//!             (journal)    guest    the rest    QEMU goes    the file   (journal)    guest
//!                                               over         says so
//! ```
//!
//! The guest stands still from before QEMU goes over until after the definition says so. So for as long as it runs, QEMU
//! and the definition name the same place; while they differ, both places hold the same bytes. Hence one rule decides at any
//! moment: **a QEMU that runs is right; when there is none, the definition is.**

use serde::{Deserialize, Serialize};

/// One of the two places of a disk that moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Place {
    /// Where it was.
    Source,
    /// Where it goes.
    Target,
}

/// How far a move has come, as the journal says before each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "lowercase")]
pub(crate) enum Phase {
    /// The target is made and filled.
    Copying,
    /// The guest is stopped, and QEMU told to go over.
    Switching {
        /// Whether the guest ran before.
        resume: bool,
    },
    /// The definition names the target. The source is released, and deleted if that was asked for.
    Switched {
        /// As before.
        resume: bool,
    },
}

/// A step of the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Notes in the journal that the switch begins.
    NoteSwitching,
    /// Stops the guest's processors; what it had written reaches both places.
    Stop,
    /// Compares what has not been compared since it was written last.
    Compare,
    /// Has QEMU go over.
    Complete,
    /// Has the definition name the target.
    Define,
    /// Notes in the journal that this is done.
    NoteSwitched,
    /// Lets the processors go on, if they ran.
    Resume,
}

/// The steps of the switch, in the order on which everything here depends.
pub(crate) const SWITCH: [Step; 7] =
    [Step::NoteSwitching, Step::Stop, Step::Compare, Step::Complete, Step::Define, Step::NoteSwitched, Step::Resume];

/// The same when an overlay goes into the file below: nobody else made what is there.
pub(crate) const MERGE: [Step; 6] =
    [Step::NoteSwitching, Step::Stop, Step::Complete, Step::Define, Step::NoteSwitched, Step::Resume];

/// The steps that are left when QEMU has gone over.
pub(crate) const SETTLE: [Step; 3] = [Step::Define, Step::NoteSwitched, Step::Resume];

/// What there is of the VM's QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// There is none.
    Off,
    /// It does not answer, or not yet.
    Silent,
    /// It runs.
    On {
        /// Which place the disk's device is attached to; none when there is no such device.
        attached: Option<Place>,
        /// Whether it still copies, or has copied and keeps both places the same.
        mirrors: bool,
    },
}

/// What is to be done about a move that was found unfinished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nobody knows until QEMU answers or ends.
    Wait,
    /// The source is the disk, and the copy goes on.
    GoOn,
    /// The source is the disk, and the target is given up.
    Discard,
    /// The target is the disk, and the source is released.
    Finish,
}

/// What is to be done about a move, from what the definition names and what QEMU does.
pub(crate) fn decide(definition: Place, engine: Engine) -> Decision {
    let place = match engine {
        Engine::Silent => return Decision::Wait,
        Engine::On { attached: Some(place), .. } => place,
        Engine::On { attached: None, .. } | Engine::Off => definition,
    };
    match (place, engine) {
        (Place::Target, _) => Decision::Finish,
        (Place::Source, Engine::On { mirrors: true, .. }) => Decision::GoOn,
        (Place::Source, _) => Decision::Discard,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A host on which one disk moves: what each part of it knows, and what the disks really hold.
    #[derive(Debug, Clone)]
    struct World {
        /// Writes that were acknowledged to the guest.
        acknowledged: u32,
        /// Writes that each place holds, from the first on without a gap; none once it was removed.
        source: Option<u32>,
        target: Option<u32>,
        definition: Place,
        journal: Option<Phase>,
        qemu: Option<Qemu>,
        gateway: Option<Gateway>,
        steps: Vec<Step>,
    }

    #[derive(Debug, Clone)]
    struct Qemu {
        attached: Place,
        runs: bool,
        /// None: no job; else how many writes are still to be copied.
        mirror: Option<u32>,
    }

    /// What a gateway is about to do.
    #[derive(Debug, Clone)]
    enum Gateway {
        Idle,
        Copy,
        Switch { next: usize, resume: bool },
        Release,
    }

    #[derive(Debug, Clone)]
    enum Op {
        Write,
        Copy,
        Advance,
        KillQemu,
        KillGateway,
        StartGateway,
        StartVm,
        MirrorFails,
        Pause,
        UserResumes,
        Move,
    }

    impl World {
        fn new(steps: &[Step]) -> Self {
            Self {
                acknowledged: 3,
                source: Some(3),
                target: None,
                definition: Place::Source,
                journal: None,
                qemu: Some(Qemu { attached: Place::Source, runs: true, mirror: None }),
                gateway: Some(Gateway::Idle),
                steps: steps.to_vec(),
            }
        }

        fn engine(&self) -> Engine {
            let on = |qemu: &Qemu| Engine::On { attached: Some(qemu.attached), mirrors: qemu.mirror.is_some() };
            self.qemu.as_ref().map_or(Engine::Off, on)
        }

        /// The disk, by the rule.
        fn disk(&self) -> Option<u32> {
            let place = self.qemu.as_ref().map_or(self.definition, |qemu| qemu.attached);
            if place == Place::Source { self.source } else { self.target }
        }

        fn apply(&mut self, op: &Op) {
            match op {
                Op::Write => self.write(),
                Op::Copy => {
                    if let Some(Qemu { mirror: Some(left @ 1..), .. }) = &mut self.qemu {
                        *left -= 1;
                        self.target = self.target.map(|held| held + 1);
                    }
                }
                Op::MirrorFails => {
                    if let Some(qemu) = &mut self.qemu {
                        qemu.mirror = None;
                    }
                }
                Op::Pause => {
                    if let (Some(qemu), Some(Gateway::Idle | Gateway::Copy)) = (&mut self.qemu, &self.gateway) {
                        qemu.runs = false;
                    }
                }
                Op::UserResumes => {
                    if let (Some(qemu), Some(Gateway::Idle | Gateway::Copy)) = (&mut self.qemu, &self.gateway) {
                        qemu.runs = true;
                    }
                }
                Op::KillQemu => self.qemu = None,
                Op::KillGateway => self.gateway = None,
                Op::StartGateway => self.start_gateway(),
                Op::StartVm => {
                    // A gateway first deals with what is left of a move.
                    if let (None, Some(Gateway::Idle)) = (&self.qemu, &self.gateway) {
                        self.qemu = Some(Qemu { attached: self.definition, runs: true, mirror: None });
                    }
                }
                Op::Move => self.begin(),
                Op::Advance => self.advance(),
            }
        }

        fn write(&mut self) {
            let Some(qemu) = &self.qemu else { return };
            if !qemu.runs {
                return;
            }
            self.acknowledged += 1;
            match (qemu.attached, qemu.mirror) {
                (Place::Source, mirror) => {
                    self.source = self.source.map(|held| held + 1);
                    // A write is passed on at once, but what is before it is missing until it was copied.
                    if mirror == Some(0) {
                        self.target = self.target.map(|held| held + 1);
                    } else if let Some(Qemu { mirror: Some(left), .. }) = &mut self.qemu {
                        *left += 1;
                    }
                }
                (Place::Target, _) => self.target = self.target.map(|held| held + 1),
            }
        }

        fn begin(&mut self) {
            let (Some(qemu), Some(Gateway::Idle)) = (&mut self.qemu, &self.gateway) else { return };
            if qemu.attached == Place::Source && self.journal.is_none() {
                self.journal = Some(Phase::Copying);
                self.target = Some(0);
                qemu.mirror = self.source;
                self.gateway = Some(Gateway::Copy);
            }
        }

        fn advance(&mut self) {
            let Some(gateway) = self.gateway.clone() else { return };
            match gateway {
                Gateway::Idle => {}
                Gateway::Copy => match &self.qemu {
                    Some(Qemu { mirror: Some(0), runs, .. }) => {
                        self.gateway = Some(Gateway::Switch { next: 0, resume: *runs });
                    }
                    Some(Qemu { mirror: Some(_), .. }) => {}
                    _ => self.recover(),
                },
                Gateway::Switch { next, resume } => self.switch(next, resume),
                Gateway::Release => {
                    self.source = None;
                    self.journal = None;
                    self.gateway = Some(Gateway::Idle);
                }
            }
        }

        fn switch(&mut self, next: usize, resume: bool) {
            let Some(step) = self.steps.get(next).copied() else {
                self.gateway = Some(Gateway::Release);
                return;
            };
            let done = match (step, &mut self.qemu) {
                (Step::NoteSwitching, _) => {
                    self.journal = Some(Phase::Switching { resume });
                    true
                }
                (Step::NoteSwitched, _) => {
                    self.journal = Some(Phase::Switched { resume });
                    true
                }
                (Step::Define, _) => {
                    self.definition = Place::Target;
                    true
                }
                (Step::Stop, Some(qemu)) => {
                    qemu.runs = false;
                    true
                }
                (Step::Compare, Some(_)) => self.source == self.target,
                (Step::Complete, Some(qemu)) => {
                    let in_step = qemu.mirror == Some(0);
                    if in_step {
                        (qemu.attached, qemu.mirror) = (Place::Target, None);
                    }
                    in_step
                }
                (Step::Resume, Some(qemu)) => {
                    qemu.runs |= resume;
                    true
                }
                (_, None) => false,
            };
            if done {
                self.gateway = Some(Gateway::Switch { next: next + 1, resume });
            } else {
                self.recover();
            }
        }

        fn start_gateway(&mut self) {
            if self.gateway.is_none() {
                self.gateway = Some(Gateway::Idle);
                if self.journal.is_some() {
                    self.recover();
                }
            }
        }

        fn recover(&mut self) {
            let resume = match self.journal {
                Some(Phase::Switching { resume } | Phase::Switched { resume }) => resume,
                _ => false,
            };
            match decide(self.definition, self.engine()) {
                Decision::Wait => {}
                Decision::GoOn => {
                    self.journal = Some(Phase::Copying);
                    self.gateway = Some(Gateway::Copy);
                    if let Some(qemu) = &mut self.qemu {
                        qemu.runs |= resume;
                    }
                }
                Decision::Discard => {
                    self.target = None;
                    self.journal = None;
                    self.gateway = Some(Gateway::Idle);
                    if let Some(qemu) = &mut self.qemu {
                        qemu.runs |= resume;
                    }
                }
                Decision::Finish => {
                    let settle = self.steps.iter().position(|step| *step == Step::Define).unwrap_or(0);
                    self.gateway = Some(if self.qemu.is_some() {
                        Gateway::Switch { next: settle, resume }
                    } else {
                        Gateway::Release
                    });
                }
            }
        }
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => Just(Op::Write),
            8 => Just(Op::Copy),
            12 => Just(Op::Advance),
            1 => Just(Op::KillQemu),
            2 => Just(Op::KillGateway),
            3 => Just(Op::StartGateway),
            2 => Just(Op::StartVm),
            1 => Just(Op::MirrorFails),
            1 => Just(Op::Pause),
            1 => Just(Op::UserResumes),
            4 => Just(Op::Move),
        ]
    }

    /// The first moment at which the disk, by the rule, lacks a write that the guest was told is there.
    fn loss(steps: &[Step], ops: &[Op]) -> Option<usize> {
        let mut world = World::new(steps);
        ops.iter().position(|op| {
            world.apply(op);
            world.disk() != Some(world.acknowledged)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn at_any_moment_the_rule_names_a_disk_that_holds_every_write(ops in proptest::collection::vec(op(), 0..120)) {
            for steps in [&SWITCH[..], &MERGE] {
                prop_assert_eq!(loss(steps, &ops), None);
            }
        }
    }

    #[test]
    fn another_order_loses_writes() {
        for steps in [&SWITCH[..], &MERGE] {
            let mut late = steps.to_vec();
            let running = steps.iter().copied().filter(|step| *step != Step::Stop).collect();
            let define = late.iter().position(|step| *step == Step::Define).expect("there");
            late[define..].rotate_left(1);
            for order in [late, running] {
                // The guest writes between any two steps, and QEMU is killed after some of them.
                let lost = (0..steps.len() + 2).any(|cut| {
                    let mut ops = [vec![Op::Move], vec![Op::Copy; 9]].concat();
                    ops.extend(std::iter::repeat_n([Op::Advance, Op::Write], cut).flatten());
                    ops.push(Op::KillQemu);
                    loss(&order, &ops).is_some()
                });
                assert!(lost, "{order:?} is as good, it seems");
            }
        }
    }

    #[test]
    fn a_move_comes_to_its_end() {
        let mut world = World::new(&SWITCH);
        let ops = [vec![Op::Move, Op::Copy, Op::Copy, Op::Copy], vec![Op::Advance; 12]].concat();
        ops.iter().for_each(|op| world.apply(op));
        assert_eq!((world.source, world.target, world.definition), (None, Some(3), Place::Target));
        assert!(world.journal.is_none() && world.qemu.is_some_and(|qemu| qemu.runs));
    }

    #[test]
    fn who_runs_is_right_and_else_the_definition() {
        let on = |attached, mirrors| Engine::On { attached, mirrors };
        assert_eq!(decide(Place::Source, on(Some(Place::Target), false)), Decision::Finish);
        assert_eq!(decide(Place::Source, on(Some(Place::Source), true)), Decision::GoOn);
        assert_eq!(decide(Place::Source, on(Some(Place::Source), false)), Decision::Discard);
        assert_eq!(decide(Place::Target, on(Some(Place::Source), false)), Decision::Discard);
        assert_eq!(decide(Place::Source, Engine::Off), Decision::Discard);
        assert_eq!(decide(Place::Target, Engine::Off), Decision::Finish);
        assert_eq!(decide(Place::Source, on(None, false)), Decision::Discard);
        assert_eq!(decide(Place::Target, Engine::Silent), Decision::Wait);
    }
}
