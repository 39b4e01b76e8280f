//! Long jobs: what runs for minutes has a number, says how far it has come, can be cancelled, and is not forgotten
//! when the gateway ends under it.
//!
//! * `job`: the words and numbers,
//! * `registry`: the book of all jobs; pure,
//! * `meter`: rate and time left,
//! * `store`: the book on disk,
//! * `leftover`: what an interrupted job leaves, and clearing it away,
//! * this file: [`Jobs`], which whoever has a job to do, or asks about one, holds.

mod job;
mod leftover;
mod meter;
mod registry;
mod store;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout;

pub use job::{Job, JobId, JobKind, JobState, NewJob, Progress, Unfinished};
pub(crate) use leftover::{FileStamp, Leftover};

use registry::{Cancel, Outcome, Registry};
use store::Store;

/// All jobs of a gateway. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Jobs {
    shared: Arc<Shared>,
}

/// A handle that keeps no jobs.
#[derive(Debug, Clone)]
pub(crate) struct WeakJobs(Weak<Shared>);

#[derive(Debug)]
struct Shared {
    registry: Mutex<Registry>,
    /// One file is written at a time, each with the latest of its job.
    store: Mutex<Store>,
    /// Says that something changed; true once the gateway stops.
    changes: watch::Sender<bool>,
}

/// A job in the hands of who does it.
#[derive(Debug)]
pub struct JobHandle {
    jobs: Jobs,
    id: JobId,
}

/// A job cannot be begun or cancelled.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    /// The folder or a file of it cannot be used.
    #[error("jobs folder {}: {error}", folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There is no room.
    #[error("too many jobs run; wait for one to end, or cancel one")]
    TooMany,
    /// There is no such job.
    #[error("there is no job {0}")]
    Unknown(JobId),
    /// It is too late for a cancel.
    #[error("job {id} cannot be cancelled: {why}")]
    NotCancelled {
        /// Which.
        id: JobId,
        /// Why not.
        why: String,
    },
}

impl WeakJobs {
    /// The jobs, if anybody has them still.
    pub(crate) fn upgrade(&self) -> Option<Jobs> {
        Some(Jobs { shared: self.0.upgrade()? })
    }
}

impl Jobs {
    /// Opens the book in `folder`. What an earlier gateway left unfinished waits for
    /// [`interrupt_orphans`](Self::interrupt_orphans).
    ///
    /// # Errors
    ///
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path) -> Result<Self, JobsError> {
        let (store, found) = Store::open(folder).map_err(|error| JobsError::Io { folder: folder.into(), error })?;
        for (file, reason) in &found.refused {
            tracing::warn!(file = %file.display(), reason, "a job's file is left as it is");
        }
        let registry = Mutex::new(Registry::restore(found.records, found.next));
        let shared = Shared { registry, store: Mutex::new(store), changes: watch::Sender::new(false) };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub(crate) fn downgrade(&self) -> WeakJobs {
        WeakJobs(Arc::downgrade(&self.shared))
    }

    /// Ends the jobs that nobody took over, and clears away what they left.
    pub async fn interrupt_orphans(&self) {
        let orphans = self.registry().orphans();
        for id in orphans {
            let Some(record) = self.registry().get(id).cloned() else { continue };
            let cleared = clear(record.leftovers).await;
            let outcome = if cleared.complete { Outcome::Done(None) } else { Outcome::Interrupted(cleared.in_words()) };
            tracing::info!(job = id.0, ?outcome, "a job that was interrupted");
            self.finish(id, outcome).await;
        }
    }

    /// Begins a job and has `work` do it, in a task of its own.
    ///
    /// # Errors
    ///
    /// When too many run, or it cannot be noted on disk.
    pub async fn spawn<F, W>(&self, new: NewJob, work: F) -> Result<Job, JobsError>
    where
        F: FnOnce(JobHandle) -> W,
        W: Future<Output = Result<Option<Value>, Unfinished>> + Send + 'static,
    {
        let handle = self.begin(new).await?;
        let id = handle.id;
        let job = self.get(id).ok_or(JobsError::Unknown(id))?;
        self.drive(id, work(handle));
        Ok(job)
    }

    /// The same for what was asked of an earlier gateway, if `again` is a job of that.
    pub(crate) async fn spawn_as<F, W>(&self, again: Option<JobId>, new: NewJob, work: F) -> Result<Job, JobsError>
    where
        F: FnOnce(JobHandle) -> W,
        W: Future<Output = Result<Option<Value>, Unfinished>> + Send + 'static,
    {
        let Some(id) = again else { return self.spawn(new, work).await };
        self.adopt(id, work).ok_or(JobsError::Unknown(id))?;
        self.get(id).ok_or(JobsError::Unknown(id))
    }

    /// The jobs of an earlier gateway that are to begin again, and what was asked. What they had made is cleared away.
    pub(crate) async fn to_begin_again(&self) -> Vec<(JobId, Value)> {
        let mut jobs = Vec::new();
        let orphans = self.registry().orphans();
        for id in orphans {
            let Some(record) = self.registry().get(id).cloned() else { continue };
            let Some(asked) = record.to_begin_again().cloned() else { continue };
            let cleared = clear(record.leftovers).await;
            if cleared.complete {
                self.finish(id, Outcome::Done(None)).await;
            } else if cleared.kept.is_empty() {
                jobs.push((id, asked));
            }
        }
        jobs
    }

    /// Ends a job of an earlier gateway that cannot begin again.
    pub(crate) async fn give_up(&self, id: JobId, reason: String) {
        self.finish(id, Outcome::Failed(reason)).await;
    }

    /// Whether it is one on which nobody works, though it has not ended.
    pub(crate) fn is_orphan(&self, id: JobId) -> bool {
        self.registry().orphans().contains(&id)
    }

    /// Ends the programs that an earlier gateway left running for a job. Its files are in the hands of who adopts it.
    pub(crate) async fn end_programs(&self, id: JobId) {
        let leftovers = self.registry().get(id).map(|record| record.leftovers.clone()).unwrap_or_default();
        let programs: Vec<_> = leftovers.into_iter().filter(|left| matches!(left, Leftover::Program { .. })).collect();
        let cleared = clear(programs).await;
        for kept in &cleared.kept {
            tracing::warn!(job = id.0, kept, "what is left of a job cannot be ended");
        }
    }

    /// Goes on with a job that an earlier gateway left unfinished; none when it has ended or somebody works on it.
    pub(crate) fn adopt<F, W>(&self, id: JobId, work: F) -> Option<()>
    where
        F: FnOnce(JobHandle) -> W,
        W: Future<Output = Result<Option<Value>, Unfinished>> + Send + 'static,
    {
        let adopted = self.registry().adopt(id);
        adopted.then(|| self.drive(id, work(JobHandle { jobs: self.clone(), id })))
    }

    /// Has `work` done in a task of its own, and notes how the job ends.
    fn drive(&self, id: JobId, work: impl Future<Output = Result<Option<Value>, Unfinished>> + Send + 'static) {
        let jobs = self.clone();
        let task = tokio::spawn(work);
        tokio::spawn(async move {
            let outcome = match task.await {
                Ok(Ok(result)) => Outcome::Done(result),
                Ok(Err(Unfinished::Failed(reason))) => Outcome::Failed(reason),
                Ok(Err(Unfinished::Left)) => return jobs.leave_to_the_next(id),
                Ok(Err(Unfinished::Stopped)) if jobs.begins_again(id) => return jobs.leave_to_the_next(id),
                Ok(Err(Unfinished::Stopped)) => Outcome::Stopped("the gateway stopped; nothing is left of it".into()),
                // Whatever it was, it is ours, and the log has it.
                Err(_) => Outcome::Failed("a mistake of Fanlight's ended it".into()),
            };
            jobs.finish(id, outcome).await;
        });
    }

    fn leave_to_the_next(&self, id: JobId) {
        self.registry().release(id);
        self.changed();
    }

    /// Whether the next gateway begins it again when this one ends.
    fn begins_again(&self, id: JobId) -> bool {
        self.registry().get(id).is_some_and(|record| record.to_begin_again().is_some())
    }

    /// All jobs that are remembered, the latest first.
    #[must_use]
    pub fn list(&self) -> Vec<Job> {
        self.registry().list()
    }

    /// One job.
    #[must_use]
    pub fn get(&self, id: JobId) -> Option<Job> {
        self.registry().get(id).map(|record| record.job.clone())
    }

    /// One job, as soon as its revision is greater than `after`; as it is when that takes longer than `patience`.
    pub async fn wait(&self, id: JobId, after: u64, patience: Duration) -> Option<Job> {
        let mut changes = self.shared.changes.subscribe();
        let changed = changes
            .wait_for(|stopping| *stopping || self.registry().get(id).is_none_or(|record| record.job.revision > after));
        // In either case what counts is what it is now.
        let _ = timeout(patience, changed).await;
        self.get(id)
    }

    /// Asks a job to stop. It is `Cancelled` when it has.
    ///
    /// # Errors
    ///
    /// When there is none, it has ended, or it has gone too far.
    pub fn cancel(&self, id: JobId) -> Result<Job, JobsError> {
        let why = match self.registry().cancel(id).ok_or(JobsError::Unknown(id))? {
            Cancel::Asked => None,
            Cancel::Ended(state) => Some(format!("it is {state}")),
            Cancel::TooLate => Some("it is about to end, and cannot stop half-way".into()),
        };
        if let Some(why) = why {
            return Err(JobsError::NotCancelled { id, why });
        }
        self.changed();
        self.get(id).ok_or(JobsError::Unknown(id))
    }

    /// Tells the jobs that the gateway stops, and waits until those have ended that cannot go on without it.
    pub async fn stop(&self) {
        self.shared.changes.send_replace(true);
        let mut changes = self.shared.changes.subscribe();
        // The sender is ours: it does not go away.
        let _ = changes.wait_for(|_| self.registry().is_idle()).await;
    }

    async fn begin(&self, new: NewJob) -> Result<JobHandle, JobsError> {
        let id = self.registry().begin(new, now()).ok_or(JobsError::TooMany)?;
        let (saved, handle) = (self.save(id).await, JobHandle { jobs: self.clone(), id });
        if let Err(error) = saved {
            self.registry().finish(id, Outcome::Failed(error.to_string()), now());
            return Err(error);
        }
        let forgotten = self.registry().forget(now());
        for id in forgotten {
            // It is tried again with the next job.
            let _ = self.store().remove(id);
        }
        self.changed();
        Ok(handle)
    }

    async fn finish(&self, id: JobId, outcome: Outcome) {
        self.registry().finish(id, outcome, now());
        if let Err(error) = self.save(id).await {
            tracing::warn!(job = id.0, %error, "the end of a job cannot be noted");
        }
        self.changed();
    }

    /// Whether what is known of a job now will last.
    pub(crate) async fn lasts(&self, id: JobId) -> bool {
        self.save(id).await.is_ok()
    }

    /// Writes what is known of a job, so that it lasts.
    async fn save(&self, id: JobId) -> Result<(), JobsError> {
        let jobs = self.clone();
        let saved = tokio::task::spawn_blocking(move || {
            let store = jobs.store();
            let record = jobs.registry().get(id).cloned();
            let saved = record.map_or(Ok(()), |record| store.save(&record));
            saved.map_err(|error| JobsError::Io { folder: store.folder().into(), error })
        });
        // The threads that write are gone before the gateway is: then nothing was written.
        saved.await.unwrap_or_else(|error| {
            let folder = self.store().folder().into();
            Err(JobsError::Io { folder, error: io::Error::other(error) })
        })
    }

    fn changed(&self) {
        self.shared.changes.send_modify(|_| ());
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.shared.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.shared.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl JobHandle {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> JobId {
        self.id
    }

    /// Says what it does next, in a word or two.
    pub fn step(&self, step: &str) {
        self.jobs.registry().step(self.id, step);
        self.jobs.changed();
    }

    /// Says how many bytes of the step are done. May be called as often as one likes.
    pub fn advance(&self, done: u64, total: u64) {
        let shown = self.jobs.registry().advance(self.id, done, total, Instant::now());
        if shown {
            self.jobs.changed();
        }
    }

    /// Passes the point after which it cannot be cancelled.
    ///
    /// # Errors
    ///
    /// When it has been cancelled, or the gateway stops.
    pub fn seal(&self) -> Result<(), Unfinished> {
        let stops = *self.jobs.shared.changes.borrow();
        if stops || !self.jobs.registry().seal(self.id) { Err(Unfinished::Stopped) } else { Ok(()) }
    }

    /// Begins a part that can be cancelled again.
    pub(crate) fn unseal(&self) {
        self.jobs.registry().unseal(self.id);
    }

    /// Whether somebody has cancelled it.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.jobs.get(self.id).is_some_and(|job| job.state == JobState::Cancelling)
    }

    /// Whether the gateway stops.
    pub(crate) fn gateway_stops(&self) -> bool {
        *self.jobs.shared.changes.borrow()
    }

    /// Waits until somebody cancels it, or the gateway stops. Cancel safe.
    pub async fn stopped(&self) {
        let mut changes = self.jobs.shared.changes.subscribe();
        let cancelling = || self.jobs.get(self.id).is_none_or(|job| job.state != JobState::Running);
        // The sender is ours: it does not go away.
        let _ = changes.wait_for(|stops| *stops || cancelling()).await;
    }

    /// Notes, so that it lasts, what a later gateway must clear away when this one ends under the job.
    pub(crate) async fn leave(&self, leftovers: &[Leftover]) -> Result<(), Unfinished> {
        self.jobs.registry().leave(self.id, leftovers);
        self.jobs.save(self.id).await.map_err(|error| Unfinished::Failed(error.to_string()))
    }
}

impl leftover::Cleared {
    fn in_words(&self) -> String {
        let mut words = "the gateway ended while it ran".to_owned();
        if !self.removed.is_empty() {
            let removed: Vec<_> = self.removed.iter().map(|path| path.display().to_string()).collect();
            words += &format!("; removed what it had made: {}", removed.join(", "));
        }
        if !self.kept.is_empty() {
            words += &format!("; still there: {}", self.kept.join(", "));
        }
        words
    }
}

impl From<io::Error> for Unfinished {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Clears away what a job of an earlier gateway left.
async fn clear(leftovers: Vec<Leftover>) -> leftover::Cleared {
    tokio::task::spawn_blocking(move || leftover::clear(&leftovers)).await.unwrap_or_default()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
