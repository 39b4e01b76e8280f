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

/// A logon name taken apart: the account, and the machine its decoration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogonName {
    /// The account, without decoration.
    pub account: String,
    /// The machine.
    pub target: Option<Target>,
}

impl LogonName {
    /// Reads a user and a domain as a client sends them: `vm\user`, `user#vm` or `vm/user@realm`.
    ///
    /// Clients fill an empty domain with a name of their own choice; those in `filled_in`, and a few that Windows
    /// is known to use, name no machine.
    #[must_use]
    pub fn read(user: &str, domain: &str, filled_in: &[&str]) -> Self {
        let decorated = |account: &str, vm: &str| Self { account: account.to_owned(), target: Target::parse(vm) };
        if let Some((account, vm)) = user.rsplit_once('#') {
            return decorated(account, vm);
        }
        if let Some((vm, account)) = user.split_once('/') {
            // The realm is only there to keep Windows clients from taking the slash apart themselves.
            return decorated(account.split_once('@').map_or(account, |(bare, _)| bare), vm);
        }
        if let Some((vm, account)) = user.split_once('\\') {
            return Self::read(account, vm, filled_in);
        }
        let meaningless = filled_in.iter().chain(&FILLED_IN_DOMAINS).any(|name| same_name(name, domain));
        decorated(user, if meaningless { "" } else { domain })
    }
}

/// Domains that Windows clients send for local or cloud accounts when the user typed none.
const FILLED_IN_DOMAINS: [&str; 5] = [".", "localhost", "WORKGROUP", "MicrosoftAccount", "AzureAD"];

/// Where a client may have named a machine, all of it unproven.
#[derive(Debug, Clone, Default)]
pub struct Routing {
    /// By pre-connection blob.
    pub preconnection: Option<Target>,
    /// By routing token.
    pub token: Option<Target>,
}

impl Routing {
    /// The machine asked for, with the logon name's decoration as the last resort before the default.
    #[must_use]
    pub fn resolve(&self, decoration: Option<Target>) -> Target {
        self.preconnection.clone().or_else(|| self.token.clone()).or(decoration).unwrap_or(Target::Default)
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

#[cfg(test)]
mod tests {
    use super::*;

    const GUID: &str = "c824f53e-95d2-46c6-9a18-23a5bb403532";

    fn named(name: &str) -> Option<Target> {
        Some(Target::Named(name.to_owned()))
    }

    #[test]
    fn names_and_guids_compare_without_case() {
        assert_eq!(Target::parse("Web01"), Target::parse("WEB01"));
        assert_eq!(Target::parse("MÜNCHEN"), Target::parse("münchen"));
        let braced = Target::parse(&format!("{{{}}}", GUID.to_uppercase())).unwrap();
        assert_eq!(braced, Target::Id(GUID.to_owned()));
        assert!(braced.names("any", &GUID.to_uppercase()));
        assert!(Target::Named("WEB01".to_owned()).names("web01", GUID));
        assert!(!Target::Default.names("web01", GUID));
    }

    #[test]
    fn text_that_names_nothing_is_no_target() {
        for text in ["", "  ", "a\nb", "\0\0", &"x".repeat(MAX_TARGET_CHARS + 1)] {
            assert_eq!(Target::parse(text), None, "{text:?}");
        }
        assert_eq!(Target::parse("{c824f53e-95d2}"), named("{c824f53e-95d2}"));
    }

    #[test]
    fn each_decoration_gives_machine_and_bare_account() {
        let table = [
            ("bob", "", "bob", None),
            ("bob", "web01", "bob", named("web01")),
            ("web01\\bob", "", "bob", named("web01")),
            ("bob#web01", "", "bob", named("web01")),
            ("bob#web01", "OTHER", "bob", named("web01")),
            ("a#b#web01", "", "a#b", named("web01")),
            ("web01/bob@realm", "", "bob", named("web01")),
            ("web01/bob", "", "bob", named("web01")),
            ("bob@example.org", "", "bob@example.org", None),
            ("bob", "MYPC", "bob", None),
            ("bob", "workgroup", "bob", None),
            (".\\bob", "", "bob", None),
            ("", "", "", None),
        ];
        for (user, domain, account, target) in table {
            let read = LogonName::read(user, domain, &["mypc"]);
            assert_eq!((read.account.as_str(), read.target), (account, target), "{domain}\\{user}");
        }
    }

    #[test]
    fn the_blob_wins_over_the_token_and_the_token_over_the_decoration() {
        let routing = |blob: Option<&str>, token: Option<&str>| Routing {
            preconnection: blob.and_then(Target::parse),
            token: token.and_then(Target::parse),
        };
        let decoration = named("c");
        assert_eq!(Some(routing(Some("a"), Some("b")).resolve(decoration.clone())), named("a"));
        assert_eq!(Some(routing(None, Some("b")).resolve(decoration.clone())), named("b"));
        assert_eq!(Some(routing(None, None).resolve(decoration)), named("c"));
        assert_eq!(routing(None, None).resolve(None), Target::Default);
    }
}
