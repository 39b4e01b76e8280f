//! The book on disk: `UUID.json`, replaced whole.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::book::Book;
use crate::definition::replace_file;
use crate::files::remove_file;

/// What is written; a greater number is a later program's.
const VERSION: u32 = 1;
/// Largest file that is read: the most checkpoints, each with a large definition, fit.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// Where a VM's book is.
#[derive(Debug)]
pub(super) struct Store {
    file: PathBuf,
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    checkpoints: &'a Book,
}

#[derive(Deserialize)]
struct Read<T> {
    version: u32,
    checkpoints: T,
}

impl Store {
    pub(super) fn new(file: PathBuf) -> Self {
        Self { file }
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// The book; an empty one if none was ever written.
    pub(super) fn read(&self) -> Result<Book, String> {
        let file = match File::open(&self.file) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Book::default()),
            Err(error) => return Err(error.to_string()),
        };
        let mut text = String::new();
        file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
        if text.len() as u64 > MAX_FILE {
            return Err(format!("larger than {MAX_FILE} bytes"));
        }
        decode(&text)
    }

    /// Writes it; after a crash there is the one before or this one.
    pub(super) fn write(&self, book: &Book) -> io::Result<()> {
        let folder = self.file.parent().ok_or_else(|| io::Error::other("a file needs a folder"))?;
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let text = serde_json::to_string_pretty(&Written { version: VERSION, checkpoints: book })?;
        replace_file(&self.file, &text)
    }

    /// Forgets it.
    pub(super) fn remove(&self) -> io::Result<()> {
        match remove_file(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

/// Reads a book's text.
fn decode(text: &str) -> Result<Book, String> {
    let read: Read<IgnoredAny> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if read.version > VERSION {
        return Err(format!("it was written by a later version of Fanlight ({})", read.version));
    }
    serde_json::from_str::<Read<Book>>(text).map(|read| read.checkpoints).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::book::{Change, Entry, Pending};
    use super::*;
    use crate::jobs::JobId;

    fn book() -> Book {
        let entry = |name: &str| Entry {
            tag: name.parse().expect("a name"),
            name: format!("{name} é"),
            notes: "two\nlines".into(),
            parent: None,
            taken: 5,
            automatic: true,
            memory: true,
            definition: Some("name = \"x\"".into()),
        };
        let what = Change::Create(entry("b"));
        Book {
            entries: vec![entry("a")],
            here: Some("a".parse().expect("a name")),
            pending: Some(Pending { what, job: Some(JobId(7)) }),
        }
    }

    #[test]
    fn a_book_is_read_as_it_was_written() {
        let folder = std::env::temp_dir().join(format!("fanlight-book-{}", std::process::id()));
        let store = Store::new(folder.join("checkpoints/a.json"));
        assert_eq!(store.read(), Ok(Book::default()));
        store.write(&book()).expect("written");
        assert_eq!(store.read(), Ok(book()));
        let revert = Change::Revert { tag: "a".parse().expect("a name"), resume: true };
        for what in [revert, Change::Delete("a".parse().expect("a name"))] {
            let book = Book { pending: Some(Pending { what, job: None }), ..book() };
            store.write(&book).expect("written");
            assert_eq!(store.read(), Ok(book));
        }
        store.remove().and_then(|()| store.remove()).expect("removed, and nothing is there");
        assert_eq!(store.read(), Ok(Book::default()));
        fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        for (text, reason) in [
            ("{", "EOF"),
            ("{\"version\":2,\"checkpoints\":{\"soul\":1}}", "it was written by a later version of Fanlight (2)"),
            ("{\"version\":1,\"checkpoints\":{\"here\":null,\"pending\":null,\"soul\":1}}", "unknown field `soul`"),
            ("{\"version\":1,\"checkpoints\":{\"here\":\"12\",\"pending\":null}}", "a snapshot's name"),
        ] {
            let said = decode(text).expect_err("refused");
            assert!(said.contains(reason), "{said}");
        }
    }
}
