//! What an administrator does with the command line.

use anyhow::{Context, Result, ensure};
use fanlight_tests::client::Connect;
use fanlight_tests::environment::environment;
use fanlight_tests::gateway::Gateway;

use crate::harness::journeys;
use crate::world::World;

journeys![a_vm_lives_and_dies_by_commands, mistakes_have_their_own_exit_codes, a_written_rdp_file_connects];

fn a_vm_lives_and_dies_by_commands(_: &World) -> Result<()> {
    let gateway = Gateway::start()?;
    let under_test = environment()?;
    let (kernel, initrd) = (under_test.kernel.to_string_lossy(), under_test.initrd.to_string_lossy());
    let create = ["vm", "create", "--name", "web01", "--memory", "256", "--kernel", &kernel, "--initrd", &initrd];
    ensure!(gateway.command_json(&create)?["state"] == "created", "a new VM runs");
    let states =
        [("start", "running"), ("pause", "paused"), ("resume", "running"), ("reset", "running"), ("stop", "stopped")];
    for (request, state) in states {
        let shown = gateway.command_json(&["vm", request, "web01"])?;
        ensure!(shown["state"] == state, "after `{request}` it is {shown}");
    }
    let list = gateway.command_json(&["vm", "list"])?;
    ensure!(list["vms"][0]["name"] == "web01" && list["vms"][1].is_null(), "the list is {list}");
    gateway.command_json(&["vm", "delete", "web01"])?;
    let list = gateway.command_json(&["vm", "list"])?;
    ensure!(list["vms"][0].is_null(), "the list is {list}");
    Ok(())
}

fn mistakes_have_their_own_exit_codes(_: &World) -> Result<()> {
    let mut gateway = Gateway::start()?;
    gateway.create_guest("only")?;
    gateway.add_user("anna", "right-and-long-enough", None)?;
    let (state, mistake) = (gateway.state().join("mistake.toml"), "name = \"a\"\nuuid = \"nonsense\"\nmemory = 64\n");
    std::fs::write(&state, mistake)?;
    let file = state.to_string_lossy();
    for (arguments, code, words) in [
        (&["vm", "start", "nothing"][..], 3, "there is no VM `nothing`"),
        (&["vm", "create", "--file", &file], 2, "mistake.toml:2:8"),
        (&["vm", "create", "--name", "only"], 4, "there is already a VM"),
        (&["vm", "resume", "only"], 4, "cannot resume"),
        (&["user", "add", "anna"], 4, "exists"),
        (&["user", "remove", "nobody"], 3, "nobody"),
        (&["vm", "fly"], 2, "fly"),
    ] {
        fails(&gateway, arguments, code, words)?;
    }
    gateway.stop()?;
    fails(&gateway, &["vm", "list"], 5, "no service runs")
}

fn a_written_rdp_file_connects(_: &World) -> Result<()> {
    let gateway = Gateway::start()?;
    let anna = gateway.add_user("anna", "right-and-long-enough", None)?;
    for name in ["one", "two"] {
        gateway.create_guest(name)?;
    }
    for (vm, route) in [("one", "token"), ("two", "blob"), ("one", "user")] {
        let file = gateway.state().join(format!("{vm}-{route}.rdp"));
        let output = file.to_string_lossy();
        let write = ["rdp-file", vm, "--user", &anna.name, "--route", route, "--output", &output];
        gateway.command_json(&write)?;
        let client = Connect::by_file(&file, &anna.password).open().with_context(|| format!("by {route}"))?;
        gateway.wait_for_sessions(1)?;
        let sessions = gateway.sessions()?;
        ensure!(sessions == [vm], "by {route} the file for {vm} leads to {sessions:?}");
        client.close()?;
        gateway.wait_for_sessions(0)?;
    }
    Ok(())
}

/// Runs a command that must fail with `code` and explain itself with `words`.
fn fails(gateway: &Gateway, arguments: &[&str], code: i32, words: &str) -> Result<()> {
    let output = gateway.command(arguments, "some-password-or-other\n")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "{arguments:?} ended with {}: {errors}", output.status);
    ensure!(errors.contains(words), "{arguments:?} does not say `{words}`: {errors}");
    Ok(())
}
