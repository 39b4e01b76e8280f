//! Disk images and jobs, as an administrator meets them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::kit::{State, eventually};

const MIB: usize = 1 << 20;

/// A file whose bytes cannot be guessed, so that its copy takes as long as it is large.
fn random_file(folder: &Path, size: usize) -> PathBuf {
    let path = folder.join("source.img");
    let mut bytes = vec![0; size];
    let mut random = fs::File::open("/dev/urandom").unwrap();
    std::io::Read::read_exact(&mut random, &mut bytes).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

/// Words that copy `source` with so many bytes in a second that the copy is still running when a test looks.
fn slow_copy(source: &Path, rate: &str) -> String {
    format!("disk convert {} {} --rate {rate}", source.display(), source.with_extension("qcow2").display())
}

fn images(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| name.contains("source")).collect();
    names.sort();
    names
}

fn started(state: &State, words: &str) -> Child {
    state.command(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the only job has copied something; it.
fn copying(state: &State) -> Value {
    eventually("the copy begins", || {
        let job = state.json("job list").get(0).cloned()?;
        (job["progress"]["done"].as_u64() > Some(0)).then_some(job)
    })
}

#[test]
fn an_image_is_made_described_converted_resized_and_deleted() {
    let state = State::new();
    let _service = state.serve();
    let at = |name: &str| state.path().join(name).display().to_string();
    let (base, vhd) = (at("base.qcow2"), at("win.vhd"));
    let created = state.run(&format!("disk create {base} --size 20M"));
    assert_eq!(created.code, 0, "{created:?}");
    assert!(created.stdout.starts_with(&format!("{base} is created: qcow2, 20 MiB, ")), "{}", created.stdout);
    let again = state.run(&format!("disk create {base} --size 20M"));
    assert_eq!(again.code, 4);
    assert!(again.stderr.contains("nothing is overwritten"), "{}", again.stderr);

    let written = state.run(&format!("disk convert {base} {vhd} --fixed"));
    assert_eq!(written.code, 0, "{written:?}");
    assert!(written.stdout.contains("win.vhd is written: vhd (fixed), 20 MiB"), "{}", written.stdout);
    let larger = state.json(&format!("disk resize {vhd} +4M"));
    assert_eq!((&larger["kind"], &larger["result"]["size"]), (&"disk-resize".into(), &(24 * MIB).into()));
    let info = state.json(&format!("disk info {vhd}"));
    assert_eq!((&info["layout"], &info["size"]), (&"fixed".into(), &(24 * MIB).into()));

    let overlay = at("overlay.qcow2");
    state.json(&format!("disk create {overlay} --backing {base}"));
    let tree = state.run(&format!("disk tree {}", state.path().display())).stdout;
    assert!(tree.contains(&format!("{base}  qcow2  20 MiB\n└─ {overlay}  qcow2  20 MiB")), "{tree}");
    let needed = state.run(&format!("disk delete {base}"));
    assert!(needed.code == 4 && needed.stderr.contains("overlay.qcow2 stands on it"), "{needed:?}");
    for path in [&overlay, &base, &vhd] {
        assert_eq!(state.run(&format!("disk delete {path}")).code, 0);
        assert_eq!(state.run(&format!("disk info {path}")).code, 3);
    }
}

#[test]
fn mistakes_are_named() {
    let state = State::new();
    let _service = state.serve();
    let at = |name: &str| state.path().join(name).display().to_string();
    for (words, code, says) in [
        (format!("disk create {} --size 1G", at("a.disk")), 2, "its name does not tell"),
        (format!("disk create {} --size 3T", at("a.vhd")), 2, "vhd images have 2190433320960 bytes at most"),
        (format!("disk create {} --size 1G --fixed", at("a.img")), 2, "only vhd and vhdx"),
        (format!("disk create {} --size 1G", at("missing/a.img")), 1, "No such file"),
        (format!("disk info {}", at("a.img")), 3, "No such file"),
        (format!("disk info {}", state.path().display()), 2, "neither a file nor a block device"),
        ("job show 7".to_owned(), 3, "there is no job 7"),
        ("job cancel 7".to_owned(), 3, "there is no job 7"),
        ("job cancel x".to_owned(), 2, "`x` is not the number of a job; `fanlight job list` has them"),
        ("job wait 7".to_owned(), 3, "there is no job 7"),
    ] {
        let finished = state.run(&words);
        assert!(finished.code == code && finished.stderr.contains(says), "{words}: {finished:?}");
    }
}

#[test]
fn a_copy_shows_its_progress_in_lines_and_to_programs_only_its_end() {
    let state = State::new();
    let _service = state.serve();
    let source = random_file(state.path(), 40 * MIB);
    let finished = state.run(&slow_copy(&source, "8M"));
    assert_eq!(finished.code, 0, "{finished:?}");
    let lines: Vec<_> = finished.stderr.lines().filter(|line| line.starts_with("job 1: copying")).collect();
    assert!(lines.len() > 2 && lines[2].contains(" of 40 MiB"), "{}", finished.stderr);
    fs::remove_file(source.with_extension("qcow2")).unwrap();

    let quiet = state.run(&format!("{} --json", slow_copy(&source, "8M")));
    assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
    let job: Value = serde_json::from_str(&quiet.stdout).unwrap();
    assert_eq!((&job["state"], &job["progress"]["percent"]), (&"done".into(), &100.0.into()));
}

#[test]
fn a_copy_goes_on_when_nobody_waits_and_stops_when_cancelled() {
    let state = State::new();
    let _service = state.serve();
    let source = random_file(state.path(), 100 * MIB);
    let mut waiting = started(&state, &slow_copy(&source, "1M"));
    copying(&state);
    kill_process(Pid::from_child(&waiting), Signal::INT).unwrap();
    let left = waiting.wait_with_output_soon();
    assert_eq!(left.0, Some(130));
    assert!(left.1.contains("job 1 goes on; `fanlight job wait 1`"), "{}", left.1);
    assert_eq!(state.json("job show 1")["state"], "running");

    waiting = started(&state, "job wait 1");
    assert_eq!(state.run("job cancel 1").code, 0);
    let left = waiting.wait_with_output_soon();
    assert_eq!(left.0, Some(4));
    assert!(left.1.contains("job 1 was cancelled"), "{}", left.1);
    assert_eq!(images(state.path()), ["source.img"]);
    let again = state.run("job cancel 1");
    assert!(again.code == 4 && again.stderr.contains("it is cancelled"), "{again:?}");
}

#[test]
fn a_copy_begins_again_with_the_next_service_and_no_half_of_it_is_left() {
    let state = State::new();
    let source = random_file(state.path(), 100 * MIB);
    let service = state.serve();
    state.json(&format!("{} --detach", slow_copy(&source, "1M")));
    copying(&state);
    service.stop();
    assert_eq!(images(state.path()), ["source.img"]);

    let mut service = state.serve();
    assert_eq!(state.json("job show 1")["state"], "running");
    copying(&state);
    service.signal(Signal::KILL);
    service.wait();
    assert_eq!(images(state.path()).len(), 3, "what a killed process was at is still there");

    let service = state.serve();
    let waiting = started(&state, "job wait 1");
    copying(&state);
    assert_eq!(images(state.path()).len(), 3, "what it was at is gone, and it is at it again");
    assert_eq!(state.run("job cancel 1").code, 0);
    let (code, says) = waiting.wait_with_output_soon();
    assert!(code == Some(4) && says.contains("job 1 was cancelled"), "{code:?} {says}");
    assert_eq!(images(state.path()), ["source.img"]);
    assert!(!still_runs(&source), "the programs that copied have ended");

    // What it needs has gone meanwhile.
    state.json(&format!("{} --detach", slow_copy(&source, "1M")));
    copying(&state);
    service.stop();
    fs::remove_file(&source).unwrap();
    let _service = state.serve();
    let failed = state.json("job show 2");
    let problem = failed["problem"].as_str().unwrap();
    assert!(failed["state"] == "failed" && problem.contains("it cannot begin again"), "{failed}");
}

/// Whether a process has the file open.
fn still_runs(file: &Path) -> bool {
    let fds =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|process| fs::read_dir(process.path().join("fd")).ok());
    let mut open = fds.flat_map(Iterator::flatten).filter_map(|fd| fs::read_link(fd.path()).ok());
    open.any(|open| open == file)
}

trait Ends {
    /// Its exit code and what it wrote to standard error.
    fn wait_with_output_soon(self) -> (Option<i32>, String);
}

impl Ends for Child {
    fn wait_with_output_soon(mut self) -> (Option<i32>, String) {
        let status = eventually("the command ends", || self.try_wait().unwrap());
        let output = self.wait_with_output().unwrap();
        (status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

#[test]
fn a_vm_is_given_disks_and_discs_and_loses_them() {
    let state = State::new();
    let _service = state.serve();
    let at = |name: &str| state.path().join(name).display().to_string();
    let (data, disc) = (at("data.qcow2"), at("tools.iso"));
    state.json(&format!("disk create {data} --size 20M"));
    fs::write(&disc, vec![0; MIB]).unwrap();
    state.json("vm create --name web01 --memory 64 --accelerator tcg --network none");
    state.json("disk attach web01 empty --cdrom --bus ide --id cd");
    state.json("vm start web01");

    let attached = state.run(&format!("disk attach web01 {data}"));
    assert_eq!(attached.stdout, format!("{data} is attached to web01 as disk1, on scsi 0:0\n"), "{attached:?}");
    let inserted = state.run(&format!("disk insert web01 cd {disc}"));
    assert_eq!(inserted.stdout, format!("{disc} is in cd of web01\n"), "{inserted:?}");
    let list = state.json("disk list web01");
    assert_eq!((&list[0]["source"], &list[0]["cdrom"], &list[0]["bus"]), (&disc.into(), &true.into(), &"ide".into()));
    assert_eq!((&list[1]["format"], &list[1]["next_start"]), (&"qcow2".into(), &false.into()));
    assert_eq!(state.run("disk eject web01 cd").stdout, "cd of web01 is empty\n");

    let detached = state.run(&format!("disk detach web01 {data}"));
    assert_eq!(detached.stdout, "disk1 is detached from web01\n", "{detached:?}");
    let later = state.run(&format!("disk attach web01 {data} --bus ide --id later"));
    assert!(later.stdout.ends_with("as later, on ide 0:1; its guest has it from the next start on\n"), "{later:?}");
    assert_eq!(state.json("disk detach web01 later")["next_start"], false);
    let unknown = state.run("disk detach web01 disk7");
    assert!(unknown.code == 3 && unknown.stderr.contains("web01 has no disk `disk7`"), "{unknown:?}");
    let definition = state.run("vm show web01 --definition").stdout;
    assert!(definition.contains("id = \"cd\"") && !definition.contains("data.qcow2"), "{definition}");
    state.json("vm stop web01");
}

#[test]
fn a_merge_that_could_not_be_is_begun_again() {
    let state = State::new();
    let _service = state.serve();
    let at = |name: &str| state.path().join(name).display().to_string();
    let (raw, other) = (at("data.raw"), at("other.qcow2"));
    state.json(&format!(
        "vm create --name web01 --memory 64 --accelerator tcg --network none --disk path={raw},size=20M"
    ));
    let none = state.run("checkpoint merge web01");
    assert!(none.code == 4 && none.stderr.contains("no disk of web01 has an overlay"), "{none:?}");
    state.json("checkpoint create web01 --name a");
    state.json(&format!("disk create {other} --backing {raw}"));
    let deleted = state.run("checkpoint delete web01 a");
    assert!(deleted.code == 0 && deleted.stdout.contains("stays the disk"), "{deleted:?}");
    assert!(deleted.stdout.ends_with("`fanlight checkpoint merge web01` tries that again\n"), "{deleted:?}");
    let failed = state.run("checkpoint merge web01");
    assert!(failed.code == 1 && failed.stderr.contains("other.qcow2"), "{failed:?}");
    assert_eq!(state.run(&format!("disk delete {other}")).code, 0);
    let merged = state.run("checkpoint merge web01");
    let said = format!("{raw}: has all of {raw}.checkpoints.qcow2 and is the disk again\n");
    assert_eq!((merged.code, merged.stdout), (0, said), "{}", merged.stderr);
    assert_eq!(state.json("disk list web01")[0]["source"], raw);
    assert_eq!(state.json("job list")[0]["kind"], "checkpoint-merge");
}

#[test]
fn what_is_wrong_with_the_place_that_a_disk_shall_go_to_is_told_first() {
    let state = State::new();
    let _service = state.serve();
    let at = |name: &str| state.path().join(name).display().to_string();
    state.json(&format!("vm create --name web01 --memory 64 --network none --disk path={},size=20M", at("a.qcow2")));
    state.json("checkpoint create web01 --name a");
    let bad = state.run(&format!("disk move web01 disk0 {}", at("missing/b.qcow2")));
    assert!(bad.code != 0 && bad.stderr.contains(&format!("{}: No such file", at("missing"))), "{bad:?}");
    assert!(!bad.stderr.contains("--leave-snapshots"), "{bad:?}");
    let holds = state.run(&format!("disk move web01 disk0 {}", at("b.qcow2")));
    assert!(holds.code == 2 && holds.stderr.contains("holds 1 checkpoint of the VM"), "{holds:?}");
}
