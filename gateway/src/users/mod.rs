//! Who may log on, and to which VMs: one file, read at start and written whole at each change.

mod file;
mod password;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tokio::sync::watch;

pub use password::{Keep, MAX_PASSWORD, NtDigest, PasswordError, Secret, random_password};

use crate::files::write_atomically;

/// Longest user name, in bytes.
pub const MAX_USER_NAME: usize = 64;

/// The name of a user, as it was given. Two names that differ only in case are the same user.
#[derive(Debug, Clone)]
pub struct UserName(String);

/// One user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: UserName,
    /// What is kept of the password.
    pub secret: Secret,
    /// Which VMs.
    pub vms: VmRights,
}

/// The VMs that a user may see and control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmRights {
    /// Every one, also those that come later.
    All,
    /// Those with these names.
    Only(BTreeSet<String>),
}

/// The users of a state folder. Cheap to clone; every clone sees each change at once.
#[derive(Debug, Clone)]
pub struct Users {
    path: Arc<PathBuf>,
    /// Held while the file is written, so that changes do not overwrite each other.
    writing: Arc<Mutex<()>>,
    book: watch::Sender<Arc<Book>>,
}

/// All users, by the name in lower case.
pub type Book = BTreeMap<String, Arc<User>>;

/// Why the users cannot be read or changed.
#[derive(Debug, Error)]
pub enum UsersError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file has a mistake; the text names the file.
    #[error("{0}")]
    Invalid(String),
    /// The file cannot be written.
    #[error("cannot write {}: {source}", file.display())]
    Unwritable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The name is taken.
    #[error("a user `{0}` exists already")]
    Exists(UserName),
    /// Nobody has this name.
    #[error("there is no user `{0}`")]
    NotFound(String),
}

/// Why a text is not a user name.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a user name is 1 to {MAX_USER_NAME} letters (a to z), digits, `.`, `-` or `_`, the first a letter or digit")]
pub struct UserNameError;

impl Users {
    /// Reads the users of the file at `path`; without a file, there are none.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read or has a mistake.
    pub fn open(path: PathBuf) -> Result<Self, UsersError> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(UsersError::Unreadable { file: path, source }),
        };
        let book = decode(&path, &text)?;
        Ok(Self { path: Arc::new(path), writing: Arc::default(), book: watch::Sender::new(Arc::new(book)) })
    }

    /// The users as they are now.
    #[must_use]
    pub fn book(&self) -> Arc<Book> {
        self.book.borrow().clone()
    }

    /// The users, and a sign at each change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Book>> {
        self.book.subscribe()
    }

    /// The user of that name, in any case.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<User>> {
        self.book.borrow().get(&fold(name)).cloned()
    }

    /// Adds a user.
    ///
    /// # Errors
    ///
    /// When the name is taken or the file cannot be written; nothing has changed then.
    pub fn add(&self, user: User) -> Result<(), UsersError> {
        self.change(|book| match book.entry(user.name.folded()) {
            std::collections::btree_map::Entry::Occupied(_) => Err(UsersError::Exists(user.name.clone())),
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(Arc::new(user));
                Ok(())
            }
        })
    }

    /// Adds a user, or replaces the one of that name.
    ///
    /// # Errors
    ///
    /// When the file cannot be written; nothing has changed then.
    pub fn put(&self, user: User) -> Result<(), UsersError> {
        self.change(|book| {
            book.insert(user.name.folded(), Arc::new(user));
            Ok(())
        })
    }

    /// Removes a user.
    ///
    /// # Errors
    ///
    /// When nobody has that name or the file cannot be written.
    pub fn remove(&self, name: &str) -> Result<(), UsersError> {
        self.change(|book| book.remove(&fold(name)).map(drop).ok_or_else(|| UsersError::NotFound(name.to_owned())))
    }

    fn change(&self, edit: impl FnOnce(&mut Book) -> Result<(), UsersError>) -> Result<(), UsersError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut book = Book::clone(&self.book());
        edit(&mut book)?;
        let unwritable = |source| UsersError::Unwritable { file: self.path.to_path_buf(), source };
        let text =
            file::encode(book.values().map(AsRef::as_ref)).map_err(|error| unwritable(io::Error::other(error)))?;
        write_atomically(&self.path, 0o600, text.as_bytes()).map_err(unwritable)?;
        self.book.send_replace(Arc::new(book));
        Ok(())
    }
}

impl VmRights {
    /// Whether the VM of that name is among them.
    #[must_use]
    pub fn allow(&self, vm: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.iter().any(|name| name.eq_ignore_ascii_case(vm)),
        }
    }
}

impl UserName {
    /// The form by which names are compared.
    #[must_use]
    pub fn folded(&self) -> String {
        fold(&self.0)
    }

    /// The name as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PartialEq for UserName {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for UserName {}

impl FromStr for UserName {
    type Err = UserNameError;

    /// The characters that route a connection (`\`, `#`, `@`, `/`) cannot be part of a name.
    fn from_str(text: &str) -> Result<Self, UserNameError> {
        let valid = text.len() <= MAX_USER_NAME
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
        if valid { Ok(Self(text.to_owned())) } else { Err(UserNameError) }
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn fold(name: &str) -> String {
    name.to_ascii_lowercase()
}

fn decode(path: &Path, text: &str) -> Result<Book, UsersError> {
    let mut book = Book::new();
    for user in file::decode(path, text).map_err(UsersError::Invalid)? {
        let name = user.name.clone();
        if book.insert(name.folded(), Arc::new(user)).is_some() {
            return Err(UsersError::Invalid(format!("{}: user `{name}` is there twice", path.display())));
        }
    }
    Ok(book)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::TempFolder;

    fn user(name: &str) -> User {
        let secret = Secret::new("password", Keep::Argon2Only).unwrap();
        User { name: name.parse().unwrap(), secret, vms: VmRights::All }
    }

    #[test]
    fn names_are_compared_without_case() {
        let folder = TempFolder::new("users");
        let path = folder.path().join("users.toml");
        let users = Users::open(path.clone()).unwrap();
        users.add(user("Anna")).unwrap();
        assert!(matches!(users.add(user("anna")), Err(UsersError::Exists(_))));
        assert_eq!(users.find("ANNA").unwrap().name.as_str(), "Anna");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let again = Users::open(path).unwrap();
        assert_eq!(again.book().len(), 1);
        again.remove("aNNa").unwrap();
        assert!(matches!(again.remove("anna"), Err(UsersError::NotFound(_))));
    }

    #[test]
    fn whoever_watches_sees_a_change_at_once() {
        let folder = TempFolder::new("watch");
        let users = Users::open(folder.path().join("users.toml")).unwrap();
        let mut watch = users.clone().watch();
        assert!(!watch.has_changed().unwrap());
        users.add(user("bob")).unwrap();
        assert!(watch.has_changed().unwrap());
        assert!(watch.borrow_and_update().contains_key("bob"));
    }

    #[test]
    fn a_change_that_cannot_be_written_did_not_happen() {
        let folder = TempFolder::new("unwritable");
        let users = Users::open(folder.path().join("gone/users.toml")).unwrap();
        assert!(matches!(users.add(user("bob")), Err(UsersError::Unwritable { .. })));
        assert!(users.find("bob").is_none());
    }

    #[test]
    fn names_that_would_route_a_connection_are_refused() {
        for name in ["", "a b", "vm\\a", "a#b", "a@b", "a/b", "-a", ".", "ä", &"x".repeat(65)] {
            assert_eq!(name.parse::<UserName>().unwrap_err(), UserNameError, "{name:?}");
        }
    }

    #[test]
    fn rights_to_vms_ignore_case() {
        let rights = VmRights::Only(["Web01".to_owned()].into());
        assert!(rights.allow("web01") && !rights.allow("web02"));
        assert!(VmRights::All.allow("anything"));
    }
}
