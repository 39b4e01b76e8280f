//! Which other files an image needs, read out of its own bytes (QEMU's docs/interop/qcow2.rst; VMware's "Virtual Disk Format
//! 5.0") and not asked of a program: it is asked of all files of a folder, and before each start of a VM.
//!
//! What is found only keeps files from being deleted or written to. Nothing is read or written through it.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::hyperv::read_at;
use super::overlay::{Below, HEAD, QCOW2, below_in, extension, features};
use crate::definition::DiskFormat;

/// The incompatible feature of a qcow2 whose bytes are in another file.
const EXTERNAL_DATA: u64 = 1 << 2;
/// The extension with that file's name.
const DATA_FILE: u32 = 0x4441_5441;
/// How much of a VMDK's descriptor is looked at, in bytes.
const MAX_DESCRIPTOR: u64 = 64 * 1024;
/// A VMDK's unit of places and lengths.
const SECTOR: u64 = 512;
/// How deep a name in JSON is looked through.
const MAX_DEPTH: u32 = 16;

/// The other files that an image needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// What it stands on, when that is a file or a device.
    pub(super) backing: Option<Below>,
    /// Files that hold bytes of it.
    pub(super) parts: Vec<PathBuf>,
}

/// What the image at `path` needs; nothing if it is of a format that stands alone.
pub(super) fn needs_of(path: &Path) -> io::Result<Needs> {
    let mut file = File::open(path)?;
    let head = read_at(&mut file, 0, HEAD)?;
    if head.starts_with(QCOW2) {
        return qcow2(&mut file, &head, path);
    }
    Ok(vmdk(&mut file, &head)?.map_or_else(Needs::default, |descriptor| of_descriptor(&descriptor, path)))
}

fn qcow2(file: &mut File, head: &[u8], path: &Path) -> io::Result<Needs> {
    let backing =
        below_in(file, head)?.and_then(|below| Some(Below { path: located(&below.path, path)?, format: below.format }));
    let outside = features(head) & EXTERNAL_DATA != 0;
    let name = extension(head, DATA_FILE).filter(|_| outside).map(OsStr::from_bytes).map(Path::new);
    Ok(Needs { backing, parts: name.and_then(|name| located(name, path)).into_iter().collect() })
}

/// The descriptor of a VMDK: the file itself, or a part of it.
fn vmdk(file: &mut File, head: &[u8]) -> io::Result<Option<String>> {
    let (at, length) = if head.starts_with(b"# Disk DescriptorFile") {
        (0, MAX_DESCRIPTOR)
    } else if head.starts_with(b"KDMV") {
        let sectors = |at: usize| Some(u64::from_le_bytes(head.get(at..at.checked_add(8)?)?.try_into().ok()?));
        let bytes = |at| sectors(at).and_then(|sectors| sectors.checked_mul(SECTOR));
        let (Some(at), Some(length)) = (bytes(28), bytes(36)) else { return Ok(None) };
        (at, length.min(MAX_DESCRIPTOR))
    } else {
        return Ok(None);
    };
    let length = usize::try_from(length).unwrap_or(0);
    Ok(Some(String::from_utf8_lossy(&read_at(file, at, length)?).into_owned()))
}

fn of_descriptor(text: &str, path: &Path) -> Needs {
    let mut needs = Needs::default();
    for line in text.lines().map(str::trim) {
        let quoted = line.split('"').nth(1).filter(|name| !name.is_empty());
        let Some(name) = quoted.and_then(|name| located(Path::new(name), path)) else { continue };
        if line.starts_with("parentFileNameHint") {
            needs.backing = Some(Below { path: name, format: Some(DiskFormat::Vmdk) });
        } else if ["RW ", "RDONLY ", "NOACCESS "].iter().any(|access| line.starts_with(access)) {
            needs.parts.push(name);
        }
    }
    // A sparse one names itself.
    needs.parts.retain(|part| part.file_name() != path.file_name());
    needs
}

/// The file that QEMU opens for a name in the image at `image`; none for a server.
fn located(name: &Path, image: &Path) -> Option<PathBuf> {
    let text = name.as_os_str().as_bytes();
    if let Some(json) = text.strip_prefix(b"json:") {
        return in_json(&serde_json::from_slice(json).ok()?, MAX_DEPTH).and_then(|name| located(&name, image));
    }
    let text = text.strip_prefix(b"file:").unwrap_or(text);
    // What stands before a colon is a protocol, unless a slash comes first.
    let protocol = text.iter().take_while(|byte| **byte != b'/').any(|byte| *byte == b':');
    let (path, folder) = (Path::new(OsStr::from_bytes(text)), image.parent()?);
    (!protocol && !text.is_empty()).then(|| plain(&folder.join(path)))
}

/// The first name of a file in what QEMU writes for an image with options.
fn in_json(value: &Value, depth: u32) -> Option<PathBuf> {
    let table = value.as_object().filter(|_| depth > 0)?;
    let is_name = |key: &String| key == "filename" || key.ends_with(".filename");
    let here = table.iter().find_map(|(key, value)| is_name(key).then(|| value.as_str()).flatten());
    here.map(PathBuf::from).or_else(|| table.values().find_map(|value| in_json(value, depth - 1)))
}

/// The path without `.`; one that is not there any more can be compared.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("fanlight-needs-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).expect("a folder");
            Self(path)
        }

        /// Runs `qemu-img create` in the folder; the file that it made.
        fn create(&self, words: &str) -> PathBuf {
            let mut create = Command::new("qemu-img");
            let made = create.current_dir(&self.0).args(["create", "-q"]).args(words.split(' ')).output();
            let made = made.expect("qemu-img runs");
            assert!(made.status.success(), "{made:?}");
            let name = words.split(' ').rfind(|word| word.starts_with("made")).expect("a name");
            self.0.join(name)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_qemus_own_images_need_is_found_however_it_is_written() {
        let folder = Folder::new("written");
        let base = folder.0.join("base.raw");
        File::create(&base).and_then(|file| file.set_len(1 << 20)).expect("an image");
        let stands = |words: &str| needs_of(&folder.create(words)).expect("read");
        let below = Below { path: base.clone(), format: Some(DiskFormat::Raw) };
        let on_base = Needs { backing: Some(below), parts: vec![] };
        let absolute = format!("-f qcow2 -F raw -b {} made-a", base.display());
        let file = format!(r#"{{"driver":"file","filename":"{}"}}"#, base.display());
        let json = format!(r#"-f qcow2 -F raw -b json:{{"driver":"raw","file":{file}}} made-b"#);
        for words in [&absolute, &json, "-f qcow2 -F raw -b base.raw made-c", "-f qcow2 -F raw -b file:base.raw made-d"]
        {
            assert_eq!(stands(words), on_base, "{words}");
        }
        assert_eq!(stands("-f qcow2 -F raw -u -b nbd://host/export made-e 1M"), Needs::default(), "a server");
        for words in ["-f qcow2 made-f 1M", "-f raw made-g 1M", "-f vhdx made-h 1M", "-f vpc made-i 1M"] {
            assert_eq!(stands(words), Needs::default(), "{words}");
        }
        let outside = stands("-f qcow2 -o data_file=data.raw made-j 1M");
        assert_eq!(outside, Needs { backing: None, parts: vec![folder.0.join("data.raw")] });
    }

    #[test]
    fn the_files_of_a_vmdk_are_found() {
        let folder = Folder::new("vmdk");
        assert_eq!(needs_of(&folder.create("-f vmdk made.vmdk 1M")).expect("read"), Needs::default());
        let flat = folder.create("-f vmdk -o subformat=monolithicFlat made-two.vmdk 1M");
        assert_eq!(needs_of(&flat).expect("read").parts, [folder.0.join("made-two-flat.vmdk")]);
        let above = folder.create("-f vmdk -F vmdk -b made.vmdk made-above.vmdk");
        assert_eq!(needs_of(&above).expect("read").backing.map(|below| below.path), Some(folder.0.join("made.vmdk")));
    }

    #[test]
    fn what_is_cut_off_or_lies_needs_nothing() {
        let folder = Folder::new("lies");
        let path = folder.0.join("made");
        let far = [&b"KDMV"[..], &[0xff; 508]].concat();
        for bytes in [&b"QFI\xfb"[..], b"KDMV", &far, b"# Disk DescriptorFile\nRW 1 FLAT \"", b""] {
            fs::write(&path, bytes).expect("written");
            assert_eq!(needs_of(&path).expect("read"), Needs::default());
        }
        assert_eq!(located(Path::new("json:{"), &path), None);
        let deep = format!("json:{}\"filename\":\"/a\"{}", "{\"file\":{".repeat(20), "}".repeat(40));
        assert_eq!(located(Path::new(&deep), &path), None);
    }
}
