//! Making an empty image.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use serde::{Deserialize, Serialize};

use super::info::describe;
use super::output::{Output, claim};
use super::qemu_img::Progress;
use super::{DiskError, Disks, ImageInfo, Made, absolute, convert, real};
use crate::again::Again;
use crate::definition::{DiskFormat, DiskSource, Remote};
use crate::jobs::{JobHandle, JobId, JobKind, NewJob, Unfinished};

/// Sectors: sizes are multiples of it.
const SECTOR: u64 = 512;
/// Largest image, in bytes.
pub(super) const MAX_SIZE: u64 = 1 << 50;
/// Largest VHD: 2040 GiB, says its specification.
const MAX_VHD: u64 = 2040 << 30;
/// Largest VHDX: 64 TiB.
const MAX_VHDX: u64 = 64 << 40;

/// An image to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewImage {
    /// Where; absolute, and nothing may be there yet.
    pub path: PathBuf,
    /// Bytes that a guest sees, rounded up to whole sectors. None takes the size of the backing file.
    #[serde(default)]
    pub size: Option<u64>,
    /// How it is laid out; none means what its name tells.
    #[serde(default)]
    pub format: Option<DiskFormat>,
    /// Whether a VHD or VHDX grows as it is written to.
    #[serde(default)]
    pub layout: Layout,
    /// What it stands on: it holds only what differs from that.
    #[serde(default)]
    pub backing: Option<BackingFile>,
    /// How much of its space is reserved at once.
    #[serde(default)]
    pub preallocation: Preallocation,
}

/// Whether a VHD or VHDX grows as it is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// It does.
    #[default]
    Dynamic,
    /// It is as large as its disk from the beginning.
    Fixed,
}

/// How much of the space of an image is reserved at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// The tables of a qcow2.
    Metadata,
    /// All; the file system marks it as reserved.
    Falloc,
    /// All, by writing zeros.
    Full,
}

/// An image that another stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackingFile {
    /// Where it is: an absolute path, or a server that is only read from.
    pub source: DiskSource,
    /// How it is laid out; none means what its VM or its name tells.
    #[serde(default)]
    pub format: Option<DiskFormat>,
}

/// An image to make, with everything decided.
#[derive(Debug, Clone)]
struct Plan {
    path: PathBuf,
    size: u64,
    format: DiskFormat,
    layout: Layout,
    backing: Option<Below>,
    preallocation: Preallocation,
}

/// What an image to make stands on.
#[derive(Debug, Clone)]
struct Below {
    /// A path or a URL.
    name: String,
    format: DiskFormat,
    /// Bytes that a guest sees.
    size: u64,
}

impl Disks {
    /// Makes an empty image. Where its space is reserved this is a job.
    ///
    /// # Errors
    ///
    /// When something is there already, the request says what cannot be, or it cannot be written.
    pub async fn create(&self, image: NewImage) -> Result<Made, DiskError> {
        self.create_as(None, image).await
    }

    /// The same as the job that it is already, if there is one.
    pub(crate) async fn create_as(&self, job: Option<JobId>, image: NewImage) -> Result<Made, DiskError> {
        let again = Again::Create(image.clone()).in_json();
        let plan = self.plan(image).await?;
        self.note_overlay(&plan).await?;
        let made = self.create_noted(job, again, &plan).await;
        if made.is_err() {
            self.forget_overlay(&plan);
        }
        made
    }

    async fn create_noted(
        &self,
        job: Option<JobId>,
        again: Option<serde_json::Value>,
        plan: &Plan,
    ) -> Result<Made, DiskError> {
        if plan.preallocation == Preallocation::Off {
            return self.create_now(plan).await.map(|info| Made::Image(Box::new(info)));
        }
        convert::require_space(&plan.path, plan.size)?;
        let output = Output::claim(&plan.path)?;
        let new = NewJob { kind: JobKind::DiskCreate, target: plan.path.display().to_string(), vm: None, again };
        let (disks, plan) = (self.clone(), plan.clone());
        let work = |job| async move {
            let made = disks.create_reserved(&plan, output, &job).await;
            if made.is_err() {
                disks.forget_overlay(&plan);
            }
            made
        };
        Ok(Made::Job(Box::new(self.host.jobs().spawn_as(job, new, work).await?)))
    }

    /// Decides what the request leaves open.
    async fn plan(&self, image: NewImage) -> Result<Plan, DiskError> {
        absolute(&image.path)?;
        let format = image.format.or_else(|| DiskFormat::of_name(&image.path));
        let unclear = || DiskError::UnclearFormat { path: image.path.clone(), what: "its name does not tell".into() };
        let format = format.ok_or_else(unclear)?;
        let backing = match &image.backing {
            Some(backing) => Some(self.backing(backing).await?),
            None => None,
        };
        let size = image.size.or(backing.as_ref().map(|below| below.size));
        let size = size.ok_or_else(|| DiskError::invalid("an image needs a size, or a backing file"))?;
        let plan = Plan {
            path: image.path,
            size: round_up(size),
            format,
            layout: image.layout,
            backing,
            preallocation: image.preallocation,
        };
        plan.check().map_or(Ok(plan), |reason| Err(DiskError::Invalid(reason)))
    }

    /// Has it known that an image will stand on another which is not beside it, before anybody can write to that.
    async fn note_overlay(&self, plan: &Plan) -> Result<(), DiskError> {
        let base = plan.backing.as_ref().map(|below| PathBuf::from(&below.name)).filter(|base| base.is_absolute());
        let (Some(base), Some(folder), Some(name)) = (base, plan.path.parent(), plan.path.file_name()) else {
            return Ok(());
        };
        let (base, overlay) = (real(&base)?, real(folder)?.join(name));
        if fs::symlink_metadata(&overlay).is_ok() {
            return Err(DiskError::Exists(plan.path.clone()));
        }
        if base.parent() != overlay.parent() {
            let (host, pair) = (self.host.shared().clone(), (overlay, base.clone()));
            let noted = tokio::task::spawn_blocking(move || host.overlays.note(&[pair])).await;
            let file = self.host.shared().overlays.file();
            noted.map_err(io::Error::other).flatten().map_err(|error| DiskError::unwritable(file, error))?;
        }
        // Whoever starts from now on sees it; who was faster has it.
        match self.writer_that_is_on(&base) {
            Some(vm) => Err(DiskError::InUse { path: base, by: format!("VM {vm} writes it") }),
            None => self.unwritten(&base),
        }
    }

    fn forget_overlay(&self, plan: &Plan) {
        // A note too many does no harm.
        let _ = self.host.shared().overlays.forget(&plan.path);
    }

    async fn backing(&self, backing: &BackingFile) -> Result<Below, DiskError> {
        let path = match &backing.source {
            DiskSource::Empty => return Err(DiskError::invalid("an image cannot stand on nothing")),
            DiskSource::Remote(remote) => return self.remote_backing(remote, backing).await,
            DiskSource::Path(path) => path,
        };
        absolute(path)?;
        let info = self.info(path, backing.format).await?;
        let name = info.path.to_str().ok_or_else(|| DiskError::invalid("the path of a backing file must be UTF-8"))?;
        match info.users.iter().find(|user| user.writes) {
            Some(user) => Err(DiskError::InUse { path: info.path, by: user.in_words() }),
            None => Ok(Below { name: name.into(), format: info.format, size: info.size }),
        }
    }

    async fn remote_backing(&self, remote: &Remote, backing: &BackingFile) -> Result<Below, DiskError> {
        let name = remote.to_string();
        if let Remote::Nbd { tls: Some(_), .. } = remote {
            let reason =
                "an image cannot say which certificates its backing file needs; use the server as a disk itself";
            return Err(DiskError::invalid(reason));
        }
        let unclear = || DiskError::UnclearFormat { path: (&name).into(), what: "its name does not tell".into() };
        let format = backing.format.or_else(|| backing.source.named_format()).ok_or_else(unclear)?;
        let described = describe(&self.program, Path::new(&name), format).await?;
        // Its server could name any file of this host.
        if described.backing.is_some() {
            return Err(DiskError::invalid(format!("{name} stands on another image, which a server does not decide")));
        }
        Ok(Below { name, format, size: described.size })
    }

    async fn create_now(&self, plan: &Plan) -> Result<ImageInfo, DiskError> {
        let placeholder = claim(&plan.path)?;
        let made = self.make(plan, &plan.path).await;
        let made = match made {
            Ok(()) => self.info(&plan.path, Some(plan.format)).await,
            Err(error) => Err(error),
        };
        if made.is_err() {
            // The first error is the one to tell.
            let _ = placeholder.remove();
        }
        made
    }

    async fn make(&self, plan: &Plan, path: &Path) -> Result<(), DiskError> {
        if plan.format == DiskFormat::Raw {
            // A raw image without reserved space needs no program.
            let stretched = OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(plan.size));
            return stretched.map_err(|error| DiskError::unwritable(path, error));
        }
        self.program.ask(plan.arguments(path)).await.map(drop)
    }

    async fn create_reserved(
        &self,
        plan: &Plan,
        output: Output,
        job: &JobHandle,
    ) -> Result<Option<serde_json::Value>, Unfinished> {
        job.step("reserving");
        let (leftovers, path) = (output.leftovers(), output.path().to_path_buf());
        let progress = Progress::Grown { file: &path, total: plan.size };
        self.program.work(plan.arguments(&path), progress, job, &leftovers).await?;
        if plan.reserves_itself() {
            reserve(path.clone(), plan.size, job).await?;
        }
        self.finish(output, plan.format, job).await
    }

    /// Gives a file its name; what came of the job is the image.
    pub(super) async fn finish(
        &self,
        output: Output,
        format: DiskFormat,
        job: &JobHandle,
    ) -> Result<Option<serde_json::Value>, Unfinished> {
        job.step("writing");
        job.seal()?;
        let path = output.target().to_path_buf();
        let completed = tokio::task::spawn_blocking(move || output.complete()).await;
        completed.map_err(|error| Unfinished::Failed(error.to_string()))??;
        let info = self.info(&path, Some(format)).await.map_err(|error| Unfinished::Failed(error.to_string()))?;
        Ok(serde_json::to_value(info).ok())
    }
}

impl Plan {
    /// What cannot be.
    fn check(&self) -> Option<String> {
        let most = match self.format {
            DiskFormat::Vhd => MAX_VHD,
            DiskFormat::Vhdx => MAX_VHDX,
            DiskFormat::Raw | DiskFormat::Qcow2 | DiskFormat::Vmdk => MAX_SIZE,
        };
        let is_hyperv = matches!(self.format, DiskFormat::Vhd | DiskFormat::Vhdx);
        let word = self.format.word();
        let reason = match self.preallocation {
            _ if self.format == DiskFormat::Vmdk => "vmdk images are only read; take qcow2".into(),
            _ if self.size == 0 => "the size cannot be 0".into(),
            _ if self.size > most => format!("{word} images have {most} bytes at most"),
            _ if self.layout == Layout::Fixed && !is_hyperv => {
                format!("only vhd and vhdx images are fixed; for {word} reserve the space instead")
            }
            _ if self.backing.is_some() && self.format != DiskFormat::Qcow2 => {
                format!("{word} images stand on nothing; take qcow2")
            }
            Preallocation::Metadata if self.format != DiskFormat::Qcow2 => {
                "only the tables of qcow2 images are reserved".into()
            }
            Preallocation::Full if is_hyperv => format!("{word} images are reserved by `falloc`"),
            Preallocation::Falloc if is_hyperv && self.layout == Layout::Dynamic => {
                format!("the space of a {word} image is reserved only when it is fixed")
            }
            Preallocation::Falloc | Preallocation::Full if self.backing.is_some() => {
                "an image that stands on another holds only what differs: reserve metadata, or nothing".into()
            }
            _ => return None,
        };
        Some(reason)
    }

    /// Whether the program leaves holes where all should be reserved.
    fn reserves_itself(&self) -> bool {
        self.layout == Layout::Fixed && self.preallocation == Preallocation::Falloc
    }

    fn arguments(&self, path: &Path) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = ["create", "-q", "-f", self.format.driver()].map(Into::into).into();
        let mut options = layout_options(self.format, self.layout);
        if self.preallocation != Preallocation::Off && !self.reserves_itself() {
            options.push(format!("preallocation={}", self.preallocation.word()));
        }
        for option in options {
            arguments.extend(["-o".into(), option.into()]);
        }
        if let Some(Below { name, format, .. }) = &self.backing {
            arguments.extend(["-b".into(), name.into(), "-F".into(), format.driver().into()]);
        }
        arguments.extend(["--".into(), path.into(), self.size.to_string().into()]);
        arguments
    }
}

/// The options that make an image fixed or not, and exactly as large as it shall be.
pub(super) fn layout_options(format: DiskFormat, layout: Layout) -> Vec<String> {
    let layout = match layout {
        Layout::Dynamic => "dynamic",
        Layout::Fixed => "fixed",
    };
    match format {
        // Otherwise QEMU rounds to what cylinders, heads and sectors can say, as Virtual PC did; Hyper-V does not.
        DiskFormat::Vhd => vec!["force_size=on".into(), format!("subformat={layout}")],
        DiskFormat::Vhdx => vec![format!("subformat={layout}")],
        DiskFormat::Raw | DiskFormat::Qcow2 | DiskFormat::Vmdk => Vec::new(),
    }
}

/// To whole sectors; what is too large for that is refused for its size.
pub(super) fn round_up(size: u64) -> u64 {
    size.checked_next_multiple_of(SECTOR).unwrap_or(u64::MAX)
}

impl Preallocation {
    fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metadata => "metadata",
            Self::Falloc => "falloc",
            Self::Full => "full",
        }
    }
}

/// Reserves the space of a file that is there, piece by piece so that it can be stopped.
async fn reserve(path: PathBuf, size: u64, job: &JobHandle) -> Result<(), Unfinished> {
    const PIECE: u64 = 256 << 20;
    let file = OpenOptions::new().write(true).open(&path)?;
    let length = file.metadata()?.len();
    let mut at = 0;
    while at < length {
        let piece = PIECE.min(length - at);
        let file = file.try_clone()?;
        let reserved = tokio::task::spawn_blocking(move || reserve_piece(&file, at, piece));
        tokio::select! {
            reserved = reserved => reserved.map_err(|error| Unfinished::Failed(error.to_string()))??,
            () = job.stopped() => return Err(Unfinished::Stopped),
        }
        at += piece;
        job.advance(at.min(size), size);
    }
    Ok(())
}

fn reserve_piece(file: &File, at: u64, length: u64) -> io::Result<()> {
    Ok(rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, at, length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(format: DiskFormat) -> Plan {
        Plan {
            path: format!("/srv/a.{}", format.word()).into(),
            size: 1 << 30,
            format,
            layout: Layout::Dynamic,
            backing: None,
            preallocation: Preallocation::Off,
        }
    }

    fn words(plan: &Plan) -> String {
        let arguments = plan.arguments(&plan.path);
        arguments.iter().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn qemu_img_is_told_exactly_what_is_wanted() {
        assert_eq!(words(&plan(DiskFormat::Qcow2)), "create -q -f qcow2 -- /srv/a.qcow2 1073741824");
        assert_eq!(
            words(&Plan { layout: Layout::Fixed, preallocation: Preallocation::Falloc, ..plan(DiskFormat::Vhd) }),
            "create -q -f vpc -o force_size=on -o subformat=fixed -- /srv/a.vhd 1073741824"
        );
        let backing = Some(Below { name: "/srv/base,1.vhdx".into(), format: DiskFormat::Vhdx, size: 1 << 30 });
        assert_eq!(
            words(&Plan { backing, preallocation: Preallocation::Metadata, ..plan(DiskFormat::Qcow2) }),
            "create -q -f qcow2 -o preallocation=metadata -b /srv/base,1.vhdx -F vhdx -- /srv/a.qcow2 1073741824"
        );
    }

    #[test]
    fn what_a_format_cannot_do_is_refused() {
        let refused = |plan: Plan, words: &str| {
            let reason = plan.check().expect("refused");
            assert!(reason.contains(words), "{reason}");
        };
        assert_eq!(plan(DiskFormat::Vhd).check(), None);
        refused(plan(DiskFormat::Vmdk), "only read");
        refused(Plan { size: 0, ..plan(DiskFormat::Raw) }, "cannot be 0");
        refused(Plan { size: MAX_VHD + 1, ..plan(DiskFormat::Vhd) }, "at most");
        refused(Plan { layout: Layout::Fixed, ..plan(DiskFormat::Qcow2) }, "reserve the space instead");
        let backing = Some(Below { name: "/b".into(), format: DiskFormat::Raw, size: 1 });
        refused(Plan { backing, ..plan(DiskFormat::Vhdx) }, "take qcow2");
        refused(Plan { preallocation: Preallocation::Metadata, ..plan(DiskFormat::Raw) }, "qcow2");
        refused(Plan { preallocation: Preallocation::Falloc, ..plan(DiskFormat::Vhdx) }, "only when it is fixed");
        assert_eq!((round_up(1), round_up(u64::MAX)), (512, u64::MAX));
    }
}
