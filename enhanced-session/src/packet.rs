//! What a channel carries, on a ring and on the stream alike (`docs/bus.md`, section 6).

use crate::wire::{Malformed, Reader};

/// Bytes of a packet before its payload.
pub const PACKET_HEADER: usize = 16;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum PacketType {
    /// A message that wants no answer.
    Data = 1,
    /// A message that wants one.
    Request = 2,
    /// The answer.
    Completion = 3,
    /// There will be no more messages in this direction.
    Fin = 4,
    /// The conversation starts anew.
    Reset = 5,
}

/// Which piece of a message a packet has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The beginning.
    First,
    /// More.
    Middle,
    /// The end.
    Last,
}

/// The 16 bytes before a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketHeader {
    /// Bytes of the payload.
    pub length: u32,
    /// What it is for.
    pub packet_type: PacketType,
    /// Which piece of a message it has.
    pub fragment: Fragment,
    /// Names a request and its completion; 0 for the others.
    pub txid: u64,
}

const FIRST: u16 = 1;
const LAST: u16 = 2;

impl PacketHeader {
    /// The bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; PACKET_HEADER] {
        let flags = match self.fragment {
            Fragment::Whole => FIRST | LAST,
            Fragment::First => FIRST,
            Fragment::Middle => 0,
            Fragment::Last => LAST,
        };
        let mut bytes = [0; PACKET_HEADER];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..6].copy_from_slice(&(self.packet_type as u16).to_le_bytes());
        bytes[6..8].copy_from_slice(&flags.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.txid.to_le_bytes());
        bytes
    }

    /// Reads a header. Whether `length` bytes follow, and whether they may, is the caller's to check.
    ///
    /// # Errors
    ///
    /// When type, flags or txid cannot be.
    pub fn decode(bytes: &[u8; PACKET_HEADER]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let length = reader.u32("packet length")?;
        let packet_type = PacketType::from_wire(reader.u16("packet type")?)?;
        let fragment = match reader.u16("packet flags")? {
            flags if flags == FIRST | LAST => Fragment::Whole,
            FIRST => Fragment::First,
            0 => Fragment::Middle,
            LAST => Fragment::Last,
            flags => return Err(Malformed::Value { what: "packet flags", value: flags.into() }),
        };
        let txid = reader.u64("packet txid")?;
        let has_txid = matches!(packet_type, PacketType::Request | PacketType::Completion);
        if has_txid != (txid != 0) {
            return Err(Malformed::Value { what: "packet txid", value: txid });
        }
        Ok(Self { length, packet_type, fragment, txid })
    }
}

impl PacketType {
    fn from_wire(value: u16) -> Result<Self, Malformed> {
        Ok(match value {
            1 => Self::Data,
            2 => Self::Request,
            3 => Self::Completion,
            4 => Self::Fin,
            5 => Self::Reset,
            _ => return Err(Malformed::Value { what: "packet type", value: value.into() }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_as_it_was_written() {
        let header =
            PacketHeader { length: 7, packet_type: PacketType::Request, fragment: Fragment::First, txid: 0x0102 };
        let bytes = header.encode();
        assert_eq!(bytes, [7, 0, 0, 0, 2, 0, 1, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(PacketHeader::decode(&bytes), Ok(header));
    }

    #[test]
    fn a_txid_belongs_to_requests_and_completions() {
        let header = PacketHeader { length: 0, packet_type: PacketType::Data, fragment: Fragment::Whole, txid: 1 };
        assert!(PacketHeader::decode(&header.encode()).is_err());
        let header = PacketHeader { packet_type: PacketType::Completion, txid: 0, ..header };
        assert!(PacketHeader::decode(&header.encode()).is_err());
    }
}
