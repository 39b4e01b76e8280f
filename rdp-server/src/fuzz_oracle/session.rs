//! Oracles for what a client sends once its session is active.

use console::{KeyEvent, PointerEvent, Size};

use crate::channels::display_control;
use crate::channels::dynamic::{DynamicChannels, DynamicEvent, MAX_CLIENT_MESSAGE};
use crate::channels::mcs;
use crate::channels::static_channel::Reassembly;
use crate::channels::touch::GuestTouch;
use crate::connection::{Connection, ConnectionConfig, Event, Farewell};
use crate::input::{self, InputEvent};

/// Most events that one byte of input can stand for: a synchronize event is one byte and gives two.
const EVENTS_PER_BYTE: usize = 2;
const IO_CHANNEL: u16 = 1003;
const DYNAMIC_CHANNEL: u16 = 1007;

/// Input is refused, or gives events that a keyboard and a pointer can have, and not more than its bytes can stand for.
///
/// # Panics
///
/// When it gives others.
pub fn fuzz_input(bytes: &[u8]) {
    let mut events = 0;
    let result = input::decode_fast_path(bytes, |event| {
        check_input(&event);
        events += 1;
    });
    assert!(events <= bytes.len() * EVENTS_PER_BYTE, "{events} events: {result:?}");
}

/// Chunks, each after two bytes with its length: what is put together is never longer than the limit.
///
/// # Panics
///
/// When it is.
pub fn fuzz_static_channel(bytes: &[u8]) {
    const LIMIT: usize = 300;
    let mut channel = Reassembly::new(LIMIT);
    for chunk in Pieces(bytes) {
        match channel.handle_chunk(chunk) {
            Ok(message) => assert!(message.is_none_or(|message| message.len() <= LIMIT), "a message over the limit"),
            Err(_) => return,
        }
    }
}

/// PDUs of DRDYNVC, each after two bytes with its length: only open channels have messages, and none is too long.
///
/// # Panics
///
/// When it is otherwise.
pub fn fuzz_dynamic_channels(bytes: &[u8]) {
    let mut channels = DynamicChannels::new();
    let mut open = Vec::new();
    let mut waiting = vec![channels.open("one").0, channels.open("two").0];
    for pdu in Pieces(bytes) {
        match channels.handle_pdu(pdu) {
            Ok(Some(DynamicEvent::Opened(id))) => {
                assert!(waiting.contains(&id), "a channel opened that was not asked for");
                waiting.retain(|other| *other != id);
                open.push(id);
            }
            Ok(Some(DynamicEvent::Message(id, message))) => {
                assert!(open.contains(&id), "a message on a channel that is not open");
                assert!(message.len() <= MAX_CLIENT_MESSAGE, "a message of {} bytes", message.len());
            }
            Ok(Some(DynamicEvent::Closed(id))) => {
                assert!(open.contains(&id) || waiting.contains(&id), "a channel closed twice");
                open.retain(|other| *other != id);
                waiting.retain(|other| *other != id);
            }
            Ok(Some(DynamicEvent::Ready) | None) => {}
            Err(_) => return,
        }
    }
}

/// A monitor layout is refused, or gives a size that a guest can be asked for.
///
/// # Panics
///
/// When it gives another.
pub fn fuzz_display_control(bytes: &[u8]) {
    if let Ok(Some(size)) = display_control::wanted_size(bytes) {
        let sides = 200..=8192;
        assert!(sides.contains(&size.width) && sides.contains(&size.height), "a wish for {size}");
    }
}

/// Pieces, each after two bytes with its length: the session of a client that sends them goes on or ends.
///
/// The first byte of a piece says how it is sent: as it is, on the channel of share PDUs, as a whole message of
/// DRDYNVC, or (the server's turn) not at all, to have the graphics channel closed, the reactivation started or touch
/// taken.
///
/// # Panics
///
/// When an event is not one that the rest of the program can do something with.
pub fn fuzz_session(bytes: &[u8]) {
    let mut connection = Connection::new(ConnectionConfig {
        io_channel_id: IO_CHANNEL,
        message_channel_id: Some(1005),
        dynamic_channel_id: Some(DYNAMIC_CHANNEL),
        graphics_pipeline: true,
        desktop_size: Size::new(1920, 1080),
    });
    for piece in Pieces(bytes) {
        let Some((kind, body)) = piece.split_first() else { continue };
        let result = match kind % 6 {
            0 => connection.handle_frame(body),
            1 => connection.handle_frame(&send_data(IO_CHANNEL, body)),
            2 => connection.handle_frame(&send_data(DYNAMIC_CHANNEL, &whole_chunk(body))),
            3 => {
                connection.close_graphics();
                Ok(())
            }
            4 => {
                connection.set_reactivating(body.len() % 2 == 0);
                Ok(())
            }
            _ => {
                connection.set_touch((body.len() % 2 == 0).then_some(GuestTouch { max_contacts: 10, pens: true }));
                Ok(())
            }
        };
        while let Some(event) = connection.poll_event() {
            check_event(&event);
        }
        while let Some(pdu) = connection.poll_output() {
            assert!(!pdu.is_empty(), "an empty PDU");
        }
        if result.is_err() {
            connection.disconnect(Farewell::BadClient);
            return;
        }
    }
}

fn check_event(event: &Event) {
    match event {
        Event::Input(input) => check_input(input),
        Event::WantedSize(size) => assert!(!size.is_empty(), "a wish for {size}"),
        Event::Refresh(rect) => {
            assert!(rect.right() <= 1 << 16 && rect.bottom() <= 1 << 16, "a refresh of {rect:?}");
        }
        Event::GraphicsMessage(message) => assert!(message.len() <= MAX_CLIENT_MESSAGE, "{} bytes", message.len()),
        _ => {}
    }
}

fn check_input(event: &InputEvent) {
    match event {
        InputEvent::Key(KeyEvent::Key { scancode, .. }) => {
            assert!((1..=0x7f).contains(&scancode.code), "scancode {:#x}", scancode.code);
        }
        InputEvent::Pointer(PointerEvent::MoveTo { x, y }) => {
            assert!(*x < 1 << 16 && *y < 1 << 16, "a move to {x}, {y}");
        }
        InputEvent::Pointer(PointerEvent::Wheel { units, .. }) => {
            assert!(*units != 0 && units.unsigned_abs() <= 256, "a wheel turned by {units}");
        }
        // What fingers and pens may do has an oracle of its own.
        InputEvent::Key(_) | InputEvent::Pointer(_) | InputEvent::Touch(_) | InputEvent::Pen(_) => {}
    }
}

/// `body` on an MCS channel, as a client sends it.
fn send_data(channel_id: u16, body: &[u8]) -> Vec<u8> {
    let mut pdu = Vec::new();
    mcs::begin_send_data(&mut pdu, channel_id, body.len());
    // Ours are indications; a client's are requests (T.125, section 7, tag 25 instead of 26).
    pdu[7] = 25 << 2;
    pdu.extend_from_slice(body);
    pdu
}

/// `message` as the only chunk of its message.
fn whole_chunk(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes()[..], &3_u32.to_le_bytes(), message].concat()
}

/// The pieces of an input: each after two bytes with its length, the last as long as there are bytes.
pub(super) struct Pieces<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk()?;
        let (piece, rest) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
        self.0 = rest;
        Some(piece)
    }
}
