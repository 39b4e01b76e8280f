//! Comparing the two places of a disk, piece by piece.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};

use super::daemon::Daemon;
use super::ranges::Ranges;
use crate::jobs::JobHandle;

/// What differs is told in these, as is what the guest writes.
pub(super) const GRAIN: u64 = 64 * 1024;
/// What is read at a time; three of them are under way.
const PIECE: u64 = 1024 * 1024;
/// The names under which the two places are shown.
pub(super) const SOURCE: &str = "source";
pub(super) const TARGET: &str = "target";
/// The context that tells where a disk has data, and its flag for what reads as zeros.
const ALLOCATION: &str = "base:allocation";
const ZERO: u32 = 0b10;

/// What a look at both places showed.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Where they differ.
    pub(super) differ: Ranges,
    /// Where both read as zeros.
    pub(super) zeros: Ranges,
}

/// Where at least one of the two has data.
pub(super) async fn data(daemon: &Daemon) -> io::Result<Ranges> {
    let mut ranges = Ranges::default();
    for name in [SOURCE, TARGET] {
        let mut export = daemon.connect(name, Some(ALLOCATION)).await?;
        let extents = export.extents().await?;
        for extent in extents.into_iter().filter(|extent| extent.flags & ZERO == 0) {
            ranges.insert(extent.range);
        }
    }
    Ok(ranges)
}

/// Reads `ranges` in both places. `seen` is told how many bytes more have been compared.
pub(super) async fn look(daemon: &Daemon, ranges: &Ranges, seen: impl Fn(u64)) -> io::Result<Look> {
    let (pieces, look) = (Mutex::new(ranges.pieces(PIECE)), Mutex::new(Look::default()));
    let reader = async || {
        let (mut source, mut target) = (daemon.connect(SOURCE, None).await?, daemon.connect(TARGET, None).await?);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let next = || lock(&pieces).next();
        while let Some(piece) = next() {
            let length = usize::try_from(piece.end - piece.start).map_err(io::Error::other)?;
            ours.resize(length, 0);
            theirs.resize(length, 0);
            tokio::try_join!(source.read(piece.start, &mut ours), target.read(piece.start, &mut theirs))?;
            lock(&look).judge(&piece, &ours, &theirs);
            seen(piece.end - piece.start);
        }
        io::Result::Ok(())
    };
    tokio::try_join!(reader(), reader(), reader())?;
    Ok(look.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Has `job` show how many of `total` bytes have been seen.
pub(super) fn counted(job: &JobHandle, total: u64) -> impl Fn(u64) {
    let done = AtomicU64::new(0);
    move |bytes| job.advance(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total)
}

/// The SHA-256 of the whole disk that is shown as [`SOURCE`], in hexadecimal.
pub(super) async fn checksum(daemon: &Daemon, seen: impl Fn(u64)) -> io::Result<String> {
    let mut export = daemon.connect(SOURCE, None).await?;
    let (mut digest, mut bytes) = (Sha256::new(), Vec::new());
    for piece in Ranges::whole(export.size()).pieces(PIECE) {
        bytes.resize(usize::try_from(piece.end - piece.start).map_err(io::Error::other)?, 0);
        export.read(piece.start, &mut bytes).await?;
        digest.update(&bytes);
        seen(piece.end - piece.start);
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Look {
    /// Takes in what both places have in a piece; what was not read is not the same.
    pub(super) fn judge(&mut self, piece: &Range<u64>, ours: &[u8], theirs: &[u8]) {
        let mut whole = Ranges::default();
        whole.insert(piece.clone());
        for grain in whole.pieces(GRAIN) {
            let at = |position: u64| usize::try_from(position - piece.start).unwrap_or(usize::MAX);
            let range = at(grain.start)..at(grain.end);
            match (ours.get(range.clone()), theirs.get(range)) {
                (Some(ours), Some(theirs)) if ours == theirs => {
                    if is_zero(ours) {
                        self.zeros.insert(grain);
                    }
                }
                _ => self.differ.insert(grain),
            }
        }
    }

    /// What must be looked at again, of a disk on which `written` was written. What reads as zeros there may be what QEMU has
    /// not told its file yet.
    pub(super) fn unsettled(&self, written: &Ranges) -> Ranges {
        let mut ranges = self.zeros.intersection(written);
        ranges.extend(&self.differ);
        ranges
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.differ.extend(&other.differ);
        self.zeros.extend(&other.zeros);
    }
}

/// Most of what is not zero shows so in its first bytes.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(|byte| *byte == 0) && bytes.iter().all(|byte| *byte == 0)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_and_what_is_zero_is_told_by_the_grain() {
        let grain = usize::try_from(GRAIN).expect("fits");
        let mut ours = vec![0; 3 * grain + 512];
        ours[2 * grain + 7] = 1;
        let mut theirs = ours.clone();
        theirs[grain + 100] = 9;
        let mut look = Look::default();
        let start = 16 * GRAIN;
        look.judge(&(start..start + ours.len() as u64), &ours, &theirs);
        let ranges = |ranges: &Ranges| ranges.iter().map(|range| (range.start, range.end)).collect::<Vec<_>>();
        assert_eq!(ranges(&look.differ), [(start + GRAIN, start + 2 * GRAIN)]);
        assert_eq!(ranges(&look.zeros), [(start, start + GRAIN), (start + 3 * GRAIN, start + 3 * GRAIN + 512)]);
        let mut short = Look::default();
        short.judge(&(0..GRAIN), &ours[..grain], &theirs[..5]);
        assert_eq!(ranges(&short.differ), [(0, GRAIN)], "what was not read is not the same");
    }
}
