//! The first two messages: who the guest is, and what the two have in common.

use crate::wire::{Malformed, Reader, Writer};

use super::numbers::{ContactStatus, Os};
use super::shortened;

/// Longest name of an agent, in bytes.
pub const MAX_AGENT_NAME: usize = 64;

/// What an end can do beyond the rest: bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Features(pub u64);

impl Features {
    /// Pictures in shared memory.
    pub const SURFACES: Self = Self(1);
    /// More channels of one instance.
    pub const SUBCHANNELS: Self = Self(1 << 2);
    /// PAUSE and RESUME.
    pub const PAUSE: Self = Self(1 << 3);
    /// All that this crate can do.
    pub const ALL: Self = Self(Self::SURFACES.0 | Self::SUBCHANNELS.0 | Self::PAUSE.0);

    /// Those of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

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

/// A version of the agent: major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct AgentVersion(pub u8, pub u8, pub u16);

impl AgentVersion {
    /// What the number on the wire says.
    #[must_use]
    pub const fn from_wire(number: u32) -> Self {
        let [major, minor, high, low] = number.to_be_bytes();
        Self(major, minor, u16::from_be_bytes([high, low]))
    }

    /// The number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        let [high, low] = self.2.to_be_bytes();
        u32::from_be_bytes([self.0, self.1, high, low])
    }
}

impl std::fmt::Display for AgentVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// CONTACT: the guest is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// Version of the bus; another one cannot talk.
    pub major: u16,
    /// The newest minor version that the guest knows.
    pub minor: u16,
    /// What it can do.
    pub features: Features,
    /// Which start of the agent it is.
    pub guest_epoch: u64,
    /// What it runs.
    pub os: Os,
    /// The agent's version.
    pub agent_version: AgentVersion,
    /// The agent's name, at most [`MAX_AGENT_NAME`] bytes.
    pub name: String,
}

impl Contact {
    pub(super) fn encode(&self, writer: &mut Writer) {
        let name = shortened(&self.name, MAX_AGENT_NAME);
        writer.u16(self.major).u16(self.minor).u64(self.features.0).u64(self.guest_epoch);
        writer.u32(self.os.to_wire()).u32(self.agent_version.to_wire());
        writer.u8(u8::try_from(name.len()).unwrap_or(0)).bytes(name.as_bytes());
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            major: reader.u16("major version")?,
            minor: reader.u16("minor version")?,
            features: Features(reader.u64("features")?),
            guest_epoch: reader.u64("guest epoch")?,
            os: Os::from_wire(reader.u32("os")?),
            agent_version: AgentVersion::from_wire(reader.u32("agent version")?),
            name: {
                let length = usize::from(reader.u8("length of the agent's name")?);
                reader.text(length, MAX_AGENT_NAME, "agent's name")?.to_owned()
            },
        })
    }
}

/// CONTACT_ACK: the host's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContactAck {
    /// Whether the two can talk.
    pub status: ContactStatus,
    /// The minor version that both know.
    pub minor: u16,
    /// What both can do.
    pub features: Features,
    /// Which start of the host it is.
    pub host_epoch: u64,
    /// Bytes that each end may send on each channel of the stream before it needs more credit.
    pub window: u32,
    /// The shared memory, if there is any.
    pub region: Option<RegionHint>,
}

/// Where a guest finds the shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionHint {
    /// Stands in its HOST page. Not 0.
    pub nonce: u64,
    /// Its bytes.
    pub size: u64,
    /// The device that it is probably in.
    pub pci_slot: Option<PciSlot>,
}

/// A place on a PCI bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciSlot {
    /// The bus.
    pub bus: u8,
    /// The device on it, at most 31.
    pub device: u8,
    /// Its function, at most 7.
    pub function: u8,
}

/// What `pci_slot` says when the slot is not known.
const UNKNOWN_SLOT: u16 = 0xffff;

impl PciSlot {
    /// What the number on the wire says; none when it is not known.
    #[must_use]
    pub fn from_wire(number: u16) -> Option<Self> {
        let [bus, rest] = number.to_be_bytes();
        (number != UNKNOWN_SLOT).then_some(Self { bus, device: rest >> 3, function: rest & 7 })
    }

    fn to_wire(slot: Option<Self>) -> u16 {
        slot.map_or(UNKNOWN_SLOT, |slot| u16::from_be_bytes([slot.bus, slot.device << 3 | slot.function & 7]))
    }
}

impl ContactAck {
    pub(super) fn encode(&self, writer: &mut Writer) {
        let (nonce, size) = self.region.map_or((0, 0), |region| (region.nonce, region.size));
        writer.u16(self.status.to_wire()).u16(self.minor).u64(self.features.0).u64(self.host_epoch);
        writer.u32(self.window).u64(nonce).u64(size);
        writer.u16(PciSlot::to_wire(self.region.and_then(|region| region.pci_slot)));
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let status = ContactStatus::from_wire(reader.u16("status")?);
        let minor = reader.u16("minor version")?;
        let features = Features(reader.u64("features")?);
        let host_epoch = reader.u64("host epoch")?;
        let window = reader.u32("window")?;
        let (nonce, size) = (reader.u64("region nonce")?, reader.u64("region size")?);
        let pci_slot = PciSlot::from_wire(reader.u16("pci slot")?);
        let region = (nonce != 0).then_some(RegionHint { nonce, size, pci_slot });
        Ok(Self { status, minor, features, host_epoch, window, region })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_reads_as_people_write_it() {
        let version = AgentVersion(1, 2, 0x0304);
        assert_eq!(version.to_wire(), 0x0102_0304);
        assert_eq!(AgentVersion::from_wire(0x0102_0304), version);
        assert_eq!(version.to_string(), "1.2.772");
    }

    #[test]
    fn a_slot_that_is_not_known_is_none() {
        let slot = PciSlot { bus: 1, device: 4, function: 2 };
        assert_eq!(PciSlot::to_wire(Some(slot)), 0x0122);
        assert_eq!(PciSlot::from_wire(0x0122), Some(slot));
        assert_eq!(PciSlot::from_wire(PciSlot::to_wire(None)), None);
    }
}
