//! A disk as people write it: `path=FILE,size=20G,bus=scsi`.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use vmm::{Disk, DiskBus, DiskCache, DiskFormat, DiskSource, Layout, NewImage, Preallocation};

use super::size::parse_disk_size;

/// What `--help` says of it.
pub(super) const DISK_HELP: &str = "\
A disk is written as [path=]FILE or url=URL, and then [,size=20G][,format=raw|qcow2|vhd|vhdx|vmdk]
[,bus=virtio|scsi|ide|sata][,device=disk|cdrom][,controller=N][,serial=TEXT][,cache=writeback|none][,id=NAME][,fixed]
[,readonly]. With `size` the image is created, without it has to be there; a size without a unit is in GiB. `sata` is
`ide`: which of them the guest sees is a matter of the controller. URLs: nbd://HOST[:PORT]/EXPORT,
nbd+unix:///EXPORT?socket=PATH, nbds://…?tls-certificates=FOLDER; http:// and https:// with readonly.";

/// A `--disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DiskOption {
    pub(super) disk: Disk,
    size: Option<u64>,
    layout: Layout,
}

impl DiskOption {
    /// Fails when its file has to be there and is not.
    pub(super) fn require_file(&self) -> Result<(), String> {
        match self.disk.source.path().filter(|_| self.size.is_none()) {
            Some(path) => require_file(path),
            None => Ok(()),
        }
    }

    /// The image to create for it, if one is to be created.
    pub(super) fn new_image(&self) -> Option<NewImage> {
        Some(NewImage {
            path: self.disk.source.path()?.into(),
            size: Some(self.size?),
            format: Some(self.disk.format),
            layout: self.layout,
            backing: None,
            preallocation: Preallocation::Off,
        })
    }
}

/// Reads a `--disk`.
pub(super) fn parse_disk(text: &str) -> Result<DiskOption, String> {
    let (mut source, mut size, mut format, mut layout) = (None, None, None, Layout::Dynamic);
    let mut disk = Disk::new(DiskSource::Empty, DiskFormat::Raw, DiskBus::Virtio);
    let mut bus = None;
    for (index, part) in text.split(',').enumerate() {
        match part.split_once('=') {
            // As short as virt-install takes it.
            None if index == 0 && part.contains(['/', '.']) => source = Some(DiskSource::Path(absolute(part.into()))),
            Some(("path", value)) if !value.is_empty() => source = Some(DiskSource::Path(absolute(value.into()))),
            Some(("url", value)) => source = Some(value.parse().map(DiskSource::Remote).map_err(words)?),
            Some(("size", value)) => size = Some(parse_disk_size(value)?),
            Some(("format", value)) => format = Some(word(value)?),
            Some(("bus", "sata")) => bus = Some(DiskBus::Ide),
            Some(("bus", value)) => bus = Some(word(value)?),
            Some(("device", "disk")) => disk.cdrom = false,
            Some(("device", "cdrom")) => (disk.cdrom, disk.readonly) = (true, true),
            Some(("controller", value)) => disk.controller = value.parse().map_err(words)?,
            Some(("serial", value)) => disk.serial = Some(value.into()),
            Some(("cache", value)) => disk.cache = word::<DiskCache>(value)?,
            Some(("id", value)) => disk.id = value.into(),
            None if part == "readonly" => disk.readonly = true,
            None if part == "fixed" => layout = Layout::Fixed,
            _ => {
                return Err(format!(
                    "`{part}` is not one of path=, url=, size=, format=, bus=, device=disk, device=cdrom, controller=, \
                     serial=, cache=, id=, fixed, readonly"
                ));
            }
        }
    }
    disk.source = source.ok_or("a disk needs path=FILE or url=URL")?;
    if size.is_some() && disk.source.path().is_none() {
        return Err("only a disk with a path is created".into());
    }
    if disk.cdrom && size.is_some() {
        return Err("a CD is not created; leave `size=` out".into());
    }
    disk.bus = bus.unwrap_or(if disk.cdrom { DiskBus::Ide } else { DiskBus::Virtio });
    disk.format = format.unwrap_or_else(|| usual_format(&disk.source));
    Ok(DiskOption { disk, size, layout })
}

/// Fails when there is no such file; one that only the service can see may be there.
pub(super) fn require_file(path: &Path) -> Result<(), String> {
    let is_missing = path.metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    if is_missing { Err(format!("there is no {}; with `size=` a disk is created", path.display())) } else { Ok(()) }
}

/// Reads a path or a URL.
pub(super) fn parse_source(text: &str) -> Result<DiskSource, String> {
    match DiskSource::of_words(text).map_err(words)? {
        DiskSource::Path(path) => Ok(DiskSource::Path(absolute(path))),
        source => Ok(source),
    }
}

/// The format that the name tells; else the bytes are the disk's.
pub(super) fn usual_format(source: &DiskSource) -> DiskFormat {
    source.named_format().unwrap_or(DiskFormat::Raw)
}

/// The service has another working folder.
pub(super) fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// A value by the word that stands for it in definition files.
pub(super) fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| match error.to_string().split_once("expected ") {
        Some((_, known)) => format!("`{text}` is not {known}"),
        None => error.to_string(),
    })
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_read_as_virt_install_writes_them() {
        let read = parse_disk("path=/srv/a.qcow2,size=20G,bus=scsi,readonly").unwrap();
        assert_eq!(read.size, Some(20 << 30));
        assert_eq!((read.disk.format, read.disk.bus, read.disk.readonly), (DiskFormat::Qcow2, DiskBus::Scsi, true));
        assert_eq!(parse_disk("path=/srv/a.img").unwrap().disk.format, DiskFormat::Raw);
        assert_eq!(parse_disk("path=/srv/a.img,format=vhdx").unwrap().disk.format, DiskFormat::Vhdx);
        let short = parse_disk("/srv/a.qcow2,size=20,bus=sata").unwrap();
        assert_eq!((short.size, short.disk.bus, short.disk.format), (Some(20 << 30), DiskBus::Ide, DiskFormat::Qcow2));
        let disc = parse_disk("a.iso,device=cdrom").unwrap().disk;
        assert_eq!(disc, Disk::cdrom(DiskSource::Path(absolute("a.iso".into())), DiskBus::Ide));
        let told = parse_disk("path=/a,format=zip").unwrap_err();
        assert!(told.starts_with("`zip` is not one of `raw`, `qcow2`,"), "{told}");
        for text in [
            "size=1G",
            "a.iso,device=cdrom,size=1G",
            "path=/a,device=floppy",
            "path=",
            "path=/a,sice=1G",
            "path=/a,format=zip",
            "path=/a,bus=floppy",
            "url=ftp://a/b",
        ] {
            assert!(parse_disk(text).is_err(), "{text}");
        }
    }

    #[test]
    fn everything_that_a_disk_can_have_is_read() {
        let read = parse_disk("url=nbd://host/x,bus=scsi,controller=1,serial=S-1,cache=none,id=data").unwrap().disk;
        assert_eq!(read.source.to_string(), "nbd://host/x");
        assert_eq!((read.controller, read.serial.as_deref(), read.id.as_str()), (1, Some("S-1"), "data"));
        assert_eq!((read.cache, read.format), (DiskCache::None, DiskFormat::Raw));
        assert_eq!(parse_disk("path=/a.vhd,size=1G,fixed").unwrap().new_image().unwrap().layout, Layout::Fixed);
        assert!(parse_disk("url=nbd://host/x,size=1G").is_err());
        let http = parse_source("https://host/a.qcow2").unwrap();
        assert_eq!(usual_format(&http), DiskFormat::Qcow2);
        assert!(parse_source("a.img").unwrap().path().unwrap().is_absolute());
    }
}
