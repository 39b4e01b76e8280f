//! An entry's definition ⇄ a VM's.
//!
//! In an entry, files are named as they lie beside its definition. Nothing else can be named there: an entry comes from
//! elsewhere, and must not lead to the files of this host.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use toml::{Table, Value};
use uuid::Uuid;

use super::{DEFINITION, LibraryError, MAX_TEXT, SIZES};
use crate::definition::{Boot, Definition};

/// An entry as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    folder: PathBuf,
    definition: String,
    /// None: nobody wrote any.
    sizes: Option<String>,
}

impl Entry {
    pub(super) fn read(folder: &Path) -> Result<Self, LibraryError> {
        if !folder.is_absolute() {
            return Err(LibraryError::NoEntry { entry: folder.into(), reason: "not an absolute path".into() });
        }
        let told = |path: &Path, error| LibraryError::Io { path: path.into(), error };
        fs::metadata(folder).map_err(|error| told(folder, error))?;
        let definition = folder.join(DEFINITION);
        let definition = read_text(&definition).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let reason =
                    format!("no entry of a library, or one whose copy is not complete: it has no {DEFINITION}");
                LibraryError::NoEntry { entry: folder.into(), reason }
            }
            _ => told(&definition, error),
        })?;
        let path = folder.join(SIZES);
        let sizes = match read_text(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(told(&path, error)),
        };
        Ok(Self { folder: folder.into(), definition, sizes })
    }

    /// The definition of a VM that is made from it, called `name`, or as the entry says.
    pub(super) fn vm(&self, name: Option<&str>) -> Result<Definition, LibraryError> {
        let path = self.folder.join(DEFINITION);
        let no_entry = |reason: String| LibraryError::NoEntry { entry: path.clone(), reason };
        let mut table: Table = self.definition.parse().map_err(|error: toml::de::Error| no_entry(error.to_string()))?;
        if let Some(name) = name {
            table.insert("name".into(), name.into());
        }
        table.insert("uuid".into(), Uuid::new_v4().to_string().into());
        each_file(&mut table, |value| {
            let name = value.as_str().filter(|name| is_plain(name));
            let name = name.ok_or_else(|| format!("{value} is not the name of a file beside {DEFINITION}"))?;
            *value = self.folder.join(name).display().to_string().into();
            Ok(())
        })
        .map_err(no_entry)?;
        // The lines of what is parsed here are not those of the file.
        Definition::parse(&table.to_string(), &path).map_err(|error| no_entry(error.reason))
    }

    /// The files that `definition`, which is of it, names.
    pub(super) fn files(&self, definition: &Definition) -> Vec<PathBuf> {
        let disks = definition.disks.iter().filter_map(|disk| disk.source.path());
        let files = disks.chain(boot_files(definition)).filter(|path| path.starts_with(&self.folder));
        files.map(Path::to_path_buf).collect()
    }

    /// Whether the files are there, and as long as they were when the entry was made.
    pub(super) fn check_files(&self, definition: &Definition) -> Result<(), LibraryError> {
        let no_entry = |path: &Path, reason: String| LibraryError::NoEntry { entry: path.into(), reason };
        let sizes = self.sizes.as_deref().map(parse_sizes);
        let list = self.folder.join(SIZES);
        let sizes = sizes
            .map(|sizes| sizes.ok_or_else(|| no_entry(&list, "no list of lengths and names".into())))
            .transpose()?;
        for path in self.files(definition) {
            let length = fs::metadata(&path).map_err(|error| LibraryError::Io { path: path.clone(), error })?.len();
            let Some(sizes) = &sizes else { continue };
            let said = sizes.iter().find(|(name, _)| path.file_name().is_some_and(|file| file == name.as_str()));
            match said {
                Some((_, size)) if *size == length => {}
                Some((_, size)) => {
                    let reason = format!(
                        "{length} bytes long and not {size}: its copy is not complete, or something writes to it"
                    );
                    return Err(no_entry(&path, reason));
                }
                None => return Err(no_entry(&path, format!("not listed in {SIZES}"))),
            }
        }
        Ok(())
    }
}

/// The list of how long files of a folder are.
pub(super) fn write_sizes(folder: &Path, names: &[String]) -> io::Result<String> {
    let mut text = String::new();
    for name in names {
        // Writing into a text does not fail.
        let _ = writeln!(text, "{}  {name}", fs::metadata(folder.join(name))?.len());
    }
    Ok(text)
}

fn parse_sizes(text: &str) -> Option<Vec<(String, u64)>> {
    let line = |line: &str| {
        let (size, name) = line.split_once("  ")?;
        is_plain(name).then_some((name.to_owned(), size.parse().ok()?))
    };
    text.lines().map(line).collect()
}

/// What stands in the entry of a VM. `name` gives each of its files the name that it has there.
pub(super) fn write(definition: &Definition, name: impl Fn(&Path) -> Option<String>) -> Result<String, String> {
    let mut table: Table = definition.to_toml().parse().map_err(|error: toml::de::Error| error.message().to_owned())?;
    each_file(&mut table, |value| {
        let path = PathBuf::from(value.as_str().unwrap_or_default());
        let name = name(&path).ok_or_else(|| format!("{} is not copied", path.display()))?;
        *value = name.into();
        Ok(())
    })?;
    Ok(table.to_string())
}

/// Kernel and initial file system, where they are given.
pub(super) fn boot_files(definition: &Definition) -> impl Iterator<Item = &Path> {
    let (kernel, initrd) = match &definition.boot {
        Boot::Firmware => (None, None),
        Boot::DirectKernel { kernel, initrd, .. } => (Some(kernel.as_path()), initrd.as_deref()),
    };
    kernel.into_iter().chain(initrd)
}

pub(super) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read_limited(path, MAX_TEXT)?).map_err(io::Error::other)
}

pub(super) fn read_limited(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {most} bytes")));
    }
    Ok(bytes)
}

/// Whether it names a file of the same folder.
pub(super) fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) && !name.ends_with('/')
}

/// Changes the places where a definition names a file.
fn each_file(table: &mut Table, mut change: impl FnMut(&mut Value) -> Result<(), String>) -> Result<(), String> {
    if let Some(boot) = table.get_mut("boot").and_then(Value::as_table_mut) {
        for key in ["kernel", "initrd"] {
            boot.get_mut(key).map_or(Ok(()), &mut change)?;
        }
    }
    let disks = table.get_mut("disk").and_then(Value::as_array_mut).into_iter().flatten();
    for disk in disks.filter_map(Value::as_table_mut) {
        disk.get_mut("path").map_or(Ok(()), &mut change)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_same_folder_are_plain() {
        assert!(is_plain("disk.qcow2") && is_plain("..x"));
        for name in ["", ".", "..", "/etc/passwd", "a/b", "../a", "./a/b", "a/"] {
            assert!(!is_plain(name), "{name}");
        }
    }

    #[test]
    fn a_definition_goes_into_an_entry_and_comes_out_with_its_files() {
        let folder = std::env::temp_dir().join(format!("fanlight-entry-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("temporary folder");
        let mut definition = Definition::new("web", Uuid::from_u128(1));
        definition.boot = Boot::DirectKernel { kernel: "/srv/k".into(), initrd: None, cmdline: "a b".into() };
        let text = write(&definition, |path| Some(format!("{}.copy", path.file_name()?.to_str()?))).expect("written");
        assert!(text.contains("\"k.copy\"") && !text.contains("/srv"), "{text}");
        std::fs::write(folder.join(DEFINITION), text).expect("written");
        std::fs::write(folder.join("k.copy"), "kernel").expect("written");
        let entry = Entry::read(&folder).expect("read");
        let vm = entry.vm(Some("web2")).expect("of an entry");
        assert!(vm.name == "web2" && vm.uuid != definition.uuid);
        assert_eq!(entry.files(&vm), [folder.join("k.copy")]);
        entry.check_files(&vm).expect("nobody listed them");
        std::fs::write(folder.join(SIZES), write_sizes(&folder, &["k.copy".into()]).expect("there")).expect("written");
        let entry = Entry::read(&folder).expect("read");
        entry.check_files(&vm).expect("as long as it was");
        std::fs::write(folder.join("k.copy"), "ker").expect("written");
        let error = entry.check_files(&vm).expect_err("half a copy").to_string();
        assert!(error.contains("3 bytes long and not 6"), "{error}");
        std::fs::remove_file(folder.join("k.copy")).expect("removed");
        assert!(entry.check_files(&vm).expect_err("missing").to_string().contains("No such file"));
        std::fs::remove_file(folder.join(DEFINITION)).expect("removed");
        assert!(Entry::read(&folder).expect_err("no entry").to_string().contains("copy is not complete"));
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn an_entry_cannot_name_the_files_of_this_host() {
        let folder = std::env::temp_dir().join(format!("fanlight-entry-host-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("temporary folder");
        let head = "name = \"x\"\nuuid = \"7c8f1c5e-3c55-4f3f-9d0e-0a4b8d1f2e3c\"\nmemory = 64\n";
        for bad in ["[boot]\nkernel = \"/etc/shadow\"\n", "[[disk]]\npath = \"../x\"\nformat = \"raw\"\n"] {
            std::fs::write(folder.join(DEFINITION), format!("{head}{bad}")).expect("written");
            let error = Entry::read(&folder).expect("read").vm(None).expect_err("refused").to_string();
            assert!(error.contains("is not the name of a file beside vm.toml"), "{error}");
        }
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
