//! What comes from the port, before it means anything.

use crate::control::ControlMessage;
use crate::stream::{Deframer, Frame, MAX_BUFFERED};

/// A control message is refused, or the same when it was written and read again.
///
/// # Panics
///
/// When it is not.
pub fn fuzz_bus_control(bytes: &[u8]) {
    let Ok((txid, message)) = ControlMessage::decode(bytes) else { return };
    let written = message.encode(txid);
    assert!(written.len() <= bytes.len(), "a message grew");
    assert_eq!(ControlMessage::decode(&written), Ok((txid, message)), "a message changed");
}

/// The deframer goes on with every call, holds little, and finds in step what was written there. The first byte says in
/// which pieces the rest comes.
///
/// # Panics
///
/// When it does not.
pub fn fuzz_bus_stream(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let mut deframer = Deframer::new();
    let mut in_step = false;
    for mut input in bytes.chunks(1 + usize::from(*piece)) {
        loop {
            let before = deframer.pending().len() + input.len();
            let frame = deframer.next_frame(&mut input);
            let after = deframer.pending().len() + input.len();
            assert!(after <= before && deframer.pending().len() <= MAX_BUFFERED, "{before} bytes became {after}");
            match frame {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    assert!(after < before, "a frame out of nothing");
                    let was_in_step = in_step;
                    if let Frame::Sync(body) = &frame {
                        // Some are true ones.
                        in_step |= body.echo & 1 == 1;
                        if in_step {
                            deframer.enter_step();
                        }
                    }
                    if was_in_step {
                        let mut written = Vec::new();
                        frame.encode(&mut written);
                        assert_eq!(written.len(), before - after, "a frame of another length");
                    }
                    assert!(in_step || matches!(frame, Frame::Sync(_)), "a frame while looking");
                }
                Err(_) => {
                    assert!(in_step && after < before, "an error while looking, or again and again");
                    in_step = false;
                }
            }
        }
        assert!(input.is_empty(), "bytes were not taken");
    }
}
