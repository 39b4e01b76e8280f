//! Display control (MS-RDPEDISP): the client says which monitors it would like while the session runs.

use console::Size;
use ironrdp_core::{decode, encode_vec};
use ironrdp_displaycontrol::pdu::{DisplayControlCapabilities, DisplayControlPdu};
use thiserror::Error;

/// Name of the dynamic channel.
pub const CHANNEL_NAME: &str = "Microsoft::Windows::RDS::DisplayControl";

/// Monitors of one session.
pub const MAX_MONITORS: u32 = 1;
/// Longest side of a monitor, in pixels (MS-RDPEDISP 2.2.2.2.1).
pub const MAX_MONITOR_SIDE: u32 = 8192;
/// Shortest side of a monitor, in pixels (MS-RDPEDISP 2.2.2.2.1).
pub const MIN_MONITOR_SIDE: u32 = 200;

/// A message that does not follow MS-RDPEDISP.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DisplayControlError {
    /// Not a PDU of this channel.
    #[error("display control message is malformed: {0}")]
    Malformed(String),
    /// No primary monitor.
    #[error("monitor layout has no primary monitor")]
    NoPrimary,
}

/// The capabilities that open the channel: one monitor of up to 4096 × 4096 pixels.
#[must_use]
pub fn capabilities() -> Vec<u8> {
    let capabilities =
        DisplayControlCapabilities::new(MAX_MONITORS, 4096, 4096).expect("constant factors are in range");
    encode_vec(&DisplayControlPdu::from(capabilities)).expect("a constant PDU encodes")
}

/// The size that the client wants for its primary monitor; none when the message asks for nothing.
///
/// # Errors
///
/// When the message is malformed or names no primary monitor.
pub fn wanted_size(message: &[u8]) -> Result<Option<Size>, DisplayControlError> {
    let pdu = decode(message).map_err(|error| DisplayControlError::Malformed(error.to_string()))?;
    let DisplayControlPdu::MonitorLayout(layout) = pdu else {
        return Ok(None);
    };
    let primary = layout.monitors().iter().find(|monitor| monitor.is_primary());
    let (width, height) = primary.ok_or(DisplayControlError::NoPrimary)?.dimensions();
    let side = |pixels: u32| pixels.clamp(MIN_MONITOR_SIDE, MAX_MONITOR_SIDE);
    Ok(Some(Size::new(side(width), side(height))))
}

#[cfg(test)]
mod tests {
    use ironrdp_displaycontrol::pdu::DisplayControlMonitorLayout;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_layout_gives_the_size_of_its_primary_monitor() {
        let layout = DisplayControlMonitorLayout::new_single_primary_monitor(1024, 768, None, None).unwrap();
        let message = encode_vec(&DisplayControlPdu::from(layout)).unwrap();
        assert_eq!(wanted_size(&message), Ok(Some(Size::new(1024, 768))));
    }

    #[test]
    fn our_capabilities_are_a_valid_pdu() {
        assert!(matches!(decode(&capabilities()), Ok(DisplayControlPdu::Caps(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_size_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = wanted_size(&bytes);
        }
    }
}
