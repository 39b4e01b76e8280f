//! Making an image larger or smaller.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::census::{Reach, census};
use super::convert::{check_chain, require_space};
use super::create::{MAX_SIZE, layout_options, round_up};
use super::output::Output;
use super::overlay::same_file;
use super::{DiskError, Disks, ImageInfo, Made, absolute, real};
use crate::again::Again;
use crate::definition::{Disk, DiskFormat};
use crate::jobs::{Job, JobHandle, JobId, JobKind, NewJob, Unfinished};
use crate::vm::Vm;

/// An image to make larger or smaller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// The image; nobody may have it open, but for a VM whose disk becomes larger.
    pub path: PathBuf,
    /// How it is laid out; none means what its VM or its name tells.
    #[serde(default)]
    pub format: Option<DiskFormat>,
    /// How large it shall be.
    pub size: NewSize,
    /// Whether what lies beyond the end of a smaller image may be lost.
    #[serde(default)]
    pub shrink: bool,
}

/// How large an image shall be, in bytes, rounded up to whole sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NewSize {
    /// So large.
    To(u64),
    /// Larger by that.
    By(u64),
}

impl Disks {
    /// Makes an image larger, or smaller where that is asked for by name. A VHD or VHDX is copied for that, as a job. A disk
    /// of a VM that is on becomes larger while its guest uses it.
    ///
    /// # Errors
    ///
    /// When somebody else has it open, something stands on it, it would become smaller and nobody asked for that, or it
    /// cannot be written.
    pub async fn resize(&self, request: Resize) -> Result<Made, DiskError> {
        self.resize_as(None, request).await
    }

    /// The same as the job that it is already, if there is one.
    pub(crate) async fn resize_as(&self, job: Option<JobId>, request: Resize) -> Result<Made, DiskError> {
        absolute(&request.path)?;
        let path = real(&request.path)?;
        let image = self.info(&path, request.format).await?;
        let size = request.size.of(&image)?;
        if size < image.size && !request.shrink {
            let (now, lost) = (image.size, image.size - size);
            return Err(DiskError::invalid(format!(
                "{} has {now} bytes: to make it smaller loses the last {lost}, and is done only when asked for by name \
                 (`--shrink`)",
                path.display()
            )));
        }
        if let Some(by) = census(self.host.shared(), vec![path.clone()], Reach::All).await?.stood_on(&path) {
            return Err(DiskError::Needed { path, by });
        }
        if let Some((vm, disk)) = self.disk_that_is_on(&path) {
            return self.resize_in_use(&vm, &disk, &image, size).await;
        }
        self.unused(&path)?;
        match image.format {
            DiskFormat::Raw | DiskFormat::Qcow2 => self.resize_in_place(&image, size).await,
            DiskFormat::Vhd | DiskFormat::Vhdx if size >= image.size => {
                self.resize_by_copy(job, image, size).await.map(|job| Made::Job(Box::new(job)))
            }
            format => {
                Err(DiskError::invalid(format!("{} images cannot be made smaller or larger here", format.word())))
            }
        }
    }

    /// The disk of a VM whose QEMU has the image at `path` open.
    fn disk_that_is_on(&self, path: &Path) -> Option<(Vm, Disk)> {
        let is_it = |disk: &&Disk| disk.source.path().is_some_and(|other| same_file(other, path));
        let on = self.host.list().into_iter().filter(|vm| vm.status().pid.is_some());
        on.filter_map(|vm| {
            let disk = vm.definition().disks.iter().find(is_it).cloned()?;
            (!vm.status().next_start.contains(&disk.id)).then_some((vm, disk))
        })
        .next()
    }

    /// QEMU does it, and tells the guest.
    async fn resize_in_use(&self, vm: &Vm, disk: &Disk, image: &ImageInfo, size: u64) -> Result<Made, DiskError> {
        let in_use = |by: String| Err(DiskError::InUse { path: image.path.clone(), by });
        if size < image.size {
            return in_use(format!("VM {} is on; a disk becomes smaller only while its VM is off", vm.name()));
        }
        if disk.readonly || !matches!(disk.format, DiskFormat::Raw | DiskFormat::Qcow2) {
            let kind = if disk.readonly { "one that is only read" } else { disk.format.word() };
            return in_use(format!(
                "VM {} is on; a disk like it ({kind}) becomes larger only while its VM is off",
                vm.name()
            ));
        }
        vm.resize_disk(&disk.id, size).await.map_err(|error| DiskError::Refused(error.to_string()))?;
        Ok(Made::Image(Box::new(self.info(&image.path, Some(image.format)).await?)))
    }

    async fn resize_in_place(&self, image: &ImageInfo, size: u64) -> Result<Made, DiskError> {
        let mut arguments: Vec<OsString> = ["resize", "-q", "-f", image.format.driver()].map(Into::into).into();
        if size < image.size {
            arguments.push("--shrink".into());
        }
        arguments.extend(["--".into(), (&image.path).into(), size.to_string().into()]);
        self.program.ask(arguments).await?;
        Ok(Made::Image(Box::new(self.info(&image.path, Some(image.format)).await?)))
    }

    /// QEMU cannot stretch these: a larger one is made, and takes the place of the one that is there.
    async fn resize_by_copy(&self, job: Option<JobId>, image: ImageInfo, size: u64) -> Result<Job, DiskError> {
        check_chain(&image)?;
        require_space(&image.path, self.bytes_in(&image).await?)?;
        let output = Output::replace(&image.path)?;
        let target = format!("{} to {size} bytes", image.path.display());
        // By how much it shall grow has been settled.
        let (path, format) = (image.path.clone(), Some(image.format));
        let again = Again::Resize(Resize { path, format, size: NewSize::To(size), shrink: false }).in_json();
        let new = NewJob { kind: JobKind::DiskResize, target, vm: None, again };
        let disks = self.clone();
        let job = self
            .host
            .jobs()
            .spawn_as(job, new, |job| async move { disks.copy_larger(&image, size, output, &job).await });
        Ok(job.await?)
    }

    async fn copy_larger(
        &self,
        image: &ImageInfo,
        size: u64,
        output: Output,
        job: &JobHandle,
    ) -> Result<Option<serde_json::Value>, Unfinished> {
        job.step("copying");
        let driver = image.format.driver();
        let mut create: Vec<OsString> = ["create", "-q", "-f", driver].map(Into::into).into();
        for option in layout_options(image.format, image.layout.unwrap_or_default()) {
            create.extend(["-o".into(), option.into()]);
        }
        create.extend(["--".into(), output.path().into(), size.to_string().into()]);
        self.program.ask(create).await.map_err(|error| Unfinished::Failed(error.to_string()))?;
        // It was just made, and what is zero need not be written.
        let words = ["convert", "-p", "-n", "--target-is-zero", "-f", driver, "-O", driver, "--"];
        let mut copy: Vec<OsString> = words.map(Into::into).into();
        copy.extend([(&image.path).into(), output.path().into()]);
        self.copy(copy, image.size, &output, job).await?;
        // Whoever opened it meanwhile would write to a file without a name.
        self.unused(&image.path).map_err(|error| Unfinished::Failed(error.to_string()))?;
        self.finish(output, image.format, job).await
    }
}

impl NewSize {
    fn of(self, image: &ImageInfo) -> Result<u64, DiskError> {
        let size = match self {
            Self::To(size) => size,
            Self::By(more) => image.size.saturating_add(more),
        };
        match round_up(size) {
            0 => Err(DiskError::invalid("the size cannot be 0")),
            size if size > MAX_SIZE => Err(DiskError::invalid(format!("images have {MAX_SIZE} bytes at most"))),
            size => Ok(size),
        }
    }
}
