//! What a workload found: tables for people, one line of JSON for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// One line of a table: columns and what stands in them.
pub(crate) type Row = Vec<(&'static str, Value)>;

/// The result of one workload.
#[derive(Debug)]
pub(crate) struct Report {
    name: &'static str,
    tables: Vec<Table>,
    figures: Vec<Figure>,
}

#[derive(Debug)]
struct Table {
    title: String,
    rows: Vec<Row>,
}

/// A number that has a limit.
#[derive(Debug)]
struct Figure {
    what: String,
    value: f64,
    bound: Bound,
    limit: f64,
    unit: &'static str,
}

/// On which side of its limit a number may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    AtMost,
    AtLeast,
}

impl Report {
    /// An empty report of the workload `name`.
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, tables: Vec::new(), figures: Vec::new() }
    }

    /// Adds a table.
    pub(crate) fn table(&mut self, title: impl Into<String>, rows: Vec<Row>) {
        self.tables.push(Table { title: title.into(), rows });
    }

    /// Adds a number that must not be above `limit`.
    pub(crate) fn at_most(&mut self, what: impl Into<String>, value: f64, limit: f64, unit: &'static str) {
        self.figure(Figure { what: what.into(), value, bound: Bound::AtMost, limit, unit });
    }

    /// Adds a number that must not be below `limit`.
    pub(crate) fn at_least(&mut self, what: impl Into<String>, value: f64, limit: f64, unit: &'static str) {
        self.figure(Figure { what: what.into(), value, bound: Bound::AtLeast, limit, unit });
    }

    /// Tells it at once, too: what comes after it may take long, or go wrong.
    fn figure(&mut self, figure: Figure) {
        eprintln!("{}", figure.in_words());
        self.figures.push(figure);
    }

    /// Whether every figure is within its limit.
    pub(crate) fn is_met(&self) -> bool {
        self.figures.iter().all(Figure::is_met)
    }

    /// Prints all of it.
    pub(crate) fn print(&self) {
        println!("## {}\n", self.name);
        for table in &self.tables {
            println!("{}\n\n{}", table.title, table.text());
        }
        for figure in &self.figures {
            println!("* {}", figure.in_words());
        }
        println!("\n{}\n", self.json());
    }

    fn json(&self) -> Value {
        let rows = |rows: &[Row]| rows.iter().map(|row| row.iter().cloned().collect()).collect::<Vec<Value>>();
        let tables: Vec<_> =
            self.tables.iter().map(|table| json!({"title": table.title, "rows": rows(&table.rows)})).collect();
        let figures: Vec<_> = self.figures.iter().map(Figure::json).collect();
        json!({"bench": self.name, "tables": tables, "figures": figures})
    }
}

impl Figure {
    fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtMost => self.value <= self.limit,
            Bound::AtLeast => self.value >= self.limit,
        }
    }

    fn in_words(&self) -> String {
        let verdict = if self.is_met() { "met" } else { "MISSED" };
        let Self { what, value, bound, limit, unit } = self;
        let bound = if *bound == Bound::AtMost { "at most" } else { "at least" };
        format!("{what}: {} {unit}, {bound} {limit} {unit}: {verdict}", number(*value))
    }

    fn json(&self) -> Value {
        let Self { what, value, limit, unit, .. } = self;
        json!({"what": what, "value": value, "limit": limit, "unit": unit, "met": self.is_met()})
    }
}

impl Table {
    /// The table in Markdown.
    fn text(&self) -> String {
        let Some(first) = self.rows.first() else { return String::new() };
        let header: Vec<_> = first.iter().map(|(column, _)| (*column).to_owned()).collect();
        let body: Vec<Vec<_>> =
            self.rows.iter().map(|row| row.iter().map(|(_, value)| cell(value)).collect()).collect();
        let width = |at: usize| {
            let cells = body.iter().filter_map(|row| row.get(at)).chain(header.get(at));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..header.len()).map(width).collect();
        let mut text = String::new();
        let mut line = |cells: &[String]| {
            for (cell, width) in cells.iter().zip(&widths) {
                let _ = write!(text, "| {cell:<width$} ");
            }
            text.push_str("|\n");
        };
        line(&header);
        line(&widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>());
        for row in &body {
            line(row);
        }
        text
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(value) => value.as_f64().map_or_else(|| value.to_string(), number),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// Three digits that mean something, and no more.
fn number(value: f64) -> String {
    match value.abs() {
        size if value.fract() == 0.0 || size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The middle of `values`, none of which is NaN; 0 when there are none.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// The value that `percent` of a hundred do not exceed; 0 when there are none.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last * percent + 50) / 100).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!([percentile(&values, 0), median(&values), percentile(&values, 100)], [1.0, 3.0, 5.0]);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn a_table_is_markdown() {
        let table = Table { title: String::new(), rows: vec![vec![("a", json!("text")), ("b", json!(0.12345))]] };
        assert_eq!(table.text(), "| a    | b     |\n| ---- | ----- |\n| text | 0.123 |\n");
    }

    #[test]
    fn a_figure_on_the_wrong_side_of_its_limit_is_missed() {
        let mut report = Report::new("test");
        report.at_least("most", 2.0, 2.0, "B");
        report.at_most("one", 2.0, 2.0, "B");
        assert!(report.is_met());
        report.at_most("two", 2.1, 2.0, "B");
        assert!(!report.is_met());
        let mut report = Report::new("test");
        report.at_least("three", 1.9, 2.0, "B");
        assert!(!report.is_met());
    }
}
