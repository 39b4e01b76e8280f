//! Jobs from beginning to end, and over a restart.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fanlight-jobs-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn open(&self) -> Jobs {
        Jobs::open(&self.0).expect("opens")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn new() -> NewJob {
    NewJob { kind: JobKind::DiskConvert, target: "/srv/a.qcow2".into(), vm: None, again: None }
}

async fn ended(jobs: &Jobs, id: JobId) -> Job {
    let end = async {
        let mut job = jobs.get(id).expect("known");
        while !job.state.is_final() {
            job = jobs.wait(id, job.revision, PATIENCE).await.expect("known");
        }
        job
    };
    timeout(PATIENCE, end).await.expect("an end")
}

#[tokio::test]
async fn a_job_says_how_far_it_is_and_what_came_of_it() {
    let folder = Folder::new("done");
    let jobs = folder.open();
    let (go, gone) = oneshot::channel::<()>();
    let begun = jobs.spawn(new(), async |job: JobHandle| {
        job.step("copying");
        job.advance(25, 100);
        let _ = gone.await;
        Ok(Some(json!({ "bytes": 100 })))
    });
    let begun = begun.await.expect("begun");
    let half = async {
        let mut job = begun.clone();
        while job.progress.done != 25 {
            job = jobs.wait(begun.id, job.revision, PATIENCE).await.expect("known");
        }
        job
    };
    let half = timeout(PATIENCE, half).await.expect("a quarter");
    assert_eq!((half.step.as_deref(), half.progress.percent), (Some("copying"), 25.0));
    let same = jobs.wait(begun.id, half.revision, Duration::from_millis(1)).await;
    assert_eq!(same.as_ref(), Some(&half), "nothing happened in that time");
    go.send(()).expect("it waits");
    let job = ended(&jobs, begun.id).await;
    assert_eq!((job.state, job.result), (JobState::Done, Some(json!({ "bytes": 100 }))));
    assert_eq!(folder.open().get(begun.id), jobs.get(begun.id), "it is on disk");
}

#[tokio::test]
async fn a_job_that_is_cancelled_stops_and_one_that_panics_has_failed() {
    let folder = Folder::new("cancel");
    let jobs = folder.open();
    let stops = jobs.spawn(new(), async |job: JobHandle| {
        job.stopped().await;
        Err(Unfinished::Stopped)
    });
    let stops = stops.await.expect("begun").id;
    assert_eq!(jobs.cancel(stops).expect("it runs").state, JobState::Cancelling);
    assert_eq!(ended(&jobs, stops).await.state, JobState::Cancelled);
    assert_eq!(jobs.cancel(stops).unwrap_err().to_string(), "job 1 cannot be cancelled: it is cancelled");
    assert_eq!(jobs.cancel(JobId(7)).unwrap_err().to_string(), "there is no job 7");

    let broken = jobs.spawn(new(), async |_| panic!("a mistake"));
    let broken = broken.await.expect("begun").id;
    assert_eq!(ended(&jobs, broken).await.state, JobState::Failed);
}

#[tokio::test]
async fn a_gateway_that_stops_has_its_jobs_stop() {
    let folder = Folder::new("stop");
    let jobs = folder.open();
    let stops = jobs.spawn(new(), async |job: JobHandle| {
        job.stopped().await;
        job.seal().map(|()| None)
    });
    let stops = stops.await.expect("begun").id;
    timeout(PATIENCE, jobs.stop()).await.expect("an end");
    let job = jobs.get(stops).expect("known");
    assert_eq!(job.state, JobState::Interrupted);
    assert_eq!(job.problem.as_deref(), Some("the gateway stopped; nothing is left of it"));
}

#[tokio::test]
async fn what_a_killed_gateway_left_is_told_and_cleared_away() {
    let folder = Folder::new("killed");
    let (told, is_told) = oneshot::channel();
    let partial = folder.0.join("partial");
    let path = partial.clone();
    let jobs = folder.open();
    let begun = jobs.spawn(new(), async move |job: JobHandle| {
        fs::write(&path, "half")?;
        let file = FileStamp::of(&path)?;
        job.leave(&[Leftover::Partial { file, target: path.with_file_name("whole") }]).await?;
        let _ = told.send(());
        std::future::pending().await
    });
    let id = begun.await.expect("begun").id;
    is_told.await.expect("noted");
    // The task goes on to wait for nothing; the next gateway knows only the folder.
    let next = folder.open();
    assert_eq!(next.get(id).expect("known").state, JobState::Running);
    next.interrupt_orphans().await;
    let job = next.get(id).expect("known");
    assert_eq!(job.state, JobState::Interrupted);
    let removed = format!("the gateway ended while it ran; removed what it had made: {}", partial.display());
    assert_eq!(job.problem, Some(removed));
    assert!(!partial.exists());
    assert_eq!(folder.open().get(id), Some(job), "and that is on disk");
}

#[tokio::test]
async fn what_is_to_begin_again_does_with_the_next_gateway_unless_somebody_cancelled_it() {
    let folder = Folder::new("again");
    let jobs = folder.open();
    let (asked, made) = (Some(json!({ "convert": "/srv/a" })), folder.0.join("half"));
    let again = || NewJob { again: asked.clone(), ..new() };
    let half = made.clone();
    let leaves = jobs.spawn(again(), |job: JobHandle| async move {
        fs::write(&half, "half").expect("written");
        job.leave(&[Leftover::Partial { file: FileStamp::of(&half).expect("there"), target: "/srv/b".into() }]).await?;
        job.stopped().await;
        Err(Unfinished::Stopped)
    });
    let leaves = leaves.await.expect("begun").id;
    let stops = async |job: JobHandle| {
        job.stopped().await;
        Err(Unfinished::Stopped)
    };
    let cancelled = jobs.spawn(again(), stops).await.expect("begun").id;
    jobs.cancel(cancelled).expect("in time");
    assert_eq!(ended(&jobs, cancelled).await.state, JobState::Cancelled);
    while !made.exists() {
        tokio::task::yield_now().await;
    }
    jobs.stop().await;
    assert_eq!(jobs.get(leaves).expect("known").state, JobState::Running);
    drop(jobs);

    let jobs = folder.open();
    assert_eq!(jobs.to_begin_again().await, [(leaves, asked.clone().expect("asked"))]);
    assert!(!made.exists(), "what was half made is cleared away");
    let done = jobs.spawn_as(Some(leaves), again(), async |_| Ok(None)).await.expect("adopted");
    assert_eq!(done.id, leaves);
    assert_eq!(ended(&jobs, leaves).await.state, JobState::Done);
    assert!(jobs.spawn_as(Some(leaves), again(), async |_| Ok(None)).await.is_err(), "it has ended");
    assert!(jobs.to_begin_again().await.is_empty());
}

#[tokio::test]
async fn a_job_that_cannot_be_noted_is_not_begun() {
    let folder = Folder::new("full");
    let jobs = folder.open();
    fs::remove_dir_all(&folder.0).expect("removed");
    let error = jobs.spawn(new(), async |_| Ok(None)).await.unwrap_err().to_string();
    assert!(error.starts_with("jobs folder /"), "{error}");
}
