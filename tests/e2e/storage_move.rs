//! Disks that go to another place by a command, while their VM runs and the gateway is killed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fanlight_tests::gateway::Gateway;
use fanlight_tests::wait::{Look, wait_until};
use serde_json::Value;

use crate::harness::journeys;
use crate::world::World;

/// Bytes of the disk: 24 MiB at the rate below take some seconds.
const SIZE: usize = 24 << 20;
/// How long a move may take to begin.
const UNDER_WAY: Duration = Duration::from_secs(60);

journeys![a_disk_moves_on_when_the_gateway_is_killed_and_back_by_one_command];

fn a_disk_moves_on_when_the_gateway_is_killed_and_back_by_one_command(_: &World) -> Result<()> {
    let mut gateway = Gateway::start()?;
    let folder = gateway.state().to_path_buf();
    let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let (first, second, third) = (at("first.img"), at("second.qcow2"), at("third.img"));
    fs::write(&first, noise())?;
    let disk = format!("path={first}");
    json(&gateway, &["vm", "create", "--name", "web01", "--memory", "64", "--disk", &disk])?;
    let started = json(&gateway, &["vm", "start", "web01"])?;

    let job = json(&gateway, &["disk", "move", "web01", "disk0", &second, "--rate", "6M", "--detach"])?;
    let id = job["id"].to_string();
    ensure!(job["kind"] == "disk-move" && job["vm"] == "web01", "the job is {job}");
    // Before it is under way, a job ends with its gateway.
    wait_until(UNDER_WAY, "the copy to be under way", || {
        let job = json(&gateway, &["job", "show", &id])?;
        Ok(Look::when(job["step"] == "copying", || format!("the job is {job}")))
    })?;
    gateway.kill();
    gateway.start_again()?;
    let job = json(&gateway, &["job", "wait", &id])?;
    ensure!(job["state"] == "done", "the job is {job}");
    let moved = &job["result"];
    ensure!(moved["target"] == second.as_str() && moved["source_kept"] == true, "it says {moved}");
    let shown = json(&gateway, &["vm", "show", "web01"])?;
    ensure!(shown["state"] == "running" && shown["pid"] == started["pid"], "the guest is not the same: {shown}");
    ensure!(places(&gateway)? == [second.clone()], "the definition names {:?}", places(&gateway)?);

    let order = ["disk", "move", "web01", &second, &third, "--verify", "--delete-source"];
    let moved = json(&gateway, &order)?["result"].take();
    ensure!(moved["source_kept"] == false && !Path::new(&second).exists(), "it says {moved}");
    ensure!(moved["sha256"].as_str().is_some_and(|sum| sum.len() == 64), "it says {moved}");
    json(&gateway, &["vm", "stop", "web01"])?;
    ensure!(fs::read(&first)? == fs::read(&third)?, "the bytes are others");
    let output = gateway.command(&["disk", "move", "web01", "disk0", &first], "")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(4) && errors.contains("nothing is overwritten"), "it says {errors}");
    Ok(())
}

/// What no format stores as nothing.
fn noise() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(SIZE / 8).flatten().collect()
}

/// Where the disks are, as the definition says.
fn places(gateway: &Gateway) -> Result<Vec<String>> {
    let text = fs::read_to_string(gateway.state().join("vms/web01.toml"))?;
    let paths = text.lines().filter_map(|line| line.strip_prefix("path = "));
    Ok(paths.map(|path| path.trim_matches('"').to_owned()).collect())
}

/// Runs a command that must succeed; what it says.
fn json(gateway: &Gateway, arguments: &[&str]) -> Result<Value> {
    let output = gateway.command(&[arguments, &["--json"]].concat(), "")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}`: {errors}", arguments.join(" "));
    serde_json::from_slice(&output.stdout).with_context(|| format!("`{}`", arguments.join(" ")))
}
