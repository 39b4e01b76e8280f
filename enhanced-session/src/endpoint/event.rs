//! What an endpoint tells its owner, and why it refuses what the owner asks for.

use std::time::Instant;

use crate::class::Class;
use crate::control::{AgentVersion, ContactStatus, ErrorCode, Features, OfferFlags, Os, Picture, Reason, RegionHint};
use crate::message::MessageFault;
use crate::ring::RingFault;
use crate::wire::Malformed;

use super::{ChannelId, SurfaceId, Transport};

/// Something happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The two ends have found each other.
    Connected(PeerInfo),
    /// They have lost each other. Every channel that was open has been closed before this; on the host what is offered
    /// stays so, on the guest nothing of what was known counts any more, and no surface may be written to.
    Disconnected(Disconnect),
    /// A channel is open: messages can be sent.
    Opened {
        /// The channel.
        id: ChannelId,
        /// What carries it.
        transport: Transport,
    },
    /// A channel that was open is not any more. On the guest it can be opened again, unless `Rescinded` follows.
    Closed {
        /// The channel.
        id: ChannelId,
        /// Why.
        reason: Reason,
    },
    /// A message has come: take messages until none is given.
    Readable(ChannelId),
    /// A channel that was full can take a message.
    Writable(ChannelId),
    /// The other end broke a rule of a channel. `Closed` follows.
    Faulted {
        /// The channel.
        id: ChannelId,
        /// Which rule.
        what: Fault,
    },
    /// Both ends see the shared memory: channels can be opened on rings.
    RegionAttached,
    /// The other end did not act on something. For the log.
    PeerError {
        /// Why.
        code: ErrorCode,
        /// The same for people.
        text: String,
    },

    /// Host: a channel faulted again and again. It is withdrawn, and `Reoffered` follows.
    Withdrawn {
        /// The channel.
        id: ChannelId,
        /// When it is offered again, at the earliest.
        until: Instant,
    },
    /// Host: what was withdrawn is offered again, under another number.
    Reoffered {
        /// What it was.
        was: ChannelId,
        /// What it is.
        id: ChannelId,
    },
    /// Host: the guest would like so many more channels of this instance (`Host::offer_subchannel`).
    SubchannelsWanted {
        /// The channel.
        id: ChannelId,
        /// How many, at most 16.
        count: u16,
    },
    /// Host: a surface that was revoked is not written to any more.
    SurfaceReturned {
        /// The channel.
        id: ChannelId,
        /// The surface.
        surface: SurfaceId,
    },
    /// Host: the guest has stopped sending, or the time for that is over.
    Quiesced {
        /// Whether nothing is under way.
        clean: bool,
    },

    /// Guest: there is shared memory. Answer with `Guest::attach` or `Guest::decline`; offers come after that.
    RegionOffered(RegionHint),
    /// Guest: the host does not believe that this is the shared memory; everything goes over the stream.
    RegionRefused(ErrorCode),
    /// Guest: a channel can be opened.
    Offered(OfferInfo),
    /// Guest: all channels that there were on connecting have been offered.
    OffersDone,
    /// Guest: a channel could not be opened.
    OpenFailed {
        /// The channel.
        id: ChannelId,
        /// Why.
        code: ErrorCode,
    },
    /// Guest: an offer is withdrawn. Its surfaces must be returned.
    Rescinded {
        /// The channel.
        id: ChannelId,
        /// Why.
        reason: Reason,
    },
    /// Guest: there is memory for pictures.
    SurfaceGranted {
        /// The channel.
        id: ChannelId,
        /// The surface.
        surface: SurfaceId,
        /// Where it is.
        place: SurfacePlace,
    },
    /// Guest: stop writing there, then call `Guest::return_surface`.
    SurfaceRevoked {
        /// The channel.
        id: ChannelId,
        /// The surface.
        surface: SurfaceId,
    },
    /// Guest: the host expects nothing more, after `Guest::unload`.
    Unloaded,
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Which start of it.
    pub epoch: u64,
    /// The minor version of the bus that both speak.
    pub minor: u16,
    /// What both can do.
    pub features: Features,
    /// The agent; none when the other end is the host.
    pub agent: Option<Agent>,
}

/// The program at the guest's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// What it calls itself.
    pub name: String,
    /// Its version.
    pub version: AgentVersion,
    /// What it runs on.
    pub os: Os,
}

/// Why the two ends have lost each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Disconnect {
    /// The port was closed, or opened anew.
    #[error("the port was closed")]
    PortClosed,
    /// Something came that is no frame.
    #[error("the stream is out of step")]
    OutOfStep,
    /// Nothing came for too long.
    #[error("the other end is silent")]
    Silent,
    /// The other end is another start of its program.
    #[error("the other end was started anew")]
    PeerRestarted,
    /// The other end has begun to look for this one.
    #[error("the other end starts over")]
    PeerStartsOver,
    /// Too many messages that make no sense.
    #[error("the other end sends what makes no sense")]
    Misbehaving,
    /// More messages to answer than are read.
    #[error("the other end does not read its answers")]
    NotReading,
    /// The VM was reset or restored.
    #[error("the VM was reset")]
    Reset,
    /// The guest said that it stops.
    #[error("the guest stops using the bus")]
    Unloaded,
    /// The host does not receive this guest.
    #[error("the host refuses: {0:?}")]
    Refused(ContactStatus),
}

/// Which rule of a channel was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Of messages.
    #[error(transparent)]
    Message(#[from] MessageFault),
    /// Of rings.
    #[error(transparent)]
    Ring(#[from] RingFault),
    /// The rings are of another opening.
    #[error("the rings have another tag")]
    Tag,
    /// Of credit.
    #[error("{bytes} bytes, where {allowed} are allowed")]
    Credit {
        /// What came.
        bytes: usize,
        /// What was allowed.
        allowed: usize,
    },
    /// Of frames: that of a bulk class holds everything else up.
    #[error("a packet of {bytes} bytes, where {limit} are allowed")]
    Frame {
        /// Its payload.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// Of requests: there are too many open ones.
    #[error("more than {limit} requests are open")]
    TooManyRequests {
        /// How many may be.
        limit: usize,
    },
    /// Of requests: the same number twice.
    #[error("request {0} is open already")]
    RequestTwice(u64),
    /// Of completions: nobody asked, or it has been answered.
    #[error("a completion of request {0}, which is not open")]
    NoSuchRequest(u64),
    /// Of the class: a message that its service cannot read.
    #[error("a message that cannot be read: {0}")]
    Class(Malformed),
    /// Of FIN.
    #[error("a message after fin")]
    AfterFin,
}

/// What the guest may open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfferInfo {
    /// The channel.
    pub id: ChannelId,
    /// Its class.
    pub class: Class,
    /// What it stands for: the same after every restart.
    pub instance: uuid::Uuid,
    /// What kind it is.
    pub flags: OfferFlags,
    /// 0: the channel itself, else the number of a sub-channel.
    pub sub_index: u16,
    /// Whether it can be opened on rings.
    pub has_rings: bool,
}

/// Where a surface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SurfacePlace {
    /// Bytes from the start of the shared memory.
    pub offset: usize,
    /// Its bytes: all lines of the picture fit.
    pub length: usize,
    /// How pixels are laid out.
    pub picture: Picture,
}

/// A message is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Another one is being sent; `Writable` says when it has been.
    #[error("channel is full")]
    Full,
    /// The channel is not open.
    #[error("channel is not open")]
    NotOpen,
    /// The class allows no such message.
    #[error("message of {length} bytes, where {limit} are allowed")]
    TooLong {
        /// Its bytes.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// So many requests are open that one must be completed first.
    #[error("too many requests are open")]
    TooManyRequests,
    /// The other end did not ask that, or it has been answered.
    #[error("no such request is open")]
    NoSuchRequest,
    /// This end said that it sends no more.
    #[error("this end has finished")]
    Finished,
}

/// A channel is not offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// So many are.
    #[error("{limit} channels are offered; withdraw one first")]
    TooMany {
        /// How many can be.
        limit: usize,
    },
    /// That class and index are.
    #[error("that instance is offered already")]
    Twice,
    /// There is no such channel, or it is a sub-channel itself.
    #[error("no such channel to add a sub-channel to")]
    NoParent,
}

/// A surface is not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SurfaceError {
    /// The channel is not open, or was not offered with surfaces.
    #[error("channel takes no surfaces just now")]
    NotOpen,
    /// Guest or host cannot, or there is no shared memory.
    #[error("there are no surfaces on this bus")]
    Unsupported,
    /// No picture looks like that.
    #[error("no picture can have that size")]
    Picture,
    /// There are too many, or memory is short.
    #[error("there is no room for another surface")]
    NoRoom,
}

/// A channel is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is not offered.
    #[error("no such channel is offered")]
    NotOffered,
    /// It is open, or on its way from or to there.
    #[error("channel is in use")]
    InUse,
    /// Host and guest speak other versions of its class.
    #[error("class has another version")]
    Version,
    /// It faulted again and again; it is `Offered` anew when it may be opened.
    #[error("channel rests after faults")]
    Resting,
}

/// The shared memory is not the one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// Nothing waits for an answer.
    #[error("no shared memory is offered")]
    NotOffered,
    /// It is no region, or another one.
    #[error("not the shared memory that the host means: {0}")]
    Other(#[from] crate::wire::Malformed),
}
