//! VMs that come from a library, and entries that are made of VMs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fanlight_tests::client::Connect;
use fanlight_tests::gateway::Gateway;
use fanlight_tests::process;
use fanlight_tests::wait::{Look, wait_until};
use serde_json::Value;

use crate::harness::journeys;
use crate::world::{World, enter, new_word, wait_for_line};

/// How long a program or a job may take, on a machine that has much to do.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes that take long to read, and no room while they are nothing.
const LONG: u64 = 512 << 30;

journeys![
    a_guest_starts_from_a_library_and_its_disk_comes_home,
    an_entry_that_is_not_right_is_refused_with_the_reason,
    an_export_that_is_cut_off_leaves_nothing_and_begins_again,
];

fn a_guest_starts_from_a_library_and_its_disk_comes_home(_: &World) -> Result<()> {
    let gateway = Gateway::start()?;
    let person = gateway.add_user("demo", "a-word-and-9-more", None)?;
    let library = library(&gateway)?;
    gateway.create_guest_with_disk("web01")?;
    let (disk, old) = (gateway.state().join("web01.qcow2"), new_word());
    fill(&disk, &old)?;
    let entry = library.join("web");
    gateway.command_json(&["vm", "export", "web01", &text(&entry)])?;
    let mut check = Command::new("sha256sum");
    check.args(["--check", "--strict", "SHA256SUMS"]).current_dir(&entry);
    let checked = process::run(check, "", PATIENCE)?;
    ensure!(checked.status.success(), "sha256sum says {}", String::from_utf8_lossy(&checked.stdout));

    let create = ["vm", "create", "--from", &text(&entry), "--name", "web02", "--verify", "--move-home"];
    let created = gateway.command_json(&create)?;
    ensure!(created["vm"]["state"] == "running", "it is {created}");
    let job = created["jobs"][0]["id"].to_string();
    ensure!(gateway.command_json(&["job", "wait", &job])?["state"] == "done", "the disk does not come home");
    let home = gateway.state().join("images/web02-disk0-2.qcow2");
    let info = gateway.command_json(&["disk", "info", &text(&home)])?;
    ensure!(info["backing"] == Value::Array(Vec::new()) && info["users"][0]["vm"] == "web02", "it is {info}");
    ensure!(!gateway.state().join("images/web02-disk0.qcow2").exists(), "what stood between is still there");

    // It never stopped, has what the library has, and writes at home.
    let guest = gateway.guest("web02")?;
    guest.wait_for_prompt()?;
    let client = Connect::to(gateway.address(), "web02\\demo", &person.password).open()?;
    // The driver is loaded some time after the shell is there.
    enter(&client, "until head -n 1 /dev/vda 2>/dev/null; do :; done")?;
    wait_for_line(&client, &guest, &old)?;
    let new = new_word();
    enter(&client, &format!("echo {new} | tee /dev/vda; sync"))?;
    wait_for_line(&client, &guest, &new)?;
    client.close()?;
    guest.request("stop")?;
    ensure!(first_line(&home)? == new && first_line(&entry.join("disk0.qcow2"))? == old, "the disks are others");
    Ok(())
}

fn an_entry_that_is_not_right_is_refused_with_the_reason(_: &World) -> Result<()> {
    let gateway = Gateway::start()?;
    let library = library(&gateway)?;
    let entry = library.join("web");
    let (entry_text, disk) = (text(&entry), gateway.state().join("web01.img"));
    fs::write(&disk, vec![7; 1 << 20])?;
    let created = ["vm", "create", "--name", "web01", "--memory", "64", "--accelerator", "tcg", "--disk"];
    gateway.command_json(&[&created[..], &[&format!("path={}", text(&disk))]].concat())?;
    gateway.command_json(&["vm", "start", "web01"])?;
    fails(&gateway, &["vm", "export", "web01", &entry_text], 4, "it is on; shut it down first")?;
    gateway.command_json(&["vm", "stop", "web01"])?;
    fails(&gateway, &["vm", "export", "web01", &text(&library.join("no/web"))], 3, "No such file")?;
    gateway.command_json(&["vm", "export", "web01", &entry_text])?;
    fails(&gateway, &["vm", "export", "web01", &entry_text], 4, "nothing is overwritten")?;

    let from = |name: &str, option: &[&str]| -> Vec<String> {
        let words = ["vm", "create", "--name", name, "--from", &entry_text];
        words.iter().chain(option).map(ToString::to_string).collect()
    };
    let refused = |option: &[&str], code, says: &str| -> Result<()> {
        let words = from("bad", option);
        fails(&gateway, &words.iter().map(String::as_str).collect::<Vec<_>>(), code, says)?;
        ensure!(gateway.command_json(&["vm", "list"])?["vms"][1].is_null(), "a VM is there all the same");
        let images = fs::read_dir(gateway.state().join("images")).into_iter().flatten().count();
        ensure!(images == 0, "{images} images are left");
        Ok(())
    };
    let image = entry.join("disk0.raw");
    // Another byte.
    File::options().write(true).open(&image)?.write_all_at(b"x", 5)?;
    refused(&["--verify"], 1, "not as it was when the entry was made: disk0.raw")?;
    File::options().write(true).open(&image)?.write_all_at(&[7], 5)?;
    // Half a copy.
    File::options().write(true).open(&image)?.set_len(1 << 19)?;
    refused(&[], 2, "524288 bytes long and not 1048576: its copy is not complete")?;
    fs::rename(&image, library.join("aside"))?;
    refused(&[], 3, "No such file")?;
    File::options().write(true).open(library.join("aside"))?.set_len(0)?;
    fs::write(&image, vec![7; 1 << 20])?;
    let definition = fs::read_to_string(entry.join("vm.toml"))?;
    fs::write(entry.join("vm.toml"), definition.replace("disk0.raw", "/etc/passwd"))?;
    refused(&[], 2, "is not the name of a file beside vm.toml")?;
    fs::remove_file(entry.join("vm.toml"))?;
    refused(&[], 2, "it has no vm.toml")?;
    fs::write(entry.join("vm.toml"), definition)?;

    // Who writes to the entry's own disk has it alone.
    let run = |words: Vec<String>| gateway.command_json(&words.iter().map(String::as_str).collect::<Vec<_>>());
    run(from("direct", &["--direct", "--verify"]))?;
    fails(&gateway, &from("two", &["--direct"]).iter().map(String::as_str).collect::<Vec<_>>(), 4, "direct")?;
    fails(&gateway, &from("two", &[]).iter().map(String::as_str).collect::<Vec<_>>(), 4, "VM direct writes to it")?;
    gateway.command_json(&["vm", "delete", "direct"])?;
    run(from("over", &[]))?;
    fails(&gateway, &from("two", &["--direct"]).iter().map(String::as_str).collect::<Vec<_>>(), 4, "over-disk0.qcow2")?;
    run(from("another", &[]))?;
    Ok(())
}

fn an_export_that_is_cut_off_leaves_nothing_and_begins_again(_: &World) -> Result<()> {
    let mut gateway = Gateway::start()?;
    let library = library(&gateway)?;
    let disk = gateway.state().join("web01.img");
    File::create(&disk)?.set_len(LONG)?;
    let created = ["vm", "create", "--name", "web01", "--memory", "64", "--accelerator", "tcg", "--disk"];
    gateway.command_json(&[&created[..], &[&format!("path={}", text(&disk))]].concat())?;
    let sums = |gateway: &Gateway, job: &str| {
        wait_until(PATIENCE, "the checksums to be begun", || {
            let job = gateway.command_json(&["job", "show", job])?;
            Ok(Look::when(job["step"] == "computing checksums", || format!("it is {job}")))
        })
    };
    let begin = |gateway: &Gateway| -> Result<String> {
        let export = ["vm", "export", "web01", &text(&library.join("web")), "--detach"];
        let job = gateway.command_json(&export)?["id"].to_string();
        sums(gateway, &job)?;
        Ok(job)
    };
    let nothing = || fs::read_dir(&library).map(|entries| entries.count() == 0);

    let job = begin(&gateway)?;
    fails(&gateway, &["vm", "start", "web01"], 1, "is being moved or copied")?;
    gateway.command_json(&["job", "cancel", &job])?;
    let ended = |gateway: &Gateway, job: &str, state: &str| {
        wait_until(PATIENCE, format_args!("the job to be {state}"), || {
            let job = gateway.command_json(&["job", "show", job])?;
            Ok(Look::when(job["state"] == state, || format!("it is {job}")))
        })
    };
    ended(&gateway, &job, "cancelled")?;
    ensure!(nothing()?, "something is left of what was cancelled");
    gateway.command_json(&["vm", "start", "web01"])?;
    gateway.command_json(&["vm", "stop", "web01"])?;

    let job = begin(&gateway)?;
    gateway.kill();
    ensure!(!nothing()?, "there is nothing to clear away");
    gateway.start_again()?;
    sums(&gateway, &job)?;
    let count = fs::read_dir(&library)?.count();
    ensure!(count == 1, "{count} entries are made at a time");
    gateway.command_json(&["job", "cancel", &job])?;
    ended(&gateway, &job, "cancelled")?;
    ensure!(nothing()?, "something is left of what began again");
    Ok(())
}

fn library(gateway: &Gateway) -> Result<PathBuf> {
    let folder = gateway.state().join("library");
    fs::create_dir(&folder)?;
    Ok(folder)
}

/// Makes an image one that begins with a line.
fn fill(image: &Path, line: &str) -> Result<()> {
    let raw = image.with_extension("raw");
    let mut bytes: Vec<u8> = (0..64_usize << 20).map(|index| (index / 4096 % 251) as u8).collect();
    bytes[..=line.len()].copy_from_slice(format!("{line}\n").as_bytes());
    fs::write(&raw, bytes)?;
    convert(&raw, "raw", image, "qcow2")?;
    Ok(fs::remove_file(raw)?)
}

fn first_line(image: &Path) -> Result<String> {
    let raw = image.with_extension("looked-at");
    convert(image, "qcow2", &raw, "raw")?;
    let bytes = fs::read(&raw)?;
    fs::remove_file(raw)?;
    let line = bytes.split(|byte| *byte == b'\n').next().context("there is a line")?;
    Ok(String::from_utf8_lossy(line).into_owned())
}

fn convert(from: &Path, format: &str, to: &Path, into: &str) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", format, "-O", into]).args([from, to]);
    let output = process::run(command, "", PATIENCE)?;
    ensure!(output.status.success(), "qemu-img says {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Runs a command that must fail, with that exit code and those words.
fn fails(gateway: &Gateway, arguments: &[&str], code: i32, says: &str) -> Result<()> {
    let output = gateway.command(arguments, "")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "{arguments:?} ended with {}: {errors}", output.status);
    ensure!(errors.contains(says), "{arguments:?} says {errors}");
    Ok(())
}
