//! What an image is: format, sizes, snapshots, what it stands on, who uses it.

use std::ffi::OsString;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::create::Layout;
use super::error::DiskError;
use super::format;
use super::hyperv::{self, Kind};
use super::qemu_img::{QemuImg, senseless};
use super::users::{ImageUser, users_of};
use crate::definition::{DiskFormat, Remote};

/// Longest chain of backing files that is followed; QEMU gets slow long before.
pub(crate) const MAX_CHAIN: usize = 64;
/// Most snapshots in one image that are shown.
const MAX_SNAPSHOTS: usize = 1000;

/// An image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Where it is.
    pub path: PathBuf,
    /// How it is laid out.
    pub format: DiskFormat,
    /// Whether it grows as it is written to, if it is a VHD or VHDX.
    pub layout: Option<Layout>,
    /// Bytes that a guest sees.
    pub size: u64,
    /// Bytes that it takes on its disk.
    pub on_disk: Option<u64>,
    /// Bytes that are allocated at a time.
    pub cluster: Option<u64>,
    /// It was not closed in order; the next who opens it for writing repairs it.
    pub dirty: bool,
    /// It is damaged.
    pub corrupt: bool,
    /// Its own snapshots.
    pub snapshots: Vec<ImageSnapshot>,
    /// What it stands on, the nearest first.
    pub backing: Vec<BackingImage>,
    /// Who has it open.
    pub users: Vec<ImageUser>,
}

/// An image that another stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackingImage {
    /// Where it is: a path, or a URL.
    pub name: String,
    /// How it is laid out.
    pub format: Option<DiskFormat>,
    /// Bytes that a guest would see.
    pub size: Option<u64>,
    /// Why it cannot be used, if it cannot.
    pub problem: Option<String>,
}

/// A snapshot inside an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSnapshot {
    /// Its number.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Bytes of a VM's memory that are in it.
    pub memory: u64,
    /// When it was taken, in seconds since 1970.
    pub taken: u64,
}

/// What `qemu-img info` says of one image.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Described {
    pub(crate) format: String,
    pub(crate) size: u64,
    pub(crate) on_disk: Option<u64>,
    pub(crate) cluster: Option<u64>,
    pub(crate) dirty: bool,
    pub(crate) corrupt: bool,
    pub(crate) snapshots: Vec<ImageSnapshot>,
    pub(crate) backing: Option<Backing>,
}

/// The backing file that an image names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backing {
    pub(crate) name: String,
    pub(crate) format: Option<String>,
}

/// Describes the image at `path` and all that it stands on. Needs no lock: a running VM is not disturbed.
pub(super) async fn info(program: &QemuImg, path: &Path, said: Option<DiskFormat>) -> Result<ImageInfo, DiskError> {
    let kind = std::fs::metadata(path).map_err(|error| DiskError::unreadable(path, error))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(DiskError::invalid(format!("{} is neither a file nor a block device", path.display())));
    }
    let format = format::to_read(path, said)?;
    let layout = match hyperv::kind_of(path, format).map_err(|error| DiskError::unreadable(path, error))? {
        Some(Kind::Differencing) => {
            let reason = "it holds only what differs from another image, which is not read here; merge them first";
            return Err(DiskError::invalid(format!("{}: {reason}", path.display())));
        }
        Some(Kind::Whole(layout)) => Some(layout),
        None => None,
    };
    let described = describe(program, path, format).await?;
    let backing = chain(program, path, &described).await;
    Ok(ImageInfo {
        path: path.into(),
        format,
        layout,
        size: described.size,
        on_disk: described.on_disk,
        cluster: described.cluster,
        dirty: described.dirty,
        corrupt: described.corrupt,
        snapshots: described.snapshots,
        backing,
        users: users_of(path).map_err(|error| DiskError::unreadable(path, error))?,
    })
}

/// Describes one image without what it stands on.
pub(crate) async fn describe(program: &QemuImg, path: &Path, format: DiskFormat) -> Result<Described, DiskError> {
    let mut arguments: Vec<OsString> = ["info", "--output=json", "-U", "-f", format.driver()].map(Into::into).into();
    arguments.push("--".into());
    arguments.push(path.into());
    let answer = program.ask(arguments).await?;
    let described = Described::parse(&answer).map_err(|reason| senseless(path, reason))?;
    // A protocol driver may have a say of its own; the format is what was asked for.
    if DiskFormat::of_driver(&described.format) == Some(format) {
        Ok(described)
    } else {
        Err(DiskError::Refused(format!("{} is {}, not {}", path.display(), described.format, format.word())))
    }
}

async fn chain(program: &QemuImg, top: &Path, described: &Described) -> Vec<BackingImage> {
    let (mut images, mut next) = (Vec::new(), described.backing.clone());
    let mut seen = vec![top.to_path_buf()];
    while let Some(backing) = next.take() {
        let image = match backing.locate() {
            // It is not asked: a server that is silent would make everybody wait who asks about the image.
            _ if backing.is_remote() => backing.remote(),
            Ok((path, _)) if seen.contains(&path) => backing.broken("it stands on itself"),
            Ok(_) if images.len() == MAX_CHAIN => backing.broken("the chain is too long to be followed"),
            Ok((path, format)) => match describe(program, &path, format).await {
                Ok(described) => {
                    seen.push(path);
                    let image = BackingImage { size: Some(described.size), ..backing.sound(format) };
                    next = described.backing;
                    image
                }
                Err(error) => backing.broken(error.to_string()),
            },
            Err(problem) => backing.broken(problem),
        };
        images.push(image);
    }
    images
}

impl Backing {
    /// The file and its format, or why it is not followed.
    pub(crate) fn locate(&self) -> Result<(PathBuf, DiskFormat), String> {
        let path = self.path().ok_or("it is not a file of this host")?;
        // To guess would be to believe bytes that a guest may have written.
        let format = self.format.as_deref().ok_or("the image above does not say which format it is")?;
        let format = DiskFormat::of_driver(format).ok_or_else(|| format!("format {format} is not read here"))?;
        Ok((path, format))
    }

    pub(crate) fn path(&self) -> Option<PathBuf> {
        self.name.starts_with('/').then(|| PathBuf::from(&self.name))
    }

    /// Whether a server has it.
    fn is_remote(&self) -> bool {
        self.name.parse::<Remote>().is_ok()
    }

    fn remote(&self) -> BackingImage {
        let format = self.format.as_deref().and_then(DiskFormat::of_driver);
        BackingImage { name: self.name.clone(), format, size: None, problem: None }
    }

    fn sound(&self, format: DiskFormat) -> BackingImage {
        BackingImage { name: self.name.clone(), format: Some(format), size: None, problem: None }
    }

    fn broken(&self, problem: impl Into<String>) -> BackingImage {
        let format = self.format.as_deref().and_then(DiskFormat::of_driver);
        BackingImage { name: self.name.clone(), format, size: None, problem: Some(problem.into()) }
    }
}

impl Described {
    /// Reads the JSON of `qemu-img info`. Names in it come out of the image, so they may be anything.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        let raw: Raw = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let name = raw.full_backing_filename.or(raw.backing_filename);
        let backing = name.map(|name| Backing { name, format: raw.backing_filename_format });
        Ok(Self {
            format: printable(&raw.format),
            size: raw.virtual_size,
            on_disk: raw.actual_size,
            cluster: raw.cluster_size,
            dirty: raw.dirty_flag,
            corrupt: raw.format_specific.is_some_and(|specific| specific.data["corrupt"] == true),
            snapshots: raw.snapshots.into_iter().take(MAX_SNAPSHOTS).map(RawSnapshot::read).collect(),
            backing,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Raw {
    format: String,
    virtual_size: u64,
    actual_size: Option<u64>,
    cluster_size: Option<u64>,
    #[serde(default)]
    dirty_flag: bool,
    format_specific: Option<RawSpecific>,
    #[serde(default)]
    snapshots: Vec<RawSnapshot>,
    backing_filename: Option<String>,
    full_backing_filename: Option<String>,
    backing_filename_format: Option<String>,
}

#[derive(Deserialize)]
struct RawSpecific {
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawSnapshot {
    id: String,
    name: String,
    #[serde(default)]
    vm_state_size: u64,
    #[serde(default)]
    date_sec: i64,
}

impl RawSnapshot {
    fn read(self) -> ImageSnapshot {
        ImageSnapshot {
            id: printable(&self.id),
            name: printable(&self.name),
            memory: self.vm_state_size,
            taken: u64::try_from(self.date_sec).unwrap_or(0),
        }
    }
}

fn printable(text: &str) -> String {
    text.replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_qemu_img_says_is_read() {
        let json = r#"{"children": [], "backing-filename-format": "qcow2", "virtual-size": 67108864,
            "filename": "/srv/ov.qcow2", "cluster-size": 65536, "format": "qcow2", "actual-size": 200704,
            "snapshots": [{"icount": 0, "vm-clock-nsec": 0, "name": "be\u001bfore", "date-sec": 1764104400,
                           "date-nsec": 5, "vm-clock-sec": 0, "id": "1", "vm-state-size": 7}],
            "format-specific": {"type": "qcow2", "data": {"compat": "1.1", "corrupt": true}},
            "full-backing-filename": "/srv/base.qcow2", "backing-filename": "base.qcow2", "dirty-flag": true}"#;
        let described = Described::parse(json.as_bytes()).expect("read");
        assert_eq!((described.size, described.on_disk, described.cluster), (64 << 20, Some(200_704), Some(65_536)));
        assert!(described.dirty && described.corrupt);
        let taken = ImageSnapshot { id: "1".into(), name: "be?fore".into(), memory: 7, taken: 1_764_104_400 };
        assert_eq!(described.snapshots, [taken]);
        let backing = described.backing.expect("one");
        assert_eq!(backing.locate(), Ok(("/srv/base.qcow2".into(), DiskFormat::Qcow2)));
    }

    #[test]
    fn a_backing_file_is_followed_only_when_its_format_is_on_record() {
        let backing = |name: &str, format: Option<&str>| Backing { name: name.into(), format: format.map(Into::into) };
        assert!(backing("/srv/base", None).locate().unwrap_err().contains("does not say which format"));
        assert!(backing("/srv/base", Some("luks")).locate().unwrap_err().contains("luks"));
        assert!(backing("nbd://host/export", Some("raw")).locate().is_err());
        assert!(backing("json:{\"driver\":\"file\"}", Some("raw")).locate().is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        for json in ["", "[]", "{}", r#"{"format": "raw"}"#, r#"{"format": "raw", "virtual-size": -1}"#] {
            assert!(Described::parse(json.as_bytes()).is_err(), "{json}");
        }
    }
}
