//! Oracles for fuzz targets: each takes any bytes and panics only when an invariant is broken.

use std::path::Path;

use crate::Definition;
use crate::disks::{self, Described, PercentReader};

/// A definition is refused at a place that exists, or read; what was read is possible and comes back when it is
/// written and read again.
///
/// # Panics
///
/// When it is otherwise.
pub fn fuzz_definition(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let file = Path::new("vm.toml");
    match Definition::parse(text, file) {
        Ok(definition) => {
            assert_eq!(definition.validate(), Ok(()), "an impossible definition was read");
            let written = definition.to_toml();
            assert_eq!(Definition::parse(&written, file).as_ref(), Ok(&definition), "written as\n{written}");
        }
        Err(error) => {
            // An empty last line counts: that is where something is missing.
            let line = text.split('\n').nth(error.line.wrapping_sub(1));
            let columns = line.map(|line| line.chars().count() + 1);
            assert!(
                columns.is_some_and(|columns| (1..=columns).contains(&error.column)),
                "refused at no place: {error}"
            );
            assert!(!error.reason.is_empty(), "refused for no reason");
        }
    }
}

/// What `qemu-img` says of an image, and how far it has come, is read or refused; nothing in it steers a terminal.
///
/// # Panics
///
/// When it is otherwise.
pub fn fuzz_image_info(bytes: &[u8]) {
    if let Ok(described) = Described::parse(bytes) {
        let names = described.snapshots.iter().flat_map(|snapshot| [&snapshot.id, &snapshot.name]);
        assert!(!names.chain([&described.format]).any(|name| name.contains(char::is_control)), "{described:?}");
        if let Some(Ok((path, _))) = described.backing.map(|backing| backing.locate()) {
            assert!(path.is_absolute(), "{}", path.display());
        }
    }
    let (mut whole, mut pieces) = (PercentReader::default(), PercentReader::default());
    let last = bytes.iter().filter_map(|byte| pieces.read(&[*byte])).last();
    assert_eq!(whole.read(bytes), last, "it matters in which pieces it comes");
    assert!(last.is_none_or(|hundredths| hundredths <= 10_000));
}

/// The parts of a VHD or VHDX that are read here lead to a place in the file, or nowhere.
pub fn fuzz_hyperv_image(bytes: &[u8]) {
    // What they lead to is looked at with a bound, wherever it is.
    let _ = (disks::kind_of_vhd(bytes), disks::metadata_region(bytes), disks::file_parameters(bytes));
}
