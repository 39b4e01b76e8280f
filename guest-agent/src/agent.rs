//! Opens the channels that there is a service for, and carries messages between the two.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use enhanced_session::class::Class;
use enhanced_session::control::Reason;
use enhanced_session::endpoint::{ChannelId, Event, OfferInfo, OpenError, Preference, Transport};
use enhanced_session::message::{Message, Txid};
use tracing::{debug, info, warn};

use crate::bus::{Endpoint, Tenant};
use crate::options::TransportChoice;
use crate::poller::{Poller, Token};
use crate::services::{self, Health, Incoming, Outgoing, Service};

/// How long the agent waits before it opens a channel again that did not stay open; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The agent: every channel that it knows of.
pub struct Agent {
    transport: TransportChoice,
    health: Health,
    channels: BTreeMap<ChannelId, Channel>,
}

struct Channel {
    class: Class,
    has_rings: bool,
    preference: Preference,
    state: State,
    /// Before it is opened again.
    pause: Duration,
}

enum State {
    /// It is opened then.
    Closed(Instant),
    /// The host was asked.
    Opening,
    Open(Box<Open>),
    /// It cannot be opened: nothing but a new offer changes that.
    Unusable,
}

struct Open {
    service: Box<dyn Service>,
    since: Instant,
    is_watched: bool,
}

impl Agent {
    /// An agent that knows of no channel.
    #[must_use]
    pub fn new(transport: TransportChoice) -> Self {
        Self { transport, health: Health::default(), channels: BTreeMap::new() }
    }

    fn offered(&mut self, now: Instant, offer: OfferInfo) {
        if offer.sub_index != 0 || !services::is_provided(offer.class) {
            debug!(class = %offer.class, channel = %offer.id, "left closed");
            return;
        }
        let preference = match self.transport {
            TransportChoice::Auto | TransportChoice::Ring => Preference::Ring,
            TransportChoice::Stream => Preference::Stream,
        };
        let (class, has_rings) = (offer.class, offer.has_rings);
        let channel = Channel { class, has_rings, preference, state: State::Closed(now), pause: FIRST_PAUSE };
        // One that rested after faults is offered again under its number.
        self.channels.insert(offer.id, channel);
    }

    fn opened(&mut self, now: Instant, id: ChannelId, transport: Transport, poller: &Poller) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let Some(service) = services::open(channel.class, now, &self.health) else { return };
        info!(class = %channel.class, ?transport, "open");
        let mut open = Open { service, since: now, is_watched: false };
        open.watch(id, poller);
        channel.state = State::Open(Box::new(open));
    }

    /// Rings may be to blame: where nothing else is asked for, the stream is tried next.
    fn open_failed(&mut self, now: Instant, id: ChannelId) {
        if let Some(channel) = self.channels.get_mut(&id)
            && self.transport == TransportChoice::Auto
        {
            channel.preference = match channel.preference {
                Preference::Ring => Preference::Stream,
                Preference::Stream => Preference::Ring,
            };
        }
        self.closed(now, id);
    }

    /// The channel is not open, or not any more: it is tried again later.
    fn closed(&mut self, now: Instant, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if let State::Open(open) = &channel.state
            && now.saturating_duration_since(open.since) > LONGEST_PAUSE
        {
            channel.pause = FIRST_PAUSE;
        }
        channel.state = State::Closed(now + channel.pause);
        channel.pause = (channel.pause * 2).min(LONGEST_PAUSE);
    }

    fn open_due(&mut self, now: Instant, endpoint: &mut Endpoint) {
        for (id, channel) in &mut self.channels {
            if !matches!(channel.state, State::Closed(at) if at <= now) {
                continue;
            }
            if self.transport == TransportChoice::Ring && !channel.has_rings {
                warn!(class = %channel.class, "there are no rings for it, and nothing else is allowed");
                channel.state = State::Unusable;
                continue;
            }
            channel.state = match endpoint.open(*id, channel.preference) {
                Ok(()) => State::Opening,
                // On its way to being closed: that it is will be told.
                Err(OpenError::InUse) => State::Closed(now + FIRST_PAUSE),
                Err(error @ (OpenError::NotOffered | OpenError::Version | OpenError::Resting)) => {
                    debug!(class = %channel.class, %error, "cannot be opened");
                    State::Unusable
                }
            };
        }
    }

    /// Gives the service what came, and closes the channel when the host broke the rules of its class.
    fn receive(&mut self, now: Instant, id: ChannelId, endpoint: &mut Endpoint) {
        while let Some(message) = endpoint.receive(id) {
            let Some(Channel { class, state: State::Open(open), .. }) = self.channels.get_mut(&id) else { continue };
            let handled = match &message {
                Message::Data(bytes) => open.service.handle(now, Incoming::Message(bytes)),
                Message::Request(txid, bytes) => open.service.handle(now, Incoming::Request(txid.0, bytes)),
                Message::Reset => {
                    if let Some(service) = services::open(*class, now, &self.health) {
                        (open.service, open.is_watched) = (service, false);
                    }
                    Ok(())
                }
                // No service asks for anything; and there is no end to what a service may have to say.
                Message::Completion(..) | Message::Fin => Ok(()),
            };
            if let Err(error) = handled {
                warn!(%class, %error, "closing the channel");
                endpoint.close(id, Reason::Fault);
                self.closed(now, id);
            }
        }
    }
}

impl Tenant for Agent {
    fn handle_event(&mut self, now: Instant, event: Event, endpoint: &mut Endpoint, poller: &Poller) {
        match event {
            Event::Connected(host) => info!(minor = host.minor, "the host is there"),
            Event::Disconnected(why) => {
                info!(%why, "the host is away");
                self.channels.clear();
            }
            Event::Offered(offer) => {
                self.offered(now, offer);
                self.open_due(now, endpoint);
            }
            Event::Opened { id, transport } => self.opened(now, id, transport, poller),
            Event::OpenFailed { id, code } => {
                debug!(channel = %id, ?code, "the host does not open it");
                self.open_failed(now, id);
            }
            Event::Closed { id, reason } => {
                debug!(channel = %id, ?reason, "closed");
                if matches!(self.channels.get(&id), Some(Channel { state: State::Open(_) | State::Opening, .. })) {
                    self.closed(now, id);
                }
            }
            Event::Rescinded { id, .. } => drop(self.channels.remove(&id)),
            Event::Readable(id) => {
                self.receive(now, id, endpoint);
                if let Some(Channel { state: State::Open(open), .. }) = self.channels.get_mut(&id) {
                    open.watch(id, poller);
                }
            }
            Event::Faulted { id, what } => debug!(channel = %id, %what, "the host broke a rule"),
            Event::PeerError { code, text } => debug!(?code, text, "the host complains"),
            Event::OffersDone => debug!(channels = self.channels.len(), "all offers"),
            // Room is found when something is to be sent; and no class with pictures is opened.
            _ => {}
        }
    }

    fn flush(&mut self, endpoint: &mut Endpoint) {
        for (id, channel) in &mut self.channels {
            if let State::Open(open) = &mut channel.state {
                open.flush(*id, endpoint);
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let timeouts = self.channels.values().filter_map(|channel| match &channel.state {
            State::Closed(at) => Some(*at),
            State::Open(open) => open.service.poll_timeout(),
            State::Opening | State::Unusable => None,
        });
        timeouts.min()
    }

    fn handle_timeout(&mut self, now: Instant, endpoint: &mut Endpoint, poller: &Poller) {
        self.open_due(now, endpoint);
        for (id, channel) in &mut self.channels {
            if let State::Open(open) = &mut channel.state {
                open.service.handle_timeout(now);
                open.watch(*id, poller);
            }
        }
    }

    fn handle_readable(&mut self, now: Instant, channel: u32) {
        if let Some(Channel { state: State::Open(open), .. }) = self.channels.get_mut(&ChannelId(channel)) {
            open.service.handle_readable(now);
        }
    }

    fn handle_child(&mut self, now: Instant) {
        for open in self.open_channels() {
            open.service.handle_child(now);
        }
    }

    fn handle_ending(&mut self, now: Instant) {
        for open in self.open_channels() {
            open.service.handle_ending(now);
        }
    }
}

impl Agent {
    fn open_channels(&mut self) -> impl Iterator<Item = &mut Open> {
        self.channels.values_mut().filter_map(|channel| match &mut channel.state {
            State::Open(open) => Some(&mut **open),
            _ => None,
        })
    }
}

impl Open {
    /// Watches what the service wants watched, as soon as it has it.
    fn watch(&mut self, id: ChannelId, poller: &Poller) {
        if self.is_watched {
            return;
        }
        if let Some(file) = self.service.watched() {
            match poller.watch(file, Token::Channel(id.0)) {
                Ok(()) => self.is_watched = true,
                Err(error) => debug!(%error, channel = %id, "cannot be watched"),
            }
        }
    }

    /// Sends what the service has to say, until the channel is full.
    fn flush(&mut self, id: ChannelId, endpoint: &mut Endpoint) {
        while endpoint.has_room(id) {
            let sent = match self.service.poll_output() {
                Some(Outgoing::Message(bytes)) => endpoint.send(id, bytes),
                Some(Outgoing::Completion(txid, bytes)) => endpoint.complete(id, Txid(txid), bytes),
                None => return,
            };
            if let Err(error) = sent {
                // The channel is about to be closed, or the host forgot its request.
                debug!(%error, channel = %id, "not sent");
            }
        }
    }
}
