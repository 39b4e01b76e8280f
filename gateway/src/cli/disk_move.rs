//! `fanlight disk move`.

use std::process::ExitCode;

use clap::Args;
use vmm::{DiskFormat, Job, MoveDisk, Moved};

use super::Context;
use super::disk_option::{absolute, word};
use super::job::Waiting;
use super::output::bytes;
use super::size::parse_size;
use crate::api::client::segment;
use crate::problem::Problem;

/// Move a disk of a VM to another file, format, device or server, while the guest runs
///
/// The guest writes on all the while. The copy is compared with the source before the VM goes over to it, and the source is
/// kept unless told otherwise. Whatever is killed or pulled meanwhile: the VM has one complete disk, and the definition names
/// it. A VM that is off is served by the same command.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fanlight disk move web01 disk0 /mnt/fast/web01.qcow2
  fanlight disk move web01 disk0 /mnt/share/web01.vhdx --verify --delete-source
  fanlight disk move web01 disk0 /dev/disk/by-id/usb-Sample_Stick_1
  fanlight disk move web01 disk0 nbd://store/web01 --rate 50M --detach")]
pub(super) struct MoveToPlace {
    /// The VM
    vm: String,
    /// The disk: its name in the definition, or where it is now
    disk: String,
    /// Where to: a file that is not there yet, a block device, or nbd://HOST/EXPORT
    target: String,
    /// The format there, when the name does not tell: raw, qcow2, vhd, vhdx
    #[arg(long, value_parser = word::<DiskFormat>)]
    format: Option<DiskFormat>,
    /// Compute the SHA-256 of the whole disk as it was at the switch
    #[arg(long)]
    verify: bool,
    /// Delete the source file when the copy has been compared and taken over
    #[arg(long)]
    delete_source: bool,
    /// Leave snapshots inside the source behind
    #[arg(long)]
    leave_snapshots: bool,
    /// Bytes per second at most, so that guests have something left of the disk
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    rate: Option<u64>,
    #[command(flatten)]
    waiting: Waiting,
}

impl MoveToPlace {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        let request = MoveDisk {
            target: place(&self.target),
            format: self.format,
            rate: self.rate,
            verify: self.verify,
            delete_source: self.delete_source,
            leave_snapshots: self.leave_snapshots,
        };
        let disk = if self.disk.contains('/') { place(&self.disk) } else { self.disk };
        let path = format!("/v1/vms/{}/disks/{}/move", segment(&self.vm), segment(&disk));
        let job: Job = context.client.post(&path, &request).await?;
        let vm = self.vm;
        let done = |job: &Job| {
            let moved = job.result.clone().and_then(|result| serde_json::from_value::<Moved>(result).ok());
            moved.map_or_else(|| format!("job {} is done", job.id), |moved| in_words(&vm, &moved))
        };
        self.waiting.follow(context, job, done).await
    }
}

/// A path from the root, as the service has another working folder; a URL as it is.
fn place(words: &str) -> String {
    if words.contains("://") { words.to_owned() } else { absolute(words.into()).display().to_string() }
}

fn in_words(vm: &str, moved: &Moved) -> String {
    let stood_still =
        moved.stood_still.map(|time| format!("; the guest stood still for {time} ms")).unwrap_or_default();
    let mut lines = vec![
        format!("{} of {vm} is {} ({})", moved.disk, moved.target, moved.format.word()),
        match moved.compared {
            0 => format!("nothing was on it to be compared{stood_still}"),
            compared => format!("{} compared, all the same{stood_still}", bytes(compared)),
        },
    ];
    lines.extend(moved.sha256.as_ref().map(|sum| format!("SHA-256 at the switch: {sum}")));
    lines.push(match (&moved.problem, moved.source_kept) {
        (Some(problem), _) => format!("{} is still there: {problem}", moved.source),
        (None, true) => format!("{} is still there, as it was at the switch", moved.source),
        (None, false) => format!("{} is deleted", moved.source),
    });
    lines.join("\n").replace(|c: char| c.is_control() && c != '\n', "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_moved_and_what_is_left_is_said() {
        let moved = Moved {
            disk: "disk0".into(),
            target: "/b.qcow2".into(),
            format: DiskFormat::Qcow2,
            source: "/a.img".into(),
            source_kept: true,
            problem: None,
            compared: 2 << 30,
            stood_still: Some(41),
            sha256: None,
        };
        assert_eq!(
            in_words("web01", &moved),
            "disk0 of web01 is /b.qcow2 (qcow2)\n2 GiB compared, all the same; the guest stood still for 41 ms\n\
             /a.img is still there, as it was at the switch"
        );
        let deleted = in_words("web01", &Moved { source_kept: false, sha256: Some("ab".into()), ..moved.clone() });
        assert!(deleted.ends_with("SHA-256 at the switch: ab\n/a.img is deleted"));
        let kept = Moved { problem: Some("it is needed".into()), ..moved };
        assert!(in_words("web01", &kept).ends_with("/a.img is still there: it is needed"));
    }

    #[test]
    fn a_url_is_no_path() {
        assert_eq!(place("nbd://host/x"), "nbd://host/x");
        assert!(place("a.img").starts_with('/'));
    }
}
