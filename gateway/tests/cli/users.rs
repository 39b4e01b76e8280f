//! Users, with and without a running service; and that passwords stay where they belong.

use std::fs;
use std::path::Path;

use crate::kit::State;

/// A password that nothing else contains.
const CANARY: &str = "canary-4e1c9f";

#[test]
fn users_are_added_listed_and_removed_while_the_service_runs() {
    let state = State::new();
    let _service = state.serve();
    state.add_user("Anna", "one");
    assert_eq!(state.run_with_input("user add bob --no-nla --vm web02 --vm web01", "two\n").code, 0);
    let users = state.json("user list");
    assert_eq!(users[0], serde_json::json!({ "name": "Anna", "nla": true, "vms": null }));
    assert_eq!(users[1], serde_json::json!({ "name": "bob", "nla": false, "vms": ["web01", "web02"] }));

    let again = state.run_with_input("user add ANNA", "three\n");
    assert_eq!(again.code, 4, "{again:?}");
    assert_eq!(state.run("user remove anna").code, 0);
    assert_eq!(state.run("user remove anna").code, 3);
}

#[test]
fn users_can_be_added_before_the_first_start() {
    let state = State::at("new");
    state.add_user("anna", "one");
    assert_eq!(state.json("user list")[0]["name"], "anna");
    let _service = state.serve();
    assert_eq!(state.json("user list")[0]["name"], "anna");
}

#[test]
fn a_password_or_name_that_cannot_be_is_refused() {
    let state = State::new();
    for (words, input) in
        [("user add anna", "\n"), ("user add anna", ""), ("user add a\\b", "one\n"), ("user add anna", "a\tb\n")]
    {
        assert_eq!(state.run_with_input(words, input).code, 2, "{words} {input:?}");
    }
    assert_eq!(state.json("user list"), serde_json::json!([]));
}

#[test]
fn without_nla_there_is_no_nt_hash() {
    let state = State::new();
    fs::write(state.path().join("fanlight.toml"), "[login]\nnla = 'off'\n").unwrap();
    state.add_user("anna", "one");
    let file = fs::read_to_string(state.path().join("users.toml")).unwrap();
    assert!(file.contains("$argon2id$") && !file.contains("nt-hash"), "{file}");
}

#[test]
fn a_password_is_nowhere_but_in_its_hashes() {
    let state = State::new();
    state.add_user("before", CANARY);
    let mut serve = state.command("serve --listen 127.0.0.1:0 --json");
    serve.env("FANLIGHT_LOG", "trace");
    let log = state.path().join("trace.log");
    let mut child = serve
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    crate::kit::eventually("the service answers", || (state.run("status").code == 0).then_some(()));
    let finished = state.run_with_input("user add during", &format!("{CANARY}\n"));
    assert_eq!(finished.code, 0, "{finished:?}");
    // Refused for its name, by the service: that must not quote the request.
    let refused = state.run_with_input("user add a+b", &format!("{CANARY}\n"));
    child.kill().unwrap();
    child.wait().unwrap();

    for text in [finished.stdout, finished.stderr, refused.stdout, refused.stderr] {
        assert!(!text.contains(CANARY));
    }
    assert!(fs::metadata(&log).unwrap().len() > 0);
    let leaks = files_with(state.path(), CANARY.as_bytes());
    assert!(leaks.is_empty(), "{leaks:?}");
}

fn files_with(folder: &Path, needle: &[u8]) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files_with(&entry.path(), needle));
        } else if kind.is_file() {
            let contents = fs::read(entry.path()).unwrap();
            if contents.windows(needle.len()).any(|window| window == needle) {
                found.push(entry.path());
            }
        }
    }
    found
}
