//! Oracles for fuzz targets: each takes any bytes and panics only when an invariant is broken.

use std::path::Path;

use crate::Definition;

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
