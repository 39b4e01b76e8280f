//! What carries the packets of an open channel: DATA frames with credit, or two rings. What is above knows no
//! difference, and another transport would be another variant.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::class::{Class, Priority};
use crate::message::Outgoing;
use crate::packet::{PACKET_HEADER, PacketHeader};
use crate::region::SharedMemory;
use crate::ring::{Consumer, Kick, Producer, Push, RingFault, RingGrant};
use crate::stream::{MAX_BULK_PAYLOAD, MAX_FRAME_BODY};
use crate::wire::{Malformed, Reader};

use super::Transport;
use super::event::Fault;

#[derive(Debug)]
pub(super) enum Pipe<M> {
    Stream(StreamPipe),
    Ring(Box<RingPipe<M>>),
}

impl<M: SharedMemory> Pipe<M> {
    pub(super) const fn transport(&self) -> Transport {
        match self {
            Self::Stream(_) => Transport::Stream,
            Self::Ring(_) => Transport::Ring,
        }
    }

    /// The next packet that has come.
    pub(super) fn next_packet(&mut self) -> Result<Option<(PacketHeader, Vec<u8>)>, Fault> {
        match self {
            Self::Stream(stream) => Ok(stream.next_packet()),
            Self::Ring(ring) => Ok(ring.next_packet()?),
        }
    }
}

/// The receiving half on the stream; the sending one is the channel's lane in the scheduler.
#[derive(Debug)]
pub(super) struct StreamPipe {
    inbox: VecDeque<(PacketHeader, Vec<u8>)>,
    max_payload: usize,
    window: usize,
    /// Bytes that the other end may still send.
    allowed: usize,
    /// Bytes that were taken and not given back as credit.
    taken: usize,
}

impl StreamPipe {
    pub(super) fn new(class: Class, window: u32) -> Self {
        let window = usize::try_from(window).unwrap_or(usize::MAX);
        let max_payload = match class.priority() {
            Priority::Bulk => MAX_BULK_PAYLOAD,
            _ => MAX_FRAME_BODY - PACKET_HEADER,
        };
        Self { inbox: VecDeque::new(), max_payload, window, allowed: window, taken: 0 }
    }

    /// A DATA frame has come. What it has no header for is refused at once: nothing waits that costs no credit.
    pub(super) fn accept(&mut self, mut body: Vec<u8>) -> Result<(), Fault> {
        let too_much = Fault::Credit { bytes: body.len(), allowed: self.allowed };
        self.allowed = self.allowed.checked_sub(body.len()).ok_or(too_much)?;
        let header = decode_header(&body).map_err(|malformed| Fault::Message(malformed.into()))?;
        body.drain(..PACKET_HEADER);
        if body.len() > self.max_payload {
            return Err(Fault::Frame { bytes: body.len(), limit: self.max_payload });
        }
        self.inbox.push_back((header, body));
        Ok(())
    }

    fn next_packet(&mut self) -> Option<(PacketHeader, Vec<u8>)> {
        let (header, payload) = self.inbox.pop_front()?;
        self.taken += PACKET_HEADER + payload.len();
        Some((header, payload))
    }

    /// Credit that is to be given back now, if any.
    pub(super) fn credit_due(&mut self) -> Option<u32> {
        let due = self.taken >= self.window / 2 || self.inbox.is_empty();
        if !due || self.taken == 0 {
            return None;
        }
        let credit = std::mem::take(&mut self.taken);
        self.allowed += credit;
        // Never more than the window, which was a u32.
        Some(u32::try_from(credit).unwrap_or(u32::MAX))
    }

    /// Whether everything that came was taken.
    pub(super) fn is_empty(&self) -> bool {
        self.inbox.is_empty()
    }
}

fn decode_header(body: &[u8]) -> Result<PacketHeader, Malformed> {
    PacketHeader::decode(&Reader::new(body).array("packet header")?)
}

/// Both rings of a channel.
#[derive(Debug)]
pub(super) struct RingPipe<M> {
    producer: Producer<Arc<M>>,
    consumer: Consumer<Arc<M>>,
    outgoing: Option<Outgoing>,
}

impl<M: SharedMemory> RingPipe<M> {
    /// Takes this end of both rings.
    pub(super) fn attach(memory: &Arc<M>, sends: RingGrant, receives: RingGrant, tag: u32) -> Self {
        Self {
            producer: Producer::attach(Arc::clone(memory), sends, tag),
            consumer: Consumer::attach(Arc::clone(memory), receives, tag),
            outgoing: None,
        }
    }

    /// Whether the other end has taken its ends for the same opening.
    pub(super) fn peer_tags_match(&self) -> bool {
        self.producer.peer_tag_matches() && self.consumer.peer_tag_matches()
    }

    pub(super) const fn is_free(&self) -> bool {
        self.outgoing.is_none()
    }

    /// A message waits; the pipe is free.
    pub(super) fn submit(&mut self, message: Outgoing) {
        self.outgoing = Some(message);
    }

    /// RESET waits, in the place of a message that is being sent.
    pub(super) fn submit_reset(&mut self) {
        Outgoing::submit_reset(&mut self.outgoing);
    }

    fn next_packet(&mut self) -> Result<Option<(PacketHeader, Vec<u8>)>, RingFault> {
        let mut payload = Vec::new();
        let header = self.consumer.pop(&mut payload)?;
        Ok(header.map(|header| (header, payload)))
    }

    /// Puts as much of the waiting message on the ring as there is room for.
    pub(super) fn pump(&mut self) -> Result<(), RingFault> {
        let max_payload = usize::try_from(self.producer.max_payload()).unwrap_or(usize::MAX);
        while let Some(outgoing) = &mut self.outgoing {
            let (header, payload) = outgoing.packet(max_payload);
            let length = payload.len();
            if self.producer.push(&header, &[payload])? == Push::Full {
                break;
            }
            if outgoing.advance(length) {
                self.outgoing = None;
            }
        }
        Ok(())
    }

    /// Shows the other end what was produced and consumed. Returns whether it must be kicked.
    pub(super) fn publish(&mut self) -> Result<bool, RingFault> {
        let kicks = [self.consumer.publish()?, self.producer.publish()?];
        Ok(kicks.contains(&Kick::Needed))
    }

    /// Whether the other end has taken everything.
    pub(super) fn is_taken(&mut self) -> Result<bool, RingFault> {
        self.producer.is_taken()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;

    fn body(length: usize) -> Vec<u8> {
        let outgoing = Outgoing::new(Message::Data(vec![0; length]));
        let (header, payload) = outgoing.packet(length.max(1));
        [&header.encode(), payload].concat()
    }

    #[test]
    fn credit_comes_back_when_half_is_taken_and_when_nothing_is_left() {
        let mut stream = StreamPipe::new(Class::Folder, 1024);
        for _ in 0..7 {
            stream.accept(body(112)).expect("within the window");
        }
        let mut credit = Vec::new();
        while stream.next_packet().is_some() {
            credit.push(stream.credit_due());
        }
        assert_eq!(credit, [None, None, None, Some(512), None, None, Some(384)]);
        assert!(stream.is_empty());
        assert_eq!(stream.allowed, 1024);
    }

    #[test]
    fn more_than_the_credit_is_a_fault() {
        let mut stream = StreamPipe::new(Class::Folder, 1024);
        assert!(stream.accept(body(1008)).is_ok());
        assert_eq!(stream.accept(body(0)), Err(Fault::Credit { bytes: 16, allowed: 0 }));
    }

    #[test]
    fn a_body_without_a_header_is_a_fault() {
        let mut stream = StreamPipe::new(Class::Folder, 1024);
        assert!(stream.accept(vec![0; 15]).is_err() && stream.accept(vec![]).is_err());
    }

    #[test]
    fn a_frame_of_bulk_is_short() {
        for (class, limit) in [(Class::Folder, 16_384), (Class::Video, 65_520)] {
            let mut stream = StreamPipe::new(class, 1 << 20);
            assert!(stream.accept(body(limit)).is_ok());
            assert_eq!(stream.accept(body(limit + 1)), Err(Fault::Frame { bytes: limit + 1, limit }));
        }
    }
}
