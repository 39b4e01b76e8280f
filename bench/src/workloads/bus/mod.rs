//! The bus: what its rings carry, compared with memory and with what the system has.

mod pair;
mod way;

use anyhow::Result;

pub(crate) use pair::serve_if_peer;

use crate::report::Report;

/// Runs everything.
pub(crate) fn run() -> Result<Report> {
    let mut report = Report::new("bus");
    pair::measure(&mut report)?;
    Ok(report)
}
