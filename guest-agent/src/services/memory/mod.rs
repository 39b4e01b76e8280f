//! Memory: reports at the pace that the host sets, out of what the kernel tells in `/proc`.

use std::time::{Duration, Instant};

use enhanced_session::class::memory::{DEFAULT_INTERVAL, PercentHundredths, Stalls, Swap, ToGuest, ToHost, Wanted};

use super::{Completions, Incoming, Outgoing, Service, ServiceError};

mod proc;

use proc::{MemInfo, Pressure, Swapping};

/// What the kernel tells about memory.
trait Kernel {
    fn mem_info(&self) -> MemInfo;
    fn pressure(&self) -> Option<Pressure>;
    fn swapping(&self) -> Swapping;
    /// Bytes of a page.
    fn page_size(&self) -> u64;
}

/// The service of one channel.
pub(super) struct Memory {
    kernel: Box<dyn Kernel>,
    wanted: Wanted,
    interval: Duration,
    next: Instant,
    /// The last report was made before its time.
    was_early: bool,
    sequence: u64,
    swapping: Option<(Instant, Swapping)>,
    report: Option<ToHost>,
    completions: Completions,
}

impl Memory {
    /// Reports about this system, the first at once.
    pub(super) fn of_system(now: Instant) -> Self {
        Self::new(Box::new(Proc), now)
    }

    fn new(kernel: Box<dyn Kernel>, now: Instant) -> Self {
        let mut memory = Self {
            kernel,
            wanted: Wanted::default(),
            interval: DEFAULT_INTERVAL.duration(),
            next: now,
            was_early: false,
            sequence: 0,
            swapping: None,
            report: None,
            completions: Completions::default(),
        };
        memory.handle_timeout(now);
        memory
    }

    fn make_report(&mut self, now: Instant) -> ToHost {
        let info = self.kernel.mem_info();
        self.sequence = self.sequence.wrapping_add(1);
        ToHost::Report {
            sequence: self.sequence,
            total: info.total,
            available: info.available,
            committed: info.committed,
            swap: if self.wanted.swap { self.swap(now, &info) } else { None },
            stalls: if self.wanted.stalls { self.kernel.pressure().map(stalls) } else { None },
        }
    }

    fn swap(&mut self, now: Instant, info: &MemInfo) -> Option<Swap> {
        if info.swap_total == 0 {
            return None;
        }
        let swapping = self.kernel.swapping();
        let (then, before) = self.swapping.replace((now, swapping)).unwrap_or((now, swapping));
        let elapsed = now.saturating_duration_since(then);
        let page_size = self.kernel.page_size();
        let rate = |now: u64, before: u64| per_second(now.saturating_sub(before).saturating_mul(page_size), elapsed);
        Some(Swap {
            total: info.swap_total,
            used: info.swap_total.saturating_sub(info.swap_free),
            read_rate: rate(swapping.pages_in, before.pages_in),
            write_rate: rate(swapping.pages_out, before.pages_out),
        })
    }
}

impl Service for Memory {
    fn handle(&mut self, now: Instant, incoming: Incoming<'_>) -> Result<(), ServiceError> {
        match incoming {
            Incoming::Message(bytes) => match ToGuest::decode(bytes)? {
                ToGuest::Configure { interval, wanted } => {
                    self.wanted = wanted;
                    self.interval = interval.duration();
                    self.next = now + self.interval;
                }
                ToGuest::Unknown(_) => {}
            },
            Incoming::Request(txid, _) => self.completions.push_unsupported(txid)?,
        }
        Ok(())
    }

    /// A report that could not be sent before the next one was due is left out.
    fn poll_output(&mut self) -> Option<Outgoing> {
        match self.report.take() {
            Some(report) => Some(Outgoing::Message(report.encode())),
            None => self.completions.pop(),
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.next)
    }

    /// An agent that is awake anyway (a beat came) reports before the time, but not twice in a row: so reports fall in
    /// step with beats, and cost half as many wakes.
    fn handle_timeout(&mut self, now: Instant) {
        let is_early = now < self.next;
        if !is_early || (!self.was_early && now + self.interval / 2 >= self.next) {
            self.was_early = is_early;
            self.report = Some(self.make_report(now));
            self.next = now + self.interval;
        }
    }
}

fn stalls(pressure: Pressure) -> Stalls {
    Stalls { some: PercentHundredths::clamped(pressure.some_10s), full: PercentHundredths::clamped(pressure.full_10s) }
}

fn per_second(amount: u64, elapsed: Duration) -> u64 {
    match elapsed.as_millis() {
        0 => 0,
        millis => u64::try_from(u128::from(amount) * 1000 / millis).unwrap_or(u64::MAX),
    }
}

/// The kernel of this system. A file that cannot be read counts as empty.
struct Proc;

impl Kernel for Proc {
    fn mem_info(&self) -> MemInfo {
        MemInfo::parse(&read("/proc/meminfo"))
    }

    fn pressure(&self) -> Option<Pressure> {
        Pressure::parse(&read("/proc/pressure/memory"))
    }

    fn swapping(&self) -> Swapping {
        Swapping::parse(&read("/proc/vmstat"))
    }

    fn page_size(&self) -> u64 {
        u64::try_from(rustix::param::page_size()).unwrap_or(4096)
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use enhanced_session::class::memory::IntervalMillis;

    use super::*;

    #[derive(Clone, Default)]
    struct FakeKernel {
        info: Rc<Cell<MemInfo>>,
        swapping: Rc<Cell<Swapping>>,
    }

    impl Kernel for FakeKernel {
        fn mem_info(&self) -> MemInfo {
            self.info.get()
        }
        fn pressure(&self) -> Option<Pressure> {
            Some(Pressure { some_10s: 153, full_10s: 9 })
        }
        fn swapping(&self) -> Swapping {
            self.swapping.get()
        }
        fn page_size(&self) -> u64 {
            4096
        }
    }

    fn report(memory: &mut Memory) -> Option<ToHost> {
        match memory.poll_output()? {
            Outgoing::Message(bytes) => Some(ToHost::decode(&bytes).unwrap()),
            Outgoing::Completion(..) => panic!("a report is no answer"),
        }
    }

    fn configure(memory: &mut Memory, now: Instant, millis: u32, wanted: Wanted) {
        let message = ToGuest::Configure { interval: IntervalMillis::clamped(millis), wanted }.encode();
        memory.handle(now, Incoming::Message(&message)).unwrap();
    }

    #[test]
    fn reports_come_at_once_and_then_at_the_pace_that_was_set() {
        let start = Instant::now();
        let kernel = FakeKernel::default();
        kernel.info.set(MemInfo { total: 100, available: 60, committed: 150, ..MemInfo::default() });
        let mut memory = Memory::new(Box::new(kernel), start);
        let expected = |sequence, stalls| ToHost::Report {
            sequence,
            total: 100,
            available: 60,
            committed: 150,
            swap: None,
            stalls,
        };
        assert_eq!(report(&mut memory), Some(expected(1, None)));
        assert_eq!(memory.poll_timeout(), Some(start + Duration::from_secs(1)));
        memory.handle_timeout(start + Duration::from_millis(499));
        assert_eq!(report(&mut memory), None);

        configure(&mut memory, start, 5000, Wanted { swap: true, stalls: true });
        memory.handle_timeout(start + Duration::from_secs(5));
        let stalls = Stalls { some: PercentHundredths::clamped(153), full: PercentHundredths::clamped(9) };
        assert_eq!(report(&mut memory), Some(expected(2, Some(stalls))), "a system without swap has none to report");
    }

    #[test]
    fn swapping_is_told_as_a_rate_since_the_report_before() {
        let start = Instant::now();
        let kernel = FakeKernel::default();
        kernel.info.set(MemInfo { swap_total: 1000, swap_free: 400, ..MemInfo::default() });
        let mut memory = Memory::new(Box::new(kernel.clone()), start);
        configure(&mut memory, start, 2000, Wanted { swap: true, stalls: false });
        let mut swap_at = |seconds, pages_in| {
            kernel.swapping.set(Swapping { pages_in, pages_out: 0 });
            memory.handle_timeout(start + Duration::from_secs(seconds));
            match report(&mut memory) {
                Some(ToHost::Report { swap: Some(swap), .. }) => swap,
                other => panic!("no swap in {other:?}"),
            }
        };
        assert_eq!(swap_at(2, 50), Swap { total: 1000, used: 600, read_rate: 0, write_rate: 0 });
        assert_eq!(swap_at(4, 60).read_rate, 5 * 4096);
        assert_eq!(swap_at(6, 10).read_rate, 0, "a counter that went back is none");
    }

    #[test]
    fn a_report_may_be_early_but_not_twice_in_a_row() {
        let start = Instant::now();
        let mut memory = Memory::new(Box::new(FakeKernel::default()), start);
        let mut is_reported_at = |millis| {
            memory.handle_timeout(start + Duration::from_millis(millis));
            memory.poll_output().is_some()
        };
        assert!(is_reported_at(0));
        assert!(is_reported_at(600));
        assert!(!is_reported_at(1200) && !is_reported_at(1599) && is_reported_at(1600));
        assert!(is_reported_at(2300));
    }

    #[test]
    fn a_report_that_was_not_taken_is_replaced() {
        let start = Instant::now();
        let mut memory = Memory::new(Box::new(FakeKernel::default()), start);
        memory.handle_timeout(start + Duration::from_secs(9));
        assert!(matches!(report(&mut memory), Some(ToHost::Report { sequence: 2, .. })));
        assert_eq!(report(&mut memory), None);
    }

    #[test]
    fn this_system_has_memory() {
        let info = Proc.mem_info();
        assert!(info.total > 0 && info.available > 0 && info.available <= info.total, "{info:?}");
        assert!(info.committed > 0);
    }
}
