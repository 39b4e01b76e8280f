//! `/etc/os-release`: what the guest's system calls itself.

/// Longest value that is taken.
const MAX_VALUE_BYTES: usize = 256;

/// The value of `name` in the file's text, without its quotes.
pub(super) fn value(text: &str, name: &str) -> Option<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let mut values = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    // As in a shell, the last one counts.
    values.next_back().map(unquote).filter(|value| !value.is_empty())
}

fn unquote(value: &str) -> String {
    let quoted = ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
    let mut plain = String::new();
    let mut characters = quoted.unwrap_or(value).chars();
    while let Some(character) = characters.next() {
        let character = if character == '\\' { characters.next() } else { Some(character) };
        plain.extend(character.filter(|character| !character.is_control()));
    }
    plain.truncate(plain.floor_char_boundary(MAX_VALUE_BYTES));
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lose_their_quotes() {
        let text = "# a comment\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME='A \"B\"'\nID=debian\n\
                    VERSION_ID=\"12\"\nODD=\"a\\\"b\\$\"\nEMPTY=\"\"\n";
        assert_eq!(value(text, "PRETTY_NAME").as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
        assert_eq!(value(text, "NAME").as_deref(), Some("A \"B\""));
        assert_eq!(value(text, "ID").as_deref(), Some("debian"));
        assert_eq!(value(text, "ODD").as_deref(), Some("a\"b$"));
        assert_eq!(value(text, "EMPTY"), None);
        assert_eq!(value(text, "VERSION"), None);
    }

    #[test]
    fn a_long_value_is_cut() {
        let text = format!("NAME={}", "é".repeat(MAX_VALUE_BYTES));
        assert_eq!(value(&text, "NAME").map(|name| name.len()), Some(MAX_VALUE_BYTES));
    }
}
