//! Jobs that begin again when the gateway ended under them: those that only make something new, of which what is half made
//! is worth nothing. Moves and checkpoints go on instead, each in its own way.

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
            let begun = match serde_json::from_value(asked) {
                Ok(asked) => self.begin_one_again(id, asked).await,
                Err(error) => Err(format!("what was asked cannot be read: {error}")),
            };
            match begun {
                Ok(()) => tracing::info!(job = id.0, "a job begins again"),
                Err(reason) => {
                    let reason = format!("the gateway ended while it ran, and it cannot begin again: {reason}");
                    self.jobs().give_up(id, reason).await;
                }
            }
        }
    }

    async fn begin_one_again(&self, id: JobId, asked: Again) -> Result<(), String> {
        let (disks, job) = (self.disks(), Some(id));
        match asked {
            Again::Create(image) => disks.create_as(job, image).await.map(drop).map_err(|error| error.to_string()),
            Again::Convert(request) => {
                disks.convert_as(job, request).await.map(drop).map_err(|error| error.to_string())
            }
            Again::Resize(request) => disks.resize_as(job, request).await.map(drop).map_err(|error| error.to_string()),
            Again::Export { vm, folder } => {
                self.export_as(job, &vm.to_string(), folder).await.map(drop).map_err(|error| error.to_string())
            }
            Again::Verify { folder } => {
                self.verify_entry_as(job, folder).await.map(drop).map_err(|error| error.to_string())
            }
        }
    }
}
