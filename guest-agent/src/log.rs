//! Log lines on standard error, one write each, so that `/dev/kmsg` can stand behind it.

use std::fmt::{Debug, Write as _};
use std::io::{IsTerminal, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The kernel's log cuts longer lines.
const MAX_LINE_BYTES: usize = 900;
/// Lines within a period; what a host can make us say over and over must not fill a guest's disk.
const MAX_LINES: u32 = 100;
const PERIOD: Duration = Duration::from_secs(60);

/// Begins to log what is at least as grave as `level`.
///
/// Where no person reads along, each line begins with its priority in angle brackets, as the kernel's log and
/// systemd's journal understand it.
pub fn start(name: &'static str, level: Level) {
    let with_priority = !std::io::stderr().is_terminal();
    let logger = Logger { name, level, with_priority, spans: AtomicU64::new(1), limit: Mutex::new(Limit::default()) };
    // A second logger, in tests, changes nothing.
    let _ = tracing::subscriber::set_global_default(logger);
}

struct Logger {
    name: &'static str,
    level: Level,
    with_priority: bool,
    spans: AtomicU64,
    limit: Mutex<Limit>,
}

/// How many lines there were in the present period.
#[derive(Debug, Default)]
struct Limit {
    began: Option<Instant>,
    lines: u32,
}

impl Limit {
    /// Whether another line may be written; else how many were left out, once the period is over.
    fn take(&mut self, now: Instant) -> (bool, u32) {
        let is_over = self.began.is_none_or(|began| now.saturating_duration_since(began) >= PERIOD);
        let left_out = if is_over { self.lines.saturating_sub(MAX_LINES) } else { 0 };
        if is_over {
            *self = Self { began: Some(now), lines: 0 };
        }
        self.lines = self.lines.saturating_add(1);
        (self.lines <= MAX_LINES, left_out)
    }
}

impl Subscriber for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn event(&self, event: &Event<'_>) {
        let level = *event.metadata().level();
        if level < Level::DEBUG {
            let Ok((is_allowed, left_out)) = self.limit.lock().map(|mut limit| limit.take(Instant::now())) else {
                return;
            };
            if left_out > 0 {
                let _ = writeln!(std::io::stderr(), "{}: {left_out} lines were left out", self.name);
            }
            if !is_allowed {
                return;
            }
        }
        let mut line = Line { text: String::with_capacity(128) };
        if self.with_priority {
            let _ = write!(line.text, "<{}>", priority(level));
        }
        let _ = write!(line.text, "{}:", self.name);
        event.record(&mut line);
        let _ = std::io::stderr().write_all(line.finish().as_bytes());
    }

    // The agent is one loop: there is nothing that a span could tell apart.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed))
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// syslog's number.
const fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

struct Line {
    text: String,
}

impl Line {
    fn finish(mut self) -> String {
        self.text = self.text.replace(['\n', '\r'], " ");
        self.text.truncate(self.text.floor_char_boundary(MAX_LINE_BYTES));
        self.text.push('\n');
        self.text
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.text, " {value:?}"),
            name => write!(self.text, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_ends_until_the_next_period() {
        let (start, mut limit) = (Instant::now(), Limit::default());
        let written = (0..MAX_LINES + 7).filter(|_| limit.take(start).0).count();
        assert_eq!(written, MAX_LINES as usize);
        assert_eq!(limit.take(start + PERIOD), (true, 7));
        assert_eq!(limit.take(start + 2 * PERIOD), (true, 0));
    }

    #[test]
    fn a_line_is_one_line_and_not_too_long() {
        let line = Line { text: format!("a\nb{}", "é".repeat(MAX_LINE_BYTES)) }.finish();
        assert!(line.starts_with("a bé"));
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.len() <= MAX_LINE_BYTES + 1);
    }
}
