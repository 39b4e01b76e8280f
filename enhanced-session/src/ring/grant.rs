//! Where a ring is, and how it is laid out.

use crate::packet::PACKET_HEADER;
use crate::region::{ARENA, PAGE};
use crate::wire::Malformed;

/// Smallest data part, in bytes.
pub const MIN_DATA: u32 = 4 << 10;
/// Largest data part, in bytes.
pub const MAX_DATA: u32 = 16 << 20;
/// Longest payload of a packet on any ring, in bytes.
pub const MAX_PAYLOAD: u32 = 256 << 10;

const HEADER: u32 = PACKET_HEADER as u32;

/// Longest payload of a packet on a channel whose smaller ring has `data_size` bytes: with its header a quarter of the
/// ring, so that a waiting producer never waits for more than that.
#[must_use]
pub const fn max_payload(data_size: u32) -> u32 {
    let quarter = (data_size / 4).saturating_sub(HEADER);
    if quarter < MAX_PAYLOAD { quarter } else { MAX_PAYLOAD }
}

/// What both ends write into a ring when a channel is opened: rings of another incarnation have another one.
#[must_use]
pub const fn ring_tag(host_epoch: u64, guest_epoch: u64, open_id: u32) -> u32 {
    ((host_epoch ^ guest_epoch) & 0xffff_ffff) as u32 ^ open_id
}

/// A ring's place in the region: a control page, and the data behind it. Only what fits can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingGrant {
    control: usize,
    data_size: u32,
    max_payload: u32,
}

impl RingGrant {
    /// The ring at `offset` of a region of `region_size` bytes, as an OFFER says it.
    ///
    /// # Errors
    ///
    /// When there can be no such ring.
    pub fn new(offset: u64, data_size: u32, max_payload: u32, region_size: usize) -> Result<Self, Malformed> {
        let check = |what, value, can_be| if can_be { Ok(()) } else { Err(Malformed::Value { what, value }) };
        let is_size = (MIN_DATA..=MAX_DATA).contains(&data_size) && data_size.is_power_of_two();
        check("ring size", data_size.into(), is_size)?;
        let limit = self::max_payload(data_size);
        check("payload limit of a ring", max_payload.into(), max_payload <= limit)?;
        let end = offset.checked_add(Self::bytes(data_size));
        let fits = end.is_some_and(|end| end <= region_size as u64);
        let is_place = offset >= ARENA as u64 && offset.is_multiple_of(PAGE as u64);
        let control = usize::try_from(offset).ok().filter(|_| fits && is_place);
        let control = control.ok_or(Malformed::Value { what: "ring offset", value: offset })?;
        Ok(Self { control, data_size, max_payload })
    }

    /// How much of the region a ring with `data_size` bytes of data takes.
    #[must_use]
    pub const fn bytes(data_size: u32) -> u64 {
        PAGE as u64 + data_size as u64
    }

    /// Bytes of the data part.
    #[must_use]
    pub const fn data_size(&self) -> u32 {
        self.data_size
    }

    /// Longest payload of a packet.
    #[must_use]
    pub const fn max_payload(&self) -> u32 {
        self.max_payload
    }

    /// Where a control word is.
    pub(super) const fn word(&self, word: Word) -> usize {
        self.control + word as usize
    }

    /// Where the byte with this count is, and how many follow it before the data's end.
    pub(super) const fn place(&self, count: u32) -> (usize, usize) {
        let at = count & (self.data_size - 1);
        (self.control + PAGE + at as usize, (self.data_size - at) as usize)
    }

    /// Where the ring ends.
    pub(super) const fn end(&self) -> usize {
        self.control + PAGE + self.data_size as usize
    }

    /// A ring that is smaller than any on the wire, for models.
    #[cfg(test)]
    pub(super) const fn tiny(control: usize, data_size: u32, max_payload: u32) -> Self {
        assert!(data_size.is_power_of_two());
        Self { control, data_size, max_payload }
    }
}

/// The words of a control page: each end's in a cache line of its own.
#[derive(Debug, Clone, Copy)]
pub(super) enum Word {
    /// The producer's: bytes produced.
    In = 0x00,
    /// The producer's: room it waits for, or 0.
    PendingSend = 0x04,
    /// The producer's.
    ProducerTag = 0x08,
    /// The consumer's: bytes consumed.
    Out = 0x40,
    /// The consumer's: 1 while it looks by itself.
    Mask = 0x44,
    /// The consumer's.
    ConsumerTag = 0x48,
}

/// What a packet with this payload takes on a ring.
pub(super) const fn packet_size(payload: u32) -> u32 {
    HEADER + payload.next_multiple_of(super::ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: usize = 1 << 20;

    #[test]
    fn a_packet_takes_a_quarter_of_its_ring_at_most() {
        assert_eq!(packet_size(max_payload(MIN_DATA)), MIN_DATA / 4);
        assert_eq!(max_payload(1 << 20), MAX_PAYLOAD - HEADER);
        assert_eq!(max_payload(MAX_DATA), MAX_PAYLOAD);
        assert_eq!((packet_size(0), packet_size(1), packet_size(8)), (16, 24, 24));
    }

    #[test]
    fn a_tag_depends_on_both_epochs_and_the_opening() {
        assert_eq!(ring_tag(0xffff_0000_1234_0000, 0x5678, 1), 0x1234_5679);
        assert_eq!(ring_tag(0, 0, 7), 7);
    }

    #[test]
    fn a_ring_that_does_not_fit_cannot_be_built() {
        let ring = |offset, data_size, max_payload| RingGrant::new(offset, data_size, max_payload, REGION).is_ok();
        assert!(ring(0x4000, 4096, 1008) && ring(REGION as u64 - 8192, 4096, 0));
        for offset in [0, 0x3000, 0x4008, REGION as u64 - 4096, REGION as u64, u64::MAX - 4095, u64::MAX] {
            assert!(!ring(offset, 4096, 1008), "{offset:#x}");
        }
        for data_size in [0, 2048, 4095, 4104, 12288, MAX_DATA * 2, u32::MAX] {
            assert!(!ring(0x4000, data_size, 0), "{data_size:#x}");
        }
        assert!(!ring(0x4000, 4096, 1009));
    }
}
