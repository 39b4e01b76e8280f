//! The state of a VM's bus as programs and people are shown it.

use std::time::{Duration, Instant};

use enhanced_session::class::shutdown::Action;
use enhanced_session::endpoint::{Statistics, Transport};
use serde::{Deserialize, Serialize};

use super::services::{ClockState, Health, MemoryReport, Services};
use super::{GuestDetails, InputCapabilities};

/// How a VM's bus stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BusStatus {
    /// What the two ends are doing.
    pub state: BusState,
    /// What carries the channels, while an agent is there.
    pub transport: Option<BusTransport>,
    /// The agent's name and version, while it is there.
    pub agent: Option<String>,
    /// How the guest is.
    pub health: Option<Health>,
    /// From a message of the host's to the agent's answer, in microseconds.
    pub round_trip_us: Option<u64>,
    /// From sending input to the guest's word that its system had it, in microseconds.
    pub input_latency_us: Option<u64>,
    /// What input the agent takes.
    pub input: Option<InputCapabilities>,
    /// How often an agent has come since the gateway started.
    pub connections: u64,
    /// Rules that were broken by the guest since the gateway started or the VM was switched on.
    pub faults: u64,
    /// Bytes through the port, per second, from the guest.
    pub port_received_rate: f64,
    /// Bytes through the port, per second, to the guest.
    pub port_sent_rate: f64,
    /// The channels that are offered.
    pub channels: Vec<ChannelStatus>,
}

/// What the two ends of a bus are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BusState {
    /// The VM is off, or its definition leaves the bus out.
    Off,
    /// No agent is there: it is not installed, not started yet, or does not answer.
    Waiting,
    /// An agent is there.
    Connected,
}

/// What carries a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BusTransport {
    /// Frames on the port.
    Stream,
    /// Rings in shared memory.
    Ring,
}

/// One channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChannelStatus {
    /// Its class.
    pub class: String,
    /// Which of its class.
    pub index: u16,
    /// What carries it; none while it is offered and not open.
    pub transport: Option<BusTransport>,
    /// Messages from the guest.
    pub received: u64,
    /// Messages to the guest.
    pub sent: u64,
    /// Bytes per second from the guest.
    pub received_rate: f64,
    /// Bytes per second to the guest.
    pub sent_rate: f64,
    /// Rules that the guest broke on it.
    pub faults: u64,
}

/// Everything that a guest's agent says of its guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// What it is and has; none when the agent has not said it.
    pub details: Option<GuestDetails>,
    /// How it is.
    pub health: Option<Health>,
    /// Its clock.
    pub clock: Option<ClockState>,
    /// Its memory.
    pub memory: Option<MemoryReport>,
    /// That it goes down, and how: `power off`, `reboot`, `hibernate`.
    pub going_down: Option<String>,
}

impl BusStatus {
    /// From what is known of the core, its speed and its services.
    pub(super) fn new(
        state: BusState,
        statistics: &Statistics,
        rates: &Rates,
        services: &Services,
        now: Instant,
    ) -> Self {
        let rings = statistics.channels.iter().any(|channel| channel.transport == Some(Transport::Ring));
        let transport = if rings { BusTransport::Ring } else { BusTransport::Stream };
        let (port_received_rate, port_sent_rate) = rates.port(now, statistics);
        Self {
            state,
            transport: (state == BusState::Connected).then_some(transport),
            agent: agent_name(statistics),
            health: services.heartbeat.health(now),
            round_trip_us: services.heartbeat.round_trip().map(micros),
            input_latency_us: services.input.latency().map(micros),
            input: services.input.capabilities(),
            connections: statistics.connections,
            faults: statistics.faults,
            port_received_rate,
            port_sent_rate,
            channels: rates.channels(now, statistics),
        }
    }
}

impl GuestStatus {
    /// What the services have heard.
    pub(super) fn new(services: &Services, now: Instant) -> Self {
        Self {
            details: services.guest_info.details(now),
            health: services.heartbeat.health(now),
            clock: services.time_sync.clock(),
            memory: services.memory.report().map(|(report, _)| report),
            going_down: services.shutdown.going().map(|action| words(action).to_owned()),
        }
    }
}

/// The agent's name and version; the name ends up in a terminal.
pub(super) fn agent_name(statistics: &Statistics) -> Option<String> {
    let agent = statistics.peer.as_ref()?.agent.as_ref()?;
    let name: String = agent.name.chars().filter(|letter| !letter.is_control()).collect();
    Some(format!("{name} {}", agent.version))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

const fn words(action: Action) -> &'static str {
    match action {
        Action::PowerOff => "power off",
        Action::Reboot => "reboot",
        Action::Hibernate => "hibernate",
    }
}

impl From<Transport> for BusTransport {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Stream => Self::Stream,
            Transport::Ring => Self::Ring,
        }
    }
}

/// Counters as they were, to tell rates from. Two samples are kept, so that a rate is never over no time.
#[derive(Debug, Default)]
pub(super) struct Rates {
    older: Option<(Instant, Statistics)>,
    newer: Option<(Instant, Statistics)>,
}

/// Time between two samples, in seconds.
const SAMPLE: f64 = 1.0;
/// A rate over longer than this is none any more.
const LONGEST: f64 = 10.0;

impl Rates {
    /// Keeps `statistics`, unless the last sample is too fresh. Returns whether it was worth making them.
    pub(super) fn wants_sample(&self, now: Instant) -> bool {
        self.newer.as_ref().is_none_or(|(at, _)| now.saturating_duration_since(*at).as_secs_f64() >= SAMPLE)
    }

    pub(super) fn sample(&mut self, now: Instant, statistics: Statistics) {
        self.older = self.newer.replace((now, statistics));
    }

    /// Bytes per second of a counter since the older sample.
    fn rate(&self, now: Instant, value: u64, of: impl Fn(&Statistics) -> Option<u64>) -> f64 {
        let Some((at, before)) = self.older.as_ref().or(self.newer.as_ref()) else { return 0.0 };
        let seconds = now.saturating_duration_since(*at).as_secs_f64();
        let Some(before) = of(before) else { return 0.0 };
        if (SAMPLE / 2.0..=LONGEST).contains(&seconds) { bytes(value.saturating_sub(before)) / seconds } else { 0.0 }
    }

    pub(super) fn channels(&self, now: Instant, statistics: &Statistics) -> Vec<ChannelStatus> {
        let rows = statistics.channels.iter().map(|channel| {
            let same = |before: &Statistics| before.channels.iter().find(|other| other.id == channel.id).cloned();
            let received = self.rate(now, channel.received.bytes, |before| same(before).map(|c| c.received.bytes));
            let sent = self.rate(now, channel.sent.bytes, |before| same(before).map(|c| c.sent.bytes));
            ChannelStatus {
                class: channel.class.to_string(),
                index: channel.index,
                transport: channel.transport.map(Into::into),
                received: channel.received.messages,
                sent: channel.sent.messages,
                received_rate: received,
                sent_rate: sent,
                faults: channel.faults,
            }
        });
        rows.collect()
    }

    /// From the guest and to it.
    pub(super) fn port(&self, now: Instant, statistics: &Statistics) -> (f64, f64) {
        (
            self.rate(now, statistics.port.received, |before| Some(before.port.received)),
            self.rate(now, statistics.port.sent, |before| Some(before.port.sent)),
        )
    }
}

/// Exact up to 2⁵³: more than pass within the time of two samples.
#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn bytes(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn statistics(received: u64) -> Statistics {
        let mut statistics = Statistics::default();
        statistics.port.received = received;
        statistics
    }

    #[test]
    fn a_rate_is_over_the_time_since_the_older_sample() {
        let start = Instant::now();
        let mut rates = Rates::default();
        assert_eq!(rates.port(start, &statistics(5)), (0.0, 0.0));
        rates.sample(start, statistics(0));
        assert!(!rates.wants_sample(start + Duration::from_millis(10)));
        rates.sample(start + Duration::from_secs(1), statistics(100));
        let (received, _) = rates.port(start + Duration::from_secs(2), &statistics(300));
        assert!((received - 150.0).abs() < 1e-9);
        assert_eq!(rates.port(start + Duration::from_secs(60), &statistics(300)), (0.0, 0.0));
    }
}
