//! Starting, stopping, and what is refused before a start.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::Signal;

use crate::kit::{State, eventually, finish};

#[test]
fn a_mistake_in_the_configuration_is_named_by_line_and_column() {
    let state = State::new();
    fs::write(state.path().join("fanlight.toml"), "[login]\nnla = 'allow'\n\n[limits]\nsesions = 3\n").unwrap();
    for command in ["serve", "serve --check"] {
        let finished = state.run(command);
        assert_eq!(finished.code, 2);
        assert!(finished.stderr.contains("fanlight.toml:5:1: unknown field `sesions`"), "{}", finished.stderr);
    }
}

#[test]
fn a_second_gateway_is_refused_and_names_the_first() {
    let state = State::new();
    let service = state.serve();
    let finished = state.run("serve --listen 127.0.0.1:0");
    assert_eq!(finished.code, 4);
    assert!(finished.stderr.contains(&format!("(pid {})", service.pid())), "{}", finished.stderr);
    assert_eq!(state.json("status")["pid"], service.pid());
}

#[test]
fn a_stop_is_orderly_and_a_kill_leaves_nothing_in_the_way() {
    let state = State::new();
    let mut service = state.serve();
    service.signal(Signal::KILL);
    service.wait();
    assert!(state.path().join("api.sock").exists(), "a killed process cannot clean up");
    assert_eq!(state.run("status").code, 5);

    let service = state.serve();
    assert_eq!(state.run("status").code, 0);
    service.stop();
    assert!(!state.path().join("api.sock").exists());
}

#[test]
fn files_are_for_their_owner_alone() {
    let state = State::at("new");
    let _service = state.serve();
    state.add_user("anna", "secret");
    let mode = |name: &str| fs::metadata(state.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("api.sock"), mode("users.toml"), mode("tls/key.pem")), (0o600, 0o600, 0o600));
    assert_eq!((mode("vms"), mode("run"), mode("tls")), (0o700, 0o700, 0o700));
}

#[test]
fn a_state_folder_may_lie_deep() {
    let state = State::at(&"a-folder-with-a-long-name/".repeat(8));
    let service = state.serve();
    assert_eq!(state.json("status")["pid"], service.pid());
    service.stop();
}

#[test]
fn the_certificate_outlives_the_service() {
    let state = State::new();
    let first = state.serve();
    let fingerprint = first.announced["fingerprint"].clone();
    first.stop();
    assert_eq!(state.serve().announced["fingerprint"], fingerprint);
}

#[test]
fn only_loopback_is_open_until_there_is_a_user() {
    let state = State::new();
    let service = state.serve_with("--listen 0.0.0.0:0");
    assert!(service.address().ip().is_loopback());
    state.add_user("anna", "secret");
    let open = || state.json("status")["listening"][0].as_str().map(str::to_owned);
    eventually("the chosen address is open", || open().filter(|address| address.starts_with("0.0.0.0:")));
    state.run("user remove anna");
    eventually("it is closed again", || open().filter(|address| address.starts_with("127.0.0.1:")));
}

#[test]
fn exit_codes_say_what_kind_of_trouble_there_is() {
    let state = State::new();
    assert_eq!(state.run("vm list").code, 5);
    assert_eq!(state.run("vm lst").code, 2);
    assert_eq!(state.run("--help").code, 0);
    let _service = state.serve();
    assert_eq!(state.run("vm list").code, 0);
    assert_eq!(state.run("vm show nothing").code, 3);
    assert_eq!(state.run("session end 7").code, 3);
    let finished = state.run("vm start nothing --json");
    let error: serde_json::Value = serde_json::from_str(&finished.stderr).unwrap();
    assert_eq!((finished.code, &error["error"]["code"]), (3, &"not-found".into()));
}

#[test]
fn completions_know_the_commands() {
    let state = State::new();
    for shell in ["bash", "zsh", "fish"] {
        let finished = state.run(&format!("completions {shell}"));
        assert!(finished.code == 0 && finished.stdout.contains("screenshot"), "{shell}");
    }
}

#[test]
fn the_doctor_finds_what_is_needed() {
    let state = State::new();
    // Somebody may have the usual ports.
    fs::write(state.path().join("fanlight.toml"), "[listen]\naddresses = [\"127.0.0.1:0\"]\n").unwrap();
    let alone = state.json("doctor");
    assert_eq!(alone["works"], true, "{alone:#}");
    let _service = state.serve();
    let asked = state.json("doctor");
    let names = |report: &serde_json::Value| {
        report["checks"].as_array().unwrap().iter().map(|check| check["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&alone), names(&asked));
}

#[test]
fn the_doctor_fails_only_when_nothing_works_without_what_is_missing() {
    let state = State::new();
    let configure = |more: &str| {
        let text = format!("[listen]\naddresses = [\"127.0.0.1:0\"]\n{more}");
        fs::write(state.path().join("fanlight.toml"), text).unwrap();
    };
    let examine = |path: Option<&Path>| {
        let mut command = state.command("doctor --json");
        if let Some(path) = path {
            command.env("PATH", path);
        }
        let finished = finish(command, "");
        let report: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
        let levels = report["checks"].as_array().unwrap().iter();
        let level = |check: &serde_json::Value| check["level"].as_str().unwrap().to_owned();
        let levels = levels.map(|check| (check["name"].as_str().unwrap().to_owned(), level(check)));
        (finished.code, report["works"].as_bool().unwrap(), levels.collect::<BTreeMap<_, _>>())
    };
    configure("[qemu]\nprogram = \"/nonexistent/qemu-system-x86_64\"\n");
    let (code, works, levels) = examine(None);
    assert_eq!((code, works, levels["qemu"].as_str()), (1, false, "missing"), "named by the configuration");
    configure("");
    let programs = state.path().join("programs");
    fs::create_dir(&programs).unwrap();
    let (code, works, levels) = examine(Some(&programs));
    assert_eq!((code, works, levels["qemu"].as_str()), (1, false, "missing"), "looked for on the path");

    // All that only some VMs need may be missing, and others may read the users: that stops nothing.
    let path = std::env::var_os("PATH").unwrap();
    let qemu = std::env::split_paths(&path).map(|folder| folder.join("qemu-system-x86_64")).find(|file| file.exists());
    std::os::unix::fs::symlink(qemu.unwrap(), programs.join("qemu-system-x86_64")).unwrap();
    state.add_user("anna", "a long password");
    for (path, mode) in [(state.path().to_path_buf(), 0o755), (state.path().join("users.toml"), 0o644)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let (code, works, levels) = examine(Some(&programs));
    assert!(code == 0 && works, "{levels:#?}");
    for poor in ["storage daemon", "qemu-img", "tpm", "bridges", "secrets"] {
        assert_eq!(levels[poor], "poor", "{poor}: {levels:#?}");
    }
    assert_ne!(levels["qemu"], "missing");
}
