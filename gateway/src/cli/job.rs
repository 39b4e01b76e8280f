//! `fanlight job`, and waiting for one.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::json;
use vmm::{Job, JobKind, JobState};

use super::Context;
use super::output::{Cell, Colour, age};
use super::progress::{Columns, ProgressLine, columns};
use crate::problem::{Code, Problem};

const HEADER: &[&str] = &["ID", "KIND", "STATE", "PROGRESS", "BYTES", "RATE", "LEFT", "SINCE", "TARGET", "PROBLEM"];
/// How long an answer is waited for at a time.
const WAIT: u64 = 20;
/// How long a gateway may be away while its job is waited for: as long as it takes to start it again.
const ABSENCE: Duration = Duration::from_secs(30);
const TRY_AGAIN: Duration = Duration::from_millis(250);
/// The exit code of a program that was interrupted.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Subcommand)]
pub(super) enum JobCommand {
    List(List),
    Show(Show),
    Wait(Wait),
    Cancel(Cancel),
}

/// List the jobs that run, and those that ended of late
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fanlight job list\n  fanlight job list --json")]
pub(super) struct List {}

/// Show one job
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fanlight job show 7")]
pub(super) struct Show {
    /// The job's number
    #[arg(value_parser = number)]
    id: u64,
}

/// Wait for a job to end, and show how far it is
///
/// Ctrl-C ends the waiting, not the job. The exit code is 0 when the job did what it was meant to.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fanlight job wait 7")]
pub(super) struct Wait {
    /// The job's number
    #[arg(value_parser = number)]
    id: u64,
}

/// Cancel a job; nothing is left of it
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fanlight job cancel 7")]
pub(super) struct Cancel {
    /// The job's number
    #[arg(value_parser = number)]
    id: u64,
}

/// Whether to wait for the job that a command begins.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Waiting {
    /// Do not wait for it to end
    #[arg(long)]
    detach: bool,
}

impl JobCommand {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        match self {
            Self::List(_) => {
                let jobs: Vec<Job> = context.client.get("/v1/jobs").await?;
                context.output.table(&jobs, HEADER, jobs.iter().map(row).collect());
            }
            Self::Show(Show { id }) => {
                let job: Job = context.client.get(&format!("/v1/jobs/{id}")).await?;
                context.output.value(&job, || describe(&job));
            }
            Self::Cancel(Cancel { id }) => {
                context.client.delete(&format!("/v1/jobs/{id}")).await?;
                context.output.value(&json!({ "cancelled": id }), || format!("job {id} stops"));
            }
            Self::Wait(Wait { id }) => {
                let job: Job = context.client.get(&format!("/v1/jobs/{id}")).await?;
                return wait(context, job, |job| format!("job {} is {}", job.id, job.state)).await;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Waiting {
    /// Waits for `job` unless told otherwise; `done` is what to say when it is done.
    pub(super) async fn follow(
        self,
        context: &Context,
        job: Job,
        done: impl FnOnce(&Job) -> String,
    ) -> Result<ExitCode, Problem> {
        if self.detach {
            let id = job.id;
            let text = || format!("job {id} has begun; `fanlight job wait {id}` waits for it");
            context.output.value(&job, text);
            return Ok(ExitCode::SUCCESS);
        }
        wait(context, job, done).await
    }
}

/// Shows how far a job is that comes before something else, and fails when it does.
pub(super) async fn require_done(context: &Context, job: Job) -> Result<(), Problem> {
    let mut line = ProgressLine::new(context.output);
    let job = follow(context, job, &mut line).await;
    line.clear();
    let job = job?;
    if job.state == JobState::Done { Ok(()) } else { Err(problem(&job)) }
}

/// Shows how far a job is until it has ended, or somebody presses Ctrl-C.
async fn wait(context: &Context, job: Job, done: impl FnOnce(&Job) -> String) -> Result<ExitCode, Problem> {
    let id = job.id;
    let mut line = ProgressLine::new(context.output);
    // The loser is only waiting: the job knows nothing of it.
    let ended = tokio::select! {
        ended = follow(context, job, &mut line) => Some(ended),
        _ = tokio::signal::ctrl_c() => None,
    };
    line.clear();
    let Some(ended) = ended else {
        let words = format!("`fanlight job wait {id}` waits for it again, `fanlight job cancel {id}` cancels it");
        context.output.note(&format!("job {id} goes on; {words}"));
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let job = ended?;
    if job.state == JobState::Done {
        context.output.value(&job, || done(&job));
        return Ok(ExitCode::SUCCESS);
    }
    let problem = problem(&job);
    if context.output.is_json() {
        context.output.value(&job, String::new);
        return Ok(ExitCode::from(problem.code.exit()));
    }
    Err(problem)
}

async fn follow(context: &Context, mut job: Job, line: &mut ProgressLine) -> Result<Job, Problem> {
    let mut heard = Instant::now();
    while !job.state.is_final() {
        line.show(&job);
        let path = format!("/v1/jobs/{}?after={}&wait={WAIT}", job.id, job.revision);
        match context.client.get::<Job>(&path).await {
            Ok(now) => (job, heard) = (now, Instant::now()),
            // A gateway that is started again knows what became of its jobs.
            Err(problem) if is_away(&problem) && heard.elapsed() < ABSENCE => tokio::time::sleep(TRY_AGAIN).await,
            Err(problem) => return Err(problem),
        }
    }
    Ok(job)
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is not the number of a job; `fanlight job list` has them"))
}

fn is_away(problem: &Problem) -> bool {
    matches!(problem.code, Code::NoService | Code::Internal)
}

fn problem(job: &Job) -> Problem {
    let id = job.id;
    let reason = job.problem.as_deref().unwrap_or("nobody knows why");
    match job.state {
        JobState::Cancelled => {
            let problem = Problem::new(Code::Conflict, format!("job {id} was cancelled"));
            match (&job.vm, job.kind) {
                (Some(vm), JobKind::CheckpointDelete | JobKind::CheckpointMerge) => problem.hint(format!(
                    "an overlay that is not merged stays the disk; `fanlight checkpoint merge {vm}` merges it"
                )),
                _ => problem,
            }
        }
        state => Problem::new(Code::Internal, format!("job {id} {state}: {reason}")),
    }
}

fn row(job: &Job) -> Vec<Cell> {
    let Columns { progress, bytes, rate, left } = columns(job);
    // That it was cancelled is its state.
    let problem = job.problem.clone().filter(|_| job.state != JobState::Cancelled);
    vec![
        job.id.to_string().into(),
        job.kind.to_string().into(),
        Cell::coloured(job.state.to_string(), colour(job.state)),
        progress.into(),
        bytes.into(),
        rate.into(),
        left.into(),
        age(job.ended.unwrap_or(job.started)).into(),
        job.target.as_str().into(),
        problem.unwrap_or_default().into(),
    ]
}

fn colour(state: JobState) -> Colour {
    match state {
        JobState::Done => Colour::Green,
        JobState::Failed => Colour::Red,
        JobState::Running | JobState::Cancelling | JobState::Interrupted => Colour::Yellow,
        JobState::Cancelled => Colour::Plain,
    }
}

fn describe(job: &Job) -> String {
    let mut lines = vec![
        ("job", job.id.to_string()),
        ("kind", job.kind.to_string()),
        ("target", job.target.clone()),
        ("state", job.state.to_string()),
        ("begun", format!("{} ago", age(job.started))),
    ];
    lines.extend(job.vm.clone().map(|vm| ("vm", vm)));
    lines.extend(job.ended.map(|ended| ("ended", format!("{} ago", age(ended)))));
    if !job.state.is_final() {
        lines.push(("progress", super::progress::in_words(job)));
    }
    lines.extend(job.problem.clone().map(|problem| ("problem", problem)));
    let lines = lines.iter().map(|(name, value)| format!("{name:<12} {value}"));
    lines.collect::<Vec<_>>().join("\n")
}
