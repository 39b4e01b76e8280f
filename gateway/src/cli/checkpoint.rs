//! `fanlight checkpoint`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;
use vmm::{Checkpoint, CheckpointTree, Job, NewCheckpoint};

use super::Context;
use super::job::Waiting;
use super::output::{Cell, Colour, age, bytes};
use crate::api::client::segment;
use crate::api::model::Rename as NewName;
use crate::problem::Problem;

const HEADER: &[&str] = &["CHECKPOINT", "TAKEN", "KEEPS", "NOTES", "PROBLEM"];
const HERE: &str = "you are here";

#[derive(Debug, Subcommand)]
pub(super) enum CheckpointCommand {
    Create(Create),
    List(List),
    Revert(Revert),
    Delete(Delete),
    Merge(Merge),
    Rename(Rename),
}

/// Keep the state of a VM: memory, devices and disks of one that is on, the disks of one that is off
///
/// A guest that runs stands still meanwhile, and runs on. A writable disk that is no qcow2 image gets an overlay beside it, a
/// qcow2 image that takes all changes from then on; block devices and disks on servers cannot have checkpoints.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fanlight checkpoint create web01 --name 'before the update'\n  fanlight checkpoint create web01 --name clean --notes 'fresh from the installer'"
)]
pub(super) struct Create {
    /// The VM: name or UUID
    vm: String,
    /// What to call it
    #[arg(long)]
    name: String,
    /// What to remember of it
    #[arg(long, value_name = "TEXT", default_value = "")]
    notes: String,
    #[command(flatten)]
    waiting: Waiting,
}

/// Show the checkpoints of a VM as a tree, and where it is
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fanlight checkpoint list web01\n  fanlight checkpoint list web01 --json")]
pub(super) struct List {
    /// The VM: name or UUID
    vm: String,
}

/// Go back to a checkpoint; what the VM has done since is lost
///
/// With memory it runs on from there; with disks only it is off afterwards. Sessions stay connected.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fanlight checkpoint revert web01 'before the update'")]
pub(super) struct Revert {
    /// The VM: name or UUID
    vm: String,
    /// The checkpoint
    name: String,
    #[command(flatten)]
    waiting: Waiting,
}

/// Delete a checkpoint; those after it and the VM itself stay as they are
///
/// Overlays that hold no checkpoint any more go back into the files below them, while the guest runs, too. That can be
/// cancelled; the overlay stays the disk then, until `fanlight checkpoint merge` or the next deletion.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fanlight checkpoint delete web01 'before the update'")]
pub(super) struct Delete {
    /// The VM: name or UUID
    vm: String,
    /// The checkpoint
    name: String,
    #[command(flatten)]
    waiting: Waiting,
}

/// Merge the overlays of a VM that hold no checkpoint any more into the files below them
///
/// The last deletion of a checkpoint does so by itself; this is for overlays that stayed, because that was cancelled or failed.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fanlight checkpoint merge web01")]
pub(super) struct Merge {
    /// The VM: name or UUID
    vm: String,
    #[command(flatten)]
    waiting: Waiting,
}

/// Give a checkpoint another name
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fanlight checkpoint rename web01 'before the update' 'kernel 6.12'")]
pub(super) struct Rename {
    /// The VM: name or UUID
    vm: String,
    /// The checkpoint
    name: String,
    /// What to call it
    new: String,
}

impl CheckpointCommand {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        match self {
            Self::Create(create) => create.run(context).await,
            Self::List(List { vm }) => {
                let tree: CheckpointTree = context.client.get(&path(&vm, "")).await?;
                show(context, &tree);
                Ok(ExitCode::SUCCESS)
            }
            Self::Revert(Revert { vm, name, waiting }) => {
                let path = path(&vm, &format!("/{}/revert", segment(&name)));
                let job: Job = context.client.post(&path, &()).await?;
                waiting.follow(context, job, |_| format!("{vm} is back at `{name}`")).await
            }
            Self::Delete(Delete { vm, name, waiting }) => {
                let job: Job = context.client.delete_for(&path(&vm, &format!("/{}", segment(&name)))).await?;
                waiting.follow(context, job, |job| deleted(job, &name, &vm)).await
            }
            Self::Merge(Merge { vm, waiting }) => {
                let job: Job = context.client.post(&format!("/v1/vms/{}/merge-overlays", segment(&vm)), &()).await?;
                waiting.follow(context, job, |job| merges(job).join("\n")).await
            }
            Self::Rename(Rename { vm, name, new }) => {
                let body = NewName { name: new };
                let path = path(&vm, &format!("/{}/rename", segment(&name)));
                let tree: CheckpointTree = context.client.post(&path, &body).await?;
                context.output.value(&tree, || format!("checkpoint `{name}` of {vm} is `{}`", body.name));
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl Create {
    async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        let Self { vm, name, notes, waiting } = self;
        let new = NewCheckpoint { name: name.clone(), notes };
        let job: Job = context.client.post(&path(&vm, ""), &new).await?;
        waiting.follow(context, job, |job| made(job, &name, &vm)).await
    }
}

/// What came of it, and which disks are other files from then on.
fn made(job: &Job, name: &str, vm: &str) -> String {
    let mut said = format!("checkpoint `{name}` of {vm} is made");
    let overlays = job.result.as_ref().and_then(|result| result["overlays"].as_array());
    for overlay in overlays.into_iter().flatten() {
        if let (Some(below), Some(overlay)) = (overlay["below"].as_str(), overlay["overlay"].as_str()) {
            said += &format!("\n{below}: its changes go to {overlay} from now on");
        }
    }
    said
}

fn show(context: &Context, tree: &CheckpointTree) {
    context.output.table(tree, HEADER, rows(tree));
    if let Some(unfinished) = &tree.unfinished {
        context.output.note(unfinished);
    }
}

/// What came of it, and which disks are one file again.
fn deleted(job: &Job, name: &str, vm: &str) -> String {
    let mut lines = vec![format!("checkpoint `{name}` of {vm} is deleted")];
    lines.extend(merges(job));
    if told(job, "kept").next().is_some() {
        lines.push(format!("`fanlight checkpoint merge {vm}` tries that again"));
    }
    lines.join("\n")
}

/// Which disks are one file again, and which are not.
fn merges(job: &Job) -> Vec<String> {
    let mut lines = Vec::new();
    for merged in told(job, "merged") {
        if let (Some(overlay), Some(file)) = (merged["overlay"].as_str(), merged["file"].as_str()) {
            lines.push(format!("{file}: has all of {overlay} and is the disk again"));
        }
        if let (Some(overlay), Some(problem)) = (merged["overlay"].as_str(), merged["problem"].as_str()) {
            lines.push(format!("{overlay}: nothing needs it, and it is still there: {problem}"));
        }
    }
    for kept in told(job, "kept") {
        if let (Some(overlay), Some(reason)) = (kept["overlay"].as_str(), kept["reason"].as_str()) {
            lines.push(format!("{overlay}: stays the disk: {reason}"));
        }
    }
    lines
}

fn told<'a>(job: &'a Job, key: &str) -> impl Iterator<Item = &'a Value> {
    job.result.as_ref().and_then(|result| result[key].as_array()).into_iter().flatten()
}

/// The tree, line by line; where the VM is stands after the checkpoint that it came after.
fn rows(tree: &CheckpointTree) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    branch(tree, None, "", &mut rows);
    rows
}

/// A line below a checkpoint.
enum Line<'a> {
    Checkpoint(&'a Checkpoint),
    Here,
}

fn branch(tree: &CheckpointTree, parent: Option<&Checkpoint>, indent: &str, rows: &mut Vec<Vec<Cell>>) {
    let name = parent.map(|parent| &parent.name);
    let children = tree.checkpoints.iter().filter(|checkpoint| checkpoint.parent.as_ref() == name);
    let here = (tree.here.as_ref() == name).then_some(Line::Here);
    let lines: Vec<Line<'_>> = children.map(Line::Checkpoint).chain(here).collect();
    for (index, line) in lines.iter().enumerate() {
        let is_last = index + 1 == lines.len();
        let (twig, below) = match (parent, is_last) {
            (None, _) => ("", ""),
            (Some(_), false) => ("├─ ", "│  "),
            (Some(_), true) => ("└─ ", "   "),
        };
        let label = format!("{indent}{twig}");
        match line {
            Line::Here => rows.push(vec![Cell::coloured(label + HERE, Colour::Green)]),
            Line::Checkpoint(checkpoint) => {
                rows.push(row(label, checkpoint));
                branch(tree, Some(checkpoint), &format!("{indent}{below}"), rows);
            }
        }
    }
}

fn row(label: String, checkpoint: &Checkpoint) -> Vec<Cell> {
    let keeps = match (checkpoint.memory, checkpoint.size) {
        (false, _) => "disks".to_owned(),
        (true, None) => "memory".to_owned(),
        (true, Some(size)) => format!("memory, {}", bytes(size)),
    };
    let by = if checkpoint.automatic { "by the clock" } else { "" };
    let notes = if checkpoint.notes.is_empty() { by.to_owned() } else { checkpoint.notes.replace('\n', " ") };
    vec![
        (label + &checkpoint.name).into(),
        format!("{} ago", age(checkpoint.taken)).into(),
        keeps.into(),
        notes.into(),
        Cell::coloured(checkpoint.problem.clone().unwrap_or_default(), Colour::Red),
    ]
}

fn path(vm: &str, rest: &str) -> String {
    format!("/v1/vms/{}/checkpoints{rest}", segment(vm))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(name: &str, parent: Option<&str>) -> Checkpoint {
        Checkpoint {
            name: name.into(),
            notes: String::new(),
            parent: parent.map(Into::into),
            taken: 0,
            automatic: false,
            memory: true,
            size: None,
            here: false,
            problem: None,
        }
    }

    fn labels(tree: &CheckpointTree) -> Vec<String> {
        rows(tree).iter().map(|row| row[0].text().to_owned()).collect()
    }

    #[test]
    fn a_disk_that_is_another_file_is_told() {
        let job = |result: serde_json::Value| -> Job {
            let job = serde_json::json!({ "id": 1, "kind": "checkpoint-create", "target": "a", "vm": "web01", "state": "done",
                "step": null, "started": 0, "ended": 1, "progress": { "percent": 0.0, "done": 0, "total": 0, "rate": 0, "left": null },
                "problem": null, "result": result, "revision": 1 });
            serde_json::from_value(job).expect("a job")
        };
        let plain = job(serde_json::json!({ "checkpoint": "a" }));
        assert_eq!(made(&plain, "a", "web01"), "checkpoint `a` of web01 is made");
        let overlays =
            serde_json::json!([{ "disk": "disk0", "below": "/d.vhdx", "overlay": "/d.vhdx.checkpoints.qcow2" }]);
        let told = made(&job(serde_json::json!({ "checkpoint": "a", "overlays": overlays })), "a", "web01");
        assert!(told.ends_with("is made\n/d.vhdx: its changes go to /d.vhdx.checkpoints.qcow2 from now on"), "{told}");
        let merged =
            serde_json::json!([{ "disk": "disk0", "file": "/d.vhdx", "overlay": "/d.vhdx.checkpoints.qcow2" }]);
        let kept = serde_json::json!([{ "disk": "disk1", "overlay": "/e.checkpoints.qcow2", "reason": "no room" }]);
        let result = serde_json::json!({ "checkpoint": "a", "merged": merged, "kept": kept });
        assert_eq!(
            deleted(&job(result), "a", "web01"),
            "checkpoint `a` of web01 is deleted\n/d.vhdx: has all of /d.vhdx.checkpoints.qcow2 and is the disk again\n\
             /e.checkpoints.qcow2: stays the disk: no room\n`fanlight checkpoint merge web01` tries that again"
        );
        assert_eq!(deleted(&plain, "a", "web01"), "checkpoint `a` of web01 is deleted");
    }

    #[test]
    fn the_tree_shows_what_came_after_what_and_where_the_vm_is() {
        let checkpoints = vec![
            checkpoint("a", None),
            checkpoint("b", Some("a")),
            checkpoint("c", Some("b")),
            checkpoint("d", Some("a")),
            checkpoint("other", None),
        ];
        let mut tree = CheckpointTree { checkpoints, here: Some("b".into()), unfinished: None };
        assert_eq!(labels(&tree), ["a", "├─ b", "│  ├─ c", "│  └─ you are here", "└─ d", "other"]);
        tree.here = None;
        assert_eq!(labels(&tree).last().map(String::as_str), Some("you are here"));
    }

    #[test]
    fn without_checkpoints_the_vm_is_where_it_is() {
        let tree = CheckpointTree { checkpoints: vec![], here: None, unfinished: None };
        assert_eq!(labels(&tree), ["you are here"]);
    }
}
