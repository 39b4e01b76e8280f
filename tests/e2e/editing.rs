//! Definitions that change under VMs that run: by options, in an editor, by hand.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fanlight_tests::environment::environment;
use fanlight_tests::gateway::Gateway;
use fanlight_tests::process;
use fanlight_tests::wait::{Look, wait_until};
use serde_json::Value;

use crate::harness::journeys;
use crate::world::World;

/// How soon an edited file is noticed, on a machine that has much to do.
const NOTICED: Duration = Duration::from_secs(60);

journeys![
    a_vm_that_runs_keeps_what_it_runs_with,
    a_file_that_is_spoilt_by_hand_takes_nothing_down,
    a_file_that_is_put_into_the_folder_is_a_vm
];

fn a_vm_that_runs_keeps_what_it_runs_with(_: &World) -> Result<()> {
    let mut gateway = Gateway::start()?;
    let create = "vm create --name web01 --memory 64 --accelerator tcg --network none --monitors 2";
    json(&gateway, create)?;
    let started = json(&gateway, "vm start web01")?;

    let edited = json(&gateway, "vm edit web01 --memory 96 --vcpus 2 --monitors 1 --session-input hardware")?;
    let when = |what: &str| {
        let changes = edited["changes"].as_array().into_iter().flatten();
        changes.filter(|change| change["what"] == what).map(|change| change["when"].clone()).next()
    };
    for what in ["memory", "vcpus", "monitors"] {
        ensure!(when(what) == Some("next-start".into()), "{what} is changed {edited}");
    }
    ensure!(when("session.input") == Some("now".into()), "it is changed {edited}");
    let list = gateway.command(&["vm", "list"], "")?;
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    ensure!(list.contains("edited: memory, monitors, vcpus at the next start"), "it lists {list}");

    // Another gateway does not take it for what it is not.
    gateway.kill();
    gateway.start_again()?;
    let shown = json(&gateway, "vm show web01")?;
    ensure!(shown["state"] == "running" && shown["pid"] == started["pid"], "it is {shown}");
    ensure!(shown["memory"] == 64 && shown["vcpus"] == 1, "it is {shown}");
    ensure!(shown["waiting_changes"].as_array().is_some_and(|changes| changes.len() == 3), "it is {shown}");

    json(&gateway, "vm stop web01")?;
    let shown = json(&gateway, "vm start web01")?;
    ensure!(shown["memory"] == 96 && shown["waiting_changes"] == Value::Array(Vec::new()), "it is {shown}");
    let arguments = fs::read_to_string(format!("/proc/{}/cmdline", shown["pid"]))?;
    ensure!(arguments.contains("-smp\0") && arguments.contains("max_outputs=1"), "QEMU runs with {arguments}");
    Ok(())
}

fn a_file_that_is_spoilt_by_hand_takes_nothing_down(_: &World) -> Result<()> {
    let mut gateway = Gateway::start()?;
    json(&gateway, "vm create --name web01 --memory 64 --accelerator tcg --network none")?;
    let started = json(&gateway, "vm start web01")?;
    let file = gateway.state().join("vms/web01.toml");
    let good = fs::read_to_string(&file)?;

    // What can be read is noticed, and counts later.
    fs::write(&file, good.replace("memory = 64\nvcpus", "memory = 80\nvcpus"))?;
    notices(&gateway, "the edit", |shown| shown["waiting_changes"][0]["to"] == "80")?;
    // What cannot is told of, with the place.
    let bad = good.replace("vcpus = 1", "vcpus = 77");
    let line = bad.lines().position(|line| line == "vcpus = 77").context("there is such a line")? + 1;
    fs::write(&file, bad)?;
    let place = format!("web01.toml:{line}:9: `vcpus` is 1 to 32");
    let problem = |shown: &Value| shown["definition_problem"].as_str().unwrap_or_default().contains(&place);
    notices(&gateway, "the mistake", problem)?;
    ensure!(gateway.log().contains("definition refused"), "it logged {}", gateway.log());
    gateway.kill();
    gateway.start_again()?;
    let shown = json(&gateway, "vm show web01")?;
    ensure!(problem(&shown) && shown["pid"] == started["pid"] && shown["state"] == "running", "it is {shown}");

    json(&gateway, "vm stop web01")?;
    let refused = gateway.command(&["vm", "start", "web01"], "")?;
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && errors.contains(&place), "it says {errors}");
    // The first try is no better, and the second is.
    let editor = editor(gateway.state(), "sed -i 's/vcpus = 77/vcpus = \"x\"/;t;s/vcpus = \"x\"/vcpus = 2/' \"$1\"")?;
    let mended = edit(&gateway, &editor, "y\n")?;
    let (said, errors) = (String::from_utf8_lossy(&mended.stdout), String::from_utf8_lossy(&mended.stderr));
    ensure!(errors.contains(&format!(":{line}:9: invalid type: string")), "it says {errors}");
    ensure!(mended.status.success() && said.contains("vcpus: 1 → 2"), "it says {said}{errors}");
    let shown = json(&gateway, "vm start web01")?;
    ensure!(shown["vcpus"] == 2 && shown["definition_problem"].is_null(), "it is {shown}");
    Ok(())
}

fn a_file_that_is_put_into_the_folder_is_a_vm(_: &World) -> Result<()> {
    let mut gateway = Gateway::start()?;
    json(&gateway, "vm create --name web01 --memory 64 --accelerator tcg --network none")?;
    let folder = gateway.state().join("vms");
    let file = |name: &str| folder.join(format!("{name}.toml"));
    let (text, uuid) = (fs::read_to_string(file("web01"))?, json(&gateway, "vm show web01")?["uuid"].clone());
    let uuid = uuid.as_str().context("a UUID")?;
    let named = |name: &str, first: char| {
        text.replace("web01", name).replace(uuid, &format!("{first}0000000-0000-4000-8000-000000000000"))
    };
    let vms = |list: &Value| -> Vec<String> {
        let vms = list["vms"].as_array().into_iter().flatten();
        vms.filter_map(|vm| Some(vm["name"].as_str()?.to_owned())).collect()
    };

    // An editor writes beside and renames; who writes in place is waited for, though the first half would do.
    let late = named("late", 'a') + "# the end\n";
    let (half, rest) = late.split_at(late.len() - 10);
    let mut writes = fs::File::create(file("late"))?;
    writes.write_all(half.as_bytes())?;
    fs::write(folder.join("new.tmp"), named("web02", 'b'))?;
    fs::rename(folder.join("new.tmp"), file("web02"))?;
    lists(&gateway, "what was renamed", |list| vms(list) == ["web01", "web02"] && list["problems"][0].is_null())?;
    writes.write_all(rest.as_bytes())?;
    drop(writes);
    lists(&gateway, "what was written", |list| vms(list) == ["late", "web01", "web02"])?;
    let shown = json(&gateway, "vm show web02")?;
    ensure!(shown["state"] == "created" && shown["memory"] == 64, "it is {shown}");
    ensure!(json(&gateway, "vm start web02")?["state"] == "running", "it does not start");

    // What cannot be is told of, until it can.
    fs::write(file("bad"), named("bad", 'c').replace("vcpus = 1", "vcpus = 77"))?;
    let tells = |list: &Value, what: &str| list["problems"][0].as_str().is_some_and(|problem| problem.contains(what));
    lists(&gateway, "the mistake", |list| tells(list, ":9: `vcpus` is 1 to 32"))?;
    ensure!(gateway.log().contains("definition refused"), "it logged {}", gateway.log());
    fs::write(file("bad"), named("bad", 'b'))?;
    lists(&gateway, "the second mistake", |list| tells(list, "bad.toml:1:1: another VM has the same uuid"))?;
    fs::write(file("bad"), named("bad", 'c'))?;
    let four = ["bad", "late", "web01", "web02"];
    lists(&gateway, "the end of it", |list| vms(list) == four && list["problems"][0].is_null())?;

    // A VM that is off is not lost with its file.
    fs::rename(file("web01"), folder.join("web01.kept"))?;
    let gone = |shown: &Value| shown["definition_problem"].as_str().is_some_and(|why| why.contains("the file is gone"));
    notices(&gateway, "that the file is gone", gone)?;
    fs::rename(folder.join("web01.kept"), file("web01"))?;
    notices(&gateway, "that it is back", |shown| shown["definition_problem"].is_null())?;

    // Another gateway finds the same.
    gateway.kill();
    gateway.start_again()?;
    let list = json(&gateway, "vm list")?;
    ensure!(vms(&list) == four && list["vms"][3]["state"] == "running", "it lists {list}");
    Ok(())
}

/// Waits until `vm list` says so.
fn lists(gateway: &Gateway, what: &str, said: impl Fn(&Value) -> bool) -> Result<()> {
    wait_until(NOTICED, format_args!("{what} to be noticed"), || {
        let list = json(gateway, "vm list")?;
        Ok(Look::when(said(&list), || format!("it lists {list}")))
    })
}

/// Waits until `vm show` says so.
fn notices(gateway: &Gateway, what: &str, said: impl Fn(&Value) -> bool) -> Result<()> {
    wait_until(NOTICED, format_args!("{what} to be noticed"), || {
        let shown = json(gateway, "vm show web01")?;
        Ok(Look::when(said(&shown), || format!("it is {shown}")))
    })
}

/// A program that stands for a person with an editor.
fn editor(folder: &Path, command: &str) -> Result<PathBuf> {
    let path = folder.join("editor.sh");
    fs::write(&path, command)?;
    Ok(path)
}

fn edit(gateway: &Gateway, editor: &Path, answers: &str) -> Result<Output> {
    let mut command = Command::new(&environment()?.program);
    command.args(["vm", "edit", "web01"]).env("FANLIGHT_STATE", gateway.state());
    command.env("VISUAL", format!("sh '{}'", editor.display())).env("TMPDIR", gateway.state());
    process::run(command, answers, NOTICED)
}

/// Runs a command that must succeed; what it says.
fn json(gateway: &Gateway, words: &str) -> Result<Value> {
    gateway.command_json(&words.split_whitespace().collect::<Vec<_>>())
}
