//! Jobs that begin again when the gateway ended under them: those that only make something new, of which what is half made
//! is worth nothing. Moves and checkpoints go on instead, each in its own way.

use std::error::Error;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::disks::{Convert, NewImage, Resize};
use crate::host::Host;
use crate::jobs::JobId;

/// What was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Again {
    /// An image whose space is reserved.
    Create(NewImage),
    /// A copy of an image.
    Convert(Convert),
    /// A larger image in the place of another.
    Resize(Resize),
    /// An entry of a library.
    Export { vm: Uuid, folder: PathBuf },
    /// A look at an entry's checksums.
    Verify { folder: PathBuf },
}

impl Again {
    /// As it is kept with its job.
    pub(crate) fn in_json(&self) -> Option<Value> {
        serde_json::to_value(self).ok()
    }
}

impl Host {
    /// Has those jobs of an earlier gateway begin again that are made for it.
    pub(crate) async fn begin_again(&self) {
        for (id, asked) in self.jobs().to_begin_again().await {
            match self.begin_one_again(id, asked).await {
                Ok(()) => tracing::info!(job = id.0, "a job begins again"),
                Err(error) => {
                    let reason = format!("the gateway ended while it ran, and it cannot begin again: {error}");
                    self.jobs().give_up(id, reason).await;
                }
            }
        }
    }

    async fn begin_one_again(&self, id: JobId, asked: Value) -> Result<(), Box<dyn Error + Send + Sync>> {
        let asked = serde_json::from_value(asked).map_err(|error| format!("what was asked cannot be read: {error}"))?;
        let (disks, job) = (self.disks(), Some(id));
        match asked {
            Again::Create(image) => drop(disks.create_as(job, image).await?),
            Again::Convert(request) => drop(disks.convert_as(job, request).await?),
            Again::Resize(request) => drop(disks.resize_as(job, request).await?),
            Again::Export { vm, folder } => drop(self.export_as(job, &vm.to_string(), folder).await?),
            Again::Verify { folder } => drop(self.verify_entry_as(job, folder).await?),
        }
        Ok(())
    }
}
