//! Whose frame goes out next (`docs/bus.md`, section 2).
//!
//! Strict priorities; among the channels of one priority weighted turns (deficit round robin), so that each gets its
//! share. A lane holds one message and cuts the next packet only when its turn has come: what is more urgent waits
//! for one frame at most.

use std::collections::{BTreeMap, VecDeque};

use crate::class::{Class, Priority};
use crate::message::Outgoing;

use super::frame::{Frame, packet_bytes};
use super::sync::SyncBody;

/// Bytes of control messages that may wait; an end with more reads nothing until they are sent.
pub const MAX_CONTROL_QUEUED: usize = 64 * 1024;
/// Largest payload of a packet that is sent. Receivers allow more on channels that are not bulk, but a long frame of
/// pictures holds up a key just as well.
pub const MAX_BULK_PAYLOAD: usize = 16 * 1024;
/// Smallest window that can be worked with: it has room for two packets of a few hundred bytes.
pub const MIN_WINDOW: u32 = 1024;

/// What a lane of weight 1 may send in its turn. At least the largest packet, so that one more turn is always enough.
const QUANTUM: usize = packet_bytes(MAX_BULK_PAYLOAD);
const PRIORITIES: [Priority; 4] = [Priority::Input, Priority::Audio, Priority::Video, Priority::Bulk];

/// A frame that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emitted {
    /// One that is of no channel, or gives a channel credit.
    Urgent,
    /// A packet of a channel.
    Packet {
        /// The channel.
        channel: u32,
        /// How urgent it was.
        priority: Priority,
        /// Whether it was the end of a message, so that the channel can take the next.
        ends_message: bool,
    },
}

/// Everything that waits for the port.
#[derive(Debug, Default)]
pub struct Scheduler {
    sync: Option<SyncBody>,
    control: VecDeque<Vec<u8>>,
    control_bytes: usize,
    kick: bool,
    windows: BTreeMap<u32, u32>,
    lanes: BTreeMap<u32, Lane>,
    /// Per priority, whose turn it is.
    turns: [VecDeque<u32>; PRIORITIES.len()],
    held: bool,
    bulk_held: bool,
}

#[derive(Debug)]
struct Lane {
    priority: Priority,
    weight: usize,
    max_payload: usize,
    /// Bytes that it may send in this turn.
    deficit: usize,
    /// Bytes that the receiver has room for now.
    credit: u64,
    /// Bytes that it has room for when it has taken everything.
    window: u64,
    outgoing: Option<Outgoing>,
}

impl Scheduler {
    /// Nothing waits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets everything, and says SYNC, if there is one to say. It stays held, if it is.
    pub fn start_over(&mut self, sync: Option<SyncBody>) {
        *self = Self { sync, held: self.held, ..Self::default() };
    }

    /// SYNC goes first. A later one says all that an earlier one did.
    pub const fn push_sync(&mut self, sync: SyncBody) {
        self.sync = Some(sync);
    }

    /// A control message waits.
    pub fn push_control(&mut self, message: Vec<u8>) {
        self.control_bytes = self.control_bytes.saturating_add(message.len());
        self.control.push_back(message);
    }

    /// Bytes of control messages that wait.
    #[must_use]
    pub const fn control_queued(&self) -> usize {
        self.control_bytes
    }

    /// The other end shall look at the pending map.
    pub const fn push_kick(&mut self) {
        self.kick = true;
    }

    /// The other end may send so many bytes more on a channel.
    pub fn push_credit(&mut self, channel: u32, credit: u32) {
        let waiting = self.windows.entry(channel).or_default();
        *waiting = waiting.saturating_add(credit);
    }

    /// A channel begins to send, with room for `window` bytes at the other end.
    pub fn open(&mut self, channel: u32, class: Class, window: u32) {
        self.close(channel);
        // Credit always comes back up to more than half of the window, so that half is always enough for a packet.
        let half = usize::try_from(window / 2).unwrap_or(usize::MAX);
        let max_payload = half.saturating_sub(packet_bytes(0)).clamp(1, MAX_BULK_PAYLOAD);
        let lane = Lane {
            priority: class.priority(),
            weight: weight(class),
            max_payload,
            deficit: 0,
            credit: window.into(),
            window: window.into(),
            outgoing: None,
        };
        self.turns_of(lane.priority).push_back(channel);
        self.lanes.insert(channel, lane);
    }

    /// A channel sends no more; what it has not sent is dropped.
    pub fn close(&mut self, channel: u32) {
        self.windows.remove(&channel);
        if let Some(lane) = self.lanes.remove(&channel) {
            self.turns_of(lane.priority).retain(|other| *other != channel);
        }
    }

    /// Whether a channel can take a message.
    #[must_use]
    pub fn is_free(&self, channel: u32) -> bool {
        self.lanes.get(&channel).is_some_and(|lane| lane.outgoing.is_none())
    }

    /// Whether the other end has taken all that was sent on a channel.
    #[must_use]
    pub fn is_taken(&self, channel: u32) -> bool {
        self.lanes.get(&channel).is_none_or(|lane| lane.credit >= lane.window)
    }

    /// A message waits on a channel that is free.
    pub fn submit(&mut self, channel: u32, message: Outgoing) {
        if let Some(lane) = self.lanes.get_mut(&channel) {
            lane.outgoing = Some(message);
        }
    }

    /// RESET waits on a channel, in the place of a message that is being sent there.
    pub fn submit_reset(&mut self, channel: u32) {
        if let Some(lane) = self.lanes.get_mut(&channel) {
            Outgoing::submit_reset(&mut lane.outgoing);
        }
    }

    /// The other end has room for more on a channel.
    pub fn add_credit(&mut self, channel: u32, credit: u32) {
        if let Some(lane) = self.lanes.get_mut(&channel) {
            lane.credit = lane.credit.saturating_add(credit.into());
        }
    }

    /// Packets wait while it is held.
    pub const fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// Packets of bulk wait while they are held.
    pub const fn hold_bulk(&mut self, held: bool) {
        self.bulk_held = held;
    }

    /// Writes the next frame to the end of `out`. None: nothing waits that could be sent.
    pub fn next_frame(&mut self, out: &mut Vec<u8>) -> Option<Emitted> {
        if let Some(frame) = self.next_urgent() {
            frame.encode(out);
            return Some(Emitted::Urgent);
        }
        if self.held {
            return None;
        }
        let bulk_held = self.bulk_held;
        let may_go = |priority: &Priority| !bulk_held || *priority != Priority::Bulk;
        PRIORITIES.into_iter().filter(may_go).find_map(|priority| self.next_packet(priority, out))
    }

    fn next_urgent(&mut self) -> Option<Frame> {
        if let Some(sync) = self.sync.take() {
            return Some(Frame::Sync(sync));
        }
        if let Some(message) = self.control.pop_front() {
            self.control_bytes = self.control_bytes.saturating_sub(message.len());
            return Some(Frame::Control(message));
        }
        if std::mem::take(&mut self.kick) {
            return Some(Frame::Kick);
        }
        self.windows.pop_first().map(|(channel, credit)| Frame::Window { channel, credit })
    }

    /// Gives turns until a lane sends: a lane that has used its turn up gets the next one behind the others.
    fn next_packet(&mut self, priority: Priority, out: &mut Vec<u8>) -> Option<Emitted> {
        // After one round every lane that can send has enough for a packet.
        let rounds = 2 * self.turns_of(priority).len();
        for _ in 0..rounds {
            let channel = *self.turns_of(priority).front()?;
            let lane = self.lanes.get_mut(&channel)?;
            if let Some(emitted) = lane.send(channel, out) {
                return Some(emitted);
            }
            self.turns_of(priority).rotate_left(1);
        }
        None
    }

    fn turns_of(&mut self, priority: Priority) -> &mut VecDeque<u32> {
        let [input, audio, video, bulk] = &mut self.turns;
        match priority {
            Priority::Input => input,
            Priority::Audio => audio,
            Priority::Video => video,
            Priority::Bulk => bulk,
        }
    }
}

impl Lane {
    /// Writes the next packet, when there is one, the receiver has room and the turn is not used up.
    fn send(&mut self, channel: u32, out: &mut Vec<u8>) -> Option<Emitted> {
        let Some(outgoing) = &mut self.outgoing else {
            self.deficit = 0;
            return None;
        };
        let (header, payload) = outgoing.packet(self.max_payload);
        let bytes = packet_bytes(payload.len());
        let Some(credit) = self.credit.checked_sub(bytes as u64) else {
            self.deficit = 0;
            return None;
        };
        let Some(deficit) = self.deficit.checked_sub(bytes) else {
            self.deficit += self.weight * QUANTUM;
            return None;
        };
        (self.credit, self.deficit) = (credit, deficit);
        Frame::encode_data(out, channel, self.priority, &header, payload);
        let length = payload.len();
        let ends_message = outgoing.advance(length);
        if ends_message {
            self.outgoing = None;
        }
        Some(Emitted::Packet { channel, priority: self.priority, ends_message })
    }
}

/// How large a channel's share is among those of its priority.
const fn weight(class: Class) -> usize {
    match class {
        Class::Usb => 4,
        Class::Clipboard | Class::Folder => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::Message;

    const WINDOW: u32 = 1 << 20;

    fn message(length: usize) -> Outgoing {
        Outgoing::new(Message::Data(vec![0; length]))
    }

    fn scheduler(classes: &[Class]) -> Scheduler {
        let mut scheduler = Scheduler::new();
        for (channel, class) in (1..).zip(classes) {
            scheduler.open(channel, *class, WINDOW);
        }
        scheduler
    }

    /// The channel and the payload's bytes of the next frame; channel 0 for one that is urgent.
    fn next(scheduler: &mut Scheduler) -> Option<(u32, usize)> {
        let mut out = Vec::new();
        let channel = match scheduler.next_frame(&mut out)? {
            Emitted::Urgent => 0,
            Emitted::Packet { channel, .. } => channel,
        };
        Some((channel, out.len() - 12 - if channel == 0 { 0 } else { 16 }))
    }

    #[test]
    fn more_urgent_frames_go_first_whenever_they_come() {
        let mut scheduler = scheduler(&[Class::Folder, Class::Video, Class::AudioOut, Class::Input]);
        for channel in 1..=4 {
            scheduler.submit(channel, message(10));
        }
        assert_eq!(next(&mut scheduler), Some((4, 10)));
        scheduler.push_credit(4, 1);
        scheduler.push_kick();
        scheduler.push_kick();
        scheduler.push_control(vec![0; 20]);
        scheduler.push_sync(SyncBody { epoch: 1, random: 1, echo: 1 });
        let urgent = [next(&mut scheduler), next(&mut scheduler), next(&mut scheduler), next(&mut scheduler)];
        assert_eq!(urgent, [Some((0, 32)), Some((0, 20)), Some((0, 0)), Some((0, 4))]);
        assert_eq!(next(&mut scheduler), Some((3, 10)));
        scheduler.submit(3, message(11));
        assert_eq!(next(&mut scheduler), Some((3, 11)));
        assert_eq!([next(&mut scheduler), next(&mut scheduler)], [Some((2, 10)), Some((1, 10))]);
        assert_eq!(next(&mut scheduler), None);
    }

    #[test]
    fn bulk_delays_a_key_by_one_frame_at_most() {
        let mut scheduler = scheduler(&[Class::Folder, Class::Usb, Class::Clipboard, Class::Input]);
        for channel in 1..=3 {
            scheduler.submit(channel, message(500_000));
        }
        for _ in 0..20 {
            let (channel, length) = next(&mut scheduler).expect("bulk");
            assert!(channel != 4 && length <= MAX_BULK_PAYLOAD);
            scheduler.submit(4, message(8));
            assert_eq!(next(&mut scheduler), Some((4, 8)), "right after the frame that had begun");
        }
    }

    #[test]
    fn bulk_channels_share_by_weight() {
        let mut scheduler = scheduler(&[Class::Folder, Class::Usb, Class::Heartbeat]);
        let mut bytes = BTreeMap::<u32, usize>::new();
        for _ in 0..700 {
            for channel in 1..=3 {
                if scheduler.is_free(channel) {
                    scheduler.submit(channel, message(30_000));
                }
                scheduler.add_credit(channel, WINDOW);
            }
            let (channel, length) = next(&mut scheduler).expect("there is always something");
            *bytes.entry(channel).or_default() += length;
        }
        let share = |channel| bytes[&channel] as f64 / bytes[&3] as f64;
        assert!((1.8..2.2).contains(&share(1)) && (3.6..4.4).contains(&share(2)), "{bytes:?}");
    }

    #[test]
    fn nobody_sends_more_than_its_credit() {
        let mut scheduler = Scheduler::new();
        scheduler.open(1, Class::Folder, 40_000);
        scheduler.open(2, Class::Usb, 40_000);
        scheduler.submit(1, message(60_000));
        let sent = [next(&mut scheduler), next(&mut scheduler), next(&mut scheduler)];
        assert_eq!(sent, [Some((1, MAX_BULK_PAYLOAD)), Some((1, MAX_BULK_PAYLOAD)), None]);
        assert!(!scheduler.is_taken(1) && scheduler.is_taken(2));
        scheduler.submit(2, message(1));
        assert_eq!(next(&mut scheduler), Some((2, 1)), "others are not held up");
        scheduler.add_credit(1, 32_800);
        assert_eq!(next(&mut scheduler), Some((1, MAX_BULK_PAYLOAD)));
        assert_eq!(next(&mut scheduler), Some((1, 60_000 - 3 * MAX_BULK_PAYLOAD)));
        assert!(scheduler.is_free(1));
    }

    #[test]
    fn packets_wait_while_it_is_held_and_urgent_frames_do_not() {
        let mut scheduler = scheduler(&[Class::Input]);
        scheduler.hold(true);
        scheduler.submit(1, message(1));
        scheduler.push_control(vec![0; 16]);
        assert_eq!([next(&mut scheduler), next(&mut scheduler)], [Some((0, 16)), None]);
        scheduler.hold(false);
        assert_eq!(next(&mut scheduler), Some((1, 1)));
    }

    #[test]
    fn a_closed_channel_leaves_nothing() {
        let mut scheduler = scheduler(&[Class::Input, Class::Folder]);
        scheduler.submit(1, message(1));
        scheduler.push_credit(1, 5);
        scheduler.close(1);
        scheduler.submit(1, message(1));
        assert_eq!(next(&mut scheduler), None);
        assert!(!scheduler.is_free(1) && scheduler.is_free(2));
    }

    #[test]
    fn starting_over_leaves_a_sync_only() {
        let mut scheduler = scheduler(&[Class::Input]);
        scheduler.submit(1, message(1));
        scheduler.push_control(vec![0; 16]);
        scheduler.start_over(Some(SyncBody { epoch: 1, random: 1, echo: 1 }));
        assert_eq!([next(&mut scheduler), next(&mut scheduler)], [Some((0, 32)), None]);
        assert_eq!(scheduler.control_queued(), 0);
    }

    proptest! {
        #[test]
        fn whoever_can_send_does(
            window in MIN_WINDOW..100_000,
            lengths in proptest::collection::vec(0usize..50_000, 1..12),
        ) {
            let classes = [Class::Folder, Class::Usb, Class::Heartbeat, Class::Video];
            let mut scheduler = Scheduler::new();
            let mut left = BTreeMap::new();
            for (channel, length) in (1..).zip(&lengths) {
                scheduler.open(channel, classes[channel as usize % 4], window);
                scheduler.submit(channel, message(*length));
                left.insert(channel, *length);
            }
            while let Some((channel, length)) = next(&mut scheduler) {
                *left.get_mut(&channel).unwrap() -= length;
                // A receiver that takes everything at once.
                scheduler.add_credit(channel, u32::try_from(length + 16).unwrap());
            }
            prop_assert!(left.values().all(|left| *left == 0), "left: {:?}", left);
        }
    }
}
