//! What holds for the messages of all classes.

use proptest::prelude::*;

use super::{
    Class, audio_in, audio_out, clipboard, folder, guest_info, heartbeat, input, memory, shutdown, time_sync, usb,
    video,
};

/// For each kind of message: any that can be reads as it was written, no longer than it says it may be and fits its
/// class; the start of one is refused; bytes behind its end are ignored; any bytes are read without a panic, and what
/// they say is written as it was.
macro_rules! hold {
    ($($test:ident: $class:ident, $messages:ty;)*) => {$(
        mod $test {
            use super::*;

            type Message = $messages;

            const _: () = assert!(Message::MAX_BYTES <= Class::$class.limits().message as usize);

            proptest! {
                #[test]
                fn a_message_reads_as_it_was_written(message in Message::any(), cut in any::<prop::sample::Index>()) {
                    let mut bytes = message.encode();
                    prop_assert!(bytes.len() <= Message::MAX_BYTES);
                    prop_assert_eq!(Message::decode(&bytes), Ok(message.clone()));
                    let start = &bytes[..cut.index(bytes.len())];
                    prop_assert!(Message::decode(start).is_err());
                    bytes.extend([0xff; 9]);
                    prop_assert_eq!(Message::decode(&bytes), Ok(message));
                }

                #[test]
                fn a_broken_message_is_refused_or_read(
                    message in Message::any(),
                    at in any::<prop::sample::Index>(),
                    value in any::<u8>(),
                ) {
                    let mut bytes = message.encode();
                    let at = at.index(bytes.len());
                    bytes[at] = value;
                    match Message::decode(&bytes) {
                        Ok(Message::Unknown(_)) | Err(_) => {}
                        Ok(message) => prop_assert!(bytes.starts_with(&message.encode())),
                    }
                }
            }

            #[test]
            fn a_kind_of_later_is_told_from_nonsense() {
                let later = [0xee, 0x7e, 0xff, 0xff, 1, 2, 3];
                assert_eq!(Message::decode(&later), Ok(Message::Unknown(0x7eee)));
                assert_eq!(Message::Unknown(0x7eee).encode(), [0xee, 0x7e, 0, 0]);
                assert!(Message::decode(&later[..3]).is_err());
            }
        }
    )*};
}

hold! {
    input_to_guest: Input, input::ToGuest;
    input_to_host: Input, input::ToHost;
    video_to_guest: Video, video::ToGuest;
    video_to_host: Video, video::ToHost;
    audio_out_to_guest: AudioOut, audio_out::ToGuest;
    audio_out_to_host: AudioOut, audio_out::ToHost;
    audio_in_to_guest: AudioIn, audio_in::ToGuest;
    audio_in_to_host: AudioIn, audio_in::ToHost;
    clipboard_message: Clipboard, clipboard::Message;
    clipboard_request: Clipboard, clipboard::Request;
    clipboard_response: Clipboard, clipboard::Response;
    folder_to_guest: Folder, folder::ToGuest;
    folder_to_host: Folder, folder::ToHost;
    folder_request: Folder, folder::Request;
    folder_response: Folder, folder::Response;
    usb_to_guest: Usb, usb::ToGuest;
    usb_to_host: Usb, usb::ToHost;
    usb_request: Usb, usb::Request;
    usb_response: Usb, usb::Response;
    heartbeat_to_guest: Heartbeat, heartbeat::ToGuest;
    heartbeat_to_host: Heartbeat, heartbeat::ToHost;
    time_sync_to_guest: TimeSync, time_sync::ToGuest;
    time_sync_to_host: TimeSync, time_sync::ToHost;
    shutdown_to_host: Shutdown, shutdown::ToHost;
    shutdown_request: Shutdown, shutdown::Request;
    shutdown_response: Shutdown, shutdown::Response;
    guest_info_to_guest: GuestInfo, guest_info::ToGuest;
    guest_info_to_host: GuestInfo, guest_info::ToHost;
    guest_info_request: GuestInfo, guest_info::Request;
    guest_info_response: GuestInfo, guest_info::Response;
    memory_to_guest: Memory, memory::ToGuest;
    memory_to_host: Memory, memory::ToHost;
}
