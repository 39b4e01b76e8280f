//! `fanlight vm`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;
use vmm::Job;

use super::Context;
use super::bus;
use super::create::Create;
use super::disk_option::absolute;
use super::edit::{Edit, waiting};
use super::job::Waiting;
use super::memory::summary;
use super::output::{Cell, Colour, age};
use crate::api::client::segment;
use crate::api::model::{DeletedVm, EntryFolder, VmInfo, VmList};
use crate::problem::{Code, Problem};

#[derive(Debug, Subcommand)]
pub(super) enum Vm {
    Create(Box<Create>),
    Edit(Box<Edit>),
    List(List),
    Show(Show),
    /// Start a VM
    #[command(after_help = "Example:\n  fanlight vm start web01")]
    Start(One),
    /// Ask the guest to shut down: its agent, or its power button where there is none
    #[command(after_help = "Example:\n  fanlight vm shutdown web01")]
    Shutdown(One),
    /// Ask the guest's agent to start the guest over
    #[command(after_help = "Example:\n  fanlight vm reboot web01")]
    Reboot(One),
    /// Switch a VM off at once; what the guest has not written is lost
    #[command(after_help = "Example:\n  fanlight vm stop web01")]
    Stop(One),
    /// Start the guest over at once, as its reset button does
    #[command(after_help = "Example:\n  fanlight vm reset web01")]
    Reset(One),
    /// Stop the processors of a VM; its memory stays
    #[command(after_help = "Example:\n  fanlight vm pause web01")]
    Pause(One),
    /// Let the processors of a paused VM go on
    #[command(after_help = "Example:\n  fanlight vm resume web01")]
    Resume(One),
    Delete(Delete),
    Export(Export),
    Screenshot(Screenshot),
}

/// Make an entry of a library of a VM that is off: definition, disks, checksums
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fanlight vm export web01 /mnt/library/web
  fanlight vm create --name web02 --from /mnt/library/web

The disks stand on nothing there. Checkpoints and the keys of a TPM are not copied.")]
pub(super) struct Export {
    /// The VM: name or UUID
    vm: String,
    /// The entry: a folder that is not there yet, in one that is
    folder: PathBuf,
    #[command(flatten)]
    waiting: Waiting,
}

/// List the VMs
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fanlight vm list\n  fanlight vm list --json")]
pub(super) struct List {}

/// Show one VM: its state, why it is in it, who is connected
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fanlight vm show web01\n  fanlight vm show web01 --definition > copy.toml")]
pub(super) struct Show {
    /// The VM: name or UUID
    vm: String,
    /// Print its definition instead, as `vm create --file` takes it
    #[arg(long)]
    definition: bool,
}

/// One VM.
#[derive(Debug, Args)]
pub(super) struct One {
    /// The VM: name or UUID
    vm: String,
}

/// Forget a VM that is stopped; its disks stay and are named, or go
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fanlight vm delete web01\n  fanlight vm delete web01 --disks")]
pub(super) struct Delete {
    /// The VM: name or UUID
    vm: String,
    /// Delete the images, too, that it wrote to and nothing else needs, with the checkpoints in them
    #[arg(long)]
    disks: bool,
}

/// Save what a VM's screen shows as a PNG file
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fanlight vm screenshot web01 web01.png")]
pub(super) struct Screenshot {
    /// The VM: name or UUID
    vm: String,
    /// The file to write
    #[arg(required_unless_present = "output")]
    file: Option<PathBuf>,
    /// The same, by name
    #[arg(long, short, value_name = "FILE", conflicts_with = "file")]
    output: Option<PathBuf>,
}

impl Vm {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        match self {
            Self::Export(export) => return export.run(context).await,
            Self::Create(create) => create.run(context).await,
            Self::Edit(edit) => edit.run(context).await,
            Self::List(_) => list(context).await,
            Self::Show(show) => show.run(context).await,
            Self::Start(one) => one.request(context, "start").await,
            Self::Shutdown(one) => one.request(context, "shutdown").await,
            Self::Reboot(one) => one.request(context, "reboot").await,
            Self::Stop(one) => one.request(context, "stop").await,
            Self::Reset(one) => one.request(context, "reset").await,
            Self::Pause(one) => one.request(context, "pause").await,
            Self::Resume(one) => one.request(context, "resume").await,
            Self::Delete(delete) => delete.run(context).await,
            Self::Screenshot(screenshot) => screenshot.run(context).await,
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn list(context: &Context) -> Result<(), Problem> {
    let list: VmList = context.client.get("/v1/vms").await?;
    let rows = list.vms.iter().map(row).collect();
    context.output.table(&list, &["VM", "STATE", "SINCE", "MEMORY", "VCPUS", "SESSIONS", "REASON"], rows);
    Ok(())
}

impl Export {
    async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        let Self { vm, folder, waiting } = self;
        let folder = absolute(folder);
        let body = EntryFolder { folder: folder.clone() };
        let job: Job = context.client.post(&path(&vm, "/export"), &body).await?;
        let done = |_: &Job| {
            let folder = folder.display();
            format!("{vm} is exported; `fanlight vm create --name NAME --from {folder}` makes a VM of it")
        };
        waiting.follow(context, job, done).await
    }
}

impl Show {
    async fn run(self, context: &Context) -> Result<(), Problem> {
        if self.definition {
            let text = context.client.get_bytes(&path(&self.vm, "/definition")).await?;
            let text = String::from_utf8_lossy(&text);
            context.output.value(&serde_json::json!({ "definition": text }), || text.trim_end().to_owned());
            return Ok(());
        }
        let vm: VmInfo = context.client.get(&path(&self.vm, "")).await?;
        context.output.value(&vm, || describe(&vm));
        Ok(())
    }
}

impl One {
    async fn request(self, context: &Context, request: &str) -> Result<(), Problem> {
        let vm: VmInfo = context.client.post(&path(&self.vm, &format!("/{request}")), &Value::Null).await?;
        context.output.value(&vm, || format!("{} is {}", vm.name, vm.state));
        Ok(())
    }
}

impl Delete {
    async fn run(self, context: &Context) -> Result<(), Problem> {
        let with = if self.disks { "?disks=true" } else { "" };
        let deleted: DeletedVm = context.client.delete_for(&path(&self.vm, with)).await?;
        context.output.value(&deleted, || what_went(&deleted));
        Ok(())
    }
}

impl Screenshot {
    async fn run(self, context: &Context) -> Result<(), Problem> {
        let picture = context.client.get_bytes(&path(&self.vm, "/screenshot")).await?;
        let file = self.file.or(self.output).unwrap_or_default();
        std::fs::write(&file, &picture)
            .map_err(|error| Problem::new(Code::Internal, format!("cannot write {}: {error}", file.display())))?;
        let file = file.display().to_string();
        context.output.value(&serde_json::json!({ "file": file }), || format!("written to {file}"));
        Ok(())
    }
}

fn path(vm: &str, rest: &str) -> String {
    format!("/v1/vms/{}{rest}", segment(vm))
}

/// What a VM that is no more has left.
fn what_went(vm: &DeletedVm) -> String {
    let images = vm.images.iter().map(|image| {
        let path = image.path.display();
        match &image.kept {
            Some(reason) => format!("{path} stays: {reason}"),
            None if image.deleted => format!("{path} is deleted"),
            None => format!("{path} stays; `fanlight disk delete` removes it"),
        }
    });
    std::iter::once(format!("{} is deleted", vm.deleted)).chain(images).collect::<Vec<_>>().join("\n")
}

fn row(vm: &VmInfo) -> Vec<Cell> {
    let refused = vm.state == "refused";
    let known = |text: String| if refused { String::new() } else { text };
    vec![
        vm.name.as_str().into(),
        state(vm),
        age(vm.since).into(),
        known(format!("{} MiB", vm.assigned_memory.unwrap_or(vm.memory.into()))).into(),
        known(vm.vcpus.to_string()).into(),
        vm.sessions.len().to_string().into(),
        notes(vm).into(),
    ]
}

/// What a line about it says beside its state.
fn notes(vm: &VmInfo) -> String {
    let edited = waiting(&vm.waiting_changes).map(|waits| format!("edited: {waits}"));
    let refused = vm.definition_problem.as_ref().map(|problem| format!("refused: {problem}"));
    let notes: Vec<String> = vm.reason.clone().into_iter().chain(edited).chain(refused).collect();
    notes.join("; ")
}

fn state(vm: &VmInfo) -> Cell {
    let colour = match vm.state.as_str() {
        "running" => Colour::Green,
        "failed" | "refused" => Colour::Red,
        "paused" | "starting" | "stopping" => Colour::Yellow,
        _ => Colour::Plain,
    };
    Cell::coloured(vm.state.as_str(), colour)
}

fn describe(vm: &VmInfo) -> String {
    if vm.state == "refused" {
        let problem = vm.definition_problem.as_deref().unwrap_or_default();
        let mends = format!("`fanlight vm edit {}`", vm.name);
        let lines = [("name", vm.name.as_str()), ("state", "refused"), ("refused", problem), ("mended by", &mends)];
        return lines.map(|(name, value)| format!("{name:<12} {value}")).join("\n");
    }
    let mut lines = vec![
        ("name", vm.name.clone()),
        ("uuid", vm.uuid.clone()),
        ("state", format!("{}, since {}", vm.state, age(vm.since))),
        ("memory", summary(vm.memory, vm.assigned_memory, vm.dynamic_memory.as_ref())),
        ("vcpus", vm.vcpus.to_string()),
    ];
    lines.extend(vm.reason.clone().map(|reason| ("reason", reason)));
    lines.extend(waiting(&vm.waiting_changes).map(|waits| ("edited", waits)));
    lines.extend(vm.definition_problem.clone().map(|problem| ("refused", problem)));
    let why = vm.accelerator_reason.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
    lines.extend(vm.accelerator.as_ref().map(|accelerator| ("accelerator", format!("{accelerator}{why}"))));
    lines.extend(vm.pid.map(|pid| ("process", pid.to_string())));
    lines.extend(vm.bus.iter().flat_map(bus::describe));
    let sessions = vm.sessions.iter().map(|session| {
        ("session", format!("{}: {} from {}, since {}", session.id, session.user, session.peer, age(session.since)))
    });
    lines.extend(sessions);
    let lines = lines.iter().map(|(name, value)| format!("{name:<12} {value}"));
    lines.collect::<Vec<_>>().join("\n")
}
