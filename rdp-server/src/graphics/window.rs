//! How many frames may be on their way to the client, by its acknowledgements.
//!
//! ```text
//!  open ⇔ unacknowledged < W  and  their bytes < 1.25 · rate · round trip (or a floor)
//!  W = round trip · 60 + 1, from 2 to 60
//! ```
//!
//! The round trip is the shortest of the last ten to twenty seconds, so a queue that builds up on the way does
//! not widen the window that feeds it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Frames a second that the window is made for.
const FRAME_RATE: f64 = 60.0;

/// Fewest and most unacknowledged frames: one being decoded while the next arrives; one second.
const MIN_FRAMES: usize = 2;
const MAX_FRAMES: usize = 60;

/// Bytes that may be on their way whatever was measured: 20 ms of 100 Mbit/s.
const MIN_BYTES: u64 = 256 * 1024;

/// Bytes the client may have left to decode before it gets one frame at a time.
const MAX_CLIENT_QUEUE: u32 = 512 * 1024;

/// How long the shortest round trip is believed.
const ROUND_TRIP_AGE: Duration = Duration::from_secs(10);

/// Acknowledgements that the rate is the best of.
const RATE_SAMPLES: usize = 16;

/// When a frame counts as shown although nothing was heard: some clients do not acknowledge while minimised.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// Unacknowledged frames of one client.
#[derive(Debug)]
pub(super) struct Window {
    in_flight: VecDeque<Sent>,
    bytes_in_flight: u64,
    bytes_acknowledged: u64,
    client_queue: u32,
    limit: usize,
    mode: Mode,
    round_trip: RoundTrip,
    rates: VecDeque<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Acknowledged,
    /// The client says it keeps up and sends no acknowledgements.
    Suspended,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    id: u32,
    at: Instant,
    bytes: u64,
    /// What had been acknowledged when it was sent.
    acknowledged_before: u64,
}

/// The shortest round trip of this period and of the one before.
#[derive(Debug, Default)]
struct RoundTrip {
    since: Option<Instant>,
    shortest: Option<Duration>,
    before: Option<Duration>,
}

impl Window {
    /// A window of never more than `limit` frames.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            in_flight: VecDeque::new(),
            bytes_in_flight: 0,
            bytes_acknowledged: 0,
            client_queue: 0,
            limit: limit.clamp(1, MAX_FRAMES),
            mode: Mode::Acknowledged,
            round_trip: RoundTrip::default(),
            rates: VecDeque::new(),
        }
    }

    /// Whether a frame may be sent now.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        if self.mode == Mode::Suspended {
            return true;
        }
        match self.in_flight.front() {
            None => true,
            Some(oldest) if now.duration_since(oldest.at) >= LOST_AFTER => true,
            Some(_) => self.in_flight.len() < self.frames() && self.bytes_in_flight < self.bytes(),
        }
    }

    /// When a window that is closed will open by itself.
    pub(super) fn reopens_at(&self) -> Option<Instant> {
        self.in_flight.front().map(|oldest| oldest.at + LOST_AFTER)
    }

    /// A frame leaves. Identifiers only ever grow (modulo 2³²).
    pub(super) fn sent(&mut self, now: Instant, id: u32, bytes: usize) {
        if self.mode == Mode::Suspended {
            return;
        }
        while self.in_flight.front().is_some_and(|oldest| now.duration_since(oldest.at) >= LOST_AFTER) {
            self.pop_oldest();
        }
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes_in_flight += bytes;
        self.in_flight.push_back(Sent { id, at: now, bytes, acknowledged_before: self.bytes_acknowledged });
    }

    /// The client showed a frame, and with it every one before. A frame that is not on its way changes nothing.
    ///
    /// `client_queue` is what it has left to decode, where it says so.
    pub(super) fn acknowledged(&mut self, now: Instant, id: u32, client_queue: u32) {
        self.mode = Mode::Acknowledged;
        self.client_queue = client_queue;
        let Some(at) = self.in_flight.iter().position(|sent| sent.id == id) else { return };
        let frame = self.in_flight[at];
        (0..=at).for_each(|_| self.pop_oldest());

        let took = now.saturating_duration_since(frame.at);
        self.round_trip.add(now, took);
        let delivered = self.bytes_acknowledged - frame.acknowledged_before;
        if self.rates.len() == RATE_SAMPLES {
            self.rates.pop_front();
        }
        self.rates.push_back(lossy(delivered) / took.as_secs_f64().max(1e-4));
    }

    /// The client will not acknowledge frames until it does so again.
    pub(super) fn suspend(&mut self) {
        self.mode = Mode::Suspended;
        self.clear();
    }

    /// Nothing that was sent will be acknowledged.
    pub(super) fn clear(&mut self) {
        self.in_flight.clear();
        self.bytes_in_flight = 0;
        self.client_queue = 0;
    }

    fn pop_oldest(&mut self) {
        if let Some(sent) = self.in_flight.pop_front() {
            self.bytes_in_flight -= sent.bytes;
            self.bytes_acknowledged += sent.bytes;
        }
    }

    fn frames(&self) -> usize {
        if self.client_queue > MAX_CLIENT_QUEUE {
            return 1;
        }
        let on_the_way = (self.round_trip.seconds() * FRAME_RATE).ceil();
        let frames = (1..MAX_FRAMES).find(|frames| lossy(*frames) >= on_the_way).unwrap_or(MAX_FRAMES) + 1;
        frames.clamp(MIN_FRAMES, MAX_FRAMES).min(self.limit)
    }

    fn bytes(&self) -> u64 {
        let rate = self.rates.iter().copied().fold(0.0, f64::max);
        let fits = 1.25 * rate * self.round_trip.seconds();
        // Floats saturate as they become integers.
        MIN_BYTES.max(fits as u64)
    }
}

impl RoundTrip {
    fn add(&mut self, now: Instant, took: Duration) {
        if self.since.is_none_or(|since| now.duration_since(since) >= ROUND_TRIP_AGE) {
            self.since = Some(now);
            self.before = self.shortest.take();
        }
        self.shortest = Some(self.shortest.map_or(took, |shortest| shortest.min(took)));
    }

    fn seconds(&self) -> f64 {
        self.shortest.into_iter().chain(self.before).min().unwrap_or_default().as_secs_f64()
    }
}

/// A count as a float; what is lost beyond 2⁵³ does not matter to an estimate.
fn lossy(count: impl TryInto<u64>) -> f64 {
    count.try_into().unwrap_or(u64::MAX) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Sends frames until the window closes; returns how many.
    fn fill(window: &mut Window, now: Instant, id: &mut u32, bytes: usize) -> usize {
        let mut sent = 0;
        while window.is_open(now) && sent < 1_000 {
            *id += 1;
            window.sent(now, *id, bytes);
            sent += 1;
        }
        sent
    }

    #[test]
    fn two_frames_until_something_is_known() {
        let mut window = Window::new(usize::MAX);
        assert_eq!(fill(&mut window, Instant::now(), &mut 0, 100), 2);
    }

    #[test]
    fn a_long_way_holds_more_frames() {
        let mut window = Window::new(usize::MAX);
        let (start, mut id) = (Instant::now(), 0);
        fill(&mut window, start, &mut id, 100);
        window.acknowledged(start + 100 * MS, id, 0);
        assert_eq!(fill(&mut window, start + 100 * MS, &mut id, 100), 7);
    }

    #[test]
    fn an_acknowledgement_counts_for_all_before() {
        let mut window = Window::new(usize::MAX);
        let now = Instant::now();
        window.sent(now, u32::MAX, 1);
        window.sent(now, 0, 1);
        assert!(!window.is_open(now));
        window.acknowledged(now + MS, 0, 0);
        assert!(window.in_flight.is_empty());
        assert_eq!(window.bytes_in_flight, 0);
    }

    #[test]
    fn unknown_acknowledgements_open_nothing() {
        let mut window = Window::new(usize::MAX);
        let now = Instant::now();
        fill(&mut window, now, &mut 10, 1);
        window.acknowledged(now, 9, 0);
        window.acknowledged(now, 77, 0);
        assert!(!window.is_open(now));
    }

    #[test]
    fn a_suspended_client_is_not_waited_for_until_it_acknowledges_again() {
        let mut window = Window::new(usize::MAX);
        let now = Instant::now();
        window.suspend();
        assert_eq!(fill(&mut window, now, &mut 0, 1), 1_000);
        window.acknowledged(now, 5, 0);
        assert_eq!(fill(&mut window, now, &mut 2_000, 1), 2);
    }

    #[test]
    fn large_frames_close_the_window_by_their_bytes() {
        let mut window = Window::new(usize::MAX);
        let (start, mut id) = (Instant::now(), 0);
        // 100 kB take 100 ms and more: 1 MB/s, of which 125 kB fit on the way; the floor is what counts.
        window.sent(start, 1, 100_000);
        window.acknowledged(start + 100 * MS, 1, 0);
        assert_eq!(fill(&mut window, start + 100 * MS, &mut id, 100_000), 3);
    }

    #[test]
    fn a_client_with_much_to_decode_gets_one_frame_at_a_time() {
        let mut window = Window::new(usize::MAX);
        let now = Instant::now();
        window.sent(now, 1, 1);
        window.acknowledged(now + 200 * MS, 1, 1 << 20);
        assert_eq!(fill(&mut window, now + 200 * MS, &mut 1, 1), 1);
    }

    #[test]
    fn a_frame_nobody_acknowledges_is_given_up() {
        let mut window = Window::new(usize::MAX);
        let (now, mut id) = (Instant::now(), 0);
        fill(&mut window, now, &mut id, 1);
        let later = window.reopens_at().unwrap();
        assert!(!window.is_open(later - MS) && window.is_open(later));
        assert_eq!(fill(&mut window, later, &mut id, 1), 2);
    }
}
