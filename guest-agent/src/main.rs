//! The program `fanlight-agent`.

use std::process::ExitCode;

use anyhow::Context as _;
use guest_agent::agent::Agent;
use guest_agent::bus::{Bus, BusConfig};
use guest_agent::log;
use guest_agent::options::{Command, Options};
use guest_agent::poller::Signals;
use tracing::Level;

const NAME: &str = "fanlight-agent";
const HELP: &str = "\
The guest's end of the bus to a Fanlight host: input, clock, shutdown, heartbeat, information, memory.

usage: fanlight-agent [OPTIONS]

  --transport HOW   auto: shared memory where there is some, else the port alone (the default)
                    stream: the port alone
                    ring: shared memory, or nothing
                    Else FANLIGHT_TRANSPORT says, or fanlight.transport= on the kernel's command line
  --port NODE       the port's device, instead of the port with the name org.fanlight.bus.0
  -v, --verbose     log more
  -V, --version
  -h, --help

It works until SIGTERM, and waits where there is no port or no host.
";

fn main() -> ExitCode {
    match Command::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => print!("{HELP}"),
        Ok(Command::Version) => println!("{NAME} {}", env!("CARGO_PKG_VERSION")),
        Ok(Command::Run(options)) => {
            if let Err(error) = run(&options) {
                eprintln!("{NAME}: {error:#}");
                return ExitCode::FAILURE;
            }
        }
        Err(error) => {
            eprintln!("{NAME}: {error}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn run(options: &Options) -> anyhow::Result<()> {
    log::start(NAME, if options.verbose { Level::DEBUG } else { Level::INFO });
    let transport = options.transport_of_system()?;
    let signals = Signals::take_over().context("cannot take signals over")?;
    let config = BusConfig::of_system(NAME, transport, options.port.clone());
    let bus = Bus::new(config).context("cannot start")?;
    bus.run(&signals, &mut Agent::new(transport)).context("cannot go on")
}
