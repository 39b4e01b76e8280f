//! Whether this host can do the work: what is there, what that means, and how to mend it.

mod host;
mod qemu;
mod room;
mod secrets;
mod service;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::timeout;
use vmm::Host;

use crate::config::Config;

/// The QEMU that is looked for when the configuration names none.
const QEMU: &str = "qemu-system-x86_64";
/// A program that only prints its version and takes longer hangs.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(20);

/// All that was looked at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Whether VMs can run and be shown here.
    pub works: bool,
    /// Each thing that was looked at.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// How bad it is.
    pub level: Level,
    /// What is there.
    pub found: String,
    /// What that means.
    pub meaning: String,
    /// How to mend it.
    pub mend: Option<String>,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Good,
    /// It works, and could be better.
    Poor,
    /// Nothing works without it.
    Missing,
}

/// Looks at everything; `listening` is where the service that asks listens, if there is one.
pub async fn examine(config: &Config, host: &Host, listening: Option<&[SocketAddr]>) -> Report {
    let program = config.qemu.clone().unwrap_or_else(|| PathBuf::from(QEMU));
    let mut checks = host::look(host).await;
    checks.extend(qemu::look(&program, &host.storage_daemon()).await);
    checks.extend(service::look(config, listening).await);
    checks.push(secrets::look(config));
    checks.extend(room::look(&config.state.definitions()).await);
    Report { works: checks.iter().all(|check| check.level != Level::Missing), checks }
}

impl Check {
    fn new(name: &str, level: Level, found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level, found: found.into(), meaning: meaning.into(), mend: None }
    }

    fn mend(self, how: impl Into<String>) -> Self {
        Self { mend: Some(how.into()), ..self }
    }
}

/// Runs a program for what it prints.
async fn run(program: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(PROGRAM_DEADLINE, output).await.map_err(|_| "does not answer".to_owned())?;
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}
