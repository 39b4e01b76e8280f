//! Which virtual machine a client asks for, and as whom.
//!
//! Four places can name the machine. The first that does wins:
//!
//! ```text
//! pre-connection blob  >  routing token  >  user decoration  >  the default machine
//!                                           (vm\user, user#vm, vm/user@realm)
//! ```

use std::fmt;

/// Longest name of a machine that is looked up, in characters.
pub const MAX_TARGET_CHARS: usize = 128;

/// The virtual machine a client asks for. Names and GUIDs compare without regard to case.
#[derive(Debug, Clone)]
pub enum Target {
    /// None was named: the only machine there is, or the one set as default.
    Default,
    /// By name, as the client wrote it.
    Named(String),
    /// By GUID: 32 hexadecimal digits in groups of 8-4-4-4-12, lower case, without braces.
    Id(String),
}

impl Target {
    /// Reads what a client wrote: a GUID with or without braces, or a name.
    ///
    /// Returns none for text that cannot name a machine: empty, too long, or with control characters.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_matches([' ', '\0']);
        if text.is_empty() || text.chars().count() > MAX_TARGET_CHARS || text.chars().any(char::is_control) {
            return None;
        }
        Some(parse_guid(text).map_or_else(|| Self::Named(text.to_owned()), Self::Id))
    }

    /// Whether this asks for the machine with this name and GUID. The default asks for none in particular.
    #[must_use]
    pub fn names(&self, name: &str, guid: &str) -> bool {
        match self {
            Self::Default => false,
            Self::Named(wanted) => same_name(wanted, name),
            Self::Id(wanted) => wanted.eq_ignore_ascii_case(guid.trim_matches(['{', '}'])),
        }
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Default, Self::Default) => true,
            (Self::Named(a), Self::Named(b)) => same_name(a, b),
            (Self::Id(a), Self::Id(b)) => a.eq_ignore_ascii_case(b),
            _ => false,
        }
    }
}

impl Eq for Target {}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("(default)"),
            Self::Named(text) | Self::Id(text) => f.write_str(text),
        }
    }
}

/// Compares names the way people mean them: without regard to case, beyond ASCII too.
fn same_name(a: &str, b: &str) -> bool {
    a.chars().flat_map(char::to_lowercase).eq(b.chars().flat_map(char::to_lowercase))
}

/// `{C824F53E-…}` or `c824f53e-…` as lower-case text without braces.
fn parse_guid(text: &str) -> Option<String> {
    let bare = match text.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}')?,
        None => text,
    };
    let groups: Vec<&str> = bare.split('-').collect();
    let shaped = groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]);
    let hexadecimal = groups.iter().all(|group| group.bytes().all(|digit| digit.is_ascii_hexdigit()));
    (shaped && hexadecimal).then(|| bare.to_ascii_lowercase())
}
