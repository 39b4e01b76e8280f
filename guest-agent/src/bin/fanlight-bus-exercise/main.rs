//! A test tool, not installed with the agent: opens every channel that is offered, whatever its class, and sends each
//! message back. What it sends is what it understood: messages are decoded and encoded anew. So a test of the whole
//! way sees every class opened and used, also those that the agent has no service for.
//!
//! For measurements a host can order messages ([`drill`]), and has the bytes of a second port back ([`raw_echo`]).
//!
//! It takes the agent's options, and needs the port for itself.

mod drill;
mod raw_echo;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use enhanced_session::class::{
    Class, audio_in, audio_out, clipboard, folder, guest_info, heartbeat, input, memory, shutdown, time_sync, usb,
    video,
};
use enhanced_session::control::Reason;
use enhanced_session::endpoint::{ChannelId, Event, Preference};
use enhanced_session::message::Message;
use enhanced_session::wire::Malformed;
use guest_agent::bus::{Bus, BusConfig, Endpoint, Tenant};
use guest_agent::log;
use guest_agent::options::{Command, Options, TransportChoice};
use guest_agent::poller::{Poller, Signals};
use tracing::{Level, info, warn};

use drill::{Drill, Order};

const NAME: &str = "fanlight-bus-exercise";

fn main() -> ExitCode {
    let command = Command::parse(std::env::args_os().skip(1));
    let outcome = match command {
        Ok(Command::Run(options)) => run(&options),
        Ok(Command::Help | Command::Version) => {
            println!("{NAME} {}: a test tool; its options are those of fanlight-agent", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    log::start(NAME, if options.verbose { Level::DEBUG } else { Level::INFO });
    let transport = options.transport_of_system()?;
    let signals = Signals::take_over().context("cannot take signals over")?;
    raw_echo::start();
    let bus = Bus::new(BusConfig::of_system(NAME, transport, options.port.clone())).context("cannot start")?;
    bus.run(&signals, &mut Echo::new(transport)).context("cannot go on")
}

/// Every channel that is offered.
struct Echo {
    transport: TransportChoice,
    channels: BTreeMap<ChannelId, Channel>,
    /// Those that have something to answer, or have room again for it.
    ready: BTreeSet<ChannelId>,
}

struct Channel {
    class: Class,
    is_open: bool,
    /// What is to be sent before anything more is taken.
    order: Option<Order>,
}

impl Echo {
    const fn new(transport: TransportChoice) -> Self {
        Self { transport, channels: BTreeMap::new(), ready: BTreeSet::new() }
    }
}

impl Tenant for Echo {
    fn handle_event(&mut self, _: Instant, event: Event, endpoint: &mut Endpoint, _: &Poller) {
        match event {
            Event::Offered(offer) => {
                self.channels.insert(offer.id, Channel { class: offer.class, is_open: false, order: None });
                let preference = match self.transport {
                    TransportChoice::Ring if !offer.has_rings => return warn!(class = %offer.class, "has no rings"),
                    TransportChoice::Auto | TransportChoice::Ring => Preference::Ring,
                    TransportChoice::Stream => Preference::Stream,
                };
                if let Err(error) = endpoint.open(offer.id, preference) {
                    warn!(class = %offer.class, %error, "cannot be opened");
                }
            }
            Event::Opened { id, transport } => {
                if let Some(channel) = self.channels.get_mut(&id) {
                    info!(class = %channel.class, ?transport, "open");
                    channel.is_open = true;
                }
            }
            Event::Readable(id) | Event::Writable(id) => drop(self.ready.insert(id)),
            Event::Closed { id, reason } => {
                if let Some(channel) = self.channels.get_mut(&id) {
                    info!(class = %channel.class, ?reason, "closed");
                    (channel.is_open, channel.order) = (false, None);
                }
            }
            Event::Rescinded { id, .. } => drop(self.channels.remove(&id)),
            Event::Disconnected(why) => {
                info!(%why, "the host is away");
                self.channels.clear();
            }
            Event::SurfaceRevoked { id, surface } => endpoint.return_surface(id, surface),
            Event::Faulted { id, what } => warn!(channel = %id, %what, "the host broke a rule"),
            _ => {}
        }
    }

    fn flush(&mut self, endpoint: &mut Endpoint) {
        while let Some(id) = self.ready.pop_first() {
            if let Some(channel) = self.channels.get_mut(&id).filter(|channel| channel.is_open) {
                channel.answer_all(id, endpoint);
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn handle_timeout(&mut self, _: Instant, _: &mut Endpoint, _: &Poller) {}

    fn handle_readable(&mut self, _: Instant, _: u32) {}

    fn handle_child(&mut self, _: Instant) {}

    fn handle_ending(&mut self, _: Instant) {}
}

impl Channel {
    /// Sends back what there is, until the channel is full.
    fn answer_all(&mut self, id: ChannelId, endpoint: &mut Endpoint) {
        while endpoint.has_room(id) {
            let Some(answer) = self.next_answer(id, endpoint) else { return };
            let sent = match answer {
                Message::Completion(txid, bytes) => endpoint.complete(id, txid, bytes),
                Message::Data(bytes) => endpoint.send(id, bytes),
                Message::Fin => endpoint.finish(id),
                Message::Request(..) | Message::Reset => Ok(()),
            };
            if let Err(error) = sent {
                warn!(class = %self.class, %error, "not sent back");
            }
        }
    }

    /// What was ordered, or what to send for the next message that can be answered.
    fn next_answer(&mut self, id: ChannelId, endpoint: &mut Endpoint) -> Option<Message> {
        loop {
            if let Some(item) = self.order.as_mut().and_then(Order::item) {
                return Some(Message::Data(item));
            }
            let answer = match endpoint.receive(id)? {
                Message::Data(bytes) => self.answer(&bytes),
                Message::Request(txid, bytes) => {
                    encode_request_anew(self.class, &bytes).map(|bytes| Some(Message::Completion(txid, bytes)))
                }
                Message::Fin => Ok(Some(Message::Fin)),
                Message::Completion(..) | Message::Reset => Ok(None),
            };
            match answer {
                Ok(None) => {}
                Ok(answer) => return answer,
                Err(error) => {
                    warn!(class = %self.class, %error, "closing the channel");
                    endpoint.close(id, Reason::Fault);
                }
            }
        }
    }

    fn answer(&mut self, bytes: &[u8]) -> Result<Option<Message>, Malformed> {
        match Drill::decode(bytes)? {
            Some(Drill::Order(order)) => self.order = Some(order),
            Some(Drill::Filler) => {}
            None => return encode_anew(self.class, bytes).map(|bytes| Some(Message::Data(bytes))),
        }
        Ok(None)
    }
}

/// The bytes of a host's message, once understood.
fn encode_anew(class: Class, bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    Ok(match class {
        Class::Input => input::ToGuest::decode(bytes)?.encode(),
        Class::Video => video::ToGuest::decode(bytes)?.encode(),
        Class::AudioOut => audio_out::ToGuest::decode(bytes)?.encode(),
        Class::AudioIn => audio_in::ToGuest::decode(bytes)?.encode(),
        Class::Clipboard => clipboard::Message::decode(bytes)?.encode(),
        Class::Folder => folder::ToGuest::decode(bytes)?.encode(),
        Class::Usb => usb::ToGuest::decode(bytes)?.encode(),
        Class::Heartbeat => heartbeat::ToGuest::decode(bytes)?.encode(),
        Class::TimeSync => time_sync::ToGuest::decode(bytes)?.encode(),
        Class::GuestInfo => guest_info::ToGuest::decode(bytes)?.encode(),
        Class::Memory => memory::ToGuest::decode(bytes)?.encode(),
        // The host has only requests; a message back is the guest's.
        Class::Shutdown => shutdown::ToHost::decode(bytes)?.encode(),
    })
}

/// The same for a request.
fn encode_request_anew(class: Class, bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    Ok(match class {
        Class::Clipboard => clipboard::Request::decode(bytes)?.encode(),
        Class::Folder => folder::Request::decode(bytes)?.encode(),
        Class::Usb => usb::Request::decode(bytes)?.encode(),
        Class::GuestInfo => guest_info::Request::decode(bytes)?.encode(),
        Class::Shutdown => shutdown::Request::decode(bytes)?.encode(),
        // These have no requests: every kind is unknown.
        Class::Input
        | Class::Video
        | Class::AudioOut
        | Class::AudioIn
        | Class::Heartbeat
        | Class::TimeSync
        | Class::Memory => vec![0; 4],
    })
}
