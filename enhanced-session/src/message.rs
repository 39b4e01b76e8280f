//! Messages, as services see them, and the packets that they travel in (`docs/bus.md`, section 6).
//!
//! [`Outgoing`] cuts a message into packets, [`Reassembler`] puts one together.

use crate::packet::{Fragment, PacketHeader, PacketType};
use crate::wire::Malformed;

/// Names a request, and the completion that answers it, among those open in the same direction of a channel. Not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Txid(pub u64);

/// What a channel brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Wants no answer.
    Data(Vec<u8>),
    /// Wants one: a completion with the same txid.
    Request(Txid, Vec<u8>),
    /// Answers the request of that txid.
    Completion(Txid, Vec<u8>),
    /// The other end sends no more.
    Fin,
    /// The other end starts the conversation anew: requests that were open are forgotten by both.
    Reset,
}

impl Message {
    /// Bytes of its payload.
    #[must_use]
    pub const fn payload_length(&self) -> usize {
        match self {
            Self::Data(payload) | Self::Request(_, payload) | Self::Completion(_, payload) => payload.len(),
            Self::Fin | Self::Reset => 0,
        }
    }
}

/// A message being sent.
#[derive(Debug)]
pub struct Outgoing {
    packet_type: PacketType,
    txid: u64,
    payload: Vec<u8>,
    sent: usize,
    /// How often it is to be sent after this. Only RESET is sent more than once.
    again: u32,
}

impl Outgoing {
    /// All of `message` is to be sent.
    #[must_use]
    pub fn new(message: Message) -> Self {
        let (packet_type, txid, payload) = match message {
            Message::Data(payload) => (PacketType::Data, 0, payload),
            Message::Request(txid, payload) => (PacketType::Request, txid.0, payload),
            Message::Completion(txid, payload) => (PacketType::Completion, txid.0, payload),
            Message::Fin => (PacketType::Fin, 0, Vec::new()),
            Message::Reset => (PacketType::Reset, 0, Vec::new()),
        };
        Self { packet_type, txid, payload, sent: 0, again: 0 }
    }

    /// Puts a RESET in the place of a message that is being sent, and behind RESETs that are: each counts, because each
    /// is answered.
    pub fn submit_reset(slot: &mut Option<Self>) {
        match slot {
            Some(outgoing) if outgoing.packet_type == PacketType::Reset => {
                outgoing.again = outgoing.again.saturating_add(1);
            }
            slot => *slot = Some(Self::new(Message::Reset)),
        }
    }

    /// The next packet, with at most `max_payload` bytes of payload (at least 1). The same one until
    /// [`advance`](Self::advance) is called.
    #[must_use]
    pub fn packet(&self, max_payload: usize) -> (PacketHeader, &[u8]) {
        let rest = self.payload.get(self.sent..).unwrap_or_default();
        let piece = rest.get(..max_payload).unwrap_or(rest);
        let fragment = match (self.sent == 0, piece.len() == rest.len()) {
            (true, true) => Fragment::Whole,
            (true, false) => Fragment::First,
            (false, false) => Fragment::Middle,
            (false, true) => Fragment::Last,
        };
        // Messages are far shorter than 4 GiB: the endpoint refuses those above their class's limit.
        let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        (PacketHeader { length, packet_type: self.packet_type, fragment, txid: self.txid }, piece)
    }

    /// The packet with `length` bytes of payload is on its way. Returns whether it was the last one.
    #[must_use]
    pub fn advance(&mut self, length: usize) -> bool {
        self.sent = self.sent.saturating_add(length);
        if self.sent < self.payload.len() {
            return false;
        }
        let is_last = self.again == 0;
        self.again = self.again.saturating_sub(1);
        is_last
    }
}

/// Packets that make no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageFault {
    /// A header that cannot be, or whose length is not that of the payload.
    #[error("packet: {0}")]
    Packet(#[from] Malformed),
    /// The middle or the end of a message that has not begun, or has another type or txid.
    #[error("a piece of a message without its beginning")]
    Piece,
    /// Another message before this one has ended.
    #[error("a message inside of another one")]
    Nested,
    /// The class allows no message of that length.
    #[error("a message of more than {limit} bytes")]
    TooLong {
        /// What it allows.
        limit: usize,
    },
    /// A piece that is not the last and brings nothing: without end they would be work without end.
    #[error("an empty piece of a message")]
    Empty,
    /// FIN or RESET with something in it.
    #[error("a fin or reset that is not empty")]
    NotEmpty,
}

/// Puts messages together. Holds at most one, and no more of it than the limit.
#[derive(Debug)]
pub struct Reassembler {
    limit: usize,
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    packet_type: PacketType,
    txid: u64,
    payload: Vec<u8>,
}

impl Reassembler {
    /// For messages of at most `limit` bytes.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self { limit, partial: None }
    }

    /// Takes a packet in; returns the message that it completes.
    ///
    /// # Errors
    ///
    /// When it cannot follow what came before. Nothing more can be read then.
    pub fn push(&mut self, header: PacketHeader, payload: Vec<u8>) -> Result<Option<Message>, MessageFault> {
        if usize::try_from(header.length) != Ok(payload.len()) {
            return Err(Malformed::Value { what: "packet length", value: header.length.into() }.into());
        }
        if let PacketType::Fin | PacketType::Reset = header.packet_type {
            return self.push_signal(header);
        }
        let held = self.partial.as_ref().map_or(0, |partial| partial.payload.len());
        if held.saturating_add(payload.len()) > self.limit {
            return Err(MessageFault::TooLong { limit: self.limit });
        }
        match header.fragment {
            Fragment::First | Fragment::Middle if payload.is_empty() => Err(MessageFault::Empty),
            Fragment::Whole | Fragment::First if self.partial.is_some() => Err(MessageFault::Nested),
            Fragment::Whole => Ok(Some(message(header.packet_type, header.txid, payload))),
            Fragment::First => {
                self.partial = Some(Partial { packet_type: header.packet_type, txid: header.txid, payload });
                Ok(None)
            }
            Fragment::Middle => self.append(header, &payload).map(|()| None),
            Fragment::Last => {
                self.append(header, &payload)?;
                let whole = self.partial.take();
                Ok(whole.map(|whole| message(whole.packet_type, whole.txid, whole.payload)))
            }
        }
    }

    /// FIN comes between messages, RESET also within one, of which the rest will never come.
    fn push_signal(&mut self, header: PacketHeader) -> Result<Option<Message>, MessageFault> {
        if header.length != 0 || header.fragment != Fragment::Whole {
            return Err(MessageFault::NotEmpty);
        }
        if header.packet_type == PacketType::Reset {
            self.partial = None;
            return Ok(Some(Message::Reset));
        }
        if self.partial.is_some() { Err(MessageFault::Nested) } else { Ok(Some(Message::Fin)) }
    }

    fn append(&mut self, header: PacketHeader, payload: &[u8]) -> Result<(), MessageFault> {
        let same = |partial: &&mut Partial| (partial.packet_type, partial.txid) == (header.packet_type, header.txid);
        let partial = self.partial.as_mut().filter(same).ok_or(MessageFault::Piece)?;
        partial.payload.extend_from_slice(payload);
        Ok(())
    }
}

fn message(packet_type: PacketType, txid: u64, payload: Vec<u8>) -> Message {
    match packet_type {
        PacketType::Data => Message::Data(payload),
        PacketType::Request => Message::Request(Txid(txid), payload),
        PacketType::Completion => Message::Completion(Txid(txid), payload),
        PacketType::Fin => Message::Fin,
        PacketType::Reset => Message::Reset,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packets(message: Message, max_payload: usize) -> Vec<(PacketHeader, Vec<u8>)> {
        let mut outgoing = Outgoing::new(message);
        let mut packets = Vec::new();
        loop {
            let (header, payload) = outgoing.packet(max_payload);
            packets.push((header, payload.to_vec()));
            let length = payload.len();
            if outgoing.advance(length) {
                return packets;
            }
        }
    }

    fn header(packet_type: PacketType, fragment: Fragment, length: u32) -> PacketHeader {
        let has_txid = matches!(packet_type, PacketType::Request | PacketType::Completion);
        PacketHeader { length, packet_type, fragment, txid: has_txid.into() }
    }

    #[test]
    fn a_message_is_cut_where_a_packet_ends() {
        let fragments = |length| -> Vec<Fragment> {
            packets(Message::Data(vec![1; length]), 4).iter().map(|(header, _)| header.fragment).collect()
        };
        assert_eq!(fragments(0), [Fragment::Whole]);
        assert_eq!(fragments(4), [Fragment::Whole]);
        assert_eq!(fragments(5), [Fragment::First, Fragment::Last]);
        assert_eq!(fragments(12), [Fragment::First, Fragment::Middle, Fragment::Last]);
    }

    #[test]
    fn packets_that_cannot_follow_each_other_are_faults() {
        use Fragment::{First, Last, Middle, Whole};
        let faults = |packets: &[(PacketType, Fragment)]| {
            let mut reassembler = Reassembler::new(100);
            let mut outcome = Ok(None);
            for (packet_type, fragment) in packets {
                let payload = match fragment {
                    First | Middle => vec![0],
                    Last | Whole => vec![],
                };
                let length = u32::try_from(payload.len()).unwrap();
                outcome = reassembler.push(header(*packet_type, *fragment, length), payload);
            }
            outcome
        };
        let (data, request) = (PacketType::Data, PacketType::Request);
        assert_eq!(faults(&[(data, Last)]), Err(MessageFault::Piece));
        assert_eq!(faults(&[(data, Middle)]), Err(MessageFault::Piece));
        assert_eq!(faults(&[(data, First), (request, Last)]), Err(MessageFault::Piece));
        assert_eq!(faults(&[(data, First), (data, First)]), Err(MessageFault::Nested));
        assert_eq!(faults(&[(data, First), (data, Whole)]), Err(MessageFault::Nested));
        assert_eq!(faults(&[(data, First), (PacketType::Fin, Whole)]), Err(MessageFault::Nested));
        assert_eq!(faults(&[(PacketType::Fin, First)]), Err(MessageFault::NotEmpty));
        assert_eq!(Reassembler::new(9).push(header(data, First, 0), vec![]), Err(MessageFault::Empty));
        assert_eq!(faults(&[(data, First), (PacketType::Reset, Whole)]), Ok(Some(Message::Reset)));
        assert_eq!(
            faults(&[(data, First), (PacketType::Reset, Whole), (data, Whole)]),
            Ok(Some(Message::Data(vec![])))
        );
    }

    #[test]
    fn no_more_is_held_than_the_limit() {
        let mut reassembler = Reassembler::new(7);
        assert_eq!(reassembler.push(header(PacketType::Data, Fragment::First, 4), vec![0; 4]), Ok(None));
        assert_eq!(
            reassembler.push(header(PacketType::Data, Fragment::Last, 4), vec![0; 4]),
            Err(MessageFault::TooLong { limit: 7 })
        );
    }

    #[test]
    fn a_length_that_is_not_that_of_the_payload_is_a_fault() {
        let mut reassembler = Reassembler::new(7);
        assert!(reassembler.push(header(PacketType::Data, Fragment::Whole, 4), vec![0; 3]).is_err());
    }

    proptest! {
        #[test]
        fn a_message_comes_out_as_it_went_in(
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            txid in 1u64..,
            max_payload in 1usize..100,
        ) {
            for message in [
                Message::Data(payload.clone()),
                Message::Request(Txid(txid), payload.clone()),
                Message::Completion(Txid(txid), payload.clone()),
            ] {
                let mut reassembler = Reassembler::new(payload.len());
                let mut packets = packets(message.clone(), max_payload);
                let (header, last) = packets.pop().expect("at least one");
                for (header, piece) in packets {
                    prop_assert!(piece.len() == max_payload);
                    prop_assert_eq!(reassembler.push(header, piece), Ok(None));
                }
                prop_assert_eq!(reassembler.push(header, last), Ok(Some(message)));
            }
        }
    }
}
