//! A peer that does anything, and what an honest end must keep to all the same.
//!
//! A program is a sequence of operations, each a byte and what belongs to it. First the two ends connect in the ordinary
//! way, so that the program finds open channels, on rings and on the stream.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::class::Class;
use crate::control::{
    AgentVersion, Contact, ContactAck, ContactStatus, ControlMessage, ErrorCode, Features, Offer, OfferFlags,
    OfferedRings, Os, Picture, Reason, RegionHint, SurfaceGrant, TransportCode,
};
use crate::endpoint::{ChannelId, Event, Random};
use crate::message::Message;
use crate::packet::{PACKET_HEADER, PacketHeader};
use crate::region::{HeapMemory, SharedMemory as _};
use crate::ring::Producer;
use crate::stream::{Deframer, Frame, SyncBody, Verdict};
use crate::wire::{Malformed, Reader};

/// Bytes of shared memory.
pub(super) const REGION: usize = 1 << 20;
/// Which start of the wild end it is.
pub(super) const EPOCH: u64 = 0xbad;
/// Steps that one operation may lead to.
const MAX_STEPS: usize = 20_000;
/// Bytes that an honest end may say in one step of the program: what it can hold of control messages, and some packets.
const MAX_SAID: usize = 2 << 20;

/// The honest end.
pub(super) trait Victim {
    fn handle_bytes(&mut self, now: Instant, bytes: &[u8]);
    fn handle_timeout(&mut self, now: Instant);
    fn poll_timeout(&self) -> Option<Instant>;
    fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> bool;
    fn poll_event(&mut self) -> Option<Event>;
    fn receive(&mut self, id: ChannelId) -> Option<Message>;
    /// Its owner does something.
    fn act(&mut self, now: Instant, what: Act);
}

/// What an owner does, in small numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Act {
    pub(super) verb: u8,
    pub(super) id: ChannelId,
    pub(super) number: u16,
}

/// The wild end, and what it knows of the honest one.
pub(super) struct Wild<V> {
    pub(super) victim: V,
    pub(super) memory: Arc<HeapMemory>,
    /// Fills a ring that the honest end reads.
    pub(super) producer: Option<Producer<Arc<HeapMemory>>>,
    pub(super) now: Instant,
    deframer: Deframer,
    sync: crate::stream::Sync,
    randoms: u64,
    connected: bool,
    open: BTreeSet<ChannelId>,
    readable: BTreeSet<ChannelId>,
}

impl<V: Victim> Wild<V> {
    pub(super) fn new(victim: V, memory: Arc<HeapMemory>, role: crate::stream::Role, now: Instant) -> Self {
        Self {
            victim,
            memory,
            producer: None,
            now,
            deframer: Deframer::new(),
            sync: crate::stream::Sync::new(role, EPOCH, 1),
            randoms: 1,
            connected: false,
            open: BTreeSet::new(),
            readable: BTreeSet::new(),
        }
    }

    /// Carries a program out, up to the operation that is cut off.
    pub(super) fn run(&mut self, program: &[u8]) {
        let mut program = Reader::new(program);
        while program.remaining() > 0 {
            if self.operate(&mut program).is_err() {
                return;
            }
            self.settle();
        }
    }

    fn operate(&mut self, program: &mut Reader<'_>) -> Result<(), Malformed> {
        match program.u8("operation")? % 12 {
            0 => {
                let length = program.u8("length")?;
                let bytes = program.bytes(length.into(), "bytes")?;
                self.victim.handle_bytes(self.now, bytes);
            }
            1 | 2 => {
                let message = any_message(program)?;
                self.say(&message);
            }
            3 => {
                let (message_type, length) = (program.u8("type")?, program.u8("length")?);
                let mut message = ControlMessage::Unload.encode(1);
                let body = program.bytes(length.into(), "body")?;
                message[..2].copy_from_slice(&u16::from(message_type).to_le_bytes());
                message[4..8].copy_from_slice(&u32::from(length).to_le_bytes());
                message.extend_from_slice(body);
                self.send(&Frame::Control(message));
            }
            4 => {
                let (channel, header, payload) = any_packet(program)?;
                let body = [&header[..], &payload].concat();
                self.send(&Frame::Data { channel, body });
            }
            5 => {
                let (channel, credit) = (program.u8("channel")?, program.u32("credit")?);
                self.send(&Frame::Window { channel: channel.into(), credit });
            }
            6 => self.send(&Frame::Kick),
            7 => self.push(program)?,
            8 => {
                let (place, value) = (program.u16("place")?, program.u32("value")?);
                self.scribble(place, value);
            }
            9 => self.now += Duration::from_millis(u64::from(program.u8("time")?) * 20),
            10 => {
                let act = Act {
                    verb: program.u8("verb")?,
                    id: ChannelId(u32::from(program.u8("channel")?) % 6),
                    number: program.u16("number")?,
                };
                self.victim.act(self.now, act);
            }
            _ => self.look(),
        }
        Ok(())
    }

    pub(super) fn say(&mut self, message: &ControlMessage) {
        self.send(&Frame::Control(message.encode(1)));
    }

    fn send(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.victim.handle_bytes(self.now, &bytes);
    }

    /// Starts over.
    pub(super) fn look(&mut self) {
        self.deframer.look();
        self.randoms += 1;
        let sync = self.sync.look(self.randoms);
        self.send(&Frame::Sync(sync));
    }

    /// Puts a packet on the ring, and kicks or not.
    fn push(&mut self, program: &mut Reader<'_>) -> Result<(), Malformed> {
        let kick = program.u8("kick")?;
        let (channel, header, payload) = any_packet(program)?;
        let Some(producer) = &mut self.producer else { return Ok(()) };
        let payload = payload.get(..producer.max_payload() as usize).unwrap_or(&payload);
        let length = u32::try_from(payload.len()).unwrap_or(0);
        if let Ok(header) = PacketHeader::decode(&header) {
            let _ = producer.push(&PacketHeader { length, ..header }, &[payload]);
        }
        if kick & 1 == 1 {
            let _ = producer.publish();
        }
        if kick & 2 == 2 {
            // The bit itself is set by scribbling; a ping makes the end look at everything.
            self.say(&ControlMessage::Ping { cookie: channel.into() });
        }
        Ok(())
    }

    /// Writes a word anywhere, more often where words mean something.
    fn scribble(&mut self, place: u16, value: u32) {
        let place = usize::from(place);
        let at = match place % 4 {
            // The head: pages and the pending map.
            0 => place / 4 * 4 % 0x4000,
            // The control pages at the front of the arena.
            1 => 0x4000 + place / 4 % 0x20 * 4,
            2 => 0x4000 + 0x1_1000 + place / 4 % 0x20 * 4,
            _ => place * 16 % REGION,
        };
        self.memory.store_u32(at / 4 * 4, value, Relaxed);
        self.say(&ControlMessage::Ping { cookie: 0 });
    }

    /// Lets the honest end do all that it wants to, and watches.
    pub(super) fn settle(&mut self) {
        let mut said = 0;
        for _ in 0..MAX_STEPS {
            let mut busy = self.time_out();
            let mut out = Vec::new();
            busy |= self.victim.poll_transmit(self.now, &mut out);
            said += out.len();
            assert!(said <= MAX_SAID, "an end that says {said} bytes at once");
            self.hear(&out);
            while let Some(event) = self.victim.poll_event() {
                self.watch(&event);
                busy = true;
            }
            busy |= self.receive();
            if !busy {
                return;
            }
        }
        panic!("an end that comes to no rest");
    }

    fn time_out(&mut self) -> bool {
        let due = self.victim.poll_timeout().is_some_and(|timeout| timeout <= self.now);
        if due {
            self.victim.handle_timeout(self.now);
        }
        due
    }

    /// Takes what can be read.
    fn receive(&mut self) -> bool {
        let Some(id) = self.readable.pop_first() else { return false };
        let limit = Class::ALL.iter().map(|class| class.limits().message).max().unwrap_or(0);
        for _ in 0..MAX_STEPS {
            let payload = match self.victim.receive(id) {
                None => return true,
                Some(Message::Data(payload) | Message::Request(_, payload) | Message::Completion(_, payload)) => {
                    payload
                }
                Some(Message::Fin | Message::Reset) => Vec::new(),
            };
            assert!(payload.len() as u64 <= u64::from(limit), "a message of {} bytes", payload.len());
        }
        panic!("a channel that never ends");
    }

    /// Reads what the honest end says: it keeps in step, and finds the wild one as it should.
    fn hear(&mut self, mut bytes: &[u8]) {
        loop {
            let frame = self.deframer.next_frame(&mut bytes).expect("an honest end sends frames");
            let Some(frame) = frame else { return };
            match frame {
                Frame::Sync(body) => self.answer(body),
                Frame::Control(message) => {
                    ControlMessage::decode(&message).expect("an honest end sends messages");
                }
                Frame::Data { body, .. } => {
                    let header = Reader::new(&body).array::<PACKET_HEADER>("header").expect("a header");
                    PacketHeader::decode(&header).expect("an honest end sends packets");
                }
                Frame::Window { .. } | Frame::Kick => {}
            }
        }
    }

    fn answer(&mut self, body: SyncBody) {
        let fresh = body.random.rotate_left(1);
        let answer = match self.sync.handle(body, fresh) {
            Verdict::Same { answer } => answer,
            Verdict::InStep { answer } => {
                self.deframer.enter_step();
                answer
            }
            Verdict::Lost { answer, .. } => {
                self.deframer.look();
                Some(answer)
            }
        };
        if let Some(answer) = answer {
            self.send(&Frame::Sync(answer));
        }
    }

    /// What happens, happens in order.
    fn watch(&mut self, event: &Event) {
        match event {
            Event::Connected(_) => {
                assert!(!self.connected, "connected twice");
                self.connected = true;
            }
            Event::Disconnected(_) => {
                assert!(self.open.is_empty(), "channels without a connection");
                self.connected = false;
                self.readable.clear();
            }
            Event::Opened { id, .. } => {
                assert!(self.connected && self.open.insert(*id), "{id} is open already, or nobody is there");
            }
            Event::Closed { id, .. } => {
                self.open.remove(id);
                self.readable.remove(id);
            }
            Event::Readable(id) => {
                assert!(self.open.contains(id), "{id} is not open");
                self.readable.insert(*id);
            }
            Event::Writable(id) => assert!(self.open.contains(id), "{id} is not open"),
            _ => {}
        }
    }
}

/// Numbers that are the same each time.
pub(super) fn random() -> Random {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    Box::new(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
}

/// A packet that is more often right than not.
fn any_packet(program: &mut Reader<'_>) -> Result<(u32, [u8; PACKET_HEADER], Vec<u8>), Malformed> {
    let (channel, packet_type, flags) = (program.u8("channel")?, program.u8("type")?, program.u8("flags")?);
    // As long as a frame can be.
    let (txid, length) = (program.u8("txid")?, program.u16("length")?.min(65_520));
    let mut header = [0; PACKET_HEADER];
    header[..4].copy_from_slice(&u32::from(length).to_le_bytes());
    header[4] = packet_type % 8;
    header[6] = if flags < 128 { 3 } else { flags % 5 };
    header[8] = if matches!(header[4], 2 | 3) { txid } else { 0 };
    Ok((u32::from(channel) % 6, header, vec![flags; length.into()]))
}

/// A message with small numbers, most of which mean something.
fn any_message(program: &mut Reader<'_>) -> Result<ControlMessage, Malformed> {
    let message_type = program.u8("type")? % 26;
    let channel = u32::from(program.u8("channel")?) % 6;
    let (number, large) = (program.u8("number")?, program.u32("large")?);
    let small = u32::from(number);
    let open_id = small % 5 + 1;
    let reason = Reason::from_wire(number.into());
    let status = if number < 128 { Ok(()) } else { Err(ErrorCode::from_wire(small)) };
    Ok(match message_type {
        1 => ControlMessage::Contact(contact(number.into())),
        2 => ControlMessage::ContactAck(contact_ack(ContactStatus::from_wire(number.into()), large)),
        3 => ControlMessage::RequestOffers,
        4 => ControlMessage::Offer(any_offer(channel, number, large)),
        5 => ControlMessage::OffersDone { count: small },
        6 => {
            let transport = TransportCode::from_wire(if number & 1 == 1 { 1 } else { 3 });
            ControlMessage::Open { channel, open_id, transport, class_minor: number.into() }
        }
        7 => ControlMessage::OpenResult { channel, open_id, status },
        8 => ControlMessage::Close { channel, open_id, reason },
        9 => ControlMessage::Closed { channel, open_id },
        10 => ControlMessage::Rescind { channel, reason },
        11 => ControlMessage::Released { channel },
        12 => ControlMessage::Unload,
        13 => ControlMessage::Unloaded,
        14 => ControlMessage::Ping { cookie: large.into() },
        15 => ControlMessage::Pong { cookie: large.into() },
        16 => ControlMessage::Subchannel { channel, count: number.into() },
        17 => ControlMessage::SurfaceGrant(SurfaceGrant {
            channel,
            surface: small % 4,
            offset: u64::from(large) % (2 * REGION as u64),
            length: 4096 * u64::from(number),
            picture: Picture { fourcc: 1, stride: 64, width: 16, height: small },
        }),
        18 => ControlMessage::SurfaceRevoke { channel, surface: small % 4 },
        19 => ControlMessage::SurfaceRevoked { channel, surface: small % 4 },
        20 => ControlMessage::Error { code: ErrorCode::from_wire(small), ref_txid: 1, text: "?".repeat(number.into()) },
        21 => ControlMessage::Pause,
        22 => ControlMessage::Resume,
        23 => ControlMessage::Paused,
        24 => ControlMessage::Attach { region_nonce: large.into(), guest_nonce: number.into() },
        25 => ControlMessage::AttachResult { status },
        _ => ControlMessage::Ping { cookie: 0 },
    })
}

pub(super) fn contact(minor: u16) -> Contact {
    Contact {
        major: 1,
        minor,
        features: Features::ALL,
        guest_epoch: EPOCH,
        os: Os::Linux,
        agent_version: AgentVersion(1, 2, 3),
        name: "wild".into(),
    }
}

pub(super) fn contact_ack(status: ContactStatus, window: u32) -> ContactAck {
    let region = Some(RegionHint { nonce: NONCE, size: REGION as u64, pci_slot: None });
    ContactAck { status, minor: 0, features: Features::ALL, host_epoch: EPOCH, window, region }
}

/// Of the shared memory, where the wild end is the host.
pub(super) const NONCE: u64 = 0x5eed;

fn any_offer(channel: u32, number: u8, large: u32) -> Offer {
    let class = Class::ALL[usize::from(number) % Class::ALL.len()];
    let rings = OfferedRings {
        h2g_offset: 0x4000 + u64::from(large % 64) * 4096,
        g2h_offset: 0x4000 + u64::from(large / 64 % 64) * 4096,
        h2g_size: 4096 << (large / 4096 % 4),
        g2h_size: 4096,
        max_payload: 1008,
    };
    Offer { rings: (number & 1 == 1).then_some(rings), ..offer(channel, class) }
}

pub(super) fn offer(channel: u32, class: Class) -> Offer {
    Offer {
        channel,
        class: class.guid(),
        instance: class.instance(Uuid::nil(), 0),
        flags: OfferFlags::SURFACES,
        sub_index: 0,
        class_major: 1,
        class_minor: 0,
        rings: None,
        surface_offset: 0,
        surface_size: 0,
    }
}
