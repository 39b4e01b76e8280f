//! A VM's book in use.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard};

use super::CheckpointError;
use super::book::Book;
use super::store::Store;

/// Keeps a VM's book.
#[derive(Debug)]
pub(crate) struct Keeper {
    store: Store,
    /// Or why it cannot be used; the file stays as it is then.
    book: Mutex<Result<Book, String>>,
    /// Held by who changes the images.
    turn: AsyncMutex<()>,
}

impl Keeper {
    /// Opens the book in `file`, which need not be there.
    pub(crate) fn open(file: PathBuf) -> Self {
        let store = Store::new(file);
        let book = store.read();
        if let Err(reason) = &book {
            tracing::warn!(file = %store.file().display(), reason, "a VM's checkpoints are left as they are");
        }
        Self { store, book: Mutex::new(book), turn: AsyncMutex::new(()) }
    }

    /// Waits until nobody else changes the images.
    pub(super) async fn turn(&self) -> AsyncMutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// The same, if nobody does.
    pub(super) fn try_turn(&self) -> Option<AsyncMutexGuard<'_, ()>> {
        self.turn.try_lock().ok()
    }

    /// The book as it is.
    pub(super) fn book(&self) -> Result<Book, CheckpointError> {
        self.lock().clone().map_err(|reason| self.unusable(reason))
    }

    /// Changes the book; what counts is on disk then. An error leaves it as it was.
    pub(super) fn change<T>(
        &self,
        change: impl FnOnce(&mut Book) -> Result<T, CheckpointError>,
    ) -> Result<T, CheckpointError> {
        let mut book = self.lock();
        let before = book.as_ref().map_err(|reason| self.unusable(reason.clone()))?;
        let mut after = before.clone();
        let done = change(&mut after)?;
        if after != *before {
            self.store.write(&after).map_err(|error| CheckpointError::book(self.store.file().into(), &error))?;
            *book = Ok(after);
        }
        Ok(done)
    }

    /// Forgets the book: its VM is no more.
    pub(crate) fn remove(&self) {
        if let Err(error) = self.store.remove() {
            tracing::warn!(file = %self.store.file().display(), %error, "the checkpoints of a VM that is gone stay");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Result<Book, String>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unusable(&self, reason: String) -> CheckpointError {
        CheckpointError::Book { file: self.store.file().into(), reason }
    }
}
