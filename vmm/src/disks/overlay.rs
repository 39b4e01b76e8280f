//! Overlays: qcow2 images that take what a guest writes from now on, so that the image below stays as it is.
//!
//! What an image stands on is read out of its first bytes (QEMU's docs/interop/qcow2.rst) and not asked of a program: each
//! start of a VM wants to know.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::error::DiskError;
use super::hyperv::{has_log, read_at};
use super::info::describe;
use super::output::Output;
use super::qemu_img::QemuImg;
use super::real;
use crate::definition::{Definition, DiskFormat};
use crate::jobs::FileStamp;

/// Most overlays beside one image.
const MAX_OVERLAYS: u32 = 16;
/// How much of the beginning of a qcow2 image is looked at; its extensions are there.
pub(super) const HEAD: usize = 4096;
/// Longest name of what an image stands on, says the format.
const MAX_NAME: u32 = 1023;
/// What a qcow2 image begins with.
pub(super) const QCOW2: &[u8] = b"QFI\xfb";
/// The incompatible feature of an image whose counts of clusters are not to be trusted.
const DIRTY: u64 = 1;
/// The extension that names the format below.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// What a qcow2 image stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Below {
    pub(crate) path: PathBuf,
    /// None where the image does not say.
    pub(crate) format: Option<DiskFormat>,
}

/// Makes an empty overlay of `size` bytes beside the image at `base`. When this returns it lasts; else nothing is left.
pub(crate) async fn make_overlay(
    program: &QemuImg,
    base: &Path,
    format: DiskFormat,
    size: u64,
) -> Result<FileStamp, DiskError> {
    let base = real(base)?;
    let output = claim_beside(&base)?;
    // It does not look at what is below (`-u`): a QEMU may have that open to write.
    let words = ["create", "-q", "-u", "-f", "qcow2", "-F", format.driver(), "-b"];
    let mut arguments: Vec<OsString> = words.map(Into::into).into();
    arguments.extend([base.into(), "--".into(), output.path().into(), size.to_string().into()]);
    program.ask(arguments).await?;
    let path = output.target().to_path_buf();
    let completed = tokio::task::spawn_blocking(move || output.complete()).await.map_err(io::Error::other);
    let stamp = completed.flatten().and_then(|()| FileStamp::of(&path));
    stamp.map_err(|error| DiskError::unwritable(&path, error))
}

/// What the image at `path` stands on; none when it stands on nothing, or is no qcow2.
pub(crate) fn backing_of(path: &Path) -> io::Result<Option<Below>> {
    let mut file = File::open(path)?;
    let head = read_at(&mut file, 0, HEAD)?;
    below_in(&mut file, &head)
}

/// The same of an image that is open, by its first bytes.
pub(super) fn below_in(file: &mut File, head: &[u8]) -> io::Result<Option<Below>> {
    let Some((at, length)) = name_in(head) else { return Ok(None) };
    let name = read_at(file, at, usize::try_from(length).unwrap_or(0))?;
    Ok(Some(Below { path: OsStr::from_bytes(&name).into(), format: format_in(head) }))
}

/// How many snapshots the image at `path` has; none if it is no qcow2.
pub(super) fn snapshots_in(path: &Path) -> io::Result<u32> {
    let head = read_at(&mut File::open(path)?, 0, HEAD)?;
    Ok(number(&head, 60).filter(|_| head.starts_with(QCOW2)).unwrap_or(0))
}

/// What an image stands on that a checkpoint laid over a disk; none when it is another's.
pub(crate) fn laid_on(path: &Path) -> Option<(PathBuf, DiskFormat)> {
    let (path, below) = (real(path).ok()?, backing_of(path).ok().flatten()?);
    let (base, format) = (real(&below.path).ok()?, below.format?);
    let keeps_none = !matches!(format, DiskFormat::Qcow2 | DiskFormat::Vmdk);
    (keeps_none && names(&base).any(|name| name == path)).then_some((base, format))
}

/// Whether an overlay has nothing of its own: neither bytes nor snapshots.
pub(crate) async fn is_empty(program: &QemuImg, path: &Path) -> Result<bool, DiskError> {
    #[derive(Deserialize)]
    struct Extent {
        present: bool,
    }
    let alone = json!({ "driver": "qcow2", "backing": null, "file": { "driver": "file", "filename": path } });
    let mut arguments: Vec<OsString> = ["map", "-U", "--output=json", "--"].map(Into::into).into();
    arguments.push(format!("json:{alone}").into());
    let extents: Vec<Extent> = program.ask_about(path, arguments).await?;
    Ok(extents.iter().all(|extent| !extent.present)
        && describe(program, path, DiskFormat::Qcow2).await?.snapshots.is_empty())
}

/// Fails when an overlay beside the image at `path` would lose its sense if the image were written to.
pub(crate) async fn require_writable(program: &QemuImg, path: &Path) -> Result<(), DiskError> {
    let path = real(path)?;
    for overlay in names(&path) {
        // What cannot be read stands on nothing that would be known.
        let below = backing_of(&overlay).ok().flatten();
        if below.is_some_and(|below| same_file(&below.path, &path)) && !is_empty(program, &overlay).await? {
            let by = format!(
                "{} stands on it, which has the checkpoints and what was written since the first; use that as the disk, or \
                 remove it (`fanlight disk delete`)",
                overlay.display()
            );
            return Err(DiskError::Needed { path, by });
        }
    }
    Ok(())
}

/// Completes the VHDX images below the disks of a VM, where their last user died: below an overlay QEMU may not write to
/// them, and does not read them as they are.
pub(crate) async fn replay_below(program: &QemuImg, definition: &Definition) -> Result<(), DiskError> {
    for disk in definition.disks.iter().filter(|disk| disk.format == DiskFormat::Qcow2) {
        let below = disk.source.path().and_then(|path| backing_of(path).ok().flatten());
        if let Some(below) = below.filter(|below| below.format == Some(DiskFormat::Vhdx)) {
            replay(program, &below.path).await?;
        }
    }
    Ok(())
}

/// Repairs the qcow2 images of a VM's disks whose last user died while it counted their clusters late. QEMU would do it when
/// it opens them, and a large image takes longer than its start may.
pub(crate) async fn repair_counts(
    program: &QemuImg,
    definition: &Definition,
    deadline: Duration,
) -> Result<(), DiskError> {
    for disk in definition.disks.iter().filter(|disk| !disk.readonly && disk.format == DiskFormat::Qcow2) {
        let Some(path) = disk.source.path().filter(|path| counts_late(path).unwrap_or(false)) else { continue };
        tracing::info!(image = %path.display(), "an image that was not closed in order is repaired");
        let mut arguments: Vec<OsString> = ["check", "-q", "-r", "all", "-f", "qcow2", "--"].map(Into::into).into();
        arguments.push(path.into());
        program.ask_within(deadline, arguments).await?;
    }
    Ok(())
}

/// Whether a qcow2 image says that its counts are not to be trusted.
fn counts_late(path: &Path) -> io::Result<bool> {
    let head = read_at(&mut File::open(path)?, 0, HEAD)?;
    Ok(head.starts_with(QCOW2) && features(&head) & DIRTY != 0)
}

/// Has what the log of a VHDX holds reach its tables.
pub(crate) async fn replay(program: &QemuImg, path: &Path) -> Result<(), DiskError> {
    if !has_log(path).map_err(|error| DiskError::unreadable(path, error))? {
        return Ok(());
    }
    tracing::info!(image = %path.display(), "a VHDX that was not closed in order is completed");
    let mut arguments: Vec<OsString> = ["check", "-q", "-r", "all", "-f", "vhdx", "--"].map(Into::into).into();
    arguments.push(path.into());
    program.ask(arguments).await.map(drop)
}

/// Whether a checkpoint would call an overlay of the image at `base` so.
pub(super) fn is_name_of_overlay(path: &Path, base: &Path) -> bool {
    names(base).any(|name| name == path)
}

/// Whether two paths lead to one file.
pub(crate) fn same_file(a: &Path, b: &Path) -> bool {
    a == b || matches!((real(a), real(b)), (Ok(a), Ok(b)) if a == b)
}

/// Keeps the first name that nothing has.
fn claim_beside(base: &Path) -> Result<Output, DiskError> {
    for name in names(base) {
        match Output::claim(&name) {
            Err(DiskError::Exists(_)) => {}
            claimed => return claimed,
        }
    }
    Err(DiskError::invalid(format!(
        "{} has {MAX_OVERLAYS} overlays beside it; remove those not needed",
        base.display()
    )))
}

/// What the overlays of an image are called.
fn names(base: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let (base, file) = (base.to_path_buf(), base.file_name().unwrap_or_default().to_owned());
    (1..=MAX_OVERLAYS).map(move |number| {
        let mut name = file.clone();
        let number = if number == 1 { String::new() } else { format!("-{number}") };
        name.push(format!(".checkpoints{number}.qcow2"));
        base.with_file_name(name)
    })
}

/// Where the name of what an image stands on is, and how long it is.
fn name_in(head: &[u8]) -> Option<(u64, u32)> {
    head.starts_with(QCOW2).then_some(())?;
    let at = u64::from_be_bytes(head.get(8..16)?.try_into().ok()?);
    let length = number(head, 16)?;
    (at > 0 && (1..=MAX_NAME).contains(&length)).then_some((at, length))
}

/// What an image has that not every program knows. Version 2 has nothing of it, and other things at its place.
pub(super) fn features(head: &[u8]) -> u64 {
    let features = || Some(u64::from_be_bytes(head.get(72..80)?.try_into().ok()?));
    number(head, 4).filter(|version| *version >= 3).and_then(|_| features()).unwrap_or(0)
}

/// The format below.
fn format_in(head: &[u8]) -> Option<DiskFormat> {
    DiskFormat::of_driver(std::str::from_utf8(extension(head, BACKING_FORMAT)?).ok()?)
}

/// What the header extension `wanted` holds. They follow the header: a kind, a length and so many bytes, each padded to
/// eight.
pub(super) fn extension(head: &[u8], wanted: u32) -> Option<&[u8]> {
    // Version 2 had a header of a fixed length.
    let mut at = if number(head, 4)? < 3 { 72 } else { usize::try_from(number(head, 100)?).ok()? };
    loop {
        let (kind, length) = (number(head, at)?, usize::try_from(number(head, at.checked_add(4)?)?).ok()?);
        let begin = at.checked_add(8)?;
        let data = head.get(begin..begin.checked_add(length)?)?;
        match kind {
            0 => return None,
            kind if kind == wanted => return Some(data),
            _ => at = begin.checked_add(length.checked_next_multiple_of(8)?)?,
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;
    use crate::definition::{Disk, DiskBus};

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("fanlight-overlay-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).expect("a folder");
            Self(path)
        }

        fn raw(&self, name: &str) -> PathBuf {
            let path = self.0.join(name);
            File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("an image");
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn program() -> QemuImg {
        QemuImg::beside(Path::new("qemu"))
    }

    fn write(image: &Path) {
        let written = Command::new("qemu-io").args(["-f", "qcow2", "-c", "write -P 7 0 64k"]).arg(image).output();
        assert!(written.expect("qemu-io runs").status.success());
    }

    #[tokio::test]
    async fn an_overlay_has_a_name_of_its_own_and_says_what_it_stands_on() {
        let folder = Folder::new("names");
        let base = folder.raw("a, b=\"c\".vhdx");
        let overlay = async || make_overlay(&program(), &base, DiskFormat::Vhdx, 1 << 20).await.expect("made");
        let (first, second) = (overlay().await, overlay().await);
        assert_eq!(first.path(), folder.0.join("a, b=\"c\".vhdx.checkpoints.qcow2"));
        assert_eq!(second.path(), folder.0.join("a, b=\"c\".vhdx.checkpoints-2.qcow2"));
        let below = backing_of(first.path()).expect("read").expect("it stands on something");
        assert_eq!(below, Below { path: real(&base).expect("there"), format: Some(DiskFormat::Vhdx) });
        assert_eq!(backing_of(&base).expect("read"), None);
        assert_eq!(laid_on(second.path()), Some((real(&base).expect("there"), DiskFormat::Vhdx)));
        let copy = folder.0.join("mine.qcow2");
        fs::rename(second.path(), &copy).expect("renamed");
        assert_eq!((laid_on(&copy), laid_on(&base)), (None, None), "another's");
        assert_eq!(fs::read_dir(&folder.0).expect("there").count(), 3, "nothing else is left");
        make_overlay(&program(), &folder.0.join("missing"), DiskFormat::Raw, 512).await.expect_err("no such image");
    }

    #[tokio::test]
    async fn an_image_is_written_to_again_only_while_its_overlay_is_empty() {
        let folder = Folder::new("writable");
        let base = folder.raw("a.raw");
        let overlay = make_overlay(&program(), &base, DiskFormat::Raw, 1 << 20).await.expect("made");
        assert!(is_empty(&program(), overlay.path()).await.expect("looked"));
        require_writable(&program(), &base).await.expect("nothing is lost");
        let snapshot = |what: &str| {
            let done = Command::new("qemu-img").args(["snapshot", what, "a"]).arg(overlay.path()).status();
            assert!(done.expect("qemu-img runs").success());
        };
        snapshot("-c");
        let error = require_writable(&program(), &base).await.expect_err("a checkpoint would be lost").to_string();
        assert!(error.contains("a.raw is needed") && error.contains("a.raw.checkpoints.qcow2 stands on it"), "{error}");
        snapshot("-d");
        require_writable(&program(), &base).await.expect("nothing is lost");
        write(overlay.path());
        require_writable(&program(), &base).await.expect_err("what was written would be lost");
        require_writable(&program(), overlay.path()).await.expect("nothing stands on it");
    }

    /// A VHDX whose log has something that did not reach its place: the block allocation table, at 2 MiB.
    fn cut_off(path: &Path) {
        let made = Command::new("qemu-img").args(["create", "-q", "-f", "vhdx"]).arg(path).arg("1G").status();
        assert!(made.expect("qemu-img runs").success());
        let image = format!(
            "driver=vhdx,file.driver=blkdebug,file.image.driver=file,file.image.filename={},\
             file.inject-error.0.event=none,file.inject-error.0.iotype=write,file.inject-error.0.sector=4096",
            path.display()
        );
        let written = Command::new("qemu-io").args(["-c", "write -P 3 0 4k", "--image-opts", &image]).output();
        let written = written.expect("qemu-io runs");
        assert!(has_log(path).expect("readable"), "{written:?}");
    }

    #[tokio::test]
    async fn a_vhdx_that_was_not_closed_is_completed_before_it_is_only_read() {
        let folder = Folder::new("log");
        let base = folder.0.join("a.vhdx");
        cut_off(&base);
        let overlay = make_overlay(&program(), &base, DiskFormat::Vhdx, 1 << 30).await.expect("made");
        let disk = Disk::new(overlay.path().to_path_buf(), DiskFormat::Qcow2, DiskBus::Virtio);
        let definition = Definition { disks: vec![disk], ..Definition::new("demo", uuid::Uuid::nil()) };
        replay_below(&program(), &definition).await.expect("completed");
        let read = ["-r", "-f", "qcow2", "-c", "read -P 3 0 4k"];
        let read = Command::new("qemu-io").args(read).arg(overlay.path()).output().expect("qemu-io runs");
        assert!(read.status.success() && !String::from_utf8_lossy(&read.stdout).contains("failed"), "{read:?}");
    }

    #[tokio::test]
    async fn an_image_whose_clusters_were_to_be_counted_later_is_repaired_before_it_is_used() {
        let folder = Folder::new("late");
        let path = folder.0.join("a.qcow2");
        let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&path).arg("1M").status();
        assert!(made.expect("qemu-img runs").success());
        let options = format!("driver=qcow2,lazy-refcounts=on,file.driver=file,file.filename={}", path.display());
        let killed = ["-c", "write -P 4 0 64k", "-c", "flush", "-c", "abort", "--image-opts", &options];
        assert!(!Command::new("qemu-io").args(killed).output().expect("qemu-io runs").status.success());
        assert!(counts_late(&path).expect("read"));
        let disk = Disk::new(path.clone(), DiskFormat::Qcow2, DiskBus::Virtio);
        let definition = Definition { disks: vec![disk], ..Definition::new("demo", uuid::Uuid::nil()) };
        for _ in 0..2 {
            repair_counts(&program(), &definition, Duration::from_secs(60)).await.expect("repaired");
            assert!(!counts_late(&path).expect("read"));
        }
        let checked = Command::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(&path).status();
        assert!(checked.expect("qemu-img runs").success());
        let read = Command::new("qemu-io").args(["-r", "-f", "qcow2", "-c", "read -P 4 0 64k"]).arg(&path).output();
        let read = read.expect("qemu-io runs");
        assert!(read.status.success() && !String::from_utf8_lossy(&read.stdout).contains("failed"), "{read:?}");
    }

    #[test]
    fn what_is_cut_off_or_lies_stands_on_nothing() {
        let head = |name: u32, length: u32, header: u32, extension: u32| {
            let mut head = vec![0; 256];
            head[..4].copy_from_slice(b"QFI\xfb");
            for (at, number) in
                [(4, 3), (12, name), (16, length), (100, header), (104, BACKING_FORMAT), (108, extension)]
            {
                head[at..at + 4].copy_from_slice(&u32::to_be_bytes(number));
            }
            head[112..117].copy_from_slice(b"vhdx\0");
            head
        };
        assert_eq!(
            (name_in(&head(200, 9, 104, 4)), format_in(&head(200, 9, 104, 4))),
            (Some((200, 9)), Some(DiskFormat::Vhdx))
        );
        assert_eq!(name_in(&head(200, MAX_NAME + 1, 104, 4)), None);
        assert_eq!((name_in(&head(0, 9, 104, 4)), name_in(b"QFI\xfb")), (None, None));
        for (header, extension) in [(104, 5), (104, u32::MAX), (u32::MAX, 4), (253, 4)] {
            assert_eq!(format_in(&head(200, 9, header, extension)), None);
        }
        let endless = [&head(200, 9, 104, 4)[..104], &[0, 0, 0, 1, 0, 0, 0, 0].repeat(1000)].concat();
        assert_eq!(format_in(&endless), None);
    }
}
