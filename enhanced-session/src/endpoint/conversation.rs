//! What an open channel's two ends say to each other: messages, requests and their completions, FIN and RESET
//! (`docs/bus.md`, section 6). The same on rings and on the stream.

use std::collections::BTreeSet;

use crate::message::{Message, Outgoing, Reassembler, Txid};
use crate::packet::{PacketHeader, PacketType};

use super::event::{Fault, SendError};
use super::statistics::Traffic;

/// Requests that may be open per direction.
pub const MAX_REQUESTS: usize = 256;

#[derive(Debug)]
pub(super) struct Conversation {
    limit: usize,
    reassembler: Reassembler,
    /// The message that the owner has not taken; nothing is read behind it.
    ready: Option<Message>,
    /// Requests of this end that were not completed.
    asked: BTreeSet<u64>,
    /// Requests of the other end that the owner has not completed.
    answering: BTreeSet<u64>,
    next_txid: u64,
    sends: Direction,
    receives: Direction,
    /// RESETs of this end that the other has not answered: what it sends meanwhile is from before.
    resets: u32,
    pub(super) sent: Traffic,
    pub(super) received: Traffic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Open,
    Finished,
}

/// What a packet leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    None,
    /// RESET is to be sent.
    Reset,
}

impl Conversation {
    /// With messages of at most `limit` bytes.
    pub(super) const fn new(limit: usize) -> Self {
        Self {
            limit,
            reassembler: Reassembler::new(limit),
            ready: None,
            asked: BTreeSet::new(),
            answering: BTreeSet::new(),
            next_txid: 0,
            sends: Direction::Open,
            receives: Direction::Open,
            resets: 0,
            sent: Traffic::new(),
            received: Traffic::new(),
        }
    }

    /// Takes a packet in. Only called while no message is ready.
    pub(super) fn push(&mut self, header: PacketHeader, payload: Vec<u8>) -> Result<Reply, Fault> {
        if self.resets > 0 && header.packet_type != PacketType::Reset {
            return Ok(Reply::None);
        }
        match self.reassembler.push(header, payload)? {
            Some(Message::Reset) => Ok(self.handle_reset()),
            Some(_) if self.receives == Direction::Finished => Err(Fault::AfterFin),
            Some(message) => {
                self.check(&message)?;
                self.received.add(message_bytes(&message));
                self.ready = Some(message);
                Ok(Reply::None)
            }
            None => Ok(Reply::None),
        }
    }

    /// Keeps the books of requests.
    fn check(&mut self, message: &Message) -> Result<(), Fault> {
        match message {
            Message::Request(txid, _) if self.answering.len() >= MAX_REQUESTS && !self.answering.contains(&txid.0) => {
                Err(Fault::TooManyRequests { limit: MAX_REQUESTS })
            }
            Message::Request(txid, _) if !self.answering.insert(txid.0) => Err(Fault::RequestTwice(txid.0)),
            Message::Completion(txid, _) if !self.asked.remove(&txid.0) => Err(Fault::NoSuchRequest(txid.0)),
            Message::Fin => {
                self.receives = Direction::Finished;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The other end started anew, or has heard that this end did.
    fn handle_reset(&mut self) -> Reply {
        self.receives = Direction::Open;
        if let Some(left) = self.resets.checked_sub(1) {
            self.resets = left;
            return Reply::None;
        }
        self.forget();
        self.ready = Some(Message::Reset);
        Reply::Reset
    }

    fn forget(&mut self) {
        self.asked.clear();
        self.answering.clear();
        self.sends = Direction::Open;
    }

    pub(super) const fn is_ready(&self) -> bool {
        self.ready.is_some()
    }

    pub(super) const fn take(&mut self) -> Option<Message> {
        self.ready.take()
    }

    /// A message that wants no answer.
    pub(super) fn data(&mut self, payload: Vec<u8>) -> Result<Outgoing, SendError> {
        self.check_sending(&payload)?;
        Ok(self.begin(Message::Data(payload)))
    }

    /// A message that wants one.
    pub(super) fn request(&mut self, payload: Vec<u8>) -> Result<(Txid, Outgoing), SendError> {
        self.check_sending(&payload)?;
        if self.asked.len() >= MAX_REQUESTS {
            return Err(SendError::TooManyRequests);
        }
        self.next_txid += 1;
        self.asked.insert(self.next_txid);
        let txid = Txid(self.next_txid);
        Ok((txid, self.begin(Message::Request(txid, payload))))
    }

    /// The answer to a request of the other end.
    pub(super) fn completion(&mut self, txid: Txid, payload: Vec<u8>) -> Result<Outgoing, SendError> {
        self.check_sending(&payload)?;
        if !self.answering.remove(&txid.0) {
            return Err(SendError::NoSuchRequest);
        }
        Ok(self.begin(Message::Completion(txid, payload)))
    }

    /// No more from this end.
    pub(super) fn finish(&mut self) -> Result<Outgoing, SendError> {
        self.check_sending(&[])?;
        self.sends = Direction::Finished;
        Ok(self.begin(Message::Fin))
    }

    /// Starts anew, with a RESET that is to be sent; until the other end answers it, what it sends is dropped.
    pub(super) fn reset(&mut self) {
        self.forget();
        self.resets = self.resets.saturating_add(1);
        self.ready = None;
    }

    fn check_sending(&self, payload: &[u8]) -> Result<(), SendError> {
        if self.sends == Direction::Finished {
            return Err(SendError::Finished);
        }
        let (length, limit) = (payload.len(), self.limit);
        if length > limit { Err(SendError::TooLong { length, limit }) } else { Ok(()) }
    }

    fn begin(&mut self, message: Message) -> Outgoing {
        self.sent.add(message_bytes(&message));
        Outgoing::new(message)
    }
}

fn message_bytes(message: &Message) -> usize {
    match message {
        Message::Data(payload) | Message::Request(_, payload) | Message::Completion(_, payload) => payload.len(),
        Message::Fin | Message::Reset => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Fragment;

    /// What `outgoing` does at the other end.
    fn hear(other: &mut Conversation, outgoing: Outgoing) -> Result<Reply, Fault> {
        let (header, payload) = outgoing.packet(1 << 20);
        other.push(header, payload.to_vec())
    }

    fn reset() -> Outgoing {
        Outgoing::new(Message::Reset)
    }

    fn two() -> (Conversation, Conversation) {
        (Conversation::new(100), Conversation::new(100))
    }

    #[test]
    fn a_completion_answers_a_request_that_is_open_once() {
        let (mut one, mut other) = two();
        let (txid, request) = one.request(b"?".to_vec()).expect("there is room");
        hear(&mut other, request).expect("in order");
        assert_eq!(other.take(), Some(Message::Request(txid, b"?".to_vec())));
        let completion = other.completion(txid, b"!".to_vec()).expect("it was asked");
        assert_eq!(other.completion(txid, vec![]).err(), Some(SendError::NoSuchRequest));
        let (header, payload) = completion.packet(100);
        assert_eq!(one.push(header, payload.to_vec()), Ok(Reply::None));
        assert_eq!(one.take(), Some(Message::Completion(txid, b"!".to_vec())));
        assert_eq!(one.push(header, payload.to_vec()), Err(Fault::NoSuchRequest(txid.0)));
    }

    #[test]
    fn only_so_many_requests_are_open() {
        let (mut one, mut other) = two();
        for _ in 0..MAX_REQUESTS {
            let (_, request) = one.request(vec![]).expect("there is room");
            hear(&mut other, request).expect("in order");
            other.take();
        }
        assert_eq!(one.request(vec![]).err(), Some(SendError::TooManyRequests));
        let request = Outgoing::new(Message::Request(Txid(1000), vec![]));
        assert_eq!(hear(&mut other, request), Err(Fault::TooManyRequests { limit: MAX_REQUESTS }));
        let twice = Outgoing::new(Message::Request(Txid(1), vec![]));
        assert_eq!(hear(&mut other, twice), Err(Fault::RequestTwice(1)));
    }

    #[test]
    fn after_fin_nothing_comes_until_a_reset() {
        let (mut one, mut other) = two();
        hear(&mut other, one.finish().expect("once")).expect("in order");
        assert_eq!(other.take(), Some(Message::Fin));
        assert_eq!(one.data(vec![]).err(), Some(SendError::Finished));
        assert_eq!(hear(&mut other, Outgoing::new(Message::Data(vec![]))), Err(Fault::AfterFin));
        one.reset();
        assert_eq!(hear(&mut other, reset()), Ok(Reply::Reset));
        assert_eq!(other.take(), Some(Message::Reset));
        assert!(hear(&mut other, one.data(vec![1]).expect("a new conversation")).is_ok());
    }

    #[test]
    fn a_reset_makes_both_forget_and_what_is_under_way_is_dropped() {
        let (mut one, mut other) = two();
        let (txid, request) = one.request(vec![]).expect("there is room");
        hear(&mut other, request).expect("in order");
        other.take();
        let late = other.completion(txid, vec![]).expect("it was asked");
        one.reset();
        assert_eq!(hear(&mut one, late), Ok(Reply::None), "of a request that is forgotten");
        assert_eq!(hear(&mut other, reset()), Ok(Reply::Reset));
        assert_eq!(other.completion(txid, vec![]).err(), Some(SendError::NoSuchRequest));
        let half = PacketHeader { length: 1, packet_type: PacketType::Data, fragment: Fragment::Middle, txid: 0 };
        assert_eq!(one.push(half, vec![0]), Ok(Reply::None), "also the rest of a message");
        assert_eq!(hear(&mut one, reset()), Ok(Reply::None), "the answer");
        assert_eq!(one.take(), None);
        assert!(one.push(half, vec![0]).is_err());
    }

    #[test]
    fn two_resets_that_cross_answer_each_other() {
        let (mut one, mut other) = two();
        one.reset();
        other.reset();
        assert_eq!(hear(&mut other, reset()), Ok(Reply::None));
        assert_eq!(hear(&mut one, reset()), Ok(Reply::None));
        assert!(hear(&mut other, one.data(vec![]).unwrap()).is_ok() && other.is_ready());
    }

    #[test]
    fn each_of_several_resets_is_answered_once() {
        let (mut one, mut other) = two();
        one.reset();
        one.reset();
        other.reset();
        assert_eq!(hear(&mut other, reset()), Ok(Reply::None), "crossed its own");
        assert_eq!(hear(&mut other, reset()), Ok(Reply::Reset));
        other.take();
        assert_eq!(hear(&mut one, reset()), Ok(Reply::None));
        assert!(hear(&mut one, other.data(vec![]).unwrap()).is_ok() && !one.is_ready(), "of before the second");
        assert_eq!(hear(&mut one, reset()), Ok(Reply::None));
        assert!(hear(&mut one, other.data(vec![]).unwrap()).is_ok() && one.is_ready());
    }

    #[test]
    fn a_message_that_the_class_does_not_allow_is_not_sent() {
        let (mut one, _) = two();
        assert_eq!(one.data(vec![0; 101]).err(), Some(SendError::TooLong { length: 101, limit: 100 }));
    }
}
