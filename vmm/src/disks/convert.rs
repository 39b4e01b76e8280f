//! Copying an image into another format.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::create::{Layout, layout_options};
use super::output::Output;
use super::qemu_img::Progress;
use super::{DiskError, Disks, ImageInfo, absolute};
use crate::again::Again;
use crate::definition::DiskFormat;
use crate::jobs::{Job, JobHandle, JobId, JobKind, Leftover, NewJob, Unfinished};

/// An image to copy into another format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Convert {
    /// What is copied; nobody may write to it meanwhile.
    pub source: PathBuf,
    /// How that is laid out; none means what its VM or its name tells.
    #[serde(default)]
    pub source_format: Option<DiskFormat>,
    /// Where to; absolute, and nothing may be there yet. It stands on nothing.
    pub target: PathBuf,
    /// How that shall be laid out; none means what its name tells.
    #[serde(default)]
    pub format: Option<DiskFormat>,
    /// Whether a VHD or VHDX grows as it is written to.
    #[serde(default)]
    pub layout: Layout,
    /// Bytes per second at most, so that guests have something left of the disk.
    #[serde(default)]
    pub rate: Option<u64>,
}

impl Disks {
    /// Copies an image, with all that it stands on, into a new one.
    ///
    /// # Errors
    ///
    /// When the target is there already, there is no space, somebody writes to the source, or the request says what
    /// cannot be.
    pub async fn convert(&self, request: Convert) -> Result<Job, DiskError> {
        self.convert_as(None, request).await
    }

    /// The same as the job that it is already, if there is one.
    pub(crate) async fn convert_as(&self, job: Option<JobId>, request: Convert) -> Result<Job, DiskError> {
        let again = Again::Convert(request.clone()).in_json();
        absolute(&request.source)?;
        absolute(&request.target)?;
        let unclear =
            || DiskError::UnclearFormat { path: request.target.clone(), what: "its name does not tell".into() };
        let format = request.format.or_else(|| DiskFormat::of_name(&request.target)).ok_or_else(unclear)?;
        check_target(format, request.layout)?;
        let source = self.info(&request.source, request.source_format).await?;
        check_chain(&source)?;
        self.unwritten(&source.path)?;
        require_space(&request.target, self.bytes_in(&source).await?)?;
        let output = Output::claim(&request.target)?;
        let target = format!("{} to {}", source.path.display(), request.target.display());
        let new = NewJob { kind: JobKind::DiskConvert, target, vm: None, again };
        let disks = self.clone();
        let job = self.host.jobs().spawn_as(job, new, |job| async move {
            job.step("copying");
            let arguments = arguments(&source, format, request.layout, request.rate, output.path());
            disks.copy(arguments, source.size, &output, &job).await?;
            disks.finish(output, format, &job).await
        });
        Ok(job.await?)
    }

    /// Copies an image that nobody writes to, with all that it stands on, as a step of another job. It keeps its format.
    /// `leftovers` is what that job leaves beside.
    pub(crate) async fn copy_image(
        &self,
        source: &Path,
        format: DiskFormat,
        target: &Path,
        job: &JobHandle,
        leftovers: &[Leftover],
    ) -> Result<(), Unfinished> {
        let prepare = async {
            let source = self.info(source, Some(format)).await?;
            check_chain(&source)?;
            self.unwritten(&source.path)?;
            Ok((source, Output::claim(target)?))
        };
        let (source, output) = prepare.await.map_err(|error: DiskError| Unfinished::Failed(error.to_string()))?;
        let arguments = arguments(&source, format, Layout::Dynamic, None, output.path());
        self.program.work(arguments, Progress::Told { total: source.size }, job, leftovers).await?;
        Ok(output.complete()?)
    }

    /// About how many bytes a copy of an image has.
    pub(crate) async fn room_for_copy(&self, source: &Path, format: DiskFormat) -> Result<u64, DiskError> {
        self.bytes_in(&self.info(source, Some(format)).await?).await
    }

    /// Runs a copy to its end.
    pub(super) async fn copy(
        &self,
        arguments: Vec<OsString>,
        total: u64,
        output: &Output,
        job: &JobHandle,
    ) -> Result<(), Unfinished> {
        self.program.work(arguments, Progress::Told { total }, job, &output.leftovers()).await
    }

    /// About how many bytes of an image are not zero.
    pub(super) async fn bytes_in(&self, image: &ImageInfo) -> Result<u64, DiskError> {
        #[derive(Deserialize)]
        struct Measured {
            required: u64,
        }
        let words = ["measure", "--output=json", "-U", "-f", image.format.driver(), "-O", "qcow2", "--"];
        let mut arguments: Vec<OsString> = words.map(Into::into).into();
        arguments.push((&image.path).into());
        let measured: Measured = self.program.ask_about(&image.path, arguments).await?;
        Ok(measured.required)
    }
}

fn check_target(format: DiskFormat, layout: Layout) -> Result<(), DiskError> {
    if format == DiskFormat::Vmdk {
        return Err(DiskError::invalid("vmdk images are only read; take qcow2"));
    }
    if layout == Layout::Fixed && !matches!(format, DiskFormat::Vhd | DiskFormat::Vhdx) {
        return Err(DiskError::invalid(format!("only vhd and vhdx images are fixed, not {}", format.word())));
    }
    Ok(())
}

/// An image that stands on something that cannot be read cannot be copied.
pub(super) fn check_chain(image: &ImageInfo) -> Result<(), DiskError> {
    let broken = image.backing.iter().find_map(|backing| Some((backing, backing.problem.as_ref()?)));
    broken.map_or(Ok(()), |(backing, problem)| {
        Err(DiskError::Refused(format!("{} stands on {}: {problem}", image.path.display(), backing.name)))
    })
}

/// Fails when the folder of `target` has less free space than is needed.
pub(crate) fn require_space(target: &Path, needed: u64) -> Result<(), DiskError> {
    let folder = target.parent().unwrap_or(Path::new("/"));
    let system = rustix::fs::statvfs(folder).map_err(|error| DiskError::unwritable(target, error.into()))?;
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    if free < needed { Err(DiskError::NoSpace { folder: folder.into(), needed, free }) } else { Ok(()) }
}

pub(super) fn arguments(
    source: &ImageInfo,
    format: DiskFormat,
    layout: Layout,
    rate: Option<u64>,
    target: &Path,
) -> Vec<OsString> {
    let words = ["convert", "-p", "-f", source.format.driver(), "-O", format.driver()];
    let mut arguments: Vec<OsString> = words.map(Into::into).into();
    for option in layout_options(format, layout) {
        arguments.extend(["-o".into(), option.into()]);
    }
    if let Some(rate) = rate {
        arguments.extend(["-r".into(), rate.to_string().into()]);
    }
    arguments.extend(["--".into(), (&source.path).into(), target.into()]);
    arguments
}
