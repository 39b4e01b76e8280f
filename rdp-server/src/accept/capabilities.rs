//! The capability sets that the server announces in its Demand Active PDU (MS-RDPBCGR 2.2.1.13.1).

use console::Size;
use ironrdp_pdu::rdp::capability_sets::{
    Bitmap, BitmapCodecs, BitmapDrawingFlags, CapabilitySet, CmdFlags, Codec, CodecProperty, FrameAcknowledge, General,
    GeneralExtraFlags, Input, InputFlags, LargePointer, LargePointerSupportFlags, MultifragmentUpdate, Order,
    OrderFlags, OrderSupportExFlags, Pointer, RemoteFxContainer, SERVER_CHANNEL_ID, SurfaceCommands, VirtualChannel,
    VirtualChannelFlags,
};

/// Pointers that a client may keep: more than any of them keeps, so that its own limit counts.
const POINTER_CACHE: u16 = 128;
/// Bytes of a static channel's chunk, the protocol's own default (MS-RDPBCGR 2.2.7.1.10).
const CHANNEL_CHUNK_BYTES: u32 = 1600;
/// Longest fast-path update that we take apart into fragments: a full RemoteFX frame at 4K.
const MAX_FRAGMENTED_UPDATE_BYTES: u32 = 8 * 1024 * 1024;
/// Frames outside the graphics pipeline that may be in flight: one is drawn while the next is on its way.
const SURFACE_FRAMES_IN_FLIGHT: u32 = 2;

/// All capability sets, for a desktop of this size and depth in bits per pixel.
#[must_use]
pub fn capabilities(desktop: Size, color_depth: u8) -> Vec<CapabilitySet> {
    vec![
        CapabilitySet::General(general()),
        CapabilitySet::Bitmap(bitmap(desktop, color_depth)),
        CapabilitySet::Order(order()),
        CapabilitySet::Pointer(Pointer { color_pointer_cache_size: POINTER_CACHE, pointer_cache_size: POINTER_CACHE }),
        CapabilitySet::Input(input()),
        CapabilitySet::VirtualChannel(VirtualChannel {
            flags: VirtualChannelFlags::NO_COMPRESSION,
            chunk_size: Some(CHANNEL_CHUNK_BYTES),
        }),
        CapabilitySet::Share(share()),
        CapabilitySet::MultiFragmentUpdate(MultifragmentUpdate { max_request_size: MAX_FRAGMENTED_UPDATE_BYTES }),
        CapabilitySet::LargePointer(LargePointer {
            flags: LargePointerSupportFlags::UP_TO_96X96_PIXELS | LargePointerSupportFlags::UP_TO_384X384_PIXELS,
        }),
        CapabilitySet::SurfaceCommands(SurfaceCommands {
            flags: CmdFlags::SET_SURFACE_BITS | CmdFlags::STREAM_SURFACE_BITS | CmdFlags::FRAME_MARKER,
        }),
        CapabilitySet::BitmapCodecs(remote_fx()),
        CapabilitySet::FrameAcknowledge(FrameAcknowledge { max_unacknowledged_frame_count: SURFACE_FRAMES_IN_FLIGHT }),
    ]
}

fn general() -> General {
    General {
        extra_flags: GeneralExtraFlags::FASTPATH_OUTPUT_SUPPORTED
            | GeneralExtraFlags::NO_BITMAP_COMPRESSION_HDR
            | GeneralExtraFlags::LONG_CREDENTIALS_SUPPORTED,
        refresh_rect_support: true,
        suppress_output_support: true,
        ..General::default()
    }
}

fn bitmap(desktop: Size, color_depth: u8) -> Bitmap {
    let side = |pixels| u16::try_from(pixels).unwrap_or(u16::MAX);
    Bitmap {
        pref_bits_per_pix: u16::from(color_depth),
        desktop_width: side(desktop.width),
        desktop_height: side(desktop.height),
        desktop_resize_flag: true,
        drawing_flags: BitmapDrawingFlags::ALLOW_SKIP_ALPHA,
    }
}

/// The flags that MS-RDPBCGR 2.2.7.1.3 demands, and no drawing orders.
fn order() -> Order {
    let flags = OrderFlags::NEGOTIATE_ORDER_SUPPORT | OrderFlags::ZERO_BOUNDS_DELTAS_SUPPORT;
    Order::new(flags, OrderSupportExFlags::empty(), 0, 0)
}

fn input() -> Input {
    Input {
        input_flags: InputFlags::SCANCODES
            | InputFlags::MOUSEX
            | InputFlags::UNICODE
            | InputFlags::FASTPATH_INPUT
            | InputFlags::FASTPATH_INPUT_2
            | InputFlags::TS_MOUSE_HWHEEL
            | InputFlags::MOUSE_RELATIVE,
        keyboard_layout: 0,
        keyboard_type: None,
        keyboard_subtype: 0,
        keyboard_function_key: 0,
        keyboard_ime_filename: String::new(),
    }
}

/// MS-RDPBCGR 2.2.7.2.4 Share Capability Set: the server's node id and padding.
fn share() -> Vec<u8> {
    let [low, high] = SERVER_CHANNEL_ID.to_le_bytes();
    vec![low, high, 0, 0]
}

/// RemoteFX as video and image codec. Clients give the codecs their ids.
fn remote_fx() -> BitmapCodecs {
    let server = || RemoteFxContainer::ServerContainer(1);
    BitmapCodecs(vec![
        Codec { id: 0, property: CodecProperty::RemoteFx(server()) },
        Codec { id: 0, property: CodecProperty::ImageRemoteFx(server()) },
    ])
}

#[cfg(test)]
mod tests {
    use ironrdp_core::{decode, encode_vec};
    use ironrdp_pdu::rdp::capability_sets::DemandActive;

    use super::*;

    #[test]
    fn all_of_it_encodes_and_comes_back() {
        let sets = capabilities(Size::new(1920, 1080), 32);
        let sent = DemandActive { source_descriptor: "RDP".to_owned(), capability_sets: sets };
        let received: DemandActive = decode(&encode_vec(&sent).unwrap()).unwrap();
        assert_eq!(received, sent);
    }
}
