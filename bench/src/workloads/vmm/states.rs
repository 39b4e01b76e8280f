//! Checkpoints of a guest that computes: how long it stands still for one, and how long it takes back.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use fanlight_tests::guest::{Machine, Memory};
use fanlight_tests::headless::keyboard::ENTER;
use serde_json::{Value, json};

use super::{Folder, disk_table, qemu_img};
use crate::report::{Report, median};
use crate::world::World;

const ROUNDS: usize = 5;
/// What the guest has, in MiB.
const MEMORY: u64 = 512;
/// What is filled with noise in it, in MiB; with its own it uses about 200.
const NOISE: u64 = 160;
const PATIENCE: Duration = Duration::from_secs(300);
/// How long it is looked which of QEMU's threads computes.
const COMPUTES: Duration = Duration::from_millis(500);
/// How often its processor is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What the issue of the virtual machines allows, in seconds.
const MOST_PAUSE: f64 = 2.0;
const MOST_REVERT: f64 = 3.0;

/// Measures both.
pub(super) async fn measure(report: &mut Report) -> Result<()> {
    eprintln!("checkpoints of {MEMORY} MiB");
    let folder = Folder::new("states")?;
    let image = folder.at("disk.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2"], &[&image, "1G".as_ref()])?;
    let memory = Some(Memory { startup: MEMORY, minimum: MEMORY, maximum: MEMORY });
    let machine = Machine { memory, tables: disk_table(&image, "qcow2").leak(), ..Machine::default() };
    let world = World::start_on("kept", machine)?;
    let mut client = world.client("kept").await?;
    let fill = format!("mkdir /n; mount -t tmpfs n /n; dd if=/dev/urandom of=/n/n bs=1M count={NOISE}");
    client.type_text(&fill).await?;
    client.tap(ENTER).await?;
    let filled = format!("{NOISE}+0 records out");
    world.guest("kept")?.wait_for_screen(PATIENCE, "a memory full of noise", |screen| screen.has(&filled))?;
    client.type_text("while :; do :; done").await?;
    client.tap(ENTER).await?;
    let span = world.span()?;
    let (mut pauses, mut saves, mut reverts, mut stills) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let name = format!("round {round}");
        let (took, pause) = beside_processor(&world, "/v1/vms/kept/checkpoints", &json!({ "name": name }))?;
        saves.push(took);
        pauses.push(pause);
        let revert = format!("/v1/vms/kept/checkpoints/round%20{round}/revert");
        let (took, pause) = beside_processor(&world, &revert, &Value::Null)?;
        reverts.push(took);
        stills.push(pause);
    }
    let row = |what: &str, values: &[f64]| {
        let most = values.iter().copied().fold(0.0, f64::max);
        vec![("what", json!(what)), ("s, median", json!(median(values))), ("s, most", json!(most))]
    };
    let title = format!(
        "{ROUNDS} checkpoints of a guest with {MEMORY} MiB, {NOISE} of them noise; foreign load {} cores",
        span.foreign()?
    );
    let rows = vec![
        row("making one: its processor stands still", &pauses),
        row("making one: the whole job", &saves),
        row("going back: its processor stands still", &stills),
        row("going back: the whole job", &reverts),
    ];
    report.table(title, rows);
    report.at_most("a checkpoint's pause", median(&pauses), MOST_PAUSE, "s");
    report.at_most("a revert", median(&reverts), MOST_REVERT, "s");
    Ok(())
}

/// Has a job done; how long that took, and the longest time in which the guest's processor did nothing, in seconds.
fn beside_processor(world: &World, path: &str, body: &Value) -> Result<(f64, f64)> {
    let pid = world.guest("kept")?.pid()?.as_raw_nonzero().get();
    let (over, times) = (AtomicBool::new(false), processor(pid)?);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| longest_rest(&times, &over));
        let started = Instant::now();
        let done = finish(world, path, body);
        let took = started.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        let rest = watcher.join().map_err(|_| anyhow!("the watcher broke"))??;
        done.map(|()| (took, rest.as_secs_f64()))
    })
}

/// Where the system tells how long the guest's processor has run: of QEMU's threads it is the one that computes.
fn processor(pid: i32) -> Result<String> {
    let times = || -> Result<Vec<(String, u64)>> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
        let paths = tasks.map(|task| Ok(task?.path().join("schedstat").display().to_string()));
        paths.map(|path: Result<String>| path.and_then(|path| time(&path).map(|time| (path, time)))).collect()
    };
    let before = times()?;
    std::thread::sleep(COMPUTES);
    let more = |(path, time): (String, u64)| {
        let then = before.iter().find(|(other, _)| *other == path).map_or(0, |(_, then)| *then);
        (time.saturating_sub(then), path)
    };
    let (ran, path) = times()?.into_iter().map(more).max().context("QEMU has threads")?;
    ensure!(ran > 0, "the guest does not compute");
    Ok(path)
}

/// How long a thread has run, in nanoseconds.
fn time(schedstat: &str) -> Result<u64> {
    let text = fs::read_to_string(schedstat)?;
    text.split_whitespace().next().and_then(|time| time.parse().ok()).context("no time")
}

fn longest_rest(times: &str, over: &AtomicBool) -> Result<Duration> {
    let (mut last, mut since, mut longest) = (0, Instant::now(), Duration::ZERO);
    loop {
        // Read once more after the end: a processor that has not gone on yet is still at rest.
        let ends = over.load(Ordering::Relaxed);
        let time = time(times)?;
        longest = longest.max(since.elapsed());
        if time != last {
            (last, since) = (time, Instant::now());
        }
        if ends {
            return Ok(longest);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn finish(world: &World, path: &str, body: &Value) -> Result<()> {
    let api = world.gateway.api();
    let job = api.post(path, body)?;
    let id = job["id"].as_u64().context("a job has a number")?;
    let (started, mut revision) = (Instant::now(), 0);
    loop {
        let job = api.get(&format!("/v1/jobs/{id}?after={revision}&wait=5"))?;
        revision = job["revision"].as_u64().unwrap_or(0);
        match job["state"].as_str() {
            Some("running") => ensure!(started.elapsed() < PATIENCE, "it takes too long: {job}"),
            Some("done") => return Ok(()),
            _ => return Err(anyhow!("it went wrong: {job}")),
        }
    }
}
