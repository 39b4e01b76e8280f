//! Who gets in, who does not, and what those who do not are told.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fanlight_tests::client::{End, Program};
use fanlight_tests::gateway::Gateway;
use fanlight_tests::wire::{self, protocol};
use rustix::process::Pid;

use crate::harness::journeys;
use crate::world::World;

journeys![
    the_right_password_logs_on_in_every_way,
    a_wrong_password_looks_like_an_unknown_user,
    a_forbidden_vm_looks_like_an_unknown_one,
    standard_rdp_security_is_refused,
    nla_can_be_required,
    passwords_are_written_nowhere,
];

const NLA: &str = "/sec:nla";
const TLS: &str = "/sec:tls";

fn the_right_password_logs_on_in_every_way(_: &World) -> Result<()> {
    let gateway = Gateway::start()?;
    let anna = gateway.add_user("anna", "p\u{e4}ssw\u{f6}rd with spaces", None)?;
    gateway.create_guest("only")?;
    for program in [Program::FreeRdp3, Program::FreeRdp2] {
        for security in [NLA, TLS] {
            let client = gateway.client(&anna).program(program).with([security]).open();
            let client = client.with_context(|| format!("{program:?} with {security}"))?;
            gateway.wait_for_sessions(1)?;
            client.close()?;
            gateway.wait_for_sessions(0)?;
        }
    }
    ensure!(gateway.client(&anna).with([NLA]).logs_on()?, "a logon without a session failed");
    Ok(())
}

fn a_wrong_password_looks_like_an_unknown_user(_: &World) -> Result<()> {
    for security in [NLA, TLS] {
        let gateway = Gateway::start()?;
        gateway.add_user("anna", "right-and-long-enough", None)?;
        gateway.create_guest("only")?;
        let wrong = refusal(&gateway, "anna", "wrong-and-long-enough", security)?;
        let unknown = refusal(&gateway, "nobody", "right-and-long-enough", security)?;
        let empty = refusal(&gateway, "anna", "", security)?;
        ensure!(wrong == unknown, "with {security} a wrong password gives {wrong:?}, an unknown user {unknown:?}");
        ensure!(wrong == empty, "with {security} a wrong password gives {wrong:?}, an empty one {empty:?}");
    }
    Ok(())
}

fn a_forbidden_vm_looks_like_an_unknown_one(_: &World) -> Result<()> {
    let gateway = Gateway::start()?;
    let anna = gateway.add_user("anna", "right-and-long-enough", Some(&["mine"]))?;
    let (mine, other) = (gateway.create_guest("mine")?, gateway.create_guest("other")?);
    for security in [NLA, TLS] {
        let forbidden = refusal(&gateway, "other\\anna", &anna.password, security)?;
        let unknown = refusal(&gateway, "nothing\\anna", &anna.password, security)?;
        ensure!(forbidden == unknown, "with {security} a forbidden VM gives {forbidden:?}, an unknown one {unknown:?}");
        let blob = gateway.client(&anna).with([format!("/pcb:{}", other.uuid()), security.to_owned()]);
        let by_blob = end_without_session(&gateway, blob.start()?.wait_for_end()?)?;
        ensure!(by_blob == unknown, "with {security} a forbidden blob gives {by_blob:?}, an unknown VM {unknown:?}");
    }
    // With one VM allowed there is no need to name it.
    let client = gateway.client(&anna).open()?;
    gateway.wait_for_sessions(1)?;
    ensure!(gateway.sessions()? == [mine.name()], "the session is on another VM");
    client.close()
}

/// How a client ends that must not get in.
fn refusal(gateway: &Gateway, user: &str, password: &str, security: &str) -> Result<End> {
    let connect = fanlight_tests::client::Connect::to(gateway.address(), user, password).with([security]);
    end_without_session(gateway, connect.start()?.wait_for_end()?)
}

fn end_without_session(gateway: &Gateway, end: End) -> Result<End> {
    ensure!(!end.errors.is_empty(), "the client names no error: {end:?}");
    ensure!(gateway.sessions()?.is_empty(), "a session was begun");
    Ok(end)
}

fn standard_rdp_security_is_refused(_: &World) -> Result<()> {
    let gateway = Gateway::start()?;
    let anna = gateway.add_user("anna", "right-and-long-enough", None)?;
    gateway.create_guest("only")?;
    let end = gateway.client(&anna).with(["/sec:rdp"]).start()?.wait_for_end()?;
    ensure!(end.errors.iter().any(|error| error.contains("NEGO")), "the client ended with {end:?}");
    // MS-RDPBCGR 2.2.1.2.2: a connection confirm with type 3 (failure), length 8, code 1 (SSL_REQUIRED_BY_SERVER).
    let request = wire::connection_request(protocol::RDP, "anna");
    let closed = wire::send_and_wait(gateway.address(), &request, Duration::from_secs(5))?;
    let (head, failure) = closed.answer.split_at_checked(11).with_context(|| format!("too short: {closed:?}"))?;
    ensure!(head.starts_with(&[3, 0, 0, 19, 14, 0xd0]), "no connection confirm: {closed:02x?}");
    ensure!(failure == [3, 0, 8, 0, 1, 0, 0, 0], "no negotiation failure: {closed:02x?}");
    Ok(())
}

fn nla_can_be_required(_: &World) -> Result<()> {
    let gateway = Gateway::start_with("[login]\nnla = \"require\"\n")?;
    let anna = gateway.add_user("anna", "right-and-long-enough", None)?;
    gateway.create_guest("only")?;
    let end = gateway.client(&anna).with([TLS]).start()?.wait_for_end()?;
    ensure!(end.errors.iter().any(|error| error.contains("NEGO")), "the client ended with {end:?}");
    gateway.client(&anna).with([NLA]).open()?.close()
}

fn passwords_are_written_nowhere(_: &World) -> Result<()> {
    let (right, wrong) = ("canary-c41d-right-password", "canary-77e0-wrong-password");
    // Everything that can be logged is.
    let gateway = Gateway::start_logging("trace")?;
    let added = gateway.command(&["user", "add", "anna"], &format!("{right}\n"))?;
    ensure!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    gateway.create_guest("only")?;
    for security in [NLA, TLS] {
        refusal(&gateway, "anna", wrong, security)?;
        let person = fanlight_tests::gateway::Person { name: "anna".to_owned(), password: right.to_owned() };
        let client = gateway.client(&person).with([security]).open()?;
        gateway.wait_for_sessions(1)?;
        command_lines(gateway.process().pid(), &[right, wrong])?;
        client.close()?;
    }
    let mut places = files(gateway.state())?;
    places.push(gateway.process().log_file().to_owned());
    for file in places {
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        has_none(&bytes, &[right, wrong]).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// Checks what everybody on the machine can see of a process.
fn command_lines(pid: Pid, secrets: &[&str]) -> Result<()> {
    for name in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{}/{name}", pid.as_raw_nonzero()))?;
        has_none(&bytes, secrets).context(name)?;
    }
    Ok(())
}

fn has_none(bytes: &[u8], secrets: &[&str]) -> Result<()> {
    for secret in secrets {
        let wide: Vec<u8> = secret.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for form in [secret.as_bytes(), &wide] {
            ensure!(!bytes.windows(form.len()).any(|window| window == form), "the password is there");
        }
    }
    Ok(())
}

/// All plain files below `folder`.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            found.extend(files(&entry.path())?);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(found)
}
