//! `fanlight demo`: one guest, one user and a gateway in front, for a first look and for tests.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tracing::warn;
use uuid::Uuid;
use vmm::{Boot, Definition, Vm, VmState};
use zeroize::Zeroizing;

use super::Context;
use super::rdp_file::{self, Route};
use super::serve::{StopSignals, service_runtime};
use crate::config::{Config, Listen};
use crate::files::write_atomically;
use crate::logging::{self, LogFormat};
use crate::problem::{Code, Problem};
use crate::service::Service;
use crate::state::StateFolder;
use crate::users::{Keep, Secret, User, Users, VmRights, random_password};

const NAME: &str = "demo";
/// What the demo's guest needs, in MiB.
const MEMORY: u32 = 256;
const CMDLINE: &str = "console=tty0 quiet";

/// Run a gateway with one guest and one user, ready to be looked at
///
/// Everything is set up anew: a VM `demo` with that kernel, and a user `demo` with a random password, which is
/// printed together with the commands that connect. Ctrl-C stops the gateway and the guest.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  fanlight demo --kernel images/console/vmlinux --initrd images/console/initrd.zst --port 3390")]
pub(super) struct Demo {
    /// The guest's kernel
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The guest's initial file system
    #[arg(long, value_name = "FILE")]
    initrd: PathBuf,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", default_value = CMDLINE, allow_hyphen_values = true)]
    cmdline: String,
    /// The port on 127.0.0.1 [0: any that is free]
    #[arg(long, default_value_t = 3389)]
    port: u16,
    /// How log lines look
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: LogFormat,
}

/// Whether the guest has to be started over because it has another definition now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guest {
    Unchanged,
    Changed,
}

impl Demo {
    pub(super) fn run(self, state: Option<PathBuf>, context: &Context) -> Result<ExitCode, Problem> {
        logging::start(self.log_format);
        service_runtime()?.block_on(self.serve(StateFolder::choose_for_demo(state), context))
    }

    async fn serve(self, state: StateFolder, context: &Context) -> Result<ExitCode, Problem> {
        let stop = StopSignals::new()?;
        let mut config = Config::load(state.clone())?;
        config.listen = Listen::on(vec![([127, 0, 0, 1], self.port).into()]);
        state.create()?;
        let lock = state.lock()?;
        let guest = self.write_definition(&state)?;
        let password = write_user(&state)?;
        let service = Service::start_locked(config, lock).await?;
        let vm = match start(&service, guest).await {
            Ok(vm) => vm,
            Err(problem) => {
                service.stop().await;
                return Err(problem);
            }
        };
        announce(&service, &state, &password, context)?;
        drop(password);
        stop.wait().await;
        service.stop().await;
        switch_off(&vm).await;
        Ok(ExitCode::SUCCESS)
    }

    /// Writes the VM's definition, keeping the UUID and what else stands in an earlier one.
    fn write_definition(&self, state: &StateFolder) -> Result<Guest, Problem> {
        let file = state.definitions().join(format!("{NAME}.toml"));
        let before = Definition::load(&file).ok().filter(|definition| definition.name == NAME);
        let new = || Definition { memory: MEMORY, ..Definition::new(NAME, Uuid::new_v4()) };
        let mut definition = before.clone().unwrap_or_else(new);
        definition.boot = Boot::DirectKernel {
            kernel: existing(&self.kernel)?,
            initrd: Some(existing(&self.initrd)?),
            cmdline: self.cmdline.clone(),
        };
        definition.validate().map_err(|error| Problem::new(Code::Invalid, error))?;
        if before.as_ref() == Some(&definition) {
            return Ok(Guest::Unchanged);
        }
        write_atomically(&file, 0o600, definition.to_toml().as_bytes())
            .map_err(|error| Problem::new(Code::Internal, format!("cannot write {}: {error}", file.display())))?;
        Ok(Guest::Changed)
    }
}

fn existing(path: &PathBuf) -> Result<PathBuf, Problem> {
    std::fs::canonicalize(path).map_err(|error| {
        Problem::new(Code::Invalid, format!("{}: {error}", path.display())).hint("./x image console builds one")
    })
}

/// Gives the user `demo` a new password.
fn write_user(state: &StateFolder) -> Result<Zeroizing<String>, Problem> {
    let password = random_password().map_err(|error| Problem::new(Code::Internal, error))?;
    let user = User { name: NAME.parse()?, secret: Secret::new(&password, Keep::NtHashToo)?, vms: VmRights::All };
    Users::open(state.users())?.put(user)?;
    Ok(password)
}

/// Starts the guest, or leaves it as it is when it still runs from an earlier gateway.
async fn start(service: &Service, guest: Guest) -> Result<Vm, Problem> {
    let vm = service
        .host()
        .find(NAME)
        .ok_or_else(|| Problem::new(Code::Internal, "the definition of the demo's VM was refused"))?;
    let is_on = |vm: &Vm| matches!(vm.status().state, VmState::Running | VmState::Paused);
    if is_on(&vm) && guest == Guest::Changed {
        vm.power_off().await?;
    }
    if !is_on(&vm) {
        vm.start().await?;
    }
    Ok(vm)
}

async fn switch_off(vm: &Vm) {
    if matches!(vm.status().state, VmState::Created | VmState::Stopped | VmState::Failed) {
        return;
    }
    if let Err(error) = vm.power_off().await {
        warn!(%error, "the guest may still run");
    }
}

/// Prints how to connect, and the line that programs wait for.
fn announce(service: &Service, state: &StateFolder, password: &str, context: &Context) -> Result<(), Problem> {
    let listening = service.listening().list();
    let address = listening.first().ok_or_else(|| Problem::new(Code::Internal, "listening nowhere"))?.to_string();
    let file = state.path().join("demo.rdp");
    rdp_file::write(&file, &rdp_file::Target { address: &address, vm: NAME, user: Some(NAME), route: Route::Token })?;
    let (fingerprint, file) = (service.fingerprint(), file.display());
    let text = format!(
        "\n\
         address      {address}\n\
         vm           {NAME}\n\
         user         {NAME}\n\
         password     {password}\n\
         certificate  sha256:{fingerprint}\n\
         connect      xfreerdp3 /v:{address} /u:{NAME} /p:{password} /cert:fingerprint:sha256:{fingerprint} +dynamic-resolution\n\
         or open      {file}\n\
         state        {}\n\
         \n\
         ready: rdp={address} vm={NAME} user={NAME} password={password}\n",
        state.path().display()
    );
    context.output.text(&Zeroizing::new(text));
    if !context.output.is_json() {
        context.output.note("Ctrl-C stops the gateway and the guest.");
    }
    Ok(())
}
