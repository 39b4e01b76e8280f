//! Decides what a VM may be asked in which state, and in which order it happens.
//!
//! No I/O and no clock: the driver submits what callers ask, takes one request at a time with
//! [`next`](RequestQueue::next), carries it out, and reports how the state turned out.
//!
//! A request is judged twice. On submission against the state that the requests before it lead to, so
//! "start, then pause" is accepted at once; and when its turn comes against the state that was really
//! reached, because a start can fail.
//!
//! One at a time, and in order. But a power off waits for nothing that takes long: a snapshot that is being saved, loaded
//! or deleted is given up for it, and what waits before it is refused.

use std::collections::VecDeque;

use super::state::{Refusal, Request, VmState};

/// Most requests that wait; nobody asks faster than a VM can start and stop unless something is wrong.
pub(crate) const MAX_WAITING: usize = 16;

/// Names a request until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RequestId(pub(crate) u64);

/// Whether a QEMU process of the VM exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    None,
    Alive,
}

/// What the driver must do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Carry out the request, then call [`RequestQueue::finish`].
    Run(RequestId, Request),
    /// Answer that the request is refused after all.
    Refuse(RequestId, Refusal),
    /// Give up the request that runs, answer that, and call [`RequestQueue::finish`].
    Abandon(RequestId),
}

#[derive(Debug)]
pub(crate) struct RequestQueue {
    state: VmState,
    process: Process,
    waiting: VecDeque<(RequestId, Request)>,
    running: Option<(RequestId, Request)>,
    /// Whether the guest stands still for now and goes on by itself.
    wakes: bool,
    /// Whether one was given up for a power off whose turn is still to come.
    hurries: bool,
}

impl RequestQueue {
    pub(crate) fn new(state: VmState, process: Process) -> Self {
        Self { state, process, waiting: VecDeque::new(), running: None, wakes: false, hurries: false }
    }

    /// Takes a request in, or says why it cannot be.
    pub(crate) fn submit(&mut self, id: RequestId, request: Request) -> Result<(), Refusal> {
        let (state, process) = self.anticipated();
        if self.waiting.len() == MAX_WAITING {
            return Err(Refusal { request, state, why: "too many requests are waiting" });
        }
        self.judge(state, process, &request)?;
        self.waiting.push_back((id, request));
        Ok(())
    }

    /// The next thing to do; while a request runs, that can only be to give it up.
    pub(crate) fn next(&mut self) -> Option<Step> {
        if let Some((id, request)) = &self.running {
            self.hurries = request.takes_long() && self.waiting.iter().any(|(_, next)| *next == Request::PowerOff);
            return self.hurries.then_some(Step::Abandon(*id));
        }
        let (id, request) = self.waiting.pop_front()?;
        self.hurries &= request != Request::PowerOff;
        if self.hurries {
            let why = "it is to be powered off first";
            return Some(Step::Refuse(id, Refusal { request, state: self.state, why }));
        }
        match self.judge(self.state, self.process, &request) {
            Ok(_) => {
                self.running = Some((id, request.clone()));
                Some(Step::Run(id, request))
            }
            Err(refusal) => Some(Step::Refuse(id, refusal)),
        }
    }

    /// The running request has been carried out, or has failed; this is where the VM is now.
    pub(crate) fn finish(&mut self, state: VmState, process: Process) {
        assert!(self.running.take().is_some(), "only a running request can finish");
        self.observe(state, process);
    }

    /// The state changed, by a request or by itself.
    pub(crate) fn observe(&mut self, state: VmState, process: Process) {
        self.state = state;
        self.process = process;
    }

    /// Whether the guest stands still for now and goes on by itself, unless it is told not to.
    pub(crate) fn observe_wait(&mut self, wakes: bool) {
        self.wakes = wakes;
    }

    fn judge(&self, state: VmState, process: Process, request: &Request) -> Result<(VmState, Process), Refusal> {
        match (state, request) {
            (VmState::Paused, Request::Pause) if self.wakes => Ok((state, process)),
            _ => decide(state, process, request),
        }
    }

    /// Where the requests taken in so far lead when all goes well.
    fn anticipated(&self) -> (VmState, Process) {
        let requests = self.running.iter().chain(&self.waiting);
        requests.fold((self.state, self.process), |(state, process), (_, request)| {
            self.judge(state, process, request).unwrap_or((state, process))
        })
    }
}

/// The whole of the rules: where `request` leads from here, or why it is refused.
fn decide(state: VmState, process: Process, request: &Request) -> Result<(VmState, Process), Refusal> {
    use Request::{
        AttachDisk, ChangeDisc, Delete, DeleteSnapshot, DetachDisk, LoadSnapshot, Pause, PowerOff, Reset, ResizeDisk,
        RestoreDisks, Resume, SaveSnapshot, Shutdown, Start, SwitchDisk,
    };
    use VmState::{Created, Deleted, Failed, Paused, Running, Starting, Stopped, Stopping};

    let refuse = |why| Err(Refusal { request: request.clone(), state, why });
    match (state, request) {
        (Deleted, _) => refuse("it is no more"),

        // A failed VM may have a QEMU left that answers no more; a start ends it first.
        (Created | Stopped | Failed, Start) => Ok((Running, Process::Alive)),
        (Starting | Running | Paused | Stopping, Start) => refuse("it is on already"),

        // The guest decides whether and when it goes down, so nothing is anticipated.
        (Starting | Running, Shutdown) => Ok((state, process)),
        (Paused, Shutdown) => refuse("a guest that stands still cannot shut down; resume it first"),

        (Starting | Running | Paused | Stopping, PowerOff) => Ok((Stopped, Process::None)),
        (Failed, PowerOff) if process == Process::Alive => Ok((Stopped, Process::None)),

        (Running | Paused, Reset) => Ok((state, process)),
        (Running, Pause) => Ok((Paused, process)),
        (Paused, Pause) => refuse("it stands still already"),
        (Paused, Resume) => Ok((Running, process)),
        (Running, Resume) => refuse("it runs already"),

        // Processors that stood still before a load stand still after it.
        (Running | Paused, SaveSnapshot { .. } | LoadSnapshot { .. } | DeleteSnapshot { .. }) => Ok((state, process)),
        // It stands still for a moment, and is then as before.
        (Running | Paused, SwitchDisk { .. } | ResizeDisk { .. }) => Ok((state, process)),
        // As for a start.
        (Created | Stopped | Failed, LoadSnapshot { .. }) => Ok((Running, Process::Alive)),
        (Running | Paused | Created | Stopped | Failed, RestoreDisks { .. }) => Ok((Stopped, Process::None)),
        (Created | Stopped | Failed, SaveSnapshot { .. } | DeleteSnapshot { .. }) if process == Process::None => {
            Ok((state, process))
        }

        (
            Starting | Stopping,
            Reset
            | Pause
            | Resume
            | SaveSnapshot { .. }
            | LoadSnapshot { .. }
            | RestoreDisks { .. }
            | DeleteSnapshot { .. }
            | ResizeDisk { .. }
            | SwitchDisk { .. },
        ) => refuse("it is on its way to another state"),
        (Stopping, Shutdown) => refuse("it is on its way down already"),

        // In the definition, and in QEMU if there is one.
        (Created | Stopped | Running | Paused, AttachDisk { .. } | DetachDisk { .. } | ChangeDisc { .. }) => {
            Ok((state, process))
        }
        (Failed, AttachDisk { .. } | DetachDisk { .. } | ChangeDisc { .. }) if process == Process::None => {
            Ok((state, process))
        }
        (Starting | Stopping, AttachDisk { .. } | DetachDisk { .. } | ChangeDisc { .. }) => {
            refuse("it is on its way to another state")
        }
        (Failed, AttachDisk { .. } | DetachDisk { .. } | ChangeDisc { .. }) => {
            refuse("its QEMU process does not answer; power it off first")
        }

        (Created | Stopped, Delete) => Ok((Deleted, Process::None)),
        (Failed, Delete) if process == Process::None => Ok((Deleted, Process::None)),
        (Starting | Running | Paused | Stopping, Delete) => refuse("it is on; power it off first"),
        (Failed, Delete) => refuse("its QEMU process still exists; power it off first"),

        (
            Failed,
            Shutdown
            | Reset
            | Pause
            | Resume
            | SaveSnapshot { .. }
            | DeleteSnapshot { .. }
            | ResizeDisk { .. }
            | SwitchDisk { .. },
        ) if process == Process::Alive => refuse("its QEMU process does not answer; power it off first"),
        (
            Created | Stopped | Failed,
            Shutdown
            | PowerOff
            | Reset
            | Pause
            | Resume
            | SaveSnapshot { .. }
            | DeleteSnapshot { .. }
            | ResizeDisk { .. }
            | SwitchDisk { .. },
        ) => refuse("it is off"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::definition::{Disk, DiskBus, DiskFormat, DiskSource};

    const STATES: [VmState; 8] = [
        VmState::Created,
        VmState::Starting,
        VmState::Running,
        VmState::Paused,
        VmState::Stopping,
        VmState::Stopped,
        VmState::Failed,
        VmState::Deleted,
    ];
    fn requests() -> Vec<Request> {
        let tag = || "a".parse().expect("a name");
        vec![
            Request::Start,
            Request::Shutdown,
            Request::PowerOff,
            Request::Reset,
            Request::Pause,
            Request::Resume,
            Request::Delete,
            save(),
            Request::LoadSnapshot { tag: tag() },
            Request::RestoreDisks { tag: tag() },
            Request::DeleteSnapshot { tag: tag() },
            attach(),
            Request::DetachDisk { id: "a".into() },
            Request::ChangeDisc { id: "a".into(), source: Box::new(DiskSource::Empty), force: false },
        ]
    }

    fn attach() -> Request {
        let disk = Disk::new(DiskSource::Empty, DiskFormat::Raw, DiskBus::Scsi);
        Request::AttachDisk { disk: Box::new(disk) }
    }

    fn save() -> Request {
        Request::SaveSnapshot { tag: "a".parse().expect("a name") }
    }

    fn queue(state: VmState) -> RequestQueue {
        let process = match state {
            VmState::Created | VmState::Stopped | VmState::Deleted | VmState::Failed => Process::None,
            _ => Process::Alive,
        };
        RequestQueue::new(state, process)
    }

    #[test]
    fn each_state_allows_what_makes_sense_in_it() {
        let allowed = |state| -> Vec<Request> {
            let fits = |request: &Request| queue(state).submit(RequestId(0), request.clone()).is_ok();
            requests().into_iter().filter(fits).collect()
        };
        let others = requests().split_off(7);
        let and_others = |these: &[Request]| [these, others.as_slice()].concat();
        use Request::{Delete, Pause, PowerOff, Reset, Resume, Shutdown, Start};
        assert_eq!(allowed(VmState::Created), and_others(&[Start, Delete]));
        assert_eq!(allowed(VmState::Running), and_others(&[Shutdown, PowerOff, Reset, Pause]));
        assert_eq!(allowed(VmState::Paused), and_others(&[PowerOff, Reset, Resume]));
        assert_eq!(allowed(VmState::Stopped), and_others(&[Start, Delete]));
        assert_eq!(allowed(VmState::Failed), and_others(&[Start, Delete]));
        assert_eq!(allowed(VmState::Deleted), []);
    }

    #[test]
    fn a_failed_vm_with_a_qemu_left_is_started_over_or_switched_off_but_not_deleted() {
        let mut queue = RequestQueue::new(VmState::Failed, Process::Alive);
        let refusal = queue.submit(RequestId(0), Request::Delete).expect_err("refused");
        assert_eq!(
            refusal.to_string(),
            "cannot delete a VM that is failed: its QEMU process still exists; power it off first"
        );
        assert!(queue.submit(RequestId(1), Request::PowerOff).is_ok());
        let mut queue = RequestQueue::new(VmState::Failed, Process::Alive);
        let refusal = queue.submit(RequestId(0), save()).expect_err("its disks are in use").to_string();
        assert!(refusal.ends_with("its QEMU process does not answer; power it off first"), "{refusal}");
        assert!(queue.submit(RequestId(1), Request::Start).is_ok());
    }

    #[test]
    fn a_request_is_judged_by_what_those_before_it_lead_to() {
        let mut queue = queue(VmState::Created);
        assert!(queue.submit(RequestId(1), Request::Start).is_ok());
        assert!(queue.submit(RequestId(2), Request::Pause).is_ok());
        let refusal = queue.submit(RequestId(3), Request::Pause).expect_err("paused twice");
        assert_eq!(refusal.to_string(), "cannot pause a VM that is paused: it stands still already");
    }

    #[test]
    fn a_guest_that_would_go_on_by_itself_can_be_told_to_stand_still() {
        let mut queue = queue(VmState::Paused);
        assert!(queue.submit(RequestId(1), Request::Pause).is_err());
        queue.observe_wait(true);
        assert!(queue.submit(RequestId(2), Request::Pause).is_ok());
        assert!(queue.submit(RequestId(3), Request::Resume).is_ok());
        assert_eq!(queue.next(), Some(Step::Run(RequestId(2), Request::Pause)));
        queue.observe_wait(false);
        queue.finish(VmState::Paused, Process::Alive);
        assert_eq!(queue.next(), Some(Step::Run(RequestId(3), Request::Resume)));
    }

    #[test]
    fn what_followed_a_failed_start_is_refused_when_its_turn_comes() {
        let mut queue = queue(VmState::Created);
        queue.submit(RequestId(1), Request::Start).expect("allowed");
        queue.submit(RequestId(2), Request::Pause).expect("allowed");
        assert_eq!(queue.next(), Some(Step::Run(RequestId(1), Request::Start)));
        assert_eq!(queue.next(), None, "one at a time");
        queue.finish(VmState::Failed, Process::None);
        let Some(Step::Refuse(RequestId(2), refusal)) = queue.next() else { panic!("must be refused") };
        assert_eq!(refusal.to_string(), "cannot pause a VM that is failed: it is off");
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn a_power_off_waits_for_no_snapshot() {
        let mut queue = queue(VmState::Running);
        queue.submit(RequestId(1), save()).expect("allowed");
        assert_eq!(queue.next(), Some(Step::Run(RequestId(1), save())));
        queue.submit(RequestId(2), Request::Pause).expect("allowed");
        assert_eq!(queue.next(), None, "a pause waits");
        queue.submit(RequestId(3), Request::PowerOff).expect("allowed");
        queue.submit(RequestId(4), Request::Start).expect("allowed");
        assert_eq!(queue.next(), Some(Step::Abandon(RequestId(1))));
        queue.finish(VmState::Running, Process::Alive);
        let Some(Step::Refuse(RequestId(2), refusal)) = queue.next() else { panic!("must be refused") };
        assert_eq!(refusal.to_string(), "cannot pause a VM that is running: it is to be powered off first");
        assert_eq!(queue.next(), Some(Step::Run(RequestId(3), Request::PowerOff)));
        queue.finish(VmState::Stopped, Process::None);
        assert_eq!(queue.next(), Some(Step::Run(RequestId(4), Request::Start)));
    }

    #[test]
    fn a_power_off_waits_for_what_is_done_in_a_moment() {
        let mut queue = queue(VmState::Running);
        queue.submit(RequestId(1), Request::Pause).expect("allowed");
        queue.submit(RequestId(2), save()).expect("allowed");
        queue.submit(RequestId(3), Request::PowerOff).expect("allowed");
        assert_eq!(queue.next(), Some(Step::Run(RequestId(1), Request::Pause)));
        assert_eq!(queue.next(), None);
        queue.finish(VmState::Paused, Process::Alive);
        assert_eq!(queue.next(), Some(Step::Run(RequestId(2), save())));
        assert_eq!(queue.next(), Some(Step::Abandon(RequestId(2))));
    }

    #[derive(Debug, Clone)]
    enum Op {
        Submit(Request),
        Next,
        Finish(VmState, Process),
        Observe(VmState, Process),
    }

    fn op() -> impl Strategy<Value = Op> {
        let state = || proptest::sample::select(&STATES[..]);
        let process = || prop_oneof![Just(Process::None), Just(Process::Alive)];
        prop_oneof![
            4 => proptest::sample::select(requests()).prop_map(Op::Submit),
            3 => Just(Op::Next),
            3 => (state(), process()).prop_map(|(state, process)| Op::Finish(state, process)),
            1 => (state(), process()).prop_map(|(state, process)| Op::Observe(state, process)),
        ]
    }

    proptest! {
        #[test]
        fn every_accepted_request_is_answered_once_and_in_order(
            start in proptest::sample::select(&STATES[..]),
            ops in proptest::collection::vec(op(), 0..80),
        ) {
            let mut queue = RequestQueue::new(start, Process::None);
            let (mut number, mut running, mut accepted) = (0, None, VecDeque::new());
            // Whether one has been given up and the power off has not had its turn.
            let mut hurries = false;
            for op in ops {
                match op {
                    Op::Submit(request) => {
                        number += 1;
                        if queue.submit(RequestId(number), request.clone()).is_ok() {
                            accepted.push_back((RequestId(number), request));
                        }
                    }
                    Op::Next => match queue.next() {
                        Some(Step::Run(id, request)) => {
                            prop_assert!(running.is_none(), "two at a time");
                            prop_assert!(decide(queue.state, queue.process, &request).is_ok());
                            prop_assert!(!hurries || request == Request::PowerOff, "what was given up was so for nothing");
                            hurries = false;
                            prop_assert_eq!(accepted.pop_front(), Some((id, request.clone())));
                            running = Some((id, request));
                        }
                        Some(Step::Refuse(id, refusal)) => {
                            prop_assert_eq!(refusal.state, queue.state);
                            hurries &= refusal.request != Request::PowerOff;
                            prop_assert_eq!(accepted.pop_front(), Some((id, refusal.request)));
                        }
                        Some(Step::Abandon(id)) => {
                            let (given_up, request) = running.take().expect("it runs");
                            prop_assert!(given_up == id && request.takes_long());
                            prop_assert!(accepted.iter().any(|(_, request)| *request == Request::PowerOff));
                            hurries = true;
                            queue.finish(queue.state, queue.process);
                        }
                        None => {
                            prop_assert!(running.is_some() || accepted.is_empty());
                            let long = running.as_ref().is_some_and(|(_, request): &(_, Request)| request.takes_long());
                            let off = accepted.iter().any(|(_, request)| *request == Request::PowerOff);
                            prop_assert!(!(long && off), "a power off waits for what takes long");
                        }
                    },
                    Op::Finish(state, process) => if running.take().is_some() {
                        queue.finish(state, process);
                    },
                    Op::Observe(state, process) => queue.observe(state, process),
                }
                prop_assert!(queue.waiting.len() <= MAX_WAITING);
                prop_assert_eq!(queue.waiting.len(), accepted.len());
            }
        }

        #[test]
        fn nothing_is_allowed_after_deletion(request in proptest::sample::select(requests())) {
            prop_assert!(decide(VmState::Deleted, Process::None, &request).is_err());
        }
    }
}
