//! How far a job has come: a bar on a terminal, now and then a line elsewhere, nothing for programs.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use vmm::{Job, JobState, Progress};

use super::output::{Output, bytes};

/// Cells of the bar.
const BAR: usize = 24;
/// The same in a table.
const SHORT_BAR: usize = 10;
/// Without a terminal, a line at least that often, and after this much.
const LINE_EVERY: Duration = Duration::from_secs(10);
const LINE_AFTER: f32 = 10.0;

/// Shows one job on standard error.
#[derive(Debug)]
pub(super) struct ProgressLine {
    style: Style,
    /// What the last line said, and when.
    last: Option<(Option<String>, f32, Instant)>,
    /// Whether there is a bar to clear away.
    drawn: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Bar,
    Lines,
    Nothing,
}

impl ProgressLine {
    pub(super) fn new(output: Output) -> Self {
        let style = match (output.is_json(), io::stderr().is_terminal()) {
            (true, _) => Style::Nothing,
            (false, true) => Style::Bar,
            (false, false) => Style::Lines,
        };
        Self { style, last: None, drawn: false }
    }

    /// Shows how far `job` has come.
    pub(super) fn show(&mut self, job: &Job) {
        let text = match self.style {
            Style::Bar => format!("\r\x1b[K{}", bar(job)),
            Style::Lines => format!("job {}: {}\n", job.id, in_words(job)),
            Style::Nothing => return,
        };
        if self.style == Style::Lines && !self.is_due(job, Instant::now()) {
            return;
        }
        self.drawn = self.style == Style::Bar;
        // Nobody who sees nothing of it is worse off.
        let _ = io::stderr().write_all(text.as_bytes());
    }

    /// Leaves the terminal as it was.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    /// Whether it is worth a line.
    fn is_due(&mut self, job: &Job, now: Instant) -> bool {
        let percent = job.progress.percent;
        let due = self.last.as_ref().is_none_or(|(step, before, at)| {
            *step != job.step || percent - before >= LINE_AFTER || now.saturating_duration_since(*at) >= LINE_EVERY
        });
        if due {
            self.last = Some((job.step.clone(), percent, now));
        }
        due
    }
}

/// How far a job has come, as a table tells it; empty where there is nothing to tell.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Columns {
    /// A bar with its percentage.
    pub(super) progress: String,
    /// How much of how much.
    pub(super) bytes: String,
    pub(super) rate: String,
    /// The time that it will take still.
    pub(super) left: String,
}

/// What a table tells of a job that runs.
pub(super) fn columns(job: &Job) -> Columns {
    let progress = &job.progress;
    if job.state.is_final() || progress.total == 0 {
        return Columns::default();
    }
    Columns {
        progress: format!("{} {:.1} %", cells(progress.percent, SHORT_BAR), progress.percent),
        bytes: portion(progress),
        rate: rate(progress).unwrap_or_default(),
        left: progress.left.map(time).unwrap_or_default(),
    }
}

/// `copying [######------] 41.3 %, 1.2 GiB of 2.9 GiB, 210 MiB/s, 8 s left`
fn bar(job: &Job) -> String {
    format!("{} {} {}", step(job), cells(job.progress.percent, BAR), amounts(job))
}

fn cells(percent: f32, count: usize) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100 percent of a few cells")]
    let full = ((percent.clamp(0.0, 100.0) / 100.0) * count as f32) as usize;
    format!("[{}{}]", "#".repeat(full), "-".repeat(count.saturating_sub(full)))
}

/// How far it has come, without a bar.
pub(super) fn in_words(job: &Job) -> String {
    if job.progress.total == 0 { step(job) } else { format!("{}, {}", step(job), amounts(job)) }
}

fn step(job: &Job) -> String {
    let step = job.step.as_deref().unwrap_or("beginning");
    if job.state == JobState::Cancelling { format!("{step} (stopping)") } else { step.to_owned() }
}

fn amounts(job: &Job) -> String {
    let progress = &job.progress;
    let mut parts = vec![format!("{:.1} %", progress.percent)];
    if progress.total > 0 {
        parts.push(portion(progress));
    }
    parts.extend(rate(progress));
    parts.extend(progress.left.map(|left| format!("{} left", time(left))));
    parts.join(", ")
}

fn portion(progress: &Progress) -> String {
    format!("{} of {}", bytes(progress.done), bytes(progress.total))
}

fn rate(progress: &Progress) -> Option<String> {
    progress.rate.map(|rate| format!("{}/s", bytes(rate)))
}

fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(percent: f32) -> Job {
        let progress = serde_json::json!({
            "done": 1_288_490_189_u64, "total": 3_113_851_290_u64, "percent": percent, "rate": 220_200_960, "left": 68
        });
        let job = serde_json::json!({
            "id": 7, "kind": "disk-convert", "target": "/a to /b", "vm": null, "state": "running", "step": "copying",
            "progress": progress, "started": 5, "ended": null, "problem": null, "result": null, "revision": 3
        });
        serde_json::from_value(job).unwrap()
    }

    #[test]
    fn a_bar_says_all_there_is_to_say() {
        let drawn = "copying [#########---------------] 41.3 %, 1.2 GiB of 2.9 GiB, 210 MiB/s, 1 min 8 s left";
        assert_eq!(bar(&job(41.3)), drawn);
        assert!(bar(&job(100.0)).contains(&"#".repeat(BAR)));
        assert!(bar(&job(-5.0)).contains(&"-".repeat(BAR)));
    }

    #[test]
    fn a_table_says_the_same_of_what_runs() {
        let told = columns(&job(41.3));
        assert_eq!((told.progress.as_str(), told.bytes.as_str()), ("[####------] 41.3 %", "1.2 GiB of 2.9 GiB"));
        assert_eq!((told.rate.as_str(), told.left.as_str()), ("210 MiB/s", "1 min 8 s"));
        assert_eq!(columns(&Job { state: JobState::Done, ..job(100.0) }), Columns::default());
    }

    #[test]
    fn lines_come_only_when_there_is_something_to_say() {
        let mut line = ProgressLine { style: Style::Lines, last: None, drawn: false };
        let start = Instant::now();
        assert!(line.is_due(&job(0.0), start));
        assert!(!line.is_due(&job(9.0), start));
        assert!(line.is_due(&job(10.0), start));
        assert!(line.is_due(&job(10.0), start + LINE_EVERY));
        assert!(line.is_due(&Job { step: Some("writing".into()), ..job(10.0) }, start));
    }
}
