//! Coming to rest before the VM's state is saved or replaced.
//!
//! ```text
//! driver ──── Quiesce ───▶ whoever speaks the bus    PAUSE … PAUSED with the guest
//!        ◀─── ready() ────
//!   saves or loads
//!        ──── over ──────▶                           RESUME
//! ```

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// How long a VM waits for the answer; then its state is saved or loaded all the same.
const DEADLINE: Duration = Duration::from_secs(2);

/// Why everything must come to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuiesceReason {
    /// The state is to be saved: what is under way now would be in it, and without its other end when it is loaded. The
    /// guest runs and can be asked to finish.
    Save,
    /// Another state is to be loaded: what is under way, and all of the memory, will be gone. The guest need not be
    /// asked.
    Load,
}

/// A VM asks that nothing be under way on its bus. It waits for [`ready`](Self::ready), but 2 s at most; when this is dropped
/// it does not wait.
#[derive(Debug)]
pub struct Quiesce {
    /// Why.
    pub reason: QuiesceReason,
    ready: oneshot::Sender<()>,
    over: oneshot::Receiver<()>,
}

/// The questions of one VM, in order.
#[derive(Debug)]
pub struct QuiesceRequests {
    requests: mpsc::Receiver<Quiesce>,
}

/// Who answers a VM's questions.
#[derive(Debug, Default)]
pub(super) struct Quiescer {
    asked: Mutex<Option<mpsc::Sender<Quiesce>>>,
}

/// The VM's bus is at rest, as far as anybody saw to it, until this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct AtRest {
    _over: Option<oneshot::Sender<()>>,
}

impl Quiesce {
    /// Says that nothing is under way any more, and waits until the VM goes on, in whichever state: the watch tells
    /// whether another one was loaded. When this is dropped after it was polled, the answer was given all the same.
    pub async fn ready(self) {
        // Who asked may have gone on without an answer, which `over` tells too.
        let _ = self.ready.send(());
        let _ = self.over.await;
    }
}

impl QuiesceRequests {
    /// The next one; none when the VM is gone or somebody else has taken over. Cancel safe.
    pub async fn next(&mut self) -> Option<Quiesce> {
        self.requests.recv().await
    }
}

impl Quiescer {
    pub(super) fn requests(&self) -> QuiesceRequests {
        // A VM asks once at a time.
        let (asked, requests) = mpsc::channel(1);
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
        QuiesceRequests { requests }
    }

    pub(super) async fn quiesce(&self, reason: QuiesceReason) -> AtRest {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(asked) = asked else { return AtRest { _over: None } };
        let ((ready, is_ready), (over, is_over)) = (oneshot::channel(), oneshot::channel());
        let answered = timeout(DEADLINE, async {
            asked.send(Quiesce { reason, ready, over: is_over }).await.is_ok() && is_ready.await.is_ok()
        });
        if !answered.await.unwrap_or(false) {
            tracing::debug!(?reason, "the bus did not come to rest");
        }
        AtRest { _over: Some(over) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_answers_hears_when_it_is_over() {
        let quiescer = Quiescer::default();
        let mut requests = quiescer.requests();
        let answering = tokio::spawn(async move {
            let quiesce = requests.next().await.expect("asked");
            assert_eq!(quiesce.reason, QuiesceReason::Save);
            quiesce.ready().await;
        });
        let rest = quiescer.quiesce(QuiesceReason::Save).await;
        assert!(!answering.is_finished());
        drop(rest);
        answering.await.expect("over");
    }

    #[tokio::test]
    async fn nobody_and_who_went_away_are_not_waited_for() {
        let quiescer = Quiescer::default();
        drop(quiescer.quiesce(QuiesceReason::Save).await);
        drop(quiescer.requests());
        drop(quiescer.quiesce(QuiesceReason::Load).await);
        let mut requests = quiescer.requests();
        let dropped = tokio::spawn(async move { drop(requests.next().await) });
        drop(quiescer.quiesce(QuiesceReason::Load).await);
        dropped.await.expect("asked");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_waited_for_two_seconds() {
        let quiescer = Quiescer::default();
        let mut requests = quiescer.requests();
        let started = tokio::time::Instant::now();
        let rest = quiescer.quiesce(QuiesceReason::Save).await;
        assert_eq!(started.elapsed(), DEADLINE);
        // The answer comes late, and finds that it is over.
        drop(rest);
        requests.next().await.expect("asked").ready().await;
    }

    #[tokio::test]
    async fn the_newest_is_asked() {
        let quiescer = Quiescer::default();
        let (mut old, mut new) = (quiescer.requests(), quiescer.requests());
        let answered = tokio::spawn(async move { new.next().await.expect("asked").ready().await });
        let rest = quiescer.quiesce(QuiesceReason::Load).await;
        assert!(old.next().await.is_none());
        drop(rest);
        answered.await.expect("answered");
    }
}
