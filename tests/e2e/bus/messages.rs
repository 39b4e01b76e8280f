//! What the hosts of all classes may say: of each class something short, and the longest that there is.

use std::time::Duration;

use anyhow::{Result, ensure};
use console::{FinePoint, PointerButton, Size};
use enhanced_session::class::{
    Class, Data, FileTime, List, Text, audio_in, audio_out, clipboard, folder, guest_info, heartbeat, input, memory,
    shutdown, time_sync, usb, video,
};

use super::host::Said;

/// What the host may say on a channel of that class.
pub(super) fn of(class: Class) -> Result<Vec<Said>> {
    match class {
        Class::Input => of_input(),
        Class::Video => of_video(),
        Class::AudioOut => of_audio_out(),
        Class::AudioIn => of_audio_in(),
        Class::Clipboard => of_clipboard(),
        Class::Folder => of_folder(),
        Class::Usb => of_usb(),
        Class::Heartbeat => Ok(vec![message(heartbeat::ToGuest::Beat { sequence: u64::MAX - 1 }.encode())]),
        Class::TimeSync => of_time_sync(),
        Class::Shutdown => of_shutdown(),
        Class::GuestInfo => of_guest_info(),
        Class::Memory => of_memory(),
    }
}

/// Both ends of a message's class check how long it is.
fn longest(bytes: Vec<u8>, limit: usize) -> Result<Vec<u8>> {
    ensure!(bytes.len() == limit, "a message of {} bytes, where {limit} are possible", bytes.len());
    Ok(bytes)
}

const fn message(bytes: Vec<u8>) -> Said {
    Said::Message(bytes)
}

const fn request(bytes: Vec<u8>) -> Said {
    Said::Request(bytes)
}

/// Bytes that differ from place to place.
fn noise(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

fn of_input() -> Result<Vec<Said>> {
    let at = |place: i32| FinePoint { x: place * 100, y: -place };
    let button = input::Event::Button { button: PointerButton::Back, state: console::KeyState::Pressed };
    let short = input::ToGuest::Events { serial: 1, events: List::from([button]) };
    let moves = (0..).map(|place| input::Event::MoveTo { monitor: 15, position: at(place) });
    let events = List::first(moves.take(input::MAX_EVENTS).collect());
    let long = input::ToGuest::Events { serial: u32::MAX, events };
    Ok(vec![message(short.encode()), message(longest(long.encode(), input::ToGuest::MAX_BYTES)?)])
}

fn of_video() -> Result<Vec<Said>> {
    let hello = video::ToGuest::Hello {
        max_heads: video::HeadCount::clamped(16),
        max_size: Size { width: 16_384, height: 16_384 },
    };
    let edid = video::ToGuest::Edid { head: video::HeadIndex::clamped(15), edid: Data::new(noise(video::MAX_EDID))? };
    Ok(vec![message(hello.encode()), message(longest(edid.encode(), video::ToGuest::MAX_BYTES)?)])
}

fn of_audio_out() -> Result<Vec<Said>> {
    let level = audio_out::ToGuest::Level {
        stream: 1,
        sequence: 2,
        buffered: Duration::from_millis(60),
        dropped: Duration::ZERO,
        underruns: 0,
    };
    let formats = audio_out::ToGuest::Formats { formats: List::first(vec![format(); audio_out::MAX_FORMATS]) };
    Ok(vec![message(level.encode()), message(longest(formats.encode(), audio_out::ToGuest::MAX_BYTES)?)])
}

fn format() -> audio_out::AudioFormat {
    audio_out::AudioFormat {
        sample: audio_out::SampleFormat::F32,
        channels: audio_out::Channels::clamped(8),
        rate: audio_out::Rate::clamped(192_000),
    }
}

fn of_audio_in() -> Result<Vec<Said>> {
    let period = audio_in::ToGuest::Period {
        stream: 7,
        sequence: 0,
        duration: Duration::from_millis(8),
        sound: Data::new(noise(audio_in::MAX_PERIOD))?,
    };
    let stopped = audio_in::ToGuest::Stopped { stream: 7, why: audio_in::StopReason::Gone };
    Ok(vec![message(longest(period.encode(), audio_in::ToGuest::MAX_BYTES)?), message(stopped.encode())])
}

fn of_clipboard() -> Result<Vec<Said>> {
    let empty = clipboard::Message::Offer { serial: 1, seen: 0, formats: List::default() };
    let format = |id| clipboard::Format {
        id,
        name: Text::cut(&"x".repeat(clipboard::MAX_FORMAT_NAME)),
        flags: clipboard::FormatFlags { files: true, secret: true },
        size: Some(u64::MAX),
    };
    let formats = List::first((0..).take(clipboard::MAX_FORMATS).map(format).collect());
    let offer = clipboard::Message::Offer { serial: 2, seen: 1, formats };
    let length = clipboard::PieceLength::clamped(u32::MAX);
    let read = clipboard::Request::ReadFile { serial: 2, format: 3, file: 4, offset: u64::MAX, length };
    Ok(vec![
        message(empty.encode()),
        message(longest(offer.encode(), clipboard::Message::MAX_BYTES)?),
        request(longest(read.encode(), clipboard::Request::MAX_BYTES)?),
    ])
}

fn of_folder() -> Result<Vec<Said>> {
    let share = folder::ToGuest::ShareAdded {
        share: 1,
        root: u64::MAX,
        name: folder::Name::new("é".repeat(127) + "s")?,
        flags: folder::ShareFlags { read_only: true, ..folder::ShareFlags::default() },
    };
    let write = folder::Request::Write { handle: 1, offset: 1 << 40, data: Data::new(noise(folder::MAX_IO))? };
    let space = folder::Request::ReadSpace { node: 1 };
    let gone = folder::ToGuest::ShareRemoved { share: 1 };
    Ok(vec![
        message(longest(share.encode(), folder::ToGuest::MAX_BYTES)?),
        request(longest(write.encode(), folder::Request::MAX_BYTES)?),
        request(space.encode()),
        message(gone.encode()),
    ])
}

fn of_usb() -> Result<Vec<Said>> {
    let configuration = Data::new(noise(usb::MAX_CONFIGURATION))?;
    let attach = usb::ToGuest::Attach {
        device: 3,
        speed: usb::Speed::SuperPlus,
        descriptor: [0x12; usb::DEVICE_DESCRIPTOR],
        configurations: List::first(vec![configuration; usb::MAX_CONFIGURATIONS]),
        name: Text::cut(&"n".repeat(usb::MAX_NAME)),
    };
    let bytes = noise(usb::MAX_TRANSFER);
    let packets: Vec<&[u8]> = bytes.chunks(usb::MAX_TRANSFER / usb::MAX_PACKETS).collect();
    let packets = usb::IsochronousOut::new(&packets)?;
    let submit = usb::Request::Submit {
        device: 3,
        endpoint: usb::Endpoint::clamped(15),
        transfer: usb::Transfer::IsochronousOut { packets },
    };
    let detach = usb::ToGuest::Detach { device: 3, why: usb::DetachReason::Unplugged };
    Ok(vec![
        message(longest(attach.encode(), usb::ToGuest::MAX_BYTES)?),
        request(longest(submit.encode(), usb::Request::MAX_BYTES)?),
        request(usb::Request::Reset { device: 3 }.encode()),
        message(detach.encode()),
    ])
}

fn of_time_sync() -> Result<Vec<Said>> {
    let time = time_sync::ToGuest::Time {
        sequence: 1,
        time: FileTime(133_000_000_000_000_000),
        delay: Duration::from_micros(80),
        action: time_sync::Action::Sample,
        leap: time_sync::Leap::Unknown,
        stratum: 16,
    };
    Ok(vec![message(longest(time.encode(), time_sync::ToGuest::MAX_BYTES)?)])
}

fn of_shutdown() -> Result<Vec<Said>> {
    let down = shutdown::Request::Down {
        action: shutdown::Action::Hibernate,
        force: true,
        timeout: Duration::from_secs(3600),
        message: Text::cut(&"!".repeat(shutdown::MAX_MESSAGE)),
    };
    Ok(vec![request(longest(down.encode(), shutdown::Request::MAX_BYTES)?)])
}

fn of_guest_info() -> Result<Vec<Said>> {
    let set = guest_info::Request::Set {
        pool: guest_info::Pool::External,
        key: Text::cut(&"k".repeat(guest_info::MAX_KEY)),
        value: guest_info::Value::Text { text: Text::cut(&"v".repeat(guest_info::MAX_VALUE)) },
    };
    Ok(vec![
        message(guest_info::ToGuest::Refresh.encode()),
        request(longest(set.encode(), guest_info::Request::MAX_BYTES)?),
        request(guest_info::Request::Enumerate { pool: guest_info::Pool::Auto, index: 0 }.encode()),
    ])
}

fn of_memory() -> Result<Vec<Said>> {
    let wanted = memory::Wanted { swap: true, stalls: true };
    let configure = memory::ToGuest::Configure { interval: memory::IntervalMillis::clamped(60_000), wanted };
    Ok(vec![message(longest(configure.encode(), memory::ToGuest::MAX_BYTES)?)])
}
