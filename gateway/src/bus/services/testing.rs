//! A channel that keeps what is sent.

use std::time::{Duration, Instant, SystemTime};

use enhanced_session::message::Txid;

use super::{Channel, Full, Moment};

/// Has room for as many messages as `room` says.
pub(super) struct Sent {
    pub(super) messages: Vec<Vec<u8>>,
    pub(super) room: usize,
    next_txid: u64,
}

impl Sent {
    pub(super) const fn new() -> Self {
        Self { messages: Vec::new(), room: usize::MAX, next_txid: 1 }
    }

    /// The only message since the last time.
    pub(super) fn only(&mut self) -> Vec<u8> {
        assert_eq!(self.messages.len(), 1, "{:?}", self.messages);
        self.messages.remove(0)
    }

    pub(super) fn none(&self) {
        assert!(self.messages.is_empty(), "{:?}", self.messages);
    }
}

impl Channel for Sent {
    fn send(&mut self, payload: Vec<u8>) -> Result<(), Full> {
        self.room = self.room.checked_sub(1).ok_or(Full)?;
        self.messages.push(payload);
        Ok(())
    }

    fn request(&mut self, payload: Vec<u8>) -> Result<Txid, Full> {
        self.send(payload)?;
        let txid = Txid(self.next_txid);
        self.next_txid += 1;
        Ok(txid)
    }
}

/// A clock that is moved by hand.
pub(super) struct Clock(Moment);

impl Clock {
    pub(super) fn new() -> Self {
        Self(Moment { now: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) })
    }

    pub(super) const fn at(&self) -> Moment {
        self.0
    }

    pub(super) fn pass(&mut self, time: Duration) -> Moment {
        self.0.now += time;
        self.0.wall += time;
        self.0
    }
}
