//! `fanlight disk`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use vmm::{
    BackingFile, BlockDevice, Convert, DiskFormat, DiskSource, ImageInfo, Job, Layout, Made, NewImage, NewSize,
    Preallocation, Resize, TreeNode,
};

use super::Context;
use super::disk_move::MoveToPlace;
use super::disk_option::{absolute, parse_source, word};
use super::job::Waiting;
use super::output::{age, bytes};
use super::size::parse_size;
use super::vm_disk::{Attach, Detach, Eject, Insert, List};
use crate::api::client::segment;
use crate::problem::Problem;

const DEVICES: &[&str] = &["DEVICE", "SIZE", "MODEL", "NAME", "IN USE"];

#[derive(Debug, Subcommand)]
pub(super) enum Disk {
    Create(Create),
    Info(Info),
    Convert(ConvertImage),
    Resize(ResizeImage),
    Move(MoveToPlace),
    Tree(Tree),
    Delete(Delete),
    Devices(Devices),
    List(List),
    Attach(Attach),
    Detach(Detach),
    Insert(Insert),
    Eject(Eject),
}

/// Create a disk image
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fanlight disk create /srv/web01.qcow2 --size 20G
  fanlight disk create /srv/win.vhd --size 127G --fixed
  fanlight disk create /srv/web02.qcow2 --backing /srv/base.qcow2
  fanlight disk create /srv/live.qcow2 --backing https://mirror.example/live.iso
  fanlight disk create /srv/db.img --size 100G --preallocation falloc")]
pub(super) struct Create {
    /// The file; its name tells the format: .raw, .img, .qcow2, .vhd or .vhdx
    path: PathBuf,
    /// How large a guest sees it: 512M, 20G, 1T or bytes
    #[arg(long, required_unless_present = "backing", value_parser = parse_size)]
    size: Option<u64>,
    /// Its format, when the name does not tell
    #[arg(long, value_parser = word::<DiskFormat>)]
    format: Option<DiskFormat>,
    /// As large as its disk from the beginning (vhd, vhdx)
    #[arg(long)]
    fixed: bool,
    /// An image to stand on, or its URL: the new one holds only what differs (qcow2)
    #[arg(long, value_name = "FILE", value_parser = parse_source)]
    backing: Option<DiskSource>,
    /// The format of that image, when its name does not tell
    #[arg(long, value_name = "FORMAT", requires = "backing", value_parser = word::<DiskFormat>)]
    backing_format: Option<DiskFormat>,
    /// What is reserved at once: off, metadata, falloc or full
    #[arg(long, value_name = "WHAT", default_value = "off", value_parser = word::<Preallocation>)]
    preallocation: Preallocation,
    #[command(flatten)]
    waiting: Waiting,
}

/// Show what an image is: format, sizes, snapshots, what it stands on, who uses it
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fanlight disk info /srv/web01.qcow2")]
pub(super) struct Info {
    /// The image
    path: PathBuf,
    /// Its format, when the name does not tell
    #[arg(long, value_parser = word::<DiskFormat>)]
    format: Option<DiskFormat>,
}

/// Copy an image into another format
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fanlight disk convert /srv/old.vmdk /srv/new.qcow2
  fanlight disk convert /srv/web01.qcow2 /srv/web01.vhdx --rate 50M --detach")]
pub(super) struct ConvertImage {
    /// The image to copy; nobody may write to it meanwhile
    source: PathBuf,
    /// The file to make; nothing may be there yet
    target: PathBuf,
    /// The format of the new image, when its name does not tell
    #[arg(long, value_parser = word::<DiskFormat>)]
    format: Option<DiskFormat>,
    /// The format of the image that is copied, when its name does not tell
    #[arg(long, value_name = "FORMAT", value_parser = word::<DiskFormat>)]
    source_format: Option<DiskFormat>,
    /// As large as its disk from the beginning (vhd, vhdx)
    #[arg(long)]
    fixed: bool,
    /// Bytes per second at most, so that guests have something left of the disk
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    rate: Option<u64>,
    #[command(flatten)]
    waiting: Waiting,
}

/// Make an image larger, or smaller
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fanlight disk resize /srv/web01.qcow2 40G
  fanlight disk resize /srv/web01.qcow2 +10G
  fanlight disk resize /srv/web01.qcow2 10G --shrink")]
pub(super) struct ResizeImage {
    /// The image; nobody may use it meanwhile
    path: PathBuf,
    /// How large it shall be, or with + how much larger
    #[arg(value_parser = parse_new_size)]
    size: NewSize,
    /// Its format, when the name does not tell
    #[arg(long, value_parser = word::<DiskFormat>)]
    format: Option<DiskFormat>,
    /// Make it smaller: what lies beyond the new end is lost
    #[arg(long)]
    shrink: bool,
    #[command(flatten)]
    waiting: Waiting,
}

/// Show which image stands on which: those of the VMs, and those in a folder
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fanlight disk tree\n  fanlight disk tree /srv/images")]
pub(super) struct Tree {
    /// A folder with images
    folder: Option<PathBuf>,
}

/// Delete an image that no VM names, that nothing stands on and nobody uses
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fanlight disk delete /srv/old.qcow2\n  fanlight disk delete /srv/old.qcow2 --force"
)]
pub(super) struct Delete {
    /// The image
    path: PathBuf,
    /// Also when checkpoints are kept in it, or something that cannot be looked at now may stand on it
    #[arg(long)]
    force: bool,
}

/// List the host's own disks, by names that stay
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fanlight disk devices")]
pub(super) struct Devices {}

impl Disk {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        match self {
            Self::Create(create) => return create.run(context).await,
            Self::Convert(convert) => return convert.run(context).await,
            Self::Resize(resize) => return resize.run(context).await,
            Self::Move(order) => return order.run(context).await,
            Self::List(list) => list.run(context).await?,
            Self::Attach(attach) => attach.run(context).await?,
            Self::Detach(detach) => detach.run(context).await?,
            Self::Insert(insert) => insert.run(context).await?,
            Self::Eject(eject) => eject.run(context).await?,
            Self::Info(Info { path, format }) => {
                let info: ImageInfo = context.client.get(&query(&path, format)).await?;
                context.output.value(&info, || describe(&info));
            }
            Self::Tree(Tree { folder }) => {
                let folder = folder.map(|folder| format!("?folder={}", text(&absolute(folder)))).unwrap_or_default();
                let tree: Vec<TreeNode> = context.client.get(&format!("/v1/disks/tree{folder}")).await?;
                context.output.value(&tree, || draw(&tree));
            }
            Self::Delete(Delete { path, force }) => {
                let force = if force { "&force=true" } else { "" };
                context.client.delete(&format!("{}{force}", query(&path, None))).await?;
                let deleted = serde_json::json!({ "deleted": absolute(path.clone()) });
                context.output.value(&deleted, || format!("{} is deleted", path.display()));
            }
            Self::Devices(_) => {
                let devices: Vec<BlockDevice> = context.client.get("/v1/disks/devices").await?;
                context.output.table(&devices, DEVICES, devices.iter().map(row).collect());
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Create {
    async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        let image = NewImage {
            path: absolute(self.path),
            size: self.size,
            format: self.format,
            layout: layout(self.fixed),
            backing: self.backing.map(|source| BackingFile { source, format: self.backing_format }),
            preallocation: self.preallocation,
        };
        let made: Made = context.client.post("/v1/disks", &image).await?;
        finish(context, made, self.waiting, "created").await
    }
}

impl ConvertImage {
    async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        let request = Convert {
            source: absolute(self.source),
            source_format: self.source_format,
            target: absolute(self.target),
            format: self.format,
            layout: layout(self.fixed),
            rate: self.rate,
        };
        let job: Job = context.client.post("/v1/disks/convert", &request).await?;
        finish(context, Made::Job(Box::new(job)), self.waiting, "written").await
    }
}

impl ResizeImage {
    async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        let request = Resize { path: absolute(self.path), format: self.format, size: self.size, shrink: self.shrink };
        let made: Made = context.client.post("/v1/disks/resize", &request).await?;
        finish(context, made, self.waiting, "resized").await
    }
}

async fn finish(context: &Context, made: Made, waiting: Waiting, verb: &str) -> Result<ExitCode, Problem> {
    match made {
        Made::Image(info) => {
            context.output.value(&info, || outcome(&info, verb));
            Ok(ExitCode::SUCCESS)
        }
        Made::Job(job) => {
            let done = |job: &Job| {
                let info = job.result.clone().and_then(|result| serde_json::from_value::<ImageInfo>(result).ok());
                info.map_or_else(|| format!("job {} is done", job.id), |info| outcome(&info, verb))
            };
            waiting.follow(context, *job, done).await
        }
    }
}

fn outcome(info: &ImageInfo, verb: &str) -> String {
    let taken = info.on_disk.map(|taken| format!(", {} on disk", bytes(taken))).unwrap_or_default();
    format!("{} is {verb}: {}, {}{taken}", info.path.display(), kind(info), bytes(info.size))
}

fn kind(info: &ImageInfo) -> String {
    match info.layout {
        Some(Layout::Fixed) => format!("{} (fixed)", info.format.word()),
        _ => info.format.word().into(),
    }
}

fn describe(info: &ImageInfo) -> String {
    let mut lines = vec![
        ("path", info.path.display().to_string()),
        ("format", kind(info)),
        ("size", format!("{} ({} bytes)", bytes(info.size), info.size)),
    ];
    lines.extend(info.on_disk.map(|taken| ("on disk", bytes(taken))));
    lines.extend(info.cluster.map(|cluster| ("cluster", bytes(cluster))));
    if info.corrupt {
        lines.push(("state", "damaged".into()));
    } else if info.dirty {
        lines.push(("state", "not closed in order; whoever writes to it next repairs it".into()));
    }
    lines.extend(info.backing.iter().map(|image| {
        let format = image.format.map(|format| format!(" ({})", format.word())).unwrap_or_default();
        let problem = image.problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
        ("stands on", format!("{}{format}{problem}", image.name))
    }));
    lines.extend(info.snapshots.iter().map(|snapshot| {
        (
            "snapshot",
            format!(
                "{} {}, {} ago, {} memory",
                snapshot.id,
                snapshot.name,
                age(snapshot.taken),
                bytes(snapshot.memory)
            ),
        )
    }));
    lines.extend(info.users.iter().map(|user| ("in use", user.in_words())));
    let lines = lines.iter().map(|(name, value)| format!("{name:<12} {}", value.replace(char::is_control, "?")));
    lines.collect::<Vec<_>>().join("\n")
}

/// The images as a tree, each below what it stands on.
fn draw(tree: &[TreeNode]) -> String {
    let mut lines = Vec::new();
    for node in tree {
        lines.push(label(node));
        draw_above(&node.above, "", &mut lines);
    }
    lines.join("\n")
}

fn draw_above(nodes: &[TreeNode], indent: &str, lines: &mut Vec<String>) {
    for (index, node) in nodes.iter().enumerate() {
        let is_last = index + 1 == nodes.len();
        let (branch, below) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        lines.push(format!("{indent}{branch}{}", label(node)));
        draw_above(&node.above, &format!("{indent}{below}"), lines);
    }
}

fn label(node: &TreeNode) -> String {
    let mut parts = vec![node.path.display().to_string()];
    parts.extend(node.format.map(|format| format.word().to_owned()));
    parts.extend(node.size.map(bytes));
    parts.extend(node.remote.as_ref().map(|remote| format!("on {remote}")));
    parts.extend(node.vms.iter().map(|vm| format!("VM {vm}")));
    parts.extend(node.problem.as_ref().map(|problem| format!("! {problem}")));
    parts.join("  ").replace(char::is_control, "?")
}

fn row(device: &BlockDevice) -> Vec<super::output::Cell> {
    vec![
        device.path.display().to_string().into(),
        bytes(device.size).into(),
        device.model.clone().unwrap_or_default().into(),
        device.stable.first().map(|name| name.display().to_string()).unwrap_or_default().into(),
        device.in_use.clone().unwrap_or_default().into(),
    ]
}

fn layout(fixed: bool) -> Layout {
    if fixed { Layout::Fixed } else { Layout::Dynamic }
}

fn parse_new_size(text: &str) -> Result<NewSize, String> {
    match text.strip_prefix('+') {
        Some(more) => parse_size(more).map(NewSize::By),
        None => parse_size(text).map(NewSize::To),
    }
}

fn query(path: &Path, format: Option<DiskFormat>) -> String {
    let format = format.map(|format| format!("&format={}", format.word())).unwrap_or_default();
    format!("/v1/disks?path={}{format}", text(&absolute(path.into())))
}

/// A path as a part of a query. One that is not UTF-8 becomes another, which is not there.
fn text(path: &Path) -> String {
    segment(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(path: &str, above: Vec<TreeNode>) -> TreeNode {
        TreeNode {
            path: path.into(),
            format: Some(DiskFormat::Qcow2),
            size: Some(20 << 30),
            remote: None,
            vms: Vec::new(),
            problem: None,
            above,
        }
    }

    #[test]
    fn a_tree_is_drawn_with_its_branches() {
        let web = TreeNode { vms: vec!["web01".into()], ..node("/w\x1b", vec![node("/x", vec![])]) };
        let lost =
            TreeNode { problem: Some("it stands on /gone".into()), format: None, size: None, ..node("/l", vec![]) };
        let drawn = draw(&[node("/base", vec![web, node("/y", vec![])]), lost]);
        assert_eq!(
            drawn,
            "/base  qcow2  20 GiB\n├─ /w?  qcow2  20 GiB  VM web01\n│  └─ /x  qcow2  20 GiB\n└─ /y  qcow2  20 GiB\n\
             /l  ! it stands on /gone"
        );
    }

    #[test]
    fn a_new_size_is_absolute_or_more() {
        assert_eq!(parse_new_size("40G"), Ok(NewSize::To(40 << 30)));
        assert_eq!(parse_new_size("+1M"), Ok(NewSize::By(1 << 20)));
        assert!(parse_new_size("-1M").is_err() && parse_new_size("+").is_err());
    }
}
