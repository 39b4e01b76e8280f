//! Whether this host can do the work: what is there, what that means, and how to mend it.

mod host;
mod qemu;
mod service;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::Host;

use crate::config::Config;

/// The QEMU that is looked for when the configuration names none.
const QEMU: &str = "qemu-system-x86_64";

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
    checks.extend(qemu::look(&program).await);
    checks.extend(service::look(config, listening));
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
