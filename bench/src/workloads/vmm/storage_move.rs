//! Live Storage Move: 2 GiB between two files against `qemu-img convert` and `compare` of the same, and what the guest's
//! writes take meanwhile.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use fanlight_tests::guest::Machine;
use fanlight_tests::headless::keyboard::ENTER;
use serde_json::json;

use super::{Folder, disk_table, qemu_img};
use crate::report::{Report, median};
use crate::world::World;

const SIZE: u64 = 2 << 30;
/// What the guest writes at a time, each with a flush.
const BLOCK: u64 = 4096;
/// How long it does before the disk moves.
const BEFORE: Duration = Duration::from_secs(5);
/// How often the disk is looked at for the next.
const LOOK_EVERY: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(300);
/// How often each of the ways to copy is measured. The fastest counts: what a virtual machine has not touched for a while its
/// host has to find first, in memory and on the disk, and either way to copy gets four times slower by that.
const ROUNDS: usize = 10;

/// Measures it with both places raw, beside a guest that writes, and with both qcow2, beside one that does not.
pub(super) async fn measure(report: &mut Report) -> Result<()> {
    let mut rows = Vec::new();
    for format in ["raw", "qcow2"] {
        eprintln!("storage move: {format}");
        let took = run(format).await?;
        let rate = |seconds: f64| SIZE as f64 / f64::from(1 << 20) / seconds;
        let (convert, both) = (rate(took.convert), rate(took.convert + took.compare));
        let (copy, whole) = (rate(took.copy), rate(took.whole));
        rows.push(vec![
            ("format", json!(format)),
            ("convert, MiB/s", json!(convert.round())),
            ("copy, MiB/s", json!(copy.round())),
            ("convert and compare, MiB/s", json!(both.round())),
            ("whole move, MiB/s", json!(whole.round())),
            ("the same, medians", json!([rate(took.medians.0).round(), rate(took.medians.1).round()])),
            ("stood still, ms", json!(took.stood_still)),
            ("foreign cores", json!(took.foreign)),
        ]);
        report.at_least(format!("{format}: copy against convert"), 100.0 * copy / convert, 80.0, "%");
        report.at_least(format!("{format}: whole move against convert and compare"), 100.0 * whole / both, 80.0, "%");
        if let Some((before, during)) = took.writes {
            let words =
                format!("{format}: 4 KiB written and flushed by the guest while it moves, against {before:.2} ms");
            report.at_most(words, during / before, 2.0, "×");
        }
    }
    report.table("storage move: 2 GiB of noise from file to file; all of it synced", rows);
    Ok(())
}

/// What it took at its fastest, in seconds.
struct Measured {
    convert: f64,
    compare: f64,
    copy: f64,
    whole: f64,
    /// Of the converting with the comparing, and of the whole move.
    medians: (f64, f64),
    /// Of the guest's writes, in milliseconds: before, and while the disk moved.
    writes: Option<(f64, f64)>,
    /// In milliseconds.
    stood_still: f64,
    foreign: f64,
}

/// Both ways to copy, one after the other, in seconds.
struct Round {
    convert: f64,
    compare: f64,
    times: Times,
}

/// When things happened.
struct Times {
    begun: Instant,
    copied: Instant,
    ended: Instant,
    /// In milliseconds.
    stood_still: f64,
    /// As in [`Measured`].
    writes: (f64, f64),
}

async fn run(format: &str) -> Result<Measured> {
    let folder = Folder::new("move")?;
    let at = |name: &str| folder.at(name);
    let source = at("source");
    noise(&source)?;
    if format != "raw" {
        convert(&source, "raw", &at("other"), format)?;
        fs::rename(at("other"), &source)?;
    }
    let script = at("script");
    fs::write(&script, WRITER)?;
    File::options().write(true).open(&script)?.set_len(1 << 20)?;
    let tables = format!("{}{}", disk_table(&script, "raw"), disk_table(&source, format));
    // The process does not live long.
    let world = World::start_on("mover", Machine { tables: tables.leak(), ..Machine::default() })?;
    let writes = format == "raw";
    if writes {
        let mut client = world.client("mover").await?;
        client.type_text("until [ -b /dev/vda ]; do :; done; sh /dev/vda &").await?;
        client.tap(ENTER).await?;
        first_write(&source)?;
    }
    let span = world.span()?;
    let (mut rounds, mut source, mut block) = (Vec::new(), source, 0);
    for round in 0..ROUNDS {
        let target = at(&format!("{round}.{format}"));
        let mut a_move = |source: &Path| {
            if writes { beside_writes(&world, source, &target, &mut block) } else { moved(&world, &target) }
        };
        let others = |source: &Path| convert_and_compare(source, &at("converted"), format);
        // Neither is always the one that comes after the other.
        let ((convert, compare), times) = if round % 2 == 0 {
            let others = others(&source)?;
            (others, a_move(&source)?)
        } else {
            let times = a_move(&source)?;
            (others(&target)?, times)
        };
        fs::remove_file(&source)?;
        source = target;
        rounds.push(Round { convert, compare, times });
    }
    let all = |of: &dyn Fn(&Round) -> f64| rounds.iter().map(of).collect::<Vec<_>>();
    let middle = |of: &dyn Fn(&Round) -> f64| median(&all(of));
    let fastest = |of: &dyn Fn(&Round) -> f64| all(of).into_iter().fold(f64::INFINITY, f64::min);
    let flushes = writes.then(|| (middle(&|round| round.times.writes.0), middle(&|round| round.times.writes.1)));
    let whole = |round: &Round| (round.times.ended - round.times.begun).as_secs_f64();
    Ok(Measured {
        convert: fastest(&|round| round.convert),
        compare: fastest(&|round| round.compare),
        copy: fastest(&|round| (round.times.copied - round.times.begun).as_secs_f64()),
        whole: fastest(&whole),
        medians: (middle(&|round| round.convert + round.compare), middle(&whole)),
        writes: flushes,
        stood_still: middle(&|round| round.times.stood_still),
        foreign: span.foreign()?,
    })
}

/// What `qemu-img` takes for the same beside the same guest, in seconds. While that writes, its disk is like no other: the copy is
/// compared with itself.
fn convert_and_compare(source: &Path, copy: &Path, format: &str) -> Result<(f64, f64)> {
    let started = Instant::now();
    qemu_img(&["convert", "-U", "-f", format, "-O", format], &[source, copy])?;
    File::open(copy)?.sync_all()?;
    let convert = started.elapsed().as_secs_f64();
    let started = Instant::now();
    qemu_img(&["compare", "-U", "-q", "-f", format, "-F", format], &[copy, copy])?;
    let compare = started.elapsed().as_secs_f64();
    fs::remove_file(copy)?;
    Ok((convert, compare))
}

/// Writes blocks of one letter over the noise, from the front, each with a flush: that is what QEMU does when the disk is to
/// keep nothing in a cache.
const WRITER: &str = "until [ -b /dev/vdb ]; do :; done\n\
    echo 'write through' >/sys/block/vdb/cache_type\n\
    tr '\\0' x </dev/zero | dd of=/dev/vdb bs=4096 count=500000 oflag=direct iflag=fullblock conv=notrunc\nexit\n";

/// Moves the disk while the guest writes to it, and takes the times of its writes. It has come to `block`.
fn beside_writes(world: &World, source: &Path, target: &Path, block: &mut u64) -> Result<Times> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(source, &over, block));
        std::thread::sleep(BEFORE);
        let measured = moved(world, target);
        over.store(true, Ordering::Relaxed);
        let seen = watcher.join().map_err(|_| anyhow!("the watcher broke"))??;
        let times = measured?;
        let first = seen.first().copied().context("nothing is written")?;
        let between = |range: Range<Instant>| gaps(&seen, |start, end| start >= range.start && end <= range.end);
        let (before, during) = (between(first..times.begun), between(times.begun..times.ended));
        ensure!(before.len() > 20 && during.len() > 20, "{} and {} writes are too few", before.len(), during.len());
        Ok(Times { writes: (median(&before), median(&during)), ..times })
    })
}

fn first_write(disk: &Path) -> Result<()> {
    let (file, deadline) = (File::open(disk)?, Instant::now() + PATIENCE);
    while !is_written(&file, 0)? {
        ensure!(Instant::now() < deadline, "the guest writes nothing");
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// The milliseconds between one block and the next, of those pairs that are wanted.
fn gaps(seen: &[Instant], wanted: impl Fn(Instant, Instant) -> bool) -> Vec<f64> {
    let pairs = seen.windows(2).filter_map(|pair| <[Instant; 2]>::try_from(pair).ok());
    pairs.filter(|[start, end]| wanted(*start, *end)).map(|[start, end]| (end - start).as_secs_f64() * 1e3).collect()
}

/// When each block was there from the first on that is not there yet, until it is `over`. None before `block` is looked at.
fn watch(disk: &Path, over: &AtomicBool, block: &mut u64) -> Result<Vec<Instant>> {
    let (file, mut seen) = (File::open(disk)?, Vec::new());
    while is_written(&file, *block)? {
        *block += 1;
    }
    while !over.load(Ordering::Relaxed) {
        if is_written(&file, *block)? {
            seen.push(Instant::now());
            *block += 1;
        } else {
            std::thread::sleep(LOOK_EVERY);
        }
    }
    Ok(seen)
}

fn is_written(disk: &File, block: u64) -> Result<bool> {
    let mut bytes = [0; 8];
    disk.read_exact_at(&mut bytes, block * BLOCK)?;
    Ok(bytes == *b"xxxxxxxx")
}

/// Moves the second disk.
fn moved(world: &World, target: &Path) -> Result<Times> {
    let api = world.gateway.api();
    let begun = Instant::now();
    let job = api.post("/v1/vms/mover/disks/disk1/move", &json!({ "target": target }))?;
    let id = job["id"].as_u64().context("a job has a number")?;
    let (mut revision, mut copied) = (0, None);
    loop {
        let job = api.get(&format!("/v1/jobs/{id}?after={revision}&wait=5"))?;
        let now = Instant::now();
        revision = job["revision"].as_u64().unwrap_or(0);
        if matches!(job["step"].as_str(), Some("comparing" | "switching" | "releasing")) {
            copied.get_or_insert(now);
        }
        match job["state"].as_str() {
            Some("running") => ensure!(begun.elapsed() < PATIENCE, "the move takes too long: {job}"),
            Some("done") => {
                let stood_still = job["result"]["stood_still"].as_f64().context("the guest was on")?;
                let copied = copied.unwrap_or(now);
                return Ok(Times { begun, copied, ended: now, stood_still, writes: (0.0, 0.0) });
            }
            _ => return Err(anyhow!("the move went wrong: {job}")),
        }
    }
}

fn convert(source: &Path, from: &str, target: &Path, to: &str) -> Result<()> {
    qemu_img(&["convert", "-f", from, "-O", to], &[source, target])
}

/// Fills a file with what no format stores as nothing.
fn noise(path: &Path) -> Result<()> {
    let (mut file, mut random) = (File::create(path)?, File::open("/dev/urandom")?);
    let mut piece = vec![0; 64 << 20];
    random.read_exact(&mut piece)?;
    for _ in 0..SIZE / (64 << 20) {
        file.write_all(&piece)?;
    }
    Ok(file.sync_all()?)
}
