//! `fanlight serve`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

use super::Context;
use crate::config::{Listen, Nla};
use crate::logging::{self, LogFormat};
use crate::problem::{Code, Problem};
use crate::service::{self, Service};

/// Threads that run tasks: sockets and framing are light work, so more would only cost memory.
const FEWEST_WORKERS: usize = 2;
const MOST_WORKERS: usize = 4;
/// Threads for what blocks: password hashes, files.
const BLOCKING_THREADS: usize = 32;
/// An idle thread holds its stack and an arena of the allocator.
const IDLE_THREAD: Duration = Duration::from_secs(2);
/// What a shell reports for a program ended by Ctrl-C.
const INTERRUPTED: i32 = 130;

/// Run the gateway
///
/// Listens for RDP on ports 3389 and 2179, on loopback only until a user exists and fanlight.toml or --listen names
/// other addresses. Ctrl-C or SIGTERM stops it; the VMs go on and are taken back by the next start.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fanlight serve
  fanlight serve --listen 0.0.0.0 --listen '[::]'
  fanlight serve --state /srv/fanlight --listen 127.0.0.1:3390 --nla require
  fanlight serve --check                      only look for mistakes in fanlight.toml

FANLIGHT_LOG chooses what is logged, as in FANLIGHT_LOG=debug or FANLIGHT_LOG=warn,vmm=debug.")]
pub(super) struct Serve {
    /// Listen here instead of where fanlight.toml says: IP (both ports), IP:PORT or [IP6]:PORT; repeat it for several
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,
    /// Whether clients may (allow), must (require) or cannot (off) log on by NLA
    #[arg(long, value_name = "POLICY")]
    nla: Option<NlaOption>,
    /// How log lines look
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: LogFormat,
    /// Check the configuration and leave
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NlaOption {
    Allow,
    Require,
    Off,
}

impl Serve {
    pub(super) fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        let mut config = context.config()?;
        if !self.listen.is_empty() {
            let texts = self.listen.iter().map(String::as_str);
            config.listen = Listen::from_texts(texts).map_err(|reason| Problem::new(Code::Invalid, reason))?;
        }
        config.nla = self.nla.map_or(config.nla, Nla::from);
        if self.check {
            context.output.value(&serde_json::json!({ "valid": true }), || "the configuration is valid".to_owned());
            return Ok(ExitCode::SUCCESS);
        }
        logging::start(self.log_format);
        service_runtime()?.block_on(async {
            let stop = StopSignals::new()?;
            service::run(config, |service| announce(service, context), stop.wait()).await?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl From<NlaOption> for Nla {
    fn from(option: NlaOption) -> Self {
        match option {
            NlaOption::Allow => Self::Allow,
            NlaOption::Require => Self::Require,
            NlaOption::Off => Self::Off,
        }
    }
}

/// The threads of a gateway.
pub(super) fn service_runtime() -> Result<Runtime, Problem> {
    let cores = std::thread::available_parallelism().map_or(FEWEST_WORKERS, usize::from);
    Builder::new_multi_thread()
        .worker_threads(cores.clamp(FEWEST_WORKERS, MOST_WORKERS))
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(IDLE_THREAD)
        .thread_name("fanlight")
        .enable_all()
        .build()
        .map_err(|error| Problem::new(Code::Internal, error))
}

fn announce(service: &Service, context: &Context) {
    let listening: Vec<_> = service.listening().list().iter().map(ToString::to_string).collect();
    let text = if context.output.is_json() {
        // One line, so that a program can wait for it.
        let value = serde_json::json!({
            "listening": listening,
            "fingerprint": service.fingerprint().to_string(),
            "state": context.state.path(),
            "pid": std::process::id(),
        });
        format!("{value}\n")
    } else {
        let (fingerprint, state) = (service.fingerprint(), context.state.path().display());
        format!("listening    {}\ncertificate  sha256:{fingerprint}\nstate        {state}\n", listening.join(", "))
    };
    context.output.text(&text);
}

/// SIGINT, SIGTERM and, unless it is ignored (nohup), SIGHUP. Heard from construction on, so that none is lost while
/// the gateway starts.
pub(super) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl StopSignals {
    pub(super) fn new() -> Result<Self, Problem> {
        let listen = |kind| signal(kind).map_err(|error| Problem::new(Code::Internal, error));
        Ok(Self {
            hangup: if hangup_is_ignored() { None } else { Some(listen(SignalKind::hangup())?) },
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for the first; the second one, should stopping hang, ends the program at once.
    pub(super) async fn wait(mut self) {
        let name = self.next().await;
        info!(signal = name, "asked to stop; once more to stop at once");
        tokio::spawn(async move {
            self.next().await;
            std::process::exit(INTERRUPTED);
        });
    }

    async fn next(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        // All are only waiting: the losers have lost nothing.
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = hangup => "SIGHUP",
        }
    }
}

/// Whether whoever started this wants it to outlive the terminal.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}
