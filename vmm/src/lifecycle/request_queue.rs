//! Decides what a VM may be asked in which state, and in which order it happens.
//!
//! No I/O and no clock: the driver submits what callers ask, takes one request at a time with
//! [`next`](RequestQueue::next), carries it out, and reports how the state turned out.
//!
//! A request is judged twice. On submission against the state that the requests before it lead to, so
//! "start, then pause" is accepted at once; and when its turn comes against the state that was really
//! reached, because a start can fail.

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
}

#[derive(Debug)]
pub(crate) struct RequestQueue {
    state: VmState,
    process: Process,
    waiting: VecDeque<(RequestId, Request)>,
    running: Option<(RequestId, Request)>,
}

impl RequestQueue {
    pub(crate) fn new(state: VmState, process: Process) -> Self {
        Self { state, process, waiting: VecDeque::new(), running: None }
    }

    /// Takes a request in, or says why it cannot be.
    pub(crate) fn submit(&mut self, id: RequestId, request: Request) -> Result<(), Refusal> {
        let (state, process) = self.anticipated();
        if self.waiting.len() == MAX_WAITING {
            return Err(Refusal { request, state, why: "too many requests are waiting" });
        }
        decide(state, process, request)?;
        self.waiting.push_back((id, request));
        Ok(())
    }

    /// The next thing to do; nothing while a request runs.
    pub(crate) fn next(&mut self) -> Option<Step> {
        if self.running.is_some() {
            return None;
        }
        let (id, request) = self.waiting.pop_front()?;
        match decide(self.state, self.process, request) {
            Ok(_) => {
                self.running = Some((id, request));
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

    /// Where the requests taken in so far lead when all goes well.
    fn anticipated(&self) -> (VmState, Process) {
        let requests = self.running.iter().chain(&self.waiting);
        requests.fold((self.state, self.process), |(state, process), (_, request)| {
            decide(state, process, *request).unwrap_or((state, process))
        })
    }
}

/// The whole of the rules: where `request` leads from here, or why it is refused.
fn decide(state: VmState, process: Process, request: Request) -> Result<(VmState, Process), Refusal> {
    use Request::{Delete, Pause, PowerOff, Reset, Resume, Shutdown, Start};
    use VmState::{Created, Deleted, Failed, Paused, Running, Starting, Stopped, Stopping};

    let refuse = |why| Err(Refusal { request, state, why });
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
        (Starting | Stopping, Reset | Pause | Resume) => refuse("it is on its way to another state"),
        (Stopping, Shutdown) => refuse("it is on its way down already"),

        (Created | Stopped, Delete) => Ok((Deleted, Process::None)),
        (Failed, Delete) if process == Process::None => Ok((Deleted, Process::None)),
        (Starting | Running | Paused | Stopping, Delete) => refuse("it is on; power it off first"),
        (Failed, Delete) => refuse("its QEMU process still exists; power it off first"),

        (Failed, Shutdown | Reset | Pause | Resume) if process == Process::Alive => {
            refuse("its QEMU process does not answer; power it off first")
        }
        (Created | Stopped | Failed, Shutdown | PowerOff | Reset | Pause | Resume) => refuse("it is off"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
    const REQUESTS: [Request; 7] = [
        Request::Start,
        Request::Shutdown,
        Request::PowerOff,
        Request::Reset,
        Request::Pause,
        Request::Resume,
        Request::Delete,
    ];

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
            let fits = |request: &Request| queue(state).submit(RequestId(0), *request).is_ok();
            REQUESTS.into_iter().filter(fits).collect()
        };
        use Request::{Delete, Pause, PowerOff, Reset, Resume, Shutdown, Start};
        assert_eq!(allowed(VmState::Created), [Start, Delete]);
        assert_eq!(allowed(VmState::Running), [Shutdown, PowerOff, Reset, Pause]);
        assert_eq!(allowed(VmState::Paused), [PowerOff, Reset, Resume]);
        assert_eq!(allowed(VmState::Stopped), [Start, Delete]);
        assert_eq!(allowed(VmState::Failed), [Start, Delete]);
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
        assert!(RequestQueue::new(VmState::Failed, Process::Alive).submit(RequestId(0), Request::Start).is_ok());
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
            4 => proptest::sample::select(&REQUESTS[..]).prop_map(Op::Submit),
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
            for op in ops {
                match op {
                    Op::Submit(request) => {
                        number += 1;
                        if queue.submit(RequestId(number), request).is_ok() {
                            accepted.push_back((RequestId(number), request));
                        }
                    }
                    Op::Next => match queue.next() {
                        Some(Step::Run(id, request)) => {
                            prop_assert!(running.is_none(), "two at a time");
                            prop_assert_eq!(accepted.pop_front(), Some((id, request)));
                            prop_assert!(decide(queue.state, queue.process, request).is_ok());
                            running = Some(id);
                        }
                        Some(Step::Refuse(id, refusal)) => {
                            prop_assert_eq!(accepted.pop_front(), Some((id, refusal.request)));
                            prop_assert_eq!(refusal.state, queue.state);
                        }
                        None => prop_assert!(running.is_some() || accepted.is_empty()),
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
        fn nothing_is_allowed_after_deletion(request in proptest::sample::select(&REQUESTS[..])) {
            prop_assert!(decide(VmState::Deleted, Process::None, request).is_err());
        }
    }
}
