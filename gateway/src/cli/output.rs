//! What people and programs see: tables or JSON on standard output, problems on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::problem::{ErrorBody, Problem};

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    json: bool,
    colours: bool,
}

/// Colours of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    Plain,
    Green,
    Yellow,
    Red,
}

/// A cell of a table.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    text: String,
    colour: Colour,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { json, colours: !json && !refused && io::stdout().is_terminal() }
    }

    /// Whether a program reads it.
    pub(super) fn is_json(self) -> bool {
        self.json
    }

    /// Prints `value` as JSON, or `text` for people.
    pub(super) fn value(self, value: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            // Values of ours have string keys only, so they can be written.
            print_line(&serde_json::to_string_pretty(value).unwrap_or_default());
        } else {
            print_line(&text());
        }
    }

    /// Prints `value` as JSON, or a table.
    pub(super) fn table(self, value: &impl Serialize, header: &[&str], rows: Vec<Vec<Cell>>) {
        self.value(value, || self.as_table(header, rows));
    }

    /// The table, in colours where there are colours.
    pub(super) fn as_table(self, header: &[&str], rows: Vec<Vec<Cell>>) -> String {
        table(header, &rows, self.colours)
    }

    /// Prints `value` as one line of JSON, or `text` for people in place of the text before; `false` when nobody reads
    /// any more.
    pub(super) fn again(self, value: &impl Serialize, text: impl FnOnce() -> String) -> bool {
        let text = if self.json { serde_json::to_string(value).unwrap_or_default() } else { text() };
        let clear = if !self.json && io::stdout().is_terminal() { "\x1b[H\x1b[J" } else { "" };
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{clear}{text}").and_then(|()| stdout.flush()).is_ok()
    }

    /// Prints text as it is.
    pub(super) fn text(self, text: &str) {
        print_text(text);
    }

    /// `text` in a colour, where there are colours.
    pub(super) fn paint(self, text: &str, colour: Colour) -> String {
        paint(text, colour, self.colours)
    }

    /// Prints what went wrong.
    pub(super) fn problem(self, problem: &Problem) {
        let mut stderr = io::stderr().lock();
        // Nowhere is left to say that this failed.
        let _ = if self.json {
            let body = ErrorBody { error: problem.clone() };
            writeln!(stderr, "{}", serde_json::to_string(&body).unwrap_or_default())
        } else {
            match &problem.hint {
                Some(hint) => writeln!(stderr, "fanlight: {}\n  {hint}", problem.message),
                None => writeln!(stderr, "fanlight: {}", problem.message),
            }
        };
    }

    /// Says something on standard error that is no problem.
    pub(super) fn note(self, text: &str) {
        if !self.json {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::coloured(text, Colour::Plain)
    }
}

impl Cell {
    /// What clients and guests call themselves ends up here: it must not steer the terminal.
    pub(super) fn coloured(text: impl Into<String>, colour: Colour) -> Self {
        Self { text: text.into().replace(char::is_control, "?"), colour }
    }
}

#[cfg(test)]
impl Cell {
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

/// How long ago a moment was, roughly.
pub(super) fn age(since: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    duration(now.saturating_sub(since))
}

/// A number of seconds, roughly.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `512 bytes`, `1.3 GiB`: what a person wants to know of a size.
pub(super) fn bytes(number: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let fits = |(index, _): &(usize, &&str)| number >> (10 * (index + 1)) > 0;
    let Some((index, unit)) = units.iter().enumerate().take_while(fits).last() else {
        return format!("{number} bytes");
    };
    let tenths = (u128::from(number) * 10) >> (10 * (index + 1));
    if tenths >= 1000 || tenths % 10 == 0 {
        format!("{} {unit}", tenths / 10)
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

fn table(header: &[&str], rows: &[Vec<Cell>], colours: bool) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count());
        cells.chain(header.get(column).map(|text| text.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let header = header.iter().map(|text| Cell::from(*text)).collect::<Vec<_>>();
    let lines = std::iter::once(&header).chain(rows).map(|row| line(row, &widths, colours));
    lines.collect::<Vec<_>>().join("\n")
}

fn line(row: &[Cell], widths: &[usize], colours: bool) -> String {
    let mut line = String::new();
    for (cell, width) in row.iter().zip(widths) {
        let padding = " ".repeat((width + 2).saturating_sub(cell.text.chars().count()));
        line += &paint(&cell.text, cell.colour, colours);
        line += &padding;
    }
    line.trim_end().to_owned()
}

fn paint(text: &str, colour: Colour, colours: bool) -> String {
    match colour.code().filter(|_| colours) {
        Some(code) => format!("\x1b[{code}m{text}\x1b[0m"),
        None => text.to_owned(),
    }
}

impl Colour {
    fn code(self) -> Option<u8> {
        match self {
            Self::Plain => None,
            Self::Green => Some(32),
            Self::Yellow => Some(33),
            Self::Red => Some(31),
        }
    }
}

fn print_line(text: &str) {
    print_text(&format!("{text}\n"));
}

/// A reader who closed the pipe has seen enough.
fn print_text(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["a".into(), Cell::coloured("running", Colour::Green)], vec!["longer".into(), "x".into()]];
        assert_eq!(table(&["NAME", "STATE"], &rows, false), "NAME    STATE\na       running\nlonger  x");
        assert!(table(&["NAME", "STATE"], &rows, true).contains("a       \x1b[32mrunning\x1b[0m"));
    }

    #[test]
    fn sizes_have_one_decimal_where_it_says_something() {
        let cases = [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (20 << 30, "20 GiB"),
            (1_288_490_188, "1.1 GiB"),
            (127 << 20, "127 MiB"),
            (u64::MAX, "15.9 EiB"),
        ];
        for (number, text) in cases {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn text_from_afar_does_not_steer_the_terminal() {
        assert_eq!(table(&["CLIENT"], &[vec!["pc\x1b[2J\n".into()]], true), "CLIENT\npc?[2J?");
    }
}
