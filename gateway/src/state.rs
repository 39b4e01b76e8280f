//! The state folder: where everything that outlives the program is kept, and who may use it.
//!
//! | path | what |
//! | --- | --- |
//! | `fanlight.toml` | configuration, written by the administrator |
//! | `vms/NAME.toml` | one definition per VM |
//! | `run/UUID/` | runtime files of one VM: sockets, logs |
//! | `devices/UUID/` | what the devices of one VM keep: variables of UEFI, keys of a TPM |
//! | `jobs/NUMBER.json` | one long job, running or ended |
//! | `users.toml` | users, mode 0600 |
//! | `tls/cert.pem`, `tls/key.pem` | the certificate made on first start |
//! | `api.sock` | the HTTP API, for the folder's owner and root |
//! | `version` | which layout of all this it is; a program that knows only older ones leaves it alone |
//! | `lock` | held by the one program that may change the rest |

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::files::{create_private_folder, write_atomically};

/// Where the state folder is, when nobody says.
const SYSTEM_FOLDER: &str = "/var/lib/fanlight";
/// How long a program waits for another that only edits a file.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_millis(50);
/// The layout of the folder that this program writes. It grows when an older program would misread or mangle what is kept.
const VERSION: u32 = 1;
/// Longest file with a version.
const MAX_VERSION: u64 = 64;

/// The folder and the names in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFolder {
    path: PathBuf,
}

/// The right to change what is in a state folder, until dropped.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Why the state folder cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// Another program holds the lock.
    #[error("{} is in use by another fanlight{}", folder.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// Who holds it, when known.
        pid: Option<u32>,
    },
    /// A newer program wrote it.
    #[error("the state folder {} is of version {found}, and this fanlight knows versions up to {VERSION}", folder.display())]
    Newer {
        /// The folder.
        folder: PathBuf,
        /// Its version, as it stands there.
        found: String,
    },
    /// It cannot be created or written.
    #[error("cannot use the state folder {}: {source}", folder.display())]
    Unusable {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl StateFolder {
    /// The folder at `path`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder of `--state`, else `FANLIGHT_STATE`, else the default: `/var/lib/fanlight` for root,
    /// `$XDG_STATE_HOME/fanlight` for everybody else.
    #[must_use]
    pub fn choose(option: Option<PathBuf>) -> Self {
        let from_environment = || std::env::var_os("FANLIGHT_STATE").filter(|path| !path.is_empty()).map(PathBuf::from);
        let default = || {
            if rustix::process::geteuid().is_root() { PathBuf::from(SYSTEM_FOLDER) } else { user_state("fanlight") }
        };
        Self::new(absolute(option.or_else(from_environment).unwrap_or_else(default)))
    }

    /// The folder of the demo: never the one that a real service uses.
    #[must_use]
    pub fn choose_for_demo(option: Option<PathBuf>) -> Self {
        Self::new(absolute(option.unwrap_or_else(|| user_state("fanlight-demo"))))
    }

    /// Creates the folders that are missing.
    ///
    /// # Errors
    ///
    /// When one cannot be created, and [`StateError::Newer`] before anything is when a newer program wrote the folder.
    pub fn create(&self) -> Result<(), StateError> {
        self.known_version()?;
        [self.path.clone(), self.definitions(), self.runtime(), self.path.join("tls")]
            .iter()
            .try_for_each(|folder| create_private_folder(folder))
            .map_err(|source| self.unusable(source))
    }

    /// Takes the lock, waiting a moment for a program that only edits a file.
    ///
    /// # Errors
    ///
    /// [`StateError::InUse`] when a gateway runs on this folder, [`StateError::Newer`] when a newer program wrote it.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match self.try_lock() {
                Err(StateError::InUse { .. }) if Instant::now() < deadline => std::thread::sleep(LOCK_RETRY),
                Err(error) => return Err(error),
                Ok(lock) => {
                    self.check_version()?;
                    return Ok(lock);
                }
            }
        }
    }

    /// Looks whether this program knows the folder's layout; one that has none yet gets ours.
    fn check_version(&self) -> Result<(), StateError> {
        if self.known_version()? {
            return Ok(());
        }
        let text = format!("{VERSION}\n");
        write_atomically(&self.path.join("version"), 0o600, text.as_bytes()).map_err(|source| self.unusable(source))
    }

    /// Whether the folder has a layout that this program knows; false when it has none yet.
    ///
    /// # Errors
    ///
    /// [`StateError::Newer`] when it has another.
    pub fn known_version(&self) -> Result<bool, StateError> {
        let found = match read_version(&self.path.join("version")) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(self.unusable(source)),
        };
        // What is no number is of a program that we know nothing of.
        match found.parse::<u32>() {
            Ok(1..=VERSION) => Ok(true),
            _ => Err(StateError::Newer { folder: self.path.clone(), found }),
        }
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.path.join("fanlight.toml")
    }

    /// The file of users.
    #[must_use]
    pub fn users(&self) -> PathBuf {
        self.path.join("users.toml")
    }

    /// The folder of VM definitions.
    #[must_use]
    pub fn definitions(&self) -> PathBuf {
        self.path.join("vms")
    }

    /// The folder of what running VMs need.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        self.path.join("run")
    }

    /// The certificate made on first start.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.path.join("tls/cert.pem")
    }

    /// Its private key.
    #[must_use]
    pub fn private_key(&self) -> PathBuf {
        self.path.join("tls/key.pem")
    }

    /// The socket of the HTTP API.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path.join("api.sock")
    }

    fn try_lock(&self) -> Result<StateLock, StateError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.join("lock"))
            .map_err(|source| self.unusable(source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateError::InUse { folder: self.path.clone(), pid: read_pid(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(self.unusable(source)),
        }
        write_pid(&mut file).map_err(|source| self.unusable(source))?;
        Ok(StateLock { _file: file })
    }

    fn unusable(&self, source: io::Error) -> StateError {
        StateError::Unusable { folder: self.path.clone(), source }
    }
}

fn read_version(path: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_VERSION).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).trim().replace(char::is_control, "?"))
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())
}

fn user_state(name: &str) -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("XDG_STATE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| variable("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join(name)
}

/// QEMU and the sockets keep their meaning when the working folder changes.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempFolder;

    #[test]
    fn a_second_lock_is_refused_and_names_the_holder() {
        let folder = TempFolder::new("lock");
        let state = StateFolder::new(folder.path());
        let held = state.lock().unwrap();
        match state.try_lock() {
            Err(StateError::InUse { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("expected a refusal, got {other:?}"),
        }
        drop(held);
        state.lock().unwrap();
    }

    #[test]
    fn what_a_newer_program_wrote_is_refused_and_left_alone() {
        let folder = TempFolder::new("version");
        let state = StateFolder::new(folder.path());
        let file = folder.path().join("version");
        drop(state.lock().unwrap());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "1\n");
        for text in ["2\n", "1.5", "", "x\u{7}"] {
            std::fs::write(&file, text).unwrap();
            assert!(matches!(state.lock(), Err(StateError::Newer { .. })), "{text:?}");
            assert!(matches!(state.create(), Err(StateError::Newer { .. })) && !state.definitions().exists());
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
        std::fs::write(&file, "1").unwrap();
        state.lock().unwrap();
    }
}
