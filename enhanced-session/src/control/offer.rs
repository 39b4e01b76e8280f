//! OFFER, and the surfaces that are granted to what was offered.

use uuid::Uuid;

use crate::wire::{Malformed, Reader, Writer};

/// What kind of channel is offered: bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct OfferFlags(pub u32);

impl OfferFlags {
    /// Messages have no borders.
    pub const BYTE_STREAM: Self = Self(1);
    /// Offered only while a session that may use it is connected.
    pub const SENSITIVE: Self = Self(2);
    /// Surfaces may be granted to it.
    pub const SURFACES: Self = Self(8);
    /// There is one instance only.
    pub const ONE_INSTANCE: Self = Self(0x10);
    /// Withdrawn when the client leaves.
    pub const SESSION_SCOPED: Self = Self(0x20);

    /// Those of either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are among them.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// OFFER: a channel that the guest may open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Its number.
    pub channel: u32,
    /// The GUID of its class, which the reader may not know.
    pub class: Uuid,
    /// The GUID of what it stands for, the same after every restart.
    pub instance: Uuid,
    /// What kind it is.
    pub flags: OfferFlags,
    /// 0: the channel itself, else the number of a sub-channel.
    pub sub_index: u16,
    /// Version of the class; another one cannot talk.
    pub class_major: u16,
    /// The newest minor version of the class that the host knows.
    pub class_minor: u16,
    /// Where its rings are; none: on the stream only.
    pub rings: Option<OfferedRings>,
    /// Where its surfaces will be; 0: anywhere in the arena.
    pub surface_offset: u64,
    /// Bytes for its surfaces; 0: anywhere in the arena.
    pub surface_size: u64,
}

/// The two rings of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfferedRings {
    /// Control page of the ring from host to guest: bytes from the start of the region. Not 0.
    pub h2g_offset: u64,
    /// Control page of the ring from guest to host. Not 0.
    pub g2h_offset: u64,
    /// Bytes of the data part of the ring from host to guest.
    pub h2g_size: u32,
    /// Bytes of the data part of the ring from guest to host.
    pub g2h_size: u32,
    /// Largest payload of a packet on either.
    pub max_payload: u32,
}

impl Offer {
    pub(super) fn encode(&self, writer: &mut Writer) {
        writer.u32(self.channel).guid(self.class).guid(self.instance).u32(self.flags.0);
        writer.u16(self.sub_index).u16(self.class_major).u16(self.class_minor).u16(0);
        let none = OfferedRings { h2g_offset: 0, g2h_offset: 0, h2g_size: 0, g2h_size: 0, max_payload: 0 };
        let rings = self.rings.unwrap_or(none);
        writer.u64(rings.h2g_offset).u64(rings.g2h_offset).u32(rings.h2g_size).u32(rings.g2h_size);
        writer.u32(rings.max_payload).u64(self.surface_offset).u64(self.surface_size);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let channel = reader.u32("channel")?;
        let (class, instance) = (reader.guid("class")?, reader.guid("instance")?);
        let flags = OfferFlags(reader.u32("flags of the offer")?);
        let sub_index = reader.u16("sub-index")?;
        let (class_major, class_minor) = (reader.u16("major of the class")?, reader.u16("minor of the class")?);
        reader.zeros(2, "padding of the offer")?;
        let rings = OfferedRings::decode(reader)?;
        let (surface_offset, surface_size) = (reader.u64("surface offset")?, reader.u64("surface size")?);
        Ok(Self {
            channel,
            class,
            instance,
            flags,
            sub_index,
            class_major,
            class_minor,
            rings,
            surface_offset,
            surface_size,
        })
    }
}

impl OfferedRings {
    fn decode(reader: &mut Reader<'_>) -> Result<Option<Self>, Malformed> {
        let rings = Self {
            h2g_offset: reader.u64("offset of a ring")?,
            g2h_offset: reader.u64("offset of a ring")?,
            h2g_size: reader.u32("size of a ring")?,
            g2h_size: reader.u32("size of a ring")?,
            max_payload: reader.u32("largest payload")?,
        };
        match (rings.h2g_offset, rings.g2h_offset) {
            (0, 0) => Ok(None),
            (0, value) | (value, 0) => Err(Malformed::Value { what: "offset of one ring without the other", value }),
            _ => Ok(Some(rings)),
        }
    }
}

/// SURFACE_GRANT: memory for pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SurfaceGrant {
    /// The channel that may use it.
    pub channel: u32,
    /// Its number on that channel.
    pub surface: u32,
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// How pixels are laid out.
    pub picture: Picture,
}

/// How the pixels of a surface are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Picture {
    /// DRM's code for the format.
    pub fourcc: u32,
    /// Bytes from one line to the next.
    pub stride: u32,
    /// Pixels of a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
}

impl SurfaceGrant {
    pub(super) fn encode(&self, writer: &mut Writer) {
        writer.u32(self.channel).u32(self.surface).u64(self.offset).u64(self.length);
        let picture = self.picture;
        writer.u32(picture.fourcc).u32(picture.stride).u32(picture.width).u32(picture.height);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            channel: reader.u32("channel")?,
            surface: reader.u32("surface")?,
            offset: reader.u64("offset of the surface")?,
            length: reader.u64("length of the surface")?,
            picture: Picture {
                fourcc: reader.u32("fourcc")?,
                stride: reader.u32("stride")?,
                width: reader.u32("width")?,
                height: reader.u32("height")?,
            },
        })
    }
}
