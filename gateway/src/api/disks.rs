//! Disk images over the API, and those that are created together with a VM.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use tracing::info;
use vmm::{
    BlockDevice, Convert, DiskFormat, Disks, ImageInfo, Job, Made, MoveDisk, NewImage, Preallocation, Resize, TreeNode,
};

use super::ApiContext;
use super::error::{Answer, Body, Part, Query};
use crate::problem::{Code, Problem};

/// Which image.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    path: PathBuf,
    #[serde(default)]
    format: Option<DiskFormat>,
}

/// Which image is to go.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Delete {
    path: PathBuf,
    /// Also when states of VMs are kept in it, or something may need it.
    #[serde(default)]
    force: bool,
}

/// Which images.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Where {
    #[serde(default)]
    folder: Option<PathBuf>,
}

pub(super) async fn create(
    State(context): State<Arc<ApiContext>>,
    Body(image): Body<NewImage>,
) -> Answer<(StatusCode, Json<Made>)> {
    let path = image.path.clone();
    let made = context.session.host.disks().create(image).await?;
    info!(path = %path.display(), "disk created");
    Ok((status(&made, StatusCode::CREATED), Json(made)))
}

pub(super) async fn show(
    State(context): State<Arc<ApiContext>>,
    Query(which): Query<Which>,
) -> Answer<Json<ImageInfo>> {
    Ok(Json(context.session.host.disks().info(&which.path, which.format).await?))
}

pub(super) async fn delete(
    State(context): State<Arc<ApiContext>>,
    Query(Delete { path, force }): Query<Delete>,
) -> Answer<StatusCode> {
    let disks = context.session.host.disks();
    if force { disks.delete_by_force(&path).await } else { disks.delete(&path).await }?;
    info!(path = %path.display(), force, "disk deleted");
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn convert(
    State(context): State<Arc<ApiContext>>,
    Body(request): Body<Convert>,
) -> Answer<(StatusCode, Json<Job>)> {
    Ok((StatusCode::ACCEPTED, Json(context.session.host.disks().convert(request).await?)))
}

pub(super) async fn resize(
    State(context): State<Arc<ApiContext>>,
    Body(request): Body<Resize>,
) -> Answer<(StatusCode, Json<Made>)> {
    let made = context.session.host.disks().resize(request).await?;
    Ok((status(&made, StatusCode::OK), Json(made)))
}

pub(super) async fn move_disk(
    State(context): State<Arc<ApiContext>>,
    Part((vm, disk)): Part<(String, String)>,
    Body(request): Body<MoveDisk>,
) -> Answer<(StatusCode, Json<Job>)> {
    let vm = context.vm(&vm)?;
    let job = context.session.host.disks().move_disk(&vm, &disk, request).await?;
    info!(vm = vm.name(), disk, job = job.id.0, "disk move begun");
    Ok((StatusCode::ACCEPTED, Json(job)))
}

pub(super) async fn tree(
    State(context): State<Arc<ApiContext>>,
    Query(place): Query<Where>,
) -> Answer<Json<Vec<TreeNode>>> {
    Ok(Json(context.session.host.disks().tree(place.folder.as_slice()).await?))
}

pub(super) async fn devices(State(context): State<Arc<ApiContext>>) -> Answer<Json<Vec<BlockDevice>>> {
    Ok(Json(context.session.host.disks().devices()?))
}

fn status(made: &Made, done: StatusCode) -> StatusCode {
    if matches!(made, Made::Image(_)) { done } else { StatusCode::ACCEPTED }
}

/// Images that were just created; dropping them without [`keep`](Self::keep) removes them.
pub(super) struct NewDisks(Vec<PathBuf>);

impl NewDisks {
    pub(super) async fn create(disks: &Disks, images: Vec<NewImage>) -> Result<Self, Problem> {
        let mut created = Self(Vec::new());
        for image in images {
            if image.preallocation != Preallocation::Off {
                return Err(Problem::new(Code::Invalid, "space is not reserved while a VM is created")
                    .hint("create the disk first, with `fanlight disk create`, and leave `size=` out"));
            }
            let path = image.path.clone();
            disks.create(image).await?;
            created.0.push(path);
        }
        Ok(created)
    }

    /// The VM exists: so shall its disks.
    pub(super) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for NewDisks {
    fn drop(&mut self) {
        for path in &self.0 {
            // They were made a moment ago, and nothing is in them.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm::{Host, HostConfig, Layout};

    use super::*;
    use crate::testing::TempFolder;

    fn image(folder: &TempFolder, name: &str) -> NewImage {
        NewImage {
            path: folder.path().join(name),
            size: Some(1 << 20),
            format: Some(DiskFormat::Raw),
            layout: Layout::Dynamic,
            backing: None,
            preallocation: Preallocation::Off,
        }
    }

    async fn disks(folder: &TempFolder) -> Disks {
        let config = HostConfig::new(folder.path().join("state/vms"), folder.path().join("state/run"));
        Host::open(config).await.unwrap().disks()
    }

    #[tokio::test]
    async fn images_that_are_not_kept_are_gone() {
        let folder = TempFolder::new("disks");
        let disks = disks(&folder).await;
        drop(NewDisks::create(&disks, vec![image(&folder, "a.img")]).await);
        assert!(!folder.path().join("a.img").exists());
        NewDisks::create(&disks, vec![image(&folder, "a.img")]).await.ok().unwrap().keep();
        assert_eq!(std::fs::metadata(folder.path().join("a.img")).unwrap().len(), 1 << 20);
    }

    #[tokio::test]
    async fn an_image_that_is_there_is_never_touched() {
        let folder = TempFolder::new("there");
        let disks = disks(&folder).await;
        std::fs::write(folder.path().join("b.img"), "precious").unwrap();
        let both = vec![image(&folder, "a.img"), image(&folder, "b.img")];
        assert_eq!(NewDisks::create(&disks, both).await.err().unwrap().code, Code::Conflict);
        assert_eq!(std::fs::read(folder.path().join("b.img")).unwrap(), b"precious");
        assert!(!folder.path().join("a.img").exists(), "what was created before is removed");
    }
}
