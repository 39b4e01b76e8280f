//! Pools of keys and values that programs on both sides know of: one file each.
//!
//! A file has a line per key, with its parts separated by tabs: key, `text`, `u32` or `u64`, value. Tabs, line ends and
//! backslashes inside are written `\t`, `\n`, `\r` and `\\`. The host's pools are written by the agent, whole; the
//! guest's one is written by the guest's programs and only read here.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use enhanced_session::class::Text;
use enhanced_session::class::guest_info::{MAX_KEY, Pool, PoolError, Request, Response, Value};

/// Where the files are.
pub(super) const FOLDER: &str = "/var/lib/fanlight/pools";
/// Most keys of a pool.
const MAX_KEYS: usize = 256;
/// No file with so many keys is longer.
const MAX_FILE_BYTES: u64 = 2 * 1024 * 1024;

type Key = Text<MAX_KEY>;
type Entries = Vec<(Key, Value)>;

/// The pools that are files.
#[derive(Debug)]
pub(super) struct Pools {
    folder: PathBuf,
}

impl Pools {
    pub(super) const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// What the host asks; `auto` is the pool that the agent makes up itself.
    pub(super) fn answer(&self, request: Request, auto: impl FnOnce() -> Entries) -> Response {
        let result = match request {
            Request::Get { pool, key } => self.entries(pool, auto).and_then(|entries| get(entries, &key)),
            Request::Enumerate { pool, index } => self.entries(pool, auto).and_then(|entries| nth(entries, index)),
            Request::Set { pool, key, value } => self.change(pool, |entries| set(entries, key, value)),
            Request::Delete { pool, key } => self.change(pool, |entries| delete(entries, &key)),
            Request::Unknown(_) => Ok(Response::Unsupported),
        };
        result.unwrap_or_else(|error| Response::Failed { error })
    }

    fn entries(&self, pool: Pool, auto: impl FnOnce() -> Entries) -> Result<Entries, PoolError> {
        match file_name(pool) {
            Some(name) => read(&self.folder.join(name)).map_err(|_| PoolError::Failed),
            None => Ok(auto()),
        }
    }

    fn change(
        &self,
        pool: Pool,
        change: impl FnOnce(&mut Entries) -> Result<(), PoolError>,
    ) -> Result<Response, PoolError> {
        let name = match pool {
            Pool::External | Pool::AutoExternal => file_name(pool).ok_or(PoolError::NotAllowed)?,
            Pool::Guest | Pool::Auto => return Err(PoolError::NotAllowed),
        };
        let path = self.folder.join(name);
        let mut entries = read(&path).map_err(|_| PoolError::Failed)?;
        change(&mut entries)?;
        write(&path, &entries).map_err(|error| {
            tracing::debug!(%error, ?path, "cannot write a pool");
            PoolError::Failed
        })?;
        Ok(Response::Done)
    }
}

const fn file_name(pool: Pool) -> Option<&'static str> {
    match pool {
        Pool::External => Some("external"),
        Pool::Guest => Some("guest"),
        Pool::AutoExternal => Some("auto-external"),
        Pool::Auto => None,
    }
}

fn get(entries: Entries, key: &Key) -> Result<Response, PoolError> {
    let (_, value) = entries.into_iter().find(|(each, _)| each == key).ok_or(PoolError::NotFound)?;
    Ok(Response::Value { value })
}

fn nth(entries: Entries, index: u32) -> Result<Response, PoolError> {
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    let (key, value) = entries.into_iter().nth(index).ok_or(PoolError::NoMoreItems)?;
    Ok(Response::Item { key, value })
}

fn set(entries: &mut Entries, key: Key, value: Value) -> Result<(), PoolError> {
    if let Some((_, old)) = entries.iter_mut().find(|(each, _)| *each == key) {
        *old = value;
    } else if entries.len() < MAX_KEYS {
        entries.push((key, value));
    } else {
        return Err(PoolError::Full);
    }
    Ok(())
}

fn delete(entries: &mut Entries, key: &Key) -> Result<(), PoolError> {
    let before = entries.len();
    entries.retain(|(each, _)| each != key);
    if entries.len() == before { Err(PoolError::NotFound) } else { Ok(()) }
}

/// Lines that are no entry are skipped; a pool without a file is empty.
fn read(path: &Path) -> io::Result<Entries> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Entries::new()),
        Err(error) => return Err(error),
    };
    let text = io::read_to_string(io::Read::take(file, MAX_FILE_BYTES))?;
    Ok(text.lines().filter_map(entry).take(MAX_KEYS).collect())
}

fn entry(line: &str) -> Option<(Key, Value)> {
    let mut parts = line.split('\t');
    let (key, kind, value) = (parts.next()?, parts.next()?, parts.next()?);
    let value = match kind {
        "text" => Value::Text { text: Text::new(unescape(value)).ok()? },
        "u32" => Value::U32 { number: value.parse().ok()? },
        "u64" => Value::U64 { number: value.parse().ok()? },
        _ => return None,
    };
    Some((Text::new(unescape(key)).ok()?, value))
}

/// All or nothing: a program that reads meanwhile, or a crash, finds the old file or the new one.
fn write(path: &Path, entries: &[(Key, Value)]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let mut text = String::new();
    for (key, value) in entries {
        let (kind, value) = match value {
            Value::Text { text } => ("text", escape(text)),
            Value::U32 { number } => ("u32", number.to_string()),
            Value::U64 { number } => ("u64", number.to_string()),
        };
        text.push_str(&format!("{}\t{kind}\t{value}\n", escape(key)));
    }
    let temporary = path.with_extension("new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(folder)?.sync_all()
}

const ESCAPES: [(char, char); 4] = [('\t', 't'), ('\n', 'n'), ('\r', 'r'), ('\\', '\\')];

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match ESCAPES.iter().find(|(plain, _)| *plain == character) {
            Some((_, name)) => escaped.extend(['\\', *name]),
            None => escaped.push(character),
        }
    }
    escaped
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let named = if character == '\\' { characters.next() } else { None };
        let known = named.and_then(|named| ESCAPES.iter().find(|(_, name)| *name == named));
        plain.push(known.map_or(named.unwrap_or(character), |(plain, _)| *plain));
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("fanlight-agent-{}-pools-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            Self(folder)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn key(text: &str) -> Key {
        Text::new(text).unwrap()
    }

    fn text(text: &str) -> Value {
        Value::Text { text: Text::new(text).unwrap() }
    }

    fn ask(pools: &Pools, request: Request) -> Response {
        pools.answer(request, Entries::new)
    }

    #[test]
    fn what_the_host_sets_is_there_until_it_deletes_it() {
        let scratch = Scratch::new("set");
        let (pools, pool) = (Pools::new(scratch.0.clone()), Pool::External);
        let failed = |error| Response::Failed { error };
        assert_eq!(ask(&pools, Request::Get { pool, key: key("role") }), failed(PoolError::NotFound));
        let value = text("a\tb\nc\\");
        assert_eq!(ask(&pools, Request::Set { pool, key: key("role"), value: value.clone() }), Response::Done);
        let number = Value::U64 { number: u64::MAX };
        assert_eq!(ask(&pools, Request::Set { pool, key: key("n"), value: number.clone() }), Response::Done);

        let again = Pools::new(scratch.0.clone());
        assert_eq!(ask(&again, Request::Get { pool, key: key("role") }), Response::Value { value });
        assert_eq!(ask(&again, Request::Enumerate { pool, index: 1 }), Response::Item { key: key("n"), value: number });
        assert_eq!(ask(&again, Request::Enumerate { pool, index: 2 }), failed(PoolError::NoMoreItems));
        assert_eq!(ask(&again, Request::Delete { pool, key: key("n") }), Response::Done);
        assert_eq!(ask(&again, Request::Delete { pool, key: key("n") }), failed(PoolError::NotFound));
    }

    #[test]
    fn the_guests_pools_are_read_only() {
        let scratch = Scratch::new("guest");
        let pools = Pools::new(scratch.0.clone());
        for pool in [Pool::Guest, Pool::Auto] {
            let set = Request::Set { pool, key: key("k"), value: text("v") };
            assert_eq!(ask(&pools, set), Response::Failed { error: PoolError::NotAllowed });
        }
        fs::create_dir_all(&scratch.0).unwrap();
        fs::write(scratch.0.join("guest"), "no entry\nbackup\tu32\t1\nbackup\tu32\tx\n").unwrap();
        let get = Request::Get { pool: Pool::Guest, key: key("backup") };
        assert_eq!(ask(&pools, get), Response::Value { value: Value::U32 { number: 1 } });
        let auto = Request::Get { pool: Pool::Auto, key: key("OSName") };
        let response = pools.answer(auto, || vec![(key("OSName"), text("Debian"))]);
        assert_eq!(response, Response::Value { value: text("Debian") });
    }

    #[test]
    fn a_pool_can_be_full_and_a_disk_can_fail() {
        let scratch = Scratch::new("full");
        let pools = Pools::new(scratch.0.clone());
        let entries: Entries = (0..MAX_KEYS).map(|number| (key(&number.to_string()), text(""))).collect();
        write(&scratch.0.join("external"), &entries).unwrap();
        let set = |name| Request::Set { pool: Pool::External, key: key(name), value: text("v") };
        assert_eq!(ask(&pools, set("more")), Response::Failed { error: PoolError::Full });
        assert_eq!(ask(&pools, set("0")), Response::Done);
        let nowhere = Pools::new(PathBuf::from("/proc/nowhere"));
        assert_eq!(ask(&nowhere, set("k")), Response::Failed { error: PoolError::Failed });
    }

    proptest! {
        #[test]
        fn every_text_survives_its_file(text in any::<String>()) {
            let escaped = escape(&text);
            prop_assert!(!escaped.contains(['\t', '\n', '\r']));
            prop_assert_eq!(unescape(&escaped), text);
        }
    }
}
