//! Fast-path output: an update in as few PDUs as the client takes.
//!
//! MS-RDPBCGR 2.2.9.1.2 `TS_FP_UPDATE_PDU` and 2.2.9.1.2.1 `TS_FP_UPDATE`.
//! <https://learn.microsoft.com/openspecs/windows_protocols/ms-rdpbcgr/a1c4caa8-00ed-45bb-a06e-5177473766d3>

use ironrdp_pdu::fast_path::{Fragmentation, UpdateCode};

/// Most bytes of an update in one PDU. Clients keep 16 KiB for a PDU, header included.
pub const MAX_FRAGMENT: usize = 16_383 - PDU_HEADER;

/// Action and security flags, a length of two bytes, the update's header and its size.
const PDU_HEADER: usize = 1 + 2 + 1 + 2;

/// Appends `update` to `out`, cut into fragments.
///
/// The client must be able to put together an update of this length (its Multifragment Update capability).
pub fn write_update(code: UpdateCode, update: &[u8], out: &mut Vec<u8>) {
    let count = update.len().div_ceil(MAX_FRAGMENT).max(1);
    out.reserve(update.len() + count * PDU_HEADER);
    for (at, fragment) in fragments(update).enumerate() {
        let fragmentation = match (at, at + 1 == count) {
            (0, true) => Fragmentation::Single,
            (0, false) => Fragmentation::First,
            (_, false) => Fragmentation::Next,
            (_, true) => Fragmentation::Last,
        };
        write_fragment(code, fragmentation, fragment, out);
    }
}

/// The pieces of an update; an empty update is one empty piece.
fn fragments(update: &[u8]) -> impl Iterator<Item = &[u8]> {
    let empty: Option<&[u8]> = update.is_empty().then_some(&[]);
    empty.into_iter().chain(update.chunks(MAX_FRAGMENT))
}

fn write_fragment(code: UpdateCode, fragmentation: Fragmentation, fragment: &[u8], out: &mut Vec<u8>) {
    let [size_low, size_high, ..] = fragment.len().to_le_bytes();
    // One length byte reaches to 127, two (with the top bit set) to 32767: never more than a fragment has.
    let short = fragment.len() + PDU_HEADER - 1;
    out.push(0);
    if short <= 0x7f {
        out.push(short.to_le_bytes()[0]);
    } else {
        let [low, high, ..] = (short + 1).to_le_bytes();
        out.extend_from_slice(&[high | 0x80, low]);
    }
    out.extend_from_slice(&[code.as_u8() | fragmentation.as_u8() << 4, size_low, size_high]);
    out.extend_from_slice(fragment);
}

#[cfg(test)]
mod tests {
    use ironrdp_core::{Decode as _, ReadCursor};
    use ironrdp_pdu::fast_path::{FastPathHeader, FastPathUpdatePdu};
    use proptest::prelude::*;

    use super::*;

    /// Reads PDUs back, checks their lengths, and puts the update together.
    fn read(mut bytes: &[u8]) -> (Vec<Fragmentation>, Vec<u8>) {
        let (mut order, mut update) = (Vec::new(), Vec::new());
        while !bytes.is_empty() {
            let mut cursor = ReadCursor::new(bytes);
            let header = FastPathHeader::decode(&mut cursor).unwrap();
            let end = cursor.pos() + header.data_length;
            assert!(end <= 16_383);
            let pdu = FastPathUpdatePdu::decode(&mut ReadCursor::new(&bytes[cursor.pos()..end])).unwrap();
            assert_eq!(pdu.update_code, UpdateCode::SurfaceCommands);
            order.push(pdu.fragmentation);
            update.extend_from_slice(pdu.data);
            bytes = &bytes[end..];
        }
        (order, update)
    }

    #[test]
    fn an_empty_update_is_one_short_pdu() {
        let mut out = Vec::new();
        write_update(UpdateCode::HiddenPointer, &[], &mut out);
        assert_eq!(out, [0, 5, 5, 0, 0]);
    }

    #[test]
    fn fragments_are_first_next_last() {
        let mut out = Vec::new();
        write_update(UpdateCode::SurfaceCommands, &vec![7; MAX_FRAGMENT * 2 + 1], &mut out);
        let (order, update) = read(&out);
        assert_eq!(order, [Fragmentation::First, Fragmentation::Next, Fragmentation::Last]);
        assert_eq!(update.len(), MAX_FRAGMENT * 2 + 1);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(update in proptest::collection::vec(any::<u8>(), 0..40_000)) {
            let mut out = Vec::new();
            write_update(UpdateCode::SurfaceCommands, &update, &mut out);
            prop_assert_eq!(read(&out).1, update);
        }
    }
}
