//! Who else may read what is secret in the state folder, or change what it says.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Check, Level};
use crate::config::Config;

const NAME: &str = "secrets";
/// Group and others may read or write.
const READABLE: u32 = 0o066;
const WRITABLE: u32 = 0o022;
/// Group and others may go through a folder.
const PASSABLE: u32 = 0o011;
/// `devices/UUID/tpm/…` and a little more.
const MAX_DEPTH: usize = 5;
/// Most paths that are told; whoever mends these looks again.
const MAX_TOLD: usize = 4;

/// What is wrong, by the command that mends it.
#[derive(Debug, Default)]
struct Findings {
    readable: Vec<PathBuf>,
    writable: Vec<PathBuf>,
    foreign: Vec<PathBuf>,
}

/// Looks at modes and owners of what only the gateway may read, and of the folders that only it may write to.
pub(super) fn look(config: &Config) -> Check {
    let state = &config.state;
    let Ok(folder) = fs::metadata(state.path()) else {
        return Check::new(NAME, Level::Good, "none yet", "made on first start, for their owner alone");
    };
    let mut findings = Findings::default();
    findings.folder(state.path(), &folder, folder.uid());
    for name in ["vms", "run", "jobs", "checkpoints", "moves"] {
        let path = state.path().join(name);
        if let Ok(data) = fs::metadata(&path) {
            findings.folder(&path, &data, folder.uid());
        }
    }
    let reached = folder.mode() & PASSABLE != 0;
    for path in [state.users(), state.path().join("tls"), state.path().join("devices")] {
        findings.secret(&path, reached, folder.uid(), MAX_DEPTH);
    }
    findings.judge(folder.uid())
}

impl Findings {
    /// A folder whose files are believed.
    fn folder(&mut self, path: &Path, data: &Metadata, owner: u32) {
        if data.mode() & WRITABLE != 0 {
            self.writable.push(path.into());
        }
        if ![owner, 0].contains(&data.uid()) {
            self.foreign.push(path.into());
        }
    }

    /// A secret file, or a folder of such; `reached`: others may come as far as that.
    fn secret(&mut self, path: &Path, reached: bool, owner: u32, depth: usize) {
        let Ok(data) = fs::symlink_metadata(path) else { return };
        if data.is_dir() {
            self.folder(path, &data, owner);
            let reached = reached && data.mode() & PASSABLE != 0;
            for entry in fs::read_dir(path).into_iter().flatten().flatten().filter(|_| depth > 0) {
                self.secret(&entry.path(), reached, owner, depth - 1);
            }
            return;
        }
        // The certificate is for everybody.
        if !data.is_file() || path.ends_with("tls/cert.pem") {
            return;
        }
        if reached && data.mode() & READABLE != 0 {
            self.readable.push(path.into());
        }
        if ![owner, 0].contains(&data.uid()) {
            self.foreign.push(path.into());
        }
    }

    fn judge(&self, owner: u32) -> Check {
        let groups = [
            (&self.readable, "others may read or write", "chmod go=".to_owned()),
            (&self.writable, "others may write to", "chmod go-w".to_owned()),
            (&self.foreign, "another user has", format!("chown {owner}")),
        ];
        let groups: Vec<_> = groups.iter().filter(|(paths, ..)| !paths.is_empty()).collect();
        if groups.is_empty() {
            let meaning = "passwords, keys and what TPMs keep are for the gateway alone";
            return Check::new(NAME, Level::Good, "modes and owners as they should be", meaning);
        }
        let found = groups.iter().map(|(paths, what, _)| format!("{what} {}", listed(paths, ", ", plain)));
        let mend = groups.iter().map(|(paths, _, command)| format!("{command} {}", listed(paths, " ", quoted)));
        let meaning = "other users of this host may learn passwords and keys, or change what VMs are";
        Check::new(NAME, Level::Poor, found.collect::<Vec<_>>().join("; "), meaning)
            .mend(mend.collect::<Vec<_>>().join("; "))
    }
}

fn listed(paths: &[PathBuf], between: &str, word: fn(&Path) -> String) -> String {
    paths.iter().take(MAX_TOLD).map(|path| word(path)).collect::<Vec<_>>().join(between)
}

fn plain(path: &Path) -> String {
    path.display().to_string()
}

/// As a shell takes it for one word.
fn quoted(path: &Path) -> String {
    let text = plain(path);
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::state::StateFolder;
    use crate::testing::TempFolder;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_others_may_read_or_write_is_told_with_what_mends_it() {
        let folder = TempFolder::new("secrets");
        let state = StateFolder::new(folder.path());
        let config = Config::parse(state.clone(), "").unwrap();
        state.create().unwrap();
        let tpm = folder.path().join("devices/a b/tpm");
        fs::create_dir_all(&tpm).unwrap();
        let keys = tpm.join("tpm2-00.permall");
        for file in [&state.users(), &state.private_key(), &state.certificate(), &keys] {
            fs::write(file, "").unwrap();
            set(file, 0o644);
        }
        for path in [folder.path(), &folder.path().join("tls"), &folder.path().join("devices"), &tpm] {
            set(path, 0o755);
        }
        set(tpm.parent().unwrap(), 0o700);
        let check = look(&config);
        let [users, key] = [state.users(), state.private_key()].map(|path| path.display().to_string());
        assert_eq!(check.level, Level::Poor);
        assert_eq!(check.mend, Some(format!("chmod go= {users} {key}")), "what is in a closed folder is not read");
        set(tpm.parent().unwrap(), 0o755);
        assert!(look(&config).mend.unwrap().ends_with("/devices/a b/tpm/tpm2-00.permall'"));
        set(folder.path(), 0o700);
        assert_eq!(look(&config).level, Level::Good, "nobody comes into the folder");
        set(&state.definitions(), 0o777);
        let vms = state.definitions().display().to_string();
        assert_eq!(look(&config).mend, Some(format!("chmod go-w {vms}")));
        let none = Config::parse(StateFolder::new(folder.path().join("none")), "").unwrap();
        assert_eq!(look(&none).level, Level::Good);
    }
}
