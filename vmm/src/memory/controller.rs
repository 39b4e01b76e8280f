//! The one task of a host that looks at all guests' memory, decides, and has it done.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout_at};
use uuid::Uuid;

use super::board::{Account, Board, occupied};
use super::exchange::Facts;
use super::hardware::{Mover, Orders};
use super::pool::HostMemory;
use super::view::{HostMemoryView, Reporter, VmMemoryView};
use super::{Decision, MemoryReport, MemorySettings, Observation, Phase, Policy, Sample};
use crate::definition::MemoryDevices;
use crate::lifecycle::{Message, VmState};

/// How long a tick waits for QEMUs; who is later is heard at the next.
const ANSWER_WITHIN: Duration = Duration::from_millis(250);
/// A report of the agent counts before the balloon's for so long.
const AGENT_COUNTS: Duration = Duration::from_secs(5);

/// Looks after the memory of the VMs on `board`, until nobody else has it. Asleep while no VM has dynamic memory.
pub(crate) async fn run(board: Weak<Board>) {
    let Some((bell, mut controller)) = board.upgrade().map(|board| (board.bell(), Controller::new(&board))) else {
        return;
    };
    loop {
        let Some(board) = board.upgrade() else { return };
        let (tick, began) = (board.config.tick, tokio::time::Instant::now());
        let busy = controller.tick(&board).await;
        drop(board);
        if busy {
            sleep(tick.saturating_sub(began.elapsed())).await;
        } else {
            bell.notified().await;
        }
    }
}

struct Controller {
    policy: Policy,
    conversations: BTreeMap<Uuid, Conversation>,
}

/// What was said with one VM.
#[derive(Default)]
struct Conversation {
    run: u64,
    mover: Mover,
    facts: Option<Facts>,
    sample: Option<Sample>,
    /// Tells the last report from the next.
    stamp: Option<u64>,
    /// When it was asked last.
    asked: Option<Instant>,
    /// What it has not answered yet.
    pending: Option<oneshot::Receiver<Option<Facts>>>,
}

/// A VM with dynamic memory that is on.
struct Sharer {
    account: Arc<Account>,
    settings: MemorySettings,
    devices: MemoryDevices,
}

impl Controller {
    fn new(board: &Board) -> Self {
        Self { policy: Policy::new(board.config.tuning), conversations: BTreeMap::new() }
    }

    /// Looks and decides once; `false` when there is nothing to look at.
    async fn tick(&mut self, board: &Board) -> bool {
        let accounts: Vec<Arc<Account>> = board.accounts();
        let (on, off): (Vec<_>, Vec<_>) = accounts.into_iter().partition(|account| account.is_on());
        off.iter().for_each(|account| account.show(None));
        let sharers: Vec<Sharer> = on.iter().filter_map(Sharer::of).collect();
        self.conversations.retain(|id, _| sharers.iter().any(|sharer| sharer.account.id == *id));
        if sharers.is_empty() {
            board.show(None);
            return false;
        }
        self.ask(&sharers).await;
        match HostMemory::read() {
            Ok(host) => self.decide(board, host, &on, &sharers),
            Err(error) => tracing::warn!(%error, "the host does not tell how much memory it has"),
        }
        true
    }

    /// Asks all VMs at once, and waits a moment for their answers.
    async fn ask(&mut self, sharers: &[Sharer]) {
        let deadline = tokio::time::Instant::now() + ANSWER_WITHIN;
        for sharer in sharers {
            let conversation = self.conversations.entry(sharer.account.id).or_default();
            conversation.begin(sharer.account.run());
            // One that has not done what it was told last is not asked for more.
            if conversation.is_free() {
                conversation.say(&sharer.account, None);
            }
        }
        for sharer in sharers {
            if let Some(conversation) = self.conversations.get_mut(&sharer.account.id) {
                conversation.listen(deadline).await;
            }
        }
    }

    fn decide(&mut self, board: &Board, host: HostMemory, on: &[Arc<Account>], sharers: &[Sharer]) {
        let now = Instant::now();
        let occupied = occupied(on.iter());
        let pool = board.config.pool.pool(host, occupied);
        let observations: Vec<Observation> =
            sharers.iter().map(|sharer| sharer.observe(now, self.conversations.get_mut(&sharer.account.id))).collect();
        let plan = self.policy.step(now, pool, &observations);
        board.show(Some(HostMemoryView {
            total: host.total,
            available: host.available,
            reserve: board.config.pool.reserve(host),
            fixed: occupied.fixed,
            pool,
            least: plan.least,
        }));
        for (sharer, (observation, decision)) in sharers.iter().zip(observations.iter().zip(&plan.decisions)) {
            sharer.account.show(Some(sharer.view(now, observation, decision)));
            if let Some(conversation) = self.conversations.get_mut(&sharer.account.id) {
                conversation.order(now, sharer, decision);
            }
        }
    }
}

impl Sharer {
    fn of(account: &Arc<Account>) -> Option<Self> {
        Some(Self { account: account.clone(), settings: account.settings()?, devices: account.devices()? })
    }

    fn observe(&self, now: Instant, conversation: Option<&mut Conversation>) -> Observation {
        let state = self.account.status().state;
        let known = conversation.as_ref().and_then(|conversation| conversation.facts);
        let sample = conversation.as_ref().and_then(|conversation| conversation.sample);
        Observation {
            id: self.account.id,
            settings: self.settings,
            run: self.account.run(),
            assigned: known.map_or(self.settings.startup, |facts| facts.amounts.assigned()),
            phase: if matches!(state, VmState::Starting | VmState::Running) { Phase::Running } else { Phase::Still },
            grows: conversation.is_none_or(|conversation| conversation.mover.grows(now)),
            sample: self.fresh_agent(now).map(|agent| with_killed(agent, sample)).or(sample),
        }
    }

    fn fresh_agent(&self, now: Instant) -> Option<Sample> {
        self.account.agent().filter(|sample| now.saturating_duration_since(sample.taken) <= AGENT_COUNTS)
    }

    fn view(&self, now: Instant, observation: &Observation, decision: &Decision) -> VmMemoryView {
        let sample = observation.sample;
        let reporter = if self.fresh_agent(now).is_some() { Reporter::Agent } else { Reporter::Balloon };
        VmMemoryView {
            settings: self.settings,
            assigned: observation.assigned,
            demand: decision.demand,
            target: decision.target,
            least: decision.least,
            reason: decision.reason,
            reporter: sample.map(|_| reporter),
            report_age: sample.map(|sample| now.saturating_duration_since(sample.taken).as_secs()),
            stalled: sample.and_then(|sample| sample.report.stalled),
            killed: sample.and_then(|sample| sample.report.killed),
        }
    }
}

/// The agent's report, with what only the balloon tells.
fn with_killed(agent: Sample, balloon: Option<Sample>) -> Sample {
    let killed = agent.report.killed.or(balloon.and_then(|sample| sample.report.killed));
    Sample { report: MemoryReport { killed, ..agent.report }, ..agent }
}

impl Conversation {
    /// Forgets what was before the guest started over.
    fn begin(&mut self, run: u64) {
        if self.run != run {
            // The stamp stays: QEMU goes on showing the old report until there is another.
            *self = Self { run, stamp: self.stamp, pending: self.pending.take(), ..Self::default() };
        }
    }

    /// Whether everything that was said has been answered; takes in an answer that came late.
    fn is_free(&mut self) -> bool {
        let Some(pending) = &mut self.pending else { return true };
        match pending.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => false,
            // An answer to orders, or to a question of a moment that has passed.
            _ => {
                self.pending = None;
                true
            }
        }
    }

    fn say(&mut self, account: &Account, orders: Option<Orders>) {
        let (reply, answer) = oneshot::channel();
        let message = Message::Memory { orders, reply };
        // A driver that is gone or has no room for it is busy with more important things.
        if account.driver.upgrade().is_some_and(|driver| driver.try_send(message).is_ok()) {
            self.pending = Some(answer);
        }
    }

    async fn listen(&mut self, deadline: tokio::time::Instant) {
        let Some(pending) = &mut self.pending else { return };
        let Ok(answer) = timeout_at(deadline, pending).await else { return };
        self.pending = None;
        let Some(facts) = answer.ok().flatten() else { return };
        self.take_in(facts);
    }

    fn take_in(&mut self, facts: Facts) {
        let now = Instant::now();
        // What is new was made since it was asked last.
        let since = self.asked.replace(now).or_else(|| now.checked_sub(Duration::from_secs(1))).unwrap_or(now);
        if let Some(told) = facts.report
            && (told.stamp.is_none() || told.stamp != self.stamp)
        {
            self.stamp = told.stamp;
            self.sample = Some(Sample { taken: since, report: told.report });
        }
        self.facts = Some(facts);
    }

    fn order(&mut self, now: Instant, sharer: &Sharer, decision: &Decision) {
        let Some(facts) = self.facts else { return };
        if self.pending.is_some() {
            return;
        }
        let orders = self.mover.orders(now, decision.level, decision.least, &facts.amounts, sharer.devices);
        if orders != Orders::NONE {
            tracing::debug!(vm = %sharer.account.id, ?orders, reason = %decision.reason, "memory");
            self.say(&sharer.account, Some(orders));
        }
    }
}
