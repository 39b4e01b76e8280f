//! What a VM's disks and states cost, and asking for them.

mod management;
mod states;
mod storage_move;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::report::Report;

/// Runs everything.
pub(crate) async fn run() -> Result<Report> {
    let mut report = Report::new("vmm");
    management::measure(&mut report)?;
    states::measure(&mut report).await?;
    storage_move::measure(&mut report).await?;
    Ok(report)
}

/// A disk in a VM's definition.
fn disk_table(path: &Path, format: &str) -> String {
    format!("[[disk]]\npath = {path:?}\nformat = {format:?}\nbus = \"virtio\"\n")
}

fn qemu_img(words: &[&str], paths: &[&Path]) -> Result<()> {
    let status = Command::new("qemu-img").args(words).args(paths).status().context("qemu-img does not run")?;
    ensure!(status.success(), "qemu-img {words:?} ended with {status}");
    Ok(())
}

/// A folder that goes with this value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("fanlight-bench-{name}-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
