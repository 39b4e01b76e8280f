//! Files of the state folder: private, and written whole or not at all.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Longest path `bind` and `connect` take: `sun_path` without its terminating zero.
const SUN_PATH_MAX: usize = 107;

/// Replaces the file at `path`: a reader, or a machine that loses power, sees the old contents or the new.
///
/// # Errors
///
/// When the folder cannot be written or is full; the old file is then untouched.
pub fn write_atomically(path: &Path, mode: u32, contents: &[u8]) -> io::Result<()> {
    vmm::files::replace(path, mode, contents)
}

/// Creates `path` and the folders above it; the last one is for its owner alone.
///
/// # Errors
///
/// When a folder cannot be created.
pub fn create_private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A path to a unix socket that fits `sun_path`, however deep its folder lies.
///
/// A long path goes through the folder's descriptor in `/proc/self/fd`, so the value has to outlive its use.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    _folder: Option<File>,
}

impl SocketPath {
    /// A path for `socket` that can be bound or connected to.
    ///
    /// # Errors
    ///
    /// When `socket` is too long and its folder cannot be opened.
    pub fn new(socket: &Path) -> io::Result<Self> {
        if socket.as_os_str().len() <= SUN_PATH_MAX {
            return Ok(Self { path: socket.to_owned(), _folder: None });
        }
        let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else {
            return Err(io::Error::other("a socket needs a folder and a name"));
        };
        let folder = File::open(folder)?;
        let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _folder: Some(folder) })
    }

    /// The path to use while `self` lives.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::testing::TempFolder;

    #[test]
    fn a_replaced_file_has_the_new_contents_and_mode() {
        let folder = TempFolder::new("files");
        let path = folder.path().join("users.toml");
        write_atomically(&path, 0o600, b"old").unwrap();
        write_atomically(&path, 0o600, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays behind");
    }

    #[test]
    fn a_socket_deep_in_the_tree_can_be_bound_and_reached() {
        let folder = TempFolder::new("deep");
        let deep = folder.path().join("a-folder-with-a-long-name".repeat(8));
        create_private_folder(&deep).unwrap();
        let socket = deep.join("api.sock");
        let short = SocketPath::new(&socket).unwrap();
        let _listener = UnixListener::bind(short.path()).unwrap();
        drop(short);
        assert!(socket.exists());
        UnixStream::connect(SocketPath::new(&socket).unwrap().path()).unwrap();
    }
}
