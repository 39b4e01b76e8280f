//! What the service writes about itself, to standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// What is written without `FANLIGHT_LOG`: our own milestones, and only trouble of the libraries.
/// rustls warns about what a peer can repeat at will.
const DEFAULT_FILTER: &str = "warn,gateway=info,fanlight=info,vmm=info,rdp_server=info,rustls=error";

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging; a second call changes nothing.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_env("FANLIGHT_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // Fails when there is a subscriber already: a test's, which is to stay.
    let _ = match format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.with_ansi(colours_wanted()).try_init(),
    };
}

fn colours_wanted() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
