//! How much bulk is between the ends (`docs/bus.md`, section 2).
//!
//! Sockets and the other end's system hold much more than one frame, and what is in there nothing can overtake. Only the
//! other end knows when it has come out of there: it is asked by a PING behind the frame, and the next waits for its PONG.

use crate::stream::MAX_BULK_PAYLOAD;

/// Bytes of frames that wait for no answer: small messages are no reason to wake the other end once more.
const UNASKED: usize = MAX_BULK_PAYLOAD / 2;

#[derive(Debug)]
pub(super) struct UnderWay {
    /// Bytes since the last answer.
    bytes: usize,
    /// What was asked.
    cookie: Option<u64>,
}

impl UnderWay {
    pub(super) const fn new() -> Self {
        Self { bytes: 0, cookie: None }
    }

    /// A frame of bulk goes out. Returns whether the other end is to be asked for an answer before the next.
    pub(super) const fn add(&mut self, bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_add(bytes);
        self.bytes >= UNASKED
    }

    /// The other end is asked.
    pub(super) const fn ask(&mut self, cookie: u64) {
        self.cookie = Some(cookie);
    }

    /// It has answered something. Returns whether that was it.
    pub(super) fn has_arrived(&mut self, cookie: u64) -> bool {
        let is_it = self.cookie == Some(cookie);
        if is_it {
            *self = Self::new();
        }
        is_it
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_frame_is_waited_for_and_short_ones_only_when_they_are_many() {
        let mut under_way = UnderWay::new();
        assert!(!under_way.add(UNASKED - 1) && under_way.add(1));
        under_way.ask(7);
        assert!(!under_way.has_arrived(6) && under_way.has_arrived(7) && !under_way.has_arrived(7));
        assert!(!under_way.add(100) && under_way.add(MAX_BULK_PAYLOAD));
    }
}
