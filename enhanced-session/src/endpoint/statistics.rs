//! What an endpoint has done and how it stands, as plain numbers.

use crate::class::Class;

use super::{ChannelId, PeerInfo, Transport};

/// How an endpoint stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Which start of this end it is.
    pub epoch: u64,
    /// Who is at the other end; none while nobody is.
    pub peer: Option<PeerInfo>,
    /// Whether rings can be used.
    pub region_attached: bool,
    /// How often the two ends found each other.
    pub connections: u64,
    /// Bytes that came from the port and went to it.
    pub port: Bytes,
    /// KICK frames.
    pub kicks_sent: u64,
    /// KICK frames, those ignored included.
    pub kicks_received: u64,
    /// Faults of all channels.
    pub faults: u64,
    /// One per channel, by number.
    pub channels: Vec<ChannelStatistics>,
}

/// Bytes in both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    /// From the other end.
    pub received: u64,
    /// To the other end.
    pub sent: u64,
}

/// How a channel stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelStatistics {
    /// The channel.
    pub id: ChannelId,
    /// Its class.
    pub class: Class,
    /// The number of its instance; 0 where it is not known, on the guest.
    pub index: u16,
    /// 0: the channel itself, else the number of a sub-channel.
    pub sub_index: u16,
    /// What carries it, while it is open.
    pub transport: Option<Transport>,
    /// Messages that came since it was opened.
    pub received: Traffic,
    /// Messages that were sent since it was opened.
    pub sent: Traffic,
    /// Faults since it was first offered.
    pub faults: u64,
}

/// Messages in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How many.
    pub messages: u64,
    /// Bytes of their payload.
    pub bytes: u64,
}

impl Traffic {
    pub(super) const fn new() -> Self {
        Self { messages: 0, bytes: 0 }
    }

    pub(super) const fn add(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }
}
