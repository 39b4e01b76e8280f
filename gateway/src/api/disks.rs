//! Disk images that are created together with a VM, and removed again when the VM cannot be.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::model::NewDisk;
use crate::problem::{Code, Problem};

/// Images that were just created; dropping them without [`keep`](Self::keep) removes them.
pub(super) struct NewDisks(Vec<PathBuf>);

impl NewDisks {
    pub(super) async fn create(disks: Vec<NewDisk>) -> Result<Self, Problem> {
        let mut created = Self(Vec::new());
        for disk in disks {
            claim(&disk.path)?;
            created.0.push(disk.path.clone());
            if disk.format == "raw" { stretch(&disk)? } else { format(&disk).await? }
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
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Creates the empty file, which fails when there is one: nothing is overwritten.
fn claim(path: &Path) -> Result<(), Problem> {
    if !path.is_absolute() {
        return Err(Problem::new(Code::Invalid, format!("{} is not an absolute path", path.display())));
    }
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    created.map(drop).map_err(|error| {
        let code = if error.kind() == io::ErrorKind::AlreadyExists { Code::Conflict } else { Code::Internal };
        let problem = Problem::new(code, format!("cannot create {}: {error}", path.display()));
        if code == Code::Conflict { problem.hint("leave `size=` out to use the image that is there") } else { problem }
    })
}

fn stretch(disk: &NewDisk) -> Result<(), Problem> {
    let stretched = OpenOptions::new().write(true).open(&disk.path).and_then(|file| file.set_len(disk.size));
    stretched.map_err(|error| failed(disk, &error))
}

async fn format(disk: &NewDisk) -> Result<(), Problem> {
    // The names differ only for the format of Virtual PC.
    let format = if disk.format == "vhd" { "vpc" } else { &disk.format };
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", format])
        .arg(&disk.path)
        .arg(disk.size.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(failed(disk, &String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(failed(disk, &format_args!("qemu-img: {error}"))
            .hint("`apt-get install qemu-utils`, or use format=raw, which needs no program")),
    }
}

fn failed(disk: &NewDisk, reason: &dyn std::fmt::Display) -> Problem {
    Problem::new(Code::Internal, format!("cannot create {}: {reason}", disk.path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempFolder;

    fn disk(folder: &TempFolder, name: &str) -> NewDisk {
        NewDisk { path: folder.path().join(name), size: 1 << 20, format: "raw".to_owned() }
    }

    #[tokio::test]
    async fn images_that_are_not_kept_are_gone() {
        let folder = TempFolder::new("disks");
        drop(NewDisks::create(vec![disk(&folder, "a.img")]).await);
        assert!(!folder.path().join("a.img").exists());
        NewDisks::create(vec![disk(&folder, "a.img")]).await.ok().unwrap().keep();
        assert_eq!(std::fs::metadata(folder.path().join("a.img")).unwrap().len(), 1 << 20);
    }

    #[tokio::test]
    async fn an_image_that_is_there_is_never_touched() {
        let folder = TempFolder::new("there");
        std::fs::write(folder.path().join("b.img"), "precious").unwrap();
        let both = vec![disk(&folder, "a.img"), disk(&folder, "b.img")];
        assert_eq!(NewDisks::create(both).await.err().unwrap().code, Code::Conflict);
        assert_eq!(std::fs::read(folder.path().join("b.img")).unwrap(), b"precious");
        assert!(!folder.path().join("a.img").exists(), "what was created before is removed");
    }
}
