//! What a client said about its graphics during the handshake.

use ironrdp_pdu::gcc::ClientEarlyCapabilityFlags;
use ironrdp_pdu::rdp::capability_sets::{
    BitmapCodecs, CapabilitySet, CmdFlags, Codec, CodecProperty, EntropyBits, GeneralExtraFlags,
    LargePointerSupportFlags, RemoteFxContainer,
};

/// Largest fast-path update of a client that does not say (MS-RDPBCGR 2.2.7.2.6: one fragment).
const DEFAULT_REQUEST_SIZE: usize = 16_383;

/// Bits of a pixel in bitmap updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ColorDepth {
    /// 5 bits each of red, green and blue.
    Bpp15,
    /// 5 bits of red, 6 of green, 5 of blue.
    Bpp16,
    /// 8 bits each.
    Bpp24,
    /// 8 bits each, sent by colour planes.
    Bpp32,
}

impl ColorDepth {
    /// The depth for a number of bits; palettes (8 bits) are not served and become 16.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        match bits {
            32 => Self::Bpp32,
            24 => Self::Bpp24,
            15 => Self::Bpp15,
            _ => Self::Bpp16,
        }
    }

    /// The number of bits.
    #[must_use]
    pub const fn bits(self) -> u16 {
        match self {
            Self::Bpp15 => 15,
            Self::Bpp16 => 16,
            Self::Bpp24 => 24,
            Self::Bpp32 => 32,
        }
    }
}

/// Whether compressed bitmaps carry `TS_CD_HEADER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitmapHeader {
    /// They must.
    Present,
    /// They may go without, and do.
    Omitted,
}

/// How a client takes RemoteFX (MS-RDPRFX) in surface commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteFxSupport {
    /// The number the client gave the codec.
    pub codec_id: u8,
    /// The entropy coder to use.
    pub entropy: EntropyBits,
}

/// Which pointers a client takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointerSupport {
    /// Slots for pointers with any depth; none means colour pointers only.
    pub cache_size: u16,
    /// Slots for 24-bit colour pointers.
    pub color_cache_size: u16,
    /// Longest side of a pointer update: 32, 96 or 384.
    pub max_side: u32,
}

/// Everything the pipeline needs to know about a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientGraphics {
    /// It speaks the graphics pipeline (MS-RDPEGFX); clear this when dynamic channels cannot be opened.
    pub egfx: bool,
    /// It takes RemoteFX in surface commands.
    pub remote_fx: Option<RemoteFxSupport>,
    /// It acknowledges surface frames, and wants at most this many unacknowledged.
    pub surface_frames: Option<u32>,
    /// Depth of bitmap updates.
    pub color_depth: ColorDepth,
    /// Headers of compressed bitmaps.
    pub bitmap_header: BitmapHeader,
    /// It follows a desktop that changes size by deactivation and reactivation.
    pub desktop_resize: bool,
    /// Its pointers.
    pub pointer: PointerSupport,
    /// Largest fast-path update it puts together from fragments.
    pub max_request_size: usize,
}

impl ClientGraphics {
    /// Reads the handshake: the client's Confirm Active capabilities, its early capability flags, and the
    /// colour depth of its core data (for a client whose Confirm Active names none).
    #[must_use]
    pub fn from_handshake(
        capabilities: &[CapabilitySet],
        early_flags: ClientEarlyCapabilityFlags,
        color_depth: u8,
    ) -> Self {
        let mut client = Self {
            egfx: early_flags.contains(ClientEarlyCapabilityFlags::SUPPORT_DYN_VC_GFX_PROTOCOL),
            remote_fx: None,
            surface_frames: None,
            color_depth: ColorDepth::from_bits(u16::from(color_depth)),
            bitmap_header: BitmapHeader::Present,
            desktop_resize: false,
            pointer: PointerSupport { cache_size: 0, color_cache_size: 0, max_side: 32 },
            max_request_size: DEFAULT_REQUEST_SIZE,
        };
        let mut surface_commands = CmdFlags::empty();
        for set in capabilities {
            match set {
                CapabilitySet::SurfaceCommands(surface) => surface_commands = surface.flags,
                other => client.apply(other),
            }
        }
        // The codec has 32 bits a pixel, and a session has one depth.
        if !surface_commands.contains(CmdFlags::SET_SURFACE_BITS) || client.color_depth != ColorDepth::Bpp32 {
            client.remote_fx = None;
        }
        if !surface_commands.contains(CmdFlags::FRAME_MARKER) {
            client.surface_frames = None;
        }
        client
    }

    fn apply(&mut self, set: &CapabilitySet) {
        match set {
            CapabilitySet::General(general)
                if general.extra_flags.contains(GeneralExtraFlags::NO_BITMAP_COMPRESSION_HDR) =>
            {
                self.bitmap_header = BitmapHeader::Omitted;
            }
            CapabilitySet::Bitmap(bitmap) => {
                self.color_depth = ColorDepth::from_bits(bitmap.pref_bits_per_pix);
                self.desktop_resize = bitmap.desktop_resize_flag;
            }
            CapabilitySet::Pointer(pointer) => {
                self.pointer.cache_size = pointer.pointer_cache_size;
                self.pointer.color_cache_size = pointer.color_pointer_cache_size;
            }
            CapabilitySet::LargePointer(large) => {
                if large.flags.contains(LargePointerSupportFlags::UP_TO_384X384_PIXELS) {
                    self.pointer.max_side = 384;
                } else if large.flags.contains(LargePointerSupportFlags::UP_TO_96X96_PIXELS) {
                    self.pointer.max_side = 96;
                }
            }
            CapabilitySet::MultiFragmentUpdate(multifragment) => {
                let size = usize::try_from(multifragment.max_request_size).unwrap_or(usize::MAX);
                self.max_request_size = size.max(DEFAULT_REQUEST_SIZE);
            }
            CapabilitySet::FrameAcknowledge(ack) => self.surface_frames = Some(ack.max_unacknowledged_frame_count),
            CapabilitySet::BitmapCodecs(codecs) => self.remote_fx = remote_fx(codecs),
            _ => {}
        }
    }
}

/// The RemoteFX codec of a client; RLGR3 where there is a choice, as it is the smaller.
fn remote_fx(codecs: &BitmapCodecs) -> Option<RemoteFxSupport> {
    codecs.0.iter().find_map(|Codec { id, property }| {
        let (CodecProperty::RemoteFx(container) | CodecProperty::ImageRemoteFx(container)) = property else {
            return None;
        };
        let RemoteFxContainer::ClientContainer(client) = container else { return None };
        let modes = &client.caps_data.0.0;
        let entropy = match modes.iter().find(|mode| mode.entropy_bits == EntropyBits::Rlgr3) {
            Some(mode) => mode.entropy_bits,
            None => modes.first()?.entropy_bits,
        };
        Some(RemoteFxSupport { codec_id: *id, entropy })
    })
}

#[cfg(test)]
mod tests {
    use ironrdp_pdu::rdp::capability_sets::{
        CaptureFlags, FrameAcknowledge, RfxCaps, RfxCapset, RfxClientCapsContainer, RfxICap, RfxICapFlags,
        SurfaceCommands,
    };

    use super::*;

    fn remote_fx_codec(entropies: &[EntropyBits]) -> CapabilitySet {
        let modes = entropies.iter().map(|bits| RfxICap { flags: RfxICapFlags::empty(), entropy_bits: *bits });
        let container = RfxClientCapsContainer {
            capture_flags: CaptureFlags::empty(),
            caps_data: RfxCaps(RfxCapset(modes.collect())),
        };
        let property = CodecProperty::RemoteFx(RemoteFxContainer::ClientContainer(container));
        CapabilitySet::BitmapCodecs(BitmapCodecs(vec![Codec { id: 3, property }]))
    }

    #[test]
    fn remote_fx_needs_surface_commands() {
        let codec = remote_fx_codec(&[EntropyBits::Rlgr1, EntropyBits::Rlgr3]);
        let without =
            ClientGraphics::from_handshake(std::slice::from_ref(&codec), ClientEarlyCapabilityFlags::empty(), 32);
        assert_eq!(without.remote_fx, None);
        let surface = CapabilitySet::SurfaceCommands(SurfaceCommands { flags: CmdFlags::SET_SURFACE_BITS });
        let with = ClientGraphics::from_handshake(&[codec, surface], ClientEarlyCapabilityFlags::empty(), 32);
        assert_eq!(with.remote_fx, Some(RemoteFxSupport { codec_id: 3, entropy: EntropyBits::Rlgr3 }));
    }

    #[test]
    fn frame_acknowledgements_need_frame_markers() {
        let acks = CapabilitySet::FrameAcknowledge(FrameAcknowledge { max_unacknowledged_frame_count: 2 });
        let client = ClientGraphics::from_handshake(&[acks], ClientEarlyCapabilityFlags::empty(), 16);
        assert_eq!(client.surface_frames, None);
        assert_eq!(client.color_depth, ColorDepth::Bpp16);
    }
}
