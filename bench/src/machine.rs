//! What the machine and its processes use, from /proc.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Ticks of /proc/stat per second; the kernel's own constant for user space (USER_HZ).
const TICKS: f64 = 100.0;

/// A span of time, and how much of the machine others used in it.
///
/// Latencies measured while others compute are not comparable: each row of a table says what they used.
#[derive(Debug)]
pub(crate) struct Span {
    own: Vec<u32>,
    started: Instant,
    busy: f64,
    own_time: Duration,
}

/// Memory of a process, in MB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// All pages that are there.
    pub(crate) resident: f64,
    /// Of them, those that belong to no file: heap and stacks.
    pub(crate) anonymous: f64,
    /// Of them, those of files: the program itself and its libraries.
    pub(crate) files: f64,
    /// Of them, those shared with other processes: the guests' pictures.
    pub(crate) shared: f64,
    /// Resident pages, each divided by the number of processes that have it.
    pub(crate) proportional: f64,
    /// The most that was resident at a time.
    pub(crate) peak: f64,
}

impl Span {
    /// Starts now; what the processes `own` and this one use is not foreign.
    pub(crate) fn start(own: &[u32]) -> Result<Self> {
        let mut own = own.to_vec();
        own.push(std::process::id());
        let own_time = total_time(&own)?;
        Ok(Self { own, started: Instant::now(), busy: busy()?, own_time })
    }

    /// Processor cores that other processes have used since the start, on average.
    pub(crate) fn foreign(&self) -> Result<f64> {
        let elapsed = self.started.elapsed().as_secs_f64().max(1.0 / TICKS);
        let own = total_time(&self.own)?.saturating_sub(self.own_time).as_secs_f64();
        let foreign = (busy()? - self.busy - own) / elapsed;
        Ok((foreign.max(0.0) * 100.0).round() / 100.0)
    }
}

/// Processor time of a process: all its threads that still live, to the nanosecond.
pub(crate) fn processor_time(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))? {
        // A thread may end between being listed and being read.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        total += text.split_whitespace().next().and_then(|field| field.parse().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(total))
}

/// How often the threads of a process, of those that still live, have waited: each time one was woken for.
pub(crate) fn wakes(pid: u32) -> Result<u64> {
    let mut texts = String::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))? {
        texts += &fs::read_to_string(task?.path().join("status")).unwrap_or_default();
    }
    count_wakes(&texts)
}

/// The same out of the `status` of each thread.
pub(crate) fn count_wakes(texts: &str) -> Result<u64> {
    let counts = texts.lines().filter_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    let counts: Vec<u64> = counts.map(|count| count.trim().parse()).collect::<Result<_, _>>()?;
    ensure!(!counts.is_empty(), "no thread in {texts:?}");
    Ok(counts.iter().sum())
}

/// Memory of a process.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    };
    let (status, rollup) = (read("status")?, read("smaps_rollup")?);
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).and_then(|line| line.strip_prefix(':'));
        let kib: Option<f64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        kib.map(|kib| kib * 1024.0 / 1e6).with_context(|| format!("there is no {name} of process {pid}"))
    };
    Ok(Memory {
        resident: field(&status, "VmRSS")?,
        anonymous: field(&status, "RssAnon")?,
        files: field(&status, "RssFile")?,
        shared: field(&status, "RssShmem")?,
        proportional: field(&rollup, "Pss")?,
        peak: field(&status, "VmHWM")?,
    })
}

/// One line that says on what the numbers were taken.
pub(crate) fn describe() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} × {}, Linux {}", model.unwrap_or("unknown processor"), kernel.trim())
}

fn total_time(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| processor_time(*pid)).sum()
}

/// Seconds that all cores together were not idle since boot.
fn busy() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let ticks = fields.iter().take(8).sum::<f64>() - fields.iter().skip(3).take(2).sum::<f64>();
    Ok(ticks / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_work_is_not_foreign() {
        let span = Span::start(&[]).unwrap();
        let before = processor_time(std::process::id()).unwrap();
        while processor_time(std::process::id()).unwrap() < before + Duration::from_millis(20) {}
        assert!(span.foreign().unwrap() < 64.0);
    }

    #[test]
    fn each_wait_of_each_thread_is_a_wake_up() {
        let status = "Name:\tagent\nvoluntary_ctxt_switches:\t40\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(count_wakes(&status.repeat(2)).unwrap(), 80);
        assert!(count_wakes("").is_err());
        let before = wakes(std::process::id()).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        assert!(wakes(std::process::id()).unwrap() > before);
    }

    #[test]
    fn memory_is_shared_out() {
        let memory = memory(std::process::id()).unwrap();
        assert!(memory.proportional > 0.0 && memory.proportional <= memory.resident + 1.0);
        assert!(memory.resident <= memory.peak + 1.0);
    }
}
