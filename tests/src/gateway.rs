//! A gateway on a state folder of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::api::Api;
use crate::client::Connect;
use crate::environment::environment;
use crate::guest::{Guest, Machine, Memory};
use crate::process::{self, Process};
use crate::scratch;
use crate::wait::{Look, wait_until};

/// How long a gateway may take to start.
const START: Duration = Duration::from_secs(30);
/// How long a command of the command line may take.
const COMMAND: Duration = Duration::from_secs(60);

/// A gateway. Dropping it kills it and its guests.
#[derive(Debug)]
pub struct Gateway {
    state: PathBuf,
    launch: Launch,
    address: SocketAddr,
    process: Process,
}

/// How it is started.
#[derive(Debug)]
struct Launch {
    /// What its configuration has beside the address.
    settings: String,
    /// What it logs, if not the usual.
    log: Option<String>,
}

/// A user and their password.
#[derive(Debug, Clone)]
pub struct Person {
    /// The name to log on with.
    pub name: String,
    /// The password.
    pub password: String,
}

impl Gateway {
    /// Starts a gateway with the default configuration on a port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start() -> Result<Self> {
        Self::start_with("")
    }

    /// Starts a gateway; `settings` is added to its configuration.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start_with(settings: &str) -> Result<Self> {
        Self::launch(Launch { settings: settings.to_owned(), log: None })
    }

    /// Starts a gateway that logs what `filter` lets through.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start_logging(filter: &str) -> Result<Self> {
        Self::launch(Launch { settings: String::new(), log: Some(filter.to_owned()) })
    }

    fn launch(launch: Launch) -> Result<Self> {
        let state = scratch::folder("gateway")?;
        let (process, address) = launch.serve(&state, 0)?;
        Ok(Self { state, launch, address, process })
    }

    /// Where it awaits clients.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its state folder.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its API.
    #[must_use]
    pub fn api(&self) -> Api {
        Api::new(&self.state)
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Runs a command of the command line on its state folder, with `input` on standard input.
    ///
    /// # Errors
    ///
    /// When the command does not end.
    pub fn command(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut command = Command::new(&environment()?.program);
        command.args(arguments).env("FANLIGHT_STATE", &self.state);
        process::run(command, input, COMMAND)
    }

    /// Runs a command that must succeed; what it says as JSON.
    ///
    /// # Errors
    ///
    /// When it does not end, or fails.
    pub fn command_json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.command(&[arguments, &["--json"]].concat(), "")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?} ended with {}: {errors}", output.status);
        serde_json::from_slice(&output.stdout).with_context(|| format!("{arguments:?} wrote no JSON"))
    }

    /// Adds a user who may use the VMs named in `vms`, or all of them.
    ///
    /// # Errors
    ///
    /// What the gateway says.
    pub fn add_user(&self, name: &str, password: &str, vms: Option<&[&str]>) -> Result<Person> {
        self.api().post("/v1/users", &json!({ "name": name, "password": password, "vms": vms }))?;
        Ok(Person { name: name.to_owned(), password: password.to_owned() })
    }

    /// Creates a VM with the console guest, switched off.
    ///
    /// # Errors
    ///
    /// What the gateway says.
    pub fn create_guest(&self, name: &str) -> Result<Guest> {
        self.create_guest_on(name, Machine::default())
    }

    /// Creates a VM with the console guest that is not as usual, switched off.
    ///
    /// # Errors
    ///
    /// What the gateway says.
    pub fn create_guest_on(&self, name: &str, machine: Machine) -> Result<Guest> {
        self.create(name, machine, None)
    }

    /// Creates a VM with the console guest and an empty disk of 64 MiB that keeps checkpoints, switched off.
    ///
    /// # Errors
    ///
    /// What the gateway says.
    pub fn create_guest_with_disk(&self, name: &str) -> Result<Guest> {
        self.create(name, Machine::default(), Some(&self.state.join(format!("{name}.qcow2"))))
    }

    /// A VM that is there already, with the console guest.
    ///
    /// # Errors
    ///
    /// What the gateway says.
    pub fn guest(&self, name: &str) -> Result<Guest> {
        let shown = self.api().get(&format!("/v1/vms/{name}"))?;
        Ok(Guest::new(self.api(), name, shown["uuid"].as_str().context("a VM without a UUID")?))
    }

    fn create(&self, name: &str, machine: Machine, disk: Option<&Path>) -> Result<Guest> {
        let under_test = environment()?;
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
        let Machine { network, memory, tables, parameters } = machine;
        let memory = memory.map_or_else(|| "256".to_owned(), Memory::in_toml);
        let network = if network { "user" } else { "none" };
        let cmdline = format!("{} {parameters}", under_test.cmdline);
        let mut definition = format!(
            "name = {name:?}\nuuid = {uuid:?}\nmemory = {memory}\nnetwork = {network:?}\n{tables}\n\
             [boot]\nkernel = {:?}\ninitrd = {:?}\ncmdline = {:?}\n",
            under_test.kernel,
            under_test.initrd,
            cmdline.trim_end()
        );
        let disks: Vec<Value> = disk.iter().map(|path| json!({ "path": path, "size": 64 << 20 })).collect();
        if let Some(path) = disk {
            definition += &format!("[[disk]]\npath = {path:?}\nformat = \"qcow2\"\n");
        }
        self.api().post("/v1/vms", &json!({ "definition": definition, "disks": disks }))?;
        Ok(Guest::new(self.api(), name, &uuid))
    }

    /// The VMs that have sessions now, one entry per session.
    ///
    /// # Errors
    ///
    /// What the gateway says.
    pub fn sessions(&self) -> Result<Vec<String>> {
        let sessions = self.api().get("/v1/sessions")?;
        let sessions = sessions.as_array().context("sessions are a list")?;
        Ok(sessions.iter().filter_map(|session| Some(session["vm"].as_str()?.to_owned())).collect())
    }

    /// Waits until there are as many sessions as `count` says.
    ///
    /// # Errors
    ///
    /// When there never are.
    pub fn wait_for_sessions(&self, count: usize) -> Result<()> {
        wait_until(START, format_args!("{count} sessions"), || {
            let sessions = self.sessions()?;
            Ok(Look::when(sessions.len() == count, || format!("there are {sessions:?}")))
        })
    }

    /// A client of this gateway for `person`.
    pub fn client(&self, person: &Person) -> Connect {
        Connect::to(self.address, &person.name, &person.password)
    }

    /// Asks the gateway to stop, as the system does; guests run on.
    ///
    /// # Errors
    ///
    /// When it does not stop.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.terminate()
    }

    /// Ends the gateway without asking; guests run on.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Waits until the VM named `vm` has no session.
    ///
    /// # Errors
    ///
    /// When it keeps one.
    pub fn wait_for_no_session_on(&self, vm: &str) -> Result<()> {
        wait_until(START, format_args!("no session on `{vm}`"), || {
            let sessions = self.sessions()?;
            Ok(Look::when(!sessions.iter().any(|other| other == vm), || format!("there are {sessions:?}")))
        })
    }

    /// Starts it again on the same state folder and port.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start_again(&mut self) -> Result<()> {
        let (process, address) = self.launch.serve(&self.state, self.address.port())?;
        ensure!(address == self.address, "asked for {}, got {address}", self.address);
        self.process = process;
        Ok(())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.process.kill();
        scratch::end_guests_of(&self.state);
    }
}

impl Launch {
    fn serve(&self, state: &Path, port: u16) -> Result<(Process, SocketAddr)> {
        let listen = format!("[listen]\naddresses = [\"127.0.0.1:{port}\"]\n");
        fs::write(state.join("fanlight.toml"), listen + &self.settings)?;
        let mut command = Command::new(&environment()?.program);
        command.arg("serve").arg("--state").arg(state).env("RUST_BACKTRACE", "1");
        command.envs(self.log.iter().map(|filter| ("FANLIGHT_LOG", filter)));
        let mut process = Process::start(command, &state.with_extension("log"))?;
        let api = Api::new(state);
        let address = wait_until(START, "the gateway", || {
            let ended = process.ended()?;
            ensure!(ended.is_none(), "the gateway did not start:\n{}", process.tail());
            match api.get("/v1/status") {
                Ok(status) => Ok(Look::or_not_yet(first_address(&status), || format!("its status is {status}"))),
                Err(error) => Ok(Look::NotYet(format!("{error:#}\n{}", process.tail()))),
            }
        })?;
        Ok((process, address))
    }
}

fn first_address(status: &Value) -> Option<SocketAddr> {
    status["listening"].as_array()?.first()?.as_str()?.parse().ok()
}
