//! How much memory the guest needs, as it says itself.

use std::time::{Duration, Instant};

use enhanced_session::class::memory::{IntervalMillis, ToGuest, ToHost, Wanted};
use enhanced_session::message::Message;
use enhanced_session::wire::Malformed;
use serde::{Deserialize, Serialize};
use vmm::Vm;

use super::{Channel, Full, Moment, Service};

/// How often a guest reports, unless its memory follows its needs: a report is a wake-up for both ends.
const SELDOM: Duration = Duration::from_secs(10);
/// And how often when it does.
const OFTEN: Duration = Duration::from_secs(1);

/// A guest's word on its memory: a hint. Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// What its system manages.
    pub total: u64,
    /// What programs could get without swapping.
    pub available: u64,
    /// What was promised to programs and the system.
    pub committed: u64,
    /// Read from swap, in bytes per second, if the guest knows.
    pub swap_in: Option<u64>,
    /// Time lost to waiting for memory by at least one task, in percent of the last ten seconds, if the guest knows.
    pub stalled: Option<f32>,
}

/// The host's side of the class.
#[derive(Debug)]
pub(in crate::bus) struct Memory {
    interval: Duration,
    /// Whether the guest has still to be told the interval; only while the channel is open.
    configure: bool,
    open: bool,
    report: Option<(MemoryReport, Instant)>,
    /// The VM whose memory follows what its guest says.
    follower: Option<Vm>,
}

impl Memory {
    pub(in crate::bus) fn new(vm: &Vm) -> Self {
        match vm.memory_settings() {
            Some(_) => Self { follower: Some(vm.clone()), ..Self::every(OFTEN) },
            None => Self::every(SELDOM),
        }
    }

    const fn every(interval: Duration) -> Self {
        Self { interval, configure: false, open: false, report: None, follower: None }
    }

    /// The last report, and when it came.
    pub(in crate::bus) const fn report(&self) -> Option<(MemoryReport, Instant)> {
        self.report
    }
}

impl Service for Memory {
    fn opened(&mut self, _: Moment) {
        (self.configure, self.open, self.report) = (true, true, None);
    }

    fn closed(&mut self) {
        (self.configure, self.open, self.report) = (false, false, None);
    }

    fn handle(&mut self, at: Moment, message: Message) -> Result<(), Malformed> {
        let Message::Data(bytes) = message else { return Ok(()) };
        let ToHost::Report { total, available, committed, swap, stalls, .. } = ToHost::decode(&bytes)? else {
            return Ok(());
        };
        let report = MemoryReport {
            total,
            // What a guest says is shown and reckoned with: more than all of it is not.
            available: available.min(total),
            committed,
            swap_in: swap.map(|swap| swap.read_rate),
            stalled: stalls.map(|stalls| f32::from(stalls.some.value()) / 100.0),
        };
        self.report = Some((report, at.now));
        if let Some(vm) = &self.follower {
            // What is committed says nothing of a Linux guest, which promises more than it will ever be asked for.
            vm.report_memory(vmm::memory::MemoryReport {
                available: report.available,
                swapped_out: swap.map(|swap| swap.used),
                swap_in_rate: report.swap_in,
                stalled: report.stalled,
                ..vmm::memory::MemoryReport::default()
            });
        }
        Ok(())
    }

    fn drive(&mut self, _: Moment, channel: &mut dyn Channel) -> Result<(), Full> {
        if self.configure {
            let millis = u32::try_from(self.interval.as_millis()).unwrap_or(u32::MAX);
            let interval = IntervalMillis::clamped(millis);
            channel.send(ToGuest::Configure { interval, wanted: Wanted { swap: true, stalls: true } }.encode())?;
            self.configure = false;
        }
        Ok(())
    }

    fn timeout(&self) -> Option<Instant> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Clock, Sent};
    use super::*;

    #[test]
    fn the_interval_is_told_once_and_reports_are_kept() {
        let (clock, mut channel, mut memory) = (Clock::new(), Sent::new(), Memory::every(SELDOM));
        memory.opened(clock.at());
        memory.drive(clock.at(), &mut channel).expect("room");
        let interval = IntervalMillis::clamped(10_000);
        let wanted = Wanted { swap: true, stalls: true };
        assert_eq!(ToGuest::decode(&channel.only()), Ok(ToGuest::Configure { interval, wanted }));
        memory.drive(clock.at(), &mut channel).expect("room");
        channel.none();

        let report =
            ToHost::Report { sequence: 1, total: 100, available: 900, committed: 40, swap: None, stalls: None };
        memory.handle(clock.at(), Message::Data(report.encode())).expect("read");
        let (report, _) = memory.report().expect("kept");
        assert_eq!((report.total, report.available, report.committed), (100, 100, 40));
        memory.closed();
        assert_eq!(memory.report(), None);
    }
}
