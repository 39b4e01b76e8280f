//! The command line: `serve` and `demo` are the service itself, everything else is a client of its API.

mod bus;
mod checkpoint;
mod create;
mod demo;
mod disk;
mod disk_move;
mod disk_option;
mod doctor;
mod edit;
mod guest;
mod hardware;
mod job;
mod memory;
mod output;
mod progress;
mod rdp_file;
mod serve;
mod session;
mod settings;
mod size;
mod status;
mod user;
mod vm;
mod vm_disk;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

use crate::api::client::Client;
use crate::config::Config;
use crate::problem::{Code, Problem};
use crate::state::StateFolder;
use output::Output;

const EXAMPLES: &str = "\
Examples:
  fanlight serve                                   run the gateway
  fanlight user add anna                           add a user; asks for the password
  fanlight vm create --name web01 --memory 2048 --disk path=/srv/web01.img,size=20G,format=raw
  fanlight vm start web01
  fanlight rdp-file web01 --user anna > web01.rdp  a file that mstsc, FreeRDP and Remmina open

Exit codes:
  0  done
  1  failed
  2  the command line, a configuration or a definition makes no sense
  3  there is no such VM, checkpoint, disk, job, user or session
  4  not possible in this state, or the name is taken
  5  no service runs on this state folder
  6  not permitted
  130  interrupted while it waited for a job, which goes on";

/// A remote desktop gateway for virtual machines.
///
/// Runs guests on QEMU and shows each of them to any RDP client, from the first line of its firmware on.
#[derive(Debug, Parser)]
#[command(name = "fanlight", version, after_help = EXAMPLES, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Args)]
struct Global {
    /// Folder in which everything is kept [default: $FANLIGHT_STATE, else /var/lib/fanlight for root and
    /// ~/.local/state/fanlight for others]
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Demo(demo::Demo),
    Doctor(doctor::Doctor),
    Status(status::Status),
    /// Create, run and delete VMs
    #[command(subcommand)]
    Vm(vm::Vm),
    /// Ask the agent in a guest
    #[command(subcommand)]
    Guest(guest::Guest),
    /// Keep states of a VM, and go back to them
    #[command(subcommand)]
    Checkpoint(checkpoint::CheckpointCommand),
    /// Create, describe, convert, resize and delete disk images
    #[command(subcommand)]
    Disk(disk::Disk),
    /// Watch and cancel what takes minutes
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Add, list and remove users
    #[command(subcommand)]
    User(user::User),
    /// List and end sessions
    #[command(subcommand)]
    Session(session::Session),
    Memory(memory::Memory),
    RdpFile(rdp_file::RdpFile),
    Completions(Completions),
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fanlight completions bash > /etc/bash_completion.d/fanlight\n  fanlight completions fish > ~/.config/fish/completions/fanlight.fish"
)]
struct Completions {
    /// Which shell
    shell: clap_complete::Shell,
}

/// What every command has at hand.
struct Context {
    state: StateFolder,
    client: Client,
    output: Output,
}

/// Runs the program with these arguments and prints what there is to print.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors of this kind too; their code is 0. A closed pipe loses nothing.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1));
        }
    };
    let output = Output::new(cli.global.json);
    match run(cli, output) {
        Ok(code) => code,
        Err(problem) => {
            output.problem(&problem);
            ExitCode::from(problem.code.exit())
        }
    }
}

fn run(cli: Cli, output: Output) -> Result<ExitCode, Problem> {
    let state = StateFolder::choose(cli.global.state.clone());
    let context = Context { client: Client::new(state.clone()), state, output };
    match cli.command {
        Command::Serve(serve) => serve.run(&context),
        Command::Demo(demo) => demo.run(cli.global.state, &context),
        Command::Doctor(doctor) => small_runtime()?.block_on(doctor.run(&context)),
        Command::Status(status) => small_runtime()?.block_on(status.run(&context)),
        Command::Vm(vm) => small_runtime()?.block_on(vm.run(&context)),
        Command::Guest(guest) => small_runtime()?.block_on(guest.run(&context)),
        Command::Checkpoint(checkpoint) => small_runtime()?.block_on(checkpoint.run(&context)),
        Command::Disk(disk) => small_runtime()?.block_on(disk.run(&context)),
        Command::Job(job) => small_runtime()?.block_on(job.run(&context)),
        Command::User(user) => small_runtime()?.block_on(user.run(&context)),
        Command::Session(session) => small_runtime()?.block_on(session.run(&context)),
        Command::Memory(memory) => small_runtime()?.block_on(memory.run(&context)),
        Command::RdpFile(rdp_file) => small_runtime()?.block_on(rdp_file.run(&context)),
        Command::Completions(completions) => {
            let mut script = Vec::new();
            clap_complete::generate(completions.shell, &mut Cli::command(), "fanlight", &mut script);
            context.output.text(&String::from_utf8_lossy(&script));
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl Context {
    fn config(&self) -> Result<Config, Problem> {
        Ok(Config::load(self.state.clone())?)
    }
}

/// For a command that asks the service something and is done.
fn small_runtime() -> Result<Runtime, Problem> {
    Builder::new_current_thread().enable_all().build().map_err(|error| Problem::new(Code::Internal, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        fn check(command: &clap::Command) {
            if command.get_subcommands().next().is_none() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("fanlight "), "{} has no example", command.get_name());
            }
            command.get_subcommands().filter(|sub| sub.get_name() != "help").for_each(check);
        }
        check(&Cli::command());
    }
}
