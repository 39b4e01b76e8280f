//! Reads what the acceptor reads and forgets: the client's name, wishes and channels.

use console::Size;
use ironrdp_core::decode;
use ironrdp_pdu::gcc::{ClientColorDepth, ClientCoreData, ClientGccBlocks};
use ironrdp_pdu::mcs::ConnectInitial;
use ironrdp_pdu::nego::SecurityProtocol;
use ironrdp_pdu::x224::{X224, X224Data};

use super::handshake::ClientData;

/// Smallest and largest side of a desktop that the protocol allows (MS-RDPBCGR 2.2.1.3.2).
const DESKTOP_SIDE: std::ops::RangeInclusive<u32> = 200..=8192;

/// What a Connect Initial PDU says.
#[derive(Debug)]
pub(super) struct ConnectData {
    pub(super) client: ClientData,
    /// The static channels, in the client's order.
    pub(super) channels: Vec<String>,
    pub(super) wants_message_channel: bool,
    /// The protocol the client believes was selected; old clients do not say.
    pub(super) selected: Option<SecurityProtocol>,
}

/// Reads an MCS Connect Initial PDU (MS-RDPBCGR 2.2.1.3) in its TPKT.
pub(super) fn read_connect(pdu: &[u8]) -> Result<ConnectData, String> {
    let X224(data) = decode::<X224<X224Data<'_>>>(pdu).map_err(|error| error.to_string())?;
    let initial: ConnectInitial = decode(&data.data).map_err(|error| error.to_string())?;
    Ok(read_blocks(initial.conference_create_request.gcc_blocks()))
}

fn read_blocks(blocks: &ClientGccBlocks) -> ConnectData {
    let name = |channel: &ironrdp_pdu::gcc::ChannelDef| channel.name.as_str().unwrap_or_default().to_owned();
    ConnectData {
        client: read_core(blocks),
        channels: blocks.network.as_ref().map_or_else(Vec::new, |net| net.channels.iter().map(name).collect()),
        wants_message_channel: blocks.message_channel.is_some(),
        selected: blocks.core.optional_data.server_selected_protocol,
    }
}

fn read_core(blocks: &ClientGccBlocks) -> ClientData {
    let core = &blocks.core;
    let optional = &core.optional_data;
    let physical = optional.desktop_physical_width.zip(optional.desktop_physical_height);
    ClientData {
        name: printable(&core.client_name),
        build: core.client_build,
        requested_size: Size::new(core.desktop_width.into(), core.desktop_height.into()),
        color_depth: color_depth(core),
        keyboard_layout: core.keyboard_layout,
        early_capability_flags: optional
            .early_capability_flags
            .unwrap_or(ironrdp_pdu::gcc::ClientEarlyCapabilityFlags::empty()),
        monitors: blocks.monitor.as_ref().map_or_else(Vec::new, |data| data.monitors.clone()),
        physical_size: physical.map(|(width, height)| Size::new(width, height)).filter(|size| !size.is_empty()),
        desktop_scale_factor: optional.desktop_scale_factor.filter(|percent| (100..=500).contains(percent)),
    }
}

fn color_depth(core: &ClientCoreData) -> u8 {
    match core.client_color_depth() {
        ClientColorDepth::Bpp4 | ClientColorDepth::Bpp8 => 8,
        ClientColorDepth::Rgb555Bpp16 => 15,
        ClientColorDepth::Rgb565Bpp16 => 16,
        ClientColorDepth::Bpp24 => 24,
        ClientColorDepth::Bpp32 => 32,
    }
}

/// The name goes to logs and lists: nothing in it may act on a terminal.
fn printable(name: &str) -> String {
    name.chars().filter(|character| !character.is_control()).collect()
}

/// The size that is announced to a client that asks for `requested`, where `max` is allowed.
pub(super) fn desktop_size(requested: Size, max: Size) -> Size {
    let side = |wanted: u32, max: u32| wanted.min(max).clamp(*DESKTOP_SIDE.start(), *DESKTOP_SIDE.end());
    Size::new(side(requested.width, max.width), side(requested.height, max.height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_desktop_is_neither_larger_than_allowed_nor_illegal() {
        let max = Size::new(3840, 2160);
        for (requested, expected) in [
            (Size::new(1920, 1080), Size::new(1920, 1080)),
            (Size::new(0xFFFF, 0xFFFF), max),
            (Size::new(0, 1), Size::new(200, 200)),
        ] {
            assert_eq!(desktop_size(requested, max), expected);
        }
    }

    #[test]
    fn a_name_cannot_act_on_a_terminal() {
        assert_eq!(printable("PC\u{1b}[2J\r\n1"), "PC[2J1");
    }
}
