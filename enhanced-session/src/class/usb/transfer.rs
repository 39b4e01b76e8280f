//! What a URB asks of an endpoint, and what it comes to.

#[cfg(test)]
use proptest::prelude::*;

use super::{MAX_PACKETS, MAX_TRANSFER, Status};
use crate::class::bounded::{Data, List};
use crate::class::define::{choice, ranged, record};
use crate::class::field::Field;
use crate::wire::{Malformed, Reader, Writer};

choice! {
    /// What a URB asks.
    pub enum Transfer {
        /// Of a control endpoint.
        Control = 1 {
            /// Setup and data.
            control: ControlTransfer,
        },
        /// From a bulk endpoint.
        BulkIn = 2 {
            /// Most bytes.
            length: TransferLength,
            /// Whether fewer are an error.
            exact: bool,
        },
        /// To a bulk endpoint.
        BulkOut = 3 {
            /// What.
            data: Data<MAX_TRANSFER>,
            /// Whether an empty packet follows when the last one is full.
            empty_packet: bool,
        },
        /// From an interrupt endpoint.
        InterruptIn = 4 {
            /// Most bytes.
            length: TransferLength,
        },
        /// To an interrupt endpoint.
        InterruptOut = 5 {
            /// What.
            data: Data<MAX_TRANSFER>,
        },
        /// From an isochronous endpoint, as soon as it can be.
        IsochronousIn = 6 {
            /// Most bytes of each packet.
            packets: List<u16, MAX_PACKETS>,
        },
        /// To an isochronous endpoint, as soon as it can be.
        IsochronousOut = 7 {
            /// Packets and data.
            packets: IsochronousOut,
        },
    }
}

record! {
    /// The first eight bytes of a control transfer (USB 2.0, 9.3).
    #[derive(Copy)]
    pub struct Setup {
        /// Direction (0x80: from the device), type and recipient.
        pub request_type: u8,
        /// Which request.
        pub request: u8,
        /// Its value.
        pub value: u16,
        /// Its index.
        pub index: u16,
        /// Bytes of data, at most if they come from the device.
        pub length: u16,
    }
}

record! {
    /// What a URB came to.
    pub struct Completion {
        /// How it ended.
        pub status: Status,
        /// OUT: bytes that the device took. IN: bytes of `data`.
        pub transferred: u32,
        /// IN: what came, without gaps: the packets of an isochronous transfer one after the other. OUT: nothing.
        pub data: Data<MAX_TRANSFER>,
        /// What each packet of an isochronous transfer came to; none for others.
        pub packets: List<PacketResult, MAX_PACKETS>,
    }
}

record! {
    /// What a packet came to.
    #[derive(Copy)]
    pub struct PacketResult {
        /// How it ended.
        pub status: Status,
        /// Bytes that came or went.
        pub length: u16,
    }
}

ranged! {
    /// Bytes that are asked for.
    pub struct TransferLength(u32) = 0..=524_288;
}

/// Setup and data of a control transfer. On the wire: [`Setup`], then, to the device, as many bytes as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlTransfer {
    setup: Setup,
    data: Vec<u8>,
}

/// Packets to an isochronous endpoint. On the wire: u16 count, u16 length of each, then their bytes without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsochronousOut {
    lengths: List<u16, MAX_PACKETS>,
    data: Data<MAX_TRANSFER>,
}

/// In a setup's request type: data come from the device.
const FROM_DEVICE: u8 = 0x80;

impl Setup {
    /// Whether data come from the device.
    #[must_use]
    pub const fn is_in(&self) -> bool {
        self.request_type & FROM_DEVICE != 0
    }

    /// Bytes that go to the device.
    fn sent(&self) -> usize {
        if self.is_in() { 0 } else { self.length.into() }
    }
}

impl ControlTransfer {
    /// With data for the device; none if they come from there.
    ///
    /// # Errors
    ///
    /// When there are not as many as the setup says.
    pub fn new(setup: Setup, data: Vec<u8>) -> Result<Self, Malformed> {
        if data.len() == setup.sent() {
            Ok(Self { setup, data })
        } else {
            Err(Malformed::TooLong { what: "control data", length: data.len(), limit: setup.sent() })
        }
    }

    /// The first eight bytes.
    #[must_use]
    pub const fn setup(&self) -> Setup {
        self.setup
    }

    /// What goes to the device.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

impl IsochronousOut {
    /// The packets.
    ///
    /// # Errors
    ///
    /// When there are too many, or too many bytes.
    pub fn new(packets: &[&[u8]]) -> Result<Self, Malformed> {
        let length = |packet: &&[u8]| {
            let limit = u16::MAX.into();
            u16::try_from(packet.len()).map_err(|_| Malformed::TooLong { what: "packet", length: packet.len(), limit })
        };
        let lengths = packets.iter().map(length).collect::<Result<_, _>>()?;
        Ok(Self { lengths: List::new(lengths)?, data: Data::new(packets.concat())? })
    }

    /// Each packet's bytes.
    pub fn packets(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = &self.data;
        self.lengths.iter().map(move |length| {
            let (packet, behind) = rest.split_at(usize::from(*length).min(rest.len()));
            rest = behind;
            packet
        })
    }
}

impl Transfer {
    /// Whether `completion` can be the answer: it has no more bytes than were asked for or sent, and a result for each
    /// packet if there are packets at all.
    #[must_use]
    pub fn admits(&self, completion: &Completion) -> bool {
        let transferred = usize::try_from(completion.transferred).unwrap_or(usize::MAX);
        let came = |limit: usize| completion.data.len() <= limit && completion.data.len() == transferred;
        let went = |sent: usize| completion.data.is_empty() && transferred <= sent;
        let no_packets = completion.packets.is_empty();
        match self {
            Self::Control { control } if control.setup.is_in() => no_packets && came(control.setup.length.into()),
            Self::Control { control } => no_packets && went(control.data.len()),
            Self::BulkIn { length, .. } | Self::InterruptIn { length } => {
                no_packets && came(usize::try_from(length.value()).unwrap_or(usize::MAX))
            }
            Self::BulkOut { data, .. } | Self::InterruptOut { data } => no_packets && went(data.len()),
            Self::IsochronousIn { packets } => {
                completion.admitted_packets(packets) && came(MAX_TRANSFER) && completion.packet_bytes() == transferred
            }
            Self::IsochronousOut { packets } => {
                completion.admitted_packets(&packets.lengths) && went(packets.data.len())
            }
        }
    }
}

impl Completion {
    /// One without data: a transfer that failed as a whole.
    #[must_use]
    pub fn failed(status: Status) -> Self {
        Self { status, transferred: 0, data: Data::default(), packets: List::default() }
    }

    fn packet_bytes(&self) -> usize {
        self.packets.iter().map(|packet| usize::from(packet.length)).sum()
    }

    /// Whether there is a result for each packet, of no more than it may have; or none at all, because all failed.
    fn admitted_packets(&self, asked: &[u16]) -> bool {
        (self.packets.is_empty() && self.transferred == 0)
            || (self.packets.len() == asked.len()
                && self.packets.iter().zip(asked).all(|(packet, asked)| packet.length <= *asked))
    }
}

impl Field for ControlTransfer {
    const MAX_BYTES: usize = Setup::MAX_BYTES + 0xffff;

    fn write(&self, writer: &mut Writer) {
        self.setup.write(writer);
        writer.bytes(&self.data);
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        let setup = Setup::read(reader, what)?;
        Self::new(setup, reader.bytes(setup.sent(), "control data")?.to_vec())
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        let short = Setup::any().prop_map(|setup| Setup { length: setup.length % 40, ..setup });
        let any = short.prop_flat_map(|setup| (Just(setup), proptest::collection::vec(any::<u8>(), setup.sent())));
        any.prop_map(|(setup, data)| Self { setup, data }).boxed()
    }
}

impl Field for IsochronousOut {
    const MAX_BYTES: usize = 2 + MAX_PACKETS * 2 + MAX_TRANSFER;

    fn write(&self, writer: &mut Writer) {
        self.lengths.write(writer);
        writer.bytes(&self.data);
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        let lengths = List::<u16, MAX_PACKETS>::read(reader, what)?;
        let length = lengths.iter().map(|length| usize::from(*length)).sum();
        crate::class::bounded::check("packets", length, MAX_TRANSFER)?;
        Ok(Self { lengths, data: Data::new(reader.bytes(length, "packets")?.to_vec())? })
    }

    #[cfg(test)]
    fn any() -> BoxedStrategy<Self> {
        let packets = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..5);
        packets
            .prop_map(|packets| {
                let packets: Vec<_> = packets.iter().map(Vec::as_slice).collect();
                Self::new(&packets).expect("short")
            })
            .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(request_type: u8, length: u16) -> Setup {
        Setup { request_type, request: 6, value: 0x0100, index: 0, length }
    }

    fn read(bytes: &[u8]) -> Result<Transfer, Malformed> {
        Transfer::read(&mut Reader::new(bytes), "transfer")
    }

    fn completion(transferred: u32, data: usize, packets: &[u16]) -> Completion {
        let packet = |length: &u16| PacketResult { status: Status::Ok, length: *length };
        Completion {
            status: Status::Ok,
            transferred,
            data: Data::new(vec![0; data]).expect("it fits"),
            packets: List::new(packets.iter().map(packet).collect()).expect("they fit"),
        }
    }

    #[test]
    fn transfers_read_as_they_are_specified() {
        let control = ControlTransfer::new(setup(0x80, 18), vec![]).expect("no data");
        assert_eq!(read(&[1, 0x80, 6, 0, 1, 0, 0, 18, 0]), Ok(Transfer::Control { control }));
        let control = ControlTransfer::new(setup(0x21, 2), vec![7, 8]).expect("two bytes");
        assert_eq!(read(&[1, 0x21, 6, 0, 1, 0, 0, 2, 0, 7, 8]), Ok(Transfer::Control { control }));
        let packets = IsochronousOut::new(&[&[1, 2], &[], &[3]]).expect("short");
        assert_eq!(packets.packets().collect::<Vec<_>>(), [&[1, 2][..], &[], &[3]]);
        assert_eq!(read(&[7, 3, 0, 2, 0, 0, 0, 1, 0, 1, 2, 3]), Ok(Transfer::IsochronousOut { packets }));
        let length = TransferLength::clamped(512);
        assert_eq!(read(&[2, 0, 2, 0, 0, 1]), Ok(Transfer::BulkIn { length, exact: true }));
    }

    #[test]
    fn data_are_as_long_as_the_setup_says() {
        assert!(read(&[1, 0x21, 6, 0, 1, 0, 0, 2, 0, 7]).is_err());
        assert!(ControlTransfer::new(setup(0x21, 2), vec![1]).is_err());
        assert!(ControlTransfer::new(setup(0xa1, 2), vec![1, 2]).is_err());
    }

    #[test]
    fn transfers_are_bounded() {
        assert_eq!(usize::try_from(TransferLength::MAX), Ok(MAX_TRANSFER));
        assert!(read(&[4, 0, 0, 8, 0]).is_ok());
        assert!(read(&[4, 1, 0, 8, 0]).is_err());
        let packets = [[7, 9, 0].as_slice(), &[0xff; 18], &[0; 9 * 0xffff]].concat();
        assert!(read(&packets).is_err(), "more bytes than a transfer may have");
    }

    #[test]
    fn only_what_was_asked_for_is_an_answer() {
        let length = TransferLength::clamped(8);
        let bulk_in = Transfer::BulkIn { length, exact: false };
        assert!(bulk_in.admits(&completion(8, 8, &[])) && bulk_in.admits(&completion(0, 0, &[])));
        assert!(!bulk_in.admits(&completion(9, 9, &[])), "more than asked for");
        assert!(!bulk_in.admits(&completion(8, 7, &[])), "less than it says");
        assert!(!bulk_in.admits(&completion(2, 2, &[2])), "packets");
        let out = Transfer::InterruptOut { data: Data::new(vec![1, 2]).expect("it fits") };
        assert!(out.admits(&completion(2, 0, &[])));
        assert!(!out.admits(&completion(3, 0, &[])) && !out.admits(&completion(2, 2, &[])));
        let control = ControlTransfer::new(setup(0x80, 18), vec![]).expect("no data");
        let control = Transfer::Control { control };
        assert!(control.admits(&completion(18, 18, &[])) && !control.admits(&completion(19, 19, &[])));
    }

    #[test]
    fn each_packet_has_its_result_or_none_has() {
        let from_device = Transfer::IsochronousIn { packets: List::from([4, 4]) };
        assert!(from_device.admits(&completion(5, 5, &[4, 1])));
        assert!(from_device.admits(&Completion::failed(Status::Gone)));
        assert!(!from_device.admits(&completion(5, 5, &[5, 0])), "a packet too long");
        assert!(!from_device.admits(&completion(5, 5, &[4, 0])), "bytes of no packet");
        assert!(!from_device.admits(&completion(4, 4, &[4])), "a packet missing");
        let to_device = Transfer::IsochronousOut { packets: IsochronousOut::new(&[&[1, 2], &[3]]).expect("short") };
        assert!(to_device.admits(&completion(3, 0, &[2, 1])));
        assert!(!to_device.admits(&completion(3, 3, &[2, 1])));
    }
}
