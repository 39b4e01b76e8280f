//! States that a VM goes back to, seen by who is connected.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fanlight_tests::gateway::Gateway;
use fanlight_tests::guest::Guest;
use fanlight_tests::picture::Likeness;
use fanlight_tests::wait::{Look, wait_until};
use serde_json::Value;

use crate::harness::journeys;
use crate::world::{World, echo_new_word, enter, font, new_word, wait_for_line};

journeys![a_session_stays_when_its_guest_goes_back];

/// How long a change that was cut off may take to its end.
const SETTLES: Duration = Duration::from_secs(120);

fn a_session_stays_when_its_guest_goes_back(_: &World) -> Result<()> {
    let mut gateway = Gateway::start()?;
    let person = gateway.add_user("demo", "a-word-and-9-more", None)?;
    let guest = gateway.create_guest_with_disk("web01")?;
    json(&gateway, &["checkpoint", "create", "web01", "--name", "empty"])?;
    guest.boot()?;
    let client = gateway.client(&person).open()?;
    let kept = new_word();
    enter(&client, &format!("echo {kept} | tee /dev/vda; sync"))?;
    wait_for_line(&client, &guest, &kept)?;
    let made = ["checkpoint", "create", "web01", "--name", "first", "--notes", "a word"];
    ensure!(json(&gateway, &made)?["state"] == "done", "a checkpoint is not made");
    let lost = new_word();
    enter(&client, &format!("echo {lost} | tee /dev/vda; sync"))?;
    wait_for_line(&client, &guest, &lost)?;

    let session = session(&gateway)?;
    json(&gateway, &["checkpoint", "revert", "web01", "first"])?;
    client.wait_for_screen(font()?, "the older screen", |screen| screen.has_line(&kept) && !screen.has_line(&lost))?;
    client.wait_for_picture(Likeness::Exact, || guest.picture())?;
    ensure!(self::session(&gateway)? == session, "the session is another one");
    // It works on, and its disk is the older one, too.
    enter(&client, "clear; echo 3 >/proc/sys/vm/drop_caches; head -n 1 /dev/vda")?;
    wait_for_line(&client, &guest, &kept)?;
    ensure!(tree(&gateway)? == [("empty", ""), ("first", "empty")].map(pair), "the tree is {:?}", tree(&gateway)?);
    goes_on_when_the_gateway_is_killed(&mut gateway, &guest)?;

    json(&gateway, &["checkpoint", "rename", "web01", "first", "kept"])?;
    json(&gateway, &["checkpoint", "delete", "web01", "kept"])?;
    let client = gateway.client(&person).open()?;
    echo_new_word(&client, &guest)?;
    client.close()
}

/// Whatever had been done when the gateway was killed, there is a guest that runs, and each checkpoint is whole or not there.
fn goes_on_when_the_gateway_is_killed(gateway: &mut Gateway, guest: &Guest) -> Result<()> {
    for command in [&["create", "web01", "--name", "second"][..], &["revert", "web01", "first"]] {
        json(gateway, &[&["checkpoint"], command, &["--detach"]].concat())?;
        gateway.kill();
        gateway.start_again()?;
        wait_until(SETTLES, format_args!("the end of {command:?}"), || {
            let list = json(gateway, &["checkpoint", "list", "web01"])?;
            let (state, unfinished) = (guest.state()?, &list["unfinished"]);
            let settled = unfinished.is_null() && state == "running";
            Ok(Look::when(settled, || format!("it is {state}, and {unfinished}")))
        })?;
        let list = json(gateway, &["checkpoint", "list", "web01"])?;
        let checkpoints = list["checkpoints"].as_array().context("checkpoints are a list")?;
        ensure!(checkpoints.iter().all(|checkpoint| checkpoint["problem"].is_null()), "the tree is {list}");
    }
    Ok(())
}

fn pair((name, parent): (&str, &str)) -> (String, String) {
    (name.to_owned(), parent.to_owned())
}

/// The checkpoints with those that they came after.
fn tree(gateway: &Gateway) -> Result<Vec<(String, String)>> {
    let list = json(gateway, &["checkpoint", "list", "web01"])?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let checkpoints = list["checkpoints"].as_array().context("checkpoints are a list")?;
    Ok(checkpoints.iter().map(|checkpoint| (text(&checkpoint["name"]), text(&checkpoint["parent"]))).collect())
}

/// What tells the only session from every other.
fn session(gateway: &Gateway) -> Result<Value> {
    let sessions = gateway.api().get("/v1/sessions")?;
    ensure!(sessions[0]["id"].is_number() && sessions[1].is_null(), "the sessions are {sessions}");
    Ok(sessions[0]["id"].clone())
}

/// Runs a command that must succeed; what it says.
fn json(gateway: &Gateway, arguments: &[&str]) -> Result<Value> {
    let output = gateway.command(&[arguments, &["--json"]].concat(), "")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?} ended with {}: {errors}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("{arguments:?} wrote no JSON"))
}
