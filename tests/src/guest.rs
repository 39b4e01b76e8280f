//! A virtual machine with the console guest.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::api::Api;
use crate::environment::environment;
use crate::picture::Picture;
use crate::text::Screen;
use crate::wait::{Look, wait_until};

/// How long a guest may take to its prompt: 10 s alone, several at once on a busy machine take much longer.
pub const BOOT: Duration = Duration::from_secs(180);
/// How long a VM may take to another state.
const CHANGE: Duration = Duration::from_secs(60);

/// A VM of a gateway. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Guest {
    api: Api,
    name: String,
    uuid: String,
}

/// What a VM has that is not as usual.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine {
    /// A network card, and QEMU's network behind it.
    pub network: bool,
    /// Memory that follows its need.
    pub memory: Option<Memory>,
    /// Tables of its definition, such as `[bus]`.
    pub tables: &'static str,
    /// What is added to the kernel's command line.
    pub parameters: &'static str,
}

/// Memory that follows a guest's need, in MiB.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// What it starts with.
    pub startup: u64,
    /// What it keeps.
    pub minimum: u64,
    /// What it never exceeds.
    pub maximum: u64,
}

impl Memory {
    pub(crate) fn in_toml(self) -> String {
        let Self { startup, minimum, maximum } = self;
        format!("{{ startup = {startup}, minimum = {minimum}, maximum = {maximum} }}")
    }
}

impl Guest {
    pub(crate) fn new(api: Api, name: &str, uuid: &str) -> Self {
        Self { api, name: name.to_owned(), uuid: uuid.to_owned() }
    }

    /// What people call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What programs call it.
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Asks the gateway for something: `start`, `shutdown`, `reboot`, `stop`, `reset`, `pause` or `resume`.
    ///
    /// # Errors
    ///
    /// What the gateway says.
    pub fn request(&self, request: &str) -> Result<()> {
        self.api.post(&format!("/v1/vms/{}/{request}", self.name), &Value::Null).map(drop)
    }

    /// Starts it and waits for its prompt.
    ///
    /// # Errors
    ///
    /// When it does not come.
    pub fn boot(&self) -> Result<()> {
        self.request("start")?;
        self.wait_for_prompt()
    }

    /// Deletes it.
    ///
    /// # Errors
    ///
    /// What the gateway says.
    pub fn delete(&self) -> Result<()> {
        self.api.delete(&format!("/v1/vms/{}", self.name))
    }

    /// What it is doing, in the gateway's words.
    ///
    /// # Errors
    ///
    /// What the gateway says.
    pub fn state(&self) -> Result<String> {
        Ok(self.show()?["state"].as_str().context("a VM without a state")?.to_owned())
    }

    /// Why it is in that state, when not by anybody's wish.
    ///
    /// # Errors
    ///
    /// What the gateway says.
    pub fn reason(&self) -> Result<Option<String>> {
        Ok(self.show()?["reason"].as_str().map(str::to_owned))
    }

    /// Waits until it is in `state`.
    ///
    /// # Errors
    ///
    /// When it never is.
    pub fn wait_for_state(&self, state: &str) -> Result<()> {
        wait_until(CHANGE, format_args!("`{}` to be {state}", self.name), || {
            let shown = self.show()?;
            Ok(Look::when(shown["state"] == state, || format!("it is {shown}")))
        })
    }

    /// Its QEMU.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn pid(&self) -> Result<Pid> {
        let shown = self.show()?;
        let pid = shown["pid"].as_i64().with_context(|| format!("a VM without a process: {shown}"))?;
        Pid::from_raw(i32::try_from(pid)?).context("process 0")
    }

    /// Kills its QEMU, as the system does when memory is short.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn kill_qemu(&self) -> Result<()> {
        Ok(kill_process(self.pid()?, Signal::KILL)?)
    }

    /// What its screen shows, as QEMU sees it.
    ///
    /// # Errors
    ///
    /// What the gateway says.
    pub fn picture(&self) -> Result<Picture> {
        Picture::decode(&self.api.get_bytes(&format!("/v1/vms/{}/screenshot", self.name))?)
    }

    /// What is written on its screen.
    ///
    /// # Errors
    ///
    /// As [`picture`](Self::picture).
    pub fn screen(&self) -> Result<Screen> {
        Ok(environment()?.font.read(&self.picture()?))
    }

    /// Waits until `seen` is content with what is written on its screen.
    ///
    /// # Errors
    ///
    /// When it never is.
    pub fn wait_for_screen(&self, limit: Duration, what: &str, seen: impl Fn(&Screen) -> bool) -> Result<Screen> {
        wait_until(limit, what, || {
            // While it changes its size there may be nothing to see.
            match self.screen() {
                Ok(screen) if seen(&screen) => Ok(Look::Found(screen)),
                Ok(screen) => Ok(Look::NotYet(format!("the screen of `{}` shows:\n{screen:?}", self.name))),
                Err(error) => Ok(Look::NotYet(format!("there is no picture: {error:#}"))),
            }
        })
    }

    /// Waits until its screen has that size.
    ///
    /// # Errors
    ///
    /// When it never has.
    pub fn wait_for_size(&self, width: usize, height: usize) -> Result<()> {
        wait_until(CHANGE, format_args!("a screen of {width}x{height}"), || match self.picture() {
            Ok(picture) => Ok(Look::when(picture.size() == (width, height), || format!("it is {picture:?}"))),
            // While it changes there may be nothing to see.
            Err(error) => Ok(Look::NotYet(format!("there is no picture: {error:#}"))),
        })
    }

    /// Waits for the shell.
    ///
    /// # Errors
    ///
    /// When it does not come.
    pub fn wait_for_prompt(&self) -> Result<()> {
        self.wait_for_screen(BOOT, "the shell's prompt", at_prompt).map(drop)
    }

    /// How its bus stands, as `fanlight vm show --json` has it.
    ///
    /// # Errors
    ///
    /// What the gateway says.
    pub fn bus(&self) -> Result<Bus> {
        Ok(Bus(self.show()?["bus"].clone()))
    }

    /// Waits until its bus stands as `enough` wants it.
    ///
    /// # Errors
    ///
    /// When it never does.
    pub fn wait_for_bus(&self, what: &str, enough: impl Fn(&Bus) -> bool) -> Result<Bus> {
        wait_until(BOOT, format_args!("{what} of `{}`", self.name), || {
            let bus = self.bus()?;
            Ok(if enough(&bus) { Look::Found(bus) } else { Look::NotYet(format!("its bus is {}", bus.0)) })
        })
    }

    /// Waits until its agent has opened every channel that it is offered, and takes keys.
    ///
    /// # Errors
    ///
    /// When it does not come.
    pub fn wait_for_agent(&self) -> Result<Bus> {
        self.wait_for_bus("the agent", Bus::is_complete)
    }

    /// Asks its agent for a sign of life until it gives one.
    ///
    /// # Errors
    ///
    /// When it gives none.
    pub fn wait_for_pong(&self) -> Result<()> {
        wait_until(BOOT, format_args!("a sign of life of the agent in `{}`", self.name), || {
            let pong = self.api.post(&format!("/v1/vms/{}/guest/ping", self.name), &Value::Null);
            Ok(pong.map_or_else(|error| Look::NotYet(format!("{error:#}")), |_| Look::Found(())))
        })
    }

    /// Waits until its agent says of it what `enough` wants to hear; all that it says.
    ///
    /// # Errors
    ///
    /// When it never does.
    pub fn wait_for_info(&self, what: &str, enough: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_until(BOOT, format_args!("{what} of `{}`", self.name), || {
            match self.api.get(&format!("/v1/vms/{}/guest", self.name)) {
                Ok(info) if enough(&info) => Ok(Look::Found(info)),
                Ok(info) => Ok(Look::NotYet(format!("it says {info}"))),
                Err(error) => Ok(Look::NotYet(format!("{error:#}"))),
            }
        })
    }

    fn show(&self) -> Result<Value> {
        self.api.get(&format!("/v1/vms/{}", self.name))
    }
}

/// How the bus of a VM stands.
#[derive(Debug, Clone)]
pub struct Bus(Value);

impl Bus {
    /// Whether an agent is there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.0["state"] == "connected"
    }

    /// Whether the agent has opened every channel, and takes keys.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let channels = self.channels();
        let open = channels.iter().all(|channel| !channel["transport"].is_null());
        self.is_connected() && !channels.is_empty() && open && self.0["input"]["keyboard"] == true
    }

    /// What carries its channels: `ring` or `stream`, each once.
    #[must_use]
    pub fn transports(&self) -> Vec<&str> {
        let mut transports: Vec<_> =
            self.channels().iter().filter_map(|channel| channel["transport"].as_str()).collect();
        transports.sort_unstable();
        transports.dedup();
        transports
    }

    /// The classes of the channels that are offered.
    #[must_use]
    pub fn classes(&self) -> Vec<&str> {
        self.channels().iter().filter_map(|channel| channel["class"].as_str()).collect()
    }

    /// How many messages went to the guest on the channel of `class` since it was opened.
    #[must_use]
    pub fn sent(&self, class: &str) -> u64 {
        let channel = self.channels().iter().find(|channel| channel["class"] == class);
        channel.and_then(|channel| channel["sent"].as_u64()).unwrap_or(0)
    }

    /// How often an agent has come.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.0["connections"].as_u64().unwrap_or(0)
    }

    /// How many rules the guest has broken.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.0["faults"].as_u64().unwrap_or(0)
    }

    fn channels(&self) -> &[Value] {
        self.0["channels"].as_array().map(Vec::as_slice).unwrap_or_default()
    }
}

/// Whether the shell waits for a command.
#[must_use]
pub fn at_prompt(screen: &Screen) -> bool {
    let prompt = screen.last().strip_prefix("console:").and_then(|rest| rest.split_once('#'));
    // The shell asks the terminal where its cursor is; on a busy machine the answer is echoed.
    prompt.is_some_and(|(_, typed)| typed.is_empty() || typed.starts_with(" ^[[") && typed.ends_with('R'))
}
