//! What a VM's disks and states cost.

mod storage_move;

use anyhow::Result;

use crate::report::Report;

/// Runs everything.
pub(crate) async fn run() -> Result<Report> {
    let mut report = Report::new("vmm");
    storage_move::measure(&mut report).await?;
    Ok(report)
}
