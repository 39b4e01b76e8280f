//! A definition and the file that it is in: both change together.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Definition, replace_file};

/// A VM's definition as it is now. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct DefinitionFile {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    current: Mutex<Arc<Definition>>,
    /// One change at a time.
    changing: Mutex<()>,
}

impl DefinitionFile {
    /// The `definition` that is in the file at `path`.
    pub(crate) fn new(definition: Definition, path: PathBuf) -> Self {
        let current = Mutex::new(Arc::new(definition));
        Self { shared: Arc::new(Shared { path, current, changing: Mutex::new(()) }) }
    }

    pub(crate) fn current(&self) -> Arc<Definition> {
        self.lock().clone()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Changes it: when this returns, the file says so and so does [`current`](Self::current). After an error both are as
    /// they were. Waits for the host's disk.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Definition)) -> io::Result<()> {
        let _changing = self.shared.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut definition = Definition::clone(&self.current());
        change(&mut definition);
        definition.validate().map_err(io::Error::other)?;
        replace_file(&self.shared.path, &definition.to_toml())?;
        *self.lock() = Arc::new(definition);
        Ok(())
    }

    /// Fails when somebody has written something else into the file since it was read: that is not to be overwritten.
    pub(crate) fn require_unedited(&self) -> io::Result<()> {
        let path = &self.shared.path;
        match std::fs::read_to_string(path) {
            Ok(text) if Definition::parse(&text, path).is_ok_and(|found| found == *self.current()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(_) => {
                let reason = "has been edited since the gateway read it; start the gateway again";
                Err(io::Error::other(format!("{} {reason}", path.display())))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Definition>> {
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_is_current_is_what_the_file_says() {
        let folder = std::env::temp_dir().join(format!("fanlight-definition-file-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("temporary folder");
        let file = DefinitionFile::new(Definition::new("demo", Uuid::nil()), folder.join("demo.toml"));
        file.change(|definition| definition.memory = 64).expect("changed");
        assert_eq!(Definition::load(file.path()).expect("read"), *file.current());
        assert_eq!(file.current().memory, 64);
        assert!(file.change(|definition| definition.memory = 0).is_err(), "a VM has memory");
        assert_eq!((file.current().memory, Definition::load(file.path()).expect("read").memory), (64, 64));
        file.require_unedited().expect("it is as it was written");
        let edited = Definition { memory: 128, ..Definition::clone(&file.current()) };
        replace_file(file.path(), &edited.to_toml()).expect("edited by hand");
        let error = file.require_unedited().expect_err("edited").to_string();
        assert!(error.contains("has been edited"), "{error}");
        std::fs::remove_dir_all(&folder).expect("removed");
        assert!(file.change(|definition| definition.memory = 128).is_err(), "there is no folder");
        assert_eq!(file.current().memory, 64);
    }
}
