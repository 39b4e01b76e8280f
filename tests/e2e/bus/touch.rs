//! Ten fingers of a client, as a program reads them from the guest's device: every number of every frame.

use std::io::{BufReader, Read as _};
use std::net::TcpStream;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fanlight_tests::client::SEEN;
use fanlight_tests::headless::touch::pdu::{RdpeiPdu, TouchContact, TouchContactFlags, TouchEventPdu, TouchFrame};
use fanlight_tests::headless::{Client, run};
use fanlight_tests::shell::Port;

use super::{FINGERS, SIZE, has_address, headless};
use crate::harness::journeys;
use crate::world::{Desk, World};

journeys![ten_fingers_over_the_rings_are_felt_as_they_are, ten_fingers_over_the_stream_are_felt_as_they_are];

/// Frames of one message: a guest's kernel keeps more events than they are for a program that is slow to read.
const AT_ONCE: usize = 6;
/// One more than the highest place on an axis of the guest's device, and than the hardest touch.
const AXIS: i32 = 0x1_0000;
/// The hardest touch of a client (MS-RDPEI 2.2.3.3.1.1).
const HARDEST: u32 = 1024;

fn ten_fingers_over_the_rings_are_felt_as_they_are(world: &World) -> Result<()> {
    world.on_rings(|desk| are_felt_as_they_are(desk, "ring"))
}

fn ten_fingers_over_the_stream_are_felt_as_they_are(world: &World) -> Result<()> {
    world.on_stream(|desk| are_felt_as_they_are(desk, "stream"))
}

fn are_felt_as_they_are(desk: &Desk<'_>, transport: &str) -> Result<()> {
    desk.guest.wait_for_info("an address", has_address)?;
    run(async {
        let mut client = connect(desk).await?;
        let felt = feel(&mut client).await?;
        let frames = frames();
        let mut device = Device::default();
        for some in frames.chunks(AT_ONCE) {
            let told = some.iter().map(|frame| TouchFrame::new(0, frame.iter().map(Finger::told).collect()));
            client.touch(&RdpeiPdu::Touch(TouchEventPdu::new(0, told.collect()))).await?;
            for frame in some {
                let seen = next_report(&mut client, &felt).await.with_context(|| format!("of {frame:?}"))?;
                let expected = device.report(frame);
                ensure!(seen == expected, "{frame:?} is felt as\n{seen:?}\ninstead of\n{expected:?}");
            }
        }
        ensure!(device.is_untouched(), "the frames do not end with all fingers up");
        let bus = desk.guest.bus()?;
        ensure!(bus.transports() == [transport] && bus.faults() == 0, "they came over {bus:?}");
        // There is nothing more to feel.
        client.during(Duration::from_millis(300)).await?;
        ensure!(felt.try_recv() == Err(TryRecvError::Empty), "something is felt that nobody did");
        Ok(())
    })
}

/// What a finger does at one moment.
#[derive(Debug, Clone, Copy)]
struct Finger {
    id: u8,
    what: What,
    /// In pixels.
    place: (i32, i32),
    /// In 1/1024.
    pressure: u32,
    /// In pixels, before it is turned.
    size: (i16, i16),
    /// In degrees, counter-clockwise.
    turned: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Down,
    Move,
    Up,
}

/// All fingers come down, move, are turned and pressed; some leave and come back, some are not told of while they do
/// nothing; and all go up at once.
fn frames() -> Vec<Vec<Finger>> {
    let all = 0..FINGERS;
    let but = |gone: &'static [u8]| all.clone().filter(move |id| !gone.contains(id));
    let mut frames = vec![fingers(all.clone(), What::Down, 0)];
    frames.extend((1..=8).map(|moment| fingers(all.clone(), What::Move, moment)));
    frames.push([fingers(but(&[3, 7]), What::Move, 9), fingers([3, 7], What::Up, 8)].concat());
    frames.push(fingers(but(&[3, 7]), What::Move, 10));
    // They take each other's slots.
    frames.push([fingers([7], What::Down, 11), fingers(but(&[3, 7]), What::Move, 11)].concat());
    frames.push([fingers(but(&[3]), What::Move, 12), fingers([3], What::Down, 12)].concat());
    frames.extend((13..=20).map(|moment| {
        let moved = all.clone().filter(|id| u32::from(*id) % 2 == moment % 2);
        fingers(moved, What::Move, moment)
    }));
    // The one that is down longest leaves.
    frames.push([fingers([0], What::Up, 20), fingers(but(&[0]), What::Move, 21)].concat());
    frames.push(fingers(but(&[0]), What::Up, 21));
    frames
}

fn fingers(ids: impl IntoIterator<Item = u8>, what: What, moment: u32) -> Vec<Finger> {
    ids.into_iter().map(|id| Finger::at(id, what, moment)).collect()
}

impl Finger {
    fn at(id: u8, what: What, moment: u32) -> Self {
        let (n, t) = (i32::from(id), i32::try_from(moment).unwrap_or(0));
        let side = i16::from(id) + 9;
        Self {
            id,
            what,
            place: (60 + 120 * n + 3 * t, 720 - 60 * n - 6 * t),
            pressure: (u32::from(id) * 97 + moment * 31) % (HARDEST + 1),
            size: if id.is_multiple_of(2) { (side, 2 * side) } else { (2 * side, side) },
            turned: (u32::from(id) * 36 + moment * 11) % 360,
        }
    }

    /// As the client says it.
    fn told(&self) -> TouchContact {
        let flags = match self.what {
            What::Down => TouchContactFlags::DOWN | TouchContactFlags::INRANGE | TouchContactFlags::INCONTACT,
            What::Move => TouchContactFlags::UPDATE | TouchContactFlags::INRANGE | TouchContactFlags::INCONTACT,
            What::Up => TouchContactFlags::UP,
        };
        let ((x, y), (width, height)) = (self.place, self.size);
        TouchContact::new(self.id, x, y, flags)
            .with_pressure(self.pressure)
            .with_contact_rect(-width / 2, -height / 2, width - width / 2, height - height / 2)
            .with_orientation(self.turned)
    }

    /// As Linux' multi-touch protocol says it (Documentation/input/multi-touch-protocol.rst): code and value.
    fn felt(&self) -> [(u16, i32); 6] {
        let (width, height) = (i32::from(SIZE.0), i32::from(SIZE.1));
        let (across, along) = (i32::from(self.size.0) * AXIS / width, i32::from(self.size.1) * AXIS / height);
        let clockwise = -i32::try_from(self.turned).unwrap_or(0);
        // A touch is in the middle of its pixel.
        let middle = |pixel: i32| (2 * pixel + 1) * (AXIS / 2);
        // How far the longer axis is turned away from upright.
        let turned = (if across > along { clockwise + 90 } else { clockwise }).rem_euclid(180);
        let pressure = u64::from(self.pressure) * u64::from(u16::MAX) / u64::from(HARDEST);
        [
            (abs::MT_X, middle(self.place.0) / width),
            (abs::MT_Y, middle(self.place.1) / height),
            (abs::MT_PRESSURE, i32::try_from(pressure).unwrap_or(i32::MAX)),
            (abs::MT_MAJOR, across.max(along)),
            (abs::MT_MINOR, across.min(along)),
            (abs::MT_ORIENTATION, if turned > 90 { turned - 180 } else { turned }),
        ]
    }
}

/// Type, code and value of an event (input-event-codes.h).
type Event = (u16, u16, i32);

const SYN: u16 = 0;
const KEY: u16 = 1;
const ABS: u16 = 3;
const SYN_REPORT: Event = (SYN, 0, 0);
const BTN_TOUCH: u16 = 0x14a;

mod abs {
    pub(super) const X: u16 = 0x00;
    pub(super) const Y: u16 = 0x01;
    pub(super) const MT_SLOT: u16 = 0x2f;
    pub(super) const MT_MAJOR: u16 = 0x30;
    pub(super) const MT_MINOR: u16 = 0x31;
    pub(super) const MT_ORIENTATION: u16 = 0x34;
    pub(super) const MT_X: u16 = 0x35;
    pub(super) const MT_Y: u16 = 0x36;
    pub(super) const MT_TRACKING_ID: u16 = 0x39;
    pub(super) const MT_PRESSURE: u16 = 0x3a;
}

/// The guest's touch screen: what it must say. A kernel leaves out what has not changed.
#[derive(Default)]
struct Device {
    slots: Vec<Slot>,
    current: usize,
    next_tracking_id: i32,
    /// Where a program that knows one finger sees it.
    single: [i32; 2],
}

#[derive(Default)]
struct Slot {
    /// The finger, and its number since the device was made.
    finger: Option<(u8, i32)>,
    /// What was said last, of this finger or another.
    values: [i32; 6],
}

impl Device {
    fn is_untouched(&self) -> bool {
        self.slots.iter().all(|slot| slot.finger.is_none())
    }

    /// All that it says for a frame.
    fn report(&mut self, frame: &[Finger]) -> Vec<Event> {
        let was_untouched = self.is_untouched();
        let mut report = Vec::new();
        for finger in frame {
            self.report_finger(finger, &mut report);
        }
        if was_untouched != self.is_untouched() {
            report.push((KEY, BTN_TOUCH, i32::from(was_untouched)));
        }
        let fingers = self.slots.iter().filter_map(|slot| Some((slot.finger?.1, slot.values)));
        if let Some((_, [x, y, ..])) = fingers.min_by_key(|(tracking_id, _)| *tracking_id) {
            for ((code, value), before) in [(abs::X, x), (abs::Y, y)].into_iter().zip(&mut self.single) {
                if std::mem::replace(before, value) != value {
                    report.push((ABS, code, value));
                }
            }
        }
        report.push(SYN_REPORT);
        report
    }

    fn report_finger(&mut self, finger: &Finger, report: &mut Vec<Event>) {
        let number = self.slot_of(finger);
        let slot = &mut self.slots[number];
        let mut said = Vec::new();
        match finger.what {
            What::Down => {
                slot.finger = Some((finger.id, self.next_tracking_id));
                said.push((ABS, abs::MT_TRACKING_ID, self.next_tracking_id));
                self.next_tracking_id += 1;
            }
            What::Move => {}
            What::Up => {
                slot.finger = None;
                said.push((ABS, abs::MT_TRACKING_ID, -1));
            }
        }
        if finger.what != What::Up {
            for ((code, value), before) in finger.felt().into_iter().zip(&mut slot.values) {
                if std::mem::replace(before, value) != value {
                    said.push((ABS, code, value));
                }
            }
        }
        if !said.is_empty() && std::mem::replace(&mut self.current, number) != number {
            report.push((ABS, abs::MT_SLOT, i32::try_from(number).unwrap_or(i32::MAX)));
        }
        report.append(&mut said);
    }

    /// The slot that it has, or the first free one.
    fn slot_of(&mut self, finger: &Finger) -> usize {
        let its = |slot: &Slot| slot.finger.is_some_and(|(id, _)| id == finger.id);
        let free = |slot: &Slot| slot.finger.is_none();
        self.slots.iter().position(its).or_else(|| self.slots.iter().position(free)).unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        })
    }
}

async fn connect(desk: &Desk<'_>) -> Result<Client> {
    let mut client = Client::connect(&headless(desk)).await?;
    client.wait_for_touch("touch channel", |state| state.server.is_some() && !state.suspended).await?;
    desk.guest.wait_for_size(SIZE.0.into(), SIZE.1.into())?;
    Ok(client)
}

/// Has the guest send what its touch screen says, report by report.
async fn feel(client: &mut Client) -> Result<Receiver<Vec<Event>>> {
    let port = Port::open()?;
    let find = "d=$(grep -lx 'Fanlight touch screen' /sys/class/input/event*/device/name); d=${d#/sys/class/input/}";
    client.type_text(&format!("{find}; ({} </dev/input/${{d%%/*}} 2>/dev/null &)\n", port.command()?)).await?;
    let accepting = thread::spawn(move || port.accept());
    while !accepting.is_finished() {
        client.during(Duration::from_millis(20)).await?;
    }
    let mut stream = BufReader::new(accepting.join().ok().context("a panic")??);
    let (reports, felt) = mpsc::channel();
    thread::spawn(move || {
        // It ends with the guest's program, or with the test.
        while let Ok(report) = read_report(&mut stream) {
            if reports.send(report).is_err() {
                break;
            }
        }
    });
    Ok(felt)
}

/// What a device says at one moment.
fn read_report(stream: &mut BufReader<TcpStream>) -> Result<Vec<Event>> {
    let mut report = Vec::new();
    while report.last() != Some(&SYN_REPORT) {
        // As a system of 64 bits has it: 16 bytes of time first.
        let mut event = [0; 24];
        stream.read_exact(&mut event)?;
        let [.., t0, t1, c0, c1, v0, v1, v2, v3] = event;
        let (kind, code) = (u16::from_le_bytes([t0, t1]), u16::from_le_bytes([c0, c1]));
        report.push((kind, code, i32::from_le_bytes([v0, v1, v2, v3])));
    }
    Ok(report)
}

async fn next_report(client: &mut Client, felt: &Receiver<Vec<Event>>) -> Result<Vec<Event>> {
    let deadline = Instant::now() + SEEN;
    loop {
        match felt.try_recv() {
            Ok(report) => return Ok(report),
            Err(TryRecvError::Disconnected) => bail!("the guest sends no more"),
            Err(TryRecvError::Empty) => ensure!(Instant::now() < deadline, "nothing is felt"),
        }
        client.during(Duration::from_millis(5)).await?;
    }
}
