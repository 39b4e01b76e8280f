//! Who is logged on, as login programs note it (utmp(5)).

use std::time::{Duration, SystemTime};

use enhanced_session::wire::Reader;

/// Bytes of a record; the same on every architecture that glibc gave 32-bit times there.
const RECORD: usize = 384;
/// Most records that are looked at.
const MAX_RECORDS: usize = 1024;
/// A user's session.
const USER_PROCESS: u16 = 7;
const LINE_BYTES: usize = 32;
const USER_BYTES: usize = 32;

/// Somebody who is logged on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: String,
    /// The terminal or display.
    pub(super) line: String,
    pub(super) since: SystemTime,
}

/// The sessions in the file's bytes.
pub(super) fn logins(bytes: &[u8]) -> Vec<Login> {
    bytes.chunks_exact(RECORD).take(MAX_RECORDS).filter_map(login).collect()
}

fn login(record: &[u8]) -> Option<Login> {
    let mut reader = Reader::new(record);
    let kind = reader.array("type").map(u16::from_ne_bytes).ok()?;
    // Padding, and the process.
    reader.bytes(6, "process").ok()?;
    let line = text(reader.bytes(LINE_BYTES, "line").ok()?);
    reader.bytes(4, "id").ok()?;
    let user = text(reader.bytes(USER_BYTES, "user").ok()?);
    // The host that the user comes from, exit codes, the session.
    reader.bytes(256 + 4 + 4, "host").ok()?;
    let seconds = reader.array("time").map(u32::from_ne_bytes).ok()?;
    let since = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into());
    (kind == USER_PROCESS && !user.is_empty()).then_some(Login { user, line, since })
}

fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u16, line: &str, user: &str, seconds: u32) -> Vec<u8> {
        let mut record = vec![0; RECORD];
        record[..2].copy_from_slice(&kind.to_ne_bytes());
        record[8..8 + line.len()].copy_from_slice(line.as_bytes());
        record[44..44 + user.len()].copy_from_slice(user.as_bytes());
        record[340..344].copy_from_slice(&seconds.to_ne_bytes());
        record
    }

    #[test]
    fn sessions_are_told_from_other_records() {
        let file = [record(2, "~", "reboot", 1), record(7, "tty1", "ada", 1_700_000_000), record(8, "tty2", "bob", 2)];
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(logins(&file.concat()), [Login { user: "ada".into(), line: "tty1".into(), since }]);
        assert_eq!(logins(&file[1][..RECORD - 1]), [], "a record that is being written");
    }
}
