//! What asking and starting cost: a list of many VMs, and a start beside QEMU's own time.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fanlight_tests::gateway::Gateway;
use fanlight_tests::guest::{Guest, Machine};
use serde_json::json;

use crate::machine::Span;
use crate::report::{Report, median};

/// So many definitions are listed.
const VMS: usize = 200;
/// So often it is measured.
const LISTS: usize = 21;
const STARTS: usize = 9;
/// QEMU has answered long before.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the issue of the virtual machines allows, in milliseconds.
const MOST_LIST: f64 = 50.0;
const MOST_ADDED: f64 = 150.0;

/// Measures both.
pub(super) fn measure(report: &mut Report) -> Result<()> {
    let gateway = Gateway::start()?;
    lists(&gateway, report)?;
    starts(&gateway, report)
}

fn lists(gateway: &Gateway, report: &mut Report) -> Result<()> {
    eprintln!("listing {VMS} VMs");
    for number in 0..VMS {
        gateway.create_guest(&format!("vm{number:03}"))?;
    }
    let span = Span::start(&[])?;
    let (mut programs, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..LISTS {
        let started = Instant::now();
        let listed = gateway.command(&["vm", "list", "--json"], "")?;
        programs.push(milliseconds(started));
        ensure!(listed.status.success(), "vm list: {}", String::from_utf8_lossy(&listed.stderr));
        let started = Instant::now();
        let answer = gateway.api().get("/v1/vms")?;
        answers.push(milliseconds(started));
        ensure!(answer["vms"].as_array().is_some_and(|vms| vms.len() == VMS), "not all are listed");
    }
    let foreign = span.foreign()?;
    report.table(
        format!("a list of {VMS} VMs, {LISTS} times; foreign load {foreign} cores"),
        vec![
            vec![
                ("what", json!("`fanlight vm list --json`, from start to end")),
                ("ms, median", json!(median(&programs))),
            ],
            vec![("what", json!("the API's answer alone")), ("ms, median", json!(median(&answers)))],
        ],
    );
    report.at_most(format!("`vm list` with {VMS} definitions"), median(&programs), MOST_LIST, "ms");
    Ok(())
}

fn starts(gateway: &Gateway, report: &mut Report) -> Result<()> {
    // Without a bus, QEMU needs nothing but its arguments and a socket: so it can be started as we start it.
    let machine = Machine { tables: "[bus]\nenabled = false", ..Machine::default() };
    let guest = gateway.create_guest_on("started", machine)?;
    let folder = gateway.state().join("bench");
    fs::create_dir_all(&folder)?;
    let span = Span::start(&[])?;
    let (mut ours, mut qemus) = (Vec::new(), Vec::new());
    for round in 1..=STARTS {
        eprintln!("start {round} of {STARTS}");
        let started = Instant::now();
        guest.request("start")?;
        ours.push(milliseconds(started));
        let arguments = arguments(&guest)?;
        guest.request("stop")?;
        qemus.push(qemu_alone(&arguments, &folder)?);
    }
    let foreign = span.foreign()?;
    let added = median(&ours) - median(&qemus);
    report.table(
        format!("{STARTS} starts, each beside QEMU alone; foreign load (with QEMU) {foreign} cores"),
        vec![
            vec![("what", json!("`vm start`, until it is answered")), ("ms, median", json!(median(&ours)))],
            vec![
                ("what", json!("QEMU with the same arguments, until it has carried out `cont`")),
                ("ms, median", json!(median(&qemus))),
            ],
        ],
    );
    report.at_most("`vm start` beyond QEMU's own time", added, MOST_ADDED, "ms");
    Ok(())
}

/// The arguments of the guest's QEMU, its program first.
fn arguments(guest: &Guest) -> Result<Vec<String>> {
    let pid = guest.pid()?.as_raw_nonzero();
    let line = fs::read(format!("/proc/{pid}/cmdline"))?;
    let arguments = line.split(|byte| *byte == 0).map(|argument| String::from_utf8_lossy(argument).into_owned());
    let mut arguments: Vec<String> = arguments.collect();
    // Each ends with a zero.
    arguments.pop();
    ensure!(arguments.len() > 1, "process {pid} has no arguments");
    Ok(arguments)
}

/// How long QEMU itself takes until its processors run, in milliseconds.
fn qemu_alone(arguments: &[String], folder: &Path) -> Result<f64> {
    let socket = folder.join("qmp.sock");
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).context("the state folder's path is short")?;
    let program = arguments.first().context("a program")?;
    let mut command = Command::new(program);
    command.args(arguments.get(1..).unwrap_or_default()).current_dir(folder);
    command.stdin(Stdio::from(OwnedFd::from(listener))).stdout(Stdio::null()).stderr(Stdio::null());
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| program.clone())?;
    let ran = run_processors(&socket);
    let taken = milliseconds(started);
    child.kill()?;
    child.wait()?;
    ran.map(|()| taken)
}

fn run_processors(socket: &Path) -> Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut next = || -> Result<String> { Ok(lines.next().context("QEMU says nothing more")??) };
    next()?;
    for command in ["qmp_capabilities", "cont"] {
        stream.write_all(format!("{{\"execute\": \"{command}\"}}\n").as_bytes())?;
        // Events may come before the answer.
        while !next()?.contains("\"return\"") {}
    }
    Ok(())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
