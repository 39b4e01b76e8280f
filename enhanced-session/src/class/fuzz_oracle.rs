//! Oracle of the fuzz target `bus_classes`: takes any bytes and panics only when an invariant is broken.

use super::folder::Attributes;
use super::usb::Transfer;
use super::{
    audio_in, audio_out, clipboard, folder, guest_info, heartbeat, input, memory, shutdown, time_sync, usb, video,
};

/// The first byte chooses a kind of message, the others are one. What can be read is written as it was read, is no
/// longer than its kind may be, and can be used.
///
/// # Panics
///
/// When it is not.
pub fn fuzz_bus_classes(bytes: &[u8]) {
    if let Some((choice, message)) = bytes.split_first()
        && let Some(read) = KINDS.get(usize::from(*choice))
    {
        read(message);
    }
}

/// For each kind of message a function that reads one, and what else is done with it.
macro_rules! kinds {
    ($($messages:ty, $use_it:expr;)*) => {
        const KINDS: &[fn(&[u8])] = &[$(|bytes| {
            type Message = $messages;
            match Message::decode(bytes) {
                Ok(Message::Unknown(kind)) => assert!(bytes.starts_with(&kind.to_le_bytes()), "another kind"),
                Ok(message) => {
                    let written = message.encode();
                    assert!(bytes.starts_with(&written), "not written as it was read");
                    assert!(written.len() <= Message::MAX_BYTES, "longer than it may be");
                    let use_it: fn(&Message) = $use_it;
                    use_it(&message);
                }
                Err(_) => {}
            }
        }),*];
    };
}

kinds! {
    input::ToGuest, use_input;
    input::ToHost, |_| {};
    video::ToGuest, |_| {};
    video::ToHost, use_picture;
    audio_out::ToGuest, |_| {};
    audio_out::ToHost, |_| {};
    audio_in::ToGuest, |_| {};
    audio_in::ToHost, |_| {};
    clipboard::Message, |_| {};
    clipboard::Request, |_| {};
    clipboard::Response, use_files;
    folder::ToGuest, |_| {};
    folder::ToHost, |_| {};
    folder::Request, |_| {};
    folder::Response, use_attributes;
    usb::ToGuest, |_| {};
    usb::ToHost, |_| {};
    usb::Request, use_transfer;
    usb::Response, |_| {};
    heartbeat::ToGuest, |_| {};
    heartbeat::ToHost, |_| {};
    time_sync::ToGuest, |_| {};
    time_sync::ToHost, |_| {};
    shutdown::ToHost, |_| {};
    shutdown::Request, |_| {};
    shutdown::Response, |_| {};
    guest_info::ToGuest, |_| {};
    guest_info::ToHost, |_| {};
    guest_info::Request, |_| {};
    guest_info::Response, |_| {};
    memory::ToGuest, |_| {};
    memory::ToHost, |_| {};
}

fn use_input(message: &input::ToGuest) {
    if let input::ToGuest::Events { events, .. } = message {
        for event in events.iter() {
            assert!(event.key_event().is_some() != event.pointer_event().is_some(), "keyboard or pointer");
        }
    }
}

fn use_picture(message: &video::ToHost) {
    match message {
        video::ToHost::Tile { tile, .. } => {
            let bytes = u64::try_from(tile.pixels().len()).unwrap_or(u64::MAX);
            assert_eq!(bytes, tile.rect().area() * 4, "other pixels than the tile has");
        }
        video::ToHost::CursorShape { cursor: Some(cursor) } => {
            let shape = cursor.shape();
            assert!(shape.hotspot.x < shape.size.width && shape.hotspot.y < shape.size.height, "points elsewhere");
        }
        _ => {}
    }
}

fn use_files(message: &clipboard::Response) {
    if let clipboard::Response::Files { files, .. } = message {
        for file in files.iter() {
            let leads_down = file.path.names().all(|name| !matches!(name, "" | "." | "..") && !name.contains('\\'));
            assert!(leads_down, "a path that leads elsewhere");
            let _ = file.modified.and_then(super::FileTime::system_time);
        }
    }
}

fn use_attributes(message: &folder::Response) {
    if let folder::Response::Attributes { attributes: Attributes { modified, accessed, created, .. }, .. } = message {
        for time in [modified, accessed, created] {
            let _ = time.system_time();
        }
    }
}

fn use_transfer(message: &usb::Request) {
    if let usb::Request::Submit { transfer, .. } = message {
        assert!(transfer.admits(&usb::Completion::failed(usb::Status::Gone)), "cannot fail");
        if let Transfer::IsochronousOut { packets } = transfer {
            let bytes: usize = packets.packets().map(<[u8]>::len).sum();
            assert!(bytes <= usb::MAX_TRANSFER, "more than a transfer may have");
        }
    }
}
