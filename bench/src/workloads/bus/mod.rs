//! The bus: what its rings carry, compared with memory and with what the system has.

mod guest;
mod idle;
mod pair;
mod vm;
mod way;

use anyhow::Result;

pub(crate) use pair::serve_if_peer;

use crate::report::Report;

/// Runs everything.
pub(crate) async fn run() -> Result<Report> {
    let mut report = Report::new("bus");
    pair::measure(&mut report)?;
    guest::measure(&mut report)?;
    idle::measure(&mut report).await?;
    Ok(report)
}
