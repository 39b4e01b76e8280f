//! Where things are in the region, and the two pages by which the ends find each other (`docs/bus.md`, section 7.1).

use std::ops::RangeInclusive;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::memory::SharedMemory;
use crate::wire::{Malformed, Reader, Writer};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Where the arena may begin, at the earliest.
pub const ARENA: usize = 0x4000;
/// Smallest region, in bytes.
pub const MIN_REGION: usize = 1 << 20;
/// Largest region, in bytes.
pub const MAX_REGION: usize = 1 << 30;
/// Channel numbers are below this: the pending map has a bit for each.
pub const MAX_CHANNELS: u32 = 16_384;

const HOST_PAGE: usize = 0;
const GUEST_PAGE: usize = 0x1000;
/// Each end's page of the pending map: what it raised, and what it has seen of the other's.
const HOST_MAP: usize = 0x2000;
const GUEST_MAP: usize = 0x3000;
const SEEN: usize = 0x800;
/// In a page, behind its head.
const STATE: usize = 0x80;

const _: () = {
    assert!(MAX_CHANNELS as usize == SEEN * 8, "a bit for each channel");
    assert!(GUEST_MAP + 2 * SEEN == ARENA, "the head's pages follow each other");
    assert!(HostPage::HEAD < STATE && GuestPage::HEAD < STATE);
};

const MAJOR: u16 = 1;
const CHECKSUM: usize = size_of::<u32>();

/// Who kicks whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The host produces.
    HostToGuest,
    /// The guest produces.
    GuestToHost,
}

impl Direction {
    /// Where the sender's words of the pending map are.
    #[must_use]
    pub(crate) const fn raised(self) -> usize {
        match self {
            Self::HostToGuest => HOST_MAP,
            Self::GuestToHost => GUEST_MAP,
        }
    }

    /// Where the receiver's are.
    #[must_use]
    pub(crate) const fn seen(self) -> usize {
        match self {
            Self::HostToGuest => GUEST_MAP + SEEN,
            Self::GuestToHost => HOST_MAP + SEEN,
        }
    }
}

/// Whether an end uses the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// It does not.
    Down = 0,
    /// It does.
    Up = 1,
}

/// What the host says of the region, the same for one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPage {
    /// Minor version.
    pub minor: u16,
    /// Bytes of the region: a power of two.
    pub region_size: u64,
    /// The host's features.
    pub features: u64,
    /// Names this incarnation of the host; not 0.
    pub host_epoch: u64,
    /// By which the guest knows that this is the region that it was told of; not 0.
    pub region_nonce: u64,
    /// Where rings and surfaces begin.
    pub arena_offset: u64,
    /// Bytes for them.
    pub arena_size: u64,
    /// Channel numbers are below this.
    pub channel_limit: u32,
}

/// What the guest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestPage {
    /// Minor version.
    pub minor: u16,
    /// The guest's features.
    pub features: u64,
    /// Names this incarnation of the guest's agent; not 0.
    pub guest_epoch: u64,
    /// The host's epoch, as the guest read it.
    pub host_epoch: u64,
    /// By which the host knows that the guest really writes here; not 0.
    pub guest_nonce: u64,
}

impl HostPage {
    /// Bytes of the head.
    pub const HEAD: usize = 0x60;
    const MAGIC: u64 = u64::from_le_bytes(*b"VSBHOST1");

    /// The head's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::HEAD] {
        let mut writer = Writer::new();
        writer.u64(Self::MAGIC).u16(MAJOR).u16(self.minor).u32(Self::HEAD as u32);
        writer.u64(self.region_size).u64(self.features).u64(self.host_epoch).u64(self.region_nonce);
        writer.u64(self.arena_offset).u64(self.arena_size).u32(self.channel_limit);
        with_checksum(writer)
    }

    /// Reads a head.
    ///
    /// # Errors
    ///
    /// When it is not one, or of another major version, or something in it cannot be.
    pub fn decode(head: &[u8; Self::HEAD]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(checked(head)?);
        let minor = preamble(&mut reader, Self::MAGIC, Self::HEAD)?;
        let page = Self {
            minor,
            region_size: reader.u64("region size")?,
            features: reader.u64("features")?,
            host_epoch: not_zero("host epoch", reader.u64("host epoch")?)?,
            region_nonce: not_zero("region nonce", reader.u64("region nonce")?)?,
            arena_offset: reader.u64("arena offset")?,
            arena_size: reader.u64("arena size")?,
            channel_limit: reader.u32("channel limit")?,
        };
        reader.zeros(reader.remaining(), "the rest of the host page")?;
        page.check()?;
        Ok(page)
    }

    /// Writes the page: down while it changes, then up.
    pub fn write_to(&self, memory: &impl SharedMemory) {
        write_page(memory, HOST_PAGE, &self.encode());
    }

    /// Reads the page.
    ///
    /// # Errors
    ///
    /// When there is no host that is up, or as [`decode`](Self::decode).
    pub fn read_from(memory: &impl SharedMemory) -> Result<Self, Malformed> {
        Self::decode(&read_page(memory, HOST_PAGE)?)
    }

    /// Says that the host uses the region or not. The rest of the page stays.
    pub fn set_state(memory: &impl SharedMemory, state: State) {
        memory.store_u32(HOST_PAGE + STATE, state as u32, Release);
    }

    fn check(&self) -> Result<(), Malformed> {
        let sizes: RangeInclusive<u64> = MIN_REGION as u64..=MAX_REGION as u64;
        let is_size = sizes.contains(&self.region_size) && self.region_size.is_power_of_two();
        check("region size", self.region_size, is_size)?;
        let is_offset = self.arena_offset >= ARENA as u64 && self.arena_offset.is_multiple_of(PAGE as u64);
        check("arena offset", self.arena_offset, is_offset && self.arena_offset <= self.region_size)?;
        check("arena size", self.arena_size, self.arena_size <= self.region_size - self.arena_offset)?;
        check("channel limit", self.channel_limit.into(), self.channel_limit <= MAX_CHANNELS)
    }
}

impl GuestPage {
    /// Bytes of the head.
    pub const HEAD: usize = 0x40;
    const MAGIC: u64 = u64::from_le_bytes(*b"VSBGUEST");

    /// The head's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::HEAD] {
        let mut writer = Writer::new();
        writer.u64(Self::MAGIC).u16(MAJOR).u16(self.minor).u32(Self::HEAD as u32);
        writer.u64(self.features).u64(self.guest_epoch).u64(self.host_epoch).u64(self.guest_nonce);
        with_checksum(writer)
    }

    /// Reads a head.
    ///
    /// # Errors
    ///
    /// When it is not one, or of another major version, or something in it cannot be.
    pub fn decode(head: &[u8; Self::HEAD]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(checked(head)?);
        let minor = preamble(&mut reader, Self::MAGIC, Self::HEAD)?;
        let page = Self {
            minor,
            features: reader.u64("features")?,
            guest_epoch: not_zero("guest epoch", reader.u64("guest epoch")?)?,
            host_epoch: not_zero("host epoch seen", reader.u64("host epoch seen")?)?,
            guest_nonce: not_zero("guest nonce", reader.u64("guest nonce")?)?,
        };
        reader.zeros(reader.remaining(), "the rest of the guest page")?;
        Ok(page)
    }

    /// Writes the page: down while it changes, then up.
    pub fn write_to(&self, memory: &impl SharedMemory) {
        write_page(memory, GUEST_PAGE, &self.encode());
    }

    /// Reads the page.
    ///
    /// # Errors
    ///
    /// When there is no guest that is up, or as [`decode`](Self::decode).
    pub fn read_from(memory: &impl SharedMemory) -> Result<Self, Malformed> {
        Self::decode(&read_page(memory, GUEST_PAGE)?)
    }

    /// Says that the guest uses the region or not. The rest of the page stays.
    pub fn set_state(memory: &impl SharedMemory, state: State) {
        memory.store_u32(GUEST_PAGE + STATE, state as u32, Release);
    }
}

fn write_page(memory: &impl SharedMemory, page: usize, head: &[u8]) {
    memory.store_u32(page + STATE, State::Down as u32, Relaxed);
    memory.fence();
    memory.write(page, head);
    memory.store_u32(page + STATE, State::Up as u32, Release);
}

/// One copy of a page's head, if its writer is up.
fn read_page<const HEAD: usize>(memory: &impl SharedMemory, page: usize) -> Result<[u8; HEAD], Malformed> {
    let state = memory.load_u32(page + STATE, Acquire);
    check("page state", state.into(), state == State::Up as u32)?;
    let mut head = [0; HEAD];
    memory.read(page, &mut head);
    Ok(head)
}

/// What was written, zeros, and the checksum of both.
fn with_checksum<const HEAD: usize>(writer: Writer) -> [u8; HEAD] {
    let written = writer.into_bytes();
    let mut head = [0; HEAD];
    head[..written.len()].copy_from_slice(&written);
    let (body, checksum) = head.split_at_mut(HEAD - CHECKSUM);
    checksum.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    head
}

/// All before the checksum, when that is right.
fn checked<const HEAD: usize>(head: &[u8; HEAD]) -> Result<&[u8], Malformed> {
    let (body, checksum) = head.split_at(HEAD - CHECKSUM);
    let checksum = Reader::new(checksum).u32("page checksum")?;
    check("page checksum", checksum.into(), checksum == crc32fast::hash(body))?;
    Ok(body)
}

/// Magic, version and length, which both pages begin with; returns the minor version.
fn preamble(reader: &mut Reader<'_>, magic: u64, length: usize) -> Result<u16, Malformed> {
    let found = reader.u64("page magic")?;
    check("page magic", found, found == magic)?;
    let major = reader.u16("major version")?;
    check("major version", major.into(), major == MAJOR)?;
    let minor = reader.u16("minor version")?;
    let found = reader.u32("page length")?;
    check("page length", found.into(), usize::try_from(found) == Ok(length))?;
    Ok(minor)
}

fn not_zero(what: &'static str, value: u64) -> Result<u64, Malformed> {
    check(what, value, value != 0)?;
    Ok(value)
}

fn check(what: &'static str, value: u64, can_be: bool) -> Result<(), Malformed> {
    if can_be { Ok(()) } else { Err(Malformed::Value { what, value }) }
}

#[cfg(test)]
mod tests {
    use super::super::HeapMemory;
    use super::*;

    const HOST: HostPage = HostPage {
        minor: 3,
        region_size: 16 << 20,
        features: 5,
        host_epoch: 0x0102_0304_0506_0708,
        region_nonce: 9,
        arena_offset: ARENA as u64,
        arena_size: (16 << 20) - ARENA as u64,
        channel_limit: 65,
    };
    const GUEST: GuestPage = GuestPage { minor: 0, features: 1, guest_epoch: 2, host_epoch: 3, guest_nonce: 4 };

    #[test]
    fn a_host_page_has_its_fields_where_the_specification_says() {
        let head = HOST.encode();
        assert_eq!(&head[..0x10], b"VSBHOST1\x01\0\x03\0\x60\0\0\0");
        assert_eq!(&head[0x20..0x28], &[8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(&head[0x40..0x44], &[65, 0, 0, 0]);
        assert_eq!(&head[0x5c..], &crc32fast::hash(&head[..0x5c]).to_le_bytes());
        assert_eq!(HostPage::decode(&head), Ok(HOST));
    }

    #[test]
    fn a_guest_page_has_its_fields_where_the_specification_says() {
        let head = GUEST.encode();
        assert_eq!(&head[..0x10], b"VSBGUEST\x01\0\0\0\x40\0\0\0");
        assert_eq!((head[0x10], head[0x18], head[0x20], head[0x28]), (1, 2, 3, 4));
        assert_eq!(&head[0x3c..], &crc32fast::hash(&head[..0x3c]).to_le_bytes());
        assert_eq!(GuestPage::decode(&head), Ok(GUEST));
    }

    #[test]
    fn pages_are_found_in_memory_while_their_writer_is_up() {
        let memory = HeapMemory::new(2 * ARENA);
        assert!(HostPage::read_from(&memory).is_err());
        HOST.write_to(&memory);
        GUEST.write_to(&memory);
        assert_eq!(HostPage::read_from(&memory), Ok(HOST));
        assert_eq!(GuestPage::read_from(&memory), Ok(GUEST));
        HostPage::set_state(&memory, State::Down);
        GuestPage::set_state(&memory, State::Down);
        assert_eq!(HostPage::read_from(&memory), Err(Malformed::Value { what: "page state", value: 0 }));
        assert!(GuestPage::read_from(&memory).is_err());
    }

    #[test]
    fn every_bit_of_a_page_matters() {
        for bit in 0..HostPage::HEAD * 8 {
            let mut head = HOST.encode();
            head[bit / 8] ^= 1 << (bit % 8);
            assert!(HostPage::decode(&head).is_err(), "bit {bit}");
        }
        for bit in 0..GuestPage::HEAD * 8 {
            let mut head = GUEST.encode();
            head[bit / 8] ^= 1 << (bit % 8);
            assert!(GuestPage::decode(&head).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_host_page_with_a_right_checksum_still_must_make_sense() {
        let wrong = [
            HostPage { region_size: (16 << 20) + 4096, ..HOST },
            HostPage { region_size: 1 << 19, arena_size: 0, ..HOST },
            HostPage { region_size: 1 << 31, ..HOST },
            HostPage { host_epoch: 0, ..HOST },
            HostPage { region_nonce: 0, ..HOST },
            HostPage { arena_offset: 0x3000, ..HOST },
            HostPage { arena_offset: 0x4008, ..HOST },
            HostPage { arena_offset: !0xfff, arena_size: 0x2000, ..HOST },
            HostPage { arena_size: HOST.arena_size + 1, ..HOST },
            HostPage { arena_size: u64::MAX, ..HOST },
            HostPage { channel_limit: MAX_CHANNELS + 1, ..HOST },
        ];
        for page in wrong {
            assert!(HostPage::decode(&page.encode()).is_err(), "{page:?}");
        }
        let refused = GuestPage::decode(&GuestPage { guest_nonce: 0, ..GUEST }.encode());
        assert_eq!(refused, Err(Malformed::Value { what: "guest nonce", value: 0 }));
    }

    #[test]
    fn reserved_bytes_and_other_versions_are_refused() {
        let resealed = |at: usize, value: u8| {
            let mut head = HOST.encode();
            head[at] = value;
            let checksum = crc32fast::hash(&head[..0x5c]);
            head[0x5c..].copy_from_slice(&checksum.to_le_bytes());
            HostPage::decode(&head)
        };
        assert_eq!(resealed(8, 2), Err(Malformed::Value { what: "major version", value: 2 }));
        assert_eq!(resealed(0x0c, 0x61), Err(Malformed::Value { what: "page length", value: 0x61 }));
        assert_eq!(resealed(0x44, 1), Err(Malformed::Value { what: "the rest of the host page", value: 1 }));
        assert!(resealed(0x0a, 9).is_ok(), "a higher minor version is no reason");
    }
}
