//! A disk that fails stops its guest; when it is back the guest goes on by itself.
//!
//! ```text
//!          ┌──────────── failed again at once: a longer wait ───────────┐
//!          ▼                                                            │
//! fails ─▶ waits ─▶ looks ── the disk may be back ──▶ the guest goes on ┴─▶ runs for a while: forgotten
//!          ▲          │
//!          └──────────┘ it is not: a longer wait
//! ```
//!
//! A look is cheap and tells little: whether a file can be read and how much room there is beside it. Only QEMU can tell
//! whether a server is back, and only a try whether a disk takes what it did not take before. A try that fails costs the
//! guest nothing: it stands still again, with the same request open.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::definition::{DiskSource, NbdServer, Remote};

/// The wait before the first look, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(20));
/// How long a guest stands still at most without a try: what is seen may deceive.
const UNSEEN: Duration = Duration::from_secs(60);
/// How long a guest must run to be said to run: most failures show before.
const SHOWN: Duration = Duration::from_millis(500);
/// How long a guest must run for its disk to count as sound. A server that goes away is waited for by QEMU for half of it.
const SOUND: Duration = Duration::from_secs(10);
/// So much more room than there was is worth a try.
const MORE_ROOM: u64 = 1 << 20;

/// Why a guest's processors stand still, when it is a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskFailure {
    /// What QEMU calls the disk: our name for it, if the node is ours.
    pub(crate) disk: String,
    /// What failed and why, in words.
    pub(crate) reason: String,
    /// Whether it was for want of room.
    pub(crate) no_room: bool,
}

impl std::fmt::Display for DiskFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "disk {}: {}", self.disk, self.reason)
    }
}

/// What a look at a disk found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is not there, or cannot be read.
    Nothing,
    /// It can be read. So many bytes are free beside it, when that can be told.
    File { room: Option<u64> },
    /// Only a try can tell.
    Unknown,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Look at the disk, and say what was found.
    Look,
    /// Show that the guest runs.
    Show,
    /// The disk is sound: forget that it failed.
    Forget,
}

/// When a guest that stands still for a disk is let go on. It reads no clock.
#[derive(Debug)]
pub(crate) struct Comeback {
    stage: Stage,
    wait: Duration,
    failed: Instant,
    /// The least room that was seen since the disk failed.
    least_room: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waits { until: Instant },
    Looks,
    Tries { since: Instant },
    Runs { since: Instant },
}

impl Comeback {
    /// The disk failed at `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Self { stage: Stage::Waits { until: now + WAITS.0 }, wait: WAITS.0, failed: now, least_room: None }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout); not while a look is under way.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.stage {
            Stage::Waits { until } => Some(until),
            Stage::Looks => None,
            Stage::Tries { since } => Some(since + SHOWN),
            Stage::Runs { since } => Some(since + SOUND),
        }
    }

    /// It is late enough for something.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Option<Step> {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return None;
        }
        Some(match self.stage {
            Stage::Waits { .. } | Stage::Looks => {
                self.stage = Stage::Looks;
                Step::Look
            }
            Stage::Tries { since } => {
                self.stage = Stage::Runs { since };
                Step::Show
            }
            Stage::Runs { .. } => Step::Forget,
        })
    }

    /// A look has ended; whether the guest shall be let go on now.
    pub(crate) fn handle_found(&mut self, now: Instant, found: Found, no_room: bool) -> bool {
        if self.stage != Stage::Looks {
            return false;
        }
        let room = if let Found::File { room } = found { room } else { None };
        let has_more = |room: u64| self.least_room.is_none_or(|least| room >= least.saturating_add(MORE_ROOM));
        let may_be_back = match found {
            Found::Nothing => false,
            Found::File { .. } => !no_room || room.is_none_or(has_more),
            Found::Unknown => true,
        };
        if may_be_back || now >= self.failed + UNSEEN {
            self.least_room = room;
            self.stage = Stage::Tries { since: now };
            return true;
        }
        self.least_room = self.least_room.into_iter().chain(room).min();
        self.wait_longer(now);
        false
    }

    /// The guest is seen to stand still for the disk. That tells something only after a try.
    pub(crate) fn handle_failure(&mut self, now: Instant) {
        if matches!(self.stage, Stage::Tries { .. } | Stage::Runs { .. }) {
            self.failed = now;
            self.wait_longer(now);
        }
    }

    /// Nothing can be done now.
    pub(crate) fn put_off(&mut self, now: Instant) {
        self.stage = Stage::Waits { until: now + self.wait };
    }

    /// Whether a guest that runs is not yet to be shown so.
    pub(crate) fn is_hidden(&self) -> bool {
        matches!(self.stage, Stage::Tries { .. })
    }

    fn wait_longer(&mut self, now: Instant) {
        self.wait = WAITS.1.min(2 * self.wait);
        self.put_off(now);
    }
}

/// Looks at a disk; the answer comes when there is one. A share whose server has gone lets those who look wait until it is
/// back, so this has a thread of its own, which nobody need wait for.
pub(crate) fn look_at(source: Option<DiskSource>) -> oneshot::Receiver<Found> {
    let (found, receiver) = oneshot::channel();
    let look = move || {
        // Somebody may have lost interest.
        let _ = found.send(source.as_ref().map_or(Found::Unknown, find));
    };
    if let Err(error) = std::thread::Builder::new().name("disk-look".into()).spawn(look) {
        // Then nothing is known.
        tracing::warn!(%error, "a disk cannot be looked at");
    }
    receiver
}

fn find(source: &DiskSource) -> Found {
    match source {
        DiskSource::Path(path) if can_be_read(path).is_err() => Found::Nothing,
        DiskSource::Path(path) => Found::File { room: room_beside(path) },
        DiskSource::Remote(Remote::Nbd { server: NbdServer::Unix(socket), .. }) if !socket.exists() => Found::Nothing,
        // Who connects to look is a client like any other, and some servers end with their last one.
        DiskSource::Remote(_) | DiskSource::Empty => Found::Unknown,
    }
}

fn can_be_read(path: &Path) -> io::Result<()> {
    File::open(path)?.read(&mut [0; 512]).map(drop)
}

fn room_beside(path: &Path) -> Option<u64> {
    let system = rustix::fs::statvfs(path).ok()?;
    Some(system.f_bavail.saturating_mul(system.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    /// Lets a wait end; when it did.
    fn look(comeback: &mut Comeback) -> Instant {
        let at = comeback.poll_timeout().expect("it waits");
        assert_eq!(comeback.handle_timeout(at), Some(Step::Look));
        assert_eq!((comeback.poll_timeout(), comeback.handle_timeout(at)), (None, None), "one look at a time");
        at
    }

    #[test]
    fn a_guest_that_goes_on_is_shown_after_a_moment_and_its_disk_forgotten_after_a_while() {
        let start = Instant::now();
        let mut comeback = Comeback::new(start);
        let at = look(&mut comeback);
        assert_eq!(at, start + WAITS.0);
        assert!(comeback.handle_found(at, Found::File { room: None }, false) && comeback.is_hidden());
        assert_eq!(comeback.handle_timeout(at), None);
        assert_eq!(comeback.handle_timeout(at + SHOWN), Some(Step::Show));
        assert!(!comeback.is_hidden());
        assert_eq!(comeback.poll_timeout(), Some(at + SOUND));
        assert_eq!(comeback.handle_timeout(at + SOUND), Some(Step::Forget));
    }

    #[test]
    fn a_disk_that_fails_again_and_again_is_tried_ever_more_rarely_and_never_given_up() {
        let mut comeback = Comeback::new(Instant::now());
        let mut waits = Vec::new();
        for _ in 0..8 {
            let at = look(&mut comeback);
            assert!(comeback.handle_found(at, Found::Unknown, false));
            comeback.handle_failure(at);
            // Told twice, it is one failure.
            comeback.handle_failure(at);
            waits.push((comeback.poll_timeout().expect("it waits") - at).as_secs());
        }
        assert_eq!(waits, [2, 4, 8, 16, 20, 20, 20, 20]);
    }

    #[test]
    fn a_full_disk_is_tried_once_and_then_when_there_is_more_room_than_there_was() {
        let mut comeback = Comeback::new(Instant::now());
        let mut found = |room: u64| {
            let at = look(&mut comeback);
            let tried = comeback.handle_found(at, Found::File { room: Some(room) }, true);
            comeback.handle_failure(at);
            tried
        };
        assert!(found(5 << 20), "nobody knows what was free when it failed");
        assert!(!found(5 << 20));
        assert!(!found(0), "it is fuller still");
        assert!(!found(MORE_ROOM - 1));
        assert!(found(MORE_ROOM));
        assert!(!found(MORE_ROOM));
    }

    #[test]
    fn a_disk_that_cannot_be_seen_is_tried_all_the_same_once_in_a_while() {
        let start = Instant::now();
        let mut comeback = Comeback::new(start);
        let tried = std::iter::repeat_with(|| {
            let at = look(&mut comeback);
            comeback.handle_found(at, Found::Nothing, false).then_some(at)
        });
        let at = tried.take(20).flatten().next().expect("tried");
        assert!((start + UNSEEN..=start + UNSEEN + WAITS.1).contains(&at));
    }

    #[test]
    fn what_can_be_seen_of_a_disk_is_found() {
        let path = std::env::temp_dir().join(format!("fanlight-failure-{}.raw", std::process::id()));
        let file = DiskSource::Path(path.clone());
        assert_eq!(find(&file), Found::Nothing);
        std::fs::write(&path, "back").expect("written");
        assert!(matches!(find(&file), Found::File { room: Some(_) }));
        let server = |path: &Path| {
            let (server, export) = (NbdServer::Unix(path.into()), String::new());
            DiskSource::Remote(Remote::Nbd { server, export, tls: None })
        };
        assert_eq!(find(&server(&path)), Found::Unknown);
        assert_eq!(find(&server(&PathBuf::from("/nonexistent/socket"))), Found::Nothing);
        std::fs::remove_file(&path).expect("removed");
    }

    #[derive(Debug, Clone)]
    enum Op {
        Later(u64),
        Found(Found, bool),
        Fails,
        PutOff,
    }

    fn op() -> impl Strategy<Value = Op> {
        let found = prop_oneof![
            Just(Found::Nothing),
            Just(Found::Unknown),
            (0_u64..8 << 20).prop_map(|room| Found::File { room: Some(room) }),
        ];
        prop_oneof![
            4 => (0_u64..15_000).prop_map(Op::Later),
            3 => (found, any::<bool>()).prop_map(|(found, no_room)| Op::Found(found, no_room)),
            2 => Just(Op::Fails),
            1 => Just(Op::PutOff),
        ]
    }

    proptest! {
        #[test]
        fn it_never_tries_without_a_look_and_always_has_something_ahead(ops in proptest::collection::vec(op(), 0..60)) {
            let (start, mut now) = (Instant::now(), Instant::now());
            let mut comeback = Comeback::new(start);
            let mut looks = false;
            for op in ops {
                match op {
                    Op::Later(milliseconds) => {
                        now += Duration::from_millis(milliseconds);
                        match comeback.handle_timeout(now) {
                            Some(Step::Look) => looks = true,
                            Some(Step::Forget) => return Ok(()),
                            Some(Step::Show) | None => {}
                        }
                    }
                    Op::Found(found, no_room) => {
                        let tries = comeback.handle_found(now, found, no_room);
                        prop_assert!(looks || !tries);
                        prop_assert_eq!(tries, tries && comeback.is_hidden());
                        looks = false;
                    }
                    Op::Fails => comeback.handle_failure(now),
                    Op::PutOff => {
                        comeback.put_off(now);
                        looks = false;
                    }
                }
                prop_assert_eq!(looks, comeback.poll_timeout().is_none());
                prop_assert!(comeback.poll_timeout().is_none_or(|at| at <= now + WAITS.1));
            }
        }
    }
}
