//! What a definition names that cannot be read as one: whoever made a slip in it has not given up its disks.

use std::io;
use std::path::Path;

use super::parse::read_bytes;

/// Each text that stands in the file at `path` in quotation marks or, whatever they are like, behind a `=`.
pub(crate) fn quoted_in(path: &Path) -> io::Result<Vec<String>> {
    Ok(quoted(&String::from_utf8_lossy(&read_bytes(path)?)))
}

fn quoted(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        for mark in ['"', '\''] {
            found.extend(line.split(mark).skip(1).map(str::to_owned));
        }
        // With escapes, as TOML reads it.
        let values = line.match_indices('=').filter_map(|(at, _)| line.get(at + 1..)).map(str::trim);
        for value in values {
            let read = toml::from_str::<toml::Table>(&format!("value = {value}"));
            found.extend(read.ok().and_then(|table| Some(table.get("value")?.as_str()?.to_owned())));
            found.push(value.trim_matches(['"', '\'', ' ', ',', '}', ']']).to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_in_whatever_state_the_text_is() {
        for line in [
            "path = \"/srv/a b.qcow2\"",
            "path='/srv/a b.qcow2' # a comment",
            "  path = /srv/a b.qcow2",
            "path = \"/srv/a b.qcow2",
            "path = '/srv/a b.qcow2\"",
            "path = \"/srv/a\\u0020b.qcow2\"",
            "disk = [{ path = \"/srv/a b.qcow2\", format = \"qcow2\" }, { path",
            "#path = \"/srv/a b.qcow2\"",
        ] {
            assert!(quoted(line).contains(&"/srv/a b.qcow2".to_owned()), "{line}: {:?}", quoted(line));
        }
    }
}
