//! What the workloads with a gateway run on: a `fanlight` of their own, the console guest, and a user.

use std::time::Duration;

use anyhow::{Context, Result};
use fanlight_tests::environment::environment;
use fanlight_tests::gateway::{Gateway, Person};
use fanlight_tests::guest::{Guest, Machine};
use serde::Deserialize;

use crate::machine::Span;
use fanlight_tests::headless::keyboard::ENTER;
use fanlight_tests::headless::{Client, Decode, Options};

/// The desktop of every client.
pub(crate) const SIZE: (u16, u16) = (1920, 1080);
/// Nothing for so long means that the guest has drawn everything it had to.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

/// A gateway and its guests; dropping it ends them.
pub(crate) struct World {
    pub(crate) gateway: Gateway,
    guests: Vec<Guest>,
    person: Person,
}

/// What the gateway says about a session's pictures.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Stats {
    /// From the guest's report of a change to the last byte of its picture given to the system, in microseconds.
    pub(crate) damage_to_socket_us: Latency,
}

/// A distribution of durations in microseconds.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) max: u64,
}

impl World {
    /// Starts a gateway with guests of these names, and waits for their prompts.
    pub(crate) fn start(names: &[&str]) -> Result<Self> {
        Self::start_with(&names.iter().map(|name| (*name, Machine::default())).collect::<Vec<_>>())
    }

    /// The same with one guest that is not as usual.
    pub(crate) fn start_on(name: &str, machine: Machine) -> Result<Self> {
        Self::start_with(&[(name, machine)])
    }

    fn start_with(machines: &[(&str, Machine)]) -> Result<Self> {
        eprintln!("starting a gateway and {} guests", machines.len());
        let gateway = Gateway::start()?;
        let person = gateway.add_user("bench", "ZGlmZmljdWx0", None)?;
        let create = |(name, machine): &(&str, Machine)| gateway.create_guest_on(name, *machine);
        let guests = machines.iter().map(create).collect::<Result<Vec<_>>>()?;
        for guest in &guests {
            guest.request("start")?;
        }
        for guest in &guests {
            guest.wait_for_prompt()?;
        }
        Ok(Self { gateway, guests, person })
    }

    /// A client's options for the guest `name`.
    pub(crate) fn options(&self, name: &str) -> Options {
        Options {
            address: self.gateway.address(),
            user: self.person.name.clone(),
            password: self.person.password.clone(),
            vm: Some(name.to_owned()),
            size: SIZE,
            decode: Decode::Rectangles,
            receive_buffer: None,
            touch: None,
        }
    }

    /// A client at the guest `name` that has the whole picture, in the client's size.
    pub(crate) async fn client(&self, name: &str) -> Result<Client> {
        let mut client = Client::connect(&self.options(name)).await?;
        client.next_frame().await?;
        loop {
            client.until_quiet(QUIET).await?;
            if client.screen().lock().picture().size() == Some((SIZE.0.into(), SIZE.1.into())) {
                return Ok(client);
            }
            client.next_frame().await.context("the guest does not follow the client's size")?;
        }
    }

    /// The guest `name`.
    pub(crate) fn guest(&self, name: &str) -> Result<&Guest> {
        self.guests.iter().find(|guest| guest.name() == name).context("no such guest")
    }

    /// The gateway's process.
    pub(crate) fn gateway_pid(&self) -> Result<u32> {
        Ok(u32::try_from(self.gateway.process().pid().as_raw_nonzero().get())?)
    }

    /// A span in which the gateway and the guests are not foreign.
    pub(crate) fn span(&self) -> Result<Span> {
        let mut own = vec![self.gateway_pid()?];
        for guest in &self.guests {
            own.push(u32::try_from(guest.pid()?.as_raw_nonzero().get())?);
        }
        Span::start(&own)
    }

    /// Waits until the gateway has forgotten the sessions of clients that are gone.
    pub(crate) fn wait_for_sessions(&self, count: usize) -> Result<()> {
        self.gateway.wait_for_sessions(count)
    }

    /// What the gateway says about the newest session.
    pub(crate) fn stats(&self) -> Result<Stats> {
        let sessions = self.gateway.api().get("/v1/sessions")?;
        let newest = sessions.as_array().and_then(|sessions| sessions.last()).context("there is no session")?;
        Ok(serde_json::from_value(newest["stats"].clone())?)
    }
}

/// Fills the guest's screen with text: a console that has been worked in.
pub(crate) async fn fill_with_text(client: &mut Client) -> Result<()> {
    client.type_text("dmesg | tail -n 60 | cut -c 1-200; find /bin /sys/class /sys/module | tail -n 40").await?;
    client.tap(ENTER).await?;
    client.next_frame().await?;
    client.until_quiet(Duration::from_secs(1)).await?;
    Ok(())
}

/// The command line of the guests, for the record.
pub(crate) fn describe_guest() -> Result<String> {
    Ok(format!("console guest, 256 MiB, cmdline `{}`", environment()?.cmdline))
}
