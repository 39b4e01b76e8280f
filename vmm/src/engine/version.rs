//! Which QEMU it is.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// A version of QEMU, as far as anything here depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl Version {
    /// Asks `qemu`; none if it does not say.
    pub(crate) async fn of(qemu: &Path, deadline: Duration) -> Option<Self> {
        let mut command = Command::new(qemu);
        command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let output = timeout(deadline, command.output()).await.ok()?.ok()?;
        Self::parse(&String::from_utf8_lossy(&output.stdout))
    }

    /// Reads `QEMU emulator version 10.0.2 (…)`.
    fn parse(text: &str) -> Option<Self> {
        let (_, numbers) = text.lines().next()?.split_once(" version ")?;
        let mut numbers = numbers.split(|separator: char| !separator.is_ascii_digit());
        Some(Self { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_found() {
        let version = |text| Version::parse(text).map(|Version { major, minor }| (major, minor));
        assert_eq!(version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright"), Some((10, 0)));
        assert_eq!(version("QEMU emulator version 7.2.17"), Some((7, 2)));
        for none in ["", "QEMU", "QEMU emulator version ", "QEMU emulator version 10", "a version x.y"] {
            assert_eq!(version(none), None, "{none:?}");
        }
    }

    #[tokio::test]
    async fn a_qemu_that_is_not_there_has_none() {
        assert_eq!(Version::of(Path::new("/nonexistent/qemu"), Duration::from_secs(60)).await, None);
        assert!(Version::of(Path::new("qemu-system-x86_64"), Duration::from_secs(60)).await.is_some());
    }
}
