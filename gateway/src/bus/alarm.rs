//! One moment to wait for, without being woken before.
//!
//! Tokio keeps its timers in a wheel of several levels, and wakes for each level that a timer passes: two or three times
//! for one that is seconds away. A bus that is idle waits for little else.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::link::watch;

/// A timer of the system.
#[derive(Debug)]
pub(super) struct Alarm {
    /// None: the system gave none.
    timer: Option<AsyncFd<OwnedFd>>,
    /// When it fires.
    set: Option<Instant>,
}

impl Alarm {
    /// One that is not set. Must be called on a runtime.
    pub(super) fn new() -> Self {
        let timer = create().inspect_err(|error| tracing::warn!(%error, "no timer; the runtime's wakes more often"));
        Self { timer: timer.ok(), set: None }
    }

    /// Waits until `at`, or for ever. Cancel safe.
    pub(super) async fn wait(&mut self, at: Option<Instant>) {
        let Some(at) = at else { return std::future::pending().await };
        if at <= Instant::now() {
            // Others of the runtime have their turn, however often there is something to do at once.
            return tokio::task::yield_now().await;
        }
        if self.set(at).is_err() {
            self.timer = None;
        }
        let Some(timer) = &self.timer else { return tokio::time::sleep_until(at.into()).await };
        // What the runtime has seen before may be of another moment.
        while Instant::now() < at {
            let Ok(mut fired) = timer.readable().await else { break };
            fired.clear_ready();
        }
        self.set = None;
    }

    /// Has the timer fire then. What it has fired before is forgotten by the system.
    fn set(&mut self, at: Instant) -> io::Result<()> {
        let Some(timer) = self.timer.as_ref().filter(|_| self.set != Some(at)) else { return Ok(()) };
        let left = Timespec::try_from(at.saturating_duration_since(Instant::now())).map_err(io::Error::other)?;
        // Nothing left would stop it.
        let it_value = if left == Timespec::default() { Timespec { tv_sec: 0, tv_nsec: 1 } } else { left };
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        self.set = Some(at);
        Ok(())
    }
}

fn create() -> io::Result<AsyncFd<OwnedFd>> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    watch(timer, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn it_waits_until_then_and_not_less() {
        let mut alarm = Alarm::new();
        assert!(alarm.timer.is_some());
        for milliseconds in [3, 0, 2, 1] {
            let at = Instant::now() + Duration::from_millis(milliseconds);
            alarm.wait(Some(at)).await;
            assert!(Instant::now() >= at);
        }
    }

    #[tokio::test]
    async fn the_last_moment_that_was_asked_for_counts() {
        let mut alarm = Alarm::new();
        let far = Instant::now() + Duration::from_secs(3600);
        for never in [Some(far), None, Some(far + Duration::from_secs(1)), Some(far)] {
            tokio::select! {
                biased;
                () = alarm.wait(never) => panic!("{never:?} has come"),
                () = tokio::task::yield_now() => {}
            }
        }
        let near = Instant::now() + Duration::from_millis(2);
        alarm.wait(Some(near)).await;
        assert!((near..far).contains(&Instant::now()));
    }
}
