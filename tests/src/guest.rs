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

    /// Asks the gateway for something: `start`, `shutdown`, `stop`, `reset`, `pause` or `resume`.
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

    fn show(&self) -> Result<Value> {
        self.api.get(&format!("/v1/vms/{}", self.name))
    }
}

/// Whether the shell waits for a command.
#[must_use]
pub fn at_prompt(screen: &Screen) -> bool {
    let prompt = screen.last().strip_prefix("console:").and_then(|rest| rest.split_once('#'));
    // The shell asks the terminal where its cursor is; on a busy machine the answer is echoed.
    prompt.is_some_and(|(_, typed)| typed.is_empty() || typed.starts_with(" ^[[") && typed.ends_with('R'))
}
